"""Random input files for whole jobs: a table that is known, written in a random format, encoding and compression.

`random_input(seed, folder)` writes one file and says what `embedcli encode` must make of it: the accepted rows and the
number of rejects. The table comes first and the file is made from it with the libraries that wrote such files for
users (csv, json, pyarrow), so that nothing here depends on the readers that are tested. A file
without damage is also read back with these libraries (`RandomInput.read`), to check the test itself.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq

from jobs import WORDS

LATIN = "aéèüßñ øæ¿¡"
CHINESE = "批量计算文本向量一行也不丢"
# Characters that careless readers take for line ends, separators, quotes or nothing.
TRAPS = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e", "\u200b", "\ufeff", "\U0001f469\u200d\U0001f467"]
ASCII_TRAPS = ["'", "`", "#", "\\", "\\n", "{", "}", "[", "]", ":", "  ", "NULL", "NaN", "=1+1", "-", "%s", "\x1b[31m"]
TABLE_TRAPS = [",", ";", "\t", "|", '"', '""', '","', "\n", "\r\n", "\n\n"]


@dataclass(frozen=True)
class Row:
    """A row of the table; `text` None is a null. The row is rejected unless its text has a character to embed."""

    id: str | int
    text: str | None
    tag: str

    @property
    def is_accepted(self) -> bool:
        return bool(self.text and self.text.strip())


@dataclass(frozen=True)
class RandomInput:
    """One file and what must become of it.

    Attributes:
        path: The file.
        arguments: The options that a user would have to give for it.
        description: The choices that were made, for a failing test.
        accepted: (id, text, tag) of the rows that get a vector, in order; the tag is None where the file has none.
        rejected: The number of rows that are rejected.
        is_damaged: Whether some rows are broken, so that other libraries would not read the file.
        read: Reads the file with another library, as (id, text, tag); None for a damaged file.
    """

    path: Path
    arguments: tuple[str, ...]
    description: str
    accepted: Sequence[tuple[Any, str, str | None]]
    rejected: int
    is_damaged: bool
    read: Callable[[], list[tuple[Any, str | None, str | None]]] | None = None

    @property
    def has_tags(self) -> bool:
        """Whether the file has the column of tags."""
        return any(tag is not None for _, _, tag in self.accepted)


class Maker:
    """Makes one random input; every choice is drawn from `chance`."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.chance = Random(seed)
        self.folder = folder
        self.choices: list[str] = [f"seed {seed}"]

    def choose(self, name: str, options: Sequence[Any]) -> Any:
        choice = self.chance.choice(options)
        self.choices.append(f"{name}={choice!r}")
        return choice

    def text(self, encoding: str, traps: Sequence[str]) -> str:
        """A text with at least one word that the model knows, between pieces that the encoding can write."""
        alphabet = CHINESE if encoding == "gbk" else LATIN if encoding in ("latin-1", "cp1252") else LATIN + CHINESE
        pieces = [self.chance.choice(WORDS)]
        for _ in range(self.chance.randrange(6)):
            kind = self.chance.randrange(4)
            if kind == 0 and traps:
                pieces.append(self.chance.choice(traps))
            elif kind == 1:
                pieces.append("".join(self.chance.choices(alphabet, k=self.chance.randint(1, 8))))
            else:
                pieces.append(self.chance.choice(WORDS))
        return self.chance.choice([" ", "  ", " - "]).join(pieces)

    def rows(self, encoding: str, traps: Sequence[str], *, has_nulls: bool) -> list[Row]:
        """Rows with unique ids, some of them with an empty, blank or missing text."""
        count = self.choose("rows", [1, 2, 3, 17, 60, 300])
        has_integer_ids = self.choose("integer ids", [True, False])
        rows = []
        for i in range(count):
            text: str | None = self.text(encoding, traps)
            if self.chance.random() < 0.06:
                text = self.chance.choice(["", " ", *([None] if has_nulls else [])])
            tag = self.chance.choice(["a", "b", "c d", "é" if encoding != "gbk" else "量", "0012", "1e5"])
            rows.append(Row(1000 - i if has_integer_ids else f"id-{i}", text, tag))
        if not any(row.is_accepted for row in rows):
            rows[0] = Row(rows[0].id, "word1 at least", rows[0].tag)
        return rows

    # Compression and encoding

    def compress(self, data: bytes, name: str) -> Path:
        suffix: str = self.choose("compression", ["", "", ".gz", ".gz members", ".zst", ".bz2", ".xz"])
        match suffix:
            case ".gz":
                data = gzip.compress(data)
            case ".gz members":
                cut = self.chance.randint(0, len(data))
                data = gzip.compress(data[:cut]) + gzip.compress(data[cut:])
            case ".zst":
                import zstandard

                data = zstandard.ZstdCompressor().compress(data)
            case ".bz2":
                data = bz2.compress(data)
            case ".xz":
                data = lzma.compress(data)
        path = self.folder / (name + suffix.removesuffix(" members"))
        path.write_bytes(data)
        return path

    def choose_encoding(self) -> tuple[str, str, tuple[str, ...]]:
        """The codec to write with, the codec's character set, and the options to read it."""
        written, characters, arguments = self.choose(
            "encoding",
            [
                ("utf-8", "utf-8", ()),
                ("utf-8", "utf-8", ()),
                ("utf-8-sig", "utf-8", ()),
                ("utf-16", "utf-8", ("--encoding", "utf-16")),
                ("utf-16-be", "utf-8", ("--encoding", "utf-16-be")),
                ("utf-32", "utf-8", ("--encoding", "utf-32")),
                ("latin-1", "latin-1", ("--encoding", "latin-1")),
                ("cp1252", "cp1252", ("--encoding", "windows-1252")),
                ("gbk", "gbk", ("--encoding", "gbk")),
            ],
        )
        return written, characters, arguments

    # Formats

    def jsonl(self) -> RandomInput:
        encoding, characters, arguments = self.choose_encoding()
        traps = ASCII_TRAPS + TABLE_TRAPS + (TRAPS if characters == "utf-8" else [])
        rows = self.rows(characters, traps, has_nulls=True)
        ascii_only = self.choose("escaped", [True, False])
        newline = self.choose("line end", ["\n", "\r\n"])
        lines, accepted, rejected = [], [], 0
        damages = self.chance.random() < 0.4
        damaged = False
        for row in rows:
            fields = [("id", row.id), ("text", row.text), ("tag", row.tag)]
            self.chance.shuffle(fields)
            lines.append(json.dumps(dict(fields), ensure_ascii=ascii_only))
            if row.is_accepted:
                accepted.append((row.id, row.text or "", row.tag))
            else:
                rejected += 1
            if damages and self.chance.random() < 0.15:
                lines.append(
                    self.chance.choice(["{broken", '{"id": 7, "text"', "[1, 2]", "null", '"text"', "{}", "nul"])
                )
                rejected += 1
                damaged = True
            elif self.chance.random() < 0.05:
                lines.append(self.chance.choice(["", "  "]))
        text = newline.join(lines) + self.chance.choice(["", newline])
        path = self.compress(text.encode(encoding), self.choose("name", ["in.jsonl", "in.ndjson"]))

        def read() -> list[tuple[Any, str | None, str | None]]:
            found = [json.loads(line) for line in text.split("\n") if line.strip()]
            return [(row["id"], row["text"], row["tag"]) for row in found]

        return RandomInput(path, arguments, self.description(), accepted, rejected, damaged, None if damaged else read)

    def description(self) -> str:
        return ", ".join(self.choices)

    def delimited(self) -> RandomInput:
        return DelimitedMaker(self).make()

    def parquet(self) -> RandomInput:
        rows, table = self.table()
        path = self.folder / "in.parquet"
        pq.write_table(
            table,
            path,
            row_group_size=self.choose("row group", [1, 7, 1000]),
            compression=self.choose("codec", ["none", "snappy", "zstd", "gzip"]),
            use_dictionary=self.choose("dictionary", [True, False]),
        )
        return self._of_table(path, rows, lambda: pq.read_table(path))

    def arrow(self) -> RandomInput:
        rows, table = self.table()
        kind = self.choose("arrow", ["file", "stream", "feather"])
        path = self.folder / ("in.feather" if kind == "feather" else "in.arrow")
        codec = self.choose("codec", [None, "lz4", "zstd"])
        size = self.choose("batch", [1, 7, 1000])
        if kind == "feather":
            pyarrow.feather.write_feather(table, str(path), compression=codec or "uncompressed", chunksize=size)
        else:
            new = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
            with new(str(path), table.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
                writer.write_table(table, max_chunksize=size)

        def read() -> pa.Table:
            with pa.OSFile(str(path)) as source:
                return (
                    pa.ipc.open_stream(source).read_all() if kind == "stream" else pa.ipc.open_file(source).read_all()
                )

        return self._of_table(path, rows, read)

    def table(self) -> tuple[list[Row], pa.Table]:
        rows = self.rows("utf-8", ASCII_TRAPS + TABLE_TRAPS + TRAPS, has_nulls=True)
        string = self.choose("string type", [pa.string(), pa.large_string(), pa.string_view(), "dictionary"])
        texts = pa.array([row.text for row in rows], pa.string())
        texts = texts.dictionary_encode() if string == "dictionary" else texts.cast(string)
        columns = {"id": pa.array([row.id for row in rows]), "text": texts, "tag": pa.array([row.tag for row in rows])}
        names = list(columns)
        self.chance.shuffle(names)
        return rows, pa.table({name: columns[name] for name in names})

    def _of_table(self, path: Path, rows: list[Row], read: Callable[[], pa.Table]) -> RandomInput:
        accepted = [(row.id, row.text or "", row.tag) for row in rows if row.is_accepted]

        def found() -> list[tuple[Any, str | None, str | None]]:
            return [(row["id"], row["text"], row["tag"]) for row in read().to_pylist()]

        return RandomInput(path, (), self.description(), accepted, len(rows) - len(accepted), False, found)

    def lines(self) -> RandomInput:
        """Plain text: one row per line, numbered from 0."""
        encoding, characters, arguments = self.choose_encoding()
        newline = self.choose("line end", ["\n", "\r\n"])
        traps = ASCII_TRAPS + (TRAPS if characters == "utf-8" else []) + [",", ";", "\t", "|", '"', '","']
        rows = self.rows(characters, traps, has_nulls=False)
        texts = [row.text or "" for row in rows if row.is_accepted]
        text = newline.join(texts) + self.chance.choice(["", newline])
        path = self.compress(text.encode(encoding), "in.txt")
        accepted = [(i, line, None) for i, line in enumerate(texts)]

        def read() -> list[tuple[Any, str | None, str | None]]:
            found = [line.removesuffix("\r") for line in text.split("\n")]
            return [(i, line, None) for i, line in enumerate(line for line in found if line)]

        return RandomInput(path, ("--format", "text", *arguments), self.description(), accepted, 0, False, read)

    def json_array(self) -> RandomInput:
        encoding, characters, arguments = self.choose_encoding()
        traps = ASCII_TRAPS + TABLE_TRAPS + (TRAPS if characters == "utf-8" else [])
        rows = self.rows(characters, traps, has_nulls=True)
        indent = self.choose("indent", [None, 0, 2])
        items = [{"id": row.id, "text": row.text, "tag": row.tag} for row in rows]
        text = json.dumps(items, ensure_ascii=self.choose("escaped", [True, False]), indent=indent)
        path = self.compress((text + self.chance.choice(["", "\n"])).encode(encoding), "in.json")
        accepted = [(row.id, row.text or "", row.tag) for row in rows if row.is_accepted]

        def read() -> list[tuple[Any, str | None, str | None]]:
            return [(row["id"], row["text"], row["tag"]) for row in json.loads(text)]

        return RandomInput(path, arguments, self.description(), accepted, len(rows) - len(accepted), False, read)


# How the fields are quoted: what csv writes with, the options to read it, and the traps that a text may contain.
QUOTINGS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "minimal": ({"quoting": csv.QUOTE_MINIMAL}, ()),
    "all": ({"quoting": csv.QUOTE_ALL}, ()),
    "escaped": ({"quoting": csv.QUOTE_ALL, "doublequote": False, "escapechar": "\\"}, ("--escape", "\\")),
    "none": ({"quoting": csv.QUOTE_NONE, "quotechar": None}, ("--quote", "none")),
    "tsv": ({"quoting": csv.QUOTE_NONE, "quotechar": None}, ()),
    "quoted tsv": ({"quoting": csv.QUOTE_MINIMAL}, ("--quote", '"')),
}


class DelimitedMaker:
    """Makes a CSV or TSV file, with whatever options it needs."""

    def __init__(self, maker: Maker) -> None:
        self.maker = maker
        self.chance = maker.chance
        self.encoding, self.characters, self.arguments = maker.choose_encoding()
        self.name = maker.choose("name", ["in.csv", "in.csv", "in.tsv"])
        is_tsv = self.name == "in.tsv"
        self.delimiter: str = "\t" if is_tsv else maker.choose("delimiter", [",", ",", ";", "\t", "|"])
        quotings = ["tsv", "quoted tsv"] if is_tsv else ["minimal", "minimal", "all", "escaped", "none"]
        self.quoting = maker.choose("quoting", quotings)
        self.newline: str = maker.choose("line end", ["\n", "\r\n"])
        self.has_header = maker.choose("header", [True, True, True, False])
        self.title_lines = maker.choose("title lines", [0, 0, 0, 2])
        # A carriage return or a blank at the end of a line is not for this test.
        self.order = self.chance.choice([("id", "text", "tag"), ("text", "id", "tag"), ("tag", "text", "id")])
        writing, options = QUOTINGS[self.quoting]
        self.writing = {"delimiter": self.delimiter, "lineterminator": self.newline, **writing}
        self.arguments += options
        self._add_arguments(needs_delimiter=not is_tsv and (self.title_lines > 0 or not self.has_header))

    def _add_arguments(self, *, needs_delimiter: bool) -> None:
        if self.title_lines:
            self.arguments += ("--skip-lines", str(self.title_lines))
        if needs_delimiter:
            self.arguments += ("--delimiter", self.delimiter)
        if not self.has_header:
            self.arguments += ("--no-header",)
        text, row_id, tag = (
            name if self.has_header else f"column{self.order.index(name)}" for name in ("text", "id", "tag")
        )
        self.arguments += ("--text-column", text, "--id-column", row_id, "--keep", text, "--keep", tag)

    def traps(self) -> list[str]:
        """Pieces of text that this kind of file can hold."""
        general = ASCII_TRAPS + (TRAPS if self.characters == "utf-8" else [])
        if self.quoting in ("minimal", "all", "quoted tsv"):
            return general + TABLE_TRAPS
        in_line = [trap for trap in TABLE_TRAPS if "\n" not in trap]
        if self.quoting == "escaped":
            return general + in_line
        return general + [trap for trap in in_line if self.delimiter not in trap] + ['"', '"stray']

    def make(self) -> RandomInput:
        """Write the file: titles, the header, the rows, and broken lines between them."""
        rows = self.maker.rows(self.characters, self.traps(), has_nulls=False)
        out = io.StringIO(newline="")
        out.write("".join(f"Title {i} of, the; table{self.newline}" for i in range(self.title_lines)))
        writer = csv.writer(out, **self.writing)
        if self.has_header:
            writer.writerow(self.order)
        may_damage, damages = self.chance.random() < 0.4, 0
        for row in rows:
            values = {"id": str(row.id), "text": row.text, "tag": row.tag}
            writer.writerow([values[column] for column in self.order])
            if may_damage and self.chance.random() < 0.15:
                damages += 1
                out.write(self.broken_line())
            elif self.chance.random() < 0.03:
                out.write(self.newline)
        text = out.getvalue()
        if self.chance.random() < 0.3:
            text = text.removesuffix(self.newline)
        accepted = [(str(row.id), row.text or "", row.tag) for row in rows if row.is_accepted]
        return RandomInput(
            self.maker.compress(text.encode(self.encoding), self.name),
            self.arguments,
            self.maker.description(),
            accepted,
            len(rows) - len(accepted) + damages,
            damages > 0,
            None if damages else lambda: self.read(text),
        )

    def broken_line(self) -> str:
        """A line that is one reject: too many fields, too few, or a quote in the wrong place."""
        kinds = [["1", "2", "3", "4"], ["1", "2"]]
        if self.quoting in ("minimal", "all", "quoted tsv", "escaped"):
            kinds.append(["1", '"quoted" and more', "3"])
        if self.quoting in ("all", "escaped"):
            kinds.append(["1", '"never closed', "3"])
        return self.delimiter.join(self.chance.choice(kinds)) + self.newline

    def read(self, text: str) -> list[tuple[Any, str | None, str | None]]:
        """The rows as the csv module of Python reads them."""
        source = io.StringIO(text, newline="")
        for _ in range(self.title_lines):
            source.readline()
        reading = {key: value for key, value in self.writing.items() if key != "lineterminator"}
        found = [fields for fields in csv.reader(source, **reading) if fields]
        records = [dict(zip(self.order, fields, strict=True)) for fields in found[1 if self.has_header else 0 :]]
        return [(record["id"], record["text"], record["tag"]) for record in records]


FORMATS: dict[str, Callable[[Maker], RandomInput]] = {
    "jsonl": Maker.jsonl,
    "delimited": Maker.delimited,
    "parquet": Maker.parquet,
    "arrow": Maker.arrow,
    "text": Maker.lines,
    "array": Maker.json_array,
}


def random_input(seed: int, folder: Path, formats: Sequence[str] = tuple(FORMATS)) -> RandomInput:
    """Write a random file into `folder`; the same for the same seed."""
    maker = Maker(seed, folder)
    return FORMATS[formats[seed % len(formats)]](maker)
