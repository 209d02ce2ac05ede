"""The golden jobs: the commands of each, in a folder that holds the inputs, and how they are run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, chdir
from dataclasses import dataclass
from pathlib import Path

from golden_inputs import change_rows
from golden_server import serve
from typer.testing import CliRunner

# Stands in an argument for the base URL of the hosted server.
SERVER = "{server}"


@dataclass(frozen=True)
class Command:
    """One call of `embedcli`: its arguments, in this process or in one of its own."""

    arguments: tuple[str, ...]
    own_process: bool = False
    stdin: str | None = None
    keep_stdout: bool = False


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    exit_code: int
    stdout: bytes
    stderr: str


@dataclass(frozen=True)
class Case:
    """A job: commands one after the other, or functions that change a file between them.

    `is_exact` is False where vectors depend on the processor: they are compared with a tolerance.
    """

    name: str
    steps: tuple[Command | Callable[[], object], ...]
    is_exact: bool = True

    @property
    def is_hosted(self) -> bool:
        return any(isinstance(step, Command) and SERVER in step.arguments for step in self.steps)


def run_command(command: Command, server: str = "") -> Ended:
    """Run a command in the current folder."""
    arguments = [server if argument == SERVER else argument for argument in command.arguments]
    if command.own_process:
        stdin = Path(command.stdin).read_bytes() if command.stdin else b""
        full = [sys.executable, "-m", "embedcli", *arguments]
        process = subprocess.run(full, input=stdin, capture_output=True, check=False, timeout=600)
        return Ended(process.returncode, process.stdout, process.stderr.decode())
    from embedcli.cli import app

    result = CliRunner().invoke(app, arguments)
    return Ended(result.exit_code, result.stdout_bytes, result.stderr)


def run_case(case: Case, inputs: Path, folder: Path) -> tuple[list[Ended], str]:
    """Run a job in `folder`, a copy of `inputs`; how its commands ended, and the base URL of its server, if any."""
    shutil.copytree(inputs, folder)
    ended = []
    with ExitStack() as stack:
        server = stack.enter_context(serve()) if case.is_hosted else ""
        stack.enter_context(chdir(folder))
        for step in case.steps:
            if isinstance(step, Command):
                ended.append(run_command(step, server))
            else:
                step()
    return ended, server


def command(line: str, *, own_process: bool = False, stdin: str | None = None, keep_stdout: bool = False) -> Command:
    """A command from a line without quotes; `+` stands for a space inside an argument."""
    return Command(tuple(word.replace("+", " ") for word in line.split()), own_process, stdin, keep_stdout)


def encode(line: str, model: str = "words.txt", *, own_process: bool = False, keep_stdout: bool = False) -> Command:
    return command(f"encode {line} --model {model} --quiet", own_process=own_process, keep_stdout=keep_stdout)


def hosted(line: str) -> Command:
    return encode(f"{line} --base-url {SERVER}", "openai:golden")


def show(line: str) -> Command:
    """A command whose standard output is recorded."""
    return command(line, keep_stdout=True)


def api_encode_file() -> None:
    """Through the Python interface, as users call it."""
    import embedcli

    outcome = embedcli.encode_file(["in.jsonl", "more.jsonl"], "out.parquet", model="words.txt", keep=["n"])
    Path("outcome.txt").write_text(f"{outcome.exit_code} {sorted(outcome.totals.items())}")


def api_load() -> None:
    import numpy as np

    import embedcli

    with embedcli.load("static", normalize=True) as model:
        np.save("vectors.npy", model.encode(["amber basil", "cedar"]))
    try:
        embedcli.encode_file("missing.jsonl", "out.parquet", model="words.txt")
    except embedcli.EmbedcliError as error:
        Path("error.txt").write_text(f"{type(error).__name__} {error.exit_code}")


def write_batch_results() -> None:
    """Answers of the Batch API to the exported requests, the last of them refused."""
    import json

    from golden_server import answer

    lines = [json.loads(line) for line in Path("requests.jsonl").read_text("utf-8").splitlines()]
    made = []
    for number, line in enumerate(lines):
        status, body = answer(line["body"])
        if number == len(lines) - 1:
            status, body = answer({"input": ["heron"], "model": "golden"})
        made.append(
            {"id": f"b{number}", "custom_id": line["custom_id"], "response": {"status_code": status, "body": body}}
        )
    Path("results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in reversed(made)))


def damage_part() -> None:
    """Cut the first part file of an unfinished job short."""
    path = min(Path("out.parquet.parts").glob("part-*.arrow"))
    path.write_bytes(path.read_bytes()[:-100])


SHARDED = "several.jsonl more.jsonl in.jsonl {} --chunk-rows 7 --part-size 800"
BATCH = "--model openai:golden --text-column text --id-column id"
FORMATS = {
    "read-jsonl": "in.jsonl out.parquet --keep lang --keep n --keep score --keep ok --keep meta",
    "read-csv": "in.csv out.parquet --keep title",
    "read-tsv": "in.tsv out.parquet --id-column key",
    "read-parquet": "in.parquet out.parquet --keep lang --keep n --keep score --keep ok --keep meta",
    "read-gz": "packed.jsonl.gz out.parquet --keep n",
    "read-bz2": "packed.csv.bz2 out.parquet --text-column text --id-column key",
    "read-zst": "packed.jsonl.zst out.parquet",
    "read-xz": "packed.jsonl.xz out.parquet",
    "read-several-files": "more.jsonl in.jsonl out.parquet --keep n",
    "read-glob": "many/*.jsonl many/*.csv out.parquet",
    "read-folder": "many out.parquet",
    "read-latin-1": "latin.csv out.parquet --encoding latin-1 --keep town",
    "read-named-format": "in.csv out.parquet --format csv --text-column title",
    "write-npy": "in.jsonl out.npy --keep n --keep lang",
    "write-jsonl": "in.jsonl out.jsonl --keep n --keep lang --keep meta",
    "write-arrow": "in.jsonl out.arrow --keep n --keep meta",
    "write-lance": "in.jsonl out.lance --keep n --keep lang",
    "write-named-format": "in.jsonl vectors --to arrow",
    "write-folder": "several.jsonl more.jsonl out/ --chunk-rows 8 --part-size 1KB --keep n",
    "write-folder-npy": "in.jsonl out/ --to npy --chunk-rows 4 --part-size 200",
    "write-folder-jsonl": "in.jsonl more.jsonl out/ --to jsonl --chunk-rows 4 --part-size 200",
    "write-folder-arrow": "in.jsonl out/ --to arrow --chunk-rows 4 --part-size 200 --precision int8",
    "template": "in.jsonl out.parquet --template {text}+{meta.title?}+{lang?} --keep lang",
    "nested-text-column": "in.jsonl out.parquet --text-column meta.title --id-column n",
    "row-number-ids": "unnamed.jsonl out.parquet --keep lang --chunk-rows 2",
    "row-number-ids-of-several-files": "unnamed.jsonl more.jsonl out.jsonl --text-column text --chunk-rows 2",
    "usage-id-column": "queries.jsonl latin.csv out.parquet --id-column town --encoding latin-1",
    "prompt": "in.jsonl out.parquet --prompt amber+ --chunk-rows 3",
    "rejects-jsonl": "bad.jsonl out.parquet --text-column text --id-column id --chunk-rows 5",
    "rejects-csv": "bad.csv out.jsonl --text-column text --id-column id",
    "rejects-parquet": "bad.parquet out/ --text-column text --id-column id",
    "rejects-allowed": "bad.jsonl out.parquet --max-rejects 90%",
    "rejects-too-many": "bad.jsonl out.parquet --max-rejects 2 --chunk-rows 4",
    "rejects-fail": "bad.jsonl out.parquet --on-bad-row fail --chunk-rows 1",
    "overflow-truncate": "in.jsonl out.parquet --max-seq-length 2",
    "overflow-split": "in.jsonl out.parquet --max-seq-length 4 --overflow split --split-overlap 2 --keep n",
    "overflow-pool": "in.jsonl out.parquet --max-seq-length 2 --overflow pool",
    "overflow-reject": "in.jsonl out.parquet --max-seq-length 2 --overflow reject",
    "overflow-error": "in.jsonl out.parquet --max-seq-length 2 --overflow error --chunk-rows 2",
    "precision-float16": "in.jsonl out.parquet --precision float16",
    "precision-int8": "in.jsonl out.parquet --precision int8 --normalize",
    "precision-uint8": "in.jsonl out.npy --precision uint8",
    "precision-binary": "in.jsonl out.parquet --precision binary",
    "precision-ubinary": "in.jsonl out.jsonl --precision ubinary",
    "truncate-dim": "in.jsonl out.parquet --truncate-dim 4",
    "normalize": "in.jsonl out.parquet --normalize",
    "no-normalize": "in.jsonl out.parquet --no-normalize",
    "usage-text-column": "in.jsonl out.parquet --text-column nowhere",
    "usage-missing-input": "nowhere.jsonl out.parquet",
    "usage-prompt-name": "in.jsonl out.parquet --prompt-name query",
}
CASES = [
    *(Case(name, (encode(line),)) for name, line in FORMATS.items()),
    Case(
        "read-stdin",
        (command("encode - out.parquet --format jsonl --model words.txt --quiet", own_process=True, stdin="in.jsonl"),),
    ),
    Case(
        "write-stdout",
        (
            encode("in.jsonl - --keep n", own_process=True, keep_stdout=True),
            encode("in.csv - --to arrow", own_process=True),
        ),
    ),
    Case("write-again", (encode("in.jsonl out.parquet"), encode("in.jsonl out.parquet"), encode("in.csv out.parquet"))),
    Case("overwrite", (encode("in.jsonl out.parquet"), encode("more.jsonl out.parquet --overwrite --keep n"))),
    Case(
        "ranges-from",
        (
            encode("in.jsonl first.parquet --precision int8"),
            encode("more.jsonl out.parquet --precision uint8 --ranges-from first.parquet"),
        ),
    ),
    *(
        Case(
            f"update-{kind}",
            (
                encode(f"in.jsonl {output} --chunk-rows 4 --keep n"),
                change_rows,
                encode(f"in.jsonl {output} --chunk-rows 4 --keep n"),
                encode(f"in.jsonl {output} --chunk-rows 4 --keep n --update --report report.json"),
            ),
        )
        for kind, output in {"parquet": "out.parquet", "folder": "out/", "npy": "out.npy", "jsonl": "out.jsonl"}.items()
    ),
    Case(
        "update-rejects",
        (
            encode("bad.jsonl out.parquet --text-column text --id-column id"),
            encode("bad.jsonl more.jsonl out.parquet --text-column text --id-column id --update --report report.json"),
        ),
    ),
    Case(
        "reuse",
        (
            encode("in.jsonl first.parquet"),
            encode("several.jsonl second/"),
            encode("in.jsonl more.jsonl out.parquet --reuse first.parquet --report report.json"),
            encode("more.jsonl other.parquet --reuse second/ --report other.json"),
        ),
    ),
    Case(
        "reuse-other-space",
        (encode("in.jsonl first.parquet --normalize"), encode("in.jsonl out.parquet --reuse first.parquet")),
    ),
    *(
        Case(
            f"shards-{kind}",
            (
                encode(SHARDED.format(output) + " --shard 2/2"),
                command(f"merge {output} --quiet"),
                encode(SHARDED.format(output) + " --shard 1/2 --report report.json"),
            ),
        )
        for kind, output in {"parquet": "out.parquet", "folder": "out/"}.items()
    ),
    Case("shards-begun", (encode(SHARDED.format("out/") + " --shard 1/3"), command("merge out/ --quiet"))),
    *(
        Case(
            f"workers-{kind}",
            (encode(SHARDED.format(output) + " --workers 2 --runner processes", own_process=True),),
        )
        for kind, output in {"parquet": "out.parquet", "folder": "out/"}.items()
    ),
    *(
        Case(
            f"resume-{kind}",
            (
                encode(f"several.jsonl bad.jsonl {output} --chunk-rows 8 --stop-after 20"),
                encode(f"several.jsonl bad.jsonl {output} --chunk-rows 8 --report report.json"),
            ),
        )
        for kind, output in {"parquet": "out.parquet", "folder": "out/", "arrow": "out.arrow", "npy": "out.npy"}.items()
    ),
    Case("stopped", (encode("several.jsonl bad.jsonl out.parquet --chunk-rows 8 --stop-after 20 --precision int8"),)),
    Case(
        "damaged-part",
        (
            encode("in.jsonl out.parquet --chunk-rows 4 --stop-after 8"),
            damage_part,
            encode("in.jsonl out.parquet --chunk-rows 4 --report report.json"),
        ),
    ),
    Case(
        "changed-job",
        (encode("in.jsonl out/ --chunk-rows 4 --stop-after 4"), encode("in.jsonl out/ --chunk-rows 4 --normalize")),
    ),
    Case(
        "changed-input",
        (
            encode("in.jsonl out.parquet --chunk-rows 4 --stop-after 4"),
            change_rows,
            encode("in.jsonl out.parquet --chunk-rows 4"),
        ),
    ),
    Case("static-model", (encode("in.jsonl out.parquet", "static"), encode("in.jsonl out.npy --normalize", "static"))),
    Case(
        "static-model-pool", (encode("in.jsonl out.parquet --overflow pool --max-seq-length 2 --keep lang", "static"),)
    ),
    Case("hosted", (hosted("in.jsonl out.parquet --chunk-rows 4 --keep n"),)),
    Case("hosted-refused-text", (hosted("refused.jsonl in.jsonl out.parquet --chunk-rows 4"),)),
    Case("missing-model", (encode("in.jsonl out.parquet --offline", "nowhere/nothing"),)),
    Case("hosted-dimensions", (hosted("in.jsonl out.npy --truncate-dim 4"),)),
    Case(
        "batch",
        (
            command(f"batch export in.jsonl more.jsonl requests.jsonl {BATCH} --keep n"),
            write_batch_results,
            command("batch import results.jsonl out.parquet --input in.jsonl --input more.jsonl --quiet"),
        ),
    ),
    Case(
        "bundled-torch", (encode("sentences.jsonl out.parquet --engine torch --device cpu", "all-MiniLM-L6-v2"),), False
    ),
    Case("bundled-compiled", (encode("sentences.jsonl out.parquet --engine openvino", "all-MiniLM-L6-v2"),), False),
    Case("plan", (show("plan bad.jsonl more.jsonl --model words.txt --measure-seconds 0 --json"),)),
    Case("plan-static", (show("plan in.jsonl --model static --measure-seconds 0 --keep n --json"),)),
    Case("inspect-input", (show("inspect in.jsonl --json"), show("inspect bad.csv --json"))),
    Case(
        "inspect-output",
        (
            encode("in.jsonl out.parquet --keep n --precision int8"),
            show("inspect out.parquet --json"),
            encode("bad.jsonl out/"),
            show("inspect out/ --json"),
        ),
    ),
    Case(
        "report",
        (encode("bad.jsonl more.jsonl out.parquet --keep n --report report.json"), show("report report.json --json")),
    ),
    Case(
        "settings-file",
        (command("--config embedcli.other.toml encode in.jsonl out.parquet --quiet --report report.json"),),
    ),
    Case(
        "analysis",
        (
            encode("in.jsonl out.parquet --keep lang --keep n"),
            encode("in.jsonl other.parquet --normalize --precision float16"),
            show("search out.parquet amber --count 3 --json"),
            show("search out.parquet --queries queries.jsonl --count 2 --to-file hits.jsonl"),
            show("verify out.parquet --json"),
            show("verify out.parquet --only-output --json"),
            show("compare out.parquet other.parquet --precision binary --count 3 --json"),
        ),
    ),
    Case("python-encode-file", (api_encode_file,)),
    Case("python-load", (api_load,)),
]
