"""Read files of word vectors: word2vec text and binary, GloVe, fastText .vec, gensim KeyedVectors; plain or gzip."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, NoReturn

import numpy as np

from embedcli.core.errors import ModelError

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from embedcli.core.types import Float32Array

ByteStream = IO[bytes] | gzip.GzipFile
WordVectorFormat = Literal["word2vec-binary", "word2vec-text", "glove-text", "keyed-vectors"]

GZIP_MAGIC = b"\x1f\x8b"
# DEFLATE compresses by a factor of at most about 1,032.
MAX_GZIP_RATIO = 1040
PICKLE_PROTOCOLS = range(2, 6)
SNIFF_BYTES = 1 << 18
READ_BLOCK_BYTES = 1 << 22
MAX_WORD_BYTES = 1 << 16
DOWNLOAD_AGAIN_HINT = "get or export the file again"


@dataclass(frozen=True)
class WordVectors:
    """`vectors[index[word]]` is the vector of a word, float32 [n, dim]. The first of equal words wins."""

    index: dict[str, int]
    vectors: Float32Array
    notes: tuple[str, ...] = ()


def detect_word_vector_format(path: Path) -> WordVectorFormat | None:
    """Detect the format of a file of word vectors from its first bytes; None if it is not one."""
    try:
        with open_word_vectors(path) as stream:
            head = stream.read(SNIFF_BYTES)
    except (OSError, EOFError, zlib.error):
        return None
    if head[:1] == b"\x80" and len(head) > 1 and head[1] in PICKLE_PROTOCOLS:
        return "keyed-vectors"
    first, newline, rest = head.partition(b"\n")
    sizes = _sizes(first)
    if newline and sizes:
        return "word2vec-text" if _has_vector_line(rest, sizes[1]) else "word2vec-binary"
    return "glove-text" if _has_vector_line(head) else None


def read_word_vectors(path: Path) -> WordVectors:
    """Read all words and vectors. Raises ModelError, with the position, if the file is damaged."""
    made = detect_word_vector_format(path)
    if made == "keyed-vectors":
        from embedcli.encoders.static.keyed_vectors import read_keyed_vectors as read_kept

        return _build_index(path, *read_kept(path))
    try:
        with open_word_vectors(path) as stream:
            if made == "word2vec-binary":
                return _build_index(path, *_binary(path, stream, *_read_header(path, stream, 4)))
            if made == "word2vec-text":
                return _build_index(path, *_text(path, stream, *_read_header(path, stream, 2), line=2))
            if made == "glove-text":
                return _build_index(path, *_text(path, stream, *_count_lines(path), line=1))
    except (OSError, EOFError, zlib.error) as error:
        raise ModelError(f"{path} cannot be read: {error}", DOWNLOAD_AGAIN_HINT) from error
    raise ModelError(
        f"{path} is not a file of word vectors: its first line is neither two counts nor a word and its numbers",
        "give a word2vec, GloVe, fastText .vec or KeyedVectors file",
    )


def open_word_vectors(path: Path) -> ByteStream:
    """Open the file, decompressed if it is gzip."""
    return gzip.open(path) if _is_gzip(path) else path.open("rb")


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(GZIP_MAGIC)) == GZIP_MAGIC


def _sizes(line: bytes) -> tuple[int, int] | None:
    fields = line.split()
    if len(fields) != 2 or not all(field.isdigit() for field in fields):
        return None
    return int(fields[0]), int(fields[1])


def _has_vector_line(text: bytes, dim: int | None = None) -> bool:
    """Whether the next line is a word and at least two numbers (or exactly `dim`)."""
    line, newline, _ = text.partition(b"\n")
    fields = line.split()[1:] if newline or len(text) < SNIFF_BYTES else line.split()[1:-1]
    enough = len(fields) >= (dim or 2) if newline or len(text) < SNIFF_BYTES else bool(fields)
    return enough and all(map(_is_number, fields[-(dim or len(fields)) :]))


def _is_number(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _read_header(path: Path, stream: ByteStream, least: int) -> tuple[int, int]:
    """Read the counts in the header. Raises ModelError if the file is too small for numbers of `least` bytes each."""
    count, dim = _sizes(stream.readline(SNIFF_BYTES)) or (0, 0)
    size = path.stat().st_size
    if count < 1 or dim < 1 or count * dim * least > size * (MAX_GZIP_RATIO if _is_gzip(path) else 1):
        _raise_damaged(
            f"{path}:1", f"the first line promises {count} vectors of {dim} numbers, the file has {size} bytes"
        )
    return count, dim


def _count_lines(path: Path) -> tuple[int, int]:
    """Count the lines, and the numbers per line, of a file without a header."""
    with open_word_vectors(path) as stream:
        dim = len(stream.readline().split()) - 1
        count, last = 1, b"\n"
        while block := stream.read(READ_BLOCK_BYTES):
            count, last = count + block.count(b"\n"), block[-1:]
    return count + (last != b"\n"), dim


def _binary(path: Path, stream: ByteStream, count: int, dim: int) -> tuple[list[bytes], Float32Array]:
    vectors = np.empty((count, dim), np.float32)
    words: list[bytes] = []
    block, at, before = b"", 0, stream.tell()
    while len(words) < count:
        space = block.find(b" ", at)
        stop = space + 1 + 4 * dim
        if space < 0 or stop > len(block):
            more = stream.read(READ_BLOCK_BYTES)
            if not more or (space < 0 and len(block) - at > MAX_WORD_BYTES):
                _raise_damaged(f"{path}, byte {before + at}", f"vector {len(words) + 1} of {count} is not whole")
            block, at, before = block[at:] + more, 0, before + at
            continue
        vectors[len(words)] = np.frombuffer(block, "<f4", dim, space + 1)
        words.append(block[at:space].lstrip(b"\n"))
        at = stop
    if (block[at:] + stream.read(MAX_WORD_BYTES)).strip():
        _raise_damaged(f"{path}, byte {before + at}", f"more follows the {count} vectors that the first line promises")
    return words, vectors


def _text(path: Path, stream: ByteStream, count: int, dim: int, line: int) -> tuple[list[bytes], Float32Array]:
    vectors = np.empty((count, dim), np.float32)
    words: list[bytes] = []
    for block in _lines(stream):
        lines = [one.rstrip() for one in _drop_blank_rest(block, count - len(words), path, line)]
        if lines:
            some, numbers = _parse_lines(path, lines, dim, line)
            vectors[len(words) : len(words) + len(some)] = numbers
            words += some
            line += len(some)
    if len(words) < count:
        _raise_damaged(f"{path}:{line}", f"the file ends after {len(words)} of {count} vectors")
    return words, vectors


def _lines(stream: ByteStream) -> Iterator[list[bytes]]:
    while block := stream.read(READ_BLOCK_BYTES):
        block += stream.readline()
        yield block.replace(b"\t", b" ").removesuffix(b"\n").split(b"\n")


def _drop_blank_rest(lines: list[bytes], count: int, path: Path, line: int) -> list[bytes]:
    if any(extra.strip() for extra in lines[count:]):
        _raise_damaged(f"{path}:{line + count}", "more follows the vectors that the first line promises")
    return lines[:count]


def _parse_lines(path: Path, lines: list[bytes], dim: int, line: int) -> tuple[list[bytes], Any]:
    """Parse the words and numbers of some lines, with Arrow if each has one word and `dim` plain numbers."""
    import pyarrow as pa
    import pyarrow.compute as pc

    # Arrays are made from buffers: `pa.array` and `to_numpy` import pandas where that is installed.
    lengths = np.fromiter(map(len, lines), np.int64, len(lines))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(lines))]
    fields = pc.split_pattern(pa.Array.from_buffers(pa.binary(), len(lines), buffers), b" ")
    if (np.diff(np.frombuffer(fields.buffers()[1], np.int32, len(lines) + 1)) != dim + 1).any():
        return _parse_line_by_line(path, lines, dim, line)
    flat = fields.flatten()
    first = np.zeros(len(flat), np.bool_)
    first[:: dim + 1] = True
    words, chosen = flat.filter(_mask(first)), flat.filter(_mask(~first))
    try:
        made = pa.StringArray.from_buffers(len(chosen), *chosen.buffers()[1:]).cast(pa.float32())
    except pa.ArrowInvalid:
        return _parse_line_by_line(path, lines, dim, line)
    return words.to_pylist(), np.frombuffer(made.buffers()[1], np.float32, len(made)).reshape(-1, dim)


def _mask(chosen: NDArray[np.bool_]) -> Any:
    import pyarrow as pa

    bits = np.packbits(chosen, bitorder="little")
    return pa.Array.from_buffers(pa.bool_(), len(chosen), [None, pa.py_buffer(bits)])


def _parse_line_by_line(path: Path, lines: list[bytes], dim: int, line: int) -> tuple[list[bytes], Any]:
    """Parse line by line, for words with spaces and to find a damaged line."""
    words, numbers = [], np.empty((len(lines), dim), np.float32)
    for i, one in enumerate(lines):
        fields = one.split(b" ")
        head = fields[: max(1, len(fields) - dim)]
        if len(fields) - 1 < dim or any(map(_is_number, head[1:])):
            _raise_damaged(f"{path}:{line + i}", f"it holds {len(fields) - 1} numbers, {dim} were expected")
        try:
            numbers[i] = [float(field) for field in fields[len(head) :]]
        except ValueError as error:
            _raise_damaged(f"{path}:{line + i}", f"{error}")
        words.append(b" ".join(head))
    return words, numbers


def _build_index(path: Path, words: list[Any], vectors: Float32Array) -> WordVectors:
    index: dict[str, int] = {}
    broken = 0
    for i, word in enumerate(words):
        try:
            index.setdefault(word if isinstance(word, str) else word.decode(), i)
        except UnicodeDecodeError:
            broken += 1
    notes = [f"{path.name}: {broken} words are not UTF-8 and are left out"] if broken else []
    again = len(words) - broken - len(index)
    if again:
        notes.append(f"{path.name}: {again} words come more than once; the first of each is used")
    return WordVectors(index, vectors, tuple(notes))


def _raise_damaged(where: str, what: str) -> NoReturn:
    raise ModelError(f"{where}: {what}", DOWNLOAD_AGAIN_HINT)
