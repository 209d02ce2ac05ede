"""--compile keeps the vectors or is not used; it compiles few graphs and does not change the vector space metadata."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import jobs
import models
from embedcli import encoders
from embedcli.core.errors import DeviceOutOfMemoryError, UsageError
from embedcli.core.job import Job
from embedcli.encoders.torch import compile as torch_compile
from reference import encode, lowest_cosine, row_by_row_attention, samples, varied

BERT = "all-MiniLM-L6-v2-shape"
# By model and path: layers of one kind or of two, with attention inside the graph or not.
KINDS = [(BERT, False), (BERT, True), ("gte-modernbert-base", True), ("Qwen3-Embedding-0.6B", False)]
Graph = Callable[..., Any]


class Backend:
    """A compiler that counts its graphs and runs them unchanged, or as `change` returns them."""

    def __init__(self, change: Callable[[int, Graph], Graph] = lambda number, graph: graph) -> None:
        self.count, self._change = 0, change

    def __call__(self, graph: Any, inputs: list[Any]) -> Graph:
        self.count += 1
        return self._change(self.count, graph.forward)


@pytest.fixture(autouse=True)
def _no_graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No graphs of another test, and no handler of torch's trace log, which takes longer than the graphs."""
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "handlers", [])
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Backend]:
    def use(*change: Any) -> Backend:
        made = Backend(*change)
        monkeypatch.setattr(torch_compile, "COMPILE_BACKEND", made)
        return made

    return use


def load(name: str = BERT, flat: bool = False, **flags: Any) -> tuple[Any, list[str]]:
    """A model, without padding if `flat`, and the lines that the user gets from now on."""
    said: list[str] = []
    job = Job((), "", model=str(models.folder(name)), device="cpu", engine="torch", threads=1, **flags)
    encoder: Any = encoders.load_encoder(job, notify=said.append)
    encoder._should_prepack = False  # with --compile the network is compiled before its first batch, not packed
    if flat:
        encoder._remove_padding([row_by_row_attention])
        assert encoder._varlen is not None
    return encoder, said


@pytest.mark.parametrize(("name", "flat"), KINDS, ids=lambda value: {False: "padded", True: "flat"}.get(value, value))
def test_few_graphs_give_the_same_vectors(name: str, flat: bool, backend: Callable[..., Backend]) -> None:
    encoder, said = load(name, flat)
    texts = [text[:500] for text in varied(60)]
    tokens = encoder.tokenize(texts)
    texts = [texts[row] for row in np.flatnonzero(tokens.lengths)]
    plain = encode(encoder, texts)
    graphs = backend()
    encoder._compile()
    assert 1 <= graphs.count <= 2
    for budget in (1536, 64):
        assert lowest_cosine(encode(encoder, texts, budget), plain) >= 0.99999
    assert graphs.count <= 6
    assert encoder._compile_errors != ()
    assert said[-1] == "compiling the network with torch.compile: the first batches of each shape wait"
    encoder.close()


def refusing(number: int, graph: Graph) -> Graph:
    raise RuntimeError("no compiler\nfor this")


def moving(number: int, graph: Graph) -> Graph:
    return lambda *inputs: tuple(made.flip(-1) for made in graph(*inputs))


@pytest.mark.parametrize(
    ("flat", "change", "reason"),
    [(False, refusing, "RuntimeError: no compiler"), (True, moving, "vectors would differ (cosine ")],
    ids=["fails", "differs"],
)
def test_code_that_fails_or_differs_is_not_used(
    flat: bool, change: Callable[[int, Graph], Graph], reason: str, backend: Callable[..., Backend]
) -> None:
    encoder, said = load(flat=flat)
    plain = encode(encoder, samples()[:9])
    graphs = backend(change)
    encoder._compile()
    tried = graphs.count
    assert said[-1].startswith(f"the network runs without torch.compile: {reason}")
    np.testing.assert_array_equal(encode(encoder, samples()[:9]), plain)
    assert graphs.count == tried >= 1
    encoder.close()


def test_a_shape_that_cannot_be_compiled_runs_uncompiled(backend: Callable[..., Backend]) -> None:
    encoder, said = load()
    texts = samples()[:9]
    plain = encode(encoder, texts)
    probed: list[int] = []
    graphs = backend(lambda number, graph: refusing(number, graph) if probed else graph)
    encoder._compile()
    probed.append(graphs.count)
    torch._dynamo.reset()
    np.testing.assert_allclose(encode(encoder, texts), plain, atol=1e-6)
    assert said[-1] == "the network runs without torch.compile: RuntimeError: no compiler"
    assert encoder._compile_errors == ()
    encoder.close()


def test_a_network_without_layers_is_reported(monkeypatch: pytest.MonkeyPatch, backend: Callable[..., Backend]) -> None:
    encoder, said = load()
    backend()
    monkeypatch.setattr(torch_compile, "find_repeated_layers", lambda pipeline: [])
    encoder._compile()
    assert said[-1] == "the network runs without torch.compile: it has no list of layers"
    encoder.close()


def full(graph: Graph, most: int) -> Graph:
    """A graph on a card with room for `most` rows of hidden states."""

    def run(*inputs: Any) -> Any:
        if any(getattr(one, "ndim", 0) == 3 and one.shape[0] > most for one in inputs):
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return graph(*inputs)

    return run


def test_a_batch_that_does_not_fit_is_out_of_memory_and_a_smaller_one_runs(backend: Callable[..., Backend]) -> None:
    encoder, said = load()
    tokens = encoder.tokenize(samples()[:12])
    rows = np.arange(12)
    plain = encoder.collect(encoder.forward(tokens, rows))
    backend(lambda number, graph: full(graph, 6))
    encoder._compile()
    with pytest.raises(DeviceOutOfMemoryError):
        encoder.forward(tokens, rows)
    halves = [encoder.collect(encoder.forward(tokens, half)) for half in np.array_split(rows, 2)]
    assert lowest_cosine(np.concatenate(halves), plain) >= 0.99999
    assert said[-1].startswith("compiling")
    encoder.close()


def test_running_out_of_memory_while_compiling_is_out_of_memory_too(backend: Callable[..., Backend]) -> None:
    def lacking(number: int, graph: Graph) -> Graph:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    encoder, said = load()
    tokens = encoder.tokenize(samples()[:3])
    backend()
    encoder._compile()
    torch._dynamo.reset()
    for layer in torch_compile.find_repeated_layers(encoder.model):
        layer.compile(dynamic=True, backend=Backend(lacking))
    with pytest.raises(DeviceOutOfMemoryError):
        encoder.forward(tokens, np.arange(3))
    assert said[-1].startswith("compiling")
    encoder.close()


def test_rows_are_encoded_again_one_by_one(backend: Callable[..., Backend]) -> None:
    encoder, _ = load(flat=True)
    tokens = encoder.tokenize(samples()[:5])
    rows = np.array([3, 1])
    plain = encoder.encode_float32(tokens, rows)
    backend()
    encoder._compile()
    np.testing.assert_allclose(encoder.encode_float32(tokens, rows), plain, atol=1e-5)
    encoder.close()


# The flag


@pytest.mark.parametrize(
    ("flags", "message", "hint"),
    [
        ({"device": "cpu"}, "--compile needs the PyTorch engine", "add --engine torch"),
        ({"device": "cpu", "engine": "openvino"}, "--compile needs the PyTorch engine", "add --engine torch"),
        ({"model": "openai:x"}, "--compile needs the PyTorch engine: a hosted model", "leave --compile out"),
        ({"model": "words"}, "--compile needs the PyTorch engine: static vectors", "leave --compile out"),
    ],
)
def test_other_engines_reject_it(flags: dict[str, Any], message: str, hint: str, tmp_path: Path) -> None:
    model = {"words": str(jobs.word_model(tmp_path))}.get(flags.get("model", ""), flags.get("model"))
    job = Job((), "", compile=True, **{**flags, "model": model or str(models.folder(BERT))})
    with pytest.raises(UsageError) as caught:
        encoders.load_encoder(job)
    assert str(caught.value).startswith(message)
    assert caught.value.hint == hint


def embeddings(path: Path) -> Any:
    return np.stack(pq.read_table(path)["embedding"].to_numpy())


def test_a_run_is_resumed_with_and_without_it(tmp_path: Path, backend: Callable[..., Backend]) -> None:
    rows = [{"id": i, "text": text[:200]} for i, text in enumerate(samples()[:60])]
    source, out, whole = jobs.write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.parquet", tmp_path / "w.parquet"
    flags = ["-m", models.folder(BERT), "--engine", "torch", "--device", "cpu", "--threads", 1, "--chunk-rows", 20]
    graphs = backend()
    assert jobs.run("encode", source, whole, *flags, "-q").code == 0
    assert graphs.count == 0
    begun = jobs.run("encode", source, out, *flags, "--compile", "--stop-after", 20)
    assert begun.code == 75, begun.err
    assert graphs.count > 0
    assert begun.err.count("compiling the network with torch.compile") == 1
    assert jobs.run("encode", source, out, *flags, "--no-compile", "--stop-after", 20).code == 75
    assert jobs.run("encode", source, out, *flags, "--compile", "-q").code == 0
    assert lowest_cosine(embeddings(out), embeddings(whole)) >= 0.99999


# The real compiler


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler: there is no g++")
def test_inductor_compiles_into_the_cache_of_embedcli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process that leaves none behind: it would keep the pipes open, which are read to their end."""
    monkeypatch.delenv(torch_compile.COMPILE_CACHE_VARIABLE, raising=False)
    rows = [{"id": i, "text": text[:40]} for i, text in enumerate(samples()[:3])]
    source = jobs.write_jsonl(tmp_path / "in.jsonl", rows)
    command = ["encode", source, "-m", models.folder(BERT), "--engine", "torch", "--device", "cpu", "--threads", 1]
    made, plain = tmp_path / "made.parquet", tmp_path / "plain.parquet"
    ended = jobs.run_apart(*command, made, "--compile", EMBEDCLI_CACHE=str(tmp_path / "cache"))
    assert (ended.code, ended.out) == (0, ""), ended.err
    told = [line.partition(" ")[2] for line in ended.err.splitlines() if "torch.compile" in line]
    assert told == ["compiling the network with torch.compile: the first batches of each shape wait"]
    assert any((tmp_path / "cache" / "inductor").rglob("*.so"))
    assert jobs.run(*command, plain, "-q").code == 0
    assert lowest_cosine(embeddings(made), embeddings(plain)) >= 0.999999
    assert not np.array_equal(embeddings(made), embeddings(plain)), "nothing was compiled"


def test_the_compiler_does_not_use_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    monkeypatch.setenv(torch_compile.INSTALL_COMPILER_VARIABLE, "1")
    monkeypatch.setenv("TORCH_WARM_POOL", "1")
    monkeypatch.setenv(torch_compile.COMPILE_CACHE_VARIABLE, "the user's")
    torch_compile.configure_environment()
    given = torch_compile._compile_options()
    assert given["backend"] == "inductor"
    assert given["options"] == torch_compile.INDUCTOR_OPTIONS
    remote = {name for name in config.get_config_copy() if name.endswith("remote_cache") and "." not in name}
    assert remote <= set(given["options"])
    assert torch_compile.INSTALL_COMPILER_VARIABLE not in os.environ
    assert os.environ["TORCH_WARM_POOL"] == "0"
    assert os.environ[torch_compile.COMPILE_CACHE_VARIABLE] == "the user's"
