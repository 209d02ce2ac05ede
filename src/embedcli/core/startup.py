"""Import settings that keep the start of the process short."""

from __future__ import annotations

import sys


def block_pandas_import() -> None:
    """Keep pyarrow from importing pandas for its first array of Python values, which takes 0.2 s and 40 MB.

    pyarrow tries the import only once; other libraries can still import pandas afterwards.
    """
    if "pandas" in sys.modules:
        return
    import pyarrow as pa

    finder = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(finder)


class _NoPandas:
    # importlib.abc.MetaPathFinder, its base class, would import importlib.resources.
    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname == "pandas":
            raise ImportError("pandas is not needed here")
