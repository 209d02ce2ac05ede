"""Random access to an object by ranged requests: few of them, retried when the network fails."""

from __future__ import annotations

import io
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from embedcli.storage.errors import ObjectStoreError, ObjectStoreReadError
from embedcli.storage.url_redaction import mask_secrets

if TYPE_CHECKING:
    import pyarrow as pa

Fetch = Callable[[int, int], bytes]

# The first request fetches this much, enough for a Parquet footer; sequential reading doubles it up to the maximum.
# At 30 ms per request and 1 GB/s, 8 MiB take as long to transfer as the request takes to start.
MIN_WINDOW_BYTES = 64 << 10
MAX_WINDOW_BYTES = 8 << 20
# The columns of a Parquet file are read side by side, so several windows are kept.
MAX_WINDOWS = 4
# An object up to this size is fetched completely: the request takes longer than the bytes.
SMALL_FILE_BYTES = 256 << 10
ATTEMPTS = 2
PAUSE_SECONDS = 0.5


class RangedFile(io.RawIOBase):
    """An object as a read-only file, with a read-ahead window for each place that is read.

    Memory: at most MAX_WINDOWS x MAX_WINDOW_BYTES. Reading raises ObjectStoreError if the server refuses, or if it
    cannot be reached in ATTEMPTS attempts.

    Args:
        path: The address, for messages.
        size: Bytes of the object.
        fetch: Takes start and size and returns these bytes; fewer of them are an error.
        close: Called when the file is closed.
    """

    def __init__(self, path: str, size: int, fetch: Fetch, close: Callable[[], Any] = lambda: None) -> None:
        self.path = path
        self._size = size
        self._fetch = fetch
        self._close = close
        self._position = 0
        self._windows: OrderedDict[int, bytes] = OrderedDict()

    def size(self) -> int:
        return self._size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        """Return `size` bytes, or fewer at the end of the file."""
        left = max(0, self._size - self._position)
        wanted = left if size is None or size < 0 else min(size, left)
        if not wanted:
            return b""
        window = self._find_window(self._position)
        if window is None or len(window[1]) - (self._position - window[0]) < wanted:
            window = self._load_window(self._position, wanted)
        start = self._position - window[0]
        self._position += wanted
        return window[1][start : start + wanted]

    def readinto(self, buffer: Any, /) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._windows.clear()
            self._close()
        super().close()

    def prefetch(self, *, at_end: bool) -> None:
        """Fetch what is read first: all of a small object, otherwise MIN_WINDOW_BYTES of its beginning or end."""
        size = self._size if self._size <= SMALL_FILE_BYTES else MIN_WINDOW_BYTES
        self._load_window(self._size - size if at_end else 0, size)

    def _find_window(self, position: int) -> tuple[int, bytes] | None:
        for start, data in self._windows.items():
            if start <= position < start + len(data):
                self._windows.move_to_end(start)
                return start, data
        return None

    def _load_window(self, start: int, wanted: int) -> tuple[int, bytes]:
        """Fetch the window from `start`: at least `wanted` bytes, and twice as large as a window that it continues."""
        before = next((data for at, data in self._windows.items() if at <= start <= at + len(data)), b"")
        ahead = min(2 * len(before), MAX_WINDOW_BYTES) if before else MIN_WINDOW_BYTES
        size = min(max(wanted, ahead), self._size - start)
        data = self._fetch_with_retry(start, size)
        if size <= MAX_WINDOW_BYTES:
            self._windows[start] = data
            self._windows.move_to_end(start)
        while len(self._windows) > MAX_WINDOWS:
            self._windows.popitem(last=False)
        return start, data

    def _fetch_with_retry(self, start: int, size: int) -> bytes:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                data = self._fetch(start, size)
                if len(data) != size:
                    raise ObjectStoreReadError(
                        f"{mask_secrets(self.path)}: the server returned fewer bytes than requested",
                        "run the same command again when nothing writes to the file any more",
                        is_transient=True,
                    )
                return data
            except ObjectStoreError as error:
                if attempt == ATTEMPTS or not error.is_transient:
                    raise
                time.sleep(PAUSE_SECONDS * attempt)
        raise AssertionError("unreachable")


def arrow_file(file: Any) -> pa.NativeFile:
    """Wrap an open Python file for Arrow."""
    import pyarrow as pa

    return pa.PythonFile(file, mode="r")
