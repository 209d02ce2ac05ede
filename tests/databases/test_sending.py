"""Batches of rows on their way to a database."""

from __future__ import annotations

import pyarrow as pa

from embedcli.databases.sending import FIRST_BATCH_BYTES, BatchBuilder

ROW_BYTES = 1024


def build(largest: int, count: int, part: int) -> list[pa.Table]:
    """Batches of `count` rows of a kilobyte, which come in parts."""
    rows = pa.table({"n": pa.array([bytes([i % 256]) * ROW_BYTES for i in range(count)], pa.binary(ROW_BYTES))})
    builder = BatchBuilder(largest)
    shipments = [one for i in range(0, count, part) for one in builder.add(rows.slice(i, part), are_new=True)]
    shipments += builder.finish()
    assert pa.concat_tables([shipment.rows for shipment in shipments]).equals(rows)
    return [shipment.rows for shipment in shipments]


def test_batches_grow_up_to_the_largest() -> None:
    sizes = [batch.num_rows * ROW_BYTES / FIRST_BATCH_BYTES for batch in build(8 * FIRST_BATCH_BYTES, 9000, 9000)]
    assert sizes[:4] == [1, 1, 4, 8]


def test_batches_of_small_parts_grow_as_well() -> None:
    batches = build(4 * FIRST_BATCH_BYTES, 5000, 10)
    assert batches[0].nbytes <= FIRST_BATCH_BYTES < batches[1].nbytes <= 4 * FIRST_BATCH_BYTES
    assert max(batch.nbytes for batch in batches) <= 4 * FIRST_BATCH_BYTES


def test_a_small_largest_batch_is_the_first() -> None:
    assert {batch.num_rows for batch in build(2 * ROW_BYTES, 10, 10)} == {2}
