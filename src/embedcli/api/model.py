"""A loaded model for texts in memory, with the methods of sentence-transformers."""

from __future__ import annotations

from dataclasses import replace
from numbers import Integral
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypedDict, overload

from embedcli import encoders
from embedcli.analysis.text_encoder import TextEncoder
from embedcli.api.observers import Notify, log_note, watch_progress
from embedcli.api.options import ModelOptions, PathLike, build_job, with_options
from embedcli.api.prompts import plan_prompt, read_saved_prompts
from embedcli.api.results import convert_precision, convert_token_vectors, convert_type, shape_vectors
from embedcli.api.similarity import compute_pairwise_similarity, compute_similarity
from embedcli.api.texts import Texts, read_texts
from embedcli.core.constants import DEFAULT_MODEL
from embedcli.core.errors import UsageError
from embedcli.core.job import Job
from embedcli.core.multi_vectors import MultiVectors
from embedcli.core.row_vectors import as_dense, require_single
from embedcli.core.types import Precision, Role
from embedcli.models.refusals import find_model_kind
from embedcli.models.similarity import read_similarity_name

if TYPE_CHECKING:
    from typing import Unpack

    from numpy.typing import NDArray

    from embedcli.models.files import ModelFiles


class ArrayOptions(TypedDict, total=False):
    """The keyword arguments of `Model.encode` with which it returns an array."""

    prompt_name: str | None
    prompt: str | None
    batch_size: int | None
    show_progress_bar: bool | None
    precision: Precision | None
    normalize_embeddings: bool | None
    truncate_dim: int | None


class EncodeOptions(ArrayOptions, total=False):
    """All keyword arguments of `Model.encode`."""

    convert_to_numpy: bool
    convert_to_tensor: bool


class Model:
    """A loaded model. Close it, or use it as a context manager, to free the device. It is not thread-safe.

    Attributes:
        kind: What `encode` returns: "dense" vectors, "sparse" ones as arrays of their whole width, or "multi_vector", a
            list of arrays.
        dim: The dimensions of the vectors.
        space: The vector space metadata, as outputs store it.
        prompts: The prompts saved with the model, by name.
        similarity_fn_name: The similarity function that the model was trained for: "cosine" (also if its files name
            none), "dot" (the same for sparse ones), "euclidean" or "manhattan"; of a multi-vector model "maxsim" or
            "meanmaxsim".
    """

    def __init__(self, job: Job, notify: Notify = log_note) -> None:
        refuse_several_heads(job)
        self._files = encoders.resolve_model_files(job)
        if job.as_ is None and not job.heads and has_token_vectors(self._files):
            # The same job as that of `encode_document`, so that its encoder is loaded once.
            job = replace(job, as_="document")
        self._job, self._notify = job, notify
        self._saved = read_saved_prompts(job, self._files)
        texts = TextEncoder(job, notify, self._files)
        # One for each role and each prompt that is more than text before the text.
        self._encoders: dict[Job, TextEncoder] = {job: texts}
        self.kind = texts.kind
        self.dim = texts.dim
        self.space = dict(texts.vector_space)
        self.prompts = dict(self._saved.prompts)
        self.similarity_fn_name = read_similarity_name(self._files, self.kind)

    @overload
    def encode(self, texts: Texts, **options: Unpack[ArrayOptions]) -> NDArray[Any]: ...
    @overload
    def encode(self, texts: Texts, **options: Unpack[EncodeOptions]) -> Any: ...
    def encode(
        self,
        texts: Texts,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        precision: Precision | None = None,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        normalize_embeddings: bool | None = None,
        truncate_dim: int | None = None,
    ) -> Any:
        """Encode texts. The parameters are those of sentence-transformers.

        Args:
            texts: A str; or several texts: a list or other iterable, a Series of pandas or polars, an array of Arrow
                or NumPy. Tables and dictionaries are refused: give one column.
            prompt_name: The name of a prompt saved with the model (`prompts`).
            prompt: The text to put before each text; `prompt_name` is ignored.
            batch_size: Has no effect, and is accepted so that code for sentence-transformers runs. Batches are packed
                by tokens, to a size that fits the device; `load(batch_tokens=...)` changes it.
            show_progress_bar: Whether to show a tqdm bar. By default as in sentence-transformers: if the logger
                "embedcli" is at INFO, and only in a notebook or on a terminal.
            precision: The number format: "float32", "float16", "int8", "uint8", "binary" or "ubinary". The ranges of
                int8 and uint8 are those of the vectors of this call. None: as loaded, else float32.
            convert_to_numpy: False returns a list of tensors.
            convert_to_tensor: True returns one tensor, on the CPU.
            normalize_embeddings: True scales the vectors to length 1. None, the default, leaves them as the model
                makes them, and scales those that `truncate_dim` has cut. False does not scale these either.
            truncate_dim: Keep the first dimensions.

        Returns:
            [n, dim], one vector per text, in order; [dim] for a str. float32 unless `precision` says otherwise; binary
            formats have ceil(dim / 8) columns. Of a multi-vector model a list of n arrays, or tensors, [tokens, dim];
            one of them for a str. Its texts are documents unless it was loaded with `as_="query"`.

        Raises:
            UsageError: `texts` is a table or no texts, an option has a wrong value, or the model is closed.
            InputError: A text is missing, not a string, or has no known token; the message gives its position, from 1.
        """
        options = EncodeOptions(
            prompt_name=prompt_name,
            prompt=prompt,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            precision=precision,
            convert_to_numpy=convert_to_numpy,
            convert_to_tensor=convert_to_tensor,
            normalize_embeddings=normalize_embeddings,
            truncate_dim=truncate_dim,
        )
        return self._encode(texts, None, options)

    @overload
    def encode_query(self, texts: Texts, **options: Unpack[ArrayOptions]) -> NDArray[Any]: ...
    @overload
    def encode_query(self, texts: Texts, **options: Unpack[EncodeOptions]) -> Any: ...
    @with_options(EncodeOptions, defaults_of=encode)
    def encode_query(self, texts: Texts, **options: Unpack[EncodeOptions]) -> Any:
        """Encode queries, with the model's prompt "query" and its route for queries; otherwise as `encode`.

        Raises:
            UsageError: As for `encode`; or the model was loaded with `prompt` or `prompt_name`.
            InputError: As for `encode`.
        """
        return self._encode(texts, "query", options)

    @overload
    def encode_document(self, texts: Texts, **options: Unpack[ArrayOptions]) -> NDArray[Any]: ...
    @overload
    def encode_document(self, texts: Texts, **options: Unpack[EncodeOptions]) -> Any: ...
    @with_options(EncodeOptions, defaults_of=encode)
    def encode_document(self, texts: Texts, **options: Unpack[EncodeOptions]) -> Any:
        """Encode documents, with the model's prompt "document", "passage" or "corpus"; otherwise as `encode_query`.

        The first of these prompts that is not empty is used. sentence-transformers stops at an empty "document", which
        it adds itself.
        """
        return self._encode(texts, "document", options)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Compute the similarities of all pairs of vectors with the function `similarity_fn_name`.

        Args:
            embeddings1: [n, dim] or [dim]: an array, a tensor, or a list of vectors; of a multi-vector model what
                `encode_query` returned.
            embeddings2: [m, dim] or [dim]; of a multi-vector model what `encode_document` returned.

        Returns:
            float [n, m], higher for texts that are more alike: distances are negative. A tensor if tensors were given.
        """
        return compute_similarity(embeddings1, embeddings2, self.similarity_fn_name)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Compute the similarity of each vector with the one at the same index: float [n], as `similarity`."""
        return compute_pairwise_similarity(embeddings1, embeddings2, self.similarity_fn_name)

    def close(self) -> None:
        for texts in self._encoders.values():
            texts.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<embedcli.Model {self._job.model}: {self.dim} dimensions, {self.similarity_fn_name} similarity>"

    def _encode(self, given: Texts, role: Role | None, options: EncodeOptions) -> Any:
        check_batch_size(options.get("batch_size"))
        texts, is_single = read_texts(given)
        plan = plan_prompt(self._job, self._saved, role, options.get("prompt"), options.get("prompt_name"))
        prompted = [plan.prefix + text for text in texts] if plan.prefix else texts
        with watch_progress(options.get("show_progress_bar"), self._notify) as observer:
            vectors = self._load(plan.job).encode_vectors(prompted, observer)
        precision = options.get("precision") or self._job.precision
        types = {
            "to_numpy": options.get("convert_to_numpy", True),
            "to_tensor": options.get("convert_to_tensor", False),
        }
        if isinstance(vectors, MultiVectors):
            refuse_dense_options(options)
            parts = convert_token_vectors(vectors, precision, **types)
            return parts[0] if is_single else parts
        normalize = options.get("normalize_embeddings")
        if normalize is None and self._job.normalize is False:
            normalize = False
        shaped = shape_vectors(as_dense(require_single(vectors)), options.get("truncate_dim"), normalize)
        result = convert_type(convert_precision(shaped, precision), **types)
        return result[0] if is_single else result

    def _load(self, job: Job) -> TextEncoder:
        """The encoder of a job; it is loaded when it is needed first, unless the model is closed."""
        if job not in self._encoders:
            self._encoders[self._job].check_open()
            self._encoders[job] = TextEncoder(job, self._notify, self._files)
        return self._encoders[job]


def has_token_vectors(files: ModelFiles | None) -> bool:
    """Whether a model's own vectors are those of the tokens of a text."""
    return files is not None and files.kind == "transformer" and find_model_kind(files) == "multi_vector"


def refuse_several_heads(job: Job) -> None:
    """Raise UsageError for vectors of several heads: `Model.encode` returns those of one."""
    if len(job.heads or ()) > 1:
        raise UsageError(
            f"heads={list(job.heads or ())} gives a text several vectors, and embedcli.load returns one",
            "load the model once for each head, or use embedcli.encode_file",
        )


def require_one_vector(model: Model, what: str) -> None:
    """Raise UsageError if a model computes a vector for each token, and `what` needs one for each text."""
    if model.kind == "multi_vector":
        raise UsageError(
            f"the model computes a vector for each token, and {what} needs one for each text",
            "use Model.encode, which returns a list of arrays, or embedcli.encode_file",
        )


def refuse_dense_options(options: EncodeOptions) -> None:
    """Raise UsageError for options of a call that make no sense for the vectors of tokens."""
    for name in ("truncate_dim", "normalize_embeddings"):
        if options.get(name) is not None:
            raise UsageError(
                f"{name} cannot be used with a model that computes a vector for each token", "leave it out"
            )


def check_batch_size(batch_size: Any) -> None:
    """Raise UsageError unless a batch size is None or a whole number above zero."""
    if batch_size is not None and (not isinstance(batch_size, Integral) or batch_size < 1):
        raise UsageError(f"batch_size={batch_size!r} is not a whole number above zero", "leave it out")


@with_options(ModelOptions)
def load(model: PathLike = DEFAULT_MODEL, *, notify: Notify | None = None, **options: Unpack[ModelOptions]) -> Model:
    """Load a model for texts in memory.

    Args:
        model: A name that `embedcli models` lists, an id of the Hugging Face hub, a folder, or openai:NAME.
        notify: Is called with each note that the command line would print; by default they are logged at INFO, with
            the logger "embedcli".
        options: The options of `embedcli encode` that are about models and texts, with underscores: `as_="query"`,
            `device="cuda"`, `truncate_dim=128`, `normalize=True`, `offline=True`...

    Raises:
        ModelError: The model cannot be found or loaded.
        UsageError: An option is unknown or has a wrong value.
    """
    return Model(build_job((), "-", model, dict(options), "load"), notify or log_note)
