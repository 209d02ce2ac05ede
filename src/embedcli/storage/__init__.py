"""Where bytes come from and go to: list inputs, open them decompressed, replace outputs whole.

A path becomes a file system in one place, `files_of`; this machine's, that of an address, or stdin.
Inputs are opened through `open_input` (a stream) or `open_seekable` (random access, for Parquet).
"""

from embedcli.storage.atomic_folder import replacing_folder
from embedcli.storage.atomic_replace import hint_of, os_errors, replacing, sweep, sweep_beside, sync_folder
from embedcli.storage.atomic_write import write_bytes, writing, writing_both
from embedcli.storage.errors import StoreRefused
from embedcli.storage.fs import (
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
from embedcli.storage.input_stream import Input, open_input, open_seekable
from embedcli.storage.parallel_open import identities, opened_ahead
from embedcli.storage.paths import (
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
from embedcli.storage.url_redaction import masked, without_query

__all__ = [
    "Input",
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
    "opened_ahead",
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
