"""How much CPU time a container lets its processes use, from Linux' control groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

_ROOT = Path("/")
_V1_MOUNTS = ("cpu", "cpu,cpuacct")


def cpu_quota(root: Path = _ROOT) -> float | None:
    """Cores' worth of time a second that this process may use, None where there is no bound.

    The least of its control group and those around it, by version 2 (`cpu.max`) and version 1
    (`cpu.cfs_quota_us`). `root`: where `proc` and `sys` are.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, ValueError):
        return None
    mounted = root / "sys/fs/cgroup"
    found: list[float] = []
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            # beside version 1, version 2 is mounted one folder down
            for mount in (mounted, mounted / "unified"):
                found += _each(mount, path, _version_2)
        elif "cpu" in controllers.split(","):
            for name in _V1_MOUNTS:
                found += _each(mounted / name, path, _version_1)
    return min(found, default=None)


def _each(mount: Path, path: str, read: Callable[[Path], float | None]) -> Iterator[float]:
    """The bounds of a group and of those around it, up to what is mounted.

    Inside a container the path may be the one outside, of which only the mount itself is there.
    """
    inside = PurePosixPath("/", path).relative_to("/")
    for folder in (inside, *inside.parents):
        if ".." not in folder.parts and (quota := read(mount / folder)) is not None:
            yield quota


def _version_2(folder: Path) -> float | None:
    fields = _words(folder / "cpu.max")
    return _cores(*fields) if len(fields) == 2 else None


def _version_1(folder: Path) -> float | None:
    quota, period = _words(folder / "cpu.cfs_quota_us"), _words(folder / "cpu.cfs_period_us")
    return _cores(quota[0], period[0]) if len(quota) == len(period) == 1 else None


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except (OSError, ValueError):
        return []


def _cores(quota: str, period: str) -> float | None:
    """None for no bound: "max" in version 2, -1 in version 1."""
    if not (quota.isdecimal() and period.isdecimal()) or int(period) == 0 or int(quota) == 0:
        return None
    return int(quota) / int(period)
