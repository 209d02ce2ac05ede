"""Write the generated parts of the documentation, or check with --check that they are up to date.

README.md             <!-- commands --> ... <!-- end -->   the real `--help` of every command
docs/architecture.md   <!-- layers --> ... <!-- end -->   the layers that import-linter checks
docs/architecture.md  <!-- modules --> ... <!-- end -->   first docstring line of every module
tests/error_texts.md                                      every error text of the source
docs/embedcli.1                                           the man page, from the same help
"""

from __future__ import annotations

import ast
import difflib
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import errors
import manpage

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "embedcli"
README = Path("README.md")
ARCHITECTURE = Path("docs/architecture.md")
ERRORS = Path("tests/error_texts.md")
MAN = Path("docs/embedcli.1")
# What the program uses on any terminal of 80 columns or more.
WIDTH = 78


def main() -> int:
    """0 when the documents say what they should, or were made to; 1 and a diff when --check finds them stale."""
    stale = {name: text for name, text in generated().items() if text != content(name)}
    if "--check" in sys.argv[1:]:
        for name, text in stale.items():
            sys.stdout.writelines(changes(name, text))
        return 1 if stale else 0
    for name, text in stale.items():
        (ROOT / name).write_text(text, "utf-8")
        print(f"wrote {name}")
    return 0


def content(name: Path) -> str:
    """What a file says now; nothing where there is none."""
    return (ROOT / name).read_text("utf-8") if (ROOT / name).exists() else ""


def generated() -> dict[Path, str]:
    """What the documents should say: their own text with every block filled in."""
    return {
        README: fill(README, {"commands": command_sections()}),
        ARCHITECTURE: fill(ARCHITECTURE, {"modules": module_table(), "layers": layer_block()}),
        ERRORS: errors.table(),
        MAN: man_page(),
    }


def fill(document: Path, blocks: Mapping[str, str]) -> str:
    """The text of `document` with each block between its markers. Exits when a marker is missing or unknown."""
    text = (ROOT / document).read_text("utf-8")
    present = set(re.findall(r"^<!-- (commands|layers|modules) -->$", text, re.MULTILINE))
    if present != set(blocks):
        lost = [f"no block for {name}" for name in sorted(set(blocks) - present)]
        idle = [f"nothing generates {name}" for name in sorted(present - set(blocks))]
        sys.exit(f"{document}: {'; '.join(lost + idle)}")
    for name, body in blocks.items():
        marker = f"<!-- {name} -->\n"
        start = text.index(marker) + len(marker)
        text = text[:start] + body + "\n" + text[text.index("<!-- end -->", start) :]
    return text


def man_page() -> str:
    """docs/embedcli.1, which the wheel installs as share/man/man1/embedcli.1."""
    import embedcli

    return manpage.page(embedcli.__version__, {name: help_text(name) for name in ("", *commands())})


def command_sections() -> str:
    """What `embedcli --help` prints, then a section for each command."""
    sections = [fenced(help_text()), *(f"### embedcli {name}\n\n{fenced(help_text(name))}" for name in commands())]
    return "\n\n".join(sections)


def fenced(text: str) -> str:
    return f"```text\n{text}\n```"


def commands() -> list[str]:
    """Every command a user can see, in the order of the app; "batch export" is a command of the group "batch"."""
    from typer.main import get_command

    from embedcli.cli import app

    return list(visible(get_command(app), ""))


def visible(group: Any, prefix: str) -> Iterator[str]:
    for name, command in group.commands.items():
        if not command.hidden:
            yield prefix + name
        if hasattr(command, "commands"):
            yield from visible(command, f"{prefix}{name} ")


def help_text(command: str = "") -> str:
    """What the program prints for `embedcli COMMAND --help`, at a width that no terminal decides."""
    from typer.testing import CliRunner

    from embedcli.cli import app

    runner = CliRunner(env={"NO_COLOR": "1", "TERM": "dumb"})
    done = runner.invoke(app, [*command.split(), "--help"], prog_name="embedcli", terminal_width=WIDTH)
    if done.exit_code:
        sys.exit(f"embedcli {command} --help failed:\n{done.output}")
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


def module_table() -> str:
    """One row per module: its path under src/embedcli and the first line of its docstring."""
    rows = [f"| `{module}` | {first_line(path)} |" for module, path in modules()]
    return "\n".join(["| module | one line |", "|---|---|", *rows])


def modules() -> list[tuple[str, Path]]:
    """Modules in path order; a package stands for its `__init__.py`, before what it holds."""
    named = {str(path.relative_to(PACKAGE)): path for path in PACKAGE.rglob("*.py")}
    shown = {name.removesuffix("__init__.py") or "__init__.py": path for name, path in named.items()}
    return sorted(shown.items())


def layer_block() -> str:
    """The layers of the first import contract, top to bottom."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    return fenced("\n".join(re.sub(r"[()]", "", layer) for layer in layers))


def first_line(path: Path) -> str:
    doc = ast.get_docstring(ast.parse(path.read_text("utf-8")))
    if not doc:
        sys.exit(f"{path.relative_to(ROOT)} has no docstring: its first line goes into {ARCHITECTURE}.")
    return doc.splitlines()[0].rstrip(".").replace("|", "\\|")


def changes(name: Path, text: str) -> list[str]:
    """A unified diff from the document as it is to the document as it should be."""
    old = content(name)
    return list(
        difflib.unified_diff(
            old.splitlines(keepends=True), text.splitlines(keepends=True), str(name), f"{name} (generated)"
        )
    )


if __name__ == "__main__":
    sys.exit(main())
