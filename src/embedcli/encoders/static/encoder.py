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
from embedcli.encoders.static.word_splitter import WordSplitter
from embedcli.encoders.static.word_vectors import WordVectorFormat, detect_word_vector_format
from embedcli.encoders.static.word_vectors import read_word_vectors as read_vectors
from embedcli.encoders.tokenize.word_cache import choose_tokenizer
from embedcli.models.config import ModelConfig
from embedcli.models.config import model_identity as recipe_identity
from embedcli.models.config import read_model_config as read_recipe
from embedcli.models.files import ModelFiles, read_json, read_modules
from embedcli.models.fingerprint import cached_sha256
from embedcli.models.weights import DOWNLOAD_AGAIN_HINT, read_header, read_tensor

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
    """Settings of a static model for a job: the limit in tokens (None: none), and whether vectors are normalised."""

    format: StaticFormat
    folder: Path
    limit: int | None
    normalize: bool
    config: ModelConfig


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
    if "embeddings" in names and names.keys() <= {"embeddings", "weights", "mapping"}:
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
    bag, reader = _parts(settings, threads, notify)
    libraries = ("numpy", *reader.libraries)
    facts = {
        "dim": bag.dim,
        "engine": "numpy",
        "device": "cpu",
        "format": settings.format,
        "versions": {library: version(library) for library in libraries},
    }
    return StaticEncoder(bag, reader, settings.normalize, _identity(files, settings) | facts, threads)


class StaticEncoder(BaseEncoder):
    """Computes means over tokens in threads, `max_in_flight` batches at a time."""

    pad_to_multiple_of = 0

    def __init__(
        self, bag: MeanPooling, reader: StaticTokenizer, normalize: bool, space: dict[str, Any], threads: int
    ) -> None:
        self.dim = bag.dim
        self.max_in_flight = threads
        self.batch_tokens = STATIC_BATCH_TOKENS
        self.empty_reason = "no known word"
        self._bag = bag
        self._reader = reader
        self._normalize = normalize
        self._space = space
        self._pool = ThreadPoolExecutor(threads, "forward")

    def vector_space(self) -> dict[str, Any]:
        return dict(self._space)

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        return self._reader(texts)

    def split_into_windows(self, text: str, overlap: int = 0) -> list[tuple[int, int]]:
        """Split a text into windows (start, stop) in characters within the limit with the prompt, without gaps."""
        return self._reader.split_into_windows(text, overlap)

    def forward(self, tokens: Tokens, rows: Int64Array) -> Future[Float32Array]:
        return self._pool.submit(self.encode_float32, tokens, rows)

    def collect(self, output: Future[Float32Array]) -> Float32Array:
        return output.result()

    def encode_float32(self, tokens: Tokens, rows: Int64Array) -> Float32Array:
        made = self._bag.mean_vectors(tokens, rows)
        return normalize_rows(made) if self._normalize else made

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._reader.close()


def _settings(files: ModelFiles, job: Job) -> StaticModelSettings:
    found = detect_static_format(files.path)
    if found is None:
        _reject(files.path)
    made = read_recipe(files, job)
    folder = _embedding_folder(files.path) if files.path.is_dir() else files.path
    limit: int | None = None
    normalize = made.has_normalize
    if found == "model2vec":
        config = read_json(folder / "config.json")
        limit = config.get("max_length", MODEL2VEC_MAX_TOKENS)
        normalize = bool(config.get("normalize", False))
    elif found == "static-embedding":
        limit = _read_truncation(folder).get("max_length")
    if job.max_seq_length is not None:
        limit = job.max_seq_length
    return StaticModelSettings(found, folder, limit, normalize if job.normalize is None else job.normalize, made)


def _identity(files: ModelFiles, settings: StaticModelSettings) -> dict[str, Any]:
    own = recipe_identity(files, settings.config, "float32")
    beside = vectors_sidecar_path(files.path)
    if settings.format == "keyed-vectors" and beside.is_file():
        own["fingerprint"] = hashlib.sha256(f"{files.fingerprint} {cached_sha256(beside)}".encode()).hexdigest()
    has_unit_length = settings.normalize and not settings.config.loses_unit_length
    return own | {"pooling": "mean", "max_seq_length": settings.limit, "normalize": has_unit_length}


def _embedding_folder(folder: Path) -> Path:
    """Find the folder of table and tokenizer; modules.json may name a subfolder."""
    modules = read_modules(folder)
    if modules[0][0] != "StaticEmbedding":
        return folder
    for kind, _ in modules[1:]:
        if kind != "Normalize":
            raise ModelError(
                f"{folder} follows its static vectors with {kind}, which is not supported", "use another model"
            )
    return folder / modules[0][1]


def _reject(path: Path) -> NoReturn:
    if path.is_dir() and any(path.rglob("pytorch_model.bin")):
        raise ModelError(
            f"{path} keeps its static vectors in a pickle (pytorch_model.bin), which could run code",
            "load it where you trust it with sentence-transformers and save it again: model.save(PATH)",
        )
    raise ModelError(
        f"{path} holds no static vectors that can be read",
        "give a model2vec or StaticEmbedding folder, or a word2vec, GloVe, fastText .vec or KeyedVectors file",
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


def _parts(settings: StaticModelSettings, threads: int, notify: Notify) -> tuple[MeanPooling, StaticTokenizer]:
    if settings.format == "model2vec":
        return _model2vec(settings, threads)
    if settings.format == "static-embedding":
        return _static_embedding(settings, threads)
    return _word_vectors(settings, notify)


def _model2vec(settings: StaticModelSettings, threads: int) -> tuple[MeanPooling, SubwordReader]:
    tokenizer = _tokenizer(settings.folder)
    vocabulary = tokenizer.get_vocab()
    bag = _bag(settings.folder / WEIGHTS_FILE, max(vocabulary.values(), default=-1))
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
    return bag, reader


def _static_embedding(settings: StaticModelSettings, threads: int) -> tuple[MeanPooling, SubwordReader]:
    tokenizer = _tokenizer(settings.folder)
    bag = _bag(settings.folder / WEIGHTS_FILE, max(tokenizer.get_vocab().values(), default=-1))
    left = _read_truncation(settings.folder).get("direction") == "Left"
    whole = choose_tokenizer(tokenizer, threads)
    return bag, SubwordReader(whole, limit=settings.limit, prompt=settings.config.prompt, truncates_left=left)


def _word_vectors(settings: StaticModelSettings, notify: Notify) -> tuple[MeanPooling, VocabularyWordReader]:
    found = read_vectors(settings.folder)
    for note in found.notes:
        notify(note)
    splitter = WordSplitter(found.index)
    return MeanPooling(found.vectors), VocabularyWordReader(
        splitter, limit=settings.limit, prompt=settings.config.prompt
    )


def _tokenizer(folder: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:
        raise ModelError(f"{folder / 'tokenizer.json'} cannot be read: {error}", DOWNLOAD_AGAIN_HINT) from error


def _bag(path: Path, last: int) -> MeanPooling:
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
    at = re.search(r'"truncation"\s*:\s*', text)
    made = json.JSONDecoder().raw_decode(text, at.end())[0] if at else None
    return made if isinstance(made, dict) else {}
