"""The man page, made from the help texts: one section for the program and one for each command."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

EXIT_CODES = (
    ("0", "all rows embedded"),
    ("1", "failed"),
    ("2", "usage, configuration, or an output that belongs to another job"),
    ("3", "finished, some rows rejected"),
    ("75", "stopped early by a limit, SIGTERM or SIGHUP: run the same command again to continue"),
    ("130", "Ctrl-C"),
)
FILES = (
    (
        "embedcli.toml",
        "Long option names as keys, read from the current folder; a table such as [encode] is for one command.",
    ),
    ("pyproject.toml", "The same under [tool.embedcli], used if there is no embedcli.toml."),
)


# A panel of options, arguments or commands begins with its title on a line of its own.
PANEL_TITLE = r"[A-Z][A-Za-z ]*:"
EXAMPLES_TITLE = "Examples:"


def page(version: str, helps: Mapping[str, str]) -> str:
    """Return embedcli.1 as man(7) source.

    Args:
        version: The version of the program, for the page's footer.
        helps: What each command prints for --help, by its name; "" is the program itself.
    """
    about = paragraphs(helps[""])[1]
    lines = [
        f'.TH EMBEDCLI 1 "" "embedcli {version}" "User Commands"',
        ".SH NAME",
        f"embedcli \\- {escape(about.rstrip('.').replace(': ', '; ')).lower()}",
        ".SH SYNOPSIS",
        ".B embedcli",
        ".I COMMAND",
        "[\\fIOPTIONS\\fR] ...",
        ".SH DESCRIPTION",
        escape(about),
        "Rows go to the output or to stdout; messages go to stderr.",
        *options(helps[""]),
    ]
    for command, text in helps.items():
        if command:
            lines += [f'.SH "EMBEDCLI {command.upper()}"', *body(text), *options(text)]
    lines += [".SH EXIT STATUS", *terms(EXIT_CODES), ".SH FILES", *terms(FILES), ".SH ENVIRONMENT"]
    lines += [
        "Every option of a job can also be set by an environment variable:",
        ".BR \\-\\-text\\-column ,",
        "for example, by EMBEDCLI_TEXT_COLUMN. Keys come from the environment only: OPENAI_API_KEY, HF_TOKEN.",
        "The command line overrides the environment, and the environment overrides files.",
    ]
    return "\n".join(lines) + "\n"


def body(text: str) -> Iterator[str]:
    """Yield the usage and the description of a command."""
    usage, *rest = paragraphs(text)
    yield ".nf"
    yield f".B {escape(usage.removeprefix('Usage: '))}"
    yield ".fi"
    for paragraph in rest:
        if re.match(PANEL_TITLE, paragraph):
            return
        yield ".PP"
        yield escape(paragraph)


def options(text: str) -> Iterator[str]:
    """Yield the arguments, options and commands of a help text, each with its description."""
    for title, listed in re.findall(rf"^({PANEL_TITLE})\n((?:  .*\n?)+)", text, re.MULTILINE):
        yield ".PP"
        yield title
        if title == EXAMPLES_TITLE:
            yield ".nf"
            yield from (escape(line.strip()) for line in listed.splitlines())
            yield ".fi"
            continue
        entries: list[list[str]] = []
        for line in listed.splitlines():
            if not line.startswith("   "):
                entries.append(re.split(r"  +", line.strip(), maxsplit=1))
            else:
                entries[-1].append(line.strip())
        yield from terms((name, " ".join(description)) for name, *description in entries)


def terms(pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    for name, description in pairs:
        yield ".TP"
        yield f".B {escape(name)}"
        yield escape(description) or "\\&"


def paragraphs(text: str) -> list[str]:
    """Return the blocks between empty lines, each joined into one line."""
    return [" ".join(line.strip() for line in block.splitlines()) for block in re.split(r"\n\s*\n", text.strip())]


def escape(text: str) -> str:
    """Return the troff source that shows `text` literally."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + escaped if escaped.startswith((".", "'")) else escaped
