"""How fast is this machine with small, base and large transformers on short, mixed and long rows? Random weights.

    python benchmarks/random_models.py [--sizes small,base,large] [-m MODEL] [--device cuda] [--json FILE]

No model is needed but one whose tokenizer is borrowed, and no rows: they are generated.
"""

from __future__ import annotations

import json as json_format
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from command_line import JsonPath, Rounds, make_app, publish
from embedcli import __version__
from embedcli.benchmark.compare import BenchRequest, run_comparison
from embedcli.benchmark.dataset import write_jsonl
from embedcli.benchmark.model_flops import read_transformer_shape
from embedcli.benchmark.statistics import count_useful_flop
from embedcli.benchmark.text_tables import (
    WIDTH,
    format_best_products,
    format_busy_warning,
    format_cosine,
    format_machine,
    format_percent,
    format_row,
    with_label,
)
from embedcli.benchmark.timed_process import run_measured
from embedcli.cli.bench import make_request
from embedcli.cli.console import print_note
from embedcli.cli.entrypoint import set_environment
from embedcli.cli.options import ENCODER_FLAGS, with_job_options
from embedcli.core.errors import ModelError, UsageError
from embedcli.encoders.torch import device as torch_device
from embedcli.models import resolve

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from embedcli.core.types import Int64Array

PROGRAMS = Path(__file__).parent / "programs"
CACHE_VARIABLE = "EMBEDCLI_CACHE"
# Layers and width of most embedding models: MiniLM, BERT base and BERT large.
SIZES = {"small": (6, 384), "base": (12, 768), "large": (24, 1024)}
MAX_TOKENS = 512
MODULES = ("Transformer", "Pooling", "Normalize")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
# Work of one run, in floating-point operations: about ten seconds of two cores, a few seconds of a large GPU.
CPU_FLOP, GPU_FLOP = 1e12, 2e15
MIN_ROWS, MAX_ROWS = 32, 200_000
# Words to choose from: enough for rows to differ, few enough to find quickly among the tokens.
WORDS = 4000


@with_job_options(ENCODER_FLAGS)
def main(
    *,
    sizes: Annotated[
        str, typer.Option("--sizes", metavar="SIZES", help="Sizes to measure, separated by commas.")
    ] = ",".join(SIZES),
    rounds: Rounds = 3,
    rows: Annotated[int | None, typer.Option("--rows", min=1, help="Rows of each kind; default: by size.")] = None,
    json: JsonPath = None,
    flags: dict[str, Any],
) -> None:
    """Measure embedcli beside sentence-transformers on transformers with random weights."""
    set_environment(flags)

    def request_for(model: Path, input_path: Path) -> BenchRequest:
        return make_request([str(input_path)], flags | {"model": str(model)}, rounds=rounds, peers=False, few=False)

    names = [name.strip() for name in sizes.split(",")]
    figures = measure(names, make_request([], flags, rounds=rounds, rows=rows), request_for, print_note)
    publish(figures, format_table(figures), json)


@dataclass(frozen=True)
class RowKind:
    """Rows of one kind: `lengths(count)` are their tokens, int64 [count], special tokens included."""

    name: str
    lengths: Callable[[int], Int64Array]


@dataclass(frozen=True)
class TextGenerator:
    """Generates texts of a wanted number of tokens, from words that are one token each.

    Attributes:
        words: A numpy array of words.
        special_tokens: The number of tokens that every text has besides its words.
    """

    words: Any
    special_tokens: int

    @classmethod
    def for_model(cls, model: Path) -> TextGenerator:
        """Use the vocabulary of the model in a folder.

        Raises:
            UsageError: The tokenizer has no token that is a whole word.
        """
        tokenizer = load_tokenizer(model)
        tokenizer.no_padding()
        words = np.array(list(islice(find_whole_words(tokenizer), WORDS)))
        if not len(words):
            raise UsageError(f"the tokenizer of {model.name} has no whole words", "name another model with -m")
        return cls(words, tokenizer.num_special_tokens_to_add(is_pair=False))

    def generate(self, lengths: Int64Array) -> list[str]:
        """Generate one text per length, int64 [n] in tokens with special tokens; each has at least one word."""
        random = np.random.default_rng(0)
        counts = np.maximum(1, lengths - self.special_tokens)
        return [" ".join(self.words[random.integers(0, len(self.words), count)]) for count in counts]


def draw_mixed_lengths(count: int) -> Int64Array:
    """Draw lengths like those of documents: half below 80 tokens, one in fifty at the limit (lognormal)."""
    drawn = np.random.default_rng(0).lognormal(np.log(80), 0.9, count)
    return np.clip(drawn, 5, MAX_TOKENS).astype(np.int64)


ROW_KINDS = (
    RowKind("short", lambda count: np.full(count, 20)),
    RowKind("mixed", draw_mixed_lengths),
    RowKind("long", lambda count: np.full(count, MAX_TOKENS)),
)


def measure(
    names: Sequence[str],
    request: BenchRequest,
    request_for: Callable[[Path, Path], BenchRequest],
    notify: Callable[[str], None],
) -> dict[str, Any]:
    """Compare embedcli with the baseline for every size in `names` and every kind of rows.

    Args:
        names: Keys of SIZES.
        request: Its model's tokenizer is used; its `rows`, if set, is the number of rows of each kind.
        request_for: Makes the request to compare a model folder on a file of rows.
        notify: Receives one line of progress at a time.

    Returns:
        The figures that `--json` writes.

    Raises:
        UsageError: A size is unknown, or the model has no tokenizer.json.
        ModelError: A model cannot be created.
    """
    for name in names:
        if name not in SIZES:
            raise UsageError(f"--sizes {name}: there is no such size", f"choose from {', '.join(SIZES)}")
    source = resolve.resolve_model(request.job).path
    generator = TextGenerator.for_model(source)
    comparisons: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="embedcli-bench-") as place, use_cache(f"{place}/cache"):
        for name in names:
            layers, width = SIZES[name]
            notify(f"{name}: creating a transformer of {layers} layers of width {width} with random weights")
            model = create_random_model(Path(place, name), source, layers, width)
            comparisons[name] = {}
            for kind in ROW_KINDS:
                flop = CPU_FLOP if torch_device.runs_on_cpu(request.job) else GPU_FLOP
                count = request.rows or count_rows_for(kind, model, flop)
                rows = Path(place, f"{kind.name}.jsonl")
                write_jsonl(rows, generator.generate(kind.lengths(count)))
                notify(f"{name}, {kind.name} rows")
                comparisons[name][kind.name] = run_comparison(request_for(model, rows), notify)
            shutil.rmtree(model)
    return {"embedcli": __version__, "rounds": request.rounds, "shapes": comparisons}


@contextmanager
def use_cache(folder: str) -> Iterator[None]:
    """Cache compiled models in `folder` meanwhile: those of random models are useless afterwards."""
    before = os.environ.get(CACHE_VARIABLE)
    os.environ[CACHE_VARIABLE] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ[CACHE_VARIABLE]
        else:
            os.environ[CACHE_VARIABLE] = before


def create_random_model(folder: Path, source: Path, layers: int, width: int) -> Path:
    """Create a transformer with random weights, mean pooling and vectors of length 1.

    Args:
        folder: A folder that does not exist yet.
        source: The folder of a model whose tokenizer is used.
        layers: The number of layers.
        width: The hidden size.

    Returns:
        The folder, in sentence-transformers' format.

    Raises:
        ModelError: torch or transformers is missing or failed.
    """
    create_random_network(folder, source, layers, width)
    pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}
    modules = [module_entry(number, name) for number, name in enumerate(MODULES)]
    (folder / "1_Pooling").mkdir()
    write_json(folder / "1_Pooling" / "config.json", pooling)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": MAX_TOKENS})
    write_json(folder / "modules.json", modules)
    return folder


def create_random_network(folder: Path, source: Path, layers: int, width: int, *options: str) -> None:
    """Create the folder of a transformer with random weights and its tokenizer.

    Args:
        folder: A folder that does not exist yet.
        source: The folder of a model whose tokenizer is used.
        layers: The number of layers.
        width: The hidden size.
        options: Further arguments of programs/random_bert.py.

    Raises:
        ModelError: torch or transformers is missing or failed.
    """
    tokenizer = load_tokenizer(source)
    folder.mkdir()
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copy(source / name, folder)
    last_id = max(tokenizer.get_vocab().values())
    padding_id = (tokenizer.padding or {}).get("pad_id", 0)
    sizes = [str(number) for number in (layers, width, last_id + 1, padding_id)]
    result = run_measured(
        [sys.executable, str(PROGRAMS / "random_bert.py"), str(folder), *sizes, *options], folder.with_suffix(".txt")
    )
    if result.code:
        raise ModelError(
            f"no random model could be created: {result.last_error_line}", "install torch and transformers"
        )


def module_entry(number: int, name: str) -> dict[str, Any]:
    """An entry of modules.json."""
    path = f"{number}_{name}" if number else ""
    return {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{name}"}


def write_json(path: Path, content: Any) -> None:
    path.write_text(json_format.dumps(content), "utf-8")


def load_tokenizer(model: Path) -> Tokenizer:
    """Load the tokenizer of a model folder, without truncation.

    Raises:
        UsageError: The folder has no tokenizer.json.
    """
    from tokenizers import Tokenizer

    path = model / "tokenizer.json"
    if not path.is_file():
        raise UsageError(f"{model.name} has no tokenizer.json, which random models need", "name another model with -m")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    return tokenizer


def count_rows_for(kind: RowKind, model: Path, flop: float) -> int:
    """The number of rows that need about `flop` floating-point operations."""
    shape = read_transformer_shape(model)
    assert shape is not None
    lengths = kind.lengths(MIN_ROWS)
    return int(np.clip(flop / (count_useful_flop(lengths, shape) / MIN_ROWS), MIN_ROWS, MAX_ROWS))


def find_whole_words(tokenizer: Tokenizer) -> Iterator[str]:
    """Yield words that are always one token, in the order of the vocabulary."""
    vocabulary = tokenizer.get_vocab()
    for token in sorted(vocabulary, key=lambda token: vocabulary[token]):
        word = token.strip("\u2581\u0120")  # the marks of a word's beginning in some vocabularies
        if word.isalpha() and len(tokenizer.encode(f"{word} {word}", add_special_tokens=False).ids) == 2:
            yield word


def format_table(figures: Mapping[str, Any]) -> str:
    """A text table: for every size and kind of rows a line of embedcli's and one of the baseline's, then stages."""
    cells = [(size, kind, one) for size, kinds in figures["shapes"].items() for kind, one in kinds.items()]
    first = cells[0][2]
    lines = [*format_machine(first["machine"]), *with_label("runs", f"{figures['rounds']} of each, in turn; medians")]
    lines += [*format_busy_warning(one for _, _, comparison in cells for one in comparison["contenders"].values()), ""]
    lines.append(format_row("medians", ("rows/s", "tokens/s", "times", "of best", "idle", "cosine")))
    shares = ["", "share of the encode seconds, stages side by side"]
    for size, kind, comparison in cells:
        contenders = comparison["contenders"]
        ours, baseline = next(iter(contenders)), comparison["baseline"]
        lines.append(f"{size} network, {kind} rows ({comparison['input']['rows']:,})")
        lines += [format_row(f"  {name}", format_cells(contenders[name])) for name in (ours, baseline)]
        encode_seconds = contenders[ours]["encode_seconds"]
        stages = contenders[ours]["stage_seconds"].items()
        spent = (f"{stage} {format_percent(seconds / encode_seconds)}" for stage, seconds in stages)
        shares += with_label(f"{size} {kind}", ", ".join(spent), 13)
    return "\n".join([*lines, *shares, "", *wrap(format_best_products(first), WIDTH)]).rstrip()


def format_cells(contender: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        f"{contender['rows_per_second']:,.0f}",
        f"{contender['tokens_per_second']:,.0f}",
        f"{contender['encode_ratio']['median']:.2f}",
        format_percent(contender.get("share_of_matrix_product")),
        format_percent(contender.get("device_idle_share")),
        format_cosine(contender["lowest_cosine"]),
    )


app = make_app(main)

if __name__ == "__main__":
    app()
