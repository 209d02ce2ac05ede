"""Awkward rows, the same in every format: which are accepted, which are rejected, and why.

`write(folder, format)` writes them to a file; `expected(format)` is what reading it must give.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from embedcli.core.types import InputFormat
from embedcli.readers import row_batch as reasons

FORMATS: tuple[InputFormat, ...] = ("jsonl", "json", "csv", "tsv", "parquet", "arrow")


@dataclass(frozen=True)
class Row:
    """A row that every format can hold. `reason` is None for an accepted row; in CSV a null is an empty field."""

    id: str | None
    text: str | None
    reason: str | None = None
    reason_in_csv: str | None = None

    def reason_in(self, kind: InputFormat) -> str | None:
        return self.reason_in_csv or self.reason if kind in ("csv", "tsv") else self.reason


@dataclass(frozen=True)
class Raw:
    """A line of one format as it is in the file, with the row or the reject that it becomes."""

    line: bytes
    id: Any = None
    text: str = ""
    reason: str | None = None


ROWS = (
    Row("plain", "A plain row."),
    Row("comma", "comma, tab\tand \"quotes\", 'single' too"),
    Row("newlines", "one\ntwo\r\nthree\rfour\n"),
    Row("quote", '"'),
    Row("backslash", "C:\\new\\table \\u0041 \\"),
    Row("spaces", "  leading and trailing  "),
    Row("nul", "a NUL \x00 in the middle"),
    Row("separators", "line\u2028paragraph\u2029next\x85file\x1cgroup\x1dfeed\x0ctab\x0bend"),
    Row("bom", "\ufeffa byte order mark"),
    Row("emoji", "👩‍👩‍👧‍👦 🇫🇷 👍🏽"),
    Row("chinese", "批量计算文本向量，一行也不丢。"),
    Row("arabic", "لا يضيع أي صف"),
    Row("combining", "e\u0301 is not é, nor is it e"),
    Row("json", '{"text": "not this one"}'),
    Row("null word", "null"),
    Row("NaN word", "NaN"),
    Row("number word", "12"),
    Row("zero width", "\u200b"),
    Row("high", "\U0010ffff\ue000"),
    Row("long", "long " * 20_000),
    Row("ünïcödé id ☃", "its id is not ASCII"),
    Row(" id with, comma\nand newline ", "its id needs quotes"),
    Row("plain", "an id that was there before"),
    Row("empty", "", reasons.EMPTY_TEXT_REASON),
    Row("blank", "  \t ", reasons.EMPTY_TEXT_REASON),
    Row("blank lines", "\n\n", reasons.EMPTY_TEXT_REASON),
    Row("ideographic space", "\u3000\u00a0", reasons.EMPTY_TEXT_REASON),
    Row("null", None, reasons.MISSING_TEXT_REASON, reasons.EMPTY_TEXT_REASON),
    Row(None, "no id", reasons.MISSING_ID_REASON),
    Row("", "an empty id", reasons.MISSING_ID_REASON),
    Row("last", "The last good row that all formats have."),
)

ONLY: dict[InputFormat, tuple[Raw, ...]] = {
    "jsonl": (
        Raw(b'{"id": "number", "text": 12}', "number", reason=reasons.NOT_TEXT_REASON),
        Raw(b'{"id": "float", "text": 1.5}', "float", reason=reasons.NOT_TEXT_REASON),
        Raw(b'{"id": "bool", "text": true}', "bool", reason=reasons.NOT_TEXT_REASON),
        Raw(b'{"id": "list", "text": ["a"]}', "list", reason=reasons.NOT_TEXT_REASON),
        Raw(b'{"id": "object", "text": {"a": "b"}}', "object", reason=reasons.NOT_TEXT_REASON),
        Raw(b'{"id": "missing"}', "missing", reason=reasons.MISSING_TEXT_REASON),
        Raw(b"{}", reason=reasons.MISSING_TEXT_REASON),
        Raw(b'{"id": 7, "text": "the id is a number"}', 7, reason=reasons.WRONG_ID_REASON),
        Raw(b'{"id": [1], "text": "the id is a list"}', reason=reasons.WRONG_ID_REASON),
        Raw(b'{"id": "surrogate", "text": "half \\ud83d a pair"}', "surrogate", reason=reasons.SURROGATE_REASON),
        Raw(b'{"id": "pair", "text": "\\ud83d\\ude00"}', "pair", "😀"),
        Raw(b'{"id": "elsewhere", "text": "fine", "other": "\\udc00"}', "elsewhere", "fine"),
        Raw(b'{"id": "NaN", "text": "fine too", "other": NaN}', "NaN", "fine too"),
        Raw(b'{"id": "huge", "text": "and this", "a": 1e999, "b": 12345678901234567890123}', "huge", "and this"),
        Raw(b'{"id": "twice", "text": "first", "text": "the last one counts"}', "twice", "the last one counts"),
        Raw(b'  {"id": "padded", "text": "spaces around"} \r', "padded", "spaces around"),
        Raw(b'\xef\xbb\xbf{"id": "bom", "text": "of an appended file"}', "bom", "of an appended file"),
        Raw(b"[1, 2]", reason=reasons.NOT_OBJECT_REASON),
        Raw(b'"text"', reason=reasons.NOT_OBJECT_REASON),
        Raw(b"null", reason=reasons.NOT_OBJECT_REASON),
        Raw(b'{"id": "cut", "text": "off', reason=reasons.BAD_JSON_REASON),
        Raw(b'{"id": "two", "text": "a"}{"id": "objects", "text": "b"}', reason=reasons.BAD_JSON_REASON),
        Raw(b"{'id': 'python', 'text': 'not JSON'}", reason=reasons.BAD_JSON_REASON),
        Raw(b'{"id": "control", "text": "a tab\tas it is"}', reason=reasons.BAD_JSON_REASON),
        Raw(b"[" * 5000 + b"]" * 5000, reason=reasons.BAD_JSON_REASON),
        Raw(b'{"id": "latin", "text": "caf\xe9"}', reason=reasons.BAD_ENCODING_REASON),
        Raw(b'{"id": "cesu", "text": "\xed\xa0\x80"}', reason=reasons.BAD_ENCODING_REASON),
        Raw(b'{"id": "half", "text": "\xe6\x89"}', reason=reasons.BAD_ENCODING_REASON),
    ),
    "csv": (
        Raw(b"short", "short", reason=reasons.WRONG_WIDTH_REASON),
        Raw(b"long,too many,1,2", "long", reason=reasons.WRONG_WIDTH_REASON),
        Raw(b'quotes,"closed" too early,1', reason=reasons.BAD_CSV_REASON),
        Raw(b"latin,caf\xe9,1", "latin", reason=reasons.BAD_ENCODING_REASON),
        Raw(b"elsewhere,fine but for the last field,\xff", "elsewhere", reason=reasons.BAD_ENCODING_REASON),
        Raw(b'unquoted,5" pipe,1', "unquoted", '5" pipe'),
        Raw(b"crlf,ends as on Windows,1\r", "crlf", "ends as on Windows"),
    ),
    "parquet": (
        Raw(b"caf\xe9", "latin", reason=reasons.BAD_ENCODING_REASON),
        Raw(b"\xed\xa0\x80", "cesu", reason=reasons.BAD_ENCODING_REASON),
    ),
}  # fmt: skip
ONLY["tsv"] = tuple(Raw(raw.line.replace(b",", b"\t"), raw.id, raw.text, raw.reason) for raw in ONLY["csv"])
# An element without its closing bracket is an error of the whole array.
ONLY["json"] = tuple(raw for raw in ONLY["jsonl"] if not raw.line.startswith(b'{"id": "cut"'))
ONLY["arrow"] = ONLY["parquet"]


@dataclass(frozen=True)
class Expected:
    """The result of reading: ids and texts of accepted rows, and (reason, id) of each reject, in order."""

    ids: list[str]
    texts: list[str]
    rejects: list[tuple[str, Any]]
    count: int


def expected(kind: InputFormat) -> Expected:
    """The result of reading the file of `write(folder, kind)`."""
    outcomes: list[tuple[Any, Any, str | None]] = [(row.id, row.text, row.reason_in(kind)) for row in ROWS]
    outcomes += [(raw.id, raw.text, raw.reason) for raw in ONLY[kind]]
    return Expected(
        ids=[row_id for row_id, _, reason in outcomes if reason is None],
        texts=[text for _, text, reason in outcomes if reason is None],
        rejects=[(reason, row_id or None) for row_id, _, reason in outcomes if reason is not None],
        count=len(outcomes),
    )


def write(folder: Path, kind: InputFormat) -> Path:
    """Write all rows of a format to one file, with a column `other` besides id and text."""
    path = folder / f"awkward.{kind}"
    if kind == "parquet":
        pq.write_table(table(), path, row_group_size=4)
    elif kind == "arrow":
        write_arrow(path)
    elif kind == "json":
        path.write_bytes(b" \n[\n" + b"\n ,\n\n".join(json_lines("json")) + b"\n]\n")
    else:
        path.write_bytes(jsonl() if kind == "jsonl" else delimited("," if kind == "csv" else "\t", ONLY[kind]))
    return path


def jsonl() -> bytes:
    """The rows as JSONL, with blank lines between them, which are not rows."""
    return b"\n \n\n".join(json_lines("jsonl"))


def json_lines(kind: InputFormat) -> list[bytes]:
    lines = [json.dumps({"id": row.id, "text": row.text, "other": 1}, ensure_ascii=False).encode() for row in ROWS]
    return lines + [raw.line for raw in ONLY[kind]]


def delimited(delimiter: str, raws: Sequence[Raw]) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\n")
    writer.writerow(["id", "text", "other"])
    writer.writerows([row.id, row.text, 1] for row in ROWS)
    return out.getvalue().encode() + b"\n\n".join(raw.line for raw in raws)


def table() -> pa.Table:
    """The rows for Parquet and Arrow."""
    texts = [None if row.text is None else row.text.encode() for row in ROWS]
    texts += [raw.line for raw in ONLY["parquet"]]
    ids = [row.id for row in ROWS] + [raw.id for raw in ONLY["parquet"]]
    return pa.table({"id": pa.array(ids, pa.string()), "text": unchecked(texts), "other": [1] * len(ids)})


def write_arrow(path: Path) -> None:
    """Write the rows as an Arrow file, in record batches of four rows."""
    with pa.ipc.new_file(path, table().schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as out:
        out.write_table(table(), max_chunksize=4)


def unchecked(values: Sequence[bytes | None], kind: pa.DataType | None = None) -> pa.Array:
    """A string column from bytes that need not be UTF-8."""
    raw = pa.array(values, pa.binary())
    return pa.Array.from_buffers(kind or pa.string(), len(raw), raw.buffers(), raw.null_count)
