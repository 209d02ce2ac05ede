"""The man page, from what `--help` says: one section for the program and one for each command."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

EXIT_CODES = (
    ("0", "all rows embedded"),
    ("1", "failed"),
    ("2", "usage, configuration, or an output that belongs to another job"),
    ("3", "finished, and some rows were rejected"),
    ("75", "stopped early by a limit or a signal: run the same command to go on"),
    ("130", "Ctrl-C"),
)
FILES = (
    (
        "embedcli.toml",
        "Flags by their long names, read from the current folder; a table such as [encode] is for one command.",
    ),
    ("pyproject.toml", "The same under [tool.embedcli], where there is no embedcli.toml."),
)


def page(version: str, helps: Mapping[str, str]) -> str:
    """embedcli.1 as man(7) source. `helps` has what each command prints for --help; "" is the program itself."""
    about = paragraphs(helps[""])[1]
    lines = [
        f'.TH EMBEDCLI 1 "" "embedcli {version}" "User Commands"',
        ".SH NAME",
        f"embedcli \\- {plain(about.rstrip('.').replace(': ', '; ')).lower()}",
        ".SH SYNOPSIS",
        ".B embedcli",
        ".I COMMAND",
        "[\\fIOPTIONS\\fR] ...",
        ".SH DESCRIPTION",
        plain(about),
        "Rows go to the output or to stdout; everything for people goes to stderr.",
        *options(helps[""]),
    ]
    for command, text in helps.items():
        if command:
            lines += [f'.SH "EMBEDCLI {command.upper()}"', *body(text), *options(text)]
    lines += [".SH EXIT STATUS", *terms(EXIT_CODES), ".SH FILES", *terms(FILES), ".SH ENVIRONMENT"]
    lines += [
        "Every option of a job also reads a variable:",
        ".BR \\-\\-text\\-column ,",
        "for example, reads EMBEDCLI_TEXT_COLUMN. Keys come only from the environment: OPENAI_API_KEY, HF_TOKEN.",
        "The command line comes before the environment, and that before files.",
    ]
    return "\n".join(lines) + "\n"


def body(text: str) -> Iterator[str]:
    """The usage and the description of a command."""
    usage, *rest = paragraphs(text)
    yield ".nf"
    yield f".B {plain(usage.removeprefix('Usage: '))}"
    yield ".fi"
    for paragraph in rest:
        if re.match(r"(Arguments|Options|Commands):", paragraph):
            return
        yield ".PP"
        yield plain(paragraph)


def options(text: str) -> Iterator[str]:
    """Arguments, options and commands of a help text, each with what is said of it."""
    for title, listed in re.findall(r"^(Arguments|Options|Commands):\n((?:  .*\n?)+)", text, re.MULTILINE):
        yield ".PP"
        yield f"{title}:"
        entries: list[list[str]] = []
        for line in listed.splitlines():
            if not line.startswith("   "):
                entries.append(re.split(r"  +", line.strip(), maxsplit=1))
            else:
                entries[-1].append(line.strip())
        yield from terms((name, " ".join(said)) for name, *said in entries)


def terms(pairs: object) -> Iterator[str]:
    for name, said in pairs:  # type: ignore[attr-defined]
        yield ".TP"
        yield f".B {plain(name)}"
        yield plain(said) or "\\&"


def paragraphs(text: str) -> list[str]:
    """Blocks between empty lines, each on one line; lists keep their name in front."""
    return [" ".join(line.strip() for line in block.splitlines()) for block in re.split(r"\n\s*\n", text.strip())]


def plain(text: str) -> str:
    """A text that troff shows as it is."""
    shown = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + shown if shown.startswith((".", "'")) else shown
