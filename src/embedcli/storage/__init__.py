"""Paths, local and remote file systems, atomic writes and locks.

`files_of` is the one place where a path becomes a file system: local, an object store, or a web server.
Inputs are opened with `open_input` (a stream) or `open_seekable` (random access, for Parquet).
"""

from embedcli.storage.disk import write_bytes, writing, writing_both
from embedcli.storage.faults import StoreRefused
from embedcli.storage.folders import (
    base,
    exists,
    folders,
    is_folder,
    join,
    lock,
    make_folder,
    names,
    nearby,
    parent,
    read_bytes,
    remove,
    remove_folder,
)
from embedcli.storage.inputs import Input, open_input, open_seekable
from embedcli.storage.outputs import hint_of, os_errors, replacing, sweep, sweep_beside, sync_folder
from embedcli.storage.places import (
    check_writable,
    expand,
    file_identity,
    files_of,
    input_errors,
    is_local,
    natural,
    shown,
    where,
)
from embedcli.storage.secrets import masked, without_query
from embedcli.storage.soon import PrefetchedFiles, identities
from embedcli.storage.trees import replacing_folder

__all__ = [
    "Input",
    "PrefetchedFiles",
    "StoreRefused",
    "base",
    "check_writable",
    "exists",
    "expand",
    "file_identity",
    "files_of",
    "folders",
    "hint_of",
    "identities",
    "input_errors",
    "is_folder",
    "is_local",
    "join",
    "lock",
    "make_folder",
    "masked",
    "names",
    "natural",
    "nearby",
    "open_input",
    "open_seekable",
    "os_errors",
    "parent",
    "read_bytes",
    "remove",
    "remove_folder",
    "replacing",
    "replacing_folder",
    "shown",
    "sweep",
    "sweep_beside",
    "sync_folder",
    "where",
    "without_query",
    "write_bytes",
    "writing",
    "writing_both",
]
