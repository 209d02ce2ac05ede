"""What is done, is it the same job, and the publishing: manifest, part files, sealed shares, locks.

A single-file output stages its parts in `OUTPUT.parts/`, a folder output in `OUTPUT/_parts/`. A part is done when
its file is there: it is written under a temporary name, flushed, and renamed to a name that holds its own SHA-256
digest, so a damaged part is noticed. There is no journal that could fall out of step.
"""

from embedcli.checkpoint.ledger import LOCK_FILE, Ledger
from embedcli.checkpoint.part_files import combine_hashes, hash_chunk, reject_to_json_line
from embedcli.checkpoint.partitions import PartitionRecord, list_completed_partitions

__all__ = [
    "LOCK_FILE",
    "Ledger",
    "PartitionRecord",
    "combine_hashes",
    "hash_chunk",
    "list_completed_partitions",
    "reject_to_json_line",
]
