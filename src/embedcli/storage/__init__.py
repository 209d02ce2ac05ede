"""Where bytes come from and go to: list inputs, open them decompressed, replace outputs whole.

A path becomes a file system in one place, `files_of`; today that is this machine's, and stdin.
Inputs are opened through `open_input` (a stream) or `open_seekable` (random access, for Parquet).
"""

from embedcli.storage.disk import write_bytes, writing
from embedcli.storage.folders import (
    base,
    exists,
    is_folder,
    join,
    lock,
    make_folder,
    names,
    parent,
    read_bytes,
    remove,
    remove_folder,
)
from embedcli.storage.inputs import Input, open_input, open_seekable
from embedcli.storage.outputs import os_errors, replacing, sweep, sync_folder
from embedcli.storage.places import expand, file_identity, files_of, input_errors, natural, shown, where
from embedcli.storage.trees import replacing_folder

__all__ = [
    "Input",
    "base",
    "exists",
    "expand",
    "file_identity",
    "files_of",
    "input_errors",
    "is_folder",
    "join",
    "lock",
    "make_folder",
    "names",
    "natural",
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
    "sync_folder",
    "where",
    "write_bytes",
    "writing",
]
