"""Encode texts in memory with the engine that encodes files, and rebuild the job of a finished output."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from embedcli import encoders
from embedcli.analysis.encoded_texts import EncodedTexts
from embedcli.analysis.vector_collector import VectorCollector
from embedcli.core.constants import DEFAULT_CHUNK_ROWS, HOSTED_PREFIX
from embedcli.core.encoder import BaseEncoder
from embedcli.core.errors import InputError, UsageError
from embedcli.core.job import Job
from embedcli.core.progress import ExpectedRows, ProgressCounts
from embedcli.core.row_vectors import as_dense, require_single
from embedcli.core.types import Chunk, EncodedChunk, InputSplit, RunObserver
from embedcli.encoders.hosted.canaries import describe_moved_canaries
from embedcli.encoders.hosted.job_checks import UnusedRoleNote
from embedcli.encoders.hosted.known_hosts import find_dialect
from embedcli.encoders.hosted.request_fields import format_request_fields
from embedcli.models.registry import find_registered_model
from embedcli.pipeline import engine
from embedcli.pipeline.control import RunControl
from embedcli.pipeline.metrics import MetricsCollector
from embedcli.pipeline.preparation import EncodingSettings

if TYPE_CHECKING:
    from embedcli.core.row_vectors import RowVectors
    from embedcli.core.types import Float32Array, VectorKind
    from embedcli.models.files import ModelFiles
    from embedcli.outputs.dataset import VectorDataset

Notify = Callable[[str], None]


def ignore_message(line: str) -> None:
    """Discard a message."""


def with_prompt_source(notify: Notify, source: str) -> Notify:
    """Return `notify` with notes of the prompt that say where it really comes from, if no user has given --prompt."""
    from embedcli.models.config import PromptNote

    return lambda note: notify(PromptNote(note.prompt, source) if isinstance(note, PromptNote) else note)


def without_role_note(notify: Notify) -> Notify:
    """Return `notify` without the note that --as has no effect, for commands that choose a role themselves."""
    return lambda note: None if isinstance(note, UnusedRoleNote) else notify(note)


class TextEncoder:
    """Encodes texts in memory. Use it as a context manager or call `close`.

    Attributes:
        dim: Number of dimensions of the vectors.
        vector_space: Vector space metadata, as outputs store it.
        metrics: Counters and timers of all calls.
    """

    def __init__(
        self,
        job: Job,
        notify: Notify = ignore_message,
        files: ModelFiles | None = None,
        *,
        few_texts: bool = False,
        takes_heads: bool = False,
    ) -> None:
        """Load the encoder of a job.

        Args:
            job: The job.
            notify: Gets each note for the user.
            files: The model's files, if they are resolved already.
            few_texts: As for `encoders.load_encoder`.
            takes_heads: Whether texts may get the vectors of several heads.

        Raises:
            ModelError: The model cannot be found or loaded.
            UsageError: The model or the machine cannot do what the job asks for.
        """
        self.metrics = MetricsCollector()
        self._encoder: BaseEncoder = encoders.load_encoder(job, files, notify, few_texts=few_texts)
        if len(self._encoder.heads) > 1 and not takes_heads:
            self._encoder.close()
            raise UsageError(
                f"{job.model} computes {len(self._encoder.heads)} vectors for each text, and one is needed here",
                "use --heads with one of them",
            )
        self._closed = False
        self.vector_space: Mapping[str, Any] = self._encoder.vector_space()
        self.job = job
        # A dimension saved with the model applies unless the user chose one.
        self._saved_dim = self.vector_space.get("truncate_dim")
        self.dim = min(self._encoder.dim, job.truncate_dim or self._saved_dim or self._encoder.dim)

    @property
    def kind(self) -> VectorKind:
        """The kind of its vectors."""
        return self._encoder.kind

    def encode(self, texts: Sequence[str], observer: RunObserver | None = None) -> Float32Array:
        """Encode texts; as `encode_vectors`, with sparse vectors as float32 [len(texts), dim].

        Raises:
            TypeError: The model computes a vector for each token.
        """
        return as_dense(require_single(self.encode_vectors(texts, observer)))

    def encode_vectors(self, texts: Sequence[str], observer: RunObserver | None = None) -> RowVectors:
        """Encode texts.

        Args:
            texts: The texts.
            observer: Receives the progress.

        Returns:
            float32 [len(texts), dim], sparse vectors or vectors of tokens, in the order of `texts`.

        Raises:
            InputError: A text is not a valid string, or gets no vector.
            UsageError: The encoder is closed.
        """
        return self.encode_accepted(texts, observer).require_all()

    def encode_accepted(self, texts: Sequence[str], observer: RunObserver | None = None) -> EncodedTexts:
        """Encode texts of which some may get no vector.

        Raises:
            InputError: A text is not a valid string.
            UsageError: The encoder is closed.
        """
        vectors = VectorCollector(len(texts), self.dim, self.kind, self._encoder.heads)
        positions, rejects = [np.empty(0, np.int64)], {}
        for encoded in self.encode_chunks(texts, observer):
            positions.append(encoded.rows + (encoded.chunk.lines[0] - 1))
            vectors.add(encoded.vectors)
            rejects.update({reject.line - 1: reject.reason for reject in encoded.rejects})
        return EncodedTexts(np.concatenate(positions), vectors.finish(), rejects)

    def encode_chunks(self, texts: Sequence[str], observer: RunObserver | None = None) -> Iterator[EncodedChunk]:
        """Encode texts and yield the chunks of the engine, with windows, token counts and rejects."""
        watching = observer or RunObserver()
        self.check_open()
        prompt = str(self.vector_space.get("prompt") or "")
        settings = EncodingSettings.from_job(self.job, prompt, saved_dim=self._saved_dim)
        self.metrics.progress = progress = ProgressCounts()
        watching.on_start(ExpectedRows(rows_to_read=len(texts)), self.metrics)
        return engine.encode_chunks(
            chunk_texts(texts),
            self._encoder,
            settings,
            self.metrics,
            RunControl(),
            lambda: watching.on_progress(progress),
        )

    def check_open(self) -> None:
        """Raise UsageError if the encoder is closed."""
        if self._closed:
            raise UsageError("the model is closed", "load the model again")

    def close(self) -> None:
        self._closed = True
        self._encoder.close()

    def __enter__(self) -> TextEncoder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def chunk_texts(texts: Sequence[str], rows: int = DEFAULT_CHUNK_ROWS) -> Iterator[Chunk]:
    """Yield texts as chunks for the engine, without ids; their line numbers are their positions, from 1."""
    for index, start in enumerate(range(0, len(texts), rows)):
        chunk = list(texts[start : start + rows])
        for position, text in enumerate(chunk, start + 1):
            check_text(text, position)
        yield Chunk(
            input_split=InputSplit(0, "texts"),
            index_in_split=index,
            ids=pa.nulls(len(chunk), pa.int64()),
            texts=chunk,
            kept_columns=pa.table({"": pa.nulls(len(chunk))}).select([]),
            lines=range(start + 1, start + 1 + len(chunk)),
            rows_read=len(chunk),
            is_last=start + rows >= len(texts),
        )


def check_text(text: Any, position: int) -> None:
    """Raise InputError unless `text` is a string that can be encoded as UTF-8."""
    if not isinstance(text, str):
        if is_missing(text):
            raise InputError(f"text {position} is missing ({text})", "leave missing texts out")
        raise InputError(f"text {position} is of type {type(text).__name__}, not a string", "give strings")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"text {position} contains a lone surrogate", "fix its encoding") from None


def is_missing(value: Any) -> bool:
    """Whether a value stands for a missing one: None, NaN, or NaT and NA of pandas."""
    is_nan = isinstance(value, float) and math.isnan(value)
    return value is None or is_nan or type(value).__name__ in ("NAType", "NaTType")


# Jobs in the vector space of an output


def build_query_job(output: VectorDataset, what_for: str, **flags: Any) -> Job:
    """Build the job that encodes queries for an output: the same model and revision, with the query prompt.

    Args:
        output: The output.
        what_for: The purpose, for the error message if the output has no vector space metadata.
        flags: Job options that override the recorded ones, such as `model` or `prompt`.

    Raises:
        UsageError: The output has no vector space metadata, or the model on this machine is not the one recorded.
    """
    vector_space = output.require_vector_space(what_for)
    given = {name: value for name, value in flags.items() if value not in (None, ())}
    recorded: dict[str, Any] = {
        "model": vector_space["model"],
        "revision": vector_space.get("revision"),
        "code_revision": recorded_code_revision(vector_space),
        **_recorded_vector_options(output, "query"),
        "heads": recorded_heads(vector_space),
        "as_": "query",
        "prompt": choose_query_prompt(vector_space),
        **_recorded_request_fields(vector_space, for_queries=True),
    }
    if "model" in given:
        recorded |= {"revision": None, "code_revision": None}
    return check_same_model(Job(**{"inputs": (), "output": "-", **recorded, **given}), vector_space, output.path)


def rebuild_recorded_job(output: VectorDataset, what_for: str, **flags: Any) -> Job:
    """Build the job that computes the vectors of an output again.

    Args:
        output: The output.
        what_for: The purpose, for the error message if the output has no vector space metadata.
        flags: Job options that override the recorded ones.

    Raises:
        UsageError: The output has no vector space metadata, or the model on this machine is not the one recorded.
    """
    vector_space, job = output.require_vector_space(what_for), output.job_manifest.get("job") or {}
    given = {name: value for name, value in flags.items() if value not in (None, ())}
    recorded: dict[str, Any] = {name: vector_space.get(name) for name in ("model", "revision")}
    recorded |= _recorded_vector_options(output, vector_space.get("task"))
    recorded |= {
        name: job[name] for name in ("text_column", "template", "id_column", "format", "tokenizer") if job.get(name)
    }
    recorded |= {name: job[name] for name in ("overflow", "split_overlap", "encoding") if name in job}
    recorded |= {"prompt": vector_space.get("prompt") or "", "as_": vector_space.get("task")}
    recorded["code_revision"] = recorded_code_revision(vector_space)
    recorded |= {name: vector_space.get(name) for name in ("top_k_terms", "min_weight", "pool_factor")}
    recorded["heads"] = recorded_heads(vector_space)
    recorded |= _recorded_request_fields(vector_space, for_queries=False)
    if "model" in given:
        recorded |= {"revision": None, "code_revision": None}
    return check_same_model(Job(**{"inputs": (), "output": "-", **recorded, **given}), vector_space, output.path)


def _recorded_vector_options(output: VectorDataset, role: str | None) -> dict[str, Any]:
    """The recorded limit, normalization and truncation, as far as texts of a role can have them."""
    space = output.vector_space
    if output.kind != "multi_vector":
        return {name: space.get(name) for name in ("max_seq_length", "normalize", "truncate_dim")}
    # The model's files decide the rest, and each role has a limit of its own.
    return {"max_seq_length": space.get("max_seq_length") if role == space.get("task") else None}


def recorded_heads(vector_space: Mapping[str, Any]) -> tuple[VectorKind, ...] | None:
    """Return the heads of the model that an output has the vectors of; None for the model's own vectors."""
    return tuple(vector_space["heads"]) if vector_space.get("heads") else None


def recorded_code_revision(vector_space: Mapping[str, Any]) -> str | None:
    """Return the commit of the model's code repository; None if it has none or several: one commit cannot pin those."""
    commits = list((vector_space.get("code") or {}).values())
    return commits[0] if len(commits) == 1 else None


def _recorded_request_fields(vector_space: Mapping[str, Any], *, for_queries: bool) -> dict[str, tuple[str, ...]]:
    """The options that send the recorded request fields of a hosted model again.

    For queries, the field that a known server has for the kind of text is left to `--as query`.
    """
    fields = dict(vector_space.get("request_fields") or {})
    dialect = find_dialect(str(vector_space.get("endpoint") or ""))
    if for_queries and fields.get(dialect.role_field) in dialect.role_values.values():
        del fields[dialect.role_field]
    omitted = tuple(vector_space.get("omitted_fields") or ())
    return {"request_field": format_request_fields(fields), "omit_field": omitted}


def choose_query_prompt(vector_space: Mapping[str, Any]) -> str | None:
    """Return the registered query prompt if the rows have the registered document prompt; None: the model's own."""
    family = find_registered_model(str(vector_space["model"]))
    prompts = (family.prompts if family else None) or {}
    row_prompt = vector_space.get("prompt")
    return prompts.get("query") if row_prompt and prompts.get("document") == row_prompt else None


def check_same_model(job: Job, vector_space: Mapping[str, Any], path: str) -> Job:
    """Return `job`, or raise UsageError if its model is not the one in the vector space metadata."""
    check_same_endpoint(job, vector_space, path)
    recorded = vector_space.get("fingerprint")
    current = encoders.encoder_identity(job).get("fingerprint") if recorded else None
    if recorded and current != recorded:
        raise UsageError(
            f"{path} was encoded with another version of {vector_space['model']}: its fingerprint is "
            f"{str(recorded)[:12]}, that of the files on this machine {str(current)[:12]}",
            "give the folder of that version with --model, or encode the rows again",
        )
    return job


def check_same_endpoint(job: Job, vector_space: Mapping[str, Any], path: str) -> None:
    """Raise UsageError if texts and key would go to another server than the recorded one without the user's choice."""
    recorded = vector_space.get("endpoint")
    if not recorded or job.base_url or not job.model.startswith(HOSTED_PREFIX):
        return
    current = encoders.encoder_identity(job)["endpoint"]
    if current != recorded:
        raise UsageError(
            f"{path} was encoded by {recorded}, but texts would now be sent to {current}",
            f"add --base-url {vector_space.get('base_url')} or the address of another server with the same model",
        )


def check_same_canaries(output: VectorDataset, current: Mapping[str, Any]) -> None:
    """Raise UsageError if the server has another model now under the name of the one that encoded the output."""
    problem = describe_moved_canaries(output.vector_space, current)
    if problem is not None:
        raise UsageError(
            f"{output.path} was encoded with another model: {problem}",
            "use the server that has the earlier model, or encode the rows again",
        )


def missing_prompt_warning(vector_space: Mapping[str, Any], query: Mapping[str, Any]) -> str | None:
    """Return a warning if the rows have a prompt and the query has none."""
    if vector_space.get("prompt") and not query.get("prompt"):
        return f"the rows were embedded with the prompt {vector_space['prompt']!r}, the query without one; see --prompt"
    return None
