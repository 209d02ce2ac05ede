"""Compare embedcli with sentence-transformers on one architecture, and the table of the outcomes."""

from __future__ import annotations

import copy
import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

import architectures
import reference
from embedcli import encoders
from embedcli.core.errors import EmbedcliError
from embedcli.models.config import read_model_config
from embedcli.models.resolve import resolve_model

MIN_COSINE = 0.99999
MARKER, END = "<!-- architectures -->", "<!-- end -->"
HEAD = (
    "| architecture | loaded | vectors on PyTorch | vectors on the compiled engine |",
    "|---|---|---|---|",
)


def check(name: str, folder: Path) -> dict[str, Any]:
    """Build a model inside `folder` and embed the texts on both engines and in sentence-transformers.

    Returns:
        For "torch" and "auto" (the compiled engine, or PyTorch where it cannot be used) the refusal, or the engine
        that ran, the limit in tokens, the lowest cosine and the notes.
    """
    folder = folder / "built-model"
    architectures.build(architectures.ARCHITECTURES[name], folder)
    outcome: dict[str, Any] = {}
    truth: dict[int | None, Any] = {}
    for engine in ("torch", "auto"):
        outcome[engine] = _run(folder, engine, truth)
    return outcome


def _run(folder: Path, engine: str, truth: dict[int | None, Any]) -> dict[str, Any]:
    notes: list[str] = []
    job = reference.job(folder, engine=engine, device="cpu", threads=1)
    try:
        encoder = encoders.load_encoder(job, notify=notes.append)
        vectors = reference.encode(encoder, architectures.TEXTS)
    except EmbedcliError as error:
        return {"refused": _plain(f"{error}", folder), "hint": _plain(f"{error.hint}", folder)}
    except Exception as error:  # noqa: BLE001  the table reports whatever a library raises
        return {"crashed": _plain(f"{type(error).__name__}: {error}", folder)}
    space = encoder.vector_space()
    limit = space["max_seq_length"]
    result = {
        "engine": space["engine"],
        "limit": limit,
        "notes": [_plain(note, folder) for note in notes],
        "own_code": bool(read_model_config(resolve_model(job), job).custom_code),
    }
    if limit not in truth:
        truth[limit] = one_row_at_a_time(folder, limit)
    if isinstance(truth[limit], str):
        return result | {"reference": truth[limit]}
    return result | {"cosines": [round(float(one), 7) for one in _cosines(vectors, truth[limit])]}


def one_row_at_a_time(folder: Path, limit: int | None) -> Any:
    """float32 [texts, dim] of sentence-transformers without any padding, or its error as a text."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(1)
    try:
        model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        if limit is not None:
            model.max_seq_length = limit
        # A copy for each text: after a short one BigBird computes full attention for all that follow.
        return np.stack([copy.deepcopy(model).encode(text, show_progress_bar=False) for text in architectures.TEXTS])
    except Exception as error:  # noqa: BLE001  the table reports whatever a library raises
        return _plain(f"{type(error).__name__}: {error}", folder)


def _cosines(ours: Any, theirs: Any) -> Any:
    if ours.shape != theirs.shape:
        return np.zeros(1)
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return np.nan_to_num((ours * theirs).sum(axis=1) / np.maximum(norms, 1e-12))


def _plain(text: str, folder: Path) -> str:
    """One line without the folder's name and place."""
    text = text.replace(str(folder), "the model").replace(folder.name + " ", "the model ")
    return re.sub(r"\s+", " ", text).strip()[:300]


# The table


def row(name: str, outcome: dict[str, Any]) -> str:
    """One row of the table."""
    if "died" in outcome:
        return f"| {name} | ERROR {outcome['died']} | | |"
    torch, auto = outcome["torch"], outcome["auto"]
    if "refused" in torch or "crashed" in torch:
        reason = torch.get("refused") or f"ERROR {torch.get('crashed')}"
        return f"| {name} | refused: {_cell(reason, 80)} | | |"
    loaded = "with its own code" if torch["own_code"] else "natively"
    return f"| {name} | {loaded} | {_vectors(torch)} | {_compiled(auto)} |"


def _vectors(result: dict[str, Any]) -> str:
    if "refused" in result or "crashed" in result:
        return _cell(result.get("refused") or f"ERROR {result.get('crashed')}")
    if "reference" in result:
        return f"no comparison: {_cell(result['reference'])}"
    lowest = min(result["cosines"])
    return "equal" if lowest >= MIN_COSINE else f"differ: {lowest:.2f}"


def _compiled(result: dict[str, Any]) -> str:
    if result.get("engine") != "torch":
        return _vectors(result)
    reasons = [note.partition("runs on PyTorch: ")[2] for note in result["notes"]]
    return "runs on PyTorch: " + _cell(next((reason for reason in reasons if reason), "unknown"))


def _cell(text: str, width: int = 28) -> str:
    """A reason in one line: the first sentence, without the details that another machine would give otherwise."""
    text = re.sub(r"(OpenVINO cannot (?:convert|run) it): .*", r"\1", text)
    text = re.sub(r" \((?:a row of|Failed to allocate) [^)]*\)", "", text)
    text = re.sub(r"RuntimeError: Exception from .*", "RuntimeError of OpenVINO", text)
    return textwrap.shorten(text.replace("|", "/").split(". ")[0].rstrip("."), width, placeholder=" ...")


def words(row: str) -> str:
    """A row without its numbers, which depend on the machine."""
    return re.sub(r"-?\d[\d.]*", "N", row)


def rows_of(document: str) -> dict[str, str]:
    """The rows of the table in the document, by name."""
    lines = document.partition(MARKER)[2].partition(END)[0].splitlines()
    return {line.split("|")[1].strip(): line for line in lines if line.startswith("| ") and line != HEAD[0]}


def table(outcomes: dict[str, dict[str, Any]]) -> str:
    """The table of all outcomes in Markdown."""
    return "\n".join([*HEAD, *(row(name, one) for name, one in outcomes.items())])


def with_table(text: str, outcomes: dict[str, dict[str, Any]]) -> str:
    """The document with a new table between its markers."""
    before, _, rest = text.partition(MARKER)
    _, _, after = rest.partition(END)
    return f"{before}{MARKER}\n\n{table(outcomes)}\n\n{END}{after}"
