"""`embedcli plan` foretells what encode then does, says how sure it is of a sample, and leaves nothing behind."""

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
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure for a moment only."""
    monkeypatch.setenv("EMBEDCLI_MEASURE_SECONDS", "0.02")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return jobs.word_model(tmp_path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Rows of 1 to 12 words, some twice in their chunk, some of unknown words, two without a text."""
    made = jobs.rows(300)
    made[10:20] = [row | {"text": made[9]["text"]} for row in made[10:20]]
    made[40]["text"] = made[41]["text"] = "unknownword"
    made[50]["text"] = None
    del made[51]["text"]
    path = jobs.write_jsonl(tmp_path / "in.jsonl", made)
    with path.open("a") as out:
        out.write("{not json\n")
    return path


def planned(*arguments: object) -> dict[str, Any]:
    done = jobs.run("plan", *arguments, "--json")
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


class Letters(TextTokenizer):
    """An encoder's tokenizer: one token per letter, at most `limit` of them."""

    def __init__(self, limit: int = 10**6) -> None:
        self.limit = limit

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        full = np.array([len(text) for text in texts], np.int32)
        offsets = np.concatenate(([0], np.cumsum(np.minimum(full, self.limit))))
        return Tokens(np.zeros(int(offsets[-1]), np.int32), offsets, full)


@pytest.mark.parametrize("overflow", ["truncate", "reject", "split", "pool"])
def test_encode_does_what_was_foretold(tmp_path: Path, model: Path, source: Path, overflow: str) -> None:
    flags = ["-m", model, "--max-seq-length", LIMIT, "--overflow", overflow, "--chunk-rows", 64]
    found = planned(source, *flags)
    report = tmp_path / "report.json"
    done = jobs.run("encode", source, tmp_path / "out.npy", *flags, "--report", report)
    assert done.code == 3, done.err
    told = json.loads(report.read_bytes())
    rows = told["rows"]
    assert (found["rows"], found["rejected"]) == (rows["read"], rows["rejects"])
    assert found["output_rows"] == len(np.load(tmp_path / "out.npy"))
    assert found["tokens"]["total"] == rows["tokens"]
    assert found["tokens"]["total"] - found["tokens"]["read"] == rows["lost_tokens"]
    assert found["tokens"]["sent"] == told["counters"]["fed_tokens"] < rows["tokens"]
    assert found["truncated_rows"] == rows["truncated"]
    assert found["lost_token_share"] == told["unread_token_share"]
    assert found["tokens"]["exact"]
    assert set(found["tokens"]["standard_error"].values()) == {0.0}
    assert (found["truncated_rows"] > 0) == (overflow == "truncate")


def test_bad_rows_are_counted_by_reason(tmp_path: Path, model: Path, source: Path) -> None:
    found = planned(source, "-m", model, "--max-seq-length", LIMIT, "--overflow", "reject")
    jobs.run("encode", source, tmp_path / "out.parquet", "-m", model)
    lines = Path(f"{tmp_path}/out.parquet.rejects.jsonl").read_text("utf-8").splitlines()
    reasons = [json.loads(line)["reason"].partition(":")[0] for line in lines]
    assert {reason: reasons.count(reason) for reason in reasons} == {
        reason: count for reason, count in found["rejects"].items() if reason != "too long"
    }
    words = [len((json.loads(line)["text"] or "").split()) for line in source.read_text().splitlines()[52:300]]
    assert found["rejects"]["too long"] >= sum(count > LIMIT for count in words)
    assert found["distinct_texts"] == len(
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
def test_sizes_are_those_of_the_files(tmp_path: Path, model: Path, kind: str, precision: str) -> None:
    source = jobs.write_jsonl(tmp_path / "in.jsonl", jobs.rows(3000))
    found = planned(source, "-m", model, "--keep", "n")
    output = tmp_path / "made" / f"out.{kind}"
    output.parent.mkdir()
    done = jobs.run("encode", source, output, "-m", model, "--keep", "n", "--precision", precision)
    assert done.code == 0, done.err
    real = sum(path.stat().st_size for path in output.parent.iterdir())
    assert found["output_bytes"][precision][kind] == pytest.approx(real, rel=0.15)


def test_sizes_are_told_by_rows_that_there_are(tmp_path: Path, model: Path) -> None:
    source = jobs.write_jsonl(tmp_path / "in.jsonl", jobs.rows(3000))
    empty = jobs.write_jsonl(tmp_path / "empty.jsonl", [])
    alone, after = (planned(*inputs, "-m", model, "--keep", "n") for inputs in ([source], [empty, source]))
    for kind, bytes_alone in alone["output_bytes"]["float32"].items():
        assert after["output_bytes"]["float32"][kind] >= bytes_alone  # two inputs: there is a column `source`


# Samples


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 12))
def test_a_reservoir_keeps_as_many_rows_as_it_may(counts: list[int], size: int) -> None:
    reservoir, kept, start = ReservoirSampler(size), {}, 0
    for count in counts:
        for row, slot in reservoir.choose_slots(count):
            kept[slot] = start + row
        start += count
    assert len(kept) == len(set(kept.values())) == min(size, start)
    assert set(kept) == set(range(len(kept)))


def test_every_row_is_as_likely_in_a_sample() -> None:
    chosen = np.zeros(40)
    for seed in range(2000):
        kept = {slot: row for row, slot in ReservoirSampler(10, seed).choose_slots(40)}
        chosen[list(kept.values())] += 1
    # 2,000 draws with probability 1/4: a standard deviation of 19.4.
    assert np.abs(chosen - 500).max() < 5 * 19.4


def test_a_samples_standard_error_is_what_it_errs_by() -> None:
    chance = random.Random(3)
    texts = ["x" * min(400, int(chance.lognormvariate(3, 1)) + 1) for _ in range(600)]
    true = sum(map(len, texts))
    ratios = []
    for _ in range(300):
        chance.shuffle(texts)
        tally = TokenCounts(sample_rows=300)
        for start in range(0, len(texts), 150):
            tally.add(texts[start : start + 150], Letters(), EncodingSettings())
        ratios.append((tally.totals()["tokens"] - true) / tally.standard_errors()["tokens"])
    assert abs(np.mean(ratios)) < 0.4
    assert 0.8 < np.std(ratios) < 1.3


def test_a_sample_as_large_as_the_input_is_exact(source: Path, model: Path) -> None:
    flags = [source, "-m", model, "--max-seq-length", LIMIT]
    whole, sampled = planned(*flags), planned(*flags, "--sample", 1000)
    assert sampled["tokens"] == whole["tokens"]
    assert sampled["rejects"] == whole["rejects"]


def test_a_sample_says_that_it_is_one(source: Path, model: Path) -> None:
    found = planned(source, "-m", model, "--sample", 50, "--price-per-mtok", 10)
    assert (found["rows"], found["tokens"]["sampled_rows"], found["tokens"]["exact"]) == (301, 50, False)
    assert found["cost"]["standard_error"] == pytest.approx(found["tokens"]["standard_error"]["sent"] * 1e-5, rel=0.01)
    shown = jobs.run("plan", source, "-m", model, "--sample", 50)
    assert "standard error" in shown.out
    assert "from 50 rows" in shown.out
    assert jobs.run("plan", source, "-m", model, "--sample", 1).code == 2


def test_cut_tokens_of_duplicates_are_sent_once() -> None:
    tally = TokenCounts()
    tally.add(["aaaaaa", "bb", "aaaaaa", ""], Letters(4), EncodingSettings())
    made = tally.totals()
    assert made == {"tokens": 14, "read": 10, "sent": 6, "cut": 2, "outputs": 3, "empty": 1, "too_long": 0}


@given(st.lists(st.lists(st.text(max_size=3), max_size=10), max_size=5))
def test_distinct_texts(chunks: list[list[str]]) -> None:
    distinct = DistinctTextCounter()
    for texts in chunks:
        distinct.add(texts)
    assert distinct.count() == len({text for texts in chunks for text in texts})


# Hosted models, time, money


def test_a_hosted_model_is_asked_nothing(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was tried"))
    found = planned(source, "-m", "openai:text-embedding-3-large", "--price-per-mtok", 0.13, "--tpm", 1000)
    tokens = found["tokens"]
    assert (tokens["exact"], tokens["counting"]) == (False, "estimate")
    assert found["cost"]["amount"] == pytest.approx(tokens["sent"] * 0.13e-6)
    assert found["time"] == {"seconds": None, "at_least_seconds": pytest.approx(tokens["sent"] * 0.06, abs=0.1)}
    assert found["dim"] == 3072
    assert found["output_bytes"]["binary"]["npy"] < found["output_bytes"]["float16"]["npy"]
    assert planned(source, "-m", "openai:other")["output_bytes"] is None
    assert "--truncate-dim" in jobs.run("plan", source, "-m", "openai:other").out


def test_time_comes_from_rows_that_ran(source: Path, model: Path) -> None:
    made = planned(source, "-m", model)["time"]
    assert made["measured_rows"] > 0
    assert made["tokens_per_second"] > 0
    assert made["seconds"] >= made["encode_seconds"]
    unmeasured = planned(source, "-m", model, "--measure-seconds", 0)["time"]
    assert (unmeasured["seconds"], unmeasured["measured_rows"]) == (None, 0)


def test_time_grows_with_what_is_computed() -> None:
    measured = throughput.MeasuredThroughput(
        seconds=2.0, rows=10, tokens=80, padded_tokens=100, padded_tokens_per_token=1.25
    )
    assert measured.seconds_for(8000) == pytest.approx(8000 * 1.25 / 100 * 2)
    assert throughput.MeasuredThroughput(0.0, 0, 0, 0, 1.0).seconds_for(8000) is None


def test_padding_is_that_of_sorted_whole_chunks() -> None:
    encoder: Any = Letters()
    encoder.batch_tokens, encoder.pad_to_multiple_of = 20, 4
    texts = ["a" * 9, "b" * 3, "c" * 10, "d" * 4, ""]
    # 10 and 9 letters are 12 wide, one a batch; 4 and 3 share a batch 4 wide.
    assert throughput.padded_tokens_per_token(texts, encoder, EncodingSettings(), 10) == pytest.approx(
        (12 + 12 + 8) / 26
    )


def test_an_input_without_rows(tmp_path: Path, model: Path) -> None:
    source = jobs.write_jsonl(tmp_path / "in.jsonl", [])
    found = planned(source, "-m", model, "--text-column", "text", "--price-per-mtok", 1)
    assert (found["rows"], found["tokens"]["total"], found["cost"]["amount"]) == (0, 0, 0)
    assert jobs.run("plan", source, "-m", model, "--text-column", "text").code == 0


def test_what_encode_would_refuse_is_refused(source: Path, model: Path) -> None:
    for flags in (
        ["--truncate-dim", 99],
        ["--text-column", "nowhere"],
        ["--id-column", "nowhere"],
        ["-m", "openai:other", "--overflow", "split"],
    ):
        done = jobs.run("plan", source, "-m", model, *flags)
        assert (done.code, done.out) == (2, "")
        assert "error: " in done.err
    done = jobs.run("plan", source, "-m", model, "--max-seq-length", LIMIT, "--overflow", "error")
    assert "--overflow error will stop at the first" in done.err
