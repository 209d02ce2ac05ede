"""Checkpoints of a job: part files, completed partitions, input snapshots, locks and publishing.

The staging folder of a single-file output is `OUTPUT.parts/`, that of a folder output `OUTPUT/_parts/`. A part file is
written under a temporary name, synced, and renamed to a name that contains its SHA-256 digest: a chunk is done when its
part file is there and matches its name. There is no journal that could disagree with the files.
"""

from embedcli.checkpoint.ledger import Ledger
from embedcli.checkpoint.part_files import combine_hashes, hash_chunk, reject_to_json_line
from embedcli.checkpoint.partitions import PartitionRecord, list_completed_partitions
from embedcli.checkpoint.rejects import RejectCounter, save_unpublished_rejects, summarize_rejects_file
from embedcli.checkpoint.staging import LOCK_FILE

__all__ = [
    "LOCK_FILE",
    "Ledger",
    "PartitionRecord",
    "RejectCounter",
    "combine_hashes",
    "hash_chunk",
    "list_completed_partitions",
    "reject_to_json_line",
    "save_unpublished_rejects",
    "summarize_rejects_file",
]
