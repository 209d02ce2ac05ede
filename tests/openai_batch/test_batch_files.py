"""OpenAI Batch files: what is exported, answered by anyone in any order and imported equals asking directly."""

from __future__ import annotations

import base64
import gzip
import json
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fake_server as fake
import web_server
from batch_lines import DIM, answer, expired, read, refusal, write
from embedcli import openai_batch, readers
from embedcli.core.errors import InputError, OutputError, UsageError
from embedcli.core.job import CSV_DEFAULTS, Job
from embedcli.core.row_vectors import as_dense
from embedcli.core.types import EncodedChunk
from embedcli.encoders.hosted import identity
from embedcli.openai_batch.results import BatchResults, parse_result_line
from embedcli.pipeline import engine, metrics
from embedcli.pipeline.control import RunControl
from embedcli.pipeline.preparation import EncodingSettings
from fake_server import expected

TEXTS = [f"text number {row}" for row in range(40)] + ["日本語", 'a "quoted" text', "text number 3", "line\nbreak"]

Made = tuple[EncodedChunk, ...]


def write_rows(path: Path, texts: list[str]) -> Path:
    lines = [json.dumps({"id": f"id{row}", "text": text}) for row, text in enumerate(texts)]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def job_for(path: Path, **flags: Any) -> Job:
    return Job((str(path),), "out.parquet", **{"model": "openai:" + fake.MODEL, "chunk_rows": 16, **flags})


def quiet(line: str) -> None:
    pass


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "in.jsonl", TEXTS)


def requests_of(job: Job, folder: Path, **options: Any) -> list[dict[str, Any]]:
    made = openai_batch.export_requests(job, str(folder / "requests.jsonl"), quiet, **options)
    return [line for path in made.files for line in read(path)]


def run(job: Job, paths: list[str], allow_missing: bool = False) -> Made:
    """The import as the runner does it: the engine over the job's rows."""
    encoder = openai_batch.load_batch_encoder(paths, job, quiet, allow_missing=allow_missing)
    plan = readers.plan_inputs(job)
    chunks = readers.read_chunks(job, plan, plan.splits)
    chosen = EncodingSettings(prompt=encoder.vector_space()["prompt"], truncate_dim=job.truncate_dim)
    try:
        return tuple(engine.encode_chunks(chunks, encoder, chosen, metrics.MetricsCollector(), RunControl()))
    finally:
        encoder.close()


def vectors_by_id(made: Made) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for encoded in made:
        ids = encoded.chunk.ids.take(pa.array(encoded.rows)).to_pylist()
        found |= dict(zip(ids, as_dense(encoded.vectors), strict=True))
    return found


def assert_right(made: Made, texts: list[str], dim: int = DIM, without: tuple[int, ...] = ()) -> None:
    found = vectors_by_id(made)
    assert list(found) == [f"id{row}" for row in range(len(texts)) if row not in without]
    for row, text in enumerate(texts):
        if row not in without:
            assert np.allclose(found[f"id{row}"], expected([text], dim)[0], atol=1e-7)


# Export


def test_a_request_line_is_what_the_batch_api_takes(rows: Path, tmp_path: Path) -> None:
    [first, *_] = requests_of(job_for(rows), tmp_path)
    assert {key: first[key] for key in ("method", "url", "body")} == {
        "method": "POST",
        "url": "/v1/embeddings",
        "body": {"model": fake.MODEL, "input": "text number 0"},
    }
    assert first["custom_id"].startswith("0-0-0-")
    assert len(first["custom_id"]) <= 64


def test_every_text_is_requested_once(rows: Path, tmp_path: Path) -> None:
    made = openai_batch.export_requests(job_for(rows), str(tmp_path / "requests.jsonl"), quiet)
    lines = read(made.files[0])
    assert sorted(line["body"]["input"] for line in lines) == sorted(set(TEXTS))
    assert len({line["custom_id"] for line in lines}) == len(lines)
    assert (made.rows, made.requests, made.duplicate_rows, made.empty_rows, made.answered_rows) == (44, 43, 1, 0, 0)
    assert made.tokens > 43
    assert made.counting_method == "estimate"


def test_prompt_and_dimensions_are_in_the_requests(rows: Path, tmp_path: Path) -> None:
    [first, *_] = requests_of(job_for(rows, prompt="query: ", truncate_dim=3), tmp_path)
    assert first["body"] == {"model": fake.MODEL, "input": "query: text number 0", "dimensions": 3}


@settings(max_examples=20)
@given(max_requests=st.integers(5, 60), max_bytes=st.integers(1500, 20_000))
def test_no_file_is_larger_than_allowed(
    tmp_path_factory: pytest.TempPathFactory, max_requests: int, max_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("split")
    job = job_for(write_rows(folder / "in.jsonl", TEXTS))
    output = str(folder / "requests.jsonl")
    made = openai_batch.export_requests(job, output, quiet, max_requests=max_requests, max_bytes=max_bytes)
    contents = [Path(path).read_bytes() for path in made.files]
    assert all(0 < len(content) <= max_bytes and content.count(b"\n") <= max_requests for content in contents)
    assert {json.loads(line)["body"]["input"] for content in contents for line in content.splitlines()} == set(TEXTS)
    assert made.requests + made.duplicate_rows == len(TEXTS)
    assert made.files[0] == output
    assert list(made.files[1:]) == [f"{output[:-6]}-{number:05d}.jsonl" for number in range(2, len(contents) + 1)]


def test_the_limits_are_openais() -> None:
    assert (openai_batch.MAX_REQUESTS, openai_batch.MAX_FILE_BYTES) == (50_000, 200_000_000)


def test_an_export_is_whole_or_absent(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Iterator[Any]:
        chunks = real(*args)
        yield next(chunks)
        raise InputError("the disk went away")

    real = readers.read_chunks
    monkeypatch.setattr(readers, "read_chunks", broken)
    folder = tmp_path / "made"
    folder.mkdir()
    with pytest.raises(InputError):
        openai_batch.export_requests(job_for(rows), str(folder / "requests.jsonl"), quiet, max_requests=5)
    assert list(folder.iterdir()) == []


def test_an_older_export_is_replaced_only_with_overwrite(rows: Path, tmp_path: Path) -> None:
    output = str(tmp_path / "requests.jsonl")
    openai_batch.export_requests(job_for(rows), output, quiet, max_requests=10)
    bystander = tmp_path / "requests-old.jsonl"
    bystander.write_text("mine")
    with pytest.raises(OutputError, match="is there already"):
        openai_batch.export_requests(job_for(rows), output, quiet)
    openai_batch.export_requests(job_for(rows, overwrite=True), output, quiet, max_requests=30)
    assert sorted(path.name for path in tmp_path.glob("requests*.jsonl")) == [
        "requests-00002.jsonl", "requests-old.jsonl", "requests.jsonl",
    ]  # fmt: skip


def test_an_export_replaces_and_removes_only_request_files(rows: Path, tmp_path: Path) -> None:
    folder = tmp_path / "dumps"
    folder.mkdir()
    for number in (1, 2):
        (folder / f"dump-{number:05d}.jsonl").write_bytes(rows.read_bytes())
    job = replace(job_for(rows), inputs=(str(folder),), overwrite=True)
    with pytest.raises(OutputError, match=r"dump-00002\.jsonl: is there already, and holds no requests"):
        openai_batch.export_requests(job, str(folder / "dump.jsonl"), quiet, max_requests=2)
    openai_batch.export_requests(job, str(folder / "dump.jsonl"), quiet)
    assert [path.read_bytes() == rows.read_bytes() for path in sorted(folder.glob("dump-*"))] == [True, True]
    results = str(tmp_path / "results.jsonl")
    for output in (str(folder / "dump.jsonl"), str(folder / "dump-00001.jsonl"), results):
        with pytest.raises(UsageError, match="is read, and would be replaced"):
            openai_batch.export_requests(job, output, quiet, results=[results])


def test_an_export_is_not_removed_as_its_own_forerunner(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    for _ in range(2):
        made = openai_batch.export_requests(job_for(rows, overwrite=True), "../requests.jsonl", quiet)
        assert [Path(path).is_file() for path in made.files] == [True]


@pytest.mark.parametrize("flags", [{"model": "all-MiniLM-L6-v2"}, {"overflow": "split"}, {"prompt_name": "query"}])
def test_flags_that_do_not_fit(rows: Path, tmp_path: Path, flags: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        openai_batch.export_requests(job_for(rows, **flags), str(tmp_path / "requests.jsonl"), quiet)


# Import


@pytest.mark.parametrize("chunk_rows", [1, 7, 16, 1000])
def test_shuffled_results_in_several_files_join_exactly(rows: Path, tmp_path: Path, chunk_rows: int) -> None:
    lines = [answer(request) for request in requests_of(job_for(rows), tmp_path)]
    random.Random(0).shuffle(lines)
    paths = [write(tmp_path / f"results{part}.jsonl", lines[part::3]) for part in range(3)]
    made = run(job_for(rows, chunk_rows=chunk_rows), paths)
    assert_right(made, TEXTS)
    assert all(not encoded.is_truncated.any() for encoded in made)
    assert made[0].n_tokens[0] == fake.tokens_of(TEXTS[0])


def test_compressed_and_base64_results(rows: Path, tmp_path: Path) -> None:
    lines = [answer(request) for request in requests_of(job_for(rows), tmp_path)]
    for line in lines:
        [item] = line["response"]["body"]["data"]
        item["embedding"] = base64.b64encode(np.array(item["embedding"], "<f4").tobytes()).decode()
    path = tmp_path / "results.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    assert_right(run(job_for(rows), [str(path)]), TEXTS)


def test_refused_texts_become_rejects(rows: Path, tmp_path: Path) -> None:
    requests = requests_of(job_for(rows), tmp_path)
    bad = [row for row, request in enumerate(requests) if request["body"]["input"] in (TEXTS[3], TEXTS[40])]
    results = write(tmp_path / "results.jsonl", [answer(r) for i, r in enumerate(requests) if i not in bad])
    errors = write(tmp_path / "errors.jsonl", [refusal(requests[i]) for i in bad])
    made = run(job_for(rows), [results, errors])
    assert_right(made, TEXTS, without=(3, 40, 42))
    rejects = [reject for encoded in made for reject in encoded.rejects]
    assert [reject.line for reject in rejects] == [4, 41, 43]
    assert {reject.reason for reject in rejects} == {"the server refused the text: 400: too long"}


@pytest.mark.parametrize(
    "fail", [expired, lambda request: refusal(request, 429), lambda request: refusal(request, 500)]
)
def test_what_failed_for_now_is_missing_and_can_be_exported_again(
    rows: Path, tmp_path: Path, fail: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    requests = requests_of(job_for(rows), tmp_path)
    results = write(tmp_path / "results.jsonl", [fail(r) if i % 4 == 0 else answer(r) for i, r in enumerate(requests)])
    with pytest.raises(InputError, match="11 of 44 rows have no answer") as caught:
        openai_batch.load_batch_encoder([results], job_for(rows), quiet)
    assert "export them" in caught.value.hint

    again = tmp_path / "again"
    again.mkdir()
    more = requests_of(job_for(rows), again, results=[results])
    assert [line["body"]["input"] for line in more] == [line["body"]["input"] for line in requests[::4]]
    second = write(tmp_path / "second.jsonl", [answer(request) for request in more])
    assert_right(run(job_for(rows), [results, second]), TEXTS)


def test_rows_without_an_answer_are_rejected_when_allowed(rows: Path, tmp_path: Path) -> None:
    requests = requests_of(job_for(rows), tmp_path)
    results = write(tmp_path / "results.jsonl", [answer(request) for request in requests[1:]])
    made = run(job_for(rows), [results], allow_missing=True)
    assert_right(made, TEXTS, without=(0,))
    assert [reject.reason for reject in made[0].rejects] == ["no answer in the results"]


def test_an_answer_beats_a_refusal_of_the_same_text(rows: Path, tmp_path: Path) -> None:
    requests = requests_of(job_for(rows), tmp_path)
    for order in (1, -1):
        lines = [[refusal(requests[0])], [answer(request) for request in requests]][::order]
        results = write(tmp_path / "results.jsonl", [line for part in lines for line in part])
        assert_right(run(job_for(rows), [results]), TEXTS)


def test_a_changed_input_row_is_missing_not_mixed_up(rows: Path, tmp_path: Path) -> None:
    results = write(tmp_path / "results.jsonl", [answer(r) for r in requests_of(job_for(rows), tmp_path)])
    changed = ["a new first row", *TEXTS[:-1]]
    write_rows(rows, changed)
    with pytest.raises(InputError, match="1 of 44 rows"):
        openai_batch.load_batch_encoder([results], job_for(rows), quiet)
    assert_right(run(job_for(rows), [results], allow_missing=True), changed, without=(0,))


def test_another_prompt_finds_nothing(rows: Path, tmp_path: Path) -> None:
    results = write(tmp_path / "results.jsonl", [answer(r) for r in requests_of(job_for(rows), tmp_path)])
    with pytest.raises(InputError, match="44 of 44 rows"):
        openai_batch.load_batch_encoder([results], job_for(rows, prompt="query: "), quiet)


def test_texts_cut_at_the_export_are_flagged_at_the_import(tmp_path: Path) -> None:
    texts = ["short", "word " * 50]
    job = job_for(write_rows(tmp_path / "in.jsonl", texts), max_seq_length=5)
    requests = requests_of(job, tmp_path)
    assert [len(request["body"]["input"]) < 40 for request in requests] == [True, True]
    [made] = run(job, [write(tmp_path / "results.jsonl", [answer(request) for request in requests])])
    assert made.is_truncated.tolist() == [False, True]
    assert made.n_tokens[1] > 40
    assert made.lost_tokens > 30


def test_vectors_are_cut_and_normalized_as_for_a_direct_job(rows: Path, tmp_path: Path) -> None:
    requests = requests_of(job_for(rows), tmp_path)
    results = write(tmp_path / "results.jsonl", [answer(request, dim=8) for request in requests])
    found = vectors_by_id(run(job_for(rows, truncate_dim=4), [results]))
    assert found["id0"].shape == (4,)
    assert np.linalg.norm(found["id0"]) == pytest.approx(1)


def test_the_space_is_that_of_the_model_asked_directly(rows: Path, tmp_path: Path) -> None:
    results = write(tmp_path / "results.jsonl", [answer(r) for r in requests_of(job_for(rows), tmp_path)])
    encoder = openai_batch.load_batch_encoder([results], job_for(rows), quiet)
    space = encoder.vector_space()
    assert {key: space[key] for key in identity.hosted_model_identity(job_for(rows))} == identity.hosted_model_identity(
        job_for(rows)
    )
    assert (space["dim"], space["reported_model"]) == (DIM, fake.MODEL)
    assert encoder.usage() == {"requests": 43, "tokens": sum(map(fake.tokens_of, set(TEXTS)))}
    encoder.close()


# The job of an export


def test_the_import_finds_rows_and_model_beside_the_results(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base = "https://user:secret-77@host.example/v1?key=secret-88"
    job = job_for(Path("in.jsonl"), prompt="q: ", keep=("id",), base_url=base)
    made = openai_batch.export_requests(job, "requests.jsonl", quiet)
    assert made.job_file == "requests.job.json"
    assert "secret" not in Path(made.job_file).read_text()
    monkeypatch.chdir("/")
    found = openai_batch.load_job([str(tmp_path / "results.jsonl")], "other.npy")
    assert found.inputs == (str(rows),)
    assert (found.output, found.prompt, found.keep, found.model) == ("other.npy", "q: ", ("id",), job.model)
    assert identity.hosted_model_identity(found) == identity.hosted_model_identity(job)


def test_the_import_reads_rows_in_the_dialect_of_the_export(tmp_path: Path) -> None:
    source = tmp_path / "a.csv"
    source.write_text("title\na|b\n", "utf-8")
    job = replace(job_for(source), delimiter="|", header=False, skip_lines=1, text_column="column1")
    openai_batch.export_requests(job, str(tmp_path / "requests.jsonl"), quiet)
    found = openai_batch.load_job([str(tmp_path / "results.jsonl")], "out.npy")
    assert (found.delimiter, found.header, found.skip_lines) == ("|", False, 1)
    path = tmp_path / "requests.job.json"
    kept = json.loads(path.read_bytes())
    earlier = {name: value for name, value in kept.items() if name not in CSV_DEFAULTS}
    path.write_text(json.dumps(earlier), "utf-8")
    assert openai_batch.load_job([str(tmp_path / "results.jsonl")], "out.npy").delimiter is None


def test_secrets_of_input_addresses_are_not_recorded(rows: Path, tmp_path: Path) -> None:
    with web_server.serve_folder(rows.parent) as host:
        address = f"http://{host}/{rows.name}?token=secret-77&X-Amz-Signature=secret-88"
        job = replace(job_for(rows), inputs=(address,))
        job_file = openai_batch.export_requests(job, str(tmp_path / "requests.jsonl"), quiet).job_file
        assert "secret" not in Path(job_file).read_text()
        with pytest.raises(UsageError, match=r"recorded without its secrets") as caught:
            openai_batch.load_job([], "out.npy", job_file)
        assert "--input" in caught.value.hint
        found = openai_batch.load_job([], "out.npy", job_file, [address])
        lines = [answer(line) for line in read(str(tmp_path / "requests.jsonl"))]
        assert_right(run(found, [write(tmp_path / "results.jsonl", lines)]), TEXTS)


def test_no_job_or_two_beside_the_results(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no \*\.job\.json"):
        openai_batch.load_job([str(tmp_path / "results.jsonl")], "out.npy")
    for name in ("a.job.json", "b.job.json"):
        (tmp_path / name).write_text(f'["{name}"]')
    with pytest.raises(UsageError, match="2 files"):
        openai_batch.load_job([str(tmp_path / "results.jsonl")], "out.npy")
    with pytest.raises(UsageError, match="is not what `batch export` writes"):
        openai_batch.load_job([], "out.npy", str(tmp_path / "a.job.json"))
    with pytest.raises(UsageError, match="cannot be read"):
        openai_batch.load_job([], "out.npy", str(tmp_path / "c.job.json"))


# Files that are not what they should be


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"custom_id": "0-0-0-', r"results\.jsonl:2: is not a line of a batch result file"),
        (b"[1, 2]", "is not a line"),
        (b'{"custom_id": "x"}', "is not a line"),
        (b'{"id": "x", "response": null}', "is not a line"),
        (b'{"custom_id": "0-0-0-%032d", "response": "x"}' % 0, "is not a line"),
        (b"\xff\xfe", "is not a line"),
    ],
)
def test_damaged_results_name_the_line(rows: Path, tmp_path: Path, line: bytes, message: str) -> None:
    good = json.dumps(answer(requests_of(job_for(rows), tmp_path)[0])).encode()
    path = tmp_path / "results.jsonl"
    path.write_bytes(good + b"\n" + line + b"\n")
    with pytest.raises(InputError, match=message):
        BatchResults([str(path)])


def test_request_files_are_not_results(rows: Path, tmp_path: Path) -> None:
    made = openai_batch.export_requests(job_for(rows), str(tmp_path / "requests.jsonl"), quiet)
    with pytest.raises(InputError, match="is not a line of a batch result file"):
        openai_batch.load_batch_encoder(list(made.files), job_for(rows), quiet)


def test_answers_of_two_models_or_two_sizes_are_not_mixed(rows: Path, tmp_path: Path) -> None:
    one, two, *_ = requests_of(job_for(rows), tmp_path)
    with pytest.raises(InputError, match=r":2: a vector of 9 dimensions, after some of 6"):
        BatchResults([write(tmp_path / "results.jsonl", [answer(one), answer(two, dim=9)])])
    with pytest.raises(InputError, match=r":2: an answer of model other, after some of fake-embedding"):
        BatchResults([write(tmp_path / "results.jsonl", [answer(one), answer(two, model="other")])])


def test_foreign_lines_are_left_out_and_counted(rows: Path, tmp_path: Path) -> None:
    requests = requests_of(job_for(rows), tmp_path)
    foreign = answer({"custom_id": "request-1", "body": {"input": "x"}})
    notes: list[str] = []
    results = write(tmp_path / "results.jsonl", [foreign, *[answer(request) for request in requests]])
    openai_batch.load_batch_encoder([results], job_for(rows), notes.append).close()
    assert "1 lines are of another program and were left out" in notes


def test_results_without_any_answer(rows: Path, tmp_path: Path) -> None:
    empty = write(tmp_path / "results.jsonl", [])
    with pytest.raises(InputError, match="there is no answer in"):
        openai_batch.load_batch_encoder([empty], job_for(rows), quiet)
    with pytest.raises(UsageError, match="hosted model"):
        openai_batch.load_batch_encoder([empty], job_for(rows, model="all-MiniLM-L6-v2"), quiet)
    with pytest.raises(UsageError, match="standard input"):
        openai_batch.load_batch_encoder([empty], job_for(Path("-")), quiet)


JSON = st.recursive(st.none() | st.integers() | st.text(max_size=3), lambda some: st.lists(some) | st.dictionaries(
    st.sampled_from(["status_code", "body", "data", "index", "embedding", "error", "message", "code", "usage"]), some,
))  # fmt: skip


@settings(max_examples=25)
@given(st.binary(max_size=80) | st.tuples(JSON, JSON).map(lambda made: json.dumps(
    {"custom_id": "0-0-0-" + "0" * 32, "response": made[0], "error": made[1]}
).encode()))  # fmt: skip
def test_any_line_is_parsed_or_refused(raw: bytes) -> None:
    with suppress(ValueError):
        line = parse_result_line(raw)
        assert line is not None
        assert bool(line.response) + bool(line.refusal_reason) + bool(line.retry_reason) == 1
