"""Paths, streams and replaced files: what is there is found, damage is told, and a file appears whole or not at all."""

from __future__ import annotations

import bz2
import errno
import fcntl
import gzip
import lzma
import os
import re
import signal
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from embedcli import storage
from embedcli.core.errors import InputError, OutputError, UsageError
from embedcli.storage import compression

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bz2": bz2.compress,
    "xz": lambda data: lzma.compress(data, preset=0),
    "zstd": lambda data: zstandard.ZstdCompressor(write_checksum=True).compress(data),
}
DATA = b"".join(b"line %d\n" % (i * i) for i in range(10_000))


# Listing


def create_files(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


def expanded_names(*inputs: Path | str) -> list[str]:
    return [Path(path).name for path in storage.expand_inputs([str(given) for given in inputs])]


def test_a_folder_gives_its_data_files_in_natural_order(tmp_path: Path) -> None:
    names = [
        "part-10.jsonl",
        "part-2.jsonl",
        "part-2.csv.gz",
        "PART-1.TSV",
        "a.parquet",
        "b.ndjson.zst",
        "c.pq",
    ]
    hidden = ["_manifest.jsonl", ".hidden.jsonl", "README.md", "config.json", "a.parquet.crc", "jsonl"]
    folder = create_files(tmp_path / "data", *names, *hidden)
    (folder / "sub.jsonl").mkdir()
    assert expanded_names(folder) == [
        "PART-1.TSV", "a.parquet", "b.ndjson.zst", "c.pq", "part-2.csv.gz", "part-2.jsonl", "part-10.jsonl",
    ]  # fmt: skip


def test_inputs_keep_the_order_they_are_given_in(tmp_path: Path) -> None:
    create_files(tmp_path, "b.jsonl", "a.csv", "x9.tsv", "x10.tsv")
    assert expanded_names(tmp_path / "b.jsonl", "-", tmp_path / "x*", tmp_path / "a.csv") == [
        "b.jsonl", "-", "x9.tsv", "x10.tsv", "a.csv",
    ]  # fmt: skip


def test_globs_skip_hidden_names_and_folders_unless_asked(tmp_path: Path) -> None:
    create_files(tmp_path, "_SUCCESS", "a.json", ".b.json")
    create_files(tmp_path / "deep", "c.json")
    assert expanded_names(tmp_path / "*") == ["a.json"]
    assert expanded_names(tmp_path / "_*") == ["_SUCCESS"]
    assert expanded_names(tmp_path / "**" / "*.json") == ["a.json", "c.json"]


@pytest.mark.parametrize(
    "name", ["with space.jsonl", "new\nline.jsonl", "ünïcödé-批.jsonl", "[1]*?.jsonl", "-.jsonl", "a:b.jsonl", "s3:"]
)
def test_any_name_that_exists_works(name: str, tmp_path: Path) -> None:
    create_files(tmp_path, name)
    assert expanded_names(tmp_path / name) == [name]
    if name != "s3:":
        assert expanded_names(tmp_path) == [name]


def test_names_that_are_not_utf8_can_be_opened_and_shown(tmp_path: Path) -> None:
    path = os.fsdecode(bytes(tmp_path) + b"/caf\xe9.jsonl")
    Path(path).write_bytes(b"{}")
    assert storage.expand_inputs([str(tmp_path)]) == (path,)
    with storage.open_input(path) as source:
        assert source.read() == b"{}"
    assert storage.format_path(path).endswith("/caf\\xe9.jsonl")
    assert storage.format_location("a\nb", 7) == "a\\nb:7"


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        ("data/row.jsonl", "data/row.jsonl: no such file", "data/rows.jsonl"),
        ("nowhere/a.jsonl", "no such file or folder", "current folder"),
        ("data/*.csv", "no file matches", "pattern"),
        ("empty", "there are no data files in this folder", ".parquet"),
        ("data/rows.jsonl/a", "no such file or folder", ""),
        ("s4://bucket/a.jsonl", "s4:// addresses are not supported", "s3://"),
        ("", "no such file", ""),
    ],
)
def test_what_is_not_there_is_refused(
    given: str, message: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    create_files(tmp_path / "data", "rows.jsonl")
    create_files(tmp_path / "empty", "notes.txt")
    with pytest.raises(UsageError) as caught:
        storage.expand_inputs([given])
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_stdin_is_named_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="named twice"):
        storage.expand_inputs(["-", "-"])
    with pytest.raises(UsageError, match="no input was named"):
        storage.expand_inputs([])


def raise_os_error(error: int) -> Callable[..., Any]:
    def refuse(path: Any, *rest: Any, **more: Any) -> Any:
        raise OSError(error, os.strerror(error), path)

    return refuse


def test_what_may_not_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = create_files(tmp_path, "a.jsonl") / "a.jsonl"
    monkeypatch.setattr(os, "scandir", raise_os_error(errno.EACCES))
    with pytest.raises(InputError, match=f"{tmp_path}: cannot be read: Permission denied"):
        storage.expand_inputs([str(tmp_path)])
    monkeypatch.setattr(storage.local.LocalFileSystem, "open", lambda _, path: raise_os_error(errno.EACCES)(path))
    with pytest.raises(InputError, match=r"a\.jsonl: cannot be read: Permission denied"):
        storage.open_input(str(path))


@given(st.lists(st.text(alphabet="ab019-é", max_size=8), max_size=8))
def test_natural_order_is_an_order(names: list[str]) -> None:
    backwards = names[::-1]
    assert sorted(names, key=storage.natural_sort_key) == sorted(backwards, key=storage.natural_sort_key)
    assert [storage.natural_sort_key(f"part-{i}") for i in range(20)] == sorted(
        storage.natural_sort_key(f"part-{i}") for i in range(20)
    )


def test_identity_is_size_and_time(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"123")
    assert storage.file_identity(str(path)) == {"size": 3, "mtime_ns": path.stat().st_mtime_ns}
    assert storage.file_identity("-") == storage.file_identity("/dev/null") == {}
    path.unlink()
    assert storage.file_identity(str(path)) == {}


# Decompression


def read(path: Path) -> bytes:
    with storage.open_input(str(path)) as source:
        return b"".join(source)


def variants(codec: str) -> dict[str, tuple[bytes, bytes]]:
    """Well-formed streams: what is in the file, and what comes out."""
    compress = COMPRESS[codec]
    return {
        "whole": (compress(DATA), DATA),
        "empty": (compress(b""), b""),
        "members": (compress(DATA[:99]) + compress(b"") + compress(DATA[99:]), DATA),
        "padded": (compress(DATA[:99]) + bytes(12) + compress(DATA[99:]) + bytes(5000), DATA),
    }


@pytest.mark.parametrize("feed", [1, 7, 4096])
@pytest.mark.parametrize("variant", ["whole", "empty", "members", "padded"])
@pytest.mark.parametrize("codec", COMPRESS)
def test_every_member_is_read(
    codec: str, variant: str, feed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "FEED_BYTES", feed)
    data, expected = variants(codec)[variant]
    path = tmp_path / "a.csv"
    path.write_bytes(data)
    with storage.open_input(str(path)) as source:
        assert source.codec == codec
        assert b"".join(source) == expected
        assert source.position == source.size == len(data)


@pytest.mark.parametrize("codec", COMPRESS)
def test_every_truncation_is_noticed(codec: str, tmp_path: Path) -> None:
    data = COMPRESS[codec](DATA[:500]) * 2
    path = tmp_path / "a"
    boundary = len(data) // 2
    for end in range(compression.MAX_MAGIC_BYTES, len(data)):
        path.write_bytes(data[:end])
        if end == boundary:
            assert read(path) == DATA[:500]
            continue
        with pytest.raises(InputError) as caught:
            read(path)
        assert str(path) in caught.value.message


@pytest.mark.parametrize("codec", COMPRESS)
def test_every_flipped_byte_is_noticed_or_harmless(codec: str, tmp_path: Path) -> None:
    data = COMPRESS[codec](DATA[:500])
    path = tmp_path / "a"
    noticed = 0
    for at in range(compression.MAX_MAGIC_BYTES, len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
        try:
            assert read(path) == DATA[:500]
        except InputError as error:
            noticed += f"the {codec} data is" in error.message
    assert noticed > 0.9 * (len(data) - 10)


@pytest.mark.parametrize("codec", COMPRESS)
def test_what_follows_the_data_is_not_ignored(codec: str, tmp_path: Path) -> None:
    data = COMPRESS[codec](DATA)
    path = tmp_path / "a"
    path.write_bytes(data + b"something else")
    with pytest.raises(InputError) as caught:
        read(path)
    assert caught.value.message == f"{path}: the {codec} data is followed by other data at byte {len(data)}"


def test_frames_to_skip_and_long_windows_of_zstd(tmp_path: Path) -> None:
    skip = b"\x50\x2a\x4d\x18" + struct.pack("<I", 3) + b"abc"
    parameters = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    long = zstandard.ZstdCompressor(compression_params=parameters).compress(DATA)
    path = tmp_path / "a"
    path.write_bytes(skip + long + skip + long)
    assert read(path) == DATA * 2


@pytest.mark.parametrize("codec", COMPRESS)
def test_a_bomb_comes_out_in_bounded_portions(codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "FEED_BYTES", 256)
    size = 30 << 20
    path = tmp_path / "a"
    path.write_bytes(COMPRESS[codec](bytes(size)))
    with storage.open_input(str(path)) as source:
        portions = [len(block) for block in source]
    assert sum(portions) == size
    assert max(portions) <= (9 << 20 if codec == "zstd" else 1 << 20)


# Replacing


def list_content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_file_appears_whole_under_its_name(tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    target.write_bytes(b"old")
    with storage.replace_file_atomically(str(target)) as temporary:
        assert Path(temporary).parent == tmp_path
        assert re.fullmatch(rf"\.out\.bin\.tmp-{os.getpid()}-[0-9a-f]{{16}}", Path(temporary).name)
        Path(temporary).write_bytes(b"new")
        assert target.read_bytes() == b"old"
    assert list_content(tmp_path) == {"out.bin": b"new"}
    storage.write_bytes(str(target), b"newer")
    assert list_content(tmp_path) == {"out.bin": b"newer"}
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), OSError(errno.EIO, "x"), InputError("x")])
def test_a_failing_writer_leaves_everything_as_it_was(old: bytes | None, error: BaseException, tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    if old is not None:
        target.write_bytes(old)
    before = list_content(tmp_path)
    expected = OutputError if isinstance(error, OSError) else type(error)

    def fail() -> None:
        with storage.replace_file_atomically(str(target)) as temporary:
            Path(temporary).write_bytes(b"half")
            raise error

    with pytest.raises(expected):
        fail()
    assert list_content(tmp_path) == before


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EDQUOT])
@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_system_errors_are_reported_and_leave_nothing(
    call: str, error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out.bin"
    monkeypatch.setattr(os, call, raise_os_error(error))
    with pytest.raises(OutputError) as caught:
        storage.write_bytes(str(target), b"data")
    monkeypatch.undo()
    assert caught.value.message == f"{target}: cannot be written: {os.strerror(error)}"
    assert caught.value.hint
    assert list_content(tmp_path) == {}


def test_data_and_names_are_durable_before_and_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, str]] = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        calls.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        real_sync(descriptor)

    def replace(source: str, target: str) -> None:
        calls.append(("replace", source))
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    storage.write_bytes(str(tmp_path / "out.bin"), b"data")
    temporary = calls[0][1]
    assert temporary.startswith(f"{tmp_path}/.out.bin.tmp-{os.getpid()}-")
    assert calls == [("sync", temporary), ("replace", temporary), ("sync", str(tmp_path))]


def test_a_full_disk_is_an_error_not_a_short_file(tmp_path: Path) -> None:
    """A real limit of the kernel: writes past it fail as they do on a full disk."""
    code = f"""
import resource, signal
from embedcli import storage
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
storage.write_bytes({str(tmp_path / "out.bin")!r}, bytes(100_000))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "OutputError" in done.stderr
    assert "File too large" in done.stderr
    assert list_content(tmp_path) == {}


def test_what_a_dead_process_left_beside_the_target_of_a_link_is_swept(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link.bin").symlink_to(tmp_path / "real" / "file.bin")
    list_content = tmp_path / "real" / ".file.bin.tmp-999999999"
    list_content.write_bytes(b"")
    assert storage.remove_stale_temporaries_beside(str(tmp_path / "link.bin")) == [list_content.name]
    assert not list_content.exists()


def test_a_folder_that_another_process_makes_first_is_there(tmp_path: Path) -> None:
    files = storage.get_file_system(str(tmp_path))
    files.make_folder(str(tmp_path / "new"), parents=False)
    files.make_folder(str(tmp_path / "new"), parents=False)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileExistsError):
        files.make_folder(str(tmp_path / "file"), parents=False)


def test_links_are_followed_and_devices_and_folders_are_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "real.bin"
    target.write_bytes(b"old")
    (tmp_path / "link.bin").symlink_to(target)
    storage.write_bytes(str(tmp_path / "link.bin"), b"new")
    assert (tmp_path / "link.bin").is_symlink()
    assert target.read_bytes() == b"new"
    for special in ("/dev/null", str(tmp_path)):
        with pytest.raises(OutputError, match="is not a regular file"):
            storage.write_bytes(special, b"data")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(OutputError) as caught:
        storage.write_bytes(str(tmp_path / "missing" / "out.bin"), b"data")
    assert "create the folder" in caught.value.hint


@pytest.mark.parametrize("name", ["n" * 255, "é" * 127, "new\nline", " "])
def test_any_name_can_be_written(name: str, tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / name), b"data")
    assert list_content(tmp_path) == {name: b"data"}


# Sweeping


def start_writer(target: Path) -> subprocess.Popen[str]:
    """A process that is in the middle of replacing `target`."""
    code = f"""
import sys
from embedcli import storage
with storage.replace_file_atomically({str(target)!r}) as temporary:
    print(temporary, flush=True)
    sys.stdin.read()
"""
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_what_a_killed_process_left_is_swept_and_a_living_one_is_let_alone(tmp_path: Path) -> None:
    with start_writer(tmp_path / "out.bin") as writer:
        assert writer.stdout is not None
        temporary = Path(writer.stdout.readline().strip())
        assert storage.remove_stale_temporaries(tmp_path) == []
        assert temporary.exists()
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert temporary.exists()
    assert storage.remove_stale_temporaries(tmp_path, r"other\.bin") == []
    assert storage.remove_stale_temporaries(tmp_path, r"out\.bin") == [temporary.name]
    assert list_content(tmp_path) == {}


def test_a_sweep_knows_its_own_work_and_the_work_of_others(tmp_path: Path) -> None:
    """Process ids come again, in containers at once: a leftover with our own id is a leftover."""
    strangers = [".out.bin.tmp-x", "out.bin.tmp-12", ".out.bin", ".tmp-12"]
    create_files(tmp_path, *strangers, f".out.bin.tmp-{os.getpid()}", f".new\nline.tmp-{2**22 + 1}")
    with storage.replace_file_atomically(str(tmp_path / "mine")) as temporary:
        assert sorted(storage.remove_stale_temporaries(tmp_path)) == [
            f".new\nline.tmp-{2**22 + 1}",
            f".out.bin.tmp-{os.getpid()}",
        ]
        assert Path(temporary).exists()
    assert sorted(list_content(tmp_path)) == sorted([*strangers, "mine"])


def test_without_locks_the_process_id_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    create_files(tmp_path, f".a.tmp-{os.getpid()}", f".b.tmp-{2**22 + 1}")
    assert storage.remove_stale_temporaries(tmp_path) == [f".b.tmp-{2**22 + 1}"]
    storage.write_bytes(str(tmp_path / "c"), b"data")
    assert (tmp_path / "c").read_bytes() == b"data"


def test_a_folder_that_is_gone_cannot_be_swept(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        storage.remove_stale_temporaries(tmp_path / "gone")
