"""How the inputs looked when a run began: shares that were made from different inputs are not merged."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass
from functools import cached_property
from typing import Any

from embedcli import storage
from embedcli.checkpoint.part_files import digest, named_after
from embedcli.checkpoint.partitions import Record
from embedcli.core.errors import OutputError
from embedcli.core.types import Part, Piece, Share

Files = tuple[Mapping[str, Any], ...]
AGAIN = "run every shard again: what was made from other inputs is done anew, the rest is kept"


@dataclass(frozen=True)
class View:
    """`inputs` are pairs of path and look (size and time; {} for a stream), in order.

    `shares` is into how many shares they are cut, `cut` a digest of which piece is in which.
    """

    inputs: Sequence[tuple[str, Mapping[str, int]]]
    shares: int
    cut: str

    @cached_property
    def looks(self) -> dict[str, Mapping[str, int]]:
        return dict(self.inputs)

    def as_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @cached_property
    def name(self) -> str:
        return digest(self.as_json())

    def of(self, share: Share) -> dict[str, Mapping[str, int]]:
        """How the inputs of a share looked."""
        return {piece.path: self.looks[piece.path] for piece in share.pieces}

    def unchanged(self, record: Record, *, numbered: bool) -> bool:
        """Whether inputs look as they did when a share was made, so that it need not be read again.

        With `numbered` rows all of them count, as any input before a row changes its number.
        """
        same = all(look and look == self.looks.get(path) for path, look in record.inputs.items())
        return same and (not numbered or record.view == self.name)

    def same_as(self, other: View) -> bool:
        """Whether both are of the same inputs, under whatever folder each run has found them."""
        mine, theirs = ([(storage.base(path), look) for path, look in view.inputs] for view in (self, other))
        return mine == theirs and (self.shares, self.cut) == (other.shares, other.cut)


def view_of(every: Sequence[Share]) -> View:
    """How the inputs of all shares of a job look now."""
    looks = storage.identities([piece.path for share in every for piece in share.pieces])
    cut = digest(json.dumps([[address(piece) for piece in share.pieces] for share in every]).encode())
    return View(tuple(looks.items()), len(every), cut)


def of_pieces(record: Record, share: Share) -> bool:
    """Whether a record is of the very pieces that the share has now."""
    return [address(piece) for piece in record.pieces] == [address(piece) for piece in share.pieces]


def record_of(share: Share, view: View, job: str, parts: tuple[Part, ...], files: Files) -> Record:
    """The record of a share that is done now. An input that does not look as in the view changed while it was read."""
    now = storage.identities([piece.path for piece in share.pieces])
    looks = {path: look if look == now[path] else {} for path, look in view.of(share).items()}
    return Record(share.index, job, view.name, share.pieces, parts, looks, files)


def address(piece: Piece) -> tuple[Any, ...]:
    """Where a piece lies, without the folder of its file: a moved folder is no other input."""
    index, path, *rest = astuple(piece)
    return index, storage.base(path), *rest


def write_view(stage: str, view: View) -> None:
    path = _path(stage, view.name)
    if not storage.exists(path):
        storage.write_bytes(path, view.as_json())


def read_view(stage: str, name: str) -> View | None:
    """A view that a run has written; None if it is not there or damaged."""
    path = _path(stage, name)
    with suppress(OSError, ValueError, KeyError, TypeError):
        data = storage.read_bytes(path)
        if named_after(path, data):
            made = json.loads(data)
            return View(tuple((path, look) for path, look in made["inputs"]), made["shares"], made["cut"])
    return None


def _path(stage: str, name: str) -> str:
    return storage.join(stage, f"inputs-{name}.json")


def agreed(stage: str, output: str, records: Iterable[Record]) -> View | None:
    """The one view that all records were made from; None without records.

    OutputError naming the input that looked different to some, or that changed while it was read.
    """
    first: View | None = None
    views = {name: read_view(stage, name) for name in sorted({record.view for record in records})}
    for view in views.values():
        if view is None:
            raise OutputError(f"{storage.where(stage)}: a note of what the inputs looked like is gone", AGAIN)
        if first is not None and not first.same_as(view):
            raise between(first, view, output)
        first = view
    for record in records:
        view = views[record.view]
        for path, look in record.inputs.items():
            if view is not None and look != view.looks[path]:
                raise OutputError(
                    f"{storage.where(path)} has changed while share {record.index} of {storage.where(output)} was made "
                    "from it; nothing was published",
                    AGAIN,
                )
    return first


def between(one: View, two: View, output: str) -> OutputError:
    """The error for shares of two views: names the first input that differs."""
    pairs = zip(one.inputs, two.inputs, strict=False)
    path = next((path for (_, look), (path, other) in pairs if look != other), None)
    what = "the cut of the input" if path is None else storage.where(path)
    return OutputError(
        f"{what} has changed between the shards of {storage.where(output)}; nothing was published", AGAIN
    )
