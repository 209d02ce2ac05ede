"""Make the start of the process faster."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder

import pyarrow as pa


def block_pandas_import() -> None:
    """Keep pyarrow from importing pandas, which takes half a second and is not used.

    pyarrow tries the import once, at the first array made from Python values. Other libraries can still import pandas.
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
