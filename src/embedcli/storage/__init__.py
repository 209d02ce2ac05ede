"""Paths, local and remote file systems, atomic writes and locks.

`get_file_system` is the one place where a path becomes a file system: local, an object store, or a web server.
Inputs are opened with `open_input` (a stream) or `open_seekable` (random access, for Parquet).
"""

from embedcli.storage.atomic_folder import replace_folder_atomically
from embedcli.storage.atomic_replace import (
    hint_for_os_error,
    is_temporary_name,
    remove_stale_temporaries,
    remove_stale_temporaries_beside,
    replace_file_atomically,
    sync_folder,
    translate_output_errors,
)
from embedcli.storage.atomic_write import write_atomically, write_bytes, write_pair_atomically
from embedcli.storage.errors import ObjectStoreError
from embedcli.storage.fs import (
    LEASE_NOTE,
    acquire_lock,
    basename,
    check_file_can_be_made,
    exists,
    is_folder,
    join,
    list_files,
    list_folders,
    local_copy,
    make_folder,
    move_file,
    parent_folder,
    read_bytes,
    remove,
    remove_empty_folder,
    remove_folder,
)
from embedcli.storage.input_files import InputListing, expand_inputs, list_input_files, partition_values, shorten
from embedcli.storage.input_stream import InputStream, open_input, open_seekable
from embedcli.storage.parallel_open import PrefetchedFiles, file_identities, file_states
from embedcli.storage.paths import (
    check_writable,
    file_identity,
    format_location,
    format_path,
    get_file_system,
    is_local,
    natural_sort_key,
    translate_input_errors,
)
from embedcli.storage.url_redaction import SECRET_MASK, mask_secrets, strip_query

__all__ = [
    "LEASE_NOTE",
    "SECRET_MASK",
    "InputListing",
    "InputStream",
    "ObjectStoreError",
    "PrefetchedFiles",
    "acquire_lock",
    "basename",
    "check_file_can_be_made",
    "check_writable",
    "exists",
    "expand_inputs",
    "file_identities",
    "file_identity",
    "file_states",
    "format_location",
    "format_path",
    "get_file_system",
    "hint_for_os_error",
    "is_folder",
    "is_local",
    "is_temporary_name",
    "join",
    "list_files",
    "list_folders",
    "list_input_files",
    "local_copy",
    "make_folder",
    "mask_secrets",
    "move_file",
    "natural_sort_key",
    "open_input",
    "open_seekable",
    "parent_folder",
    "partition_values",
    "read_bytes",
    "remove",
    "remove_empty_folder",
    "remove_folder",
    "remove_stale_temporaries",
    "remove_stale_temporaries_beside",
    "replace_file_atomically",
    "replace_folder_atomically",
    "shorten",
    "strip_query",
    "sync_folder",
    "translate_input_errors",
    "translate_output_errors",
    "write_atomically",
    "write_bytes",
    "write_pair_atomically",
]
