"""Project vectors to two dimensions and write them as a self-contained web page."""

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
# Values of a colour column with their own colour; the others share one.
MAX_COLORS = 10
MAX_TEXT_CHARACTERS = 400
# Coordinates in the page are integers from 0 to this.
GRID_STEPS = 65535


@dataclass(frozen=True)
class PointColors:
    """The column by which points are coloured.

    Attributes:
        values: For each point, an index into `names`, or a fraction of the range if the column is numeric; -1 for null.
        labels: For each point, the value as text.
        names: Names of the colours; None for a numeric column.
        low: Smallest value of a numeric column.
        high: Largest value of a numeric column.
    """

    name: str
    values: list[float]
    labels: list[str]
    names: list[str] | None = None
    low: str = ""
    high: str = ""


@dataclass(frozen=True)
class EmbeddingMap:
    """Points [n, 2] from 0 to 1 with the ids and texts of their rows; `description` says how they were computed."""

    title: str
    description: str
    points: Float32Array
    ids: list[str]
    texts: list[str]
    color: PointColors | None


def make_map(
    output: VectorDataset, *, rows: int, seed: int, method: ProjectionMethod, color: str | None, label: str | None
) -> EmbeddingMap:
    """Build a map of an output.

    Args:
        output: The output.
        rows: Number of rows to sample if the output has more.
        seed: Seed of the sample and of UMAP.
        method: Projection to two dimensions.
        color: Column by which points are coloured.
        label: Column of the texts shown; guessed by default.

    Raises:
        InputError: The output has fewer than two rows.
        UsageError: A column does not exist, or UMAP is not installed.
    """
    output.require_dense("a map", "use a dense output of the same rows")
    text_column = label or guess_label_column(output)
    columns = [name for name in (text_column, color) if name]
    output.check_columns(columns)
    if output.rows < 2:
        raise InputError(f"{output.path}: a map needs two rows, the output has {output.rows}", "encode more rows")
    positions = np.sort(np.random.default_rng(seed).choice(output.rows, min(rows, output.rows), replace=False))
    vectors = np.asarray(read_vectors(output, positions))
    is_finite = np.isfinite(vectors).all(axis=1)
    positions, vectors = positions[is_finite], vectors[is_finite]
    points, description = project_vectors(vectors, method, seed)
    sampled_rows = output.take_rows(positions.tolist(), columns)
    texts = [row[text_column] if text_column else None for row in sampled_rows]
    sampled = f"{len(positions):,} of {output.rows:,} rows" if len(positions) < output.rows else f"{output.rows:,} rows"
    return EmbeddingMap(
        title=storage.format_location(output.path),
        description=f"{sampled}, {output.dim} dimensions, {description}",
        points=points,
        ids=[str(to_json_value(row["id"])) for row in sampled_rows],
        texts=["" if text is None else str(text)[:MAX_TEXT_CHARACTERS] for text in texts],
        color=assign_colors(color, [row[color] for row in sampled_rows]) if color else None,
    )


def guess_label_column(output: VectorDataset) -> str | None:
    """Return the kept column that most likely holds the text: by name, else the first string column."""
    strings = [name for name in output.kept_columns if pa.types.is_string(output.schema.field(name).type)]
    return next(
        (name for name in ("text", "content", "body", "title") if name in strings), strings[0] if strings else None
    )


# Projection


def project_vectors(vectors: Float32Array, method: ProjectionMethod, seed: int) -> tuple[Float32Array, str]:
    """Project vectors to points [n, 2] from 0 to 1, both axes on one scale; also describe the projection."""
    if method == "umap":
        return scale_to_unit_square(project_with_umap(vectors, seed)), "UMAP"
    points, explained = project_with_pca(vectors)
    return scale_to_unit_square(points), f"first two principal components ({explained:.0%} of the variance)"


def project_with_pca(vectors: Float32Array) -> tuple[Float32Array, float]:
    """Project vectors to their first two principal components: points [n, 2] and their share of the variance.

    The sign of a component is arbitrary: its largest entry is made positive, so that equal vectors give equal maps.
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
    """Project vectors with UMAP to points [n, 2]. Raises UsageError if it is not installed."""
    try:
        umap: Any = import_module("umap")
    except ImportError:
        raise UsageError(
            "umap-learn is needed for --method umap and is not installed", "pip install 'embedcli[umap]'"
        ) from None
    points = umap.UMAP(n_components=2, metric="cosine", random_state=seed, n_jobs=1).fit_transform(vectors)
    return np.asarray(points, np.float32)


def scale_to_unit_square(points: Float32Array) -> Float32Array:
    """Scale points into the unit square without changing their proportions."""
    low, high = points.min(axis=0), points.max(axis=0)
    span = float((high - low).max()) or 1.0
    return np.asarray((points - (low + high) / 2) / span + 0.5, np.float32)


# Colours


def assign_colors(name: str, values: Sequence[Any]) -> PointColors:
    """Colour numeric columns by value, other columns by their most frequent values; rare values share one colour."""
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    labels = ["" if value is None else str(to_json_value(value)) for value in values]
    if numbers and len(numbers) == sum(value is not None for value in values) and len(set(numbers)) > MAX_COLORS:
        low, high = min(numbers), max(numbers)
        shares = [-1 if value is None else round((value - low) / (high - low), 4) for value in values]
        return PointColors(name, shares, labels, low=f"{low:g}", high=f"{high:g}")
    common = [value for value, _ in Counter(text for text in labels if text).most_common()]
    names = common if len(common) <= MAX_COLORS else [*common[: MAX_COLORS - 1], "others"]
    index = {value: min(i, len(names) - 1) for i, value in enumerate(common)}
    return PointColors(name, [index.get(text, -1) for text in labels], labels, names)


# The page


def write_page(embedding_map: EmbeddingMap, path: str) -> None:
    """Write a map as one HTML file whose content security policy forbids loading anything else."""
    template = resources.files("embedcli.analysis").joinpath("map.html").read_text("utf-8")
    storage.write_bytes(path, template.replace("{{data}}", to_embeddable_json(build_page_data(embedding_map))).encode())


def build_page_data(embedding_map: EmbeddingMap) -> dict[str, Any]:
    grid: NDArray[np.int64] = np.rint(embedding_map.points * GRID_STEPS).astype(np.int64)
    color = embedding_map.color
    content: dict[str, Any] = {
        "title": embedding_map.title,
        "about": embedding_map.description,
        "x": grid[:, 0].tolist(),
        "y": grid[:, 1].tolist(),
        "id": embedding_map.ids,
        "text": embedding_map.texts,
    }
    if color is not None:
        counts = Counter(color.values)
        content["color"] = {
            "name": color.name,
            "values": color.values,
            "shown": color.labels,
            "names": color.names,
            "low": color.low,
            "high": color.high,
            "counts": [counts[i] for i in range(len(color.names or ()))],
        }
    return content


def to_embeddable_json(content: dict[str, Any]) -> str:
    """Encode as JSON that cannot end the script element that contains it."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text.encode("utf-8", "backslashreplace").decode()
