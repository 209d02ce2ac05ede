"""Tables on a terminal: they fit its width; in a pipe no line is cut or wrapped."""

from __future__ import annotations

import pytest

from embedcli.cli.console import format_facts, format_table

ROW = {"other": "a/rather/long/path/to/an/output/of/encode.parquet", "rows": "1,000", "dim": "384"}
WIDE = ROW | {f"measure {i}": f"0.{i}1234" for i in range(9)}


@pytest.mark.parametrize("row", [ROW, WIDE])
@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_table_fits_the_terminal_and_keeps_every_cell(row: dict[str, str], width: int) -> None:
    lines = format_table([row, row], [name for name in row if name != "other"], width)
    assert max(map(len, lines)) <= width
    text = "".join("".join(lines).split())
    assert all("".join(cell.split()) in text for name, cell in row.items() if name != "other")


def test_a_table_is_a_line_per_row_where_it_fits_and_in_a_pipe() -> None:
    assert len(format_table([ROW, ROW], ["rows", "dim"], 80)) == 3
    assert len(format_table([WIDE, WIDE])) == 3
    assert len(format_table([WIDE, WIDE], (), 200)) == 3


def test_a_table_that_does_not_fit_has_its_rows_below_each_other() -> None:
    lines = format_table([WIDE, WIDE], [name for name in WIDE if name != "other"], 40)
    assert lines.count("") == 1
    assert lines[1 + lines.index("")].startswith("other")


def test_facts_are_wrapped_beside_their_name() -> None:
    lines = format_facts([("columns", "one (string), two (string), three (string)"), ("ids", "none")], 30)
    assert lines == ["columns  one (string), two", "         (string), three", "         (string)", "ids      none"]
    assert len(format_facts([("columns", "x " * 100)])) == 1
