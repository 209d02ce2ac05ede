"""Texts that a server cuts without saying so, as Ollama does at 2,048 tokens: found by its counts, and no others."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import fake_server as fake
import jobs
from fake_server import FakeServer, expected

DIM = 8
LIMIT = 256


class CuttingServer(FakeServer):
    """Reads and counts at most `limit` tokens of each text: a word is a token, and `special` are added to each text."""

    limit: int = LIMIT
    special: int = 2

    def answer(self, seen: fake.Seen) -> fake.Reply:
        reply = super().answer(seen)
        if reply.status == 200:
            words = [text.split() for text in seen.texts]
            heads = [" ".join(text[: self.limit - self.special]) for text in words]
            dim = reply.body["dim"]
            for item, vector in zip(reply.body["data"], expected(heads, dim).tolist(), strict=True):
                item["embedding"] = vector
            total = sum(min(len(text) + self.special, self.limit) for text in words)
            reply.body["usage"] = {"prompt_tokens": total, "total_tokens": total}
        return reply


@pytest.fixture
def server() -> Iterator[CuttingServer]:
    cutting_server = CuttingServer(dim=DIM)
    with cutting_server:
        yield cutting_server


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """One token for each word, between two special tokens."""
    words = {"[CLS]": 0, "[SEP]": 1, "[UNK]": 2}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 0), ("[SEP]", 1)])
    (tmp_path / "tokenizer").mkdir()
    made.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    return tmp_path / "tokenizer"


def texts_of(lengths: list[int]) -> list[str]:
    rng = random.Random(0)
    vocabulary = ["river", "of", "transport", "a", "understanding", "7", "green", "to", "Berlin", "quickly"]
    return [" ".join([f"row{row}", *rng.choices(vocabulary, k=length - 1)]) for row, length in enumerate(lengths)]


def encode(server: FakeServer, folder: Path, lengths: list[int], *flags: object) -> Any:
    rows = [{"id": row, "text": text} for row, text in enumerate(texts_of(lengths))]
    source = jobs.write_jsonl(folder / "in.jsonl", rows)
    target = ("-m", f"openai:{fake.MODEL}", "--base-url", server.base_url)
    return jobs.run("encode", source, folder / "out.parquet", *target, *flags)


def flagged(folder: Path) -> list[bool]:
    return list(pq.read_table(folder / "out.parquet").column("truncated").to_pylist())


def lengths_around_the_limit(rows: int = 1000) -> list[int]:
    rng = random.Random(1)
    lengths = [rng.choice([rng.randint(1, 100), rng.randint(100, 400), rng.randint(200, 310)]) for _ in range(rows)]
    return [*lengths, *range(LIMIT - 10, LIMIT + 10)]


@pytest.mark.parametrize("special", [2, 0])
def test_with_a_tokenizer_every_cut_text_is_flagged(
    server: CuttingServer, tokenizer: Path, tmp_path: Path, special: int
) -> None:
    server.special = special
    lengths = lengths_around_the_limit()
    done = encode(server, tmp_path, lengths, "--tokenizer", tokenizer)
    assert done.code == 0, done.err
    assert flagged(tmp_path) == [length + special > LIMIT for length in lengths]
    assert f"it counted {LIMIT} tokens of one with about" in done.err
    sent = sum(len(seen.texts) for seen in server.seen)
    assert sent < len(lengths) + 60


def test_without_a_tokenizer_most_are_and_no_other(server: CuttingServer, tmp_path: Path) -> None:
    lengths = lengths_around_the_limit()
    assert encode(server, tmp_path, lengths).code == 0
    found = flagged(tmp_path)
    is_cut = [length + server.special > LIMIT for length in lengths]
    assert not any(flag and not cut for flag, cut in zip(found, is_cut, strict=True))
    missed = sum(cut and not flag for flag, cut in zip(found, is_cut, strict=True))
    # A text that is 3 % too long differs from its two halves by no more than rounding.
    assert missed <= sum(LIMIT < length + server.special <= LIMIT * 1.06 for length in lengths)


@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_a_server_that_cuts_nothing_gives_no_false_alarm(
    server: CuttingServer, tokenizer: Path, tmp_path: Path, with_tokenizer: bool
) -> None:
    server.limit = 100_000
    lengths = [*lengths_around_the_limit(), 2000, 5000]
    done = encode(server, tmp_path, lengths, *(("--tokenizer", tokenizer) if with_tokenizer else ()))
    assert done.code == 0
    assert not any(flagged(tmp_path))
    assert "cuts long texts" not in done.err


def test_texts_of_few_tokens_for_their_length_give_no_false_alarm(server: CuttingServer, tmp_path: Path) -> None:
    """The estimate is many times too high for these; the server's own counts decide."""
    server.limit = 100_000
    rows = [{"id": row, "text": f"{row} {'=' * 3000} {'9' * 2000}"} for row in range(50)]
    source = jobs.write_jsonl(tmp_path / "in.jsonl", rows)
    target = ("-m", f"openai:{fake.MODEL}", "--base-url", server.base_url)
    done = jobs.run("encode", source, tmp_path / "out.parquet", *target)
    assert done.code == 0
    assert not any(flagged(tmp_path))


def test_another_tokenizer_than_the_servers_gives_no_false_alarm(
    server: CuttingServer, tokenizer: Path, tmp_path: Path
) -> None:
    """Its counts are those of pieces of words: two or more for each of the server's."""
    file = tokenizer / "tokenizer.json"
    made = Tokenizer.from_file(str(file))
    made.pre_tokenizer = pre_tokenizers.Split("o", "isolated")
    made.save(str(file))
    server.limit = 100_000
    assert encode(server, tmp_path, [*lengths_around_the_limit(300), 3000], "--tokenizer", tokenizer).code == 0
    assert not any(flagged(tmp_path))


def test_cut_texts_are_rejected_or_stop_the_run(server: CuttingServer, tokenizer: Path, tmp_path: Path) -> None:
    lengths = [10, 400, 20, 300]
    done = encode(server, tmp_path, lengths, "--tokenizer", tokenizer, "--overflow", "reject")
    assert done.code == 3
    rejects = [json.loads(line) for line in Path(f"{tmp_path / 'out.parquet'}.rejects.jsonl").read_text().splitlines()]
    assert [reject["line"] for reject in rejects] == [2, 4]
    assert rejects[0]["reason"] == f"too long: 402 tokens, and the encoder reads {LIMIT}"
    stopped = encode(server, tmp_path, lengths, "--tokenizer", tokenizer, "--overflow", "error", "--overwrite")
    assert stopped.code == 1
    assert "in.jsonl:2" in stopped.err or "in.jsonl:4" in stopped.err


def test_windows_within_the_limit_are_whole(server: CuttingServer, tokenizer: Path, tmp_path: Path) -> None:
    flags = ("--tokenizer", tokenizer, "--max-seq-length", LIMIT, "--overflow", "pool")
    assert encode(server, tmp_path, [10, 900, 20], *flags).code == 0
    assert not any(flagged(tmp_path))
    assert max(len(text.split()) for text in server.sent) <= LIMIT - 2


def test_a_failing_text_beyond_the_limit_is_rejected_and_not_counted_as_cut(
    server: CuttingServer, tokenizer: Path, tmp_path: Path
) -> None:
    """As Ollama does it for a text whose vector is NaN: 500 for the whole request, among texts that it cuts."""
    lengths = [300, 20, 400, 30, 280, 299, 50, 310]
    server.usual = fake.fails_for(lambda text: text.startswith("row5 "), "unsupported value: NaN")
    done = encode(server, tmp_path, lengths, "--tokenizer", tokenizer, "--report", tmp_path / "report.json")
    assert done.code == 3, done.err
    rejects = (tmp_path / "out.parquet.rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in rejects] == [5]
    assert "NaN" in rejects[0]
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column("id").to_pylist() == [0, 1, 2, 3, 4, 6, 7]
    assert flagged(tmp_path) == [True, False, True, False, True, False, True]
    assert json.loads((tmp_path / "report.json").read_text())["truncated_rows"] == 4


def test_a_server_that_reports_no_tokens_is_left_alone(server: CuttingServer, tmp_path: Path) -> None:
    server.usual = fake.without_usage()
    assert encode(server, tmp_path, [10, 900, 20, 800]).code == 0
    assert not any(flagged(tmp_path))
    assert len(np.unique([len(seen.texts) for seen in server.seen])) <= 4
