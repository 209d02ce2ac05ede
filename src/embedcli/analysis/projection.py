"""Vectors as points on a plane, and the page that shows them without a network."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module, resources
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from embedcli import storage
from embedcli.analysis.compare import read_vectors
from embedcli.analysis.inspect_output import to_json_value
from embedcli.core.errors import InputError, UsageError
from embedcli.outputs.dataset import VectorDataset

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.core.types import Float32Array

ProjectionMethod = Literal["pca", "umap"]
# Values of a colour column that get a colour of their own; the rest are together.
MAX_COLORS = 10
MAX_TEXT_CHARACTERS = 400
# Screen coordinates in the page are whole numbers up to this.
GRID_STEPS = 65535


@dataclass(frozen=True)
class PointColors:
    """A column by which points are coloured. `values[i]` is the index of a name (-1: none), or a share of the range.

    `shown[i]` is the value in words. Without `names` the column is numeric, from `low` to `high`.
    """

    name: str
    values: list[float]
    indices_or_shares: list[str]
    names: list[str] | None = None
    low: str = ""
    high: str = ""


@dataclass(frozen=True)
class EmbeddingMap:
    """Points [n, 2] in 0..1 with the rows they stand for. `about` says in words how they were made."""

    title: str
    description: str
    points: Float32Array
    ids: list[str]
    texts: list[str]
    color: PointColors | None


def make_map(
    output: VectorDataset, *, rows: int, seed: int, method: ProjectionMethod, color: str | None, label: str | None
) -> EmbeddingMap:
    """A map of an output, or of a random sample of `rows` of its rows."""
    columns = [name for name in (label or guess_label_column(output), color) if name]
    output.check_columns(columns)
    if output.rows < 2:
        raise InputError(f"{output.path}: a map needs two rows, and it has {output.rows}", "encode more rows")
    positions = np.sort(np.random.default_rng(seed).choice(output.rows, min(rows, output.rows), replace=False))
    vectors = read_vectors(output, positions)
    fine = np.isfinite(vectors).all(axis=1)
    positions, vectors = positions[fine], vectors[fine]
    points, how = project_vectors(vectors, method, seed)
    taken = output.take_rows(positions.tolist(), columns)
    text = columns[0] if label or guess_label_column(output) else None
    sampled = f"{len(positions):,} of {output.rows:,} rows" if len(positions) < output.rows else f"{output.rows:,} rows"
    return EmbeddingMap(
        title=storage.format_location(output.path),
        description=f"{sampled}, {output.dim} dimensions, {how}",
        points=points,
        ids=[str(to_json_value(row["id"])) for row in taken],
        texts=[str(row[text] if row[text] is not None else "")[:MAX_TEXT_CHARACTERS] if text else "" for row in taken],
        color=assign_colors(color, [row[color] for row in taken]) if color else None,
    )


def guess_label_column(output: VectorDataset) -> str | None:
    """The kept column that most likely holds the text: `text`, else the first of strings."""
    strings = [name for name in output.kept_columns if pa.types.is_string(output.schema.field(name).type)]
    return next(
        (name for name in ("text", "content", "body", "title") if name in strings), strings[0] if strings else None
    )


# Planes


def project_vectors(vectors: Float32Array, method: ProjectionMethod, seed: int) -> tuple[Float32Array, str]:
    """Points [n, 2] in 0..1, both axes to one scale, and how they were made."""
    if method == "umap":
        return scale_to_unit_square(project_with_umap(vectors, seed)), "UMAP"
    points, share = project_with_pca(vectors)
    return scale_to_unit_square(points), f"first two principal components ({share:.0%} of the variance)"


def project_with_pca(vectors: Float32Array) -> tuple[Float32Array, float]:
    """The two directions of most variance, [n, 2], and the share of the variance in them.

    A direction's sign is arbitrary: its largest entry is made positive, so that equal vectors give equal maps.
    """
    centered = vectors - vectors.mean(axis=0)
    _, lengths, directions = np.linalg.svd(centered, full_matrices=False)
    directions = directions[:2]
    largest = np.abs(directions).argmax(axis=1)
    directions = directions * np.sign(directions[np.arange(len(directions)), largest])[:, None]
    variance = lengths**2
    total = float(variance.sum())
    points = np.zeros((len(vectors), 2), np.float32)
    points[:, : len(directions)] = centered @ directions.T
    return points, float(variance[:2].sum()) / total if total else 0.0


def project_with_umap(vectors: Float32Array, seed: int) -> Float32Array:
    """UMAP's points [n, 2]. UsageError if it is not installed."""
    try:
        library: Any = import_module("umap")
    except ImportError:
        raise UsageError("--method umap needs umap-learn", "pip install 'embedcli[umap]'") from None
    made = library.UMAP(n_components=2, metric="cosine", random_state=seed, n_jobs=1).fit_transform(vectors)
    return np.asarray(made, np.float32)


def scale_to_unit_square(points: Float32Array) -> Float32Array:
    """The same picture inside the unit square, not stretched."""
    low, high = points.min(axis=0), points.max(axis=0)
    span = float((high - low).max()) or 1.0
    return np.asarray((points - (low + high) / 2) / span + 0.5, np.float32)


# Colours


def assign_colors(name: str, values: Sequence[Any]) -> PointColors:
    """Numbers become shares of their range, everything else names; rare values share one colour."""
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    shown = ["" if value is None else str(to_json_value(value)) for value in values]
    if numbers and len(numbers) == sum(value is not None for value in values) and len(set(numbers)) > MAX_COLORS:
        low, high = min(numbers), max(numbers)
        shares = [-1 if value is None else round((value - low) / (high - low), 4) for value in values]
        return PointColors(name, shares, shown, low=f"{low:g}", high=f"{high:g}")
    common = [value for value, _ in Counter(text for text in shown if text).most_common()]
    names = common if len(common) <= MAX_COLORS else [*common[: MAX_COLORS - 1], "others"]
    index = {value: min(i, len(names) - 1) for i, value in enumerate(common)}
    return PointColors(name, [index.get(text, -1) for text in shown], shown, names)


# The page


def write_page(made: EmbeddingMap, path: str) -> None:
    """One HTML file that needs nothing else, and whose policy forbids it to fetch anything."""
    template = resources.files("embedcli.analysis").joinpath("map.html").read_text("utf-8")
    storage.write_bytes(path, template.replace("{{data}}", to_embeddable_json(build_page_data(made))).encode())


def build_page_data(made: EmbeddingMap) -> dict[str, Any]:
    grid: NDArray[np.int64] = np.rint(made.points * GRID_STEPS).astype(np.int64)
    color = made.color
    content: dict[str, Any] = {
        "title": made.title,
        "about": made.description,
        "x": grid[:, 0].tolist(),
        "y": grid[:, 1].tolist(),
        "id": made.ids,
        "text": made.texts,
    }
    if color is not None:
        counts = Counter(color.values)
        content["color"] = {
            "name": color.name,
            "values": color.values,
            "shown": color.indices_or_shares,
            "names": color.names,
            "low": color.low,
            "high": color.high,
            "counts": [counts[i] for i in range(len(color.names or ()))],
        }
    return content


def to_embeddable_json(content: dict[str, Any]) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text.encode("utf-8", "backslashreplace").decode()
