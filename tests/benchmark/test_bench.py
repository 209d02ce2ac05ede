"""The arithmetic of a comparison by hand, what the tables and commands are made of, and how processes are measured."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedcli.benchmark import statistics
from embedcli.benchmark.contenders import PROGRAMS, PeerLibrary, RunFailed, require_success
from embedcli.benchmark.dataset import FEW_ROWS, write_dataset
from embedcli.benchmark.lineup import BASELINE_BATCH_SIZE, BATCH_SIZES, choose_batch_size
from embedcli.benchmark.machine import describe_machine
from embedcli.benchmark.model_flops import read_transformer_shape
from embedcli.benchmark.results import get_best_products, round_floats, summarize_speedups
from embedcli.benchmark.statistics import TransformerShape
from embedcli.benchmark.text_tables import WIDTH, format_comparison
from embedcli.benchmark.timed_process import ProcessResult, compute_others_share, run_measured
from embedcli.cli.bench import encoder_arguments
from embedcli.cli.options import ENCODER_FLAGS
from embedcli.core.errors import InputError
from embedcli.core.job import Job
from embedcli.core.multi_vectors import MultiVectors
from embedcli.core.ragged import offsets_of


def test_a_ratio_is_theirs_over_ours_round_by_round() -> None:
    speedups = summarize_speedups([60.0, 66.0, 90.0], [20.0, 20.0, 25.0])
    assert speedups == {"median": 3.3, "each": [3.0, 3.3, 3.6]}


def test_rounds_without_a_partner_are_not_pairs() -> None:
    with pytest.raises(ValueError, match="shorter"):
        summarize_speedups([1.0, 2.0], [1.0])


def test_useful_flop_of_two_rows() -> None:
    # 2 x 100 for each of 3 + 5 tokens, and 4 x 2 layers x 10 wide x length for each token: 80 x (9 + 25).
    assert statistics.count_useful_flop(np.array([3, 5]), TransformerShape(100, 2, 10)) == 200 * 8 + 80 * 34


def test_rows_without_tokens_need_no_arithmetic() -> None:
    assert statistics.count_useful_flop(np.array([0, 4, 0]), TransformerShape(7, 1, 1)) == statistics.count_useful_flop(
        np.array([4]), TransformerShape(7, 1, 1)
    )


def test_padding_share_of_two_batches() -> None:
    # Batches (8, 6) and (2,): 16 + 2 computed, 16 real.
    assert statistics.simulate_padding_share(np.array([2, 8, 6]), np.array([1, 2, 0]), 2) == pytest.approx(2 / 18)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 8))
def test_padding_is_never_negative_and_none_with_one_row_a_batch(lengths: list[int], size: int) -> None:
    order = np.arange(len(lengths))
    assert 0 <= statistics.simulate_padding_share(np.array(lengths), order, size) < 1
    assert statistics.simulate_padding_share(np.array(lengths), order, 1) == 0


def test_rows_are_ordered_as_sentence_transformers_orders_them() -> None:
    assert statistics.order_longest_first(["aa", "a", "aaaa"]).tolist() == [2, 0, 1]


def test_the_lowest_cosine_is_that_of_the_worst_row() -> None:
    ours = np.array([[1, 0], [3, 4]], np.float32)
    theirs = np.array([[2, 0], [1, 0]], np.float32)
    assert statistics.lowest_cosine(ours, theirs) == pytest.approx(0.6)
    assert np.isnan(statistics.lowest_cosine(ours[:0], theirs[:0]))


def test_the_lowest_cosine_of_rows_of_several_vectors_is_that_of_the_worst_vector() -> None:
    values = np.array([[1, 0], [3, 4], [1, 1]], np.float32)
    ours = MultiVectors(offsets_of([1, 2]), values)
    theirs = MultiVectors(offsets_of([1, 2]), np.array([[2, 0], [1, 0], [2, 2]], np.float32))
    assert statistics.lowest_cosine(ours, theirs) == pytest.approx(0.6)
    assert statistics.lowest_cosine(ours[:1], theirs[:1]) == 1
    # As many vectors, of other rows: nothing is compared with what is not its own.
    assert statistics.lowest_cosine(ours, MultiVectors(offsets_of([2, 1]), values)) == 0
    assert statistics.lowest_cosine(ours, values) == 0
    assert np.isnan(statistics.lowest_cosine(ours[:0], theirs[:0]))


@given(st.integers(0, 300), st.integers(1, 50))
def test_a_spread_choice_has_each_row_once_and_no_more_than_wanted(count: int, wanted: int) -> None:
    chosen = statistics.pick_evenly(count, wanted)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(count, wanted)
    assert all(0 <= row < count for row in chosen)


def test_the_best_product_is_the_best_of_all_rounds() -> None:
    assert get_best_products([{"float32": 180.0}, {"float32": 200.0, "bfloat16": 400.0}, {}]) == {
        "float32": 200.0,
        "bfloat16": 400.0,
    }


def test_rounding_keeps_six_digits_and_the_distance_to_one() -> None:
    assert round_floats({"a": [123456.789], "b": 0.999999876, "c": "x", "d": None}) == {
        "a": [123457.0],
        "b": 0.999999876,
        "c": "x",
        "d": None,
    }


def safetensors(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    from safetensors.numpy import save_file

    save_file({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, path)


def test_a_shape_counts_what_each_token_is_multiplied_by(tmp_path: Path) -> None:
    weights = {
        "embeddings.word_embeddings.weight": (50, 4),
        "encoder.layer.0.attention.self.query.weight": (4, 4),
        "encoder.layer.0.attention.self.query.bias": (4,),
        "pooler.dense.weight": (4, 4),
    }
    safetensors(tmp_path / "model.safetensors", weights)
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 1, "hidden_size": 4}))
    assert read_transformer_shape(tmp_path) == TransformerShape(20, 1, 4)


def test_no_shape_where_the_files_do_not_tell(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 1, "hidden_size": 4}))
    assert read_transformer_shape(tmp_path) is None
    safetensors(tmp_path / "model.safetensors", {"a": (2,)})
    (tmp_path / "config.json").write_text("{}")
    assert read_transformer_shape(tmp_path) is None


def flags(**changed: Any) -> dict[str, Any]:
    return {name: getattr(Job, name) for name in ENCODER_FLAGS} | changed


def test_default_flags_are_not_passed_on() -> None:
    assert encoder_arguments(flags()) == ()


def test_changed_flags_are_passed_on_as_they_are_typed() -> None:
    changed = flags(model="m", dtype="bfloat16", normalize=False, as_="query", batch_tokens=512, prompt="")
    words = encoder_arguments(changed)
    assert words == (
        "--model", "m", "--as", "query", "--prompt", "", "--no-normalize", "--dtype", "bfloat16",
        "--batch-tokens", "512",
    )  # fmt: skip
    assert encoder_arguments(flags(normalize=True, offline=True)) == ("--offline", "--normalize")


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_process_is_measured_from_outside(tmp_path: Path) -> None:
    ours = bytearray(400_000_000)
    ours[::4096] = b"x" * len(ours[::4096])
    code = "x = bytearray(80_000_000); x[::4096] = b'x' * len(x[::4096]); sum(range(1_000_000))"
    done = run_measured(python(code), tmp_path / "stderr")
    assert done.code == 0
    assert 80 < done.peak_mb < 300
    assert done.cpu_seconds > 0
    assert done.seconds > 0


def test_a_failure_shows_its_error_line(tmp_path: Path) -> None:
    code = "import sys; sys.exit('note\\nerror: no such model\\nhint: type another')"
    done = run_measured(python(code), tmp_path / "stderr")
    assert (done.code, done.last_error_line) == (1, "error: no such model")
    with pytest.raises(RunFailed, match="no such model"):
        require_success(done)


def test_a_command_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="/no/such/python could not be run"):
        run_measured(["/no/such/python"], tmp_path / "stderr")


def test_a_killed_process_has_failed(tmp_path: Path) -> None:
    done = run_measured(python("import os; os.kill(os.getpid(), 9)"), tmp_path / "stderr")
    assert done.code == -signal.SIGKILL
    assert done.last_error_line == "exit code -9"


def test_settings_of_the_user_do_not_reach_measured_processes_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDCLI_BATCH_TOKENS", "7")
    monkeypatch.setenv("EMBEDCLI_CACHE", "here")
    code = "import os, sys; print(*[k for k in os.environ if k.startswith('EMBEDCLI_')], file=sys.stderr)"
    assert run_measured(python(code), tmp_path / "stderr").last_error_line == "EMBEDCLI_CACHE"


def test_the_machine_has_a_name_and_versions() -> None:
    described = describe_machine()
    assert described["processor"]
    assert described["cores"] >= 1
    assert {"embedcli", "numpy", "torch"} <= set(described["versions"])


def test_everyone_gets_the_good_rows_as_plain_jsonl(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    lines = [json.dumps({"text": f"row {i}"}) for i in range(15)]
    source.write_text("\n".join([*lines[:4], "{broken", *lines[4:]]) + "\n")
    dataset = write_dataset(Job(inputs=(str(source),), output=""), 12, tmp_path)
    read = [json.loads(line) for line in dataset.all_rows.read_text().splitlines()]
    assert [row["text"] for row in read] == [f"row {i}" for i in range(12)] == list(dataset.texts)
    assert [row["id"] for row in read] == list(range(12))
    assert len(dataset.first_rows.read_text().splitlines()) == FEW_ROWS


def test_an_input_without_rows_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": ""}\n')
    with pytest.raises(InputError, match="no row"):
        write_dataset(Job(inputs=(str(source),), output=""), None, tmp_path)


class TimedLibrary(PeerLibrary):
    """A peer whose batch sizes take these seconds."""

    def time_batch_sizes(self, rows: Path, folder: Path, sizes: tuple[int, ...]) -> dict[int, float]:
        assert len(sizes) == 3
        return dict(zip(sizes, (2.0, 1.0, 3.0), strict=True))


@pytest.mark.parametrize("library", BATCH_SIZES)
def test_a_peer_runs_with_its_fastest_batch_size_and_says_which(library: str) -> None:
    chosen = choose_batch_size(
        TimedLibrary("peer", {"library": library, "batch_sizes": [1]}), Path("rows"), Path("folder")
    )
    best = BATCH_SIZES[library][1]
    assert (chosen.name, chosen.settings["batch_sizes"]) == (f"peer {best}", [best])


def test_the_baseline_batch_size_is_among_those_tried() -> None:
    for library, size in BASELINE_BATCH_SIZE.items():
        assert size in BATCH_SIZES[library]


def test_programs_run_without_embedcli() -> None:
    for program in PROGRAMS.glob("*.py"):
        assert "import embedcli" not in program.read_text("utf-8")
        assert "from embedcli" not in program.read_text("utf-8")
        compiled = subprocess.run([sys.executable, "-I", "-m", "py_compile", str(program)], check=False)
        assert compiled.returncode == 0


CONTENDER = {
    "rows_per_second": 12345.6,
    "tokens_per_second": 1234567.8,
    "process_seconds": 123.4,
    "encode_seconds": 100.0,
    "cpu_seconds": 200.0,
    "peak_memory_mb": 1234.0,
    "others_share": 0.02,
    "padding_share": 0.123,
    "process_ratio": {"median": 12.34, "each": [12.34]},
    "encode_ratio": {"median": 12.34, "each": [12.34]},
    "cpu_ratio": {"median": 12.34, "each": [12.34]},
    "lowest_cosine": 0.99999987,
    "useful_gflops": 1234.0,
    "share_of_matrix_product": 0.712,
}
FIGURES: dict[str, Any] = {
    "machine": {
        "processor": "A processor with a long name (family 25, model 17)",
        "cores": 2,
        "memory_gb": 25.3,
        "system": "Linux 6.1",
        "python": "3.11.7",
        "versions": {f"package-{i}": "1.2.3" for i in range(9)},
    },
    "input": {"names": ["in.jsonl"], "rows": 3000, "tokens": 275000, "duplicates": 3},
    "model": {"name": "sentence-transformers/all-MiniLM-L6-v2", "dim": 384, "max_seq_length": 256},
    "rounds": 3,
    "baseline": "sentence-transformers 32",
    "matrix_product_gflops": {"float32": 200.0, "bfloat16": 400.0},
    "contenders": {
        "embedcli openvino f32": CONTENDER | {"device_idle_share": 0.012, "tokenize_share": 0.5},
        "sentence-transformers 32": CONTENDER | {"padding_share": None},
    },
    "ten_rows": {
        "process_seconds": {"embedcli": 0.6, "sentence-transformers 32": 6.0},
        "process_ratio": {"median": 10},
    },
    "missing": {"fastembed": "fastembed, onnx not installed: pip install fastembed onnx " * 2},
}


def test_the_table_fits_eighty_columns_and_has_every_contender() -> None:
    text = format_comparison(FIGURES)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert text.count("embedcli openvino f32") == 4
    assert text.count("12.34") == 6
    assert "1-1e-07" in text
    assert "pip install fastembed onnx" in text
    assert "careful" not in text


def test_the_table_says_when_the_machine_was_busy() -> None:
    busy = {"embedcli openvino f32": FIGURES["contenders"]["embedcli openvino f32"] | {"others_share": 0.4}}
    assert "other programs used up to 40% of the processors" in format_comparison(FIGURES | {"contenders": busy})


def test_others_get_what_the_process_did_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    done = ProcessResult(0, seconds=10, cpu_seconds=12, peak_mb=1, stderr="")
    assert compute_others_share(done, 100.0, 117.0) == 0.25
    assert compute_others_share(done, 100.0, 111.0) == 0
    assert compute_others_share(done, None, 111.0) is None
