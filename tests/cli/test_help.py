"""Help: examples on top, options in panels, a short and a full text, and colour on a terminal only."""

from __future__ import annotations

import io
import os
import shlex
import sys

import pytest
from typer.main import get_command

import jobs
from embedcli.cli import app
from embedcli.cli.config_file import collect_options
from embedcli.cli.console import has_color
from embedcli.cli.examples import EXAMPLES
from embedcli.cli.option_groups import COMMON_OPTIONS, OWN_PANEL, PANELS, find_panel
from embedcli.cli.options import JOB_FLAGS


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def leaves() -> list[str]:
    return [name.replace(".", " ") for name in collect_options(get_command(app))]


def test_every_option_of_a_job_has_a_panel() -> None:
    assert [flag.name for flag in JOB_FLAGS if find_panel(flag.name) == OWN_PANEL] == []


def test_no_panel_names_an_option_that_no_command_has() -> None:
    names = {option.name for options in collect_options(get_command(app)).values() for option in options.values()}
    named = {name for panel in PANELS.values() for name in panel} | COMMON_OPTIONS
    assert named - names == {"install_completion", "show_completion", "help"}


def test_panels_follow_each_other_and_begin_with_what_is_used_most() -> None:
    text = jobs.run("encode", "--help").out
    titles = [line[:-1] for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles == ["Examples", "Arguments", *[panel for panel in PANELS if panel != OWN_PANEL]]
    assert text.index("--text-column COLUMN") < text.index("--skip-lines N")
    assert "--max-seconds SECONDS" in text
    assert "--report PATH" in text


def test_the_short_help_has_the_common_options_only() -> None:
    short, full = jobs.run("encode", "-h").out, jobs.run("encode", "--help").out
    assert "--text-column" in short
    assert "--skip-lines" in full
    assert "--skip-lines" not in short
    assert short.count("\n  -") <= 24
    assert "`embedcli encode --help` lists all" in short or "--help` lists all" in short
    assert jobs.run("merge", "-h").out == jobs.run("merge", "--help").out


def test_commands_are_in_panels_and_no_sentence_is_cut() -> None:
    text = jobs.run("--help").out
    assert [title for title in ("Embed:", "Look:", "Check:", "Models:") if f"\n{title}\n" not in text] == []
    for name in leaves():
        assert "..." not in jobs.run(*name.split(), "--help").out.replace("INPUT...", "").replace("OTHER...", "") \
            .replace("FILE...", "").replace("RESULTS...", "").replace("[WORDS]...", "")  # fmt: skip


@pytest.mark.parametrize("name", leaves())
def test_every_command_has_examples_that_it_accepts(name: str) -> None:
    """Each is parsed as it is, with no file read."""
    assert EXAMPLES.get(name), name
    for example in EXAMPLES[name]:
        program, *arguments = shlex.split(example)
        assert (program, arguments[: len(name.split())]) == ("embedcli", name.split())
        command = get_command(app)
        for word in name.split():
            command = command.commands[word]  # type: ignore[attr-defined]
        context = command.make_context(name, arguments[len(name.split()) :])
        assert context.params


def test_colour_is_for_terminals_that_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert has_color(Terminal())
    assert not has_color(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not has_color(Terminal())
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not has_color(Terminal())


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
@pytest.mark.parametrize(("variables", "is_colored"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_help_and_errors_on_a_terminal_have_colour(variables: dict[str, str], is_colored: bool) -> None:
    import pty
    import subprocess

    for arguments, plain in ((["--help"], "Examples:"), (["encod"], "error: 'encod' is not a command")):
        main, terminal = pty.openpty()
        env = {**{name: value for name, value in os.environ.items() if name != "NO_COLOR"}, "TERM": "xterm"}
        done = subprocess.Popen(
            jobs.command(*arguments), stdout=terminal, stderr=terminal, stdin=terminal, env=env | variables
        )
        os.close(terminal)
        text = b""
        try:
            while part := os.read(main, 1 << 16):
                text += part
        except OSError:  # the other end is closed
            pass
        done.wait(timeout=jobs.PATIENCE)
        os.close(main)
        assert (b"\x1b[" in text) is is_colored
        assert (plain.encode() in text) is not is_colored


def test_without_arguments_the_help_is_a_usage_error() -> None:
    done = jobs.run()
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Usage: embedcli") or "Usage:" in done.err
