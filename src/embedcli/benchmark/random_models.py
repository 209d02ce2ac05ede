"""Networks of three sizes, random weights, on rows of three kinds: what a machine does with each, no model needed."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli import __version__
from embedcli.benchmark.compare import Request, compare
from embedcli.benchmark.contenders import PROGRAMS
from embedcli.benchmark.dataset import write
from embedcli.benchmark.lineup import Notify
from embedcli.benchmark.model_flops import shape_of
from embedcli.benchmark.statistics import useful_flop
from embedcli.benchmark.timed_process import run
from embedcli.core.errors import ModelError, UsageError
from embedcli.encoders.torch import device as torch_device
from embedcli.models import resolve

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from embedcli.core.types import Rows

CACHE = "EMBEDCLI_CACHE"
# Layers and width of the networks that most embedding models are: MiniLM, BERT base and BERT large.
SIZES = {"small": (6, 384), "base": (12, 768), "large": (24, 1024)}
LIMIT = 512
MODULES = ("Transformer", "Pooling", "Normalize")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
# What a run of one kind of rows is to compute, in FLOP: some ten seconds of two cores, some seconds of a large card.
CPU_FLOP, CARD_FLOP = 1e12, 2e15
FEWEST, MOST = 32, 200_000
# Words to choose from: enough that rows differ, few enough to look for among the tokens.
WORDS = 4000

# A comparison of the given model on the given file.
Asking = Callable[[Path, Path], Request]


@dataclass(frozen=True)
class Kind:
    """Rows of one kind: `lengths(count)` are their tokens, int [count], special ones included."""

    name: str
    lengths: Callable[[int], Rows]


@dataclass(frozen=True)
class Words:
    """Words that are one token each, and how many tokens every text has besides."""

    known: Any
    special: int

    @classmethod
    def of(cls, model: Path) -> Words:
        """Those of a model's tokenizer. UsageError if it knows no whole words."""
        tokenizer = tokenizer_of(model)
        tokenizer.no_padding()
        known = np.array(list(islice(whole_words(tokenizer), WORDS)))
        if not len(known):
            raise UsageError(f"the tokenizer of {model.name} knows no whole words", "name another model with -m")
        return cls(known, tokenizer.num_special_tokens_to_add(is_pair=False))

    def texts(self, lengths: Rows) -> list[str]:
        """Texts of so many tokens each, special ones included, and at least one word."""
        random = np.random.default_rng(0)
        counts = np.maximum(1, lengths - self.special)
        return [" ".join(self.known[random.integers(0, len(self.known), count)]) for count in counts]


def mixed(count: int) -> Rows:
    """As documents are: half below 80 tokens, one in fifty at the limit (lognormal)."""
    drawn = np.random.default_rng(0).lognormal(np.log(80), 0.9, count)
    return np.clip(drawn, 5, LIMIT).astype(np.int64)


KINDS = (
    Kind("short", lambda count: np.full(count, 20)),
    Kind("mixed", mixed),
    Kind("long", lambda n: np.full(n, LIMIT)),
)


def shapes(names: Sequence[str], request: Request, asking: Asking, notify: Notify) -> dict[str, Any]:
    """A comparison for every size in `names` and every kind of rows, as `--json` writes them.

    The tokenizer is the one of the request's model. Raises UsageError for a size that is none or a tokenizer that is no
    file, ModelError where a network cannot be made.
    """
    for name in names:
        if name not in SIZES:
            raise UsageError(f"--shapes {name}: there is no such size", f"choose of {', '.join(SIZES)}")
    source = resolve.resolve(request.job).folder
    words = Words.of(source)
    made: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="embedcli-bench-") as place, own_cache(f"{place}/cache"):
        for name in names:
            layers, width = SIZES[name]
            notify(f"{name}: a network of {layers} layers of {width} with random weights")
            model = network(Path(place, name), source, layers, width)
            made[name] = {}
            for kind in KINDS:
                count = request.rows or rows_for(
                    kind, model, CPU_FLOP if torch_device.on_cpu(request.job) else CARD_FLOP
                )
                rows = Path(place, f"{kind.name}.jsonl")
                write(rows, words.texts(kind.lengths(count)))
                notify(f"{name}, {kind.name} rows")
                made[name][kind.name] = compare(asking(model, rows), notify)
            shutil.rmtree(model)
    return {"embedcli": __version__, "rounds": request.rounds, "shapes": made}


@contextmanager
def own_cache(folder: str) -> Iterator[None]:
    """What is compiled for these networks is of no use afterwards: measured processes keep it in `folder`."""
    before = os.environ.get(CACHE)
    os.environ[CACHE] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ[CACHE]
        else:
            os.environ[CACHE] = before


def network(folder: Path, source: Path, layers: int, width: int) -> Path:
    """A model folder of that size with the tokenizer of the model in `source`: mean pooling, vectors of length 1."""
    tokenizer = tokenizer_of(source)
    folder.mkdir()
    for name in TOKENIZER:
        if (source / name).is_file():
            shutil.copy(source / name, folder)
    last = max(tokenizer.get_vocab().values())
    padding = (tokenizer.padding or {}).get("pad_id", 0)
    sizes = [str(number) for number in (layers, width, last + 1, padding)]
    done = run([sys.executable, str(PROGRAMS / "network.py"), str(folder), *sizes], folder.with_suffix(".txt"))
    if done.code:
        raise ModelError(f"no network could be made: {done.last_words}", "install torch and transformers")
    pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling), "utf-8")
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": LIMIT}), "utf-8")
    (folder / "modules.json").write_text(json.dumps([module(*each) for each in enumerate(MODULES)]), "utf-8")
    return folder


def module(number: int, name: str) -> dict[str, Any]:
    """An entry of modules.json."""
    path = f"{number}_{name}" if number else ""
    return {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{name}"}


def tokenizer_of(model: Path) -> Tokenizer:
    """The tokenizer of a model folder, as it reads whole texts."""
    from tokenizers import Tokenizer

    path = model / "tokenizer.json"
    if not path.is_file():
        raise UsageError(f"{model.name} has no tokenizer.json, which --shapes needs", "name another model with -m")
    made = Tokenizer.from_file(str(path))
    made.no_truncation()
    return made


def rows_for(kind: Kind, model: Path, flop: float) -> int:
    """So many rows that a run of them computes about so much."""
    shape = shape_of(model)
    assert shape is not None
    some = kind.lengths(FEWEST)
    return int(np.clip(flop / (useful_flop(some, shape) / FEWEST), FEWEST, MOST))


def whole_words(tokenizer: Tokenizer) -> Iterator[str]:
    """Words that are one token wherever they stand, in the order of the vocabulary."""
    vocabulary = tokenizer.get_vocab()
    for token in sorted(vocabulary, key=lambda token: vocabulary[token]):
        word = token.strip("\u2581\u0120")  # what marks the beginning of a word in some vocabularies
        if word.isalpha() and len(tokenizer.encode(f"{word} {word}", add_special_tokens=False).ids) == 2:
            yield word
