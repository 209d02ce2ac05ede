"""`embedcli inspect`: what is in a file, before it is embedded or after."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from embedcli.cli.console import JsonFlag, format_bytes, show_facts, show_json
from embedcli.cli.entrypoint import handle_errors, set_environment
from embedcli.cli.options import INPUT_FLAGS, with_job_options


@handle_errors
@with_job_options(INPUT_FLAGS)
def inspect(
    file: Annotated[str, typer.Argument(help="An output of encode, or an input: file, glob, folder or -.")],
    as_json: JsonFlag = False,
    *,
    flags: dict[str, Any],
) -> None:
    """Tell what FILE holds.

    Of an output: rows, dimensions, precision, norms, non-finite values, truncated rows, ids that come twice,
    and what made the vectors. Of an input: columns, rows, rejects by reason, text lengths in characters.
    """
    set_environment(flags)
    found = describe_path(file, flags)
    if as_json:
        show_json(found)
    else:
        show_facts(format_output(found) if found["kind"] == "output" else format_input(found))


def describe_path(file: str, flags: dict[str, Any]) -> dict[str, Any]:
    """The description of an output or an input, whichever `file` is."""
    from embedcli.core.job import Job
    from embedcli.outputs.dataset import holds_vectors, open_dataset

    if file != "-" and holds_vectors(file):
        from embedcli.analysis.inspect_output import describe_output

        return describe_output(open_dataset(file))
    from embedcli.analysis.inspect_input import describe_input

    return describe_input(Job(inputs=(file,), output="-", **flags))


def format_output(found: dict[str, Any]) -> list[tuple[str, str]]:
    files = f"{found['files']} files, " if found["files"] != 1 else ""
    facts = [
        ("output", f"{found['path']} ({files}{format_bytes(found['bytes'])})"),
        ("rows", f"{found['rows']:,}" + (f", and {found['rejected']:,} rejected" if found["rejected"] else "")),
        ("vectors", f"{found['dim']} dimensions, stored as {found['precision']}"),
        ("norms", format_norms(found)),
        ("damage", format_damage(found)),
    ]
    if found["tokens"]:
        facts.append(
            ("tokens", "{total:,} in all; per row {min:g} to {max:g}, median {median:g}".format(**found["tokens"]))
        )
    if found["truncated_rows"] is not None:
        facts.append(("truncated", f"{found['truncated_rows']:,} rows ({found['truncated_share'] or 0:.2%})"))
    facts += [("ids", format_ids(found["ids"])), ("columns", format_columns(found["columns"]))]
    return facts + format_space(found["space"])


def format_norms(found: dict[str, Any]) -> str:
    if found["norms"] is None:
        return "bits have none" if "binary" in found["precision"] else "none"
    return "{min:.6g} to {max:.6g}, median {median:.6g}".format(**found["norms"])


def format_damage(found: dict[str, Any]) -> str:
    parts = [(found["non_finite_rows"], "with non-finite values"), (found["zero_rows"], "of zeros only")]
    told = [f"{count:,} rows {what}" for count, what in parts if count]
    return "; ".join(told) or "none: every vector is finite and not zero"


def format_ids(found: dict[str, Any]) -> str:
    if found["column"] is None:
        return "none; rows are counted from 0"
    text = f"{found['column']} ({found['type']}), "
    if not found["duplicates"]:
        return text + "all different"
    examples = ", ".join(f"{case['id']} ({case['rows']} rows)" for case in found["examples"])
    more = ", ..." if found["duplicates"] > len(found["examples"]) else ""
    return text + f"{found['duplicates']:,} of them come more than once: {examples}{more}"


def format_columns(found: dict[str, str]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in found.items()) or "none"


def format_space(space: dict[str, Any]) -> list[tuple[str, str]]:
    """What made the vectors, one line each; ranges are too many numbers for a line."""
    if not space:
        return [("made by", "unknown: the file does not say")]
    facts = []
    for name, value in sorted(space.items(), key=lambda item: item[0] != "model"):
        if name in ("dim", "precision"):
            continue
        facts.append((f"  {name}", "recorded" if name == "ranges" else format_value(value)))
    return [("made by", ""), *facts]


def format_value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {format_value(part)}" for name, part in value.items()) or "none"
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(format_value, value)) if isinstance(value, list) else str(value)


def format_input(found: dict[str, Any]) -> list[tuple[str, str]]:
    formats = sorted(set(found["files"].values()))
    count = f"{len(found['files'])} files, " if len(found["files"]) != 1 else ""
    known = f", {format_bytes(found['bytes'])}" if found["bytes"] is not None else ""
    facts = [
        ("input", f"{found['path']} ({count}{', '.join(formats)}{known})"),
        ("rows", f"{found['rows']:,}, of which {found['good_rows']:,} can be embedded"),
    ]
    facts += [("rejected", f"{count:,} rows: {reason}") for reason, count in found["rejects"].items()]
    facts += [("text", f"column {found['text_column']}" if found["text_column"] else f"template {found['template']}")]
    facts += [("ids", f"column {found['id_column']} ({found['id_type']})" if found["id_column"] else "row numbers")]
    facts += [("columns", format_columns(found["columns"]))]
    if found["good_rows"]:
        spread = "{total:,} in all; per row {min:,g} to {max:,g}, median {median:,g}, 95% below {p95:,g}"
        facts.append(("characters", spread.format(**found["characters"])))
    return facts
