"""Files that embedcli did not write are never removed or followed, whatever lies around an output."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedcli.core.constants import PART_FILE_PATTERN, STAGED_FILE_PATTERN
from jobs import command, enter_folder, rows, run, word_model, write_jsonl

# A pattern of whole names, to be used within others.
STAGED = STAGED_FILE_PATTERN.replace(r"\Z", "")

FOREIGN_NAMES = st.sampled_from(
    [
        "notes.txt", "part-1.csv", "part-00000.txt", "part-00000.parquet.bak", "rejects-mine.jsonl", "share-a.json",
        "_lock.txt", "_mine.json", ".hidden", ".notes.txt.tmp-12", ".editor.tmp-999999999", "inputs-of-mine.json",
        ".out.parquet.tmp", "out.parquet.bak", "_lock-1", "SHA256SUMS", "_manifest.json.bak", "_parts.txt",
    ]
)  # fmt: skip
FOLDERS = st.sampled_from(
    [
        "", "out.parquet.parts", "out.npy.parts", "out", "out/_parts", "out/sub", "out.parquet.old",
        "out.parquet.parts.bak", ".out.parquet.tmp", "_parts", "out/_parts/sub", "out.parquet.parts/sub", "cache",
        "out/part-00000", "parts",
    ]
)  # fmt: skip
# A file with some bytes, or a link to a file, a folder or nothing.
CONTENTS = st.one_of(st.binary(max_size=8), st.sampled_from(["../target.txt", "/", "nowhere", "."]))
TREES = st.dictionaries(st.tuples(FOLDERS, FOREIGN_NAMES), CONTENTS, max_size=8)
OUTPUTS = ("out.parquet", "out.npy", "out/")


def encode(output: str, *options: str) -> int:
    return run("encode", "in.jsonl", output, "--model", "words.txt", "--quiet", "--chunk-rows", "2", *options).code


def plant(tree: dict[tuple[str, str], bytes | str]) -> dict[Path, bytes | str]:
    """Create files, and links where the content is a path."""
    planted = {Path(folder) / name: content for (folder, name), content in tree.items()}
    for path, content in planted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.symlink_to(content)
        else:
            path.write_bytes(content)
    return planted


def look(paths: Iterable[Path]) -> dict[Path, bytes | str | None]:
    """What is at these paths: the bytes of a file, the target of a link, None for nothing."""
    return {
        path: os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        for path in paths
    }


def named_files(output: str) -> list[str]:
    """Every name that a job with this output may create, replace or remove, as a regular expression."""
    folder = output.rstrip("/")
    if output.endswith("/"):
        return [
            f"{folder}(/({PART_FILE_PATTERN[:-2]}|_manifest\\.json|_rejects\\.jsonl))?",
            rf"{folder}/_parts(/({STAGED}))?",
        ]
    beside = re.escape(folder.removesuffix(".npy"))
    staging = rf"{re.escape(folder)}\.parts(/({STAGED}))?"
    return [re.escape(folder), rf"{beside}\.ids\.parquet", rf"{re.escape(folder)}\.rejects\.jsonl", staging]


def killed_run(output: str, stage: float) -> None:
    """A run in a process of its own that is killed with SIGKILL after some chunks, or before it has any."""
    arguments = ("encode", "in.jsonl", output, "--model", "words.txt", "--quiet", "--chunk-rows", "1")
    with subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        with suppress(subprocess.TimeoutExpired):
            process.wait(stage)
        process.kill()


STEPS: dict[str, Callable[[str], object]] = {
    "encode": encode,
    "stop": lambda output: encode(output, "--stop-after", "4"),
    "overwrite": lambda output: encode(output, "--overwrite"),
    "update": lambda output: encode(output, "--update"),
    "refused": lambda output: encode(output, "--precision", "int8"),
    "failed": lambda output: encode(output, "--model", "in.jsonl", "--overwrite"),
    "shard": lambda output: encode(output, "--shard", "1/2"),
    "merge": lambda output: run("merge", output).code,
    "more rows": lambda _: write_jsonl(Path("in.jsonl"), rows(12)),
    "no rows": lambda _: write_jsonl(Path("in.jsonl"), []),
    "verify": lambda output: run("verify", output, "--only-output").code,
    "inspect": lambda output: run("inspect", output).code,
    "reuse": lambda output: encode("fresh.parquet", "--reuse", output),
}


@contextmanager
def workplace(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        word_model(folder)
        write_jsonl(folder / "in.jsonl", rows(8))
        (folder / "target.txt").write_bytes(b"the target of links")
        yield
    finally:
        os.chdir(before)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(tree=TREES, output=st.sampled_from(OUTPUTS), is_begun=st.booleans())
def test_a_tree_around_an_output_stays_as_it_is(
    tree: dict[tuple[str, str], bytes | str], output: str, is_begun: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with workplace(tmp_path_factory.mktemp("tree")):
        if is_begun:
            assert encode(output, "--stop-after", "4") == 75
        planted = plant(tree)
        codes = [encode(output), encode(output, "--overwrite"), encode(output, "--update")]
        assert set(codes) <= {0, 2}
        assert look(planted) == planted


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    tree=TREES,
    output=st.sampled_from(OUTPUTS),
    steps=st.lists(st.sampled_from(sorted(STEPS)), min_size=2, max_size=6),
    planted_after=st.integers(0, 2),
)
def test_any_commands_change_named_files_only(
    tree: dict[tuple[str, str], bytes | str],
    output: str,
    steps: list[str],
    planted_after: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with workplace(tmp_path_factory.mktemp("tree")):
        planted: dict[Path, bytes | str] = {}
        existing: set[str] = set()
        for number, step in enumerate(steps):
            if number == planted_after:
                planted = plant(tree)
                existing = list_tree()
            STEPS[step](output)
        assert look(planted) == planted
        assert Path("target.txt").read_bytes() == b"the target of links"
        allowed = "|".join([*named_files(output), *named_files("fresh.parquet")])
        assert [name for name in sorted(existing ^ list_tree()) if existing and not re.fullmatch(allowed, name)] == []


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(tree=TREES, output=st.sampled_from(OUTPUTS), stage=st.floats(0.2, 1.2))
def test_a_killed_run_and_the_next_one_change_named_files_only(
    tree: dict[tuple[str, str], bytes | str], output: str, stage: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with workplace(tmp_path_factory.mktemp("tree")):
        write_jsonl(Path("in.jsonl"), rows(300))
        planted = plant(tree)
        existing = list_tree()
        killed_run(output, stage)
        assert encode(output) in (0, 2)
        assert look(planted) == planted
        assert [
            name for name in sorted(existing ^ list_tree()) if not re.fullmatch("|".join(named_files(output)), name)
        ] == []


def list_tree() -> set[str]:
    """The paths of everything in the current folder; links are not followed."""
    return {
        os.path.relpath(os.path.join(at, name), ".")
        for at, folders, files in os.walk(".")
        for name in (*folders, *files)
    }


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return enter_folder(tmp_path, monkeypatch, 8)


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


def test_a_folder_of_other_files_is_not_the_output(here: Path) -> None:
    (here / "data").mkdir()
    (here / "data/mine.csv").write_text("id,text\n")
    ended = run("encode", "in.jsonl", "data", "--model", "words.txt")
    assert ended.code == 2
    assert "data: the folder has files that embedcli did not write: mine.csv" in ended.err
    assert [path.name for path in (here / "data").iterdir()] == ["mine.csv"]
    assert encode("data", "--overwrite") == 0
    assert (here / "data/mine.csv").read_text() == "id,text\n"
    assert encode("data") == 0


def test_a_folder_with_a_report_a_log_and_hidden_files_is_used(here: Path) -> None:
    (here / "out").mkdir()
    for name in (".gitkeep", "_SUCCESS", "run.json", "run.log"):
        (here / "out" / name).write_text("")
    assert encode("out/") == 0


def test_a_finished_or_begun_output_goes_on_beside_other_files(here: Path) -> None:
    assert encode("out/", "--stop-after", "4") == 75
    (here / "out/README.md").write_text("vectors")
    assert encode("out/") == 0
    write_jsonl(here / "in.jsonl", rows(12))
    assert encode("out/", "--update") == 0
