"""Open files of object stores in parallel before they are needed, so that the waiting times overlap."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from embedcli.core.errors import EmbedcliError
from embedcli.storage.paths import file_identity, file_state, get_object_store, is_local

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

    from embedcli.storage.ranged_file import RangedFile

T = TypeVar("T")

# Requests at a time. pyarrow's clients keep 25 connections; more would wait for one another.
MAX_PARALLEL_REQUESTS = 16


class PrefetchedFiles:
    """Files of object stores that are opened before they are needed, with their first bytes.

    The reader that goes through `iterate` owns it and passes it to `open_input` or `open_seekable`, which take the
    file that is ready there. Local files and those of web servers are never opened ahead.
    """

    def __init__(self) -> None:
        self._futures: dict[str, Future[RangedFile]] = {}

    def iterate(self, items: Iterable[T], path_of: Callable[[T], str | None]) -> Generator[T, None, None]:
        """Yield the items in order while the files of the next MAX_PARALLEL_REQUESTS items are opened.

        A file that nobody takes while its item is current is closed. Closing the iterator closes the rest.

        Args:
            items: What is worked on, one after another.
            path_of: Returns the path that an item will open first; None if it opens none.
        """
        from concurrent.futures import ThreadPoolExecutor

        pool = ThreadPoolExecutor(MAX_PARALLEL_REQUESTS, thread_name_prefix="opening")
        waiting: deque[tuple[T, str | None]] = deque()
        try:
            for item in items:
                waiting.append((item, self._submit(pool, path_of(item))))
                if len(waiting) > MAX_PARALLEL_REQUESTS:
                    yield from self._hand_over(waiting)
            while waiting:
                yield from self._hand_over(waiting)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for _, path in waiting:
                self._close(path)

    def take(self, path: str) -> RangedFile | None:
        """Return the open file of a path, once; None if it was not opened ahead.

        Raises:
            ObjectStoreError, FileNotFoundError: What opening it raised.
        """
        future = self._futures.pop(path, None)
        return None if future is None else future.result()

    def _submit(self, pool: ThreadPoolExecutor, path: str | None) -> str | None:
        """Start opening a file; return its path if that was done."""
        if path is None or path == "-" or path in self._futures or is_local(path):
            return None
        files = get_object_store(path)
        if not files.can_list:
            return None
        self._futures[path] = pool.submit(files.open_prefetched, path)
        return path

    def _hand_over(self, waiting: deque[tuple[T, str | None]]) -> Iterator[T]:
        item, path = waiting.popleft()
        try:
            yield item
        finally:
            self._close(path)

    def _close(self, path: str | None) -> None:
        """Close a file that nobody took, as soon as it is open."""
        future = self._futures.pop(path, None) if path is not None else None
        if future is not None and not future.cancel():
            future.add_done_callback(_close_result)


def _close_result(future: Future[RangedFile]) -> None:
    with suppress(EmbedcliError, OSError):
        future.result().close()


def file_identities(paths: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return `file_identity` of each path; object stores are asked in parallel."""
    return _ask_in_parallel(paths, file_identity)


def file_states(paths: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return `file_state` of each path; object stores are asked in parallel."""
    return _ask_in_parallel(paths, file_state)


def _ask_in_parallel(paths: Sequence[str], ask: Callable[[str], dict[str, int]]) -> dict[str, dict[str, int]]:
    paths = tuple(dict.fromkeys(paths))
    if sum(not is_local(path) for path in paths) < 2:
        return {path: ask(path) for path in paths}
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(MAX_PARALLEL_REQUESTS, thread_name_prefix="identity") as pool:
        return dict(zip(paths, pool.map(ask, paths), strict=True))
