"""Every error text of the source in one table, to be read in one go: tests/error_texts.md."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "embedcli"
ROOT_ERROR = "EmbedcliError"
HEAD = """# Error texts

Every error that a user can meet, module by module, as `make docs` finds them in the source: the message, and below it
the hint, which says what to type next. `{...}` is filled in when it happens; `|` parts alternatives.
"""


@dataclass(frozen=True)
class ErrorText:
    """One construction of an error: where, its class, and its two texts with `{...}` for what is filled in."""

    module: str
    kind: str
    message: str
    hint: str


def collected(package: Path = PACKAGE) -> list[ErrorText]:
    """The error texts of all modules, in order of path and line."""
    trees = {
        str(path.relative_to(package)): ast.parse(path.read_text("utf-8")) for path in sorted(package.rglob("*.py"))
    }
    kinds = error_classes(trees.values())
    return [text for module, tree in trees.items() for text in Texts(module, tree, kinds).found()]


def error_classes(trees: object) -> set[str]:
    """Names of EmbedcliError and everything derived from it."""
    bases = {
        node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
        for tree in trees  # type: ignore[attr-defined]
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    kinds = {ROOT_ERROR}
    while more := {name for name, of in bases.items() if of & kinds} - kinds:
        kinds |= more
    return kinds


class Texts:
    """The error texts of one module."""

    def __init__(self, module: str, tree: ast.Module, kinds: set[str]) -> None:
        self.module = module
        self.tree = tree
        self.kinds = kinds
        self.constants = assigned(tree.body)

    def found(self) -> Iterator[ErrorText]:
        yield from self._inside(self.tree, self.constants)

    def _inside(self, node: ast.AST, names: dict[str, ast.expr]) -> Iterator[ErrorText]:
        for child in ast.iter_child_nodes(node):
            known = names
            if isinstance(child, ast.FunctionDef):
                known = {**names, **assigned(ast.walk(child))}
            if isinstance(child, ast.Call) and isinstance(child.func, ast.Name) and child.func.id in self.kinds:
                yield self._text(child, child.func.id, known)
            yield from self._inside(child, known)

    def _text(self, call: ast.Call, kind: str, names: dict[str, ast.expr]) -> ErrorText:
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        message = call.args[0] if call.args else given.get("message")
        hint = call.args[1] if len(call.args) > 1 else given.get("hint")
        both = [shown(part, names) if part is not None else "" for part in (message, hint)]
        if message is not None and isinstance(message, ast.Starred):
            both = [both[0], both[0]]
        return ErrorText(self.module, kind, *both)


def assigned(nodes: object) -> dict[str, ast.expr]:
    """Names to which a text is given; a name given twice, or in parts, stays a name."""
    found: dict[str, list[ast.expr]] = {}
    for node in nodes:  # type: ignore[attr-defined]
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            found.setdefault(node.targets[0].id, []).append(node.value)
    return {name: values[0] for name, values in found.items() if len(values) == 1 and is_text(values[0])}


def is_text(value: ast.expr) -> bool:
    parts = [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]
    return all(
        isinstance(one, ast.JoinedStr) or (isinstance(one, ast.Constant) and isinstance(one.value, str))
        for one in parts
    )


def shown(value: ast.expr, names: dict[str, ast.expr]) -> str:
    """A text as it reads, expressions in braces."""
    text = "{" + ast.unparse(value).replace("\n", " ") + "}"
    match value:
        case ast.Constant(value=str(plain)):
            text = plain
        case ast.JoinedStr(values=parts):
            text = "".join(shown(part, names) for part in parts)
        case ast.FormattedValue(value=inner, conversion=conversion):
            text = shown(inner, names)
            if conversion == ord("r") and text.startswith("{"):
                text = text.replace("}", "!r}")
        case ast.IfExp(body=one, orelse=other):
            text = f"{shown(one, names)} | {shown(other, names)}"
        case ast.BinOp(left=left, op=ast.Add(), right=right) if is_text(left) or is_text(right):
            text = shown(left, names) + shown(right, names)
        case ast.Name(id=name) if name in names:
            text = shown(names[name], {key: one for key, one in names.items() if key != name})
    return text


def table() -> str:
    """The whole page."""
    lines = [HEAD]
    module = ""
    for text in collected():
        if text.module != module:
            module = text.module
            lines.append(f"\n## {module}\n")
        lines.append(f"- {text.kind}: {text.message}\n")
        lines.append(f"  - {text.hint}\n" if text.hint else "")
    return "".join(lines)
