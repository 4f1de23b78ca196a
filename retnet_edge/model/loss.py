"""Cross-entropy of a language model's head without the logits ever being whole.

Rows of features are taken in groups whose logits hold at most MAX_LOGITS numbers; where a
gradient is wanted it is computed in the same pass, while a group's logits are there:

    d loss / d logits = (softmax(logits) - onehot(target)) / N

so memory is [group, V] instead of three times [N, V] (the idea is known as fused linear
cross-entropy). Shapes: x [N, D], weight [V, D], targets [N] int64.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

MAX_LOGITS = 1 << 27


def cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, *, compiled: bool = False) -> Tensor:
    """Mean negative log-likelihood, nats a row, of softmax(x Wᵀ): a scalar, float32 at least.

    x [N, D] in the dtype of the products, weight [V, D], targets [N]. Gradients reach x in its
    dtype and the weight in its own, summed in float32 at least. `compiled` fuses the element-wise
    part.
    """
    loss: Tensor = _ChunkedCrossEntropy.apply(x, weight, targets, compiled)  # type: ignore[no-untyped-call]
    return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, compiled: bool) -> Tensor:
        wants_x, wants_weight = ctx.needs_input_grad[:2]
        with torch.autocast(x.device.type, enabled=False):
            w = weight.to(x.dtype)
            step = _compiled() if compiled else nll_and_gradient
            total = x.new_zeros((), dtype=torch.promote_types(x.dtype, torch.float32))
            dx = torch.empty_like(x) if wants_x else None
            wide = torch.promote_types(weight.dtype, torch.float32)
            dw = torch.zeros_like(weight, dtype=wide) if wants_weight else None
            rows = max(1, MAX_LOGITS // weight.shape[0])
            for start in range(0, x.shape[0], rows):
                part = slice(start, start + rows)
                nll, gradient = step(x[part] @ w.mT, targets[part], x.shape[0])
                total += nll
                if dx is not None:
                    torch.mm(gradient, w, out=dx[part])
                if dw is not None:
                    dw += gradient.mT @ x[part]
        ctx.save_for_backward(dx, None if dw is None else dw.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        dx, dw = ctx.saved_tensors
        (grad,) = grads
        return (
            None if dx is None else dx * grad.to(dx.dtype),
            None if dw is None else dw * grad,
            None,
            None,
        )


def nll_and_gradient(logits: Tensor, targets: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Of logits [n, V]: the rows' summed loss / count, and its gradient in the logits' dtype."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    lse = wide.logsumexp(-1, keepdim=True)
    nll = (lse - wide.gather(1, targets[:, None])).sum() / count
    hit = torch.arange(wide.shape[1], device=wide.device) == targets[:, None]
    gradient = (torch.exp(wide - lse) - hit.to(wide.dtype)) / count
    return nll, gradient.to(logits.dtype)


@cache
def _compiled() -> Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]:
    return torch.compile(nll_and_gradient)
