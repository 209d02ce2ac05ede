"""Flags from embedcli.toml, pyproject.toml or --config: what wins, what is refused, and what the report says of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.core import TyperGroup
from typer.main import get_command

import jobs
from embedcli.cli import app
from embedcli.cli.config_file import ConfigurableCommand, collect_options, environment_variable


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a model, some rows, no settings yet."""
    return jobs.enter_folder(tmp_path, monkeypatch, 6)


def encoded(*arguments: str) -> tuple[dict[str, Any], list[str]]:
    """The settings in the report of a run, and the columns of its output."""
    done = jobs.run("encode", "in.jsonl", "out.parquet", "--report", "run.json", "--overwrite", *arguments)
    assert done.code == 0, done.err
    made = json.loads(Path("run.json").read_text())
    return {flag: (one["value"], one["from"]) for flag, one in made["settings"].items()}, columns("out.parquet")


def columns(path: str) -> list[str]:
    return list(pq.read_schema(path).names)


def refusal(*arguments: str) -> str:
    done = jobs.run(*arguments)
    assert done.code == 2
    assert "Traceback" not in done.err
    return done.err


def test_command_line_beats_variable_beats_file_beats_default(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "embedcli.toml").write_text('model = "words.txt"\nkeep = ["n"]\n[encode]\nchunk_rows = 2\nthreads = 1\n')
    monkeypatch.setenv("EMBEDCLI_CHUNK_ROWS", "3")
    monkeypatch.setenv("EMBEDCLI_THREADS", "2")
    settings, names = encoded("--threads", "4")
    assert settings == {
        "report": ("run.json", "command line"),
        "overwrite": (True, "command line"),
        "model": ("words.txt", "embedcli.toml"),
        "keep": (["n"], "embedcli.toml"),
        "chunk-rows": (3, "EMBEDCLI_CHUNK_ROWS"),
        "threads": (4, "command line"),
    }
    assert "n" in names


def test_what_comes_from_the_file_is_said(here: Path) -> None:
    (here / "embedcli.toml").write_text('model = "words.txt"\n[inspect]\njson = true\n')
    done = jobs.run("encode", "in.jsonl", "out.parquet")
    assert "From embedcli.toml: --model." in done.err
    assert jobs.run("encode", "in.jsonl", "more.parquet", "-q").err == ""
    done = jobs.run("inspect", "in.jsonl")
    assert done.err == "From embedcli.toml: --json.\n"
    assert json.loads(done.out)["rows"] == 6


def test_a_table_beats_what_stands_outside(here: Path) -> None:
    (here / "embedcli.toml").write_text('model = "nowhere"\nkeep = "n"\n[encode]\nmodel = "words.txt"\n')
    assert "n" in encoded()[1]


def test_own_file_beats_the_shared_one_and_neither_is_looked_for_in_parents(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "pyproject.toml").write_text('[project]\nname = "x"\n[tool.embedcli]\nmodel = "words.txt"\n')
    assert encoded()[0]["model"] == ("words.txt", "pyproject.toml")
    (here / "embedcli.toml").write_text('[encode]\nmodel = "./words.txt"\n')
    assert encoded()[0]["model"] == ("./words.txt", "embedcli.toml")
    (here / "deeper").mkdir()
    monkeypatch.chdir(here / "deeper")
    assert jobs.run("inspect", "../in.jsonl").err == ""


def test_a_named_file_is_used_instead(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "embedcli.toml").write_text("nonsense = 1\n")
    (here / "other.conf").write_text('[encode]\nmodel = "words.txt"\n')
    done = jobs.run("--config", "other.conf", "encode", "in.jsonl", "out.parquet")
    assert (done.code, "From other.conf: --model." in done.err) == (0, True)
    assert jobs.run("--config", "/dev/null", "inspect", "in.jsonl").code == 0
    monkeypatch.setenv("EMBEDCLI_CONFIG", "other.conf")
    assert jobs.run("inspect", "in.jsonl").code == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("modle = 'x'", "c.toml: modle is not an option of embedcli\nhint: did you mean model?"),
        (
            "[encode]\nlimits = 3",
            "c.toml: limits in [encode] is not an option of embedcli encode\nhint: did you mean limit?",
        ),
        ("[encodee]", "[encodee] is not a command of embedcli\nhint: did you mean [encode]?"),
        (
            "[encode]\nlimit = 'all'",
            "c.toml: limit in [encode]: --limit 'all' is not a whole number\nhint: give a whole number",
        ),
        ("offline = 1", "offline: --offline 1 is not True or False\nhint: give True or False"),
        ("keep = [1]", "keep: --keep 1 is not a string\nhint: give a string"),
        ("precision = 'int'", "precision: --precision 'int' is not a valid choice\nhint: did you mean int8?"),
        ("precision = 7", "precision: --precision 7 is not a valid choice\nhint: choose from float32, float16"),
        ("dtype = 'int8'", "dtype: --dtype 'int8' is not a valid choice\nhint: use --dtype bfloat16 for speed"),
        (
            "count = 3",
            "c.toml: count is not an option of every command\nhint: write it under one of [search], [compare]",
        ),
        ("moved = 3", "c.toml: moved is not an option of every command\nhint: write it under [compare]"),
        ("encode = 3", "c.toml: encode is a command, not an option\nhint: write its options under [encode]"),
        ("threads = 0", "c.toml: threads: --threads 0 is too small\nhint: give 1 or more"),
        ("request-timeout = inf", "request-timeout: --request-timeout inf is not a number\nhint: give a number"),
        (
            "max-rejects = 0.1",
            "max-rejects: --max-rejects '0.1' is neither a number nor a percentage\nhint: use e.g. 100 or 0.1%",
        ),
        (
            "max-rejects = true",
            "max-rejects: --max-rejects 'True' is neither a number nor a percentage\nhint: use e.g. 100 or 0.1%",
        ),
        ("part-size = 'big'", "part-size: --part-size big is not a size\nhint: use e.g. 256MB, 1GiB"),
        ("shard = [1, 2]", "shard: --shard [1, 2] is not K/N with K from 1 to N\nhint: use e.g. --shard 3/16"),
        ("[search]\ncount = 0", "count in [search]: 0 is not in the range x>=1"),
        ("[search]\ncount = '3'", "count in [search]: '3' is not a whole number\nhint: write a whole number"),
        ("[search]\ncount = 2.5", "count in [search]: '2.5' is not a valid int"),
        ("[search]\njson = 1", "json in [search]: 1 is not true or false\nhint: write true or false"),
        ("[search]\nmetric = 'l2'", "metric in [search]: 'l2' is not one of 'cosine', 'dot'"),
        (
            "[compare]\nprecision = ['int']",
            "precision in [compare]: --precision 'int' is not a valid choice\nhint: did you mean",
        ),
        ("[encode.x]\ny = 1", "c.toml: [encode.x] is not a command of embedcli"),
        (
            "[batch]\nexport = 1",
            "export in [batch] is a command, not an option\nhint: write its options under [batch.exp",
        ),
        (
            "[batch.export]\nresult = 'x'",
            "result in [batch.export] is not an option of embedcli batch export\nhint: did you",
        ),
        (
            "[encode]\nmax_seconds = true",
            "max_seconds in [encode]: --max-seconds True is not a number\nhint: give a number",
        ),
        ("keep", "c.toml: is not TOML: "),
    ],
)
def test_what_is_wrong_is_named(here: Path, content: str, said: str) -> None:
    (here / "c.toml").write_text(content)
    assert said in refusal("--config", "c.toml", "inspect", "in.jsonl")


def test_numbers_need_no_quotes(here: Path) -> None:
    (here / "embedcli.toml").write_text('model = "words.txt"\nmax-rejects = 3\npart-size = 1000000\n')
    made = encoded()[0]
    assert (made["max-rejects"][1], made["part-size"][1]) == ("embedcli.toml", "embedcli.toml")
    job = json.loads((here / "run.json").read_text())["job"]
    assert (job["max_rejects"], job["part_size"]) == ("3", 1_000_000)


@pytest.mark.parametrize(("value", "shown"), [("1", True), ("yes", True), ("0", False), ("false", False), ("", False)])
def test_a_variable_may_switch_tracebacks_off(
    here: Path, monkeypatch: pytest.MonkeyPatch, value: str, shown: bool
) -> None:
    monkeypatch.setenv("EMBEDCLI_VERBOSE", value)
    for command in (["encode", "none.jsonl", "out.parquet"], ["inspect", "none.jsonl"]):
        done = jobs.run(*command)
        assert ("Traceback" in done.err) is shown
        assert "no such file" in done.err


def test_commands_around_a_job_read_its_environment_variables(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = collect_options(get_command(app))
    expected = {
        "models": ["cache-dir"],
        "pull": ["cache-dir"],
        "merge": ["max-rejects"],
        "batch.import": ["report", "progress"],
    }
    assert [
        name
        for command, names in expected.items()
        for name in names
        if options[command][name].envvar != environment_variable(name)
    ] == []
    monkeypatch.setenv("EMBEDCLI_MAX_REJECTS", "many")
    assert "--max-rejects 'many' is neither" in refusal("merge", "out.parquet")


def test_a_broken_file_does_not_hide_the_help(here: Path) -> None:
    (here / "embedcli.toml").write_text("nonsense = 1\n")
    assert jobs.run("encode", "--help").code == 0
    assert "nonsense is not an option" in refusal("models")
    assert "cannot be read: No such file" in refusal("--config", "nowhere.toml", "models")


def test_every_shared_flag_has_the_variable_of_its_name() -> None:
    found = [
        (name, option.envvar)
        for options in collect_options(get_command(app)).values()
        for name, option in options.items()
    ]
    assert len(found) > 100
    assert [(flag, name) for flag, name in found if name not in (None, environment_variable(flag))] == []


def test_every_command_takes_settings() -> None:
    commands = list(iterate_commands(get_command(app)))
    assert len(commands) > 14
    assert [one.name for one in commands if not isinstance(one, ConfigurableCommand)] == []


def iterate_commands(command: Any) -> Iterator[Any]:
    if isinstance(command, TyperGroup):
        for member in command.commands.values():
            yield from iterate_commands(member)
    else:
        yield command


def test_a_report_shows_no_secret_of_an_address(here: Path) -> None:
    base = "http://user:hidden@127.0.0.1:9/v1?key=hidden"
    done = jobs.run("encode", "in.jsonl", "out.parquet", "--model", "openai:x", "--base-url", base, "--patience", "0.1",
                    "--report", "run.json")  # fmt: skip
    assert done.code == 1
    made = (here / "run.json").read_text()
    assert "hidden" not in made
    assert json.loads(made)["settings"]["base-url"]["value"] == "http://127.0.0.1:9/v1"
