"""Publish an output: merge part files, give files their final names, write the metadata last."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from embedcli import storage
from embedcli.checkpoint.merge_parts import merge_parts
from embedcli.checkpoint.part_files import combine_hashes
from embedcli.checkpoint.partitions import PartitionRecord
from embedcli.core.constants import PART_FILE_PATTERN
from embedcli.core.types import PartFile
from embedcli.outputs import digests, writers
from embedcli.outputs import target as output_target
from embedcli.outputs.schema import OutputLayout
from embedcli.outputs.target import OutputTarget


def build_output_metadata(
    job: Mapping[str, Any], parts: Sequence[PartFile], totals: Mapping[str, int], vector_space: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the metadata of a finished output: its vector space, and the job and input that it was made from."""
    source_hash = combine_hashes([part.source_hash for part in parts])
    return {
        writers.SPACE_METADATA_KEY: dict(vector_space),
        writers.JOB_METADATA_KEY: {"job": job, "source_hash": source_hash, **totals},
    }


def publish_file(
    target: OutputTarget, parts: Sequence[PartFile], layout: OutputLayout, metadata: writers.Metadata
) -> None:
    """Merge all part files, in input order, into a single-file output."""
    merge_parts(parts, target.output, target.format, layout, metadata)


def publish_folder(target: OutputTarget, records: Sequence[PartitionRecord], metadata: writers.Metadata) -> None:
    """Give the files of completed partitions their final names, and write the manifest that marks the output finished.

    Args:
        target: The folder output.
        records: The records of all partitions, in order.
        metadata: Key-value pairs to store in the manifest.
    """
    sizes = {str(file["name"]): file["size"] for record in records for file in record.files}
    is_own_file = output_target.own_file_matcher(target.output)
    replaced = [name for name in storage.list_files(target.output, PART_FILE_PATTERN) if is_own_file(name)]
    # While the manifest is missing, only this note says which files in the folder were written by embedcli.
    note = storage.join(target.staging_folder, output_target.REPLACED_FILE)
    storage.write_bytes(note, json.dumps({"names": [*replaced, *sizes]}).encode())
    storage.remove(target.marker_path)
    for stale in sorted(set(replaced) - set(sizes)):
        storage.remove(storage.join(target.output, stale))
    target.publish(list(sizes))
    parts = [name for name in sizes if name.endswith(f".{target.format}") and not name.endswith(".ids.parquet")]
    manifest = metadata | {"parts": parts, "sizes": sizes, digests.DIGEST_KEY: digests.digest_record()}
    storage.write_bytes(target.marker_path, digests.seal_text(writers.to_readable_json(manifest, indent=1)))
