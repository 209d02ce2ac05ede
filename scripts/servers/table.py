"""The servers that others wrote, how each is started, and what it is known to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Every server serves the same model under this name.
SERVED_NAME = "minilm"
# Tokens of a text that each server reads of the bundled model at most.
MAX_TOKENS = 256
# More words, of one token each, than any of the servers reads, and more than infinity accepts.
LONG_TEXT = "many words are said " * 100
# Cosines with the model's own tokenizer: 0.93 to 0.97 for Hindi, 0.72 for Korean; above 0.999 for the other languages.
OTHER_LLAMA_CPP_TOKENS = frozenset({"hi", "ko"})
HUGE_TEXT = "many words are said " * 10_000


@dataclass(frozen=True)
class RealServer:
    """A server that others wrote.

    Attributes:
        name: Its name for people.
        package: The package on PyPI that brings it; without it the server is left out.
        build_command: Returns the command that serves a model, from the folder of the environment's programs, the
            folder of the model and a port.
        health_path: Answers 200 once the server is ready.
        refusals: A part of the server's own words for each text that it refuses, by the id of the row.
        languages_read_otherwise: Languages whose texts it splits into other tokens than the model's tokenizer does.
        finds_cuts: Whether embedcli can see from the reported tokens that the server cuts long texts.
    """

    name: str
    package: str
    build_command: Callable[[Path, Path, int], list[str]]
    health_path: str
    refusals: dict[str, str]
    languages_read_otherwise: frozenset[str] = frozenset()
    finds_cuts: bool = False


def _serve_with(program: str) -> Callable[[Path, Path, int], list[str]]:
    def build(programs: Path, model: Path, port: int) -> list[str]:
        return [str(programs / "python"), "-m", program, str(model), str(port)]

    return build


def _serve_infinity(programs: Path, model: Path, port: int) -> list[str]:
    return [
        str(programs / "infinity_emb"), "v2", "--model-id", str(model), "--served-model-name", SERVED_NAME,
        "--device", "cpu", "--engine", "torch", "--host", "127.0.0.1", "--port", str(port), "--url-prefix", "/v1",
    ]  # fmt: skip


SERVERS = (
    RealServer(
        "llama.cpp",
        "xllamacpp",
        _serve_with("servers.serve_llama_cpp"),
        "/health",
        {"long": "too large to process", "huge": "too large to process"},
        OTHER_LLAMA_CPP_TOKENS,
    ),
    RealServer(
        "infinity",
        "infinity-emb",
        _serve_infinity,
        "/health",
        {"huge": "should have at most 122880 characters"},
    ),
    RealServer(
        "llama-cpp-python",
        "llama-cpp-python",
        _serve_with("servers.serve_llama_cpp_python"),
        "/models",
        {},
        OTHER_LLAMA_CPP_TOKENS,
        finds_cuts=True,
    ),
)
