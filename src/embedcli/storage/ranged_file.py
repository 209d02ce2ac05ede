"""Random access to an object by ranged requests: few of them, tried again when the network fails."""

from __future__ import annotations

import io
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from embedcli.core.errors import EmbedcliError
from embedcli.storage.errors import SHORT, InputRefused, passing
from embedcli.storage.url_redaction import mask_secrets

if TYPE_CHECKING:
    from concurrent.futures import Future

Fetch = Callable[[int, int], bytes]

# A first request asks for this much, as a Parquet footer needs; reading on doubles it up to the largest:
# at 30 ms a request and 1 GB/s, 8 MiB cost about as much waiting as transfer.
FIRST_BYTES = 64 << 10
LARGEST_BYTES = 8 << 20
# Columns of a Parquet file are read side by side: so many windows are kept.
WINDOWS = 4
# An object of this size is fetched whole: a request costs as much waiting as the bytes.
SMALL_BYTES = 256 << 10
# Files that were opened ahead (storage.soon), for who opens them next.
READY: dict[str, Future[RangedFile]] = {}
ATTEMPTS = 2
PAUSE_SECONDS = 0.5


class RangedFile(io.RawIOBase):
    """An object as a read-only file. `fetch(start, size)` gives bytes of it, fewer only by a fault.

    Memory: WINDOWS x LARGEST_BYTES. Raises StoreRefused when the server cannot be asked, also after ATTEMPTS tries.
    """

    def __init__(self, path: str, size: int, fetch: Fetch, close: Callable[[], Any] = lambda: None) -> None:
        self.path = path
        self._size = size
        self._fetch = fetch
        self._close = close
        self._at = 0
        self._windows: OrderedDict[int, bytes] = OrderedDict()

    def size(self) -> int:
        return self._size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to `size` bytes, all of them unless the end comes first."""
        left = max(0, self._size - self._at)
        wanted = left if size is None or size < 0 else min(size, left)
        if not wanted:
            return b""
        window = self._held(self._at)
        if window is None or len(window[1]) - (self._at - window[0]) < wanted:
            window = self._load(self._at, wanted)
        start = self._at - window[0]
        self._at += wanted
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

    def warm(self, *, at_end: bool) -> None:
        """Fetch what is read first: all of a small object, else FIRST_BYTES of its beginning or end."""
        size = self._size if self._size <= SMALL_BYTES else FIRST_BYTES
        self._load(self._size - size if at_end else 0, size)

    def _held(self, at: int) -> tuple[int, bytes] | None:
        for start, data in self._windows.items():
            if start <= at < start + len(data):
                self._windows.move_to_end(start)
                return start, data
        return None

    def _load(self, at: int, wanted: int) -> tuple[int, bytes]:
        """Fetch a window that begins at `at`: twice the one it continues, else FIRST_BYTES, never less than wanted."""
        before = next((data for start, data in self._windows.items() if start <= at <= start + len(data)), b"")
        ahead = min(2 * len(before), LARGEST_BYTES) if before else FIRST_BYTES
        size = min(max(wanted, ahead), self._size - at)
        data = self._tried(at, size)
        if size <= LARGEST_BYTES:
            self._windows[at] = data
            self._windows.move_to_end(at)
        while len(self._windows) > WINDOWS:
            self._windows.popitem(last=False)
        return at, data

    def _tried(self, at: int, size: int) -> bytes:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                data = self._fetch(at, size)
                if len(data) != size:
                    raise InputRefused(
                        f"{mask_secrets(self.path)}: {SHORT}",
                        "run the same command again, once nothing writes to it any more",
                    )
                return data
            except EmbedcliError as error:
                if attempt == ATTEMPTS or not passing(error):
                    raise
                time.sleep(PAUSE_SECONDS * attempt)
        raise AssertionError("unreachable")
