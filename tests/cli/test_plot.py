"""`embedcli plot`: the plane is the one of most variance, and the page works in a real browser without a network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.decomposition import PCA
from typer.testing import CliRunner

from browser import CHROMIUM, Browser
from embedcli.analysis.projection import assign_colors, project_with_pca, scale_to_unit_square, to_embeddable_json
from embedcli.cli import app
from sample_outputs import FORMATS, make_output, unit_vectors

ROWS = 240
LANGUAGES = ["en", "fr", "zh"]
TEXTS = [f"row {i} says </script> & <b>{'needle' if i % 40 == 7 else 'hay'}</b> \u2028 中文" for i in range(ROWS)]


def run(*args: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["plot", *map(str, args)])
    return result.exit_code, result.stdout, result.stderr


def groups() -> Any:
    """Three clouds of vectors, far apart."""
    centers = unit_vectors(3, 16, seed=5) * 3
    made = unit_vectors(ROWS, 16) * 0.4 + centers[np.arange(ROWS) % 3]
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="session")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kept: dict[str, list[Any]] = {
        "text": TEXTS,
        "lang": [LANGUAGES[i % 3] for i in range(ROWS)],
        "score": [i / 2 if i % 10 else None for i in range(ROWS)],
    }
    path = tmp_path_factory.mktemp("map") / "out.parquet"
    return make_output(path, groups(), ids=[f"r{i}" for i in range(ROWS)], kept=kept)


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page.read_text("utf-8"), re.DOTALL)
    assert found
    made: dict[str, Any] = json.loads(found[1])
    return made


def test_the_plane_is_that_of_scikit_learn() -> None:
    vectors = unit_vectors(80, 12) * np.linspace(1, 3, 12, dtype=np.float32)
    theirs = PCA(2, svd_solver="full").fit(vectors)
    points, share = project_with_pca(vectors)
    assert np.allclose(np.abs(points), np.abs(theirs.transform(vectors)), atol=1e-4)
    assert share == pytest.approx(theirs.explained_variance_ratio_.sum(), abs=1e-5)
    assert np.array_equal(points, project_with_pca(vectors.copy())[0])


def test_points_lie_in_the_unit_square_unstretched() -> None:
    points = scale_to_unit_square(np.array([[0, 0], [4, 1], [2, 2]], np.float32))
    assert points.tolist() == [[0, 0.25], [1, 0.5], [0.5, 0.75]]
    assert scale_to_unit_square(np.ones((3, 2), np.float32)).tolist() == [[0.5, 0.5]] * 3


def test_colours_are_names_or_a_range() -> None:
    few = assign_colors("lang", ["b", "a", None, "b"])
    assert (few.names, few.values, few.labels) == (["b", "a"], [0, 1, -1, 0], ["b", "a", "", "b"])
    many = assign_colors("word", [str(i) for i in range(30)] + ["7"] * 5)
    assert many.names
    assert (len(many.names), many.names[0], many.names[-1]) == (10, "7", "others")
    assert set(many.values) == set(range(10))
    numbers = assign_colors("n", [None, *range(11)])
    assert (numbers.names, numbers.low, numbers.high) == (None, "0", "10")
    assert numbers.values[:2] + numbers.values[-1:] == [-1, 0, 1]
    assert assign_colors("n", [1, 2, 1]).names == ["1", "2"]


def test_json_cannot_end_its_element() -> None:
    text = to_embeddable_json({"a": "</script><!--\u2028 \ud800"})
    assert "<" not in text
    assert json.loads(text) == {"a": "</script><!--\u2028 \ud800"}


def test_the_page_holds_every_row(output: Path, tmp_path: Path) -> None:
    code, out, err = run(output, tmp_path / "map.html", "--color", "lang")
    assert (code, out) == (0, "")
    assert "240 rows, 16 dimensions" in err
    data = data_of(tmp_path / "map.html")
    assert data["id"] == [f"r{i}" for i in range(ROWS)]
    assert data["text"] == TEXTS
    assert data["color"]["counts"] == [80, 80, 80]
    _, out, err = run(output, tmp_path / "again.html", "--color", "lang", "--json")
    assert (json.loads(out)["points"], err) == (240, "")
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "map.html").read_bytes()


@pytest.mark.parametrize("name", FORMATS)
def test_a_sample_of_any_format(tmp_path: Path, name: str) -> None:
    path = make_output(tmp_path / name, groups(), ids=list(range(ROWS)), kept={"title": TEXTS})
    assert run(path, tmp_path / "map.html", "--rows", 50, "--seed", 3)[0] == 0
    data = data_of(tmp_path / "map.html")
    assert len(data["x"]) == len(set(data["id"])) == 50
    assert all(TEXTS[int(id)] == text for id, text in zip(data["id"], data["text"], strict=True))
    assert data["about"].startswith("50 of 240 rows")


@pytest.mark.parametrize("color", ["lang", "score", None])
def test_pictures(output: Path, tmp_path: Path, color: str | None) -> None:
    pytest.importorskip("matplotlib")
    flags = ("--color", color) if color else ()
    assert run(output, tmp_path / "map.png", *flags)[0] == 0
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_drawn_is_refused(output: Path, tmp_path: Path) -> None:
    code, _, err = run(output, tmp_path / "map.html", "--color", "colour")
    assert (code, "no column 'colour'" in err) == (2, True)
    code, _, err = run(output, tmp_path / "map.docx")
    assert (code, ".png" in err) == (2, True)
    code, _, err = run(make_output(tmp_path / "one.parquet", unit_vectors(1, 4)), tmp_path / "map.html")
    assert (code, "a map needs two rows, the output has 1" in err) == (1, True)


# In a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    made = Browser(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def page(browser: Browser, output: Path) -> Browser:
    browser.prefer("light")
    target = output.parent / "map.html"
    assert run(output, target, "--color", "lang")[0] == 0
    browser.open(target)
    return browser


def at(page: Browser, row: int) -> tuple[float, float]:
    x, y = page.evaluate(f"screenOf({row})")
    return float(x), float(y)


def hover(page: Browser, row: int) -> str:
    """The text that the pointer shows over a row."""
    page.mouse("mouseMoved", *at(page, row))
    return str(page.evaluate("tip.hidden ? '' : tip.textContent"))


def lonely(page: Browser) -> list[int]:
    """Rows with no other point near them on the screen."""
    points = np.array(page.evaluate("Array.from({length: count}, (_, i) => screenOf(i))"))
    apart = np.linalg.norm(points[:, None] - points[None], axis=2) + np.eye(len(points)) * 1e9
    return [int(i) for i in np.flatnonzero(apart.min(axis=1) > 3)]


def test_the_pointer_shows_the_row_under_it(page: Browser) -> None:
    rows = lonely(page)
    assert len(rows) > 30
    for row in rows[:15]:
        assert hover(page, row) == f"r{row}  ·  {LANGUAGES[row % 3]}{TEXTS[row]}"
    page.mouse("mouseMoved", 990, 400)
    assert page.evaluate("tip.hidden") is True


def test_the_wheel_zooms_at_the_pointer_and_dragging_moves(page: Browser) -> None:
    x, y = at(page, 5)
    page.mouse("mouseWheel", x, y, deltaX=0, deltaY=-600)
    assert page.evaluate("view.zoom") > 2
    assert at(page, 5) == pytest.approx((x, y), abs=3)  # the pointer is at whole pixels
    page.mouse("mousePressed", 500, 300, button="left")
    page.mouse("mouseMoved", 560, 330, button="left", buttons=1)
    page.mouse("mouseReleased", 560, 330, button="left")
    assert at(page, 5) == pytest.approx((x + 60, y + 30), abs=3)
    assert hover(page, 5).startswith("r5 ")
    page.evaluate("element('reset').click()")
    assert at(page, 5) == pytest.approx((x, y), abs=1)


def test_search_finds_by_text(page: Browser) -> None:
    page.evaluate("element('search').focus()")
    page.call("Input.insertText", text="NEEDLE")
    assert page.evaluate("element('found').textContent") == "6 found"
    assert page.evaluate("[...matches]") == [7, 47, 87, 127, 167, 207]
    page.evaluate("element('search').value = ''; search('')")
    assert page.evaluate("matches") is None


def test_a_legend_entry_hides_its_points(page: Browser) -> None:
    row = next(row for row in lonely(page) if row % 3 == 0)
    page.evaluate("document.querySelectorAll('.key')[data.color.names.indexOf('en')].click()")
    assert f"r{row} " not in hover(page, row)
    page.evaluate("document.querySelectorAll('.key')[data.color.names.indexOf('en')].click()")
    assert hover(page, row).startswith(f"r{row} ")


def test_light_and_dark_follow_the_system_and_the_button(page: Browser, tmp_path: Path) -> None:
    colors = {}
    for scheme in ("dark", "light"):
        page.prefer(scheme)
        colors[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.screenshot(tmp_path / f"{scheme}.png")
    assert colors["light"] != colors["dark"]
    page.evaluate("element('theme').click()")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == colors["dark"]
    page.evaluate("element('theme').click()")


def test_the_page_asks_for_nothing_and_reports_no_error(page: Browser) -> None:
    assert [url for url in page.requests if not url.startswith(("file:", "about:"))] == []
    assert page.errors == []
    assert page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'sent', error => error.name)") == "TypeError"
