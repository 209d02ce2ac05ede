"""The public Python API: `embedcli.load(model).encode(texts)` and `embedcli.encode_file(inputs, output)`.

Both run the same engine as the command line. Errors are `embedcli.EmbedcliError`, with a message and a hint.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Any

from embedcli import runners
from embedcli.analysis.text_encoder import TextEncoder
from embedcli.core.constants import DEFAULT_MODEL
from embedcli.core.errors import UsageError
from embedcli.core.job import Job
from embedcli.core.job_options import validate_options
from embedcli.core.types import RunObserver, RunResult
from embedcli.pipeline.control import RunControl
from embedcli.pipeline.metrics import MetricsCollector

if TYPE_CHECKING:
    from embedcli.core.types import Float32Array

Notify = Callable[[str], None]
PathLike = str | os.PathLike[str]


class Model:
    """A loaded encoder. `dim` is the number of dimensions, `space` the vector space metadata.

    Close it, or use it as a context manager, to free the device. It is not thread-safe.
    """

    def __init__(self, job: Job, notify: Notify) -> None:
        self._texts = TextEncoder(job, notify)
        self.dim = self._texts.dim
        self.space = dict(self._texts.vector_space)

    def encode(self, texts: Iterable[str], *, show_progress_bar: bool | None = None) -> Float32Array:
        """Encode texts.

        Args:
            texts: The texts; not a single string.
            show_progress_bar: Whether to show a tqdm bar. By default as in sentence-transformers: if the logger
                "embedcli" is at INFO, and only in a notebook or on a terminal.

        Returns:
            float32 [n, dim]: one vector per text, in order.

        Raises:
            UsageError: A single string was given.
            InputError: A text is not a string or has no known token; the message gives its position, from 1.
        """
        if isinstance(texts, str | bytes):
            raise UsageError("encode takes several texts, and got a single one", "encode([text])[0]")
        given = texts if isinstance(texts, list | tuple) else list(texts)
        with watch_progress(show_progress_bar, ignore_message) as observer:
            return self._texts.encode(given, observer)

    def close(self) -> None:
        self._texts.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load(model: PathLike = DEFAULT_MODEL, *, notify: Notify | None = None, **flags: Any) -> Model:
    """Load an encoder for texts in memory.

    `flags` are the options of `embedcli encode` with underscores: `as_="query"`, `device="cuda"`, `truncate_dim=128`,
    `normalize=True`, `offline=True`, `trust_remote_code=True` with `code_revision="v1"`... `notify` is called with
    each message that the command line would print. Raises ModelError or UsageError.
    """
    return Model(build_job((), "-", model, flags), notify or ignore_message)


def encode_file(
    inputs: PathLike | Sequence[PathLike],
    output: PathLike,
    *,
    model: PathLike = DEFAULT_MODEL,
    notify: Notify | None = None,
    show_progress_bar: bool | None = None,
    **flags: Any,
) -> RunResult:
    """Embed the rows of files into an output, as `embedcli encode INPUTS OUTPUT` does.

    `flags` are the command's options with underscores: `keep=["title"]`, `precision="int8"`, `overwrite=True`...
    `show_progress_bar` is that of `Model.encode`. The result's exit code is 0 if all rows were embedded, 3 if some were
    rejected, 75 if a limit stopped the run early; its `totals` count rows. Raises an EmbedcliError where the command
    would exit with 1 or 2.
    """
    several = [inputs] if isinstance(inputs, str | os.PathLike) else inputs
    job = build_job([os.fspath(path) for path in several], os.fspath(output), model, flags)
    with watch_progress(show_progress_bar, notify or ignore_message) as observer:
        return runners.execute_job(job, observer, RunControl(job.stop_after, job.max_seconds), MetricsCollector())


class MtebModel:
    """A model for the `mteb` package: `mteb.evaluate(embedcli.MtebModel("all-MiniLM-L6-v2"), tasks)`.

    Queries and documents get the model's prompts for them, other texts none. `flags` are those of `load`; `as_` in
    them applies to all texts. The encoder of each prompt stays loaded until `close`. Raises UsageError for wrong
    options.
    """

    def __init__(self, model: PathLike = DEFAULT_MODEL, revision: str | None = None, **flags: Any) -> None:
        self._flags: dict[str, Any] = {"revision": revision, **flags}
        self._model = build_job((), "-", model, self._flags).model
        self._loaded: dict[str, Model] = {}
        name = self._model
        about = {
            "name": name if name.count("/") == 1 else f"embedcli/{name.strip('/').replace('/', '_')}",
            "revision": revision or "local",
            "similarity_fn_name": "cosine",
        }
        try:
            library: Any = import_module("mteb.models")
        except ImportError:
            raise UsageError("MtebModel needs the package mteb", "pip install mteb") from None
        self.mteb_model_meta: Any = library.ModelMeta.create_empty(overwrites=about)

    def encode(self, inputs: Iterable[Any], *, prompt_type: Any = None, **kwargs: Any) -> Float32Array:
        """float32 [n, dim]: the texts of mteb's batches, in order."""
        role = str(getattr(prompt_type, "value", prompt_type) or "")
        if role not in self._loaded:
            asked: dict[str, Any] = {"as_": role} if role in ("query", "document") else {}
            self._loaded[role] = load(self._model, **asked | self._flags)
        return self._loaded[role].encode([text for batch in inputs for text in batch["text"]])

    def similarity(self, one: Any, two: Any) -> Any:
        """Return the cosines [n, m] of all pairs, as a tensor if mteb passes tensors."""
        return normalize_array(one) @ normalize_array(two).T

    def similarity_pairwise(self, one: Any, two: Any) -> Any:
        """Return the cosines [n] of vectors at the same index."""
        return (normalize_array(one) * normalize_array(two)).sum(1)

    def close(self) -> None:
        for loaded in self._loaded.values():
            loaded.close()
        self._loaded = {}


def normalize_array(vectors: Any) -> Any:
    """Return the vectors scaled to length 1, in the same type of array."""
    lengths = (vectors**2).sum(1, keepdims=True) ** 0.5
    return vectors / (lengths + (lengths == 0))


@contextmanager
def watch_progress(show_progress_bar: bool | None, notify: Notify) -> Iterator[RunObserver]:
    """Yield the observer of a run: one with a tqdm bar, or one that only passes messages on."""
    if not wants_progress_bar(show_progress_bar):
        yield NotifyObserver(notify)
        return
    from embedcli.reporting.progress import SHOW_AFTER_SECONDS, ProgressReporter

    # A bar that was asked for appears at once; otherwise none is shown for what is over in a moment.
    show_after = 0.0 if show_progress_bar else SHOW_AFTER_SECONDS
    with ProgressReporter("tqdm", show_after=show_after, receive_note=notify) as reporter:
        yield reporter


def wants_progress_bar(show_progress_bar: bool | None) -> bool:
    """Whether to show a bar; None leaves it to the level of the logger and to where the output goes."""
    if show_progress_bar is not None:
        return show_progress_bar
    is_visible = is_notebook() or (sys.stderr is not None and sys.stderr.isatty())
    return is_visible and logging.getLogger("embedcli").isEnabledFor(logging.INFO)


def is_notebook() -> bool:
    """Whether this is the process of a notebook, as tqdm decides it."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


class NotifyObserver(RunObserver):
    """An observer that passes messages on and shows no progress."""

    def __init__(self, notify: Notify) -> None:
        self._notify = notify

    def notify(self, text: str) -> None:
        self._notify(text)


def build_job(inputs: Sequence[str], output: str, model: PathLike, flags: dict[str, Any]) -> Job:
    """Return a Job; raise UsageError for an unknown option or a wrong value."""
    unknown = [name for name in flags if name not in Job.__dataclass_fields__ or name in ("inputs", "output")]
    if unknown:
        hint = "they are those of `embedcli encode --help`, with underscores"
        raise UsageError(
            f"{unknown[0]!r} is not an option of embedcli encode",
            "did you mean 'as_'?" if unknown[0] == "as" else hint,
        )
    return Job(inputs=tuple(inputs), output=output, model=os.fspath(model), **validate_options(flags))


def ignore_message(line: str) -> None:
    """Discard a message."""
