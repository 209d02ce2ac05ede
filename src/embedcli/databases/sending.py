"""Send batches of rows to a database: several at a time where it allows that, again when it is busy."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from embedcli.databases.disk_space import require_disk_space
from embedcli.databases.target import TargetBusyError

if TYPE_CHECKING:
    from embedcli.databases.target import DatabaseTarget, TableLayout

FIRST_BATCH_BYTES = 256 << 10
GROWTH = 4
# Waiting times double from the first to the last: about two minutes in all.
FIRST_DELAY_SECONDS = 0.5
MAX_ATTEMPTS = 9


@dataclass(frozen=True)
class Shipment:
    """Rows that are sent together.

    Attributes:
        rows: The rows.
        are_new: Whether none of their keys was in the table when the run began.
    """

    rows: pa.Table
    are_new: bool


class BatchBuilder:
    """Collects rows into batches, new rows apart from those that replace others.

    The first batches are small, and later ones up to four times as large as the one before, so that a load that is
    killed early has got ahead.

    Args:
        size: Size of the largest batches in bytes, about.
    """

    def __init__(self, size: int) -> None:
        self._largest, self._size = size, min(size, FIRST_BATCH_BYTES)
        self._held: dict[bool, list[pa.Table]] = {True: [], False: []}
        self._bytes = {True: 0, False: 0}

    def add(self, rows: pa.Table, *, are_new: bool) -> Iterator[Shipment]:
        """Add rows, and yield the batches that are full."""
        if not rows.num_rows:
            return
        row_bytes, start = max(1, rows.nbytes) / rows.num_rows, 0
        while start < rows.num_rows:
            piece = rows.slice(start, max(1, int(self._size / row_bytes)))
            start += piece.num_rows
            if self._bytes[are_new] and self._bytes[are_new] + piece.nbytes > self._size:
                yield self._take(are_new)
            self._held[are_new].append(piece)
            self._bytes[are_new] += piece.nbytes

    def finish(self) -> Iterator[Shipment]:
        """Yield the rest."""
        for are_new in (True, False):
            if self._held[are_new]:
                yield self._take(are_new)

    def _take(self, are_new: bool) -> Shipment:
        held, self._held[are_new], self._bytes[are_new] = self._held[are_new], [], 0
        self._size = min(self._largest, GROWTH * self._size)
        return Shipment(pa.concat_tables(held), are_new)


def send_batches(
    target: DatabaseTarget,
    table: str,
    layout: TableLayout,
    shipments: Iterable[Shipment],
    on_sent: Callable[[int], None],
) -> None:
    """Send batches; on return all of them are durable.

    Args:
        target: The database.
        table: The table.
        layout: Its columns.
        shipments: The batches.
        on_sent: Gets the number of rows of each batch once it is durable.
    """

    def send(shipment: Shipment) -> int:
        write = target.insert_rows if shipment.are_new else target.upsert_rows

        def request() -> None:
            require_disk_space(target, shipment.rows.nbytes)
            write(table, layout, shipment.rows)

        repeat_while_busy(request)
        return int(shipment.rows.num_rows)

    if target.parallel_requests == 1:
        for shipment in shipments:
            on_sent(send(shipment))
        return
    with ThreadPoolExecutor(target.parallel_requests, thread_name_prefix="load") as pool:
        in_flight: set[Future[int]] = set()
        for shipment in shipments:
            in_flight.add(pool.submit(send, shipment))
            if len(in_flight) > target.parallel_requests:
                in_flight = collect(in_flight, on_sent)
        while in_flight:
            in_flight = collect(in_flight, on_sent)


def collect(in_flight: set[Future[int]], on_sent: Callable[[int], None]) -> set[Future[int]]:
    """Wait for at least one batch, report those that are done, and return the others."""
    done, rest = wait(in_flight, return_when=FIRST_COMPLETED)
    for future in done:
        on_sent(future.result())
    return rest


def repeat_while_busy(request: Callable[[], None]) -> None:
    """Make a request, and repeat it after growing delays while the database is busy."""
    for attempt in range(MAX_ATTEMPTS):
        try:
            request()
            return
        except TargetBusyError:
            if attempt == MAX_ATTEMPTS - 1:
                raise
            # A random half keeps several loaders from asking at the same moment.
            time.sleep(FIRST_DELAY_SECONDS * 2**attempt * random.uniform(0.5, 1))
