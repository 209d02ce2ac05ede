"""What spreadsheets and `cat` leave in CSV files: a line that names the delimiter, and headers in the middle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs import run, word_model


def encode(folder: Path, content: bytes, *options: str, name: str = "in.csv") -> tuple[list[dict[str, Any]], str]:
    """The rows of the output, and what was said."""
    word_model(folder)
    (folder / name).write_bytes(content)
    ended = run(
        "encode", folder / name, folder / "out.parquet", "--model", folder / "words.txt", "--keep", "text", *options
    )
    assert ended.code in (0, 3), ended.err
    table = pq.read_table(folder / "out.parquet")
    return table.drop_columns(
        [column for column in table.column_names if column not in ("id", "row", "text")]
    ).to_pylist(), ended.err


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("delimiter", [";", ",", "\t", "|", "^"])
def test_a_line_that_names_the_delimiter_is_honoured(tmp_path: Path, delimiter: str, mark: str, end: str) -> None:
    lines = [f"sep={delimiter}", f"id{delimiter}text", f"1{delimiter}word1 word2", f"2{delimiter}word3"]
    rows, _ = encode(tmp_path, (mark + "".join(line + end for line in lines)).encode())
    assert [row["text"] for row in rows] == ["word1 word2", "word3"]
    assert [str(row["id"]) for row in rows] == ["1", "2"]


def test_lines_are_counted_from_the_beginning_of_the_file(tmp_path: Path) -> None:
    encode(tmp_path, b"sep=;\nid;text\n1;word1\n2\n")
    assert '"line": 4' in (tmp_path / "out.parquet.rejects.jsonl").read_text().replace('"line":4', '"line": 4')


def test_a_column_called_sep_is_a_column(tmp_path: Path) -> None:
    rows, _ = encode(tmp_path, b"id,text,sep\n1,word1,x\n")
    assert len(rows) == 1


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_header_in_the_middle_is_skipped_with_a_note(tmp_path: Path, mark: str) -> None:
    content = f"{mark}id,text\r\n1,word1\r\n{mark}id,text\r\n2,word2\r\n{mark}id,text\r\n3,word3\r\n"
    rows, said = encode(tmp_path, content.encode())
    assert [row["text"] for row in rows] == ["word1", "word2", "word3"]
    assert "skipped 2 repeated headers (line 3, 5)" in said


def test_skipped_headers_do_not_count_as_rows(tmp_path: Path) -> None:
    rows, _ = encode(tmp_path, b"text\nword1\ntext\nword2\n")
    assert [row["row"] for row in rows] == [0, 1]


def test_a_row_that_differs_from_the_header_in_one_field_is_a_row(tmp_path: Path) -> None:
    rows, said = encode(tmp_path, b"id,text\n1,word1\nid,word2\n")
    assert [row["text"] for row in rows] == ["word1", "word2"]
    assert "repeated" not in said


def test_headers_are_skipped_in_tsv_and_by_resumed_runs(tmp_path: Path) -> None:
    content = b"id\ttext\n" + b"".join(b"%d\tword%d\n" % (i, i) for i in range(1, 9)) + b"id\ttext\n9\tword9\n"
    word_model(tmp_path)
    (tmp_path / "in.tsv").write_bytes(content)
    arguments = ("encode", tmp_path / "in.tsv", tmp_path / "out.npy", "--model", tmp_path / "words.txt")
    assert run(*arguments, "--chunk-rows", "2", "--stop-after", "4").code == 75
    assert run(*arguments).code == 0
    assert pq.read_table(tmp_path / "out.ids.parquet").num_rows == 9


def test_a_run_reads_tsv_without_quotes_and_says_how_to_read_them(tmp_path: Path) -> None:
    rows, said = encode(tmp_path, b'id\ttext\n1\t"word1\n2\tword2"\n3\tword3\n', name="in.tsv")
    assert [row["text"] for row in rows] == ['"word1', 'word2"', "word3"]
    assert "--quote" not in said
    _, said = encode(tmp_path, b'id\ttext\n1\t"word1"\n', "--overwrite", "--max-removed", "100%", name="in.tsv")
    assert "look quoted, but TSV is read without quotes; use --quote '\"' if they are" in " ".join(said.split())


def test_the_options_of_the_command_line_name_the_dialect(tmp_path: Path) -> None:
    rows, _ = encode(
        tmp_path, b"a title\nid;text\n1;word1\\; word2\n", "--skip-lines", "1", "--delimiter", "semicolon",
        "--quote", "none", "--escape", "backslash",
    )  # fmt: skip
    assert [row["text"] for row in rows] == ["word1; word2"]
    (tmp_path / "b.csv").write_text("word1,word2\n", "utf-8")
    job = ("encode", tmp_path / "b.csv", tmp_path / "b.npy", "--model", tmp_path / "words.txt", "--no-header")
    assert run(*job, "--text-column", "column1").code == 0
