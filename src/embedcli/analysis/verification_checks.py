"""The result of one check of `verify`, and the checks of the canaries of hosted models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from embedcli.encoders.hosted.canaries import CANARIES_KEY, Canaries, compare_canaries

if TYPE_CHECKING:
    from embedcli.outputs.dataset import VectorDataset

MAX_EXAMPLE_IDS = 20


@dataclass
class VerificationCheck:
    """Result of one check, with the ids of some rows that failed it, and what to do about them.

    Attributes:
        passed: None if there was nothing to check.
    """

    name: str
    passed: bool | None
    detail: str
    example_ids: list[Any] = field(default_factory=list)
    remedy: str = ""

    def as_json(self) -> dict[str, Any]:
        shown = {"name": self.name, "ok": self.passed, "detail": self.detail, "ids": self.example_ids[:MAX_EXAMPLE_IDS]}
        return {**shown, "remedy": self.remedy} if self.remedy else shown


def check_recorded_canaries(output: VectorDataset) -> list[VerificationCheck]:
    """Say which canaries of a hosted model are recorded; they are compared where the server is asked."""
    canaries = Canaries.from_json(output.vector_space.get(CANARIES_KEY))
    if canaries is None:
        return []
    detail = f"vectors of {len(canaries.projections)} fixed texts are recorded; the server differed from itself by"
    return [VerificationCheck("canaries", True, f"{detail} {canaries.noise:.2g} (1 - cosine)")]


def compare_recorded_canaries(output: VectorDataset, current: Mapping[str, Any]) -> list[VerificationCheck]:
    """Compare the recorded canaries with those of the server's model now."""
    comparison = compare_canaries(output.vector_space.get(CANARIES_KEY), current.get(CANARIES_KEY))
    return [VerificationCheck("canaries", not comparison.has_moved, str(comparison))] if comparison else []
