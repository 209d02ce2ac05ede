"""Read a vector column directly from its Parquet pages.

For columns of PLAIN pages without nulls only (`can_read_pages`); others are read by pyarrow. Measured on
200,000 x 384 float32 vectors in memory: 5.1 times as fast as pyarrow, which goes through nested lists (median of
7 pairs, AMD EPYC, two cores).
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
# A page header takes about 25 bytes without statistics, about 100 with those of a number.
MAX_HEADER_BYTES = 1024


def can_read_pages(chunk: ColumnChunkMetaData, leaf: ColumnSchema, values: int) -> bool:
    """Whether `PageReader` can read a column chunk: plain, no dictionary, no nulls, `values` values."""
    if chunk.physical_type not in PARQUET_DTYPES or (
        chunk.physical_type == "FIXED_LEN_BYTE_ARRAY" and leaf.length != 2
    ):
        return False
    if chunk.has_dictionary_page or not set(chunk.encodings) <= {"PLAIN", "RLE", "BIT_PACKED"}:
        return False
    statistics = chunk.statistics
    is_complete = leaf.max_definition_level == 1 or (statistics is not None and statistics.null_count == 0)
    return bool(is_complete and leaf.max_repetition_level == 1 and chunk.num_values == values)


class PageReader:
    """Reads the pages of one column chunk of a list column in order.

    Args:
        source: The open file.
        path: Its path, for messages.
        chunk: Metadata of the column chunk.
        verify: Compare each page with the checksum in its header, if it has one.

    Raises:
        InputError: A page is damaged or does not match the metadata of the file.
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
        """Yield arrays [size, width] of `dtype`, the last one shorter; memory holds one of them and a page."""
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
        """Yield the values of each page in their stored dtype."""
        while self._left > 0:
            yield self._page()

    def is_supported(self) -> bool:
        """Whether the first page is a data page of version 1; writers use one version for all pages."""
        return self._header()[0].get(1) == DATA_PAGE_TYPE

    def _header(self) -> tuple[dict[int, Any], int]:
        try:
            return ThriftCompactReader(self._read(self._at, MAX_HEADER_BYTES)).read_struct()
        except (IndexError, ValueError):
            raise self._damaged() from None

    def _page(self) -> NDArray[Any]:
        header, length = self._header()
        start, compressed = self._at + length, header.get(3, 0)
        data_header = header.get(5, {})
        if header.get(1) != DATA_PAGE_TYPE or data_header.get(2) != PLAIN_ENCODING:
            raise self._damaged()
        body = self._read(start, compressed)
        if len(body) != compressed or (self._verify and 4 in header and zlib.crc32(body) != header[4] & 0xFFFFFFFF):
            raise self._damaged()
        if self._codec is not None:
            body = memoryview(self._codec.decompress(body, header[2])).cast("B")
        self._at = start + compressed
        return self._decode(body, data_header[1])

    def _decode(self, body: Any, count: int) -> NDArray[Any]:
        """Skip the repetition and definition levels, each prefixed by its length in 4 bytes, and return the values."""
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
            f"{format_location(self._path)}: the vector column is damaged near byte {self._at}",
            "encode the rows again",
        )


class ThriftCompactReader:
    """Parses the part of Thrift's compact protocol that page headers use."""

    def __init__(self, data: Any) -> None:
        self.buffer = data
        self.offset = 0

    def read_struct(self) -> tuple[dict[int, Any], int]:
        """Parse a struct. Returns its values by field id, and the offset of its end."""
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
        raise ValueError(f"unknown Thrift type {kind} in a page header")

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
