"""Texts in memory to vectors, through the same engine as files; and queries in the space of an output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from embedcli import encoders
from embedcli.core.constants import DEFAULT_CHUNK_ROWS, HOSTED_PREFIX
from embedcli.core.encoder import BaseEncoder
from embedcli.core.errors import InputError, UsageError
from embedcli.core.job import Job
from embedcli.core.types import Chunk, EncodedChunk, InputSplit
from embedcli.models.registry import find_registered_model
from embedcli.pipeline import engine
from embedcli.pipeline.control import RunControl
from embedcli.pipeline.metrics import MetricsCollector
from embedcli.pipeline.preparation import EncodingSettings

if TYPE_CHECKING:
    from embedcli.core.types import Float32Array
    from embedcli.outputs.dataset import VectorDataset

Notify = Callable[[str], None]


def ignore_message(line: str) -> None:
    """Tell nobody."""


class TextEncoder:
    """An encoder for texts in memory. Use it as a context manager, or `close` it.

    `dim` is the width of its vectors, `space` what made them.
    """

    def __init__(self, job: Job, notify: Notify = ignore_message) -> None:
        self.metrics = MetricsCollector()
        self._encoder: BaseEncoder = encoders.load_encoder(job, notify=notify)
        self._closed = False
        self.vector_space: Mapping[str, Any] = self._encoder.vector_space()
        # A truncation saved with the model holds unless the user named one.
        self.job = job = replace(job, truncate_dim=job.truncate_dim or self.vector_space.get("truncate_dim"))
        self.dim = min(self._encoder.dim, job.truncate_dim or self._encoder.dim)

    def encode(self, texts: Sequence[str]) -> Float32Array:
        """float32 [len(texts), dim], in the order of `texts`.

        InputError, naming it, for a text without a vector. UsageError once closed.
        """
        made = np.empty((len(texts), self.dim), np.float32)
        for done in self.encode_chunks(texts):
            for reject in done.rejects:
                raise InputError(
                    f"text {reject.line} of {len(texts)} cannot be embedded: {reject.reason}",
                    "leave it out, or mend it",
                )
            start = done.chunk.lines[0] - 1
            made[start : start + len(done.vectors)] = done.vectors
        return made

    def encode_chunks(self, texts: Sequence[str]) -> Iterator[EncodedChunk]:
        """The same as the engine makes them, chunk by chunk: with windows, token counts and rejects."""
        if self._closed:
            raise UsageError("the model is closed and has no encoder any more", "load it again")
        settings = EncodingSettings.from_job(self.job, str(self.vector_space.get("prompt") or ""))
        return engine.encode_chunks(chunk_texts(texts), self._encoder, settings, self.metrics, RunControl())

    def close(self) -> None:
        self._closed = True
        self._encoder.close()

    def __enter__(self) -> TextEncoder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def chunk_texts(texts: Sequence[str], rows: int = DEFAULT_CHUNK_ROWS) -> Iterator[Chunk]:
    """Texts as the engine takes them, without ids; their lines are their places, from 1."""
    for seq, start in enumerate(range(0, len(texts), rows)):
        some = list(texts[start : start + rows])
        for place, text in enumerate(some, start + 1):
            check_text(text, place)
        places = range(start + 1, start + 1 + len(some))
        yield Chunk(
            input_split=InputSplit(0, "texts"),
            index_in_split=seq,
            ids=pa.nulls(len(some), pa.int64()),
            texts=some,
            kept_columns=pa.table({"": pa.nulls(len(some))}).select([]),
            lines=places,
            rows_read=len(some),
            is_last=start + rows >= len(texts),
        )


def check_text(text: Any, place: int) -> None:
    """InputError unless `text` is a string that can be written as UTF-8."""
    if not isinstance(text, str):
        raise InputError(f"text {place} is of type {type(text).__name__}, not a string", "give strings")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"text {place} holds a lone surrogate", "mend its encoding") from None


# Queries in the space of an output


def build_query_job(output: VectorDataset, what_for: str, **flags: Any) -> Job:
    """The job whose vectors can be compared with those of `output`: its model and revision, the query prompt.

    `flags` override what is recorded: a prompt, or where the model now lies. UsageError for an output without a
    space, or when the model on this machine is not the one that made it.
    """
    space = output.require_vector_space(what_for)
    given = {name: value for name, value in flags.items() if value is not None}
    recorded: dict[str, Any] = {
        "model": space["model"],
        "revision": space.get("revision"),
        "max_seq_length": space.get("max_seq_length"),
        "normalize": space.get("normalize"),
        "truncate_dim": space.get("truncate_dim"),
        "as_": "query",
        "prompt": choose_query_prompt(space),
    }
    if "model" in given:
        recorded["revision"] = None
    return check_same_model(Job(**{"inputs": (), "output": "-", **recorded, **given}), space, output.path)


def rebuild_recorded_job(output: VectorDataset, what_for: str, **flags: Any) -> Job:
    """The job that made `output`, as far as its vectors go, to make them again. `flags` override what is recorded."""
    space, made = output.require_vector_space(what_for), output.job_manifest.get("job") or {}
    given = {name: value for name, value in flags.items() if value is not None}
    recorded: dict[str, Any] = {
        name: space.get(name) for name in ("model", "revision", "max_seq_length", "normalize", "truncate_dim")
    }
    recorded |= {name: made[name] for name in ("text_column", "template", "id_column", "format") if made.get(name)}
    recorded |= {name: made[name] for name in ("overflow", "split_overlap", "encoding") if name in made}
    recorded |= {"prompt": space.get("prompt") or "", "as_": space.get("task")}
    if "model" in given:
        recorded["revision"] = None
    return check_same_model(Job(**{"inputs": (), "output": "-", **recorded, **given}), space, output.path)


def choose_query_prompt(space: Mapping[str, Any]) -> str | None:
    """The makers' prompt for queries where the rows were given theirs for documents; None: the model's own."""
    family = find_registered_model(str(space["model"]))
    prompts = (family.prompts if family else None) or {}
    stood = space.get("prompt")
    return prompts.get("query") if stood and prompts.get("document") == stood else None


def check_same_model(job: Job, space: Mapping[str, Any], path: str) -> Job:
    """The same job, if its model is the one of `space`; else a UsageError."""
    check_same_endpoint(job, space, path)
    wanted = space.get("fingerprint")
    found = encoders.encoder_identity(job).get("fingerprint") if wanted else None
    if wanted and found != wanted:
        raise UsageError(
            f"{path} was made with another version of {space['model']}: its files have the fingerprint "
            f"{str(wanted)[:12]}, those found {str(found)[:12]}",
            "give the folder of that version with --model, or encode the rows again",
        )
    return job


def check_same_endpoint(job: Job, space: Mapping[str, Any], path: str) -> None:
    """UsageError where texts and key would go to another server than the one that made the rows, unasked."""
    wanted = space.get("endpoint")
    if not wanted or job.base_url or not job.model.startswith(HOSTED_PREFIX):
        return
    found = encoders.encoder_identity(job)["endpoint"]
    if found != wanted:
        raise UsageError(
            f"{path} was made by {wanted}, and this would ask {found}",
            f"add --base-url {space.get('base_url')}, or name another server that has the same model",
        )


def missing_prompt_warning(space: Mapping[str, Any], query: Mapping[str, Any]) -> str | None:
    """A word of warning where rows had a prompt and queries have none."""
    if space.get("prompt") and not query.get("prompt"):
        return f"the rows were embedded with the prompt {space['prompt']!r}, the query without one; see --prompt"
    return None
