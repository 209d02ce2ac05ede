"""Files that embedcli did not write are never removed or followed, whatever lies around an output."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedcli.core.constants import STAGED_FILE_PATTERN
from jobs import rows, run, word_model, write_jsonl

FOREIGN_NAMES = st.sampled_from(
    [
        "notes.txt", "part-1.csv", "part-00000.txt", "part-00000.parquet.bak", "rejects-mine.jsonl", "share-a.json",
        "_lock.txt", "_mine.json", ".hidden", ".notes.txt.tmp-12", ".editor.tmp-999999999", "inputs-of-mine.json",
    ]
)  # fmt: skip
FOLDERS = st.sampled_from(["", "out.parquet.parts", "out.npy.parts", "out", "out/_parts", "out/sub", "out.parquet.old"])
TREES = st.dictionaries(st.tuples(FOLDERS, FOREIGN_NAMES), st.binary(max_size=8), max_size=8)
OUTPUTS = ("out.parquet", "out.npy", "out/")


def encode(output: str, *options: str) -> int:
    return run("encode", "in.jsonl", output, "--model", "words.txt", "--quiet", "--chunk-rows", "2", *options).code


def plant(tree: dict[tuple[str, str], bytes]) -> dict[Path, bytes]:
    planted = {Path(folder) / name: content for (folder, name), content in tree.items()}
    for path, content in planted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return planted


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(tree=TREES, output=st.sampled_from(OUTPUTS), is_begun=st.booleans())
def test_a_tree_around_an_output_stays_as_it_is(
    tree: dict[tuple[str, str], bytes], output: str, is_begun: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("tree")
    before = os.getcwd()
    os.chdir(folder)
    try:
        word_model(folder)
        write_jsonl(folder / "in.jsonl", rows(8))
        if is_begun:
            assert encode(output, "--stop-after", "4") == 75
        planted = plant(tree)
        codes = [encode(output), encode(output, "--overwrite"), encode(output, "--update")]
        assert set(codes) <= {0, 2}
        assert {path: path.read_bytes() for path in planted} == planted
    finally:
        os.chdir(before)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    word_model(tmp_path)
    write_jsonl(tmp_path / "in.jsonl", rows(8))
    return tmp_path


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_folder_of_somebody_else_is_not_used(here: Path, output: str) -> None:
    parts = here / ("out/_parts" if output == "out/" else f"{output}.parts")
    parts.mkdir(parents=True)
    (parts / "thesis.txt").write_text("years of work")
    ended = run("encode", "in.jsonl", output, "--model", "words.txt", "--overwrite")
    assert ended.code == 2
    assert "files that embedcli did not write: thesis.txt" in ended.err
    assert (parts / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_link_is_not_followed(here: Path, output: str) -> None:
    elsewhere = here / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "part-000000-000000-00.arrow").write_text("of another job")
    parts = here / ("out/_parts" if output == "out/" else f"{output}.parts")
    parts.parent.mkdir(exist_ok=True)
    parts.symlink_to(elsewhere)
    ended = run("encode", "in.jsonl", output, "--model", "words.txt")
    assert ended.code == 2
    assert "is a link" in ended.err
    assert [path.name for path in elsewhere.iterdir()] == ["part-000000-000000-00.arrow"]


def test_a_temporary_name_cannot_be_planted(here: Path) -> None:
    """A link under the name that earlier versions would have used leads nowhere."""
    (here / "victim").write_text("precious")
    for pid in range(os.getpid() - 5, os.getpid() + 5):
        (here / f".out.parquet.tmp-{pid}").symlink_to(here / "victim")
    assert encode("out.parquet") == 0
    assert (here / "victim").read_text() == "precious"


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_a_replaced_output_keeps_its_mode(here: Path, mode: int) -> None:
    names = ("out.npy", "out.ids.parquet")
    assert encode("out.npy") == 0
    for name in names:
        (here / name).chmod(mode)
    with (here / "in.jsonl").open("a") as lines:
        lines.write('{"id": "bad", "text": null}\n')
    assert encode("out.npy", "--overwrite") == 3
    modes = {name: stat.S_IMODE((here / name).stat().st_mode) for name in (*names, "out.npy.rejects.jsonl")}
    assert modes == dict.fromkeys(modes, mode)


def test_every_name_in_a_staging_folder_is_known(here: Path) -> None:
    with (here / "in.jsonl").open("a") as lines:
        lines.write('{"id": "bad", "text": null}\n')
    for output, options in (
        ("out.parquet", ("--stop-after", "4", "--precision", "int8")),
        ("out/", ("--stop-after", "4", "--part-size", "100")),
    ):
        run("encode", "in.jsonl", output, "--model", "words.txt", "--chunk-rows", "2", *options)
        folder = here / ("out/_parts" if output == "out/" else "out.parquet.parts")
        names = [path.name for path in folder.iterdir()]
        assert names
        assert [name for name in names if not re.fullmatch(STAGED_FILE_PATTERN, name)] == []
