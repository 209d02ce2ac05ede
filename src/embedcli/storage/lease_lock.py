"""Locks on object stores: a lease object that its owner renews and that expires when the owner is dead.

Object stores have no lock that ends with a process, and pyarrow's clients have no conditional create. A lease is
therefore written and read back after a pause: a process that finds another owner in it has lost. Two processes that
start within that pause of each other may both believe they have won if a write takes longer than the pause. They then
do the same work twice, but cannot damage each other's output: part files are named after their content, and outputs
appear complete.

A shared lease has one object per holder in the folder `LEASE.shared`. A process that wants the lease exclusively writes
its own lease first and then looks into that folder; a process that shares it writes first and then looks for an
exclusive owner. So the two never both go on.
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
from embedcli.storage.local import LockHeld, is_process_alive

# The lease of a dead owner expires after LEASE_SECONDS; a living owner renews it four times as often.
LEASE_SECONDS = 60.0
SETTLE_SECONDS = 0.3
SHARED_SUFFIX = ".shared"


class LeaseStore(Protocol):
    """What a lease needs of an object store."""

    def read_with_age(self, path: str) -> tuple[bytes, float] | None:
        """Return the content of an object and the seconds since it was written; None if it does not exist."""

    def write_object(self, path: str, data: Any) -> None: ...

    def list_files(self, folder: str) -> list[str]: ...

    def remove(self, path: str) -> None: ...


@dataclass(frozen=True)
class LeaseOwner:
    """The process that holds a lease. `host` is one boot of one machine or container, in which `pid` is unique."""

    token: str
    host: str
    pid: int


def acquire_exclusive(store: LeaseStore, path: str) -> Callable[[], None]:
    """Acquire the lease at `path` alone and keep it renewed.

    Returns:
        The function that releases it.

    Raises:
        LockHeld: A living process holds or shares it.
    """
    if is_held(store, path) or has_shared_holders(store, path):
        raise LockHeld
    me = _write_own_lease(store, path)
    if _read_owner(store, path) != me:
        raise LockHeld
    if has_shared_holders(store, path):
        _write_owner(store, path, None)
        raise LockHeld
    return _keep_renewed(store, path, me)


def acquire_shared(store: LeaseStore, path: str) -> Callable[[], None]:
    """Acquire the lease at `path` together with others that share it, and keep it renewed.

    Returns:
        The function that releases it.

    Raises:
        LockHeld: A living process holds it exclusively.
    """
    if is_held(store, path):
        raise LockHeld
    own_path = f"{path}{SHARED_SUFFIX}/{secrets.token_hex(8)}"
    me = _write_own_lease(store, own_path)
    if is_held(store, path):
        store.remove(own_path)
        raise LockHeld
    release = _keep_renewed(store, own_path, me)

    def release_and_remove() -> None:
        release()
        with suppress(EmbedcliError):  # an object that stays behind is marked as released
            store.remove(own_path)

    return release_and_remove


def is_held(store: LeaseStore, path: str) -> bool:
    """Whether a living process holds the lease."""
    found = store.read_with_age(path)
    owner = _parse_owner(found[0]) if found is not None else None
    if found is None or owner is None:
        return False
    if owner.host == host_identity() and not is_process_alive(owner.pid):
        return False
    return found[1] < LEASE_SECONDS


def has_shared_holders(store: LeaseStore, path: str) -> bool:
    """Whether living processes share the lease."""
    folder = path + SHARED_SUFFIX
    return any(is_held(store, f"{folder}/{name}") for name in store.list_files(folder))


def host_identity() -> str:
    """Identify this boot of this machine and, in a container, this container: where a process id is unique."""
    marks = [socket.gethostname()]
    with suppress(OSError):
        marks.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        marks.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(marks)


def _write_own_lease(store: LeaseStore, path: str) -> LeaseOwner:
    """Write this process into a lease and wait until the write of a rival would show."""
    me = LeaseOwner(secrets.token_hex(16), host_identity(), os.getpid())
    _write_owner(store, path, me)
    time.sleep(SETTLE_SECONDS)
    return me


def _keep_renewed(store: LeaseStore, path: str, me: LeaseOwner) -> Callable[[], None]:
    """Renew a lease in the background; return the function that releases it."""
    released = Event()
    Thread(target=_renew_until_released, args=(store, path, me, released), name="lease", daemon=True).start()

    def release() -> None:
        released.set()
        with suppress(EmbedcliError):  # a lease that cannot be released expires by itself
            if _read_owner(store, path) == me:
                _write_owner(store, path, None)

    return release


def _renew_until_released(store: LeaseStore, path: str, me: LeaseOwner, released: Event) -> None:
    """Rewrite the lease until it is released or has another owner."""
    while not released.wait(LEASE_SECONDS / 4):
        with suppress(EmbedcliError):  # the network may be back by the next time
            if _read_owner(store, path) != me:
                return
            if not released.is_set():
                _write_owner(store, path, me)


def _read_owner(store: LeaseStore, path: str) -> LeaseOwner | None:
    found = store.read_with_age(path)
    return _parse_owner(found[0]) if found is not None else None


def _write_owner(store: LeaseStore, path: str, owner: LeaseOwner | None) -> None:
    """Record the owner; None releases the lease. Deleting it instead would race with the next owner."""
    store.write_object(path, json.dumps(owner.__dict__ if owner is not None else {}).encode())


def _parse_owner(data: bytes) -> LeaseOwner | None:
    try:
        fields = json.loads(data)
        return LeaseOwner(str(fields["token"]), str(fields["host"]), int(fields["pid"]))
    except (ValueError, KeyError, TypeError):
        return None
