"""AdamW by hand; decided on the device, as on a GPU, as on the CPU; over parts as over wholes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from retnet_edge.training.optimizer import Optimizer, SkippedBatches


def optimizer_over(parameters: dict[str, nn.Parameter], *, fused: bool = False) -> Optimizer:
    """torch's fused AdamW, which reads `found_inf` and `grad_scale`, also runs on a CPU."""
    made = Optimizer(parameters, lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1, clip=0.5)
    made.fused = fused
    for group in made.adamw.param_groups:
        group["fused"] = fused
    return made


def optimizer_of(model: nn.Module, *, fused: bool) -> Optimizer:
    return optimizer_over(dict(model.named_parameters()), fused=fused)


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


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 1, 3)])
def test_the_first_step_by_hand(shape: tuple[int, ...], fused: bool) -> None:
    """Every number goes one rate against its gradient; only what has two axes or more decays.

    AdamW's first step: both moments, freed of their bias, are g and g², so w' = w (1 - rate decay)
    - rate g / |g|. The rate is the step's, not that of the constructor.
    """
    torch.manual_seed(0)
    before = 1 + torch.rand(shape)
    parameter = nn.Parameter(before.clone())
    parameter.grad = torch.randn(shape)
    sign = parameter.grad.sign()
    optimizer_over({"w": parameter}, fused=fused).step(torch.tensor(1.0), 0.125)
    kept = 1 - 0.125 * 0.1 if len(shape) > 1 else 1
    torch.testing.assert_close(parameter.detach(), before * kept - 0.125 * sign)
    assert parameter.grad is None


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("length", "scale"), [(0.1, 1), (0.45, 1), (0.75, 2 / 3), (4.0, 0.125)])
def test_clipping_by_hand(length: float, scale: float, fused: bool) -> None:
    """Gradients of two parameters, as one vector of `length`, are made no longer than 0.5."""
    gradients = {"a": torch.tensor([[0.6 * length]]), "b": torch.tensor([0.8 * length])}
    parameters = {name: nn.Parameter(torch.ones_like(value)) for name, value in gradients.items()}
    for name, parameter in parameters.items():
        parameter.grad = gradients[name].clone()
    optimizer = optimizer_over(parameters, fused=fused)
    assert optimizer.step(torch.tensor(1.0), 1e-2).item() == pytest.approx(length)
    state = optimizer.training_state()
    for name, gradient in gradients.items():
        assert state[f"exp_avg.{name}"].item() == pytest.approx(0.1 * scale * gradient.item(), 1e-5)


def test_what_has_no_gradient_stays() -> None:
    parameters = {name: nn.Parameter(torch.ones(2, 2)) for name in "ab"}
    parameters["a"].grad = torch.ones(2, 2)
    optimizer_over(parameters).step(torch.tensor(1.0), 1e-2)
    assert (parameters["a"] < 1).all()
    assert (parameters["b"] == 1).all()


def test_the_state_before_the_first_step_is_made_as_by_the_step() -> None:
    """On a device too, where the count of the steps lies on the CPU unless AdamW is fused."""
    made, stepped = (
        optimizer_over({"w": nn.Parameter(torch.ones(2, 3, device="meta"))}) for _ in range(2)
    )
    stepped.parameters["w"].grad = torch.ones(2, 3, device="meta")
    stepped.adamw.step()
    found, wanted = made.training_state(), stepped.training_state()
    assert list(found) == list(wanted) == ["weights.w", "step.w", "exp_avg.w", "exp_avg_sq.w"]
    for name, value in wanted.items():
        about = (value.device, value.dtype, value.shape)
        assert (found[name].device, found[name].dtype, found[name].shape) == about
    assert found["step.w"].device.type == "cpu"
    made.fused = True
    assert optimizer_over(made.parameters, fused=True).training_state()["step.w"].is_meta


@pytest.fixture
def one_rank() -> Iterator[None]:
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_parts_of_parameters_are_trained_as_whole_ones(one_rank: None) -> None:
    """Norms, weights, moments and steps; what is spread over ranks is told to be."""
    models = [nn.Linear(4, 3) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    fully_shard(models[1], mesh=init_device_mesh("cpu", (1,)))
    whole, spread = (optimizer_of(model, fused=False) for model in models)
    for step in range(3):
        norms = []
        for model, optimizer in zip(models, (whole, spread), strict=True):
            loss = model(torch.arange(8.0).reshape(2, 4) * (step + 1)).square().sum()
            loss.backward()
            norms.append(optimizer.step(loss.detach(), 1e-2))
        torch.testing.assert_close(*norms)
    wanted = whole.training_state()
    for name, value in spread.training_state().items():
        if name.startswith("step."):
            assert not isinstance(value, DTensor)
            torch.testing.assert_close(value, wanted[name])
            continue
        parameter = spread.parameters[name.partition(".")[2]]
        assert isinstance(value, DTensor)
        assert isinstance(parameter, DTensor)
        assert (value.placements, value.stride()) == (parameter.placements, parameter.stride())
        torch.testing.assert_close(value.full_tensor(), wanted[name])
    assert all(parameter.grad is None for parameter in spread.parameters.values())


def test_a_part_that_was_moved_is_the_one_that_is_trained(one_rank: None) -> None:
    """FSDP lays it elsewhere in memory at the first forward pass (`reset_sharded_param`)."""
    mesh = init_device_mesh("cpu", (1,))
    parameter = nn.Parameter(distribute_tensor(torch.ones(2, 2), mesh, [Shard(0)]))
    optimizer = optimizer_over({"w": parameter})
    assert isinstance(parameter, DTensor)
    parameter._local_tensor = torch.full((2, 2), 2.0)
    parameter.grad = distribute_tensor(torch.ones(2, 2), mesh, [Shard(0)])
    optimizer.step(torch.tensor(1.0), 0.125)
    moved = torch.full((2, 2), 2.0 * (1 - 0.125 * 0.1) - 0.125)
    torch.testing.assert_close(parameter.full_tensor(), moved)


GOOD, NAN, INF = (torch.tensor(value) for value in (1.0, math.nan, math.inf))
MOST = torch.tensor(3e38)  # twice of it is no float32


def test_skips_are_counted_and_said() -> None:
    """A loss or a norm that is not finite is; what is only large is finite."""
    said: list[str] = []
    skips = SkippedBatches(3, said.append, late=False)
    assert (skips.total, skips.in_a_row) == (3, 0)
    rows = [(NAN, GOOD), (GOOD, NAN), (GOOD, GOOD), (INF, GOOD), (GOOD, INF), (INF, INF),
            (-INF, INF), (MOST, MOST), (NAN, NAN)]  # fmt: skip
    counts = []
    for step, (loss, norm) in enumerate(rows):
        skips.add(step + 1, loss, norm)
        counts.append((skips.total, skips.in_a_row))
    assert counts == [(4, 1), (5, 2), (5, 0), (6, 1), (7, 2), (8, 3), (9, 4), (9, 0), (10, 1)]
    assert len(said) == 7
    assert said[1] == (
        "step 2: loss 1.0, gradient norm nan: this batch is not trained on (5 skipped so far)"
    )


def test_late_skips_are_counted_one_step_later() -> None:
    """As on a GPU, which is not waited for; settling reads the rest."""
    said: list[str] = []
    skips = SkippedBatches(0, said.append, late=True)
    counts = []
    for step, loss in enumerate((NAN, GOOD, NAN, NAN)):
        skips.add(step + 1, loss, GOOD)
        counts.append((skips.total, skips.in_a_row))
    assert counts == [(0, 0), (1, 1), (1, 0), (2, 1)]
    for _ in range(2):
        skips.settle()
        assert (skips.total, skips.in_a_row) == (3, 2)
    assert [line.partition(":")[0] for line in said] == ["step 1", "step 3", "step 4"]
