"""Loaders that Ray's workers import: the job's own encoder, with one fault; and a driver that can be killed."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from embedcli import encoders
from embedcli.core.encoder import BaseEncoder, Tokens
from embedcli.core.job import Job


@dataclass(frozen=True)
class Loader:
    """Loads the job's encoder; `at_tokenize` is asked before each chunk. The folder counts the rows of every chunk."""

    folder: str

    def __call__(self, job: Job, notify: Callable[[str], None]) -> BaseEncoder:
        (Path(self.folder) / f"load-{os.getpid()}-{os.urandom(2).hex()}").touch()
        encoder = encoders.load_encoder(job, encoders.resolve_model_files(job), notify)
        tokenize = encoder.tokenize

        def counted(texts: Sequence[str]) -> Tokens:
            self.at_tokenize()
            with open(f"{self.folder}/rows", "a") as log:
                log.write(f"{len(texts)}\n")
            return tokenize(texts)

        encoder.tokenize = counted  # type: ignore[method-assign]
        return encoder

    def at_tokenize(self) -> None:
        pass

    def first(self, name: str) -> bool:
        """Whether this is the first time anyone asks for `name`."""
        try:
            os.close(os.open(f"{self.folder}/{name}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True


@dataclass(frozen=True)
class DiesOnce(Loader):
    """The first worker that has done `after` chunks dies of SIGKILL, like one that the kernel takes for its memory.

    The other one of two waits for the replacement, so that there is work left for it.
    """

    after: int = 2
    done: list[int] = field(default_factory=list)

    def at_tokenize(self) -> None:
        self.done.append(1)
        if len(self.done) > self.after:
            if self.first("died"):
                os.kill(os.getpid(), signal.SIGKILL)
            while loads(Path(self.folder)) < 3:
                time.sleep(0.01)


@dataclass(frozen=True)
class Dies(Loader):
    """Every worker dies of SIGKILL in its first chunk."""

    def at_tokenize(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Waits(Loader):
    """Each worker on `node`, or on any, does `after` chunks, then waits for its end. Says so by a file `waits-PID`."""

    after: int = 3
    node: str | None = None
    done: list[int] = field(default_factory=list)

    def at_tokenize(self) -> None:
        import ray

        here = ray.get_runtime_context().get_node_id()
        self.done.append(1)
        if len(self.done) > self.after and self.node in (None, here):
            (Path(self.folder) / f"waits-{os.getpid()}").touch()
            threading.Event().wait()


@dataclass(frozen=True)
class Fails(Loader):
    """Fails every time in a way that nobody thought of."""

    def at_tokenize(self) -> None:
        raise ZeroDivisionError("a batch of nothing")


def rows_done(folder: Path) -> int:
    """How many rows all workers have tokenized."""
    return sum(map(int, (folder / "rows").read_text().split()))


def loads(folder: Path) -> int:
    """How many encoders were loaded."""
    return len(list(folder.glob("load-*")))


def small_pieces(patch: Callable[[str, str, int], None]) -> None:
    """JSONL in pieces of 2 kB and Parquet in pieces of 40 rows, so that there is something to share out."""
    patch("embedcli.readers.preview", "JSONL_SPLIT_BYTES", 2000)
    patch("embedcli.readers.record_batches", "MAX_SPLIT_ROWS", 40)


def main(loader: str, folder: str, address: str, output: str, model: str, *inputs: str) -> int:
    """`embedcli encode` with one of the loaders."""
    from embedcli.cli.encode import run_job_with_reporting

    small_pieces(lambda module, name, value: setattr(import_module(module), name, value))
    asked: dict[str, Any] = {"chunk_rows": 16, "text_column": "text", "part_size": 4000, "workers": 2}
    job = Job(inputs, output, model=model, runner="ray", ray_address=address, **asked)
    return run_job_with_reporting(job, None, "plain", False, load=globals()[loader](folder))


if __name__ == "__main__":
    import ray_loads  # so that workers find the loader under its own name, not as a part of __main__
    from embedcli.cli.entrypoint import run_and_exit_fast

    run_and_exit_fast(lambda: sys.exit(ray_loads.main(*sys.argv[1:])))
