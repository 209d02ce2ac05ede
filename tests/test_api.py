"""The Python interface: the same vectors and the same outputs as the command line, and light to import."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import embedcli
from embedcli.api import observers
from embedcli.cli import app
from searchable import PROMPTS, TEXTS, model_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model") / "tiny", PROMPTS)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"id": i, "text": text, "n": i}) + "\n" for i, text in enumerate(TEXTS * 300)))
    return path


def test_encode_gives_the_vectors_of_the_command_line(model: Path, rows: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["encode", str(rows), str(tmp_path / "out.parquet"), "-m", str(model)])
    assert done.exit_code == 0
    expected = np.stack(pq.read_table(tmp_path / "out.parquet")["embedding"].to_numpy(zero_copy_only=False))
    with embedcli.load(model) as loaded:
        made = loaded.encode(TEXTS * 300)
        assert made.dtype == np.float32
        assert (made.shape, loaded.dim) == ((len(TEXTS) * 300, 24), 24)
        assert np.array_equal(made, expected)
        assert loaded.encode(iter(TEXTS)).shape == (len(TEXTS), 24)
        assert loaded.encode([]).shape == (0, 24)
        assert loaded.space["fingerprint"]


def test_flags_are_those_of_the_command(model: Path) -> None:
    with (
        embedcli.load(model, as_="query", truncate_dim=5) as query,
        embedcli.load(str(model), prompt="query: ") as plain,
    ):
        made = query.encode(["sun"])
        assert made.shape == (1, 5)
        assert np.linalg.norm(made) == pytest.approx(1)
        cut = plain.encode(["sun"])[:, :5]
        assert np.allclose(made, cut / np.linalg.norm(cut), atol=1e-6)


def test_encode_file_is_the_command(model: Path, rows: Path, tmp_path: Path) -> None:
    said: list[str] = []
    done = embedcli.encode_file(rows, tmp_path / "a.parquet", model=model, keep=["n"], notify=said.append)
    assert (done.exit_code, done.totals["rows"], done.files) == (0, len(TEXTS) * 300, (str(tmp_path / "a.parquet"),))
    assert any("'text'" in line for line in said)
    command = ["encode", str(rows), str(tmp_path / "b.parquet"), "-m", str(model), "--keep", "n"]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    again = embedcli.encode_file([rows], tmp_path / "a.parquet", model=model, keep=["n"])
    assert again.resumed_rows == len(TEXTS) * 300


def test_rejected_rows_are_counted(model: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "sun"}\n{"text": ""}\n')
    done = embedcli.encode_file(tmp_path / "in.jsonl", tmp_path / "out.npy", model=model)
    assert (done.exit_code, done.totals["rows"], done.totals["rejects"]) == (3, 1, 1)


def test_errors_are_the_commands(model: Path, tmp_path: Path) -> None:
    with embedcli.load(model) as loaded:
        with pytest.raises(embedcli.InputError, match="text 2 is of type int"):
            loaded.encode(["sun", 3])  # type: ignore[list-item]
        with pytest.raises(embedcli.InputError, match="text 3 of 3 cannot be embedded"):
            loaded.encode(["sun", "rain", "\x7f"])
        with pytest.raises(embedcli.InputError, match="text 1 contains a lone surrogate"):
            loaded.encode(["\ud800"])
    with pytest.raises(embedcli.UsageError, match="the model is closed"):
        loaded.encode(["sun"])
    with pytest.raises(embedcli.ModelError):
        embedcli.load(tmp_path / "nothing")
    with pytest.raises(embedcli.UsageError, match="'batchsize' is not an option"):
        embedcli.load(model, batchsize=3)  # type: ignore[call-arg]
    with pytest.raises(embedcli.EmbedcliError, match="no such file"):
        embedcli.encode_file(tmp_path / "none.jsonl", tmp_path / "out.parquet", model=model)


def test_the_model_for_mteb_takes_the_flags_of_load(model: Path) -> None:
    pytest.importorskip("mteb")
    batches = [{"text": ["sun", "rain"]}, {"text": ["fox"]}]
    with pytest.raises(embedcli.UsageError, match="'batchsize' is not an option"):
        embedcli.MtebModel(model, batchsize=3)
    with pytest.raises(embedcli.UsageError, match="--precision 'int' is not a valid choice"):
        embedcli.MtebModel(model, precision="int")
    own, fixed = embedcli.MtebModel(model), embedcli.MtebModel(model, as_="document")
    query, document = (own.encode(batches, prompt_type=role) for role in ("query", "document"))
    assert not np.allclose(query, document)
    assert all(np.array_equal(fixed.encode(batches, prompt_type=role), document) for role in ("query", "document"))
    own.close()
    fixed.close()


def test_streams_without_bytes_are_named(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a notebook."""
    monkeypatch.setattr("sys.stdin", io.StringIO("{}"))
    monkeypatch.setattr("sys.stdout", io.StringIO())
    with pytest.raises(embedcli.InputError, match="stdin is closed or not binary"):
        embedcli.encode_file("-", tmp_path / "out.parquet", model=model)
    with pytest.raises(embedcli.OutputError, match="stdout is closed or not binary"):
        embedcli.encode_file(rows, "-", model=model)


@pytest.mark.parametrize("by", ["file", "stdin"])
def test_workers_do_not_run_the_callers_script_again(model: Path, rows: Path, tmp_path: Path, by: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import embedcli, sys\n"
        "print('once')\n"
        f"done = embedcli.encode_file({str(rows)!r}, 'out.parquet', model={str(model)!r}, workers=2)\n"
        "print(done.totals['rows'], sys.modules['__main__'].done is done)\n"
    )
    command = [sys.executable, "-"] if by == "stdin" else [sys.executable, str(script)]
    ended = subprocess.run(command, input=script.read_text(), capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ended.stderr == ""
    assert ended.stdout.splitlines() == ["once", f"{len(TEXTS) * 300} True"]


def test_import_is_light_and_names_are_there() -> None:
    code = "import sys, embedcli; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "pyarrow", "torch", "transformers", "typer"} & set(loaded)
    assert embedcli.__all__ == sorted(embedcli.__all__)
    assert dir(embedcli) == embedcli.__all__
    assert all(getattr(embedcli, name) is not None for name in embedcli.__all__)
    with pytest.raises(AttributeError, match="no attribute 'encode_files'"):
        _ = embedcli.encode_files  # type: ignore[attr-defined]
    stub = Path(embedcli.__file__).with_suffix(".pyi").read_text("utf-8")
    assert {line.rpartition(" ")[2] for line in stub.splitlines() if " as " in line} == {*embedcli.__all__} - {
        "__version__"
    }


def test_progress_bars_are_those_of_tqdm(
    model: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with embedcli.load(model) as loaded:
        loaded.encode(TEXTS * 300, show_progress_bar=True)
    shown = capsys.readouterr()
    assert f"{len(TEXTS) * 300:,}/{len(TEXTS) * 300:,} rows" in shown.err
    assert "embedding: 100%|" in shown.err
    notes: list[str] = []
    embedcli.encode_file(rows, tmp_path / "out.npy", model=model, show_progress_bar=True, notify=notes.append)
    shown = capsys.readouterr()
    assert "embedding: 100%|" in shown.err
    assert shown.out == ""
    assert any("'text'" in note for note in notes)


@pytest.mark.parametrize(
    ("level", "is_terminal", "is_shown"), [("INFO", True, True), ("WARNING", True, False), ("INFO", False, False)]
)
def test_bars_are_on_by_default_at_info_on_a_terminal(
    level: str, is_terminal: bool, is_shown: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: is_terminal)
    monkeypatch.setattr("sys.stderr", stream)
    caplog.set_level(level, logger="embedcli")
    assert observers.wants_progress_bar(None) == is_shown
    assert observers.wants_progress_bar(True)
    assert not observers.wants_progress_bar(False)


def test_bars_are_shown_in_notebooks(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    caplog.set_level("INFO", logger="embedcli")
    assert observers.wants_progress_bar(None)
