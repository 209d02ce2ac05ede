"""Run a job: in this process, in one process per device, on a Ray cluster, or in shards.

Every runner does the same with a partition of the input: read, encode, write part files, record that it is complete.
A job whose output is finished needs none of their libraries, so that they are imported when a function here is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from embedcli.core.job import Job
    from embedcli.core.types import OutputFormat, RunObserver, RunResult
    from embedcli.pipeline.control import RunControl
    from embedcli.pipeline.metrics import MetricsCollector
    from embedcli.runners.context import EncoderLoader

__all__ = ["execute_job", "find_finished_result", "merge_shards"]


def find_finished_result(job: Job, observer: RunObserver) -> RunResult | None:
    """Return the result of a job that has nothing to do; see `finished_jobs.find_finished_result`."""
    from embedcli.runners import finished_jobs

    return finished_jobs.find_finished_result(job, observer)


def execute_job(
    job: Job,
    observer: RunObserver,
    control: RunControl,
    metrics: MetricsCollector,
    load_encoder: EncoderLoader | None = None,
) -> RunResult:
    """Encode the job's rows into its output; see `run_job.execute_job`."""
    from embedcli.runners import run_job

    return run_job.execute_job(job, observer, control, metrics, load_encoder)


def merge_shards(output: str, to: OutputFormat | None = None, max_rejects: str | None = None) -> RunResult:
    """Publish an output whose shards are all done; see `merge.merge_shards`."""
    from embedcli.runners import merge

    return merge.merge_shards(output, to, max_rejects)
