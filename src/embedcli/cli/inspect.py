"""`embedcli inspect`: describe an input or an output."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from embedcli.cli.console import JsonFlag, format_bytes, shorten, show_facts, show_json
from embedcli.cli.entrypoint import handle_errors, set_environment
from embedcli.cli.options import INPUT_FLAGS, with_job_options
from embedcli.cli.vector_column import VectorColumnOption
from embedcli.core.constants import VOCABULARY_KEY
from embedcli.core.counts import format_count
from embedcli.core.terminal import escape_in_json

# Characters that are shown of each text of a sample row.
SAMPLE_WIDTH = 60
# Characters of the fingerprint of a vocabulary that tell it from others.
SHOWN_FINGERPRINT = 12


@handle_errors
@with_job_options(INPUT_FLAGS)
def inspect(
    file: Annotated[str, typer.Argument(help="Output of encode, or an input: file, glob, folder or - for stdin.")],
    as_json: JsonFlag = False,
    *,
    vector_column: VectorColumnOption = None,
    flags: dict[str, Any],
) -> None:
    """Describe an input or an output.

    For an output: rows, dimensions, precision, norms, non-finite values, truncated rows, duplicate ids,
    and the model and settings of the vectors. For an input: columns, rows, rejects by reason, text lengths
    in characters. The first three rows are shown of both.
    """
    set_environment(flags)
    description = describe_path(file, flags, vector_column)
    if as_json:
        show_json(description)
    else:
        show_facts(format_output(description) if description["kind"] == "output" else format_input(description))


def describe_path(file: str, flags: dict[str, Any], vector_column: str | None = None) -> dict[str, Any]:
    """Return the description of `file`, an output or an input, as for --json."""
    from embedcli.core.job import Job
    from embedcli.outputs.dataset import holds_vectors, open_dataset

    if file != "-" and holds_vectors(file):
        from embedcli.analysis.inspect_output import describe_output

        return describe_output(open_dataset(file, vector_column))
    from embedcli.analysis.inspect_input import describe_input

    return describe_input(Job(inputs=(file,), output="-", **flags))


def format_output(output: dict[str, Any]) -> list[tuple[str, str]]:
    files = f"{output['files']} files, " if output["files"] != 1 else ""
    facts = [
        ("output", f"{output['path']} ({files}{format_bytes(output['bytes'])})"),
        ("rows", f"{output['rows']:,}" + (f", and {output['rejected']:,} rejected" if output["rejected"] else "")),
        ("vectors", format_vectors(output)),
        *format_vector_columns(output),
        *format_token_vectors(output["token_vectors"]),
        *format_terms(output["terms"]),
        ("norms", format_norms(output)),
        ("damage", format_damage(output)),
    ]
    if output["tokens"]:
        facts.append(
            ("tokens", "{total:,} in total; per row {min:g} to {max:g}, median {median:g}".format(**output["tokens"]))
        )
    if output["truncated_rows"] is not None:
        facts.append(
            ("truncated", f"{format_count(output['truncated_rows'], 'row')} ({output['truncated_share'] or 0:.2%})")
        )
    facts += [("ids", format_ids(output["ids"])), ("columns", format_columns(output["columns"]))]
    return facts + format_samples(output["samples"]) + format_space(output["space"])


def format_vectors(output: dict[str, Any]) -> str:
    if output["vector_kind"] == "sparse":
        return f"sparse, of a vocabulary of {output['dim']:,} terms, weights stored as {output['precision']}"
    dimensions = f"{output['dim']} dimensions, stored as {output['precision']}"
    if output["token_vectors"] is not None:
        return f"{output['token_vectors']['total']:,} of {dimensions}"
    return dimensions


def format_token_vectors(vectors: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Return the number of vectors of a row, where each token has one."""
    if vectors is None or vectors["per_row"] is None:
        return []
    return [
        ("vectors per row", "{min:g} to {max:g}, median {median:g}, 95% below {p95:g}".format(**vectors["per_row"]))
    ]


def format_vector_columns(output: dict[str, Any]) -> list[tuple[str, str]]:
    """Return which column of vectors is described, of an output with several."""
    others = [name for name in output["vector_columns"] if name != output["vector_column"]]
    if not others:
        return []
    return [("column", f"{output['vector_column']}; --vector-column describes {' or '.join(others)}")]


def format_terms(terms: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Return the terms and weights of sparse vectors, with the heaviest terms of the first rows."""
    if terms is None or terms["per_row"] is None:
        return []
    facts = [("terms", "per row {min:g} to {max:g}, median {median:g}, 95% below {p95:g}".format(**terms["per_row"]))]
    if terms["empty_rows"]:
        facts.append(("without a term", format_count(terms["empty_rows"], "row")))
    if terms["weights"] is not None:
        facts.append(("weights", "{min:.6g} to {max:.6g}".format(**terms["weights"])))
    for number, row in enumerate(terms["samples"], 1):
        facts.append((f"terms of row {number}", ", ".join(f"{entry['term']} {entry['weight']:.3g}" for entry in row)))
    return facts


def format_norms(output: dict[str, Any]) -> str:
    if output["norms"] is None:
        return "none: binary vectors" if "binary" in output["precision"] else "none"
    return "{min:.6g} to {max:.6g}, median {median:.6g}".format(**output["norms"])


def format_damage(output: dict[str, Any]) -> str:
    counts = [(output["non_finite_rows"], "with non-finite values"), (output["zero_rows"], "all zero")]
    if output["terms"] is not None:
        counts.append((output["terms"]["unsorted_rows"], "whose indices do not ascend"))
        counts.append((output["terms"]["repeated_rows"], "with an index twice"))
    if output["token_vectors"] is not None:
        counts.append((output["token_vectors"]["empty_rows"], "without vectors"))
        counts.append((output["token_vectors"]["excess_rows"], "with more vectors than tokens"))
    damage = [f"{format_count(count, 'row')} {kind}" for count, kind in counts if count]
    if output["damaged_rows"]:
        examples = output["damage_examples"]
        rows = [f"row {case['row']} (id {format_id(case['id'])}) {case['problem']}" for case in examples]
        more = ", ..." if output["damaged_rows"] > len(rows) else ""
        damage.append(f"{format_count(output['damaged_rows'], 'row')} that cannot be read: {', '.join(rows)}{more}")
    return "; ".join(damage) or "none: every vector is finite and not zero"


def format_ids(ids: dict[str, Any]) -> str:
    if ids["column"] is None:
        return "none; row numbers from 0"
    text = f"{ids['column']} ({ids['type']}), "
    if not ids["duplicates"]:
        return text + "all unique"
    examples = ", ".join(f"{format_id(case['id'])} ({format_count(case['rows'], 'row')})" for case in ids["examples"])
    more = ", ..." if ids["duplicates"] > len(ids["examples"]) else ""
    return (
        text
        + f"{ids['duplicates']:,} {'appears' if ids['duplicates'] == 1 else 'appear'} more than once: {examples}{more}"
    )


def format_id(id: Any) -> str:
    """Return an id as it is; one with characters that are not shown as they are, as a JSON string."""
    if not isinstance(id, str) or (id.isprintable() and id == id.strip() and id and "\\" not in id):
        return format_value(id)
    return escape_in_json(json.dumps(id, ensure_ascii=False))


def format_columns(columns: dict[str, str]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in columns.items()) or "none"


def format_space(space: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the vector space metadata, one line per key; ranges and canaries are too long for a line."""
    if not space:
        return [("made by", "unknown: not recorded in the file")]
    facts = []
    for name, value in sorted(space.items(), key=lambda item: item[0] != "model"):
        if name in ("dim", "precision"):
            continue
        text = "recorded" if name in ("ranges", "canaries") else format_value(value)
        facts.append((f"  {name}", text[:SHOWN_FINGERPRINT] if name == VOCABULARY_KEY else text))
    return [("made by", ""), *facts]


def format_value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {format_value(part)}" for name, part in value.items()) or "none"
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(format_value, value)) if isinstance(value, list) else str(value)


def format_input(description: dict[str, Any]) -> list[tuple[str, str]]:
    formats = sorted(set(description["files"].values()))
    count = f"{len(description['files'])} files, " if len(description["files"]) != 1 else ""
    known = f", {format_bytes(description['bytes'])}" if description["bytes"] is not None else ""
    facts = [
        ("input", f"{description['path']} ({count}{', '.join(formats)}{known})"),
        ("rows", f"{description['rows']:,}, of which {description['good_rows']:,} can be embedded"),
    ]
    facts += [
        ("rejected", f"{format_count(count, 'row')}: {reason}") for reason, count in description["rejects"].items()
    ]
    facts += [
        (
            "text",
            f"column {description['text_column']}"
            if description["text_column"]
            else f"template {description['template']}",
        )
    ]
    facts += [
        (
            "ids",
            f"column {description['id_column']} ({description['id_type']})"
            if description["id_column"]
            else "row numbers",
        )
    ]
    facts += [("columns", format_columns(description["columns"]))]
    if description["good_rows"]:
        spread = "{total:,} in total; per row {min:,g} to {max:,g}, median {median:,g}, 95% below {p95:,g}"
        facts.append(("characters", spread.format(**description["characters"])))
    return facts + format_samples(description["samples"])


def format_samples(samples: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return a line for each of the first rows: its id and the beginning of its texts."""
    facts = []
    for number, row in enumerate(samples, 1):
        texts = [shorten(format_value(value), SAMPLE_WIDTH) for name, value in row.items() if name != "id"]
        facts.append((f"row {number}", ": ".join([format_id(row["id"]), " | ".join(texts)]).removesuffix(": ")))
    return facts
