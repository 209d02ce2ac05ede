"""What a model was measured to be able to do, kept in the user's cache so that later starts need not load it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedcli.core.cache_dir import user_cache_folder

if TYPE_CHECKING:
    from embedcli.models.config import ModelConfig
    from embedcli.models.files import ModelFiles

log = logging.getLogger(__name__)

# Increment when the same model would be measured to have other traits.
TRAITS_FORMAT_VERSION = 2
MEASURING_PACKAGES = ("torch", "transformers", "sentence-transformers")


@dataclass(frozen=True)
class ModelTraits:
    """Measured facts about a model.

    Attributes:
        max_positions: The longest row that the network accepts, in tokens, special tokens included; None: any.
        default_limit: The limit of rows for a model whose tokenizer and positions set none, in tokens; None: no limit.
        needs_equal_lengths: Whether padding changes a row's vector, so that only rows of equal length are encoded
            together.
        needs_single_rows: Whether any other row in the batch changes a row's vector.
    """

    max_positions: int | None = None
    default_limit: int | None = None
    needs_equal_lengths: bool = False
    needs_single_rows: bool = False


# The bundled model is checked by the hash of its weights, so that its traits are known without a measurement.
BUNDLED_TRAITS = ModelTraits(max_positions=512, default_limit=512)


def read_traits(files: ModelFiles, config: ModelConfig, dtype: str) -> ModelTraits | None:
    """Read the traits of a model from the cache.

    Args:
        files: The model.
        config: Its settings.
        dtype: The precision class they are measured in, "float32" or "half".

    Returns:
        None if they have not been measured with the installed libraries, or the file is damaged.
    """
    if files.origin == "bundled":
        return BUNDLED_TRAITS
    path = _traits_path(files, config, dtype)
    try:
        checksum, _, text = path.read_text("utf-8").partition("\n")
        if hashlib.sha256(text.encode()).hexdigest() != checksum:
            raise ValueError("its checksum differs")
        return ModelTraits(**json.loads(text))
    except (OSError, ValueError, TypeError) as error:
        log.debug("no traits in %s: %s", path, error)
        return None


def write_traits(files: ModelFiles, config: ModelConfig, dtype: str, traits: ModelTraits) -> None:
    """Store the traits of a model by one rename; errors are only logged. The arguments are those of `read_traits`."""
    path = _traits_path(files, config, dtype)
    text = json.dumps(asdict(traits), sort_keys=True)
    draft = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as stream:
            draft = stream.name
            stream.write(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
        os.replace(draft, path)
    except OSError as error:
        log.debug("cannot write %s: %s", path, error)
        with suppress(OSError):
            Path(draft).unlink()


def _traits_path(files: ModelFiles, config: ModelConfig, dtype: str) -> Path:
    parts: dict[str, Any] = {
        "format": TRAITS_FORMAT_VERSION,
        "model": files.fingerprint,
        "pooling": config.pooling,
        # The length of a prompt decides a vector only where pooling leaves the prompt out.
        "prompt": "" if config.pools_prompt else config.prompt,
        "task": config.task,
        "dtype": dtype,
        "loaded_as": sorted(equivalent.native_type for equivalent in config.native.values()),
        "versions": {name: installed_version(name) for name in MEASURING_PACKAGES},
    }
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
    return user_cache_folder() / "traits" / f"{key}.json"


@cache
def installed_version(package: str) -> str | None:
    """The version of an installed package, found without importing it; None if it is not installed.

    It is looked up once, as parsing a package's metadata takes up to 0.8 ms.
    """
    try:
        return version(package)
    except PackageNotFoundError:
        return None
