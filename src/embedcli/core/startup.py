"""Import settings that keep the start of the process short."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    pass


def block_pandas_import() -> None:
    """Let pyarrow find no pandas: it imports it at the first array made of Python values, half a second for nothing.

    pyarrow looks once and remembers; other libraries that want pandas still find it afterwards.
    """
    if "pandas" in sys.modules:
        return
    finder = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(finder)


class _NoPandas(MetaPathFinder):
    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname == "pandas":
            raise ImportError("pandas is not needed here")
