"""`embedcli.encode_file`: options with types, a result that explains itself, notes as log records."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pyarrow as pa
import pytest

import embedcli
from embedcli.api.options import FileOptions, ModelOptions, PathLike
from embedcli.core.job import Job
from embedcli.core.job_options import TEXT_PARSERS
from searchable import PROMPTS, TEXTS, model_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model") / "tiny", PROMPTS)


def write_rows(path: Path, texts: Sequence[str]) -> Path:
    path.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts)), "utf-8")
    return path


def test_the_options_are_the_fields_of_a_job() -> None:
    fields, options = get_type_hints(Job), get_type_hints(FileOptions)
    assert set(options) == set(fields) - {"inputs", "output", "model"}
    assert set(ModelOptions.__annotations__) < set(options)
    wider = {str: {str, PathLike}, str | None: {str | None, PathLike | None}}
    for name, kind in options.items():
        is_tuple = any(get_origin(each) is tuple for each in (fields[name], *get_args(fields[name])))
        if name in TEXT_PARSERS or is_tuple:
            assert str in get_args(kind)
        else:
            assert kind in wider.get(fields[name], {fields[name]}), name


@pytest.mark.parametrize("function", [embedcli.encode_file, embedcli.load, embedcli.embed_table])
def test_each_option_is_a_parameter_with_type_and_default(function: Any) -> None:
    options = FileOptions if function is embedcli.encode_file else ModelOptions
    parameters = inspect.signature(function).parameters
    for name in get_type_hints(options):
        assert parameters[name].default == Job.__dataclass_fields__[name].default
        assert parameters[name].annotation != inspect.Parameter.empty
    assert not any(value.kind is value.VAR_KEYWORD for value in parameters.values())


def test_the_result_explains_itself(model: Path, tmp_path: Path) -> None:
    rows, out = write_rows(tmp_path / "in.jsonl", TEXTS), tmp_path / "out.parquet"
    done = embedcli.encode_file(rows, out, model=model)
    assert repr(done) == f"<embedcli.FileResult {len(TEXTS)} rows in {out}, 24 dimensions; exit code 0>"
    assert (done.rows, done.rejects, done.rejects_file, done.is_complete) == (len(TEXTS), 0, None, True)
    cut = embedcli.encode_file(rows, tmp_path / "cut.npy", model=model, truncate_dim=5, limit=2)
    assert repr(cut) == f"<embedcli.FileResult 2 rows in {tmp_path / 'cut.npy'}, 5 dimensions; exit code 0>"


def test_a_run_that_was_stopped_says_so(model: Path, tmp_path: Path) -> None:
    rows, out = write_rows(tmp_path / "in.jsonl", TEXTS), tmp_path / "out.parquet"
    part = embedcli.encode_file(rows, out, model=model, stop_after=4, chunk_rows=4)
    assert (part.exit_code, part.is_complete) == (75, False)
    assert repr(part).startswith(f"<embedcli.FileResult 4 rows of {out} so far: ")
    assert embedcli.encode_file(rows, out, model=model, chunk_rows=4).rows == len(TEXTS)


@pytest.mark.parametrize("output", ["out.parquet", "out/"])
def test_rejected_rows_are_logged_with_their_file(
    model: Path, tmp_path: Path, output: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows = write_rows(tmp_path / "in.jsonl", ["sun", "", "rain"])
    done = embedcli.encode_file(rows, f"{tmp_path}/{output}", model=model)
    assert done.rejects == 1
    assert done.rejects_file
    (reject,) = map(json.loads, Path(done.rejects_file).read_text("utf-8").splitlines())
    assert reject["line"] == 2
    assert f"1 rejected, see {done.rejects_file}; exit code 3" in repr(done)
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [repr(done)]


def test_notes_are_log_records_or_go_where_they_were_asked_to(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "in.jsonl", TEXTS)
    caplog.set_level("INFO", logger="embedcli")
    embedcli.encode_file(rows, tmp_path / "a.npy", model=model, as_="query")
    assert {record.name for record in caplog.records} == {"embedcli"}
    assert "prompt: 'query: '" in caplog.text
    caplog.clear()
    notes: list[str] = []
    embedcli.encode_file(rows, tmp_path / "b.npy", model=model, as_="query", notify=notes.append)
    assert any("prompt: 'query: '" in note for note in notes)
    assert caplog.text == ""
    with embedcli.load(model, as_="query"):
        assert "prompt: 'query: '" in caplog.text
    assert capsys.readouterr() == ("", "")


def test_what_is_not_a_path_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(embedcli.UsageError, match="takes the paths of files, and got a Table") as caught:
        embedcli.encode_file(pa.table({"text": TEXTS}), tmp_path / "out.parquet", model=model)
    assert "embedcli.embed_table" in caught.value.hint
    with pytest.raises(embedcli.UsageError, match="model=3 is neither a str nor a path"):
        embedcli.load(model=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ({"report": "a.json"}, "leave it out: the counts, the files and the exit code are in the result"),
        ({"progress": "none"}, "use show_progress_bar=True"),
        ({"batch_size": 3}, "use batch_tokens, 512 per text: batch_tokens=1536"),
        ({"batch_token": 3}, "did you mean 'batch_tokens'?"),
    ],
)
def test_an_option_that_functions_do_not_have(option: dict[str, Any], hint: str) -> None:
    with pytest.raises(embedcli.UsageError, match=f"{next(iter(option))!r} is .*not.* of encode_file") as caught:
        embedcli.encode_file("in.jsonl", "out.parquet", **option)
    assert caught.value.hint == hint
