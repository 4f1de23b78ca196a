"""Quantization-aware training: weights on the int8 grid, and int8 compute that changes little.

The weights that a step uses are those of training rounded to the grid of the `int8` recipe (a scale
for every 128 inputs of an output), with gradients passed straight through the rounding; the
checkpoint holds the rounded ones, which that recipe stores almost without a further error. What is
left is the rounding of activations inside the kernels. It enters the loss as

    KL(float ‖ int8) + KL(float ‖ int8-dynamic)

between the model and two twins of it, which share its weights and round every input of a matrix
product as those recipes' kernels do in a step, or more coarsely: no tail has a scale of its own,
and the scale of int8-dynamic is symmetric.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from retnet_edge.errors import InputError
from retnet_edge.model.retnet import RetNet
from retnet_edge.model.transformer import Transformer

BLOCK = 128
INT8_MAX = 127

Rounding = Callable[[Tensor], Tensor]


def fake_quantize_blocks(x: Tensor) -> Tensor:
    """[…, K] to int8 codes times a scale for every 128 of the last axis: max |x| / 127."""
    width = x.shape[-1]
    padded = F.pad(x, (0, -width % BLOCK))
    blocks = padded.reshape(*x.shape[:-1], -1, BLOCK)
    return straight_through(x, _symmetric(blocks).flatten(-2)[..., :width])


def fake_quantize_rows(x: Tensor) -> Tensor:
    """[…, K] to int8 codes times one scale for the last axis: max |x| / 127."""
    return straight_through(x, _symmetric(x))


def fake_quantize_weights(
    weights: dict[str, Tensor], rounding: Rounding = fake_quantize_blocks
) -> dict[str, Tensor]:
    """Every matrix rounded along its inputs; vectors as they are."""
    return {name: rounding(w) if w.ndim == 2 else w for name, w in weights.items()}


class BlockFakeQuantLinear(nn.Linear):
    """A linear map whose input is rounded as the `int8` recipe's kernel rounds it."""

    def forward(self, x: Tensor) -> Tensor:
        """[…, in] -> […, out]."""
        return F.linear(fake_quantize_blocks(x), self.weight)


class RowFakeQuantLinear(nn.Linear):
    """A linear map whose input is rounded in steps no smaller than those of `int8-dynamic`.

    Its kernel's are (max x - min x) / 255, with 0 among the values.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[…, in] -> […, out]."""
        return F.linear(fake_quantize_rows(x), self.weight)


class Int8Aware:
    """The losses of a model that is called as model(tokens, **options) -> (logits, …)."""

    def __init__(self, model: RetNet | Transformer, *, compile_blocks: bool) -> None:
        """Make the twins, which hold no weights of their own that count.

        Raises InputError for a model with dropout: noise that only training has would let it learn
        to be quiet where it is compared and useful elsewhere (it did, in 500 steps).
        """
        if model.dropout > 0:
            raise InputError("int8-aware training needs dropout 0")
        self._model = model
        self._float = _twin(model, nn.Linear)
        self._int8 = _twin(model, BlockFakeQuantLinear)
        self._dynamic = _twin(model, RowFakeQuantLinear)
        if compile_blocks:  # one graph for all layers: whole models three times take minutes
            for twin in (self._float, self._int8, self._dynamic):
                for block in twin.get_submodule("blocks").children():
                    block.compile()

    def losses(self, tokens: Tensor, **options: str) -> tuple[Tensor, Tensor]:
        """Of a block [B, T + 1], nats a token: cross-entropy, and the mean of the KL terms."""
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        weights = fake_quantize_weights(dict(self._model.named_parameters()))

        def log_probabilities(twin: nn.Module, weights: dict[str, Tensor]) -> Tensor:
            logits = functional_call(twin, weights, (inputs,), options)[0]
            return F.log_softmax(logits.float(), dim=-1)

        expected = log_probabilities(self._float, weights)
        found = (
            log_probabilities(self._int8, weights),
            log_probabilities(self._dynamic, fake_quantize_weights(weights, fake_quantize_rows)),
        )
        cross_entropy = F.nll_loss(expected.flatten(0, 1), targets.flatten())
        probabilities = expected.exp()
        terms = [(probabilities * (expected - other)).sum(-1).mean() for other in found]
        return cross_entropy, torch.stack(terms).mean()


def _twin(model: nn.Module, linear: type[nn.Linear]) -> nn.Module:
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if isinstance(module, nn.Linear):
            module.__class__ = linear
    return twin


def _symmetric(x: Tensor) -> Tensor:
    """Codes and scales are float32: bfloat16 would round by as much as int8 does."""
    wide = x.detach().float()
    scale = wide.abs().amax(-1, keepdim=True) / INT8_MAX
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (torch.round(wide / scale) * scale).to(x.dtype)


def straight_through(x: Tensor, rounded: Tensor) -> Tensor:
    """The rounded values, with the gradient of x."""
    return x + (rounded - x).detach()
