"""The base class of the databases of the contract tests."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

TABLE = "docs"


class Backend(ABC):
    """One database, empty.

    Attributes:
        packages: What must be installed; without them its tests are skipped.
        module: The module of embedcli that talks to it, in whose code a test kills the process.
        precisions: Precisions of outputs that it takes, beside int8 and uint8; the others must be refused.
        kinds: Kinds of vectors that it takes.
        takes_nul: Whether texts may have NUL characters.
        has_index: Whether --index builds one.
        can_swap: Whether --swap is possible.
        refusal: What a second load at the same time is told; empty for servers, which let both write.
        can_repeat_ids: Whether another program may add a second row with an id.
        repairs_ids: Whether a load deletes such a row.
        reserved: Names that no table may have.
        neighbours: Names that other programs may have used, and a load might take for its own; {} is the table.
        has_case_sensitive_names: Whether `docs` and `DOCS` are two tables.
    """

    packages: ClassVar[tuple[str, ...]]
    module: ClassVar[str]
    precisions: ClassVar[Sequence[str]] = ("float32", "float16")
    kinds: ClassVar[Sequence[str]] = ("dense",)
    takes_nul: ClassVar[bool] = True
    has_index: ClassVar[bool] = False
    can_swap: ClassVar[bool] = True
    refusal: ClassVar[str] = ""
    can_repeat_ids: ClassVar[bool] = True
    repairs_ids: ClassVar[bool] = False
    reserved: ClassVar[Sequence[str]] = ()
    neighbours: ClassVar[Sequence[str]] = ()
    has_case_sensitive_names: ClassVar[bool] = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def missing_packages(cls) -> list[str]:
        return [name for name in cls.packages if find_spec(name) is None]

    @property
    @abstractmethod
    def address(self) -> str:
        """The address for embedcli."""

    @abstractmethod
    def ids(self, table: str = TABLE, column: str = "id") -> list[Any]:
        """The ids of all rows, in any order."""

    @abstractmethod
    def delete(self, id: str, table: str = TABLE) -> None:
        """Delete a row."""

    @abstractmethod
    def change_vector(self, id: str, vector: Sequence[Any], table: str = TABLE) -> None:
        """Give a row another vector, or other vectors of its tokens, and leave its other columns as they are."""

    @abstractmethod
    def repeat(self, id: str, table: str = TABLE) -> None:
        """Add a second row like the one with this id."""

    @abstractmethod
    def create_foreign_table(self, table: str = TABLE) -> None:
        """Create a table `docs` with a column `id` and the row `theirs`, as another program would."""

    def close(self) -> None:  # noqa: B027  embedded databases have nothing to end
        """End what runs."""
