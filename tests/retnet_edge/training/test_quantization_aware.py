"""Int8-aware training: its rounding is the recipes', and so are its losses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from int8_aware_parts import AWARE, WIDE, Floats, blocks_by_recipe, rows_by_recipe
from numpy.typing import NDArray
from torch import Tensor, nn

from retnet_edge.config import transformer_like
from retnet_edge.errors import InputError
from retnet_edge.model.checkpoint import LanguageModel, build_model
from retnet_edge.model.retnet import RetNet
from retnet_edge.quantize.numerics.fake_quantized import block_int8_product
from retnet_edge.quantize.numerics.rounding import quantize_blocks
from retnet_edge.quantize.recipes.schemes import BlockInt8
from retnet_edge.training.quantization_aware import (
    BLOCK,
    BlockFakeQuantLinear,
    Int8Aware,
    fake_quantize_blocks,
    fake_quantize_rows,
    fake_quantize_weights,
)

ROUNDINGS = pytest.mark.parametrize("rounding", [fake_quantize_blocks, fake_quantize_rows])
WIDTHS = pytest.mark.parametrize("width", [1, 52, 128, 200, 384])


def codes(x: Tensor) -> NDArray[np.uint8]:
    return quantize_blocks(x.detach().numpy(), BLOCK)[0]


def values(*shape: int) -> Tensor:
    """Rows from 1e-3 to 10 in size, with a row of zeros and, in another, a block of them."""
    g = torch.Generator().manual_seed(5)
    x = torch.randn(shape, generator=g) * torch.logspace(-3, 1, shape[-2])[:, None]
    x[..., 3, :] = 0.0
    x[..., 4, :BLOCK] = 0.0
    return x


def test_the_block_is_that_of_the_recipe() -> None:
    assert BlockInt8().block == BLOCK


@WIDTHS
@pytest.mark.parametrize(
    ("rounding", "by_recipe"),
    [(fake_quantize_blocks, blocks_by_recipe), (fake_quantize_rows, rows_by_recipe)],
)
def test_rounding_is_that_of_the_recipe(
    rounding: Callable[[Tensor], Tensor], by_recipe: Callable[[Floats], Floats], width: int
) -> None:
    """To the bit, with any number of axes before the last."""
    x = values(40, width)
    wanted = by_recipe(x.numpy())
    assert width == 1 or np.abs(wanted - x.numpy()).max() > 1e-3
    np.testing.assert_array_equal(rounding(x).numpy(), wanted)
    np.testing.assert_array_equal(
        rounding(x.reshape(2, 4, 5, width)).numpy().reshape(40, -1), wanted
    )


@ROUNDINGS
@WIDTHS
def test_gradients_pass_straight_through(rounding: Callable[[Tensor], Tensor], width: int) -> None:
    x = values(40, width).requires_grad_()
    gradient = values(40, width) + 1.0
    rounding(x).backward(gradient)  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert torch.equal(x.grad, gradient)


@WIDTHS
def test_rounding_twice_changes_no_code(width: int) -> None:
    """Not by the rounding of a scale in float32, nor in float16, which checkpoints are kept in."""
    x = values(40, width)
    once = fake_quantize_blocks(x)
    twice = fake_quantize_blocks(once)
    np.testing.assert_array_equal(codes(once), codes(x))
    np.testing.assert_array_equal(codes(twice), codes(x))
    assert (once - twice).abs().max() <= 1e-6 * x.abs().max()
    np.testing.assert_array_equal(codes(once.half().float()), codes(x))
    if width > 1:
        assert (codes(x.half().float()) != codes(x)).any()  # which is not so off the grid


def test_on_grid_rounds_matrices_and_nothing_else() -> None:
    weights = {"matrix": values(8, 200), "vector": torch.randn(200), "scalar": torch.tensor(0.3)}
    for rounding in (fake_quantize_blocks, fake_quantize_rows):
        found = fake_quantize_weights(weights, rounding)
        assert list(found) == list(weights)
        assert torch.equal(found["matrix"], rounding(weights["matrix"]))
        assert torch.equal(found["vector"], weights["vector"])
        assert torch.equal(found["scalar"], weights["scalar"])
    assert torch.equal(
        fake_quantize_weights(weights)["matrix"], fake_quantize_blocks(weights["matrix"])
    )


def test_a_linear_map_of_rounded_blocks_is_the_kernels_product() -> None:
    """MatMulNBits at accuracy level 4, where the weights are on the grid."""
    weight = values(40, 200)
    linear = BlockFakeQuantLinear(200, 40, bias=False)
    linear.weight = nn.Parameter(fake_quantize_blocks(weight))
    x = torch.randn(3, 5, 200, generator=torch.Generator().manual_seed(6))
    wanted = block_int8_product(x.numpy(), *quantize_blocks(weight.numpy(), BLOCK))
    found = linear(x).detach().numpy()
    assert np.abs(found - wanted).max() <= 1e-6 * np.abs(wanted).max()
    assert np.abs(F.linear(x, linear.weight).detach().numpy() - wanted).max() > 1e-3


def model_of(config: Any) -> LanguageModel:
    """Weights large enough that int8 changes something, and a matrix or two in some hundreds."""
    torch.manual_seed(3)
    model = build_model(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.copy_(torch.randn(p.shape) * p.shape[1] ** -0.5)
            else:
                p.add_(0.1 * torch.randn(p.shape))
    return model


UNTIED = msgspec.structs.replace(WIDE, tie_embeddings=False)
TOKENS = torch.randint(0, 384, (2, 25), generator=torch.Generator().manual_seed(4))
CONFIGS = pytest.mark.parametrize(
    "config", [WIDE, UNTIED, transformer_like(WIDE)], ids=["tied", "untied", "transformer"]
)


def losses(aware: Int8Aware, model: LanguageModel) -> tuple[Tensor, Tensor]:
    options = {"form": "parallel"} if isinstance(model, RetNet) else {}
    return aware.losses(TOKENS, **options)


@torch.no_grad()
def log_probabilities(
    model: LanguageModel,
    weights: Callable[[Floats], Floats],
    inputs: Callable[[Floats], Floats] | None,
) -> NDArray[np.float64]:
    """[tokens, vocab] of a copy whose matrices, and what is multiplied with them, are rounded."""
    model = copy.deepcopy(model)

    def in_rows(x: Tensor, by_recipe: Callable[[Floats], Floats]) -> Tensor:
        return torch.from_numpy(by_recipe(x.flatten(0, -2).numpy())).reshape(x.shape)

    def hook(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        assert inputs is not None
        return (in_rows(given[0], inputs),)

    for p in model.parameters():
        if p.ndim == 2:
            p.copy_(in_rows(p, weights))
    for module in model.modules():
        if isinstance(module, nn.Linear) and inputs is not None:
            module.register_forward_pre_hook(hook)
    logits = model(TOKENS[:, :-1])[0].flatten(0, 1).double()
    found: NDArray[np.float64] = F.log_softmax(logits, dim=-1).numpy()
    return found


@CONFIGS
def test_losses_are_those_of_models_rounded_by_hand(config: Any) -> None:
    """NumPy's rounding on a copy of the model: cross-entropy, and KL(float ‖ int8) of both kinds;
    the weights of int8-dynamic are those of int8 rounded once more, as quantize makes them.

    The model is so sure of itself that KL(int8 ‖ float) is another number.
    """
    model = model_of(config)
    with torch.no_grad():
        model.final_norm.weight.mul_(20.0)
    cross_entropy, kl = losses(Int8Aware(model, compile_blocks=False), model)
    whole = log_probabilities(model, blocks_by_recipe, None)
    blocks = log_probabilities(model, blocks_by_recipe, blocks_by_recipe)
    dynamic = log_probabilities(
        model, lambda w: rows_by_recipe(blocks_by_recipe(w)), rows_by_recipe
    )
    targets = TOKENS[:, 1:].flatten().numpy()
    nats = -whole[np.arange(len(targets)), targets].mean()
    assert cross_entropy.item() == pytest.approx(nats, rel=1e-5)

    def mean_kl(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
        return float((np.exp(p) * (p - q)).sum(-1).mean())

    first, second = mean_kl(whole, blocks), mean_kl(whole, dynamic)
    assert first != pytest.approx(second, rel=0.05)
    wanted = (first + second) / 2
    assert wanted != pytest.approx((mean_kl(blocks, whole) + mean_kl(dynamic, whole)) / 2, rel=2e-3)
    assert kl.item() == pytest.approx(wanted, rel=2e-4)


@CONFIGS
def test_the_twins_follow_the_model(config: Any) -> None:
    """A weight changed in place, as an optimizer does it, is theirs; so is one that was loaded."""
    model = model_of(config)
    aware = Int8Aware(model, compile_blocks=False)
    before = [loss.item() for loss in losses(aware, model)]
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            parameter.mul_(1.5)
        found = [loss.item() for loss in losses(aware, model)]
        assert found != before, name
        fresh = Int8Aware(copy.deepcopy(model), compile_blocks=False)
        assert found == [loss.item() for loss in losses(fresh, model)], name
        before = found
    other = model_of(config)
    model.load_state_dict(other.state_dict())
    again = Int8Aware(other, compile_blocks=False)
    assert [x.item() for x in losses(aware, model)] == [x.item() for x in losses(again, model)]


@CONFIGS
def test_gradients_reach_every_weight_of_the_model(config: Any) -> None:
    """Those of both losses; the twins' own weights get none, and the model's values stay."""
    model = model_of(config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    aware = Int8Aware(model, compile_blocks=False)
    for loss in losses(aware, model):
        model.zero_grad(set_to_none=True)
        loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
        for name, p in model.named_parameters():
            assert p.grad is not None, name
            assert p.grad.abs().max() > 0.0, name
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]), name


def test_dropout_is_refused() -> None:
    """As options, before a run directory is made, and as a model."""
    with pytest.raises(InputError, match="int8-aware training needs dropout 0"):
        msgspec.structs.replace(AWARE, dropout=0.1)
    for build in (build_model(WIDE, dropout=0.1), build_model(transformer_like(WIDE), dropout=0.1)):
        with pytest.raises(InputError, match="int8-aware training needs dropout 0"):
            Int8Aware(build, compile_blocks=False)
    Int8Aware(build_model(WIDE), compile_blocks=False)
    assert msgspec.structs.replace(AWARE, dropout=0.1, int8_aware=0.0).dropout == 0.1
