"""embedcli beside model2vec on a static model with random vectors, made with the tokenizer of another model.

    python benchmarks/random_static_models.py rows.jsonl [-m MODEL] [--rounds 3] [--json FILE]

The vectors are random: only the amount of work counts.
"""

from __future__ import annotations

import json as json_format
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from command_line import JsonPath, Rounds, RowLimit, make_app, publish
from embedcli.benchmark.compare import run_comparison
from embedcli.benchmark.text_tables import format_comparison
from embedcli.cli.bench import make_request
from embedcli.cli.console import print_note
from embedcli.cli.entrypoint import set_environment
from embedcli.cli.options import ENCODER_FLAGS, INPUT_FLAGS, with_job_options
from embedcli.models import resolve

# The width of published small static models.
DIMENSIONS = 256


@with_job_options((*ENCODER_FLAGS, *INPUT_FLAGS))
def main(
    paths: Annotated[list[str], typer.Argument(metavar="INPUT", help="Rows to encode.")],
    *,
    rounds: Rounds = 3,
    rows: RowLimit = None,
    json: JsonPath = None,
    flags: dict[str, Any],
) -> None:
    """Measure embedcli beside model2vec on a static model with random vectors."""
    set_environment(flags)
    source = resolve.resolve_model(make_request(paths, flags).job).path
    with tempfile.TemporaryDirectory(prefix="embedcli-bench-") as name:
        model = make_static_model(Path(name) / "static", source, DIMENSIONS)
        figures = run_comparison(
            make_request(paths, flags | {"model": str(model)}, rounds=rounds, rows=rows), print_note
        )
    publish(figures, format_comparison(figures), json)


def make_static_model(folder: Path, source: Path, dim: int) -> Path:
    """Create a static model with the tokenizer of the model in `source`.

    Args:
        folder: A folder that does not exist yet.
        source: The folder of a model with a tokenizer.json.
        dim: The number of dimensions.

    Returns:
        The folder, in model2vec's format.
    """
    from tokenizers import Tokenizer

    folder.mkdir(parents=True)
    shutil.copy(source / "tokenizer.json", folder)
    last_id = max(Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab().values())
    write_random_vectors(folder, last_id + 1, dim)
    return folder


def write_random_vectors(folder: Path, tokens: int, dim: int) -> None:
    """Write the configuration and a table of normally distributed vectors, float32 [tokens, dim]."""
    from safetensors.numpy import save_file

    table = np.random.default_rng(0).standard_normal((tokens, dim), np.float32)
    save_file({"embeddings": table}, folder / "model.safetensors")
    config = {"model_type": "model2vec", "architectures": ["StaticModel"], "hidden_dim": dim, "normalize": True}
    (folder / "config.json").write_text(json_format.dumps(config), "utf-8")


app = make_app(main)

if __name__ == "__main__":
    app()
