"""What will be asked of a store soon is asked ahead, several requests at a time, so that their waiting overlaps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from embedcli.core.errors import EmbedcliError
from embedcli.storage.paths import file_identity, get_object_store, is_local
from embedcli.storage.ranged_file import READY

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

    from embedcli.storage.ranged_file import RangedFile

T = TypeVar("T")

# Requests at a time. pyarrow's clients keep 25 connections; more would wait for one another.
WIDTH = 16


def opened_ahead(items: Iterable[T], path_of: Callable[[T], str | None]) -> Iterator[T]:
    """The items, in order; the addresses of the next WIDTH are opened meanwhile, and their first bytes fetched.

    Whoever opens such an address while its item is at hand gets that file, or the error of opening it. Paths of this
    machine and web servers are left alone. Closing the iterator closes what nobody opened.
    """
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(WIDTH, thread_name_prefix="opening")
    waiting: deque[tuple[T, str | None]] = deque()
    try:
        for item in items:
            waiting.append((item, begun(pool, path_of(item))))
            if len(waiting) > WIDTH:
                yield from handed(waiting)
        while waiting:
            yield from handed(waiting)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for _, path in waiting:
            drop(path)


def begun(pool: ThreadPoolExecutor, path: str | None) -> str | None:
    """Begin to open an address; the path if that was done."""
    if path is None or path == "-" or path in READY or is_local(path):
        return None
    files = get_object_store(path)
    if not files.lists:
        return None
    READY[path] = pool.submit(files.opened_warm, path)
    return path


def handed(waiting: deque[tuple[T, str | None]]) -> Iterator[T]:
    """The next item; its file is closed if nobody has opened it by the time another is asked for."""
    item, path = waiting.popleft()
    try:
        yield item
    finally:
        drop(path)


def drop(path: str | None) -> None:
    """Close a file that nobody opened, once it is there."""
    future = READY.pop(path, None) if path is not None else None
    if future is not None and not future.cancel():
        future.add_done_callback(close)


def close(future: Future[RangedFile]) -> None:
    with suppress(EmbedcliError, OSError):
        future.result().close()


def file_identities(paths: Sequence[str]) -> dict[str, dict[str, int]]:
    """`file_identity` of each path; stores are asked for several at a time."""
    paths = tuple(dict.fromkeys(paths))
    if sum(not is_local(path) for path in paths) < 2:
        return {path: file_identity(path) for path in paths}
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(WIDTH, thread_name_prefix="identity") as pool:
        return dict(zip(paths, pool.map(file_identity, paths), strict=True))
