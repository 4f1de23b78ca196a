"""What training/scaling.py runs: the product's command, with batches that its GPUs can share."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.training.scaling import INTERVAL, INTERVALS, Case, cases, command
from benchmarks.training.speed import SHAPES, retnet
from retnet_edge.config import decode_config
from retnet_edge.training.trainer import TrainOptions


def options_of(arguments: list[str]) -> dict[str, str]:
    train = arguments[arguments.index("train") + 1 :]
    return {name: train[i + 1] for i, name in enumerate(train[:-1]) if name.startswith("--")}


@pytest.mark.parametrize("smoke", [False, True])
def test_every_case_can_be_shared_by_its_gpus(smoke: bool) -> None:
    found = cases([1, 2, 4], smoke=smoke)
    assert {case.gpus for case in found} == {1, 2, 4}
    for case in found:
        assert case.gpus % case.context == 0
        assert case.seq % case.context == 0
        assert case.rows * case.gpus % case.context == 0
        assert case.size in SHAPES


def test_the_command_is_train_with_the_model_and_enough_text(tmp_path: Path) -> None:
    case = Case("tiny", 64, 2, 4, 2, recompute=True)
    arguments = command(case, tmp_path, tmp_path / "out", "cpu", INTERVAL * INTERVALS)
    assert arguments[arguments.index("--nproc-per-node") + 1] == "4"
    options = options_of(arguments)
    assert options["--batch"] == "4"  # two groups of two processes, two sequences each
    assert options["--context-parallel"] == "2"
    assert "--recompute" in arguments
    model = Path(options["--model"])
    assert decode_config(model.read_bytes(), str(model)) == retnet("tiny")
    assert len(Path(options["--data"]).read_text()) > 4 * 65
    TrainOptions(
        steps=int(options["--steps"]),
        batch=int(options["--batch"]),
        seq_len=int(options["--seq-len"]),
    )


def test_sizes_have_the_parameters_of_their_names() -> None:
    import torch

    from retnet_edge.model.checkpoint import build_model

    with torch.device("meta"):
        counts = {
            name: sum(p.numel() for p in build_model(retnet(name)).parameters()) for name in SHAPES
        }
    assert 3.6e8 < counts["400m"] < 4.2e8
    assert 1.2e9 < counts["1.3b"] < 1.4e9
