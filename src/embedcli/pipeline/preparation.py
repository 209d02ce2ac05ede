"""Chunks as the distinct sequences that an encoder reads, and their vectors back to the rows of the chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from embedcli.core.arrow_values import value_of
from embedcli.core.batching import groups
from embedcli.core.encoder import BaseEncoder, TextTokenizer, Tokens
from embedcli.core.errors import InputError, UsageError
from embedcli.core.job import Job
from embedcli.core.quantization import fits, shape
from embedcli.core.types import Chunk, Encoded, Known, Overflow, Precision, Reject
from embedcli.pipeline.metrics import Meter
from embedcli.pipeline.windows import Windows, filled, pool, split, spread, whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.core.types import Bools, Floats, Ints, Rows

Lookup = Callable[[Chunk, Any], Known]


@dataclass(frozen=True)
class Settings:
    """What the engine needs of a job. `truncate_dim` is followed by renormalising unless `normalize` is False."""

    prompt: str = ""
    batch_tokens: int | None = None
    overflow: Overflow = "truncate"
    split_overlap: int = 0
    truncate_dim: int | None = None
    normalize: bool | None = None
    precision: Precision = "float32"
    known: Lookup | None = None

    @classmethod
    def of(cls, job: Job, prompt: str, known: Lookup | None = None) -> Settings:
        """Those of a job, with the prompt that its encoder resolved."""
        return cls(
            prompt=prompt,
            batch_tokens=job.batch_tokens,
            overflow=job.overflow,
            split_overlap=job.split_overlap,
            truncate_dim=job.truncate_dim,
            normalize=job.normalize,
            precision=job.precision,
            known=known,
        )


@dataclass
class Work:
    """A chunk on its way through the device. `inverse` tells the distinct text of each row (-1: known already).

    It is `whole` when all its distinct texts have come, in `portions`.
    """

    chunk: Chunk
    hashes: Any
    known: Known | None
    inverse: Rows
    portions: list[Portion] = field(default_factory=list)
    whole: bool = False

    @property
    def done(self) -> bool:
        """Whether every sequence has its vector, or a reason why not."""
        return self.whole and not any(portion.left for portion in self.portions)


@dataclass
class Portion:
    """Some distinct texts of a chunk, from number `first` on, as sequences that are tokenized and batched together.

    `reasons` say why a sequence gets no vector; `left` is how many still wait for theirs.
    """

    work: Work
    first: int
    windows: Windows
    tokens: Tokens
    vectors: Floats
    reasons: dict[int, str]
    left: int = 0

    def where(self, sequence: int) -> str:
        """file:line of the first row that a sequence belongs to."""
        text = self.first + int(np.searchsorted(self.windows.starts, sequence, side="right")) - 1
        row = int(np.flatnonzero(self.work.inverse == text)[0])
        return f"{self.work.chunk.piece.path}:{self.work.chunk.lines[row]}"


def prepare(chunk: Chunk, encoder: BaseEncoder, settings: Settings, meter: Meter) -> Iterator[Portion]:
    """Hash, look up and deduplicate the rows of a chunk; yield its texts as they are tokenized: a portion or more."""
    hashes = text_hashes(chunk.texts, settings.prompt)
    known = settings.known(chunk, hashes) if settings.known is not None else None
    known_rows = set(known.rows.tolist()) if known is not None else ()
    number: dict[str, int] = {}
    inverse = np.full(len(chunk.texts), -1, np.int64)
    for row, text in enumerate(chunk.texts):
        if row not in known_rows:
            inverse[row] = number.setdefault(text, len(number))
    texts = list(number)
    fresh = int((inverse >= 0).sum())
    meter.reused += len(chunk.texts) - fresh
    meter.duplicates += fresh - len(texts)
    work = Work(chunk, hashes, known, inverse)
    characters = encoder.portion_characters
    for first, stop in groups(map(len, texts), characters) if characters and texts else [(0, len(texts))]:
        made = portion_of(work, first, texts[first:stop], encoder, settings)
        work.portions.append(made)
        work.whole = stop == len(texts)
        yield made


def portion_of(work: Work, first: int, texts: list[str], encoder: BaseEncoder, settings: Settings) -> Portion:
    """Tokenize texts. InputError at the first that was cut, with --overflow error."""
    windows, tokens = tokenized(texts, encoder, settings)
    reasons = {int(i): encoder.empty_reason for i in np.flatnonzero(tokens.lengths == 0)}
    vectors = np.zeros((len(windows.sequences), encoder.dim), np.float32)
    made = Portion(work, first, windows, tokens, vectors, reasons)
    overflowed(made, settings)
    made.left = len(vectors) - len(reasons)
    return made


def tokenized(texts: list[str], encoder: TextTokenizer, settings: Settings) -> tuple[Windows, Tokens]:
    """Texts as sequences and their tokens; long texts as windows if --overflow is split or pool."""
    tokens = encoder.tokenize(texts)
    long = tokens.full > tokens.lengths
    if settings.overflow not in ("split", "pool") or not long.any():
        return whole(texts), tokens

    def spans_of(text: str) -> Sequence[tuple[int, int]]:
        spans = encoder.split_into_windows(text, settings.split_overlap)
        if spans is None:
            raise UsageError(
                f"--overflow {settings.overflow} needs a model with a tokenizer of its own",
                "use --overflow truncate, error or reject",
            )
        return spans

    windows = split(texts, long, spans_of)
    tokens = encoder.tokenize(windows.sequences)
    if not tokens.lengths.all():
        windows = filled(texts, windows, tokens.lengths)
        tokens = encoder.tokenize(windows.sequences)
    return windows, tokens


def text_hashes(texts: Sequence[str], prompt: str) -> Any:
    """uint8 [n, 16]: BLAKE2b-128 of each text with its prompt, UTF-8."""
    start = blake2b(prompt.encode(), digest_size=16)
    joined = bytearray()
    for text in texts:
        state = start.copy()
        state.update(text.encode())
        joined += state.digest()
    return np.frombuffer(bytes(joined), np.uint8).reshape(len(texts), 16)


def overflowed(portion: Portion, settings: Settings) -> None:
    """Apply --overflow error and reject to the texts that were cut."""
    if settings.overflow not in ("error", "reject"):
        return
    lengths = portion.tokens.lengths
    for i in np.flatnonzero(portion.tokens.full > lengths):
        reason = f"{int(portion.tokens.full[i])} tokens, and the encoder reads {int(lengths[i])}"
        if settings.overflow == "error":
            raise InputError(
                f"{portion.where(int(i))}: the text has {reason}",
                "use --overflow truncate, reject, split or pool, or a larger --max-seq-length",
            )
        portion.reasons[int(i)] = f"too long: {reason}"


def finish(work: Work, settings: Settings) -> Encoded:
    """Scatter the sequences' vectors back to the rows of the chunk, several rows for a text in windows."""
    made = joined([made_of(portion, settings) for portion in work.portions])
    good = np.array([int(text) not in made.bad for text in work.inverse], bool)
    kept = np.flatnonzero(good)
    fresh = work.inverse[kept] >= 0
    at, source = spread(work.inverse[kept][fresh], made.starts)
    rows = np.concatenate([kept[~fresh], kept[fresh][at]])
    order = np.argsort(rows, kind="stable")
    known = work.known or Known(rows[:0], made.vectors[:0], made.n_tokens[:0], made.truncated[:0], made.lost[:0])
    return Encoded(
        chunk=work.chunk,
        rows=rows[order],
        vectors=np.concatenate([known.vectors, made.vectors[source]])[order],
        n_tokens=np.concatenate([known.n_tokens, made.n_tokens[source]])[order],
        truncated=np.concatenate([known.truncated, made.truncated[source]])[order],
        text_hash=work.hashes[rows[order]],
        rejects=tuple(_refused(work, int(row), made.bad) for row in np.flatnonzero(~good)),
        extra={name: pa.array(values[source]) for name, values in made.columns.items()},
        lost_tokens=int(made.lost[source].sum() + known.lost.sum()),
    )


@dataclass(frozen=True)
class Made:
    """Finished vectors, counts and further columns, one per sequence, or one per text when windows were pooled.

    Text t owns `starts[t]` to `starts[t + 1]`; `bad` are the texts that get no vector, with the reason.
    """

    vectors: Floats
    n_tokens: Ints
    truncated: Bools
    lost: Ints
    starts: Rows
    columns: dict[str, NDArray[Any]]
    bad: dict[int, str]


def made_of(portion: Portion, settings: Settings) -> Made:
    """Pool the windows if --overflow is pool, then cut and renormalise for --truncate-dim."""
    tokens, windows, vectors = portion.tokens, portion.windows, portion.vectors
    lost = (tokens.full - tokens.lengths).astype(np.int32)
    counts, starts = tokens.full, windows.starts
    if settings.overflow == "pool" and len(windows.sequences):
        vectors = pool(vectors, tokens.full, starts, settings.normalize)
        counts, lost = np.add.reduceat(counts, starts[:-1]), np.add.reduceat(lost, starts[:-1])
        starts = np.arange(len(starts))
    vectors = shape(vectors, settings.truncate_dim, settings.normalize)
    columns = window_columns(windows) if settings.overflow == "split" else {}
    bad = bad_texts(portion)
    if vectors is not portion.vectors or settings.precision == "float16":
        bad = unstorable_texts(vectors, starts, settings.precision) | bad
    return Made(vectors, counts, lost > 0, lost, starts, columns, bad)


def joined(parts: Sequence[Made]) -> Made:
    """The same for all texts of a chunk, in order."""
    if len(parts) == 1:
        return parts[0]
    texts = np.cumsum([0, *(len(part.starts) - 1 for part in parts)]).tolist()
    sequences = np.cumsum([0, *(part.starts[-1] for part in parts)])
    starts = [part.starts[:-1] + before for part, before in zip(parts, sequences, strict=False)]
    return Made(
        vectors=np.concatenate([part.vectors for part in parts]),
        n_tokens=np.concatenate([part.n_tokens for part in parts]),
        truncated=np.concatenate([part.truncated for part in parts]),
        lost=np.concatenate([part.lost for part in parts]),
        starts=np.concatenate([*starts, sequences[-1:]]),
        columns={name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns},
        bad={before + i: why for part, before in zip(parts, texts, strict=False) for i, why in part.bad.items()},
    )


def bad_texts(portion: Portion) -> dict[int, str]:
    """The distinct texts that get no vector, with the reason of their first bad sequence."""
    owners = portion.windows.owners
    return {int(owners[i]): portion.reasons[i] for i in sorted(portion.reasons, reverse=True)}


def unstorable_texts(vectors: Floats, starts: Rows, precision: Precision) -> dict[int, str]:
    """The distinct texts whose vectors could be used, and cannot any more when they are cut and stored."""
    reason = f"in {vectors.shape[1]} dimensions of {precision} its vector would be zero or not finite"
    texts = np.searchsorted(starts, np.flatnonzero(~fits(vectors, precision)), side="right") - 1
    return dict.fromkeys(texts.tolist(), reason)


def window_columns(windows: Windows) -> dict[str, NDArray[Any]]:
    """`window`, counted from 0 in each text, and the characters it covers."""
    inside = np.arange(len(windows.sequences)) - windows.starts[windows.owners]
    return {
        "window": inside.astype(np.int32),
        "char_start": windows.spans[:, 0],
        "char_end": windows.spans[:, 1],
    }


def _refused(work: Work, row: int, bad: dict[int, str]) -> Reject:
    chunk = work.chunk
    reason = bad[int(work.inverse[row])]
    return Reject(chunk.piece.path, chunk.lines[row], reason, value_of(chunk.ids[row]), chunk.texts[row])
