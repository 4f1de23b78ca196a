"""Runs of int8-aware training: its checkpoint is on the recipe's grid, and it goes on the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from int8_aware_parts import AWARE, WIDE, blocks_by_recipe
from micro_training import run, write_inputs
from torch import Tensor

from retnet_edge.config import RetNetConfig, encode_config
from retnet_edge.data.dataset import Shards
from retnet_edge.errors import InputError
from retnet_edge.model.checkpoint import build_model, load_checkpoint
from retnet_edge.quantize.numerics.rounding import quantize_blocks
from retnet_edge.training.evaluate import evaluate
from retnet_edge.training.metrics import read_metrics
from retnet_edge.training.quantization_aware import (
    BLOCK,
    Int8Aware,
    fake_quantize_blocks,
    fake_quantize_weights,
)
from retnet_edge.training.step_checkpoint import StepCheckpoints
from retnet_edge.training.trainer import TrainOptions


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_inputs(tmp_path_factory.mktemp("inputs"))
    (folder / "wide.json").write_bytes(encode_config(WIDE))
    return folder


def train(inputs: Path, out: Path, options: TrainOptions, **changes: Any) -> Any:
    """A run of the wide model."""
    return run(inputs, out, options, **{"model": str(inputs / "wide.json"), **changes})


@pytest.fixture(scope="module")
def aware(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with int8_aware > 0, which no test changes."""
    out = tmp_path_factory.mktemp("aware")
    result = train(inputs, out, AWARE)
    model = load_checkpoint(out / "checkpoint").model
    shard = Shards(out / "data" / "valid")
    found = evaluate(model, shard, length=AWARE.seq_len, batch=AWARE.batch, autocast=False)
    assert result == found  # of the checkpoint as it was written
    return out


def matrices(folder: Path) -> dict[str, Tensor]:
    model = load_checkpoint(folder).model
    return {name: p.detach() for name, p in model.named_parameters() if p.ndim == 2}


def matrices_of_step(folder: Path) -> dict[str, Tensor]:
    """What training goes on with, from a step checkpoint."""
    state = {f"weights.{name}": p.detach() for name, p in build_model(WIDE).named_parameters()}
    StepCheckpoints(folder.parent, group=None, first=True).load(folder, state)
    return {name: p for name, p in state.items() if p.ndim == 2}


def off_grid(weights: dict[str, Tensor]) -> float:
    """The largest difference that the recipe's rounding makes, in steps of its grid."""
    found = []
    for w in weights.values():
        scales = np.repeat(quantize_blocks(w.numpy(), BLOCK)[1], BLOCK, axis=1)[:, : w.shape[1]]
        found.append(np.abs(blocks_by_recipe(w.numpy()) - w.numpy()) / scales)
    return max(float(steps.max()) for steps in found)


def test_the_checkpoint_is_on_the_grid(aware: Path, inputs: Path, tmp_path: Path) -> None:
    """And the weights that training goes on with are not, nor those of another run."""
    assert off_grid(matrices(aware / "checkpoint")) < 1e-4
    assert off_grid(matrices_of_step(aware / "steps" / "step-00000020")) > 0.4
    train(inputs, tmp_path / "free", msgspec.structs.replace(AWARE, int8_aware=0.0))
    assert off_grid(matrices(tmp_path / "free" / "checkpoint")) > 0.4


def test_the_vectors_of_the_checkpoint_are_free(aware: Path) -> None:
    model = load_checkpoint(aware / "checkpoint").model
    vectors = {name: p.detach() for name, p in model.named_parameters() if p.ndim == 1}
    assert len(vectors) == 3
    for name, vector in vectors.items():
        assert (fake_quantize_blocks(vector) - vector).abs().max() > 1e-4, name


def test_the_checkpoint_is_what_training_saw(inputs: Path, tmp_path: Path) -> None:
    """A step of no size: the grid of the weights that it began with."""
    options = msgspec.structs.replace(AWARE, steps=1, lr=1e-30, weight_decay=0.0)
    train(inputs, tmp_path / "run", options)
    torch.manual_seed(options.seed)
    fresh = build_model(WIDE)
    found = load_checkpoint(tmp_path / "run" / "checkpoint").model
    wanted = fake_quantize_weights(dict(fresh.named_parameters()))
    for name, p in found.named_parameters():
        assert torch.equal(p, wanted[name]), name


def test_the_kl_is_in_the_metrics_of_such_a_run_alone(
    aware: Path, inputs: Path, tmp_path: Path
) -> None:
    rows = read_metrics(aware / "metrics.jsonl")
    assert len(rows) == 6
    assert all(row["int8_kl"] > 0.0 for row in rows)
    train(inputs, tmp_path / "run", msgspec.structs.replace(AWARE, steps=4, int8_aware=0.0))
    (row,) = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert rows[0].keys() - row.keys() == {"int8_kl"}


def test_training_lowers_what_int8_changes(inputs: Path, tmp_path: Path) -> None:
    """To less than half of that of the same run without; over four seeds it was a quarter.

    Both go on from one trained model, and know more than single tokens in the end.
    """
    first = msgspec.structs.replace(AWARE, steps=60, lr=1e-2, batch=4, int8_aware=0.0)
    train(inputs, tmp_path / "first", first, eval_every=60, save_every=1_000)
    shard = Shards(tmp_path / "first" / "data" / "valid")
    held_out = torch.from_numpy(shard.batch(0, 0, 8, 32))
    kl = {}
    for weight in (0.0, 1e5):
        out = tmp_path / f"{weight}"
        options = msgspec.structs.replace(first, steps=40, lr=3e-3, int8_aware=weight)
        init = {"init": tmp_path / "first" / "checkpoint", "eval_every": 40, "save_every": 1_000}
        assert run(inputs, out, options, **init).loss < 1.5
        model = load_checkpoint(out / "checkpoint").model
        with torch.no_grad():
            kl[weight] = Int8Aware(model, compile_blocks=False).losses(held_out)[1].item()
    assert 0.0 < kl[1e5] < 0.5 * kl[0.0]


def test_a_resumed_run_ends_with_the_same_bits(aware: Path, inputs: Path, tmp_path: Path) -> None:
    """Interrupted one step after a checkpoint: the weights saved are the free ones."""
    out = tmp_path / "run"

    def interrupt(text: str) -> None:
        if text.startswith("step 16/24"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(inputs, out, AWARE, say=interrupt)
    assert not (out / "checkpoint").exists()
    said: list[str] = []
    train(inputs, out, AWARE, say=said.append)
    assert f"resuming from {out / 'steps' / 'step-00000015'}" in said
    for name in ("checkpoint/model.safetensors", "steps/step-00000020/__0_0.distcp"):
        assert (out / name).read_bytes() == (aware / name).read_bytes()
    rows, wanted = (read_metrics(x / "metrics.jsonl") for x in (out, aware))
    for row, other in zip(rows, wanted, strict=True):
        del row["tokens_per_second"], other["tokens_per_second"]
        assert row == other


def test_resuming_with_another_weight_is_refused(aware: Path, inputs: Path) -> None:
    other = msgspec.structs.replace(AWARE, int8_aware=1.0)
    with pytest.raises(InputError, match=r"run\.json: the run was begun with other options"):
        train(inputs, aware, other)


def test_the_baseline_trains_on_the_grid(inputs: Path, tmp_path: Path) -> None:
    options = msgspec.structs.replace(AWARE, steps=4)
    train(inputs, tmp_path / "run", options, architecture="transformer")
    assert not isinstance(load_checkpoint(tmp_path / "run" / "checkpoint").config, RetNetConfig)
    assert off_grid(matrices(tmp_path / "run" / "checkpoint")) < 1e-4
