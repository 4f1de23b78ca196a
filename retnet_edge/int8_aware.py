"""Quantization-aware training: weights on the int8 grid, and int8 compute that changes little.

The weights that a step uses are those of training rounded to the grid of the `int8` recipe (a scale
for every 128 inputs of an output), with gradients passed straight through the rounding; the
checkpoint holds the rounded ones, which that recipe stores without a further error. What is left is
the rounding of activations inside the kernels. It enters the loss as

    KL(float ‖ int8) + KL(float ‖ int8-dynamic)

between the model and two twins of it, which share its weights and round every input of a matrix
product as those recipes' kernels do.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

BLOCK = 128
LEVELS = 127
SHARE = 4  # the twins see one sequence of a batch in so many

Rounding = Callable[[Tensor], Tensor]


def round_blocks(x: Tensor) -> Tensor:
    """[…, K] to int8 codes times a scale for every 128 of the last axis: max |x| / 127."""
    width = x.shape[-1]
    blocks = F.pad(x, (0, -width % BLOCK)).unflatten(-1, (-1, BLOCK))
    return _pass_through(x, _symmetric(blocks).flatten(-2)[..., :width])


def round_rows(x: Tensor) -> Tensor:
    """[…, K] to int8 codes times one scale for the last axis: max |x| / 127."""
    return _pass_through(x, _symmetric(x))


def on_grid(weights: dict[str, Tensor], rounding: Rounding = round_blocks) -> dict[str, Tensor]:
    """Every matrix rounded along its inputs; vectors as they are."""
    return {name: rounding(w) if w.ndim == 2 else w for name, w in weights.items()}


class Consistency:
    """The two KL terms, for a model that is called as model(tokens, **options) -> (logits, …)."""

    def __init__(self, model: nn.Module) -> None:
        """Make the twins; they hold no weights of their own that count."""
        self._float = copy.deepcopy(model).eval()
        self._int8 = _rounding_inputs(self._float, round_blocks)
        self._dynamic = _rounding_inputs(self._float, round_rows)

    def loss(self, weights: dict[str, Tensor], tokens: Tensor, **options: str) -> Tensor:
        """Mean of the KL terms in nats a token; weights are on the grid; tokens [B, T]."""

        def log_probabilities(twin: nn.Module, weights: dict[str, Tensor]) -> Tensor:
            logits = functional_call(twin, weights, (tokens,), options)[0]
            return F.log_softmax(logits.float(), dim=-1)

        expected = log_probabilities(self._float, weights)
        found = (
            log_probabilities(self._int8, weights),
            log_probabilities(self._dynamic, on_grid(weights, round_rows)),
        )
        probabilities = expected.exp()
        terms = [(probabilities * (expected - other)).sum(-1).mean() for other in found]
        return torch.stack(terms).mean()


def _rounding_inputs(model: nn.Module, rounding: Rounding) -> nn.Module:
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _, inputs: (rounding(inputs[0]),))
    return twin


def _symmetric(x: Tensor) -> Tensor:
    scale = x.detach().abs().amax(-1, keepdim=True) / LEVELS
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return torch.round(x / scale) * scale


def _pass_through(x: Tensor, rounded: Tensor) -> Tensor:
    """The rounded values, with the gradient of x."""
    return x + (rounded - x).detach()
