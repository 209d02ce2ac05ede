"""The wiring: plan, load, and pull chunks through the engine into the ledger or onto stdout."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli import __version__, calibration, checkpoint, encoders, engine, outputs, reuse, sinks, sources
from embedcli.contracts import (
    Chunk,
    Encoded,
    Encoder,
    Job,
    Outcome,
    OutputError,
    Plan,
    ResumeError,
    TooManyRejects,
    UsageError,
    Watch,
)
from embedcli.engine import Settings
from embedcli.handover import ahead
from embedcli.meter import Control, Meter
from embedcli.tables import Layout

if TYPE_CHECKING:
    from embedcli.contracts import Floats
    from embedcli.encoders.files import ModelFiles

STOPPED = 75
INTERRUPTED = 130
Notify = Callable[[str], None]
Load = Callable[[Job, Notify], Encoder]
TOTALS = ("read", "rows", "rejects", "tokens", "truncated", "lost_tokens")


@dataclass
class Run:
    """A job on its way: what it reads and runs on, what it counts, and who follows it."""

    job: Job
    plan: Plan
    files: ModelFiles | None
    watch: Watch
    control: Control
    meter: Meter
    loader: Load | None = None
    usage: Mapping[str, Any] | None = None
    read: int = 0
    open_pieces: set[int] = field(default_factory=set)

    def chunks(self) -> Iterator[Chunk]:
        """All chunks of the plan; `read` is the reader's own count, one side of the conservation law."""
        self.open_pieces = {piece.index for piece in self.plan.pieces}
        for chunk in sources.read(self.job, self.plan, self.plan.pieces):
            self.read += chunk.read
            if chunk.last:
                self.open_pieces.discard(chunk.piece.index)
            yield chunk

    def load(self) -> Encoder:
        """The job's encoder, ready to run."""
        if self.loader is not None:
            return self.loader(self.job, self.watch.line)
        return encoders.load(self.job, self.files, self.watch.line, self.control.now)

    def settings(self, encoder: Encoder, store: reuse.Store | None = None) -> Settings:
        """What the engine needs of the job."""
        job = self.job
        return Settings(
            prompt=str(encoder.space().get("prompt") or ""),
            batch_tokens=job.batch_tokens,
            overflow=job.overflow,
            split_overlap=job.split_overlap,
            truncate_dim=job.truncate_dim,
            normalize=job.normalize,
            known=store.lookup if store is not None else None,
        )

    def encode(self, chunks: Iterable[Chunk], encoder: Encoder, store: reuse.Store | None = None) -> Iterator[Encoded]:
        """The stages reader | tokenizer | forward in their threads; the caller is the writer. Close it."""
        settings = self.settings(encoder, store)
        self.control.begun = True

        def read(stream: Iterator[Chunk]) -> Iterator[Chunk]:
            return self.meter.timed("read", stream)

        return engine.encode(ahead(read, chunks, cancel=self.control.now), encoder, settings, self.meter, self.control)

    def wrote(self, encoded: Encoded, rejects: int) -> None:
        """Tell who follows, and stop if a number of rejects is exceeded."""
        self.meter.rows += len(encoded.rows)
        self.meter.done_bytes = encoded.chunk.done_bytes
        self.watch.progress(self.read, encoded.chunk.done_bytes)
        refuse_rejects(self.job, rejects, None)

    def used(self, encoder: Encoder) -> None:
        """Remember what the encoder says of requests and tokens, if it says anything."""
        say = getattr(encoder, "usage", None)
        self.usage = say() if say is not None else None

    def balance(self, totals: dict[str, int]) -> None:
        """OutputError unless every row read has a vector or a reject, and every piece was read to its end."""
        if self.open_pieces or not totals["read"] == self.read == totals["rows"] + totals["rejects"]:
            raise OutputError(
                f"{self.read} rows were read, but {totals['rows']} embedded and {totals['rejects']} rejected "
                f"({len(self.open_pieces)} pieces of the input not read to their end); nothing was published",
                "this should never happen: please report it with the run report",
            )


def run(job: Job, watch: Watch, control: Control, meter: Meter, load: Load | None = None) -> Outcome:
    """Encode the job's rows into its output; whatever happens, what is done stays done.

    `load` makes the encoder in the place of `encoders.load`: one that gives the vectors the job's model would give.
    Raises the EmbedcliError of the stage that failed, as itself.
    """
    plan = sources.plan(job)
    for note in plan.columns.notes:
        watch.line(note)
    this = Run(job, plan, encoders.resolve(job), watch, control, meter, load)
    return replace(run_to_stdout(this) if job.output == "-" else run_to_disk(this), usage=this.usage)


def run_to_stdout(this: Run) -> Outcome:
    job = this.job
    this.job = replace(job, chunk_rows=job.chunk_rows or encoders.chunk_rows(job, this.files))
    return run_stream(this)


def run_to_disk(this: Run) -> Outcome:
    """The run between taking the output's lock and giving it back."""
    job = this.job
    ledger = checkpoint.Ledger(outputs.target(job.output, job.to), tolerant=job.update)
    ledger.acquire()
    try:
        return run_local(this, ledger)
    finally:
        ledger.release()


def run_local(this: Run, ledger: checkpoint.Ledger) -> Outcome:
    """One process, one device: every missing chunk is encoded, then the output is published."""
    done = None if this.job.overwrite else outputs.finished(ledger.target)
    job = this.job = replace(this.job, chunk_rows=chunk_rows(this, ledger, done))
    identity = job_identity(job, this.plan, this.files)
    if done is not None:
        outcome = nothing_to_do(this, identity, done, ledger)
        if outcome is not None:
            return outcome
    ledger.begin(identity, overwrite=job.overwrite)
    with closing(this.load()) as encoder:
        job = this.job = with_saved_dim(job, encoder)
        ranges = ranges_of(this, encoder, ledger.target.stage, done if job.update else None)
        space, layout = space_of(job, encoder, ranges), layout_of(job, this.plan, encoder, ranges)
        store = store_of(job, identity, layout, ledger, replaced=done is not None)
        this.watch.begin(this.plan, this.meter)
        chunks = store.see(this.chunks()) if store is not None else this.chunks()
        with closing(this.encode(ledger.missing(chunks), encoder, store)) as stream:  # type: ignore[type-var]
            for encoded in stream:
                with this.meter.stage("write"):
                    ledger.add(encoded, layout, store.counts.pop(encoded.chunk.key) if store else None)
                this.wrote(encoded, ledger.rejected)
        this.used(encoder)
    if this.control.reason is not None:
        return stopped(this, ledger.totals(), "run the same command again to go on")
    return publish(this, ledger, layout, space, store)


def publish(
    this: Run, ledger: checkpoint.Ledger, layout: Layout, space: dict[str, Any], store: reuse.Store | None
) -> Outcome:
    """Check that no row is missing, then give the output its name."""
    totals = ledger.totals()
    this.balance(totals)
    refuse_rejects(this.job, totals["rejects"], this.read)
    changes = None
    if store is not None:
        changes = ledger.changes() | {"removed": store.removed()}
        store.close()
    with this.meter.stage("write"):
        ledger.close(layout, space)
    remember(ledger.target, this.plan)
    outcome = ended(totals, space, tuple(ledger.target.files()))
    return replace(
        outcome, resumed_rows=this.read - sum(ledger.added), damaged_parts=len(ledger.damaged), changes=changes
    )


def store_of(
    job: Job, identity: dict[str, Any], layout: Layout, ledger: checkpoint.Ledger, *, replaced: bool
) -> reuse.Store | None:
    """The vectors that --update and --reuse may take over; None without either."""
    paths = [*([job.output] if job.update and replaced else []), *job.reuse]
    return reuse.open_store(paths, identity, layout, ledger.target.stage) if paths else None


def run_stream(this: Run) -> Outcome:
    """Rows to stdout as they are done: nothing to resume, rejects as JSON lines among the notes on stderr."""
    job = this.job
    kind = sinks.output_format(job.output, job.to)
    totals = dict.fromkeys(TOTALS, 0)
    with closing(this.load()) as encoder:
        job = this.job = with_saved_dim(job, encoder)
        ranges = ranges_of(this, encoder, None, None)
        space = space_of(job, encoder, ranges)
        sink = sinks.Stream(kind, layout_of(job, this.plan, encoder, ranges), {sinks.SPACE_KEY: space})
        this.watch.begin(this.plan, this.meter)
        with closing(this.encode(this.chunks(), encoder)) as stream:  # type: ignore[type-var]
            for encoded in stream:
                with this.meter.stage("write"):
                    sink.write(encoded)
                rejects = count(totals, encoded)
                for line in rejects:
                    this.watch.line("rejected " + line.decode().rstrip("\n"))
                this.wrote(encoded, totals["rejects"])
        sink.close()
        this.used(encoder)
    if this.control.reason is not None:
        return stopped(this, totals, "stdout holds only the rows so far")
    this.balance(totals)
    refuse_rejects(job, totals["rejects"], totals["read"])
    return ended(totals, space)


def count(totals: dict[str, int], encoded: Encoded) -> list[bytes]:
    """Add a chunk to the totals; its rejects as JSON lines."""
    rejects = sorted((*encoded.chunk.rejects, *encoded.rejects), key=lambda reject: reject.line)
    totals["read"] += encoded.chunk.read
    totals["rejects"] += len(rejects)
    totals["rows"] += len(set(encoded.rows.tolist()))
    totals["tokens"] += int(encoded.n_tokens.sum())
    totals["truncated"] += int(encoded.truncated.sum())
    totals["lost_tokens"] += encoded.lost_tokens
    return [checkpoint.reject_line(reject) for reject in rejects]


# What decides a job


def chunk_rows(this: Run, ledger: checkpoint.Ledger, done: outputs.Finished | None) -> int:
    """The user's choice, else that of the interrupted or finished run, else what suits the encoder."""
    job = this.job
    adopted = ledger.adopted("chunk_rows") or (done.job.get("job", {}).get("chunk_rows") if done else None)
    return job.chunk_rows or (None if job.overwrite else adopted) or encoders.chunk_rows(job, this.files)


def job_identity(job: Job, plan: Plan, files: ModelFiles | None) -> dict[str, Any]:
    """Everything that decides the output's rows and vectors, as the manifest records it."""
    columns = plan.columns
    mine = {
        "text_column": columns.text_column,
        "id_column": columns.id_column,
        "id_type": str(columns.id_type),
        "keep": {name: str(kind) for name, kind in columns.keep_types.items()},
        # Names without folders: the content is compared by hash, and a moved folder is no other job.
        "inputs": [Path(path).name for path in inputs_of(plan)],
    }
    return {**job.identity(), **mine, **encoders.identity(job, files)}


def ranges_of(this: Run, encoder: Encoder, stage: Path | None, done: outputs.Finished | None) -> Floats | None:
    """float32 [2, dim] for int8 and uint8: those of the output that is updated, else a sample's; None otherwise."""
    if not calibration.needed(this.job):
        return None
    if done is not None and done.space.get("ranges"):
        return np.array(done.space["ranges"], np.float32)
    chunks = sources.read(this.job, this.plan, this.plan.pieces)
    return calibration.ranges_for(this.job, chunks, encoder, this.settings(encoder), stage)


def space_of(job: Job, encoder: Encoder, ranges: Floats | None = None) -> dict[str, Any]:
    """The vector space as outputs record it: the encoder's facts and what was done to its vectors."""
    space = encoder.space()
    return {
        **space,
        "dim": encoders.output_dim(job, encoder.dim),
        "truncate_dim": job.truncate_dim,
        "precision": job.precision,
        **({} if ranges is None else {"ranges": ranges.tolist()}),
        "overflow": job.overflow,
        "versions": {"embedcli": __version__, **space.get("versions", {})},
    }


def with_saved_dim(job: Job, encoder: Encoder) -> Job:
    """The job with the truncation that the model's own files ask for, unless the user named one."""
    return job if job.truncate_dim is not None else replace(job, truncate_dim=encoder.space().get("truncate_dim"))


def layout_of(job: Job, plan: Plan, encoder: Encoder, ranges: Floats | None = None) -> Layout:
    return Layout(plan.columns, encoders.output_dim(job, encoder.dim), job.precision, job.overflow == "split", ranges)


def inputs_of(plan: Plan) -> list[str]:
    return list(dict.fromkeys(piece.path for piece in plan.pieces))


# Ends


def ended(totals: dict[str, int], space: dict[str, Any], files: tuple[str, ...] = ()) -> Outcome:
    rejects = totals["rejects"]
    reason = f"{rejects} rows were rejected" if rejects else "all rows embedded"
    return Outcome(3 if rejects else 0, reason, totals, space, files)


def stopped(this: Run, totals: dict[str, int], what_next: str) -> Outcome:
    code = INTERRUPTED if this.control.reason == "SIGINT" else STOPPED
    return Outcome(code, f"stopped by {this.control.reason}: {what_next}", totals)


def nothing_to_do(
    this: Run, identity: dict[str, Any], done: outputs.Finished, ledger: checkpoint.Ledger
) -> Outcome | None:
    """The output is finished, of this very job and input: leave it as it is. None if --update must look closer.

    Raises ResumeError if the job or the input has changed and the user did not say --update.
    """
    output = ledger.target.output
    if this.job.update and "-" in identity["inputs"]:
        return None  # stdin can be read only once
    try:
        outputs.refuse_changed(done.job.get("job", {}), identity, output, output)
        refuse_changed_input(this, identity, done, ledger)
    except ResumeError:
        if this.job.update:
            this.read = 0
            return None
        raise
    ledger.remove_stage()
    totals = {key: int(done.job[key]) for key in TOTALS}
    return Outcome(0, "nothing to do: the output is finished", totals, done.space, (), totals["read"])


def refuse_changed_input(
    this: Run, identity: dict[str, Any], done: outputs.Finished, ledger: checkpoint.Ledger
) -> None:
    """ResumeError unless the inputs still hold what the output was made from; read anew only if they look other."""
    if seen_before(ledger.target, this.plan):
        return
    now = checkpoint.joined_hash([checkpoint.source_hash(chunk) for chunk in this.chunks()])
    if now != done.source_hash:
        raise outputs.changed_input(", ".join(inputs_of(this.plan)[:3]), done.source_hash, now, ledger.target.output)
    remember(ledger.target, this.plan)


def refuse_rejects(job: Job, rejects: int, read: int | None) -> None:
    """Apply --max-rejects: a number at once, a share (`0.1%`) when all rows are `read`."""
    if job.max_rejects is None:
        return
    text = job.max_rejects.strip()
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else None
        allowed = float(text) if share is None else share * (read or 0)
    except ValueError:
        raise UsageError(f"--max-rejects {text!r} is neither a number nor a share", "use e.g. 100 or 0.1%") from None
    if (share is None or read is not None) and rejects > allowed:
        raise TooManyRejects(
            f"{rejects} rows were rejected, more than --max-rejects {text} allows; the output was not published",
            "look at the rejected rows in the staged parts, mend the input, or raise --max-rejects",
        )


# What finished outputs looked like: only a shortcut, the content hash decides


def remember(target: outputs.Target, plan: Plan) -> None:
    """Note size and time of inputs and output, so that the next run of a finished job need not read them."""
    stamp = outputs.stamp(target, inputs_of(plan))
    if stamp is not None:
        note = _note(target)
        with suppress(OSError):  # a torn note does not match and costs a reading of the input
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(json.dumps(stamp), "utf-8")


def seen_before(target: outputs.Target, plan: Plan) -> bool:
    """Whether inputs and output look as they did when this output was last found finished."""
    try:
        return bool(json.loads(_note(target).read_bytes()) == outputs.stamp(target, inputs_of(plan)))
    except (OSError, ValueError):
        return False


def _note(target: outputs.Target) -> Path:
    from embedcli.encoders.files import cache_home

    name = hashlib.sha256(str(Path(target.output).resolve()).encode()).hexdigest()[:32]
    return cache_home() / "finished" / f"{name}.json"
