"""Canaries: vectors of five fixed texts, stored with an output, that show when another model answers under its name."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.core.vectors import normalize_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.core.types import Float32Array

CANARIES_KEY = "canaries"
CANARY_TEXTS = (
    "The harbour was quiet before the first ferry left.",
    "Der Vertrag gilt bis zum Ende des nächsten Jahres.",
    "Температура воды поднялась на три градуса.",
    "これは短い試験用の文です。",
    "SELECT name FROM users WHERE id = 42;",
)
VERSION = 1
# Stored dimensions of a random projection: 5 x 64 x float16 is 640 bytes, and distances are kept to about 20 %.
PROJECTED_DIMENSIONS = 64
# Differences (1 - cosine) that do not show another model: bfloat16 and other hardware stay below the first. A server
# may differ from itself by more, and twenty texts asked of such a server stay within ten times what five asked twice
# show. Above the second value nothing would be recognised.
TOLERATED_DIFFERENCE = 1e-3
NOISE_FACTOR = 10.0
MAX_TOLERATED_DIFFERENCE = 0.3


@dataclass(frozen=True)
class Canaries:
    """The vectors of `CANARY_TEXTS` in a compact form.

    Attributes:
        dim: Dimensions of the server's vectors.
        request: Digest of the other fields of the request: only answers to equal requests can be compared.
        noise: The largest difference (1 - cosine) between two answers to the same text.
        projections: float32 [texts, 64] of length 1: the vectors after a fixed random projection.
    """

    dim: int
    request: str
    noise: float
    projections: Float32Array

    def to_json(self) -> dict[str, Any]:
        """Return the canaries as vector space metadata, less than 1 kB."""
        packed = base64.b64encode(self.projections.astype("<f2").tobytes()).decode()
        noise = float(f"{self.noise:.2g}")
        return {"version": VERSION, "dim": self.dim, "request": self.request, "noise": noise, "vectors": packed}

    @classmethod
    def from_json(cls, value: Any) -> Canaries | None:
        """Restore canaries from vector space metadata; None if there are none or this version cannot read them."""
        if not isinstance(value, Mapping) or value.get("version") != VERSION:
            return None
        halves = np.frombuffer(base64.b64decode(value["vectors"]), "<f2").astype(np.float32)
        projections = halves.reshape(len(CANARY_TEXTS), PROJECTED_DIMENSIONS)
        return cls(int(value["dim"]), str(value["request"]), float(value["noise"]), projections)


@dataclass(frozen=True)
class CanaryComparison:
    """Recorded and current canaries, compared.

    Attributes:
        lowest_cosine: Of the five texts; None if the vectors have other dimensions than the recorded ones.
        min_cosine: The lowest cosine that the server's own noise explains.
    """

    lowest_cosine: float | None
    min_cosine: float

    @property
    def has_moved(self) -> bool:
        """Whether another model answers than the recorded one."""
        return self.lowest_cosine is None or not self.lowest_cosine >= self.min_cosine

    def __str__(self) -> str:
        if self.lowest_cosine is None:
            return "the vectors of the fixed texts have another number of dimensions"
        return (
            f"lowest cosine of {len(CANARY_TEXTS)} fixed texts with their recorded vectors {self.lowest_cosine:.4f}, "
            f"{self.min_cosine:.4f} expected"
        )


def build_canaries(first: Float32Array, second: Float32Array, request: str) -> Canaries | None:
    """Build canaries from two answers of a server.

    Args:
        first: float32 [texts, dim], the vectors of `CANARY_TEXTS`.
        second: float32 [texts, dim], of the same texts, asked again.
        request: Digest of the other fields of the request.

    Returns:
        None if a vector is zero or not finite.
    """
    lengths = np.linalg.norm([first, second], axis=-1)
    if not np.isfinite(lengths).all() or not lengths.all():
        return None
    noise = max(0.0, float((1 - row_cosines(first, second)).max()))
    return Canaries(first.shape[1], request, noise, _project(first))


def compare_canaries(recorded: Any, current: Any) -> CanaryComparison | None:
    """Compare canaries as they stand in vector space metadata.

    Returns:
        None if they cannot be compared: one of them is missing, or the requests had different fields.
    """
    old, new = Canaries.from_json(recorded), Canaries.from_json(current)
    if old is None or new is None or old.request != new.request:
        return None
    tolerated = max(TOLERATED_DIFFERENCE, NOISE_FACTOR * max(old.noise, new.noise))
    min_cosine = 1 - min(tolerated, MAX_TOLERATED_DIFFERENCE)
    if old.dim != new.dim:
        return CanaryComparison(None, min_cosine)
    return CanaryComparison(float(row_cosines(old.projections, new.projections).min()), min_cosine)


def describe_moved_canaries(recorded: Mapping[str, Any], current: Mapping[str, Any]) -> str | None:
    """Say how the canaries of two vector spaces differ, if their server now answers with another model; else None."""
    comparison = compare_canaries(recorded.get(CANARIES_KEY), current.get(CANARIES_KEY))
    if comparison is None or not comparison.has_moved:
        return None
    where, name = current.get("endpoint"), current.get("model")
    return f"{where} now serves another model as {name} ({comparison})"


def row_cosines(first: NDArray[Any], second: NDArray[Any]) -> Float32Array:
    """Return the cosine of each pair of rows of two arrays [n, dim]: float64 [n]."""
    pairs = normalize_rows(first.astype(np.float64)), normalize_rows(second.astype(np.float64))
    return np.asarray(np.einsum("ij,ij->i", *(rows.astype(np.float64) for rows in pairs)))


def digest_request(fields: Mapping[str, Any]) -> str:
    """Return a digest of the fields of a request, apart from model, texts and encoding."""
    kept = {name: value for name, value in fields.items() if name not in ("model", "input", "encoding_format")}
    return hashlib.blake2b(repr(sorted(kept.items())).encode(), digest_size=8).hexdigest()


def _project(vectors: Float32Array) -> Float32Array:
    return normalize_rows(normalize_rows(vectors) @ _projection_signs(vectors.shape[1]))


@cache
def _projection_signs(dim: int) -> Float32Array:
    # From a hash function: a random generator of a library may change between its versions.
    stream = hashlib.shake_256(b"embedcli canaries 1").digest(dim * PROJECTED_DIMENSIONS // 8)
    bits = np.unpackbits(np.frombuffer(stream, np.uint8)).reshape(dim, PROJECTED_DIMENSIONS)
    return np.where(bits, np.float32(1), np.float32(-1))
