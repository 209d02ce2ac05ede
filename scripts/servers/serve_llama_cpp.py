"""Serve a model with llama.cpp's own HTTP server, from the package xllamacpp. Runs in the servers' environment.

PYTHONPATH=scripts python -m servers.serve_llama_cpp MODEL_FOLDER PORT
"""

from __future__ import annotations

import signal
import sys
import tempfile
from pathlib import Path

from servers.convert_gguf import convert

MAX_TOKENS = 256


def main() -> None:
    """Convert the model, serve it, and print its address once it answers."""
    import xllamacpp

    folder, port = Path(sys.argv[1]), int(sys.argv[2])
    with tempfile.TemporaryDirectory() as made:
        path = Path(made) / "model.gguf"
        convert(folder, path)
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.hostnames = ["127.0.0.1"]
        parameters.port = port
        parameters.embedding = True
        parameters.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        parameters.n_ctx = 2 * MAX_TOKENS
        parameters.n_parallel = 2
        # A sequence without a causal mask has to fit into one physical batch.
        parameters.n_batch = parameters.n_ubatch = MAX_TOKENS
        # More threads than free processors wait for each other in a loop.
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
        server = xllamacpp.Server(parameters)
        print(server.listening_address, flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
