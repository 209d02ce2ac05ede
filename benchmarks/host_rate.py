"""How many rows per second can the host bring from a file to a GPU and back to a file, if the GPU took no time?

    python benchmarks/host_rate.py [--threads 2] [--repeat 3] [MODEL]

The stages are those of `embedcli encode --device cuda`: reading, tokenizing, packing batches without padding, copying
them, launching as many small operations as a transformer's layers do, checking the vectors, writing Parquet. Only the
transformer itself is missing. Prints rows and tokens per second, the best of the repetitions, for the model sizes and
row lengths of random_models.py.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from embedcli import encoders, runners
from embedcli.api.options import build_job
from embedcli.benchmark.dataset import write_jsonl
from embedcli.core.constants import DEFAULT_MODEL
from embedcli.core.encoder import BaseEncoder, Tokens
from embedcli.core.types import RunObserver
from embedcli.encoders.tokenize.fast import MIN_PARALLEL_CHARACTERS
from embedcli.encoders.tokenize.word_cache import choose_tokenizer
from embedcli.encoders.torch import varlen_attention
from embedcli.encoders.torch.encoder import PORTION_CHARACTERS, TORCH_BATCH_TOKENS
from embedcli.encoders.torch.transfer import PendingVectors
from embedcli.models import resolve
from embedcli.pipeline.control import RunControl
from embedcli.pipeline.metrics import MetricsCollector
from random_models import ROW_KINDS, SIZES, TextGenerator

# GPU operations of one BERT layer on a batch without padding, counted with a profiler.
OPERATIONS_PER_LAYER = 17
ROWS = {"short": 200_000, "mixed": 60_000, "long": 12_000}
CHUNK_ROWS = 16_384


class InstantEncoder(BaseEncoder):
    """An encoder with a real tokenizer whose forward pass returns ones at once."""

    lanes, multiple, batch_tokens, empty_reason = 2, 0, TORCH_BATCH_TOKENS["cuda"], "no token left of the text"
    portion_characters = PORTION_CHARACTERS

    def __init__(self, real: Any, threads: int, layers: int, dim: int) -> None:
        self._real, self._operations, self.dim = real, OPERATIONS_PER_LAYER * layers, dim
        # Replaced in place: a second tokenizer would read the model's files again.
        self.words = real.words
        self.words._batch_tokenizer = choose_tokenizer(self.words._tokenizer, threads, MIN_PARALLEL_CHARACTERS)
        self._flat = varlen_attention.VarlenBatcher(lambda query, *_: query, 0)
        self._one = torch.ones(1)

    def vector_space(self) -> dict[str, Any]:
        return {**self._real.vector_space(), "dim": self.dim}

    def tokenize(self, texts: Any) -> Tokens:
        tokens: Tokens = self.words.tokenize(texts)
        return tokens

    def forward(self, tokens: Tokens, rows: Any) -> PendingVectors:
        self._flat.build_features(tokens, rows, lambda array: torch.from_numpy(array).clone())
        for _ in range(self._operations):
            self._one.add(1)
        vectors = torch.ones(len(rows), self.dim)
        return PendingVectors(vectors.clone(), torch.isfinite(vectors).all() & vectors.any(1).all())

    def collect(self, output: PendingVectors) -> Any:
        return output.vectors.numpy()

    def has_verified_vectors(self, output: PendingVectors) -> bool:
        return bool(output.has_usable_vectors)

    def encode_float32(self, tokens: Tokens, rows: Any) -> Any:
        return self.collect(self.forward(tokens, rows))

    def close(self) -> None:
        self._real.close()


def main() -> None:
    """Print a line for each model size and kind of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=DEFAULT_MODEL)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--share", type=float, default=1.0, help="share of the rows to use")
    options = parser.parse_args()
    flags: dict[str, Any] = {"device": "cpu", "engine": "torch", "overwrite": True, "chunk_rows": CHUNK_ROWS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = build_job([], "-", options.model, flags, "encode_file")
        generator = TextGenerator.for_model(resolve.resolve_model(job).path)
        for kind in ROW_KINDS:
            rows = folder / f"{kind.name}.jsonl"
            write_jsonl(rows, generator.generate(kind.lengths(max(1, int(ROWS[kind.name] * options.share)))))
            job = build_job([str(rows)], folder / "out.parquet", job.model, flags, "encode_file")
            for size, shape in SIZES.items():
                rates = [measure_rate(job, options.threads, *shape) for _ in range(options.repeat)]
                print(f"{size:<6} {kind.name:<6} {max(rates)[0]:>9,.0f} rows/s {max(rates)[1]:>12,.0f} tokens/s")


def measure_rate(job: Any, threads: int, layers: int, dim: int) -> tuple[float, float]:
    """Measure rows and tokens per second, from the first read to the last vector."""
    meter = MetricsCollector()

    def load(job: Any, notify: Any) -> Any:
        return InstantEncoder(encoders.load_encoder(job, notify=notify), threads, layers, dim)

    outcome = runners.execute_job(job, RunObserver(), RunControl(None, None), meter, load)
    return outcome.totals["rows"] / meter.forward_seconds, outcome.totals["tokens"] / meter.forward_seconds


if __name__ == "__main__":
    main()
