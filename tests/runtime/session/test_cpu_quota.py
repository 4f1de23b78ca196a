"""The CPU time that a container allows, in the files of both versions of control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from retnet_edge.runtime.session.cpu_quota import cpu_quota
from retnet_edge.runtime.session.threads import threads_for

CPU = "sys/fs/cgroup/cpu"


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/", {}, None),
        ("0::/", {"sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ("0::/", {"sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
        ("0::/a/b", {"sys/fs/cgroup/a/cpu.max": "200000 100000"}, 2.0),
        (
            "0::/a/b",
            {
                "sys/fs/cgroup/a/cpu.max": "50000 100000",
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000",
            },
            0.5,
        ),
        (
            "5:cpu,cpuacct:/docker/1f\n0::/",
            {f"{CPU}/cpu.cfs_quota_us": "300000", f"{CPU}/cpu.cfs_period_us": "100000"},
            3.0,
        ),
        (
            "5:cpu,cpuacct:/docker/1f",
            {
                f"{CPU},cpuacct/docker/1f/cpu.cfs_quota_us": "25000",
                f"{CPU},cpuacct/docker/1f/cpu.cfs_period_us": "50000",
            },
            0.5,
        ),
        ("5:cpu:/", {f"{CPU}/cpu.cfs_quota_us": "-1", f"{CPU}/cpu.cfs_period_us": "100000"}, None),
        ("5:cpuset:/", {f"{CPU}/cpu.cfs_quota_us": "1", f"{CPU}/cpu.cfs_period_us": "1"}, None),
        ("0::/../..", {"sys/fs/cgroup/cpu.max": "100000 100000"}, 1.0),
        ("0::/", {"sys/fs/cgroup/cpu.max": "many 0"}, None),
        ("nonsense", {}, None),
    ],
)
def test_quota(groups: str, files: dict[str, str], quota: float | None, tmp_path: Path) -> None:
    for name, content in {"proc/self/cgroup": groups, **files}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    assert cpu_quota(tmp_path) == quota


def test_a_system_without_control_groups(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None


@pytest.mark.parametrize(
    ("cores", "busy", "quota", "threads"),
    [(8, 0.0, 2.0, 2), (8, 0.0, 1.9, 1), (8, 0.0, 0.5, 1), (2, 1.0, 4.0, 1), (64, 40.0, 3.0, 3)],
)
def test_threads_of_a_quota(cores: int, busy: float, quota: float, threads: int) -> None:
    assert threads_for(cores, busy, quota) == threads
