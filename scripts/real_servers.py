"""Embed with a server that others wrote: infinity, with a small random model, on this machine and without a network.

    python3.11 -m venv .venv-infinity
    .venv-infinity/bin/pip install infinity-emb==0.0.77 "torch==2.13.0" "transformers<4.49" "sentence-transformers<4" \
        "optimum<2" prometheus-fastapi-instrumentator orjson posthog httptools uvloop uvicorn fastapi
    .venv/bin/python scripts/real_servers.py --infinity .venv-infinity/bin/infinity_emb

The vectors must be those of the same model in embedcli, and `verify` must accept them, canaries included.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "sample_data" / "texts.jsonl"
MODEL = "all-MiniLM-L6-v2-shape"
START_SECONDS = 120


def embedcli(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "embedcli", *map(str, arguments)], check=True)


def read_vectors(path: Path) -> np.ndarray:
    return np.array(pq.read_table(path).column("embedding").to_pylist(), np.float32)


def wait_for(url: str) -> None:
    for _ in range(START_SECONDS):
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(1)
    raise SystemExit(f"{url} did not answer within {START_SECONDS} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--infinity", required=True, help="path of the program infinity_emb")
    parser.add_argument("--port", type=int, default=7997)
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    import models

    folder, base_url = models.folder(MODEL), f"http://127.0.0.1:{arguments.port}/v1"
    command = [
        arguments.infinity, "v2", "--model-id", str(folder), "--served-model-name", "tiny", "--device", "cpu",
        "--engine", "torch", "--port", str(arguments.port), "--url-prefix", "/v1",
    ]  # fmt: skip
    with (
        tempfile.TemporaryDirectory() as made,
        subprocess.Popen(command, env={**os.environ, "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}) as server,
    ):
        try:
            wait_for(f"{base_url}/models")
            hosted, local = Path(made, "hosted.parquet"), Path(made, "local.parquet")
            embedcli("encode", SAMPLE, hosted, "-m", "openai:tiny", "--base-url", base_url)
            embedcli("verify", hosted, SAMPLE, "--base-url", base_url)
            embedcli("encode", SAMPLE, local, "-m", folder, "--offline")
            cosines = np.einsum("ij,ij->i", read_vectors(hosted), read_vectors(local))
        finally:
            server.terminate()
    print(f"lowest cosine with the model in embedcli: {cosines.min():.6f}")
    if cosines.min() < 0.9999:
        raise SystemExit("the vectors differ")


if __name__ == "__main__":
    main()
