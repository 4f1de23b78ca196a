"""The update that decides on the device, as on a GPU, is the one that the CPU decides."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from retnet_edge.training.optimizer import Optimizer, SkippedBatches


def optimizer_of(model: nn.Module, *, fused: bool) -> Optimizer:
    """torch's fused AdamW, which reads `found_inf` and `grad_scale`, also runs on a CPU."""
    made = Optimizer(
        dict(model.named_parameters()), lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1, clip=0.5
    )
    made.fused = fused
    for group in made.adamw.param_groups:
        group["fused"] = fused
    return made


def train(bad: set[int], *, fused: bool) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Six steps of a linear map, those in `bad` with a NaN; the state and the norms."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = optimizer_of(model, fused=fused)
    norms = []
    for step in range(6):
        loss = model(torch.arange(8.0).reshape(2, 4) * (step + 1)).square().sum()
        if step in bad:
            loss = loss * math.nan
        loss.backward()
        norms.append(optimizer.step(loss.detach(), 1e-2))
    return {name: value.clone() for name, value in optimizer.training_state().items()}, norms


def test_on_the_device_as_on_the_cpu() -> None:
    """Clipping and skipping, to rounding; a skipped batch leaves weights, moments and steps."""
    (cpu, norms), (device, others) = (train({2, 3}, fused=fused) for fused in (False, True))
    assert [math.isfinite(norm) for norm in norms] == [True, True, False, False, True, True]
    assert max(norms[0], norms[1]) > 0.5  # clipped
    for a, b in zip(norms, others, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)
    for name, value in cpu.items():
        torch.testing.assert_close(device[name], value)
    assert device["step.weight"].item() == 4


@pytest.mark.parametrize("fused", [False, True])
def test_a_run_of_nothing_but_nan_changes_nothing(fused: bool) -> None:
    state, _ = train(set(range(6)), fused=fused)
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    assert torch.equal(state["weights.weight"], model.weight)
    assert not state["exp_avg.weight"].any()
    assert not state["exp_avg_sq.weight"].any()


def test_skips_are_counted_and_said() -> None:
    said: list[str] = []
    skips = SkippedBatches(3, said.append)
    good, nan = torch.tensor(1.0), torch.tensor(math.nan)
    for step, loss in enumerate((good, nan, nan, good, nan)):
        skips.add(step + 1, loss, good)
    assert (skips.total, skips.in_a_row) == (6, 1)
    assert said[0].startswith("step 2: loss nan, gradient norm 1.0: this batch is not trained on")
