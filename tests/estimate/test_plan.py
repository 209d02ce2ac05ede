"""`embedcli plan` predicts what encode does, states the error of a sample, and writes nothing."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jobs
from embedcli.core.encoder import TextTokenizer, Tokens
from embedcli.estimate import throughput
from embedcli.estimate.token_counts import DistinctTextCounter, ReservoirSampler, TokenCounts
from embedcli.pipeline.preparation import EncodingSettings

LIMIT = 5


@pytest.fixture(autouse=True)
def short_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the measurement short."""
    monkeypatch.setenv("EMBEDCLI_MEASURE_SECONDS", "0.02")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return jobs.word_model(tmp_path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Rows of 1 to 12 words: some are duplicates, some have unknown words only, two have no text."""
    rows = jobs.rows(300)
    rows[10:20] = [row | {"text": rows[9]["text"]} for row in rows[10:20]]
    rows[40]["text"] = rows[41]["text"] = "unknownword"
    rows[50]["text"] = None
    del rows[51]["text"]
    path = jobs.write_jsonl(tmp_path / "in.jsonl", rows)
    with path.open("a") as out:
        out.write("{not json\n")
    return path


def plan(*arguments: object) -> dict[str, Any]:
    result = jobs.run("plan", *arguments, "--json")
    assert result.code == 0, result.err
    estimate: dict[str, Any] = json.loads(result.out)
    return estimate


class LetterTokenizer(TextTokenizer):
    """One token per letter, at most `limit`."""

    def __init__(self, limit: int = 10**6) -> None:
        self.limit = limit

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        full = np.array([len(text) for text in texts], np.int32)
        offsets = np.concatenate(([0], np.cumsum(np.minimum(full, self.limit))))
        return Tokens(np.zeros(int(offsets[-1]), np.int32), offsets, full)


@pytest.mark.parametrize("overflow", ["truncate", "reject", "split", "pool"])
def test_encode_matches_the_plan(tmp_path: Path, model: Path, source: Path, overflow: str) -> None:
    flags = ["-m", model, "--max-seq-length", LIMIT, "--overflow", overflow, "--chunk-rows", 64]
    estimate = plan(source, *flags)
    report = tmp_path / "report.json"
    result = jobs.run("encode", source, tmp_path / "out.npy", *flags, "--report", report)
    assert result.code == 3, result.err
    report_content = json.loads(report.read_bytes())
    rows = report_content["rows"]
    assert (estimate["rows"], estimate["rejected"]) == (rows["read"], rows["rejects"])
    assert estimate["output_rows"] == len(np.load(tmp_path / "out.npy"))
    assert estimate["tokens"]["total"] == rows["tokens"]
    assert estimate["tokens"]["total"] - estimate["tokens"]["read"] == rows["lost_tokens"]
    assert estimate["tokens"]["sent"] == report_content["counters"]["fed_tokens"] < rows["tokens"]
    assert estimate["truncated_rows"] == rows["truncated"]
    assert estimate["lost_token_share"] == report_content["unread_token_share"]
    assert estimate["tokens"]["exact"]
    assert set(estimate["tokens"]["standard_error"].values()) == {0.0}
    assert (estimate["truncated_rows"] > 0) == (overflow == "truncate")


def test_bad_rows_are_counted_by_reason(tmp_path: Path, model: Path, source: Path) -> None:
    estimate = plan(source, "-m", model, "--max-seq-length", LIMIT, "--overflow", "reject")
    jobs.run("encode", source, tmp_path / "out.parquet", "-m", model)
    lines = Path(f"{tmp_path}/out.parquet.rejects.jsonl").read_text("utf-8").splitlines()
    reasons = [json.loads(line)["reason"].partition(":")[0] for line in lines]
    assert {reason: reasons.count(reason) for reason in reasons} == {
        reason: count for reason, count in estimate["rejects"].items() if reason != "too long"
    }
    words = [len((json.loads(line)["text"] or "").split()) for line in source.read_text().splitlines()[52:300]]
    assert estimate["rejects"]["too long"] >= sum(count > LIMIT for count in words)
    assert estimate["distinct_texts"] == len(
        {json.loads(line).get("text") for line in source.read_text().splitlines()[:-1]} - {None}
    )


def test_nothing_is_written(tmp_path: Path, model: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert jobs.run("plan", source.name, "-m", model).code == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("kind", "precision"), [
    ("parquet", "float32"), ("npy", "float16"), ("jsonl", "float32"), ("arrow", "float32"), ("parquet", "int8"),
    ("jsonl", "ubinary"),
])  # fmt: skip
def test_sizes_match_the_files(tmp_path: Path, model: Path, kind: str, precision: str) -> None:
    source = jobs.write_jsonl(tmp_path / "in.jsonl", jobs.rows(3000))
    estimate = plan(source, "-m", model, "--keep", "n")
    output = tmp_path / "outputs" / f"out.{kind}"
    output.parent.mkdir()
    result = jobs.run("encode", source, output, "-m", model, "--keep", "n", "--precision", precision)
    assert result.code == 0, result.err
    actual = sum(path.stat().st_size for path in output.parent.iterdir())
    assert estimate["output_bytes"][precision][kind] == pytest.approx(actual, rel=0.15)


def test_sizes_are_measured_on_a_chunk_that_has_rows(tmp_path: Path, model: Path) -> None:
    source = jobs.write_jsonl(tmp_path / "in.jsonl", jobs.rows(3000))
    empty = jobs.write_jsonl(tmp_path / "empty.jsonl", [])
    alone, after = (plan(*inputs, "-m", model, "--keep", "n") for inputs in ([source], [empty, source]))
    for kind, bytes_alone in alone["output_bytes"]["float32"].items():
        assert after["output_bytes"]["float32"][kind] >= bytes_alone  # two inputs: there is a column `source`


# Samples


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 12))
def test_a_reservoir_fills_up_to_its_size(counts: list[int], size: int) -> None:
    reservoir, kept, start = ReservoirSampler(size), {}, 0
    for count in counts:
        for row, slot in reservoir.choose_slots(count):
            kept[slot] = start + row
        start += count
    assert len(kept) == len(set(kept.values())) == min(size, start)
    assert set(kept) == set(range(len(kept)))


def test_every_row_has_the_same_chance_to_be_sampled() -> None:
    chosen = np.zeros(40)
    for seed in range(2000):
        kept = {slot: row for row, slot in ReservoirSampler(10, seed).choose_slots(40)}
        chosen[list(kept.values())] += 1
    # 2,000 draws with probability 1/4: a standard deviation of 19.4.
    assert np.abs(chosen - 500).max() < 5 * 19.4


def test_the_standard_error_matches_the_actual_errors_of_samples() -> None:
    generator = random.Random(3)
    texts = ["x" * min(400, int(generator.lognormvariate(3, 1)) + 1) for _ in range(600)]
    true = sum(map(len, texts))
    ratios = []
    for _ in range(300):
        generator.shuffle(texts)
        counts = TokenCounts(sample_rows=300)
        for start in range(0, len(texts), 150):
            counts.add(texts[start : start + 150], LetterTokenizer(), EncodingSettings())
        ratios.append((counts.totals()["tokens"] - true) / counts.standard_errors()["tokens"])
    assert abs(np.mean(ratios)) < 0.4
    assert 0.8 < np.std(ratios) < 1.3


def test_a_sample_as_large_as_the_input_is_exact(source: Path, model: Path) -> None:
    flags = [source, "-m", model, "--max-seq-length", LIMIT]
    full, sampled = plan(*flags), plan(*flags, "--sample", 1000)
    assert sampled["tokens"] == full["tokens"]
    assert sampled["rejects"] == full["rejects"]


def test_a_sample_is_reported_with_its_standard_error(source: Path, model: Path) -> None:
    estimate = plan(source, "-m", model, "--sample", 50, "--price-per-mtok", 10)
    assert (estimate["rows"], estimate["tokens"]["sampled_rows"], estimate["tokens"]["exact"]) == (301, 50, False)
    assert estimate["cost"]["standard_error"] == pytest.approx(
        estimate["tokens"]["standard_error"]["sent"] * 1e-5, rel=0.01
    )
    shown = jobs.run("plan", source, "-m", model, "--sample", 50)
    assert "standard error" in shown.out
    assert "from 50 rows" in shown.out
    assert jobs.run("plan", source, "-m", model, "--sample", 1).code == 2


def test_truncated_tokens_of_duplicates_are_sent_once() -> None:
    counts = TokenCounts()
    counts.add(["aaaaaa", "bb", "aaaaaa", ""], LetterTokenizer(4), EncodingSettings())
    assert counts.totals() == {"tokens": 14, "read": 10, "sent": 6, "cut": 2, "outputs": 3, "empty": 1, "too_long": 0}


@given(st.lists(st.lists(st.text(max_size=3), max_size=10), max_size=5))
def test_distinct_texts(chunks: list[list[str]]) -> None:
    distinct = DistinctTextCounter()
    for texts in chunks:
        distinct.add(texts)
    assert distinct.count() == len({text for texts in chunks for text in texts})


# Hosted models, time, money


def test_a_hosted_model_gets_no_request(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was tried"))
    estimate = plan(source, "-m", "openai:text-embedding-3-large", "--price-per-mtok", 0.13, "--tpm", 1000)
    tokens = estimate["tokens"]
    assert (tokens["exact"], tokens["counting"]) == (False, "estimate")
    assert estimate["cost"]["amount"] == pytest.approx(tokens["sent"] * 0.13e-6)
    assert estimate["time"] == {"seconds": None, "at_least_seconds": pytest.approx(tokens["sent"] * 0.06, abs=0.1)}
    assert estimate["dim"] == 3072
    assert estimate["output_bytes"]["binary"]["npy"] < estimate["output_bytes"]["float16"]["npy"]
    assert plan(source, "-m", "openai:other")["output_bytes"] is None
    assert "--truncate-dim" in jobs.run("plan", source, "-m", "openai:other").out


def test_time_is_measured_on_rows_of_the_input(source: Path, model: Path) -> None:
    estimate = plan(source, "-m", model)["time"]
    assert estimate["measured_rows"] > 0
    assert estimate["tokens_per_second"] > 0
    assert estimate["seconds"] >= estimate["encode_seconds"]
    unmeasured = plan(source, "-m", model, "--measure-seconds", 0)["time"]
    assert (unmeasured["seconds"], unmeasured["measured_rows"]) == (None, 0)


def test_time_is_proportional_to_padded_tokens() -> None:
    measured = throughput.MeasuredThroughput(
        seconds=2.0, rows=10, tokens=80, padded_tokens=100, padded_tokens_per_token=1.25
    )
    assert measured.seconds_for(8000) == pytest.approx(8000 * 1.25 / 100 * 2)
    assert throughput.MeasuredThroughput(0.0, 0, 0, 0, 1.0).seconds_for(8000) is None


def test_padding_is_computed_for_whole_sorted_chunks() -> None:
    encoder: Any = LetterTokenizer()
    encoder.batch_tokens, encoder.pad_to_multiple_of, encoder.equal_lengths = 20, 4, False
    texts = ["a" * 9, "b" * 3, "c" * 10, "d" * 4, ""]
    # 10 and 9 letters are padded to 12, one row per batch; 4 and 3 share a batch padded to 4.
    assert throughput.padded_tokens_per_token(texts, encoder, EncodingSettings(), 10) == pytest.approx(
        (12 + 12 + 8) / 26
    )


def test_an_input_without_rows(tmp_path: Path, model: Path) -> None:
    source = jobs.write_jsonl(tmp_path / "in.jsonl", [])
    estimate = plan(source, "-m", model, "--text-column", "text", "--price-per-mtok", 1)
    assert (estimate["rows"], estimate["tokens"]["total"], estimate["cost"]["amount"]) == (0, 0, 0)
    assert jobs.run("plan", source, "-m", model, "--text-column", "text").code == 0


def test_jobs_that_encode_rejects_are_rejected(source: Path, model: Path) -> None:
    for flags in (
        ["--truncate-dim", 99],
        ["--text-column", "nowhere"],
        ["--id-column", "nowhere"],
        ["-m", "openai:other", "--overflow", "split"],
    ):
        result = jobs.run("plan", source, "-m", model, *flags)
        assert (result.code, result.out) == (2, "")
        assert "error: " in result.err
    result = jobs.run("plan", source, "-m", model, "--max-seq-length", LIMIT, "--overflow", "error")
    assert "--overflow error will stop at the first" in result.err
