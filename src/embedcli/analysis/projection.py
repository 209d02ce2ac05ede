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
from embedcli.analysis.compare import vectors_at
from embedcli.analysis.inspect_output import plain
from embedcli.core.errors import InputError, UsageError
from embedcli.outputs.dataset import Output

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.core.types import Floats

Method = Literal["pca", "umap"]
# Values of a colour column that get a colour of their own; the rest are together.
COLORS = 10
TEXT_CHARACTERS = 400
# Screen coordinates in the page are whole numbers up to this.
GRID = 65535


@dataclass(frozen=True)
class Color:
    """A column by which points are coloured. `values[i]` is the index of a name (-1: none), or a share of the range.

    `shown[i]` is the value in words. Without `names` the column is numeric, from `low` to `high`.
    """

    name: str
    values: list[float]
    shown: list[str]
    names: list[str] | None = None
    low: str = ""
    high: str = ""


@dataclass(frozen=True)
class Map:
    """Points [n, 2] in 0..1 with the rows they stand for. `about` says in words how they were made."""

    title: str
    about: str
    points: Floats
    ids: list[str]
    texts: list[str]
    color: Color | None


def make_map(output: Output, *, rows: int, seed: int, method: Method, color: str | None, label: str | None) -> Map:
    """A map of an output, or of a random sample of `rows` of its rows."""
    columns = [name for name in (label or default_label(output), color) if name]
    output.check_columns(columns)
    if output.rows < 2:
        raise InputError(f"{output.path}: a map needs two rows, and it has {output.rows}", "encode more rows")
    positions = np.sort(np.random.default_rng(seed).choice(output.rows, min(rows, output.rows), replace=False))
    vectors = vectors_at(output, positions)
    fine = np.isfinite(vectors).all(axis=1)
    positions, vectors = positions[fine], vectors[fine]
    points, how = projected(vectors, method, seed)
    taken = output.take(positions.tolist(), columns)
    text = columns[0] if label or default_label(output) else None
    sampled = f"{len(positions):,} of {output.rows:,} rows" if len(positions) < output.rows else f"{output.rows:,} rows"
    return Map(
        title=storage.where(output.path),
        about=f"{sampled}, {output.dim} dimensions, {how}",
        points=points,
        ids=[str(plain(row["id"])) for row in taken],
        texts=[str(row[text] if row[text] is not None else "")[:TEXT_CHARACTERS] if text else "" for row in taken],
        color=colored(color, [row[color] for row in taken]) if color else None,
    )


def default_label(output: Output) -> str | None:
    """The kept column that most likely holds the text: `text`, else the first of strings."""
    strings = [name for name in output.kept if pa.types.is_string(output.schema.field(name).type)]
    return next(
        (name for name in ("text", "content", "body", "title") if name in strings), strings[0] if strings else None
    )


# Planes


def projected(vectors: Floats, method: Method, seed: int) -> tuple[Floats, str]:
    """Points [n, 2] in 0..1, both axes to one scale, and how they were made."""
    if method == "umap":
        return scaled(umap(vectors, seed)), "UMAP"
    points, share = pca(vectors)
    return scaled(points), f"first two principal components ({share:.0%} of the variance)"


def pca(vectors: Floats) -> tuple[Floats, float]:
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


def umap(vectors: Floats, seed: int) -> Floats:
    """UMAP's points [n, 2]. UsageError if it is not installed."""
    try:
        library: Any = import_module("umap")
    except ImportError:
        raise UsageError("--method umap needs umap-learn", "pip install 'embedcli[umap]'") from None
    made = library.UMAP(n_components=2, metric="cosine", random_state=seed, n_jobs=1).fit_transform(vectors)
    return np.asarray(made, np.float32)


def scaled(points: Floats) -> Floats:
    """The same picture inside the unit square, not stretched."""
    low, high = points.min(axis=0), points.max(axis=0)
    span = float((high - low).max()) or 1.0
    return np.asarray((points - (low + high) / 2) / span + 0.5, np.float32)


# Colours


def colored(name: str, values: Sequence[Any]) -> Color:
    """Numbers become shares of their range, everything else names; rare values share one colour."""
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    shown = ["" if value is None else str(plain(value)) for value in values]
    if numbers and len(numbers) == sum(value is not None for value in values) and len(set(numbers)) > COLORS:
        low, high = min(numbers), max(numbers)
        shares = [-1 if value is None else round((value - low) / (high - low), 4) for value in values]
        return Color(name, shares, shown, low=f"{low:g}", high=f"{high:g}")
    common = [value for value, _ in Counter(text for text in shown if text).most_common()]
    names = common if len(common) <= COLORS else [*common[: COLORS - 1], "others"]
    index = {value: min(i, len(names) - 1) for i, value in enumerate(common)}
    return Color(name, [index.get(text, -1) for text in shown], shown, names)


# The page


def write_page(made: Map, path: str) -> None:
    """One HTML file that needs nothing else, and whose policy forbids it to fetch anything."""
    template = resources.files("embedcli.analysis").joinpath("map.html").read_text("utf-8")
    storage.write_bytes(path, template.replace("{{data}}", embedded_json(page_data(made))).encode())


def page_data(made: Map) -> dict[str, Any]:
    grid: NDArray[np.int64] = np.rint(made.points * GRID).astype(np.int64)
    color = made.color
    content: dict[str, Any] = {
        "title": made.title,
        "about": made.about,
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
            "shown": color.shown,
            "names": color.names,
            "low": color.low,
            "high": color.high,
            "counts": [counts[i] for i in range(len(color.names or ()))],
        }
    return content


def embedded_json(content: dict[str, Any]) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text.encode("utf-8", "backslashreplace").decode()
