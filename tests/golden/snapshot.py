"""What a job left behind, as JSON that is the same on every machine and with every version of the libraries.

Each file has a `content`, and an `exact` part: the digest of its bytes, and what else changes with the versions of
the libraries that write it. `exact` is compared only where these versions are those of the record.
Masked, and nothing else: versions of libraries, times and speeds in reports, sentences, sizes of files, the base URL of
the server, and the folder of the job.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from golden_cases import SERVER, Case, Command, Ended
from numpy.typing import NDArray

# Versions that decide the bytes of an output: `exact` is compared where all are those of the record.
WRITERS = ("embedcli", "numpy", "orjson", "pyarrow", "tokenizers", "zstandard")
# Values in reports, plans and checks that depend on time, on memory or on the machine, or that are sentences.
UNSTABLE = {
    "started", "seconds", "reason", "hint", "notes", "stage_seconds", "timeline", "bottleneck", "forward_seconds",
    "device_idle_share", "peak_memory_mb", "rows_per_second", "tokens_per_second", "batch_tokens",
    "padding_share", "batches", "padded_tokens", "detail", "time",
}  # fmt: skip
# Options that jobs, and keys that reports have had only since the record was made.
LATER_OPTIONS = {
    "code_revision", "max_removed", "stop_after", "delimiter", "quote", "escape", "header", "skip_lines", "omit_field",
    "request_field", "startup_seconds", "embedding_speed", "canaries", "tokenizer", "samples",
    "reject_reasons", "first_reject", "rejects_path", "duplicate_ids", "top_k_terms", "min_weight",
    "vector_kind", "terms", "token_vectors", "pool_factor", "lost_rows", "example",
    "damaged_rows", "damage_examples", "heads", "same_vocabulary", "vector_column", "vector_columns",
}  # fmt: skip
# The digest of a file in its own metadata, which outputs have had only since then, and the check of it.
DIGEST_KEY = "embedcli.sha256"
LATER_KEYS = LATER_OPTIONS | {DIGEST_KEY}
LATER_CHECKS = {"digests"}
# The rejects of a job that --max-rejects has ended, which have had a file of their own only since then.
LATER_FILE_ENDING = "unpublished-rejects.jsonl"
# Values that follow from the sizes of compressed files.
SIZES = {"sizes", "output_bytes", "bytes"}


def writers() -> dict[str, str]:
    return {name: version(name) for name in WRITERS}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def mask(value: Any, hidden: set[str]) -> Any:
    """`value` with versions and the values of the hidden keys replaced by their types."""
    if isinstance(value, dict):
        return {
            key: types_of(inner) if key in hidden or is_version(key, inner) else mask(inner, hidden)
            for key, inner in value.items()
            if key not in LATER_KEYS
        }
    if isinstance(value, list):
        return [mask(inner, hidden) for inner in value if not is_later_check(inner)]
    if isinstance(value, float):
        return float(f"{value:.5g}")
    return value


def is_version(key: str, value: Any) -> bool:
    """Whether these are the versions of libraries, or that of embedcli in a report."""
    return key == "versions" or (key == "embedcli" and isinstance(value, str))


def is_later_check(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() >= {"name", "ok"} and value["name"] in LATER_CHECKS


def without_digest(path: Path, data: bytes) -> bytes:
    """The bytes of a file as they were before outputs had digests."""
    if DIGEST_KEY.encode() not in data:
        return data
    if path.suffix == ".json":
        document = json.loads(data)
        del document[DIGEST_KEY]
        if "sizes" in document:
            files = {name: path.parent / name for name in document["sizes"]}
            document["sizes"] = {name: len(without_digest(file, file.read_bytes())) for name, file in files.items()}
        return json.dumps(document, ensure_ascii=False, indent=1).encode() + (b"\n" if data.endswith(b"\n") else b"")
    return parquet_without_digest(data) if data.startswith(b"PAR1") else arrow_without_digest(data)


def record_without_digests(path: Path, data: bytes) -> tuple[Path, bytes]:
    """The record of a partition as it was before its files had digests: its own name has one of its bytes."""
    record = json.loads(data)
    for described in record["files"]:
        file = path.parent / described["name"]
        content = without_digest(file, file.read_bytes())
        described |= {"size": len(content), "sha256": digest(content)}
    data = json.dumps(record).encode()
    return path.with_name(f"{path.name.rpartition('-')[0]}-{digest(data)[:32]}.json"), data


def parquet_without_digest(data: bytes) -> bytes:
    """Remove the first key-value pair of the footer: the fields 1 and 2 of an item of a list, in compact Thrift."""
    footer = data[-8 - int.from_bytes(data[-8:-4], "little") : -8]
    key = DIGEST_KEY.encode()
    start = footer.rindex(b"\x18" + bytes([len(key)]) + key)
    end = footer.index(b"}", start) + 2
    kept = bytearray(footer[:start] + footer[end:])
    kept[start - 1] -= 0x10  # the number of items, and their type
    return data[: -8 - len(footer)] + kept + len(kept).to_bytes(4, "little") + b"PAR1"


def arrow_without_digest(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    source = pa.ipc.open_file(pa.BufferReader(data))
    with pa.ipc.new_file(sink, source.schema) as writer:
        for number in range(source.num_record_batches):
            writer.write_batch(source.get_batch(number))
    return bytes(sink.getvalue().to_pybytes())


def types_of(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: types_of(inner) for key, inner in value.items()}
    return "number" if isinstance(value, int | float) else type(value).__name__


def plain(value: Any) -> Any:
    """A value of a column as JSON."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list) and len(value) > 3 and all(isinstance(item, int | float) for item in value):
        return " ".join(map(str, value))
    return value


def rows_of(table: pa.Table, without: str = "") -> list[str]:
    """One line per row."""
    lines = []
    for row in table.to_pylist():
        cells = [plain(value) for name, value in row.items() if name != without]
        lines.append(json.dumps(cells, ensure_ascii=False))
    return shortened(lines)


def shortened(lines: list[str]) -> list[str]:
    """The lines; of many, the first ones and a digest of all."""
    return lines if len(lines) <= 4 else [*lines[:3], f"{len(lines)} lines, {digest(chr(10).join(lines).encode())}"]


def metadata_of(schema: pa.Schema) -> dict[str, Any]:
    """Metadata of a schema by key, as JSON where it is JSON; sorted, as Lance returns them in a random order."""
    found: dict[str, Any] = {}
    for key, raw in sorted((schema.metadata or {}).items()):
        if key.decode() in LATER_KEYS:
            continue
        try:
            found[key.decode()] = mask(json.loads(raw), set())
        except ValueError:
            found[key.decode()] = raw.decode("utf-8", "replace")
    return found


def table_content(table: pa.Table, without: str) -> dict[str, Any]:
    schema = table.schema
    return {
        "columns": [f"{field.name}: {field.type}{'' if field.nullable else ' not null'}" for field in schema],
        "metadata": metadata_of(schema),
        "rows": rows_of(table, without),
    }


def parquet_content(path: Path, without: str) -> tuple[dict[str, Any], dict[str, Any]]:
    file = pq.ParquetFile(path)
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    chunks = [groups[0].column(number) for number in range(groups[0].num_columns)] if groups else []
    layout = [f"{chunk.path_in_schema}: {chunk.compression} {' '.join(sorted(chunk.encodings))}" for chunk in chunks]
    content = table_content(file.read(), without) | {"row_groups": [group.num_rows for group in groups]}
    return content, {
        "layout": layout,
        "keys": sorted(key.decode() for key in file.metadata.metadata if key != DIGEST_KEY.encode()),
    }


def json_content(data: bytes, hidden: set[str]) -> Any:
    return mask(json.loads(data), hidden)


def staging_content(path: Path, data: bytes) -> tuple[Any, dict[str, Any]]:
    """A file of a staging folder: its name ends with a digest that changes with the libraries."""
    exact: dict[str, Any] = {"name": path.name}
    if path.suffix == ".arrow":
        return table_content(pa.ipc.open_file(pa.BufferReader(data)).read_all(), ""), exact
    if path.suffix == ".jsonl":
        return data.decode().splitlines(), exact
    return types_of(json.loads(data)), exact | {"json": json.loads(data)}


def is_named_by_digest(path: Path) -> bool:
    head, _, tail = path.stem.rpartition("-")
    return bool(head) and len(tail) == 32 and set(tail) <= set("0123456789abcdef")


def describe_file(path: Path, server: str, without: str = "") -> dict[str, Any]:
    """The `content` and the `exact` part of a file; `without` is a column that is left out."""
    data = path.read_bytes()
    if path.name.startswith("share-"):
        path, data = record_without_digests(path, data)
    # Base URL and folder differ from run to run, so that bytes which hold them have no digest.
    differs = (server and server.encode() in data) or str(path.parent.resolve()).encode() in data
    exact: dict[str, Any] = {} if without or differs else {"sha256": digest(without_digest(path, data))}
    content: Any = None
    if is_named_by_digest(path):
        content, more = staging_content(path, data)
        exact |= more
    elif path.suffix == ".parquet":
        content, more = parquet_content(path, without)
        exact |= more
    elif path.suffix == ".npy":
        array = np.load(path)
        content = {
            "dtype": str(array.dtype),
            "shape": list(array.shape),
            "rows": shortened([plain(r) for r in array.tolist()]),
        }
    elif path.suffix == ".arrow" or data.startswith(b"ARROW1"):
        content = table_content(pa.ipc.open_file(pa.BufferReader(data)).read_all(), without)
    elif path.suffix == ".json":
        is_report = "timeline" in data.decode()
        content = json_content(data, (UNSTABLE if is_report else set()) | SIZES)
        exact = {} if is_report else exact
        if path.name == "_space.json":
            content["schema"] = pa.ipc.read_schema(pa.BufferReader(base64.b64decode(content["schema"]))).to_string()
    elif path.suffix in (".jsonl", ".txt"):
        lines = data.decode("utf-8", "backslashreplace").splitlines()
        content = lines if "rejects" in path.name else shortened(lines)
    return {"exact": exact, "content": content}


def describe_lance(path: Path) -> dict[str, Any]:
    """A Lance dataset by its rows: its files have random names."""
    import lance

    return {"exact": {}, "content": table_content(lance.dataset(str(path)).to_table(), "")}


def describe_stdout(data: bytes) -> dict[str, Any]:
    try:
        return {"exact": {}, "content": json_content(data, UNSTABLE | SIZES)}
    except ValueError:
        return {"exact": {}, "content": shortened(data.decode().splitlines())}


def describe_files(folder: Path, inputs: Path, server: str = "", without: str = "") -> dict[str, Any]:
    """Every file in `folder` that is not one of the inputs."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.endswith(LATER_FILE_ENDING):
            continue
        parents = [parent for parent in path.parents if parent.suffix == ".lance"]
        if path.suffix == ".lance" and path.is_dir():
            found[name] = describe_lance(path)
        elif path.is_file() and not parents and not (inputs / name).exists():
            shown = name.replace(path.stem.rpartition("-")[2], "DIGEST") if is_named_by_digest(path) else name
            found[shown] = describe_file(path, server, without)
    return found


def describe(case: Case, ended: list[Ended], server: str, folder: Path, inputs: Path) -> dict[str, Any]:
    """All that is recorded of a job."""
    commands = [step for step in case.steps if isinstance(step, Command)]
    shown = [describe_stdout(end.stdout) for step, end in zip(commands, ended, strict=True) if step.keep_stdout]
    description = {
        "exit_codes": [end.exit_code for end in ended],
        "stdout": shown,
        "files": describe_files(folder, inputs, server, "" if case.is_exact else "embedding"),
    }
    text = json.dumps(description, ensure_ascii=False).replace(str(folder.resolve()), "{folder}")
    masked: dict[str, Any] = json.loads(text.replace(server, SERVER) if server else text)
    return masked


def vectors_of(folder: Path) -> NDArray[np.float32]:
    """The vectors of out.parquet, float32 [rows, dim]."""
    column = pq.read_table(folder / "out.parquet").column("embedding").combine_chunks()
    return np.asarray(column.values.to_numpy().reshape(len(column), -1), np.float32)


def differences(expected: Any, actual: Any, *, exact: bool, at: str = "") -> list[str]:
    """One line for each place in which two descriptions differ."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        if list(expected) != list(actual):
            lost, new = [key for key in expected if key not in actual], [key for key in actual if key not in expected]
            order = "" if lost or new else f"the order {list(actual)} is not {list(expected)}"
            return [f"{at}: missing {lost}, unexpected {new} {order}".rstrip()]
        keys = [key for key in expected if exact or key != "exact"]
        return [line for key in keys for line in differences(expected[key], actual[key], exact=exact, at=f"{at}/{key}")]
    if isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
        pairs = enumerate(zip(expected, actual, strict=True))
        return [line for n, (one, two) in pairs for line in differences(one, two, exact=exact, at=f"{at}[{n}]")]
    same = type(expected) is type(actual) and expected == actual
    return [] if same else [f"{at}:\n  recorded {expected!r}\n  now      {actual!r}"]
