"""Encode with static vectors: model2vec folders, StaticEmbedding models, files of word vectors.

A vector is the mean of table rows; neither torch nor transformers is needed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np

from embedcli.core.cpu import count_usable_cores
from embedcli.core.encoder import BaseEncoder
from embedcli.core.errors import ModelError, UsageError
from embedcli.core.job import Job
from embedcli.core.vectors import normalize_rows
from embedcli.encoders.static.keyed_vectors import vectors_sidecar_path
from embedcli.encoders.static.pooling import MeanPooling
from embedcli.encoders.static.tokenizers import SubwordReader, VocabularyWordReader
from embedcli.encoders.static.vector_modules import VectorModule, load_vector_modules
from embedcli.encoders.static.word_splitter import WordSplitter
from embedcli.encoders.static.word_vectors import WordVectorFormat, detect_word_vector_format, read_word_vectors
from embedcli.encoders.tokenize.word_cache import choose_tokenizer
from embedcli.models.config import ModelConfig, model_identity, read_model_config
from embedcli.models.files import ModelFiles, read_json, read_json_object, read_modules
from embedcli.models.fingerprint import cached_sha256
from embedcli.models.weights import DOWNLOAD_AGAIN_HINT, MODEL2VEC_TENSORS, read_header, read_tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from embedcli.core.encoder import Tokens
    from embedcli.core.types import Float32Array, Int64Array

StaticFormat = WordVectorFormat | Literal["model2vec", "static-embedding"]
Notify = Callable[[str], None]
StaticTokenizer = SubwordReader | VocabularyWordReader

WEIGHTS_FILE = "model.safetensors"
# model2vec's default for models without a setting.
MODEL2VEC_MAX_TOKENS = 512
# A batch keeps one thread busy for about 10 ms; with fewer tokens switching costs more, with more a core may idle.
STATIC_BATCH_TOKENS = 1 << 16
MAX_STATIC_THREADS = 8


@dataclass(frozen=True)
class StaticModelSettings:
    """Settings of a static model for a job.

    Attributes:
        folder: The folder of table and tokenizer; for word vectors, the file.
        limit: Rows are truncated to this many tokens; None: no limit.
        normalize: Whether the vectors are scaled to length 1.
        modules: Class name and subfolder of each module behind the vectors, without a Normalize at the end.
    """

    format: StaticFormat
    folder: Path
    limit: int | None
    normalize: bool
    config: ModelConfig
    modules: tuple[tuple[str, str], ...] = ()


def detect_static_format(path: Path) -> StaticFormat | None:
    """Detect how the static vectors of a folder or file are stored, from headers only; None if it has none."""
    if path.is_file():
        return detect_word_vector_format(path)
    try:
        folder = _embedding_folder(path)
        names = read_header(folder / WEIGHTS_FILE) if (folder / WEIGHTS_FILE).is_file() else {}
    except ModelError:
        return None
    if not (folder / "tokenizer.json").is_file():
        return None
    if "embeddings" in names and names.keys() <= MODEL2VEC_TENSORS:
        return "model2vec"
    return "static-embedding" if names.keys() == {"embedding.weight"} else None


def static_model_identity(files: ModelFiles, job: Job) -> dict[str, Any]:
    """What decides the vectors, without loading the table."""
    return _identity(files, _settings(files, job))


def load_static_encoder(files: ModelFiles, job: Job, notify: Notify) -> StaticEncoder:
    """Load the encoder of a static model. Raises ModelError if its files are damaged or do not match."""
    _reject_engine(job, notify)
    settings = _settings(files, job)
    for note in settings.config.notes:
        notify(note)
    threads = _count_threads(job)
    pooling, tokenizer = _load_pooling_and_tokenizer(settings, threads, notify)
    modules, dim = load_vector_modules(files.path, settings.modules, pooling.dim)
    libraries = ("numpy", *tokenizer.libraries)
    facts = {
        "dim": dim,
        "engine": "numpy",
        "device": "cpu",
        "format": settings.format,
        "versions": {library: version(library) for library in libraries},
    }
    if settings.normalize:
        modules.append(normalize_rows)
    return StaticEncoder(pooling, tokenizer, modules, _identity(files, settings) | facts, threads)


class StaticEncoder(BaseEncoder):
    """Computes means over tokens in threads, `max_in_flight` batches at a time."""

    pad_to_multiple_of = 0

    def __init__(
        self,
        pooling: MeanPooling,
        tokenizer: StaticTokenizer,
        modules: Sequence[VectorModule],
        vector_space: dict[str, Any],
        threads: int,
    ) -> None:
        self.dim = int(vector_space["dim"])
        self.max_in_flight = threads
        self.batch_tokens = STATIC_BATCH_TOKENS
        self.empty_reason = "no known word"
        self._pooling = pooling
        self._tokenizer = tokenizer
        self._modules = tuple(modules)
        self._vector_space = vector_space
        self._pool = ThreadPoolExecutor(threads, "forward")

    def vector_space(self) -> dict[str, Any]:
        return dict(self._vector_space)

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        return self._tokenizer(texts)

    def split_into_windows(self, text: str, overlap: int = 0) -> list[tuple[int, int]]:
        """Split a text into windows (start, stop) in characters within the limit with the prompt, without gaps."""
        return self._tokenizer.split_into_windows(text, overlap)

    def forward(self, tokens: Tokens, rows: Int64Array) -> Future[Float32Array]:
        return self._pool.submit(self.encode_float32, tokens, rows)

    def collect(self, output: Future[Float32Array]) -> Float32Array:
        return output.result()

    def encode_float32(self, tokens: Tokens, rows: Int64Array) -> Float32Array:
        vectors = self._pooling.mean_vectors(tokens, rows)
        for module in self._modules:
            vectors = module(vectors)
        return vectors

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._tokenizer.close()


def _settings(files: ModelFiles, job: Job) -> StaticModelSettings:
    vector_format = detect_static_format(files.path)
    if vector_format is None:
        _reject(files.path)
    config = read_model_config(files, job)
    folder = _embedding_folder(files.path) if files.path.is_dir() else files.path
    modules = _following_modules(files.path) if files.path.is_dir() else []
    limit: int | None = None
    normalize = config.has_normalize
    if vector_format == "model2vec":
        values = read_json_object(folder / "config.json")
        limit = values.get("max_length", MODEL2VEC_MAX_TOKENS)
        normalize = normalize or (not modules and bool(values.get("normalize", False)))
    elif vector_format == "static-embedding":
        limit = _read_truncation(folder).get("max_length")
    if job.max_seq_length is not None:
        limit = job.max_seq_length
    if config.has_normalize:
        modules = modules[:-1]
    normalize = normalize if job.normalize is None else job.normalize
    return StaticModelSettings(vector_format, folder, limit, normalize, config, tuple(modules))


def _identity(files: ModelFiles, settings: StaticModelSettings) -> dict[str, Any]:
    identity = model_identity(files, settings.config, "float32")
    sidecar = vectors_sidecar_path(files.path)
    if settings.format == "keyed-vectors" and sidecar.is_file():
        identity["fingerprint"] = hashlib.sha256(f"{files.fingerprint} {cached_sha256(sidecar)}".encode()).hexdigest()
    has_unit_length = settings.normalize and not settings.config.loses_unit_length
    return identity | {"pooling": "mean", "max_seq_length": settings.limit, "normalize": has_unit_length}


def _embedding_folder(folder: Path) -> Path:
    """Find the folder of table and tokenizer; modules.json may name a subfolder."""
    kind, path = read_modules(folder)[0]
    return folder / path if kind == "StaticEmbedding" else folder


def _following_modules(folder: Path) -> list[tuple[str, str]]:
    """The modules behind the static vectors; none for a folder without modules.json."""
    modules = read_modules(folder)
    return modules[1:] if modules[0][0] == "StaticEmbedding" else []


def _reject(path: Path) -> NoReturn:
    if path.is_dir() and any(path.rglob("pytorch_model.bin")):
        raise ModelError(
            f"{path} keeps its static vectors in a pickle (pytorch_model.bin), which could run code",
            "load it where you trust it with sentence-transformers and save it again: model.save(PATH)",
        )
    raise ModelError(
        f"{path} contains no static vectors in a known format",
        "use a model2vec or StaticEmbedding folder, or a word2vec, GloVe, fastText .vec or KeyedVectors file",
    )


def _reject_engine(job: Job, notify: Notify) -> None:
    if job.engine != "auto":
        raise UsageError(
            f"--engine {job.engine} cannot run static vectors: they are summed, not computed by a network",
            "leave --engine out",
        )
    if job.device not in ("auto", "cpu"):
        notify(f"static vectors are summed on the CPU; --device {job.device} changes nothing")
    if job.dtype not in ("auto", "float32"):
        notify(f"static vectors are summed in float32; --dtype {job.dtype} changes nothing")


def _count_threads(job: Job) -> int:
    return job.threads or min(MAX_STATIC_THREADS, count_usable_cores())


def _load_pooling_and_tokenizer(
    settings: StaticModelSettings, threads: int, notify: Notify
) -> tuple[MeanPooling, StaticTokenizer]:
    if settings.format == "model2vec":
        return _load_model2vec(settings, threads)
    if settings.format == "static-embedding":
        return _load_static_embedding(settings, threads)
    return _load_word_vectors(settings, notify)


def _load_model2vec(settings: StaticModelSettings, threads: int) -> tuple[MeanPooling, SubwordReader]:
    tokenizer = _load_tokenizer(settings.folder)
    vocabulary = tokenizer.get_vocab()
    pooling = _load_table(settings.folder / WEIGHTS_FILE, max(vocabulary.values(), default=-1))
    characters = None
    if settings.limit is not None:
        characters = settings.limit * int(np.median(list(map(len, vocabulary))))
    reader = SubwordReader(
        choose_tokenizer(tokenizer, threads),
        limit=settings.limit,
        prompt=settings.config.prompt,
        characters=characters,
        unknown=_find_unknown_id(tokenizer, settings.folder),
    )
    return pooling, reader


def _load_static_embedding(settings: StaticModelSettings, threads: int) -> tuple[MeanPooling, SubwordReader]:
    tokenizer = _load_tokenizer(settings.folder)
    pooling = _load_table(settings.folder / WEIGHTS_FILE, max(tokenizer.get_vocab().values(), default=-1))
    left = _read_truncation(settings.folder).get("direction") == "Left"
    fast_tokenizer = choose_tokenizer(tokenizer, threads)
    return pooling, SubwordReader(
        fast_tokenizer, limit=settings.limit, prompt=settings.config.prompt, truncates_left=left
    )


def _load_word_vectors(settings: StaticModelSettings, notify: Notify) -> tuple[MeanPooling, VocabularyWordReader]:
    word_vectors = read_word_vectors(settings.folder)
    for note in word_vectors.notes:
        notify(note)
    splitter = WordSplitter(word_vectors.index)
    return MeanPooling(word_vectors.vectors), VocabularyWordReader(
        splitter, limit=settings.limit, prompt=settings.config.prompt
    )


def _load_tokenizer(folder: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:
        raise ModelError(f"{folder / 'tokenizer.json'} cannot be read: {error}", DOWNLOAD_AGAIN_HINT) from error


def _load_table(path: Path, last: int) -> MeanPooling:
    """Load the table with its mapping and weights, each with an entry for every id up to `last`."""
    names = read_header(path)
    table = read_tensor(path, "embeddings" if "embeddings" in names else "embedding.weight")
    mapping = read_tensor(path, "mapping") if "mapping" in names else None
    weights = read_tensor(path, "weights") if "weights" in names else None
    sizes = [len(part) for part in (table if mapping is None else mapping, weights) if part is not None]
    if table.ndim != 2 or min(sizes) <= last or (mapping is not None and not _is_valid_mapping(mapping, len(table))):
        raise ModelError(
            f"{path} has vectors for {min(sizes)} tokens, its tokenizer knows {last + 1}", DOWNLOAD_AGAIN_HINT
        )
    return MeanPooling(
        np.asarray(table, np.float32),
        None if mapping is None else np.asarray(mapping, np.int64),
        None if weights is None else np.asarray(weights, np.float32),
    )


def _is_valid_mapping(mapping: NDArray[Any], size: int) -> bool:
    return mapping.dtype.kind in "iu" and int(mapping.min(initial=0)) >= 0 and int(mapping.max(initial=0)) < size


def _find_unknown_id(tokenizer: Tokenizer, folder: Path) -> int | None:
    """The id that model2vec excludes from the mean."""
    token = getattr(tokenizer.model, "unk_token", None)
    if hasattr(tokenizer.model, "unk_token"):
        return None if token is None else tokenizer.token_to_id(token)
    number = read_json(folder / "tokenizer.json")["model"].get("unk_id")
    return None if number is None else int(number)


def _read_truncation(folder: Path) -> dict[str, Any]:
    """The truncation setting of a tokenizer.json, read without parsing the vocabulary."""
    text = (folder / "tokenizer.json").read_text("utf-8")
    match = re.search(r'"truncation"\s*:\s*', text)
    truncation = json.JSONDecoder().raw_decode(text, match.end())[0] if match else None
    return truncation if isinstance(truncation, dict) else {}
