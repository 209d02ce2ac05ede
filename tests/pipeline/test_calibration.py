"""int8 and uint8: an output has one set of ranges, even if several runs encoded it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import jobs
from embedcli import readers
from embedcli.core import quantization
from embedcli.core.job import Job
from embedcli.pipeline import calibration
from embedcli.pipeline.control import RunControl
from embedcli.pipeline.metrics import MetricsCollector
from embedcli.runners.context import RunContext
from fakes import FakeEncoder, chunk

# Rows of one word, three times over: their vectors are longer than the means of many words.
BEYOND = [{"id": f"b{i}", "text": f"{word} {word} {word}", "n": i} for i, word in enumerate(jobs.WORDS)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    jobs.word_model(tmp_path)
    jobs.write_jsonl(tmp_path / "in.jsonl", jobs.rows(300))
    return tmp_path


def encode(folder: Path, output: str, *flags: object) -> jobs.Ended:
    source = [] if "in.other.jsonl" in flags else [folder / "in.jsonl"]
    given = [folder / flag if flag == "in.other.jsonl" else flag for flag in flags]
    inputs = [flag for flag in given if str(flag).endswith("in.other.jsonl")]
    rest = [flag for flag in given if flag not in inputs]
    return jobs.run("encode", *source, *inputs, folder / output, "-m", folder / "words.txt", "--chunk-rows", 50, *rest)


def stored(path: Path) -> Any:
    return np.array(pq.read_table(path).column("embedding").to_pylist())


def ranges(path: Path) -> Any:
    return np.array(json.loads(pq.read_schema(path).metadata[b"embedcli"])["ranges"], np.float32)


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_ranges_are_recorded_and_used_for_all_rows(folder: Path, kind: Any) -> None:
    assert encode(folder, "plain.parquet").code == 0
    done = encode(folder, "out.parquet", "--precision", kind)
    assert done.code == 0, done.err
    plain = stored(folder / "plain.parquet").astype(np.float32)
    found = ranges(folder / "out.parquet")
    # All rows are in a sample of 2,000, so the ranges are those of all vectors.
    np.testing.assert_array_equal(found, quantization.compute_ranges(plain))
    np.testing.assert_array_equal(stored(folder / "out.parquet"), quantization.quantize(plain, kind, found))


def test_two_runs_are_equal_to_one(folder: Path) -> None:
    encode(folder, "a.parquet", "--precision", "int8")
    assert encode(folder, "b.parquet", "--precision", "int8", "--stop-after", 100).code == 75
    assert encode(folder, "b.parquet", "--precision", "int8").code == 0
    assert (folder / "a.parquet").read_bytes() == (folder / "b.parquet").read_bytes()


def test_update_and_ranges_from_keep_the_ranges(folder: Path) -> None:
    encode(folder, "out.parquet", "--precision", "int8")
    before = ranges(folder / "out.parquet")
    jobs.write_jsonl(folder / "in.other.jsonl", jobs.rows(40, seed=9))
    assert (
        encode(
            folder, "b.parquet", "in.other.jsonl", "--precision", "int8", "--ranges-from", folder / "out.parquet"
        ).code
        == 0
    )
    np.testing.assert_array_equal(ranges(folder / "b.parquet"), before)
    jobs.write_jsonl(folder / "in.jsonl", jobs.rows(300)[:100])
    assert encode(folder, "out.parquet", "--precision", "int8", "--update", "--max-removed", "100%").code == 0
    np.testing.assert_array_equal(ranges(folder / "out.parquet"), before)


REFUSED = "were stored with other ranges than"


def in_one_line(text: str) -> str:
    return " ".join(text.split())


def assert_one_set_of_ranges(path: Path, plain: Path) -> None:
    """Assert that every stored number follows from its vector and the ranges that the output records."""
    levels = quantization.quantize(stored(plain).astype(np.float32), "int8", ranges(path))
    np.testing.assert_array_equal(stored(path), levels)


def test_parts_of_an_interrupted_run_are_not_mixed_with_those_of_other_ranges(folder: Path) -> None:
    """--overwrite samples the changed input, --update keeps the output's ranges: part files must not mix both."""
    small = ("--precision", "int8")
    encode(folder, "out.parquet", *small)
    before = (folder / "out.parquet").read_bytes()
    jobs.write_jsonl(folder / "in.jsonl", [*jobs.rows(300)[1:], *BEYOND])
    assert encode(folder, "out.parquet", *small, "--overwrite", "--stop-after", 100).code == 75
    refused = encode(folder, "out.parquet", *small, "--update")
    assert refused.code == 2
    assert f"{REFUSED} {folder / 'out.parquet'} records" in in_one_line(refused.err)
    assert "remove those parts" in in_one_line(refused.err)
    assert (folder / "out.parquet").read_bytes() == before

    shutil.rmtree(folder / "out.parquet.parts")
    assert encode(folder, "out.parquet", *small, "--update").code == 0
    encode(folder, "plain.parquet")
    assert_one_set_of_ranges(folder / "out.parquet", folder / "plain.parquet")


@pytest.mark.parametrize("flags", [(), ("--workers", 2), ("--shard", "1/1")])
def test_ranges_from_an_output_that_is_encoded_again_meanwhile(folder: Path, flags: tuple[object, ...]) -> None:
    small, other = ("--precision", "int8"), folder / "in.other.jsonl"
    named = (*small, "--ranges-from", folder / "other.parquet", *flags)
    jobs.write_jsonl(other, jobs.rows(40, seed=9))
    encode(folder, "other.parquet", "in.other.jsonl", *small)
    calibrated = ranges(folder / "other.parquet")
    begin_and_stop(folder, *named)
    jobs.write_jsonl(other, BEYOND)
    encode(folder, "other.parquet", "in.other.jsonl", *small, "--overwrite", "--max-removed", "100%")
    refused = encode(folder, "out.parquet", *named)
    assert refused.code == 2
    assert f"{REFUSED} {folder / 'other.parquet'} has now" in in_one_line(refused.err)

    jobs.write_jsonl(other, jobs.rows(40, seed=9))
    encode(folder, "other.parquet", "in.other.jsonl", *small, "--overwrite", "--max-removed", "100%")
    assert encode(folder, "out.parquet", *named).code == 0
    np.testing.assert_array_equal(ranges(folder / "out.parquet"), calibrated)
    encode(folder, "plain.parquet")
    assert_one_set_of_ranges(folder / "out.parquet", folder / "plain.parquet")


def begin_and_stop(folder: Path, *flags: object) -> None:
    """Encode some chunks of a job; --stop-after does not work with several processes."""
    alone = [flag for flag in flags if flag not in ("--workers", 2)]
    assert encode(folder, "out.parquet", *alone, "--stop-after", 100).code == 75


def test_update_does_not_ignore_ranges_from(folder: Path) -> None:
    small = ("--precision", "int8")
    encode(folder, "out.parquet", *small)
    jobs.write_jsonl(folder / "in.other.jsonl", BEYOND)
    encode(folder, "other.parquet", "in.other.jsonl", *small)
    jobs.write_jsonl(folder / "in.jsonl", jobs.rows(300)[1:])
    refused = encode(folder, "out.parquet", *small, "--update", "--ranges-from", folder / "other.parquet")
    assert refused.code == 2
    assert "out.parquet was stored with other ranges than those of" in in_one_line(refused.err)
    assert jobs.left_in(folder) == ["other.parquet", "out.parquet"]
    same = shutil.copy(folder / "out.parquet", folder / "same.parquet")
    assert encode(folder, "out.parquet", *small, "--update", "--ranges-from", same).code == 0


def test_an_update_is_resumed_with_the_ranges_it_started_with(folder: Path) -> None:
    """Even if the output that they came from is removed."""
    small = ("--precision", "int8")
    encode(folder, "out.parquet", *small)
    before = ranges(folder / "out.parquet")
    jobs.write_jsonl(folder / "in.jsonl", [*jobs.rows(300)[1:], *BEYOND])
    assert encode(folder, "out.parquet", *small, "--update", "--stop-after", 100).code == 75
    (folder / "out.parquet").unlink()
    assert encode(folder, "out.parquet", *small).code == 0
    np.testing.assert_array_equal(ranges(folder / "out.parquet"), before)
    encode(folder, "plain.parquet")
    assert_one_set_of_ranges(folder / "out.parquet", folder / "plain.parquet")


@pytest.mark.parametrize("damage", [lambda text: text[:40], lambda text: text.replace(b"1", b"2"), lambda _: b""])
def test_damaged_staged_ranges_are_not_used(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    encode(folder, "a.parquet", "--precision", "int8")
    encode(folder, "b.parquet", "--precision", "int8", "--stop-after", 100)
    note = folder / "b.parquet.parts" / calibration.RANGES_FILE
    note.write_bytes(damage(note.read_bytes()))
    assert encode(folder, "b.parquet", "--precision", "int8").code == 0
    assert (folder / "a.parquet").read_bytes() == (folder / "b.parquet").read_bytes()


def test_vectors_of_other_ranges_are_not_reused(folder: Path) -> None:
    """--reuse copies stored numbers or fails, with a hint how to make it possible."""
    encode(folder, "old.parquet", "--precision", "int8")
    jobs.write_jsonl(folder / "in.jsonl", [*jobs.rows(300), *BEYOND])
    reusing = ("--precision", "int8", "--reuse", folder / "old.parquet")
    done = encode(folder, "new.parquet", *reusing)
    assert done.code == 2
    assert f"use --ranges-from {folder / 'old.parquet'}" in in_one_line(done.err)
    assert jobs.left_in(folder) == ["old.parquet"]

    named = ("--ranges-from", folder / "old.parquet")
    done = encode(folder, "new.parquet", *reusing, *named)
    assert done.code == 0, done.err
    assert "300 reused" in done.err
    encode(folder, "fresh.parquet", "--precision", "int8", *named)
    assert (folder / "new.parquet").read_bytes() == (folder / "fresh.parquet").read_bytes()


@pytest.mark.parametrize("kind", ["float16", "int8", "uint8", "binary", "ubinary"])
def test_reused_rows_of_any_precision_are_those_of_a_full_run(folder: Path, kind: str) -> None:
    encode(folder, "old.parquet", "--precision", kind)
    done = encode(folder, "new.parquet", "--precision", kind, "--reuse", folder / "old.parquet")
    assert done.code == 0, done.err
    assert "300 reused" in done.err
    assert (folder / "new.parquet").read_bytes() == (folder / "old.parquet").read_bytes()
    for other in ("float32", "int8" if kind == "uint8" else "uint8"):
        done = encode(folder, "other.parquet", "--precision", other, "--reuse", folder / "old.parquet")
        assert (done.code, f"precision was '{kind}', now '{other}'" in done.err) == (2, True), done.err


def test_stdin_needs_ranges_from_somewhere(folder: Path) -> None:
    source = (folder / "in.jsonl").read_bytes()
    flags = ["--format", "jsonl", "-m", folder / "words.txt", "--precision", "int8"]
    done = jobs.run_apart("encode", "-", folder / "out.parquet", *flags, stdin=source)
    assert done.code == 2
    assert "--ranges-from" in done.err
    encode(folder, "a.parquet", "--precision", "int8")
    done = jobs.run_apart("encode", "-", "-", *flags, "--ranges-from", folder / "a.parquet", stdin=source)
    assert done.code == 0, done.err
    first = json.loads(done.out.splitlines()[0])["embedding"]
    assert first == stored(folder / "a.parquet")[0].tolist()


def test_an_output_without_ranges_is_refused(folder: Path) -> None:
    encode(folder, "plain.parquet")
    done = encode(folder, "out.parquet", "--precision", "int8", "--ranges-from", folder / "plain.parquet")
    assert done.code == 2
    assert "records no ranges" in done.err


def test_ranges_of_another_width_are_refused(folder: Path) -> None:
    small = ("--precision", "int8")
    encode(folder, "short.parquet", *small, "--truncate-dim", 8)
    for flags in ((), ("--workers", 2)):
        done = encode(folder, "out.parquet", *small, "--ranges-from", folder / "short.parquet", *flags)
        assert done.code == 2
        assert f"has ranges for 8 dimensions, the vectors have {jobs.DIM}" in in_one_line(done.err)
        assert jobs.left_in(folder) == ["short.parquet"]


class TruncatingEncoder(FakeEncoder):
    """A model whose own files truncate its vectors."""

    def vector_space(self) -> dict[str, Any]:
        return super().vector_space() | {"truncate_dim": 3}


def test_ranges_are_as_wide_as_the_truncated_vectors(folder: Path) -> None:
    """For workers too, whose job is that of the user."""
    job = Job((str(folder / "in.jsonl"),), str(folder / "out.parquet"), precision="int8", chunk_rows=50)
    this = RunContext(job, readers.plan_inputs(job), None, jobs.Silent(), RunControl(), MetricsCollector())
    (found,) = this.resolve_ranges(TruncatingEncoder(), None)
    assert found is not None
    assert found.shape == (2, 3)


def test_the_sample_does_not_depend_on_chunks_or_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "SAMPLE_ROWS", 20)
    texts = [f"text {i}" for i in range(200)]
    one = calibration.sample_texts([chunk(texts + texts[:50])])
    other = calibration.sample_texts([chunk(texts[i : i + 7][::-1]) for i in reversed(range(0, 200, 7))])
    assert one == other
    assert len(set(one)) == 20
