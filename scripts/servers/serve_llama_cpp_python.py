"""Serve a model with the server of llama-cpp-python. Runs in the servers' environment.

PYTHONPATH=scripts python -m servers.serve_llama_cpp_python MODEL_FOLDER PORT
"""

from __future__ import annotations

import runpy
import sys
import tempfile
from pathlib import Path

from servers.convert_gguf import convert

MAX_TOKENS = 256


def main() -> None:
    """Convert the model and serve it."""
    folder, port = Path(sys.argv[1]), sys.argv[2]
    with tempfile.TemporaryDirectory() as made:
        path = Path(made) / "model.gguf"
        convert(folder, path)
        limits = ["--n_ctx", str(MAX_TOKENS), "--n_batch", str(MAX_TOKENS), "--n_threads", "1"]
        place = ["--host", "127.0.0.1", "--port", port]
        sys.argv = ["llama_cpp.server", "--model", str(path), "--embedding", "true", *limits, *place]
        runpy.run_module("llama_cpp.server", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
