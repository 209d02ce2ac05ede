"""What a load does beside sending rows, and what it counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from embedcli.core.counts import format_count

if TYPE_CHECKING:
    from embedcli.core.types import RejectSummary


@dataclass(frozen=True)
class LoadOptions:
    """What a load does beside sending rows.

    Attributes:
        sync: Delete rows whose ids are not in the output.
        swap: Fill a new table, which then takes the name of the old one.
        index: Build the usual index.
    """

    sync: bool = False
    swap: bool = False
    index: bool = False


@dataclass(frozen=True)
class LoadResult:
    """The end of a load.

    Attributes:
        rows: Rows of the output.
        sent: Rows that were sent.
        unchanged: Rows that were in the table already.
        deleted: Rows that were deleted.
        rejects: Rows that the database cannot hold.
        table_rows: Rows in the table; None until they were counted at the end.
        seconds: Duration.
        index: Description of the index, if one was asked for.
        reject_summary: The rejects by reason, and their file; None without rejects.
        was_up_to_date: Whether an earlier run had loaded all rows, so that this one did nothing.
    """

    rows: int
    sent: int = 0
    unchanged: int = 0
    deleted: int = 0
    rejects: int = 0
    table_rows: int | None = None
    seconds: float = 0.0
    index: str | None = None
    reject_summary: RejectSummary | None = None
    was_up_to_date: bool = False

    @property
    def done(self) -> int:
        """Rows of the output that are dealt with."""
        return self.sent + self.unchanged + self.rejects

    @property
    def exit_code(self) -> int:
        """3 if rows were rejected, as for `encode`."""
        return 3 if self.rejects else 0

    @property
    def reason(self) -> str:
        """How the load ended, in words."""
        rejected = f"{format_count(self.rejects, 'row was', 'rows were')} rejected"
        if self.rejects and not self.was_up_to_date:
            return rejected
        if self.sent or self.deleted:
            return "all rows loaded"
        nothing = "nothing to do: the table is up to date"
        return f"{nothing}; {rejected}" if self.rejects else nothing
