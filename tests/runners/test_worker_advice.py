"""--workers where it is of no use: a note says so, and a refusal names what was typed."""

from __future__ import annotations

from pathlib import Path

import pytest

import jobs
import models
from embedcli.core.errors import UsageError
from embedcli.core.job import Job
from embedcli.models.resolve import resolve_model
from embedcli.runners.run_job import resolve_runner
from embedcli.runners.worker_advice import advise_on_workers


def advice(**options: object) -> list[str]:
    """What is said of a job with these options."""
    observer = jobs.Silent()
    job = resolve_runner(Job(("in.jsonl",), "out.parquet", device="cpu", **options))  # type: ignore[arg-type]
    advise_on_workers(job, None if job.model.startswith("openai:") else resolve_model(job), observer)
    return observer.lines


@pytest.fixture(scope="module")
def transformer() -> str:
    return str(models.folder("all-MiniLM-L6-v2-shape"))


def test_a_transformer_on_a_cpu_uses_all_cores_in_one_process(transformer: str) -> None:
    (line,) = advice(model=transformer, workers=2)
    assert line.startswith("--workers is seldom faster on a CPU: one process uses all ")


def test_a_hosted_model_is_asked_by_one_process() -> None:
    (line,) = advice(model="openai:any", workers=2)
    assert line.startswith("--workers is not needed for a hosted model")


def test_nothing_is_said_where_workers_may_help(transformer: str, tmp_path: Path) -> None:
    words = str(jobs.word_model(tmp_path))
    assert advice(model=words, workers=2) == []
    assert advice(model=transformer, workers=2, threads=1) == []
    assert advice(model=transformer, workers=1) == []
    assert advice(model=transformer) == []
    assert advice(model=transformer, workers=2, runner="ray") == []


@pytest.mark.parametrize(
    ("options", "named", "hint"),
    [
        ({"workers": 2}, "--workers 2", "leave --workers out: one process uses all processor cores"),
        ({"device": "cuda:0,cuda:1"}, "--device cuda:0,cuda:1", "name one device"),
        ({"runner": "ray", "workers": 2}, "--runner ray", "leave one of them out"),
        ({"shard": (1, 2)}, "--shard", "leave one of them out"),
    ],
)
def test_a_refusal_names_what_was_typed(options: dict[str, object], named: str, hint: str) -> None:
    with pytest.raises(UsageError) as raised:
        resolve_runner(Job(("in.jsonl",), "out.parquet", update=True, **options))  # type: ignore[arg-type]
    assert str(raised.value) == f"--update cannot be used together with {named}"
    assert raised.value.hint == hint
