"""The number of cores a process may use, from the files in which Linux reports it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from embedcli.cli import entrypoint
from embedcli.core import cpu

LAYOUTS: dict[str, tuple[dict[str, str], int | None]] = {
    "no files": ({}, None),
    "a container": ({"own": "0::/\n", "groups/cpu.max": "150000 100000\n"}, 2),
    "less than one core": ({"own": "0::/\n", "groups/cpu.max": "5000 100000\n"}, 1),
    "no limit": ({"own": "0::/\n", "groups/cpu.max": "max 100000\n"}, None),
    "damaged": ({"own": "0::/\n\u00e9:\n", "groups/cpu.max": "many\n"}, None),
    "a service": (
        {"own": "0::/system.slice/embed.service\n", "groups/system.slice/embed.service/cpu.max": "300000 100000"},
        3,
    ),
    "a slice that holds it": (
        {
            "own": "0::/a.slice/b.service\n",
            "groups/a.slice/cpu.max": "100000 50000",
            "groups/a.slice/b.service/cpu.max": "800000 100000",
        },
        2,
    ),
    "version 1, a container": (
        {
            "own": "3:cpu,cpuacct:/docker/0123\n2:memory:/docker/0123\n",
            "groups/cpu/cpu.cfs_quota_us": "400000\n",
            "groups/cpu/cpu.cfs_period_us": "100000\n",
        },
        4,
    ),
    "version 1, a service": (
        {
            "own": "3:cpu,cpuacct:/s/x\n0::/\n",
            "groups/cpu,cpuacct/s/x/cpu.cfs_quota_us": "250000\n",
            "groups/cpu,cpuacct/s/x/cpu.cfs_period_us": "100000\n",
        },
        3,
    ),
    "version 1, no limit": (
        {"own": "1:cpu:/\n", "groups/cpu/cpu.cfs_quota_us": "-1\n", "groups/cpu/cpu.cfs_period_us": "100000\n"},
        None,
    ),
}


@pytest.fixture(params=LAYOUTS)
def expected(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int | None:
    files, expected = LAYOUTS[request.param]
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, "utf-8")
    monkeypatch.setattr(cpu, "CGROUP_ROOT", tmp_path / "groups")
    monkeypatch.setattr(cpu, "PROCESS_CGROUP_FILE", tmp_path / "own")
    return expected


def test_quotas_are_found_in_every_layout(expected: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert cpu.cpu_quota() == expected
    assert cpu.count_usable_cores() == (expected or 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert cpu.count_usable_cores() == 1


def test_thread_limits_are_set_unless_the_user_has_set_them(
    expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    entrypoint.limit_threads_to_quota()
    assert os.environ.get("RAYON_NUM_THREADS") == (str(expected) if expected else None)
    assert os.environ["OMP_NUM_THREADS"] == "7"
    os.environ.pop("RAYON_NUM_THREADS", None)
