"""The child process whose memory is measured."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from retnet_edge.errors import InputError
from retnet_edge.runtime.memory.memory import memory_supported, run_child, summarise_memory

linux = pytest.mark.skipif(not memory_supported(), reason="needs /proc/self/smaps_rollup")

CHILD = """
import mmap, sys
import msgspec
from retnet_edge.runtime.memory.child import MemorySamples, MemorySampler, guard, sample_memory

class Fake:
    '''Keeps `leak` more bytes with every step.'''
    def __init__(self, leak, kind):
        flags = mmap.MAP_ANONYMOUS | getattr(mmap, kind)
        self.leak, self.used, self.kept = leak, 0, mmap.mmap(-1, 1 << 28, flags)
    def step(self, token):
        self.kept[self.used : self.used + self.leak] = b"x" * self.leak
        self.used += self.leak

leak, limit, kind = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
guard(None)
sampler = MemorySampler(500)
opened = sample_memory(Fake(leak, kind), sampler, vocab=10, warmup=500, every=40, limit=limit)
sizes = sampler.sizes[: sampler.taken]
print(msgspec.json.encode(MemorySamples(
    model="retnet", tokens=[500 + 40 * (i + 1) for i in range(sampler.taken)],
    anonymous=sizes[:, 0].tolist(), file_backed=sizes[:, 1].tolist(), base=1, base_anonymous=1,
    opened=opened, states=1, states_expected=1, states_per_token=0, load_seconds=0.5,
    step_seconds=sampler.seconds[: sampler.taken].tolist())).decode())
"""


def child(leak: int, limit: int = 1 << 40, kind: str = "MAP_PRIVATE") -> list[str]:
    return [sys.executable, "-c", CHILD, str(leak), str(limit), kind]


@linux
@pytest.mark.parametrize("kind", ["MAP_PRIVATE", "MAP_SHARED"])
@pytest.mark.parametrize("leak", [0, 8])
def test_a_leak_in_a_process_is_measured(leak: int, kind: str) -> None:
    steps: list[int] = []
    memory = summarise_memory(
        run_child(child(leak, kind=kind), steps.append), warmup=500, threads=1
    )
    slope = memory.anonymous_slope
    assert memory.steps == sum(steps) == 20_000
    assert slope.bytes_per_token == pytest.approx(leak, abs=0.5)
    assert slope.low <= leak + 0.01
    assert slope.high >= leak - 0.01
    assert (slope.low > 0) == (leak > 0)
    assert memory.file_backed_growth < 2**20
    low, middle, high = memory.step_milliseconds
    assert 0 < low <= middle <= high
    assert memory.tokens_per_second == pytest.approx(1e3 / middle)
    assert memory.load_seconds == 0.5


@linux
def test_a_process_that_grows_past_its_limit_stops_and_is_fitted() -> None:
    observation = run_child(child(8000, limit=150 << 20), lambda steps: None)
    assert len(observation.tokens) < 500
    memory = summarise_memory(observation, warmup=500, threads=1)
    assert memory.anonymous_slope.bytes_per_token == pytest.approx(8000, rel=0.02)


def test_a_child_that_fails_is_one_sentence() -> None:
    with pytest.raises(InputError, match="ended with status 1: no such model"):
        run_child([sys.executable, "-c", "import sys; sys.exit('no such model')"], print)
    killed = "import os; os.kill(os.getpid(), 9)"
    with pytest.raises(InputError, match="killed by signal 9: no message"):
        run_child([sys.executable, "-c", killed], print)


def test_a_child_does_not_outlive_the_call(tmp_path: Path) -> None:
    def interrupt(steps: int) -> None:
        raise KeyboardInterrupt

    pid = tmp_path / "pid"
    slow = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); print(1, flush=True)"
    with pytest.raises(KeyboardInterrupt):
        run_child([sys.executable, "-c", slow + "; time.sleep(600)"], interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


@linux
def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    grandchild = (
        "import os, time; from retnet_edge.runtime.memory.child import guard; "
        "guard(os.getppid());"
        f"open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    )
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])",
            grandchild,
        ]
    )
    while not (pid.exists() and pid.read_text()):
        assert parent.poll() is None
        time.sleep(0.02)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    stat = Path(f"/proc/{pid.read_text()}/stat")
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.02)
