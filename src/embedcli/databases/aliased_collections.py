"""The collections behind the aliases that are the tables of Qdrant and Milvus: `docs__v1` behind `docs`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import count

from embedcli.databases.target import SWAP_SUFFIX

# A regular expression of the names of collections, which no table may have.
COLLECTION_NAMES = r".*__v[0-9]+"


def choose_collection(
    table: str,
    names: Iterable[str],
    aliases: Mapping[str, str],
    is_abandoned: Callable[[str], bool],
    drop: Callable[[str], object],
) -> str:
    """Return a name for a new collection, and drop those of the table that a killed run has left behind.

    Args:
        table: The table, or the one that --swap fills for it.
        names: The collections of the database.
        aliases: Its aliases, with the collection of each.
        is_abandoned: Whether another collection has replaced one that has no alias.
        drop: Drops a collection.
    """
    stem, taken = table.removesuffix(SWAP_SUFFIX), {*names, *aliases}
    for name in sorted(set(names) - set(aliases.values())):
        if name.rpartition("__v")[0] == stem and is_abandoned(name):
            drop(name)
            taken.discard(name)
    return next(name for number in count(1) if (name := f"{stem}__v{number}") not in taken)
