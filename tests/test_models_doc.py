"""Every command of docs/reference/models.md works on a small model that stands in for the real one."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import models
from embedcli.models.registry import find_registered_model
from jobs import run, write_jsonl
from reference import encode as encoded
from reference import load, lowest_cosine, samples

DOC = (Path(__file__).resolve().parent.parent / "docs" / "reference" / "models.md").read_text("utf-8")
COMMANDS = re.findall(r"^\$ (embedcli encode .*)$", DOC, re.MULTILINE)


def model_of(command: str) -> str:
    words = shlex.split(command)
    return words[words.index("-m") + 1]


def test_every_kind_of_model_has_a_command() -> None:
    shown = {model_of(command) for command in COMMANDS}
    real = {name for name in models.BUILDERS if find_registered_model(name)}
    assert real <= shown
    assert shown <= set(models.BUILDERS) | {"all-MiniLM-L6-v2"}


@pytest.mark.parametrize("command", COMMANDS, ids=model_of)
def test_the_command_works(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDCLI_ENGINE", "auto" if find_registered_model(model_of(command)) in STATIC else "torch")
    monkeypatch.setenv("EMBEDCLI_DEVICE", "cpu")
    monkeypatch.chdir(tmp_path)
    texts = samples()[:8]
    write_jsonl(tmp_path / "rows.jsonl", [{"id": i, "text": text} for i, text in enumerate(texts)])
    name = model_of(command)
    path = str(models.folder(name)) if name in models.BUILDERS else name
    arguments = [path if word == name else word for word in shlex.split(command)[1:]]
    done = run(*arguments)
    assert done.code == 0, done.err
    if "out.npy" in arguments:
        assert np.load(tmp_path / "out.npy").shape[0] == len(texts)
        return
    table = pq.read_table(tmp_path / "out.parquet")
    space = json.loads(table.schema.metadata[b"embedcli"])
    vectors = np.stack(table["embedding"].to_numpy())
    assert vectors.shape == (len(texts), space["dim"])
    if find_registered_model(name) not in STATIC and not space["truncate_dim"]:
        values = {"prompt": space["prompt"], "normalize": space["normalize"]}
        alone = load(path, trust_remote_code="--trust-remote-code" in arguments, **values)
        assert lowest_cosine(vectors, encoded(alone, texts)) >= 0.99999


STATIC = (find_registered_model("w2v-light-tencent-chinese"), find_registered_model("potion-base-8M"))
