"""How many threads may be asked for: everywhere the same, and refused before any work."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from conftest import Tiny

from retnet_edge.cli import main
from retnet_edge.errors import InputError
from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.bench.bench import bench
from retnet_edge.runtime.bench.read_bandwidth import ReadBandwidth
from retnet_edge.runtime.memory.memory import measure_memory
from retnet_edge.runtime.session.threads import MOST_THREADS, checked_threads


@pytest.mark.parametrize("bad", [0, -1, MOST_THREADS + 1, 100_000, 2**40])
def test_numbers_of_threads(bad: int, tiny: Tiny) -> None:
    bundle = tiny.open()
    for asked in (
        lambda: checked_threads(bad),
        lambda: open_session(bundle, threads=bad),
        lambda: ReadBandwidth(bad, size=4096),
        lambda: measure_memory(tiny.path, 100, threads=bad),
        lambda: bench(
            tiny.path, prompt=[], generate=[1], depth=[0], threads=[1, bad], repetitions=1
        ),
    ):
        with pytest.raises(InputError, match=f"threads is {bad}; at least 1 and at most 256 are"):
            asked()


def test_the_most_threads() -> None:
    assert checked_threads(MOST_THREADS) == MOST_THREADS


@pytest.mark.parametrize(
    ("value", "refused"),
    [
        ("257", True),
        ("100000", True),
        ("4,100000", True),
        ("9" * 30, True),
        (" 257 ", True),
        ("256", False),
        ("4,2", False),
        ("", False),
        ("many", False),
    ],
)
@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "RAYON_NUM_THREADS", "MKL_NUM_THREADS"])
def test_threads_of_the_environment(
    name: str, value: str, refused: bool, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tiny.open()
    monkeypatch.setenv(name, value)
    expected = pytest.raises(InputError, match=f"{name} is .* in the environment; at most 256")
    with expected if refused else nullcontext():
        open_session(bundle, threads=1)
    assert main(["info", str(tiny.path)]) == (2 if refused else 0)


@pytest.mark.parametrize("command", ["verify", "build", "bench", "generate"])
def test_threads_of_the_commands(command: str, tmp_path: Path, tiny: Tiny, capsys: Any) -> None:
    """Refused before any work: the checkpoint need not be there."""
    none = str(tmp_path / "none")
    arguments = {
        "verify": [str(tiny.path), "--checkpoint", none, "--text", none],
        "build": [none, str(tmp_path / "b.edge"), "--text", none],
        "bench": [str(tiny.path)],
        "generate": [str(tiny.path), "-p", "x"],
    }
    assert main([command, *arguments[command], "--threads", "100000"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "100000" in said
    assert "256" in said
