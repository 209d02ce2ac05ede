"""The values of a vector column straight from its Parquet pages: several times faster than through nested lists.

Only for columns whose pages are PLAIN and hold every value; `readable` tells, and all others go through pyarrow.
Page layout and header: https://github.com/apache/parquet-format, README.md and src/main/thrift/parquet.thrift.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from embedcli.core.errors import InputError
from embedcli.storage import format_location

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pyarrow.parquet import ColumnChunkMetaData, ColumnSchema

PARQUET_DTYPES: dict[str, np.dtype[Any]] = {
    "FLOAT": np.dtype("<f4"),
    "DOUBLE": np.dtype("<f8"),
    "INT32": np.dtype("<i4"),
    "FIXED_LEN_BYTE_ARRAY": np.dtype("<f2"),
}
DATA_PAGE_TYPE = 0
PLAIN_ENCODING = 0
# A header without statistics takes about 25 bytes; with the statistics of a number some 100.
MAX_HEADER_BYTES = 1024


def can_read_pages(chunk: ColumnChunkMetaData, leaf: ColumnSchema, values: int) -> bool:
    """Whether `chunk` can be read by `Pages`: plain, without a dictionary, and with all of its `values` there."""
    if chunk.physical_type not in PARQUET_DTYPES or (
        chunk.physical_type == "FIXED_LEN_BYTE_ARRAY" and leaf.length != 2
    ):
        return False
    if chunk.has_dictionary_page or not set(chunk.encodings) <= {"PLAIN", "RLE", "BIT_PACKED"}:
        return False
    statistics = chunk.statistics
    whole = leaf.max_definition_level == 1 or (statistics is not None and statistics.null_count == 0)
    return bool(whole and leaf.max_repetition_level == 1 and chunk.num_values == values)


class PageReader:
    """The pages of one column chunk of a list column, read in order.

    `verify` compares each page with the checksum in its header, where there is one. Raises InputError if the bytes
    are not what the file's own metadata says.
    """

    def __init__(self, source: pa.NativeFile, path: str, chunk: ColumnChunkMetaData, *, verify: bool = False) -> None:
        self._source = source
        self._path = path
        self._left = int(chunk.num_values)
        self._at = int(chunk.data_page_offset)
        self._dtype = PARQUET_DTYPES[chunk.physical_type]
        self._codec = None if chunk.compression == "UNCOMPRESSED" else pa.Codec(chunk.compression.lower())
        self._verify = verify

    def read_blocks(self, size: int, width: int, dtype: Any) -> Iterator[NDArray[Any]]:
        """Yield arrays [size, width] of `dtype`, the last one shorter. Needs memory for one of them and a page."""
        held, filled = np.empty(size * width, dtype), 0
        for page in self.read_values():
            taken = 0
            while taken < len(page):
                count = min(len(page) - taken, len(held) - filled)
                held[filled : filled + count] = page[taken : taken + count]
                taken, filled = taken + count, filled + count
                if filled == len(held):
                    yield held.reshape(-1, width)
                    held, filled = np.empty(size * width, dtype), 0
        if filled:
            yield held[:filled].reshape(-1, width)

    def read_values(self) -> Iterator[NDArray[Any]]:
        """Yield the values of each page, in the type they are stored in."""
        while self._left > 0:
            yield self._page()

    def is_supported(self) -> bool:
        """Whether the first page is of the kind that `values` reads; writers use one kind for all."""
        return self._header()[0].get(1) == DATA_PAGE_TYPE

    def _header(self) -> tuple[dict[int, Any], int]:
        try:
            return ThriftCompactReader(self._read(self._at, MAX_HEADER_BYTES)).read_struct()
        except (IndexError, ValueError):
            raise self._damaged() from None

    def _page(self) -> NDArray[Any]:
        header, length = self._header()
        start, compressed = self._at + length, header.get(3, 0)
        about = header.get(5, {})
        if header.get(1) != DATA_PAGE_TYPE or about.get(2) != PLAIN_ENCODING:
            raise self._damaged()
        body = self._read(start, compressed)
        if len(body) != compressed or (self._verify and 4 in header and zlib.crc32(body) != header[4] & 0xFFFFFFFF):
            raise self._damaged()
        if self._codec is not None:
            body = memoryview(self._codec.decompress(body, header[2])).cast("B")
        self._at = start + compressed
        return self._unpacked(body, about[1])

    def _unpacked(self, body: Any, count: int) -> NDArray[Any]:
        """The values behind the repetition and the definition levels, each led by its length in four bytes."""
        skip = 0
        for _ in range(2):
            skip += 4 + int.from_bytes(body[skip : skip + 4], "little")
        if len(body) - skip != count * self._dtype.itemsize or not 0 < count <= self._left:
            raise self._damaged()
        self._left -= count
        return np.frombuffer(body, self._dtype, count, skip)

    def _read(self, start: int, size: int) -> Any:
        self._source.seek(start)
        return memoryview(self._source.read_buffer(size)).cast("B")

    def _damaged(self) -> InputError:
        return InputError(
            f"{format_location(self._path)}: the vector column is damaged near byte {self._at}", "make the output again"
        )


class ThriftCompactReader:
    """Thrift's compact protocol, as much as a page header needs."""

    def __init__(self, data: Any) -> None:
        self.buffer = data
        self.offset = 0

    def read_struct(self) -> tuple[dict[int, Any], int]:
        """A struct as {field id: value}, and where it ends."""
        fields: dict[int, Any] = {}
        number = 0
        while kind := self._byte():
            step = kind >> 4
            number = number + step if step else self._zigzag()
            fields[number] = self._value(kind & 15)
        return fields, self.offset

    def _value(self, kind: int) -> Any:
        if kind in (1, 2):
            return kind == 1
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._zigzag()
        if kind == 7:
            return self._bytes(8)
        if kind == 8:
            return self._bytes(self._varint())
        if kind == 12:
            return self.read_struct()[0]
        raise ValueError(f"a page header holds a value of kind {kind}")

    def _byte(self) -> int:
        self.offset += 1
        return int(self.buffer[self.offset - 1])

    def _bytes(self, count: int) -> bytes:
        self.offset += count
        return bytes(self.buffer[self.offset - count : self.offset])

    def _varint(self) -> int:
        number = shift = 0
        while True:
            byte = self._byte()
            number |= (byte & 127) << shift
            if byte < 128:
                return number
            shift += 7

    def _zigzag(self) -> int:
        number = self._varint()
        return (number >> 1) ^ -(number & 1)
