"""One changed bit anywhere in an output is found by `verify`, and its vectors are not taken over."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jobs
from embedcli.outputs import digests
from embedcli.outputs.dataset import open_dataset
from embedcli.outputs.integrity import check_output_digests

OUTPUTS = ["out.parquet", "out.npy", "out.jsonl", "out.arrow", "out.lance", "out/", "out-npy/", "out-arrow/"]
FLIPS = 40


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return jobs.enter_folder(tmp_path, monkeypatch, 40)


def encode(output: str, *options: object) -> jobs.Ended:
    kind = ["--to", output.rstrip("/").rpartition("-")[2]] if "-" in output else []
    fixed = ["-m", "words.txt", "-q", "--chunk-rows", 8, "--keep", "n", "--part-size", 500]
    return jobs.run("encode", "in.jsonl", output, *fixed, *kind, *options)


def files_of(output: str) -> list[Path]:
    path = Path(output)
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file() and file.name != digests.CHANGING_FILE)
    return sorted(Path().glob(f"{path.stem}.*"))


def flip_bit(path: Path, generator: random.Random) -> bytes:
    """Change one bit of a file; return its former content. The time stays, as with a failing disk."""
    before = path.read_bytes()
    data = bytearray(before)
    data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    path.write_bytes(data)
    return before


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_changed_bit_is_found(here: Path, output: str) -> None:
    assert encode(output).code == 0
    generator = random.Random(output)
    for file in files_of(output):
        for _ in range(FLIPS):
            before = flip_bit(file, generator)
            ended = jobs.run("verify", output, "--only-output")
            assert ended.code in (1, 2), f"{file}: {ended.out}"
            assert "Traceback" not in ended.err
            file.write_bytes(before)
    intact = jobs.run("verify", output)
    assert intact.code == 0, intact.out + intact.err
    assert "all bytes agree with the recorded SHA-256" in intact.out


@pytest.mark.parametrize("output", [name for name in OUTPUTS if name != "out.jsonl"])
def test_a_damaged_output_is_not_taken_over(here: Path, output: str) -> None:
    assert encode(output).code == 0
    jobs.write_jsonl(here / "in.jsonl", [*jobs.rows(40), {"id": "new", "text": "word1", "n": 1}])
    generator = random.Random(output)
    vectors = max(files_of(output), key=lambda file: file.stat().st_size)
    for file in {vectors, *files_of(output)[:2]}:
        before = flip_bit(file, generator)
        for number, options in enumerate([(output, "--update"), ("fresh.parquet", "--reuse", output)]):
            refused = encode(*options)
            assert refused.code in (1, 2), refused.out
            assert file.name in refused.err or output.rstrip("/") in refused.err
            assert "Traceback" not in refused.err
            assert not Path("fresh.parquet").exists(), number
        file.write_bytes(before)
    assert encode("fresh.parquet", "--reuse", output).code == 0
    assert encode(output, "--update").code == 0
    assert jobs.run("verify", output).code == 0


def test_the_message_names_the_file_and_what_to_do(here: Path) -> None:
    encode("out.npy")
    jobs.write_jsonl(here / "in.jsonl", jobs.rows(44))
    data = bytearray(Path("out.npy").read_bytes())
    data[-2] ^= 1
    Path("out.npy").write_bytes(data)
    refused = encode("out.npy", "--update")
    assert refused.code == 1
    assert "out.npy: the file is damaged: its bytes differ from the recorded SHA-256" in refused.err
    assert "encode the rows again" in refused.err


@pytest.mark.parametrize("output", OUTPUTS)
def test_an_output_without_a_digest_works(here: Path, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs of earlier versions have none."""
    write_without_digests(monkeypatch)
    assert encode(output).code == 0
    monkeypatch.undo()
    monkeypatch.chdir(here)
    ended = jobs.run("verify", output)
    assert ended.code == 0, ended.out + ended.err
    assert "none recorded" in ended.out
    if output != "out.jsonl":
        jobs.write_jsonl(here / "in.jsonl", jobs.rows(44))
        assert encode("fresh.parquet", "--reuse", output).code == 0
        assert encode(output, "--update").code == 0
        assert "all bytes agree" in jobs.run("verify", output).out


def write_without_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests.DigestWriter, "hold", lambda _: None)
    monkeypatch.setattr(digests.DigestWriter, "seal", lambda _: None)
    monkeypatch.setattr(digests, "hold_parquet_footer", lambda *_: None)
    monkeypatch.setattr(digests, "arrow_footer_metadata", dict)
    monkeypatch.setattr(digests, "write_folder_digests", lambda _: None)

    def seal_text(text: str) -> bytes:
        document = json.loads(text)
        del document[digests.DIGEST_KEY]
        return json.dumps(document).encode()

    monkeypatch.setattr(digests, "seal_text", seal_text)


def test_other_readers_see_what_they_saw(here: Path) -> None:
    for output in ("out.parquet", "out.npy", "out.arrow", "out.jsonl"):
        encode(output)
    table = pq.read_table("out.parquet")
    assert table.schema.metadata.keys() == {b"embedcli", b"embedcli.job"}
    assert pa.ipc.open_file("out.arrow").read_all().equals(table)
    vectors = np.stack(table.column("embedding").to_numpy(zero_copy_only=False))
    assert np.array_equal(np.load("out.npy"), vectors)


def test_sha256sum_checks_a_lance_dataset(here: Path) -> None:
    encode("out.lance")
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd="out.lance", check=True)


@pytest.mark.parametrize("output", ["out.parquet", "out.arrow", "out.npy", "out.jsonl"])
def test_the_digest_can_be_computed_with_other_tools(here: Path, output: str) -> None:
    encode(output)
    holder = {"out.npy": "out.ids.parquet", "out.jsonl": "out.jsonl.space.json"}.get(output, output)
    record = digests._read_record(holder)
    assert record is not None
    own = record["own"].decode()
    script = f"LC_ALL=C sed s/{own}/{digests.UNKNOWN_DIGEST}/ {holder} | sha256sum"
    assert subprocess.check_output(["sh", "-c", script], text=True).split()[0] == own
    if record["data"] is not None:
        assert subprocess.check_output(["sha256sum", output], text=True).split()[0] == record["data"].decode()


def test_a_lance_dataset_that_got_more_rows_is_not_damaged(here: Path) -> None:
    lance: Any = pytest.importorskip("lance")
    encode("out.lance")
    dataset = lance.dataset("out.lance")
    lance.write_dataset(dataset.to_table().slice(0, 2), "out.lance", mode="append")
    assert check_output_digests(open_dataset("out.lance"))


@pytest.mark.parametrize("block", [1, 7, 64, 75, 76, 77, 1000])
def test_a_digest_is_replaced_wherever_a_block_ends(block: int) -> None:
    own = b"ab" * 32
    data = b"x" * 100 + digests.SELF_FIELD % own + b"y" * 50
    blocks = (data[start : start + block] for start in range(0, len(data), block))
    expected = data.replace(own, digests.UNKNOWN_DIGEST.encode())
    assert b"".join(digests._without_digest(blocks, own)) == expected
