"""Locks where there are none: a lease object that its owner renews, and that runs out when its owner is dead.

Object stores have no lock that ends with a process, and pyarrow's clients no conditional create. A lease is therefore
written, and read again after a pause: whoever finds another's name in it has lost. Two processes that start within
that pause of each other may, if writes take longer than it, both believe they have won: then they do the same work
twice. They cannot damage each other's: parts are named after their content, and outputs appear whole.

Those that share a lease have one each, in the folder `LEASE.shared`. Whoever wants it alone writes first and looks
into that folder then; they look for a lone owner after they have written. So never do both go on.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any, Protocol

from embedcli.core.errors import EmbedcliError
from embedcli.storage.local import Taken, alive

# A dead owner's lease runs out after LEASE_SECONDS; a living owner renews it four times as often.
LEASE_SECONDS = 60.0
SETTLE_SECONDS = 0.3
SHARED = ".shared"


class Objects(Protocol):
    """The little a lease needs of a store."""

    def small(self, path: str) -> tuple[bytes, float] | None:
        """The content of an object and the seconds since it was written; None if it is not there."""

    def put(self, path: str, data: Any) -> None: ...

    def names(self, folder: str) -> list[str]: ...

    def remove(self, path: str) -> None: ...


@dataclass(frozen=True)
class Owner:
    """Who holds a lease. `host` is one boot of one machine (or container), where `pid` can be asked for."""

    token: str
    host: str
    pid: int


def take(objects: Objects, path: str) -> Callable[[], None]:
    """Take the lease at `path` and keep it renewed; returns what gives it back. Raises Taken."""
    if held(objects, path) or shared(objects, path):
        raise Taken
    me = written(objects, path)
    if owner_of(objects, path) != me:
        raise Taken
    if shared(objects, path):
        write(objects, path, None)
        raise Taken
    return renewed(objects, path, me)


def take_shared(objects: Objects, path: str) -> Callable[[], None]:
    """Take a lease beside others that share it; returns what gives it back. Raises Taken if one has it alone."""
    if held(objects, path):
        raise Taken
    mine = f"{path}{SHARED}/{secrets.token_hex(8)}"
    me = written(objects, mine)
    if held(objects, path):
        objects.remove(mine)
        raise Taken
    give_back = renewed(objects, mine, me)

    def remove() -> None:
        give_back()
        with suppress(EmbedcliError):  # an object that is left behind says that it is given back
            objects.remove(mine)

    return remove


def shared(objects: Objects, path: str) -> bool:
    """Whether living processes share the lease."""
    folder = path + SHARED
    return any(held(objects, f"{folder}/{name}") for name in objects.names(folder))


def written(objects: Objects, path: str) -> Owner:
    """Write this process into a lease, and wait until another's writing would show."""
    me = Owner(secrets.token_hex(16), this_host(), os.getpid())
    write(objects, path, me)
    time.sleep(SETTLE_SECONDS)
    return me


def renewed(objects: Objects, path: str, me: Owner) -> Callable[[], None]:
    """Keep a lease renewed; returns what gives it back."""
    over = Event()
    Thread(target=renew, args=(objects, path, me, over), name="lease", daemon=True).start()

    def give_back() -> None:
        over.set()
        with suppress(EmbedcliError):  # what cannot be given back runs out by itself
            if owner_of(objects, path) == me:
                write(objects, path, None)

    return give_back


def held(objects: Objects, path: str) -> bool:
    """Whether a living process holds the lease."""
    found = objects.small(path)
    owner = parsed(found[0]) if found is not None else None
    if found is None or owner is None:
        return False
    if owner.host == this_host() and not alive(owner.pid):
        return False
    return found[1] < LEASE_SECONDS


def renew(objects: Objects, path: str, me: Owner, over: Event) -> None:
    """Write the lease anew, again and again, until it is over or another's."""
    while not over.wait(LEASE_SECONDS / 4):
        with suppress(EmbedcliError):  # the network may be back by the next time
            if owner_of(objects, path) != me:
                return
            if not over.is_set():
                write(objects, path, me)


def owner_of(objects: Objects, path: str) -> Owner | None:
    found = objects.small(path)
    return parsed(found[0]) if found is not None else None


def write(objects: Objects, path: str, owner: Owner | None) -> None:
    """Note the owner; none gives the lease back: deleting it would race with who takes it next."""
    objects.put(path, json.dumps(owner.__dict__ if owner is not None else {}).encode())


def parsed(data: bytes) -> Owner | None:
    try:
        made = json.loads(data)
        return Owner(str(made["token"]), str(made["host"]), int(made["pid"]))
    except (ValueError, KeyError, TypeError):
        return None


def this_host() -> str:
    """This boot of this machine and, in a container, this container: where a process id means one process."""
    marks = [socket.gethostname()]
    with suppress(OSError):
        marks.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        marks.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(marks)
