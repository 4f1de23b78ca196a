"""The warm-up that a run gets where none is named, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from micro_training import OPTIONS, run, write_inputs

from retnet_edge.errors import InputError
from retnet_edge.training.metrics import read_metrics
from retnet_edge.training.trainer import TrainOptions, learning_rate

SHORT = msgspec.structs.replace(OPTIONS, steps=20, warmup=None, dropout=0.0)


def options(steps: int, warmup: int | None = None) -> TrainOptions:
    return TrainOptions(steps=steps, batch=1, seq_len=8, lr=1.0, warmup=warmup)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (100, 10), (3_749, 374), (9_000, 375)])
def test_a_tenth_of_the_run_at_most(steps: int, warmup: int) -> None:
    chosen = options(steps)
    assert chosen.warmup_steps == warmup
    assert max(learning_rate(chosen, step) for step in range(steps)) == pytest.approx(1.0)
    assert options(steps, 375).warmup_steps == 375


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def test_it_is_said(inputs: Path, tmp_path: Path) -> None:
    said: list[str] = []
    run(inputs, tmp_path / "run", SHORT, say=said.append)
    assert "warm-up of 2 steps, a tenth of the run (375 of longer ones)" in said
    rates = [row["learning_rate"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert max(rates) > 0.9 * SHORT.lr
    said = []
    asked = msgspec.structs.replace(SHORT, steps=4, warmup=40)
    run(inputs, tmp_path / "other", asked, say=said.append)
    assert "a warm-up of 40 steps ends after the run: at 10% of --lr" in said


def test_a_run_of_an_older_version_goes_on_as_it_began(inputs: Path, tmp_path: Path) -> None:
    """It wrote 375 where none was named, and the same command resumes it."""
    out = tmp_path / "run"
    asked = msgspec.structs.replace(SHORT, steps=4)
    run(inputs, out, asked)
    file, rows = out / "run.json", read_metrics(out / "metrics.jsonl")
    old = msgspec.json.decode(file.read_bytes())
    old["options"]["warmup"] = 375
    for name in ("checkpoint", "metrics.jsonl"):
        (out / name).rename(tmp_path / name)
    file.write_bytes(msgspec.json.encode(old))
    run(inputs, out, asked)
    slow = read_metrics(out / "metrics.jsonl")
    assert slow[-1]["learning_rate"] == pytest.approx(asked.lr * 4 / 375)
    assert slow[-1]["learning_rate"] < rows[-1]["learning_rate"]
    (out / "checkpoint").rename(tmp_path / "second")
    with pytest.raises(InputError, match="begun with other options"):
        run(inputs, out, msgspec.structs.replace(asked, warmup=3))
