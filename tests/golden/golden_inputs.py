"""Inputs and models of the golden jobs: small, fixed, and exact in binary floating point.

Every vector component is a multiple of 1/4, and every embedded text has 1, 2, 4 or 8 known words. Sums and means are
then exact, so that the outputs do not depend on the processor, on BLAS or on the number of threads.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from numpy.typing import NDArray

DIM = 8
# All inputs get this time, because a staging folder stores it.
MODIFIED_NS = 1_700_000_000 * 10**9
WORDS = [
    "amber", "basil", "cedar", "delta", "ember", "fjord", "grove", "heron",
    "ivory", "jetty", "knoll", "larch", "maple", "north", "ocean", "pearl",
]  # fmt: skip


def word_vectors() -> NDArray[np.float32]:
    """Vectors of the words, float32 [16, 8], multiples of 1/4 between -2 and 2, without a zero row."""
    numbers = [
        [(7 * word + 5 * column + word * column) % 17 - 8 for column in range(DIM)] for word in range(len(WORDS))
    ]
    return np.asarray(numbers, np.float32) / np.float32(4)


def texts(count: int, first: int = 0) -> Iterator[str]:
    """Different texts of 1, 2, 4 or 8 words."""
    for number in range(first, first + count):
        length = (1, 2, 4, 8)[number % 4]
        yield " ".join(WORDS[(number // 16 + number * (place + 1) + place) % 16] for place in range(length))


def rows(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Rows with an id, a text, and columns of several types to keep."""
    return [
        {
            "id": f"r{number}",
            "text": text,
            "lang": ("en", "de", "日本", None)[number % 4],
            "n": number,
            "score": number / 4,
            "ok": number % 2 == 0,
            "meta": {"title": WORDS[number % 16], "tags": ["a", WORDS[number % 3]]},
        }
        for number, text in zip(range(first, first + count), texts(count, first), strict=True)
    ]


def write_jsonl(path: Path, made: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made), "utf-8")


def delimited(made: list[dict[str, Any]], delimiter: str) -> str:
    lines = [("key", "text", "title"), *((str(row["n"]), row["text"], row["meta"]["title"]) for row in made)]
    return "".join(delimiter.join(line) + "\n" for line in lines)


def write_bad_rows(folder: Path) -> None:
    """Rows of every kind that cannot be embedded, between good ones."""
    good = [json.dumps(row).encode() for row in rows(4)]
    bad = [
        b"{broken",
        b"",
        b"   ",
        b"[1, 2]",
        b"7",
        b'{"id": "no text"}',
        b'{"id": "null", "text": null}',
        b'{"id": "empty", "text": ""}',
        b'{"id": "blank", "text": "  "}',
        b'{"id": "number", "text": 5}',
        b'{"id": "list", "text": ["amber"]}',
        b'{"id": "unknown", "text": "zzz yyy"}',
        b'{"id": "bytes", "text": "amber \xff"}',
        b'{"id": "surrogate", "text": "amber \\ud800"}',
        b'{"text": "amber"}',
        b'{"id": null, "text": "basil"}',
        b'{"id": 5, "text": "cedar"}',
        b'{"id": "twice", "text": "delta", "text": "ember"}',
        b'{"id": "tail", "text": "delta"} x',
    ]
    (folder / "bad.jsonl").write_bytes(b"\n".join([*good[:2], *bad, *good[2:]]) + b"\n")
    (folder / "bad.csv").write_bytes(
        b'id,text,n\n1,amber,1\n2,"basil cedar",2,extra\n3\n4,,4\n'
        b'5,"two\nlines",5\n6,"amber\nbasil",6\n7,\xff\xfe,7\n8,"open\n'
    )
    table = {"id": [1, 2, None, 4], "text": ["amber", None, "basil", ""]}
    pq.write_table(pa.table(table, pa.schema([("id", pa.int64()), ("text", pa.string())])), folder / "bad.parquet")


def write_static_model(folder: Path) -> None:
    """A folder as model2vec writes it: a tokenizer of whole words, and one vector per token."""
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    table = np.vstack([np.zeros((2, DIM), np.float32), word_vectors()])
    save_file({"embeddings": table}, folder / "model.safetensors")
    config = {"model_type": "model2vec", "normalize": False, "seq_length": 4}
    (folder / "config.json").write_text(json.dumps(config))


def write_inputs(folder: Path) -> None:
    """Write all inputs and models into `folder`."""
    made = rows(12)
    lines = [f"{word} " + " ".join(map(str, row)) for word, row in zip(WORDS, word_vectors().tolist(), strict=True)]
    (folder / "words.txt").write_text("\n".join([f"{len(WORDS)} {DIM}", *lines]) + "\n")
    write_static_model(folder / "static")
    write_jsonl(folder / "in.jsonl", made)
    write_jsonl(folder / "more.jsonl", rows(8, 12))
    plain, csv = (folder / "in.jsonl").read_bytes(), delimited(made, ",")
    (folder / "in.csv").write_text(csv)
    (folder / "in.tsv").write_text(delimited(made, "\t"))
    (folder / "latin.csv").write_bytes("id,text,town\n1,amber basil,Köln\n2,cedar,Málaga\n".encode("latin-1"))
    (folder / "packed.jsonl.gz").write_bytes(gzip.compress(plain, mtime=0))
    (folder / "packed.csv.bz2").write_bytes(bz2.compress(csv.encode()))
    (folder / "packed.jsonl.zst").write_bytes(zstandard.compress(plain))
    (folder / "packed.jsonl.xz").write_bytes(lzma.compress(plain))
    pq.write_table(pa.Table.from_pylist(made), folder / "in.parquet", row_group_size=5)
    write_jsonl(folder / "many" / "a.jsonl", made[:5])
    (folder / "many" / "b.csv").write_text("id,text\n" + "".join(f"{row['id']},{row['text']}\n" for row in made[5:9]))
    pq.write_table(
        pa.Table.from_pylist([{"id": r["id"], "text": r["text"]} for r in made[9:]]), folder / "many/c.parquet"
    )
    write_jsonl(folder / "long.jsonl", [{"id": f"l{i}", "text": " ".join(WORDS[i : i + 2 * i])} for i in (1, 2, 4)])
    write_jsonl(folder / "queries.jsonl", [{"id": "q1", "text": "amber basil"}, {"id": "q2", "text": "pearl"}])
    sentences = ["The kettle does not boil.", "Wasser kocht bei hundert Grad.", "充电器发烫"]
    write_jsonl(folder / "sentences.jsonl", [{"id": i, "text": text} for i, text in enumerate(sentences)])
    write_jsonl(folder / "several.jsonl", rows(60))
    write_jsonl(folder / "refused.jsonl", [{"id": 1, "text": "heron"}, {"id": 2, "text": "amber"}])
    unnamed = [{"text": row["text"], "lang": row["lang"]} for row in rows(6)]
    write_jsonl(folder / "unnamed.jsonl", [*unnamed[:3], {"text": "zzz", "lang": "xx"}, *unnamed[3:]])
    write_bad_rows(folder)
    (folder / "embedcli.other.toml").write_text('model = "words.txt"\nkeep = ["lang"]\nprecision = "float16"\n')
    set_times(folder)


def set_times(folder: Path) -> None:
    """Give every file below `folder` the one modification time."""
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, ns=(MODIFIED_NS, MODIFIED_NS))


def change_rows(name: str = "in.jsonl") -> None:
    """Change two rows of an input in the current folder, remove one, add two."""
    made = [json.loads(line) for line in Path(name).read_text("utf-8").splitlines()]
    made[1]["text"], made[4]["text"] = "amber pearl", "ocean"
    write_jsonl(Path(name), [*made[:7], *made[8:], *rows(2, 90)])
    os.utime(name, ns=(MODIFIED_NS, MODIFIED_NS + 10**9))
