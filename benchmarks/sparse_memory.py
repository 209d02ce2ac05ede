"""How much more memory does a SPLADE job need than a dense one? Two networks of one shape, with random weights.

    python benchmarks/sparse_memory.py [-m MODEL] [--rows N] [--json FILE]

No model is needed but one whose tokenizer is borrowed, and no rows: they are generated. Exits with 1 if the peak
memory of the SPLADE job is more than ALLOWED_RATIO times that of the dense one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from command_line import JsonPath, make_app, publish
from embedcli import __version__
from embedcli.benchmark.contenders import EmbedcliRun, run_embedcli
from embedcli.benchmark.dataset import write_jsonl
from embedcli.benchmark.machine import describe_machine
from embedcli.benchmark.results import round_floats
from embedcli.benchmark.text_tables import format_machine, format_row
from embedcli.cli.console import print_note
from embedcli.core.constants import DEFAULT_MODEL
from embedcli.core.errors import EmbedcliError
from embedcli.core.job import Job
from embedcli.models import resolve
from random_models import (
    MAX_TOKENS,
    SIZES,
    TextGenerator,
    create_random_model,
    create_random_network,
    draw_mixed_lengths,
    use_cache,
    write_json,
)

ALLOWED_RATIO = 1.5
LAYERS, WIDTH = SIZES["small"]
KINDS = ("dense", "sparse")
# The class of each module, as sentence-transformers writes it, and its folder.
SPLADE_MODULES = (
    ("sentence_transformers.base.modules.transformer.Transformer", ""),
    ("sentence_transformers.sparse_encoder.modules.splade_pooling.SpladePooling", "1_SpladePooling"),
)


def main(
    model: Annotated[str, typer.Option("--model", "-m", metavar="MODEL", help="Whose tokenizer is used.")] = (
        DEFAULT_MODEL
    ),
    rows: Annotated[int, typer.Option("--rows", min=1, help="Rows of each job.")] = 400,
    json: JsonPath = None,
) -> None:
    """Measure the peak memory of a dense and of a SPLADE job, after the runs that compile the networks."""
    figures = measure(resolve.resolve_model(Job((), "", model=model)).path, rows, print_note)
    publish(figures, format_table(figures), json)
    if figures["ratio"] > ALLOWED_RATIO:
        raise EmbedcliError("the SPLADE job takes too much memory", "this is a defect: please report the table")


def measure(
    source: Path, rows: int, notify: Callable[[str], None], layers: int = LAYERS, width: int = WIDTH
) -> dict[str, Any]:
    """Measure the peak memory of both jobs.

    Args:
        source: The folder of a model whose tokenizer is used.
        rows: The number of rows, of mixed lengths.
        notify: Receives one line of progress at a time.
        layers: The layers of both networks.
        width: The hidden size of both networks.

    Returns:
        The figures that `--json` writes; `compiling_mb` is the peak of the run that also compiles the network.

    Raises:
        ModelError: A model cannot be created, or embedcli failed.
    """
    machine = describe_machine()
    figures: dict[str, Any] = {"embedcli": __version__, "machine": machine, "rows": rows}
    with tempfile.TemporaryDirectory(prefix="embedcli-bench-") as place, use_cache(f"{place}/cache"):
        folder = Path(place)
        models = {
            "dense": create_random_model(folder / "dense", source, layers, width),
            "sparse": create_random_splade(folder / "sparse", source, layers, width),
        }
        texts = folder / "rows.jsonl"
        write_jsonl(texts, TextGenerator.for_model(models["dense"]).generate(draw_mixed_lengths(rows)))
        for kind in KINDS:
            contender = EmbedcliRun("embedcli", ("--model", str(models[kind])))
            compiling, timing = (run_embedcli(contender, texts, folder) for _ in range(2))
            peaks = {"compiling_mb": compiling.peak_mb, "peak_memory_mb": timing.peak_mb}
            figures[kind] = round_floats(peaks | {"rows_per_second": rows / timing.seconds})
            notify(f"{kind}: {timing.peak_mb:,.0f} MB")
    figures["ratio"] = round(figures["sparse"]["peak_memory_mb"] / figures["dense"]["peak_memory_mb"], 3)
    return figures


def create_random_splade(folder: Path, source: Path, layers: int, width: int) -> Path:
    """Create a SPLADE model with random weights; arguments, result and errors as of `create_random_model`."""
    create_random_network(folder, source, layers, width, "words")
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": module}
        for number, (module, path) in enumerate(SPLADE_MODULES)
    ]
    (folder / "1_SpladePooling").mkdir()
    write_json(folder / "1_SpladePooling" / "config.json", {"pooling_strategy": "max", "activation_function": "relu"})
    write_json(folder / "sentence_bert_config.json", {"transformer_task": "fill-mask", "max_seq_length": MAX_TOKENS})
    write_json(folder / "config_sentence_transformers.json", {"model_type": "SparseEncoder"})
    write_json(folder / "modules.json", modules)
    return folder


def format_table(figures: Mapping[str, Any]) -> str:
    """The peak memory of both jobs, as a text table."""
    lines = [*format_machine(figures["machine"]), "", format_row("job", ("memory", "compiling", "rows/s"))]
    for kind in KINDS:
        run = figures[kind]
        cells = (
            f"{run['peak_memory_mb']:,.0f} MB",
            f"{run['compiling_mb']:,.0f} MB",
            f"{run['rows_per_second']:,.0f}",
        )
        lines.append(format_row(kind, cells))
    return "\n".join([*lines, f"ratio {figures['ratio']:.2f}; allowed is {ALLOWED_RATIO:.2f}"])


app = make_app(main)

if __name__ == "__main__":
    app()
