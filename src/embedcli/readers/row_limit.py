"""Plan only the first rows of the inputs (--limit), the same for every runner and number of workers."""

from __future__ import annotations

from dataclasses import replace

from embedcli.core.job import Job
from embedcli.core.types import InputPlan, InputSplit
from embedcli.readers.reader import count_rows_up_to


def limit_plan(job: Job, plan: InputPlan, max_rows: int) -> InputPlan:
    """Cut a plan to the first rows of its inputs. Rows that will be rejected count, as `head` would count them.

    Args:
        job: The job that the plan belongs to.
        plan: The plan of all rows. Of its splits, those before the last one that is needed are counted.
        max_rows: The number of rows to keep.

    Returns:
        The plan with the splits of these rows only; `total_rows` is known if the inputs have as many.

    Raises:
        InputError: An input cannot be read.
    """
    splits: list[InputSplit] = []
    remaining = max_rows
    for input_split in plan.splits:
        is_last = input_split.index + 1 == len(plan.splits)
        rows = remaining if is_last else count_rows_up_to(job, plan, input_split, remaining)
        splits.append(input_split if rows < remaining else replace(input_split, max_rows=remaining))
        remaining -= rows
        if remaining == 0:
            break
    total_rows = None if plan.total_rows is None else min(plan.total_rows, max_rows)
    rows_per_split = [min(rows, max_rows) for rows in plan.rows_per_split[: len(splits)]]
    return replace(plan, splits=tuple(splits), total_rows=total_rows, rows_per_split=rows_per_split)
