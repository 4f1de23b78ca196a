"""Chunkwise retention with the decays folded into q and k: the form that trains fastest.

D[n,m] = γ^(n-m) of eq. 5 is a product of a row's and a column's factor, so that with

    q'_n = γ^(n-C+1) q_n        k'_m = γ^(C-1-m) k_m        (n, m counted within the chunk)

eq. 7 is left with a causal mask and no decay but the one from chunk to chunk:

    O_i = tril(Q' K'ᵀ) V + Q' (γ^C S_i)        S_{i+1} = γ^C S_i + K'ᵀ V

q' and k' come out of the pass that rotates them, K' serves twice, and both terms of O are summed
inside a matrix product. Above the diagonal Q' K'ᵀ holds γ^(n-m), n < m, which is large and unused:
`can_fold` says for which γ and C it stays far from overflow.

The products are one operator with a backward of its own, in a layout of heads first: the passes
that rotate, normalise and gate write and read it for nothing. Left to torch.compile, gradients were
computed anew for every element of the gradient that they are concatenated into.

Letters as in retention.py, with which outputs and states agree to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from retnet_edge.model.state_scan import scan

MAX_LOG_FACTOR = 40.0
"""Largest log γ^-(C-1): e^40 = 2·10^17, and float32 and bfloat16 reach 10^38."""


def can_fold(steepest: float, chunk: int) -> bool:
    """Whether chunks of `chunk` tokens can be used where the smallest γ is exp(-steepest)."""
    return steepest * (chunk - 1) <= MAX_LOG_FACTOR


def decay_factors(log_decay: Tensor, tokens: int, chunk: int, scale: float) -> Tensor:
    """q'/q and k'/k of each token and head, [T, 2, H]; q' is scaled by `scale` too. log γ [H]."""
    to_end = chunk - 1 - torch.arange(tokens, device=log_decay.device) % chunk
    decay = to_end[:, None] * log_decay
    return torch.stack((scale * torch.exp(-decay), torch.exp(decay)), dim=1)


def retention_folded(
    qk: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """From q' and k' [2, H, B, T, K] and v [H, B, T, V] to outputs [H, B, T, V] and the state.

    qk and v are contiguous and have one dtype, that of the products and of the outputs. state
    [B, H, K, V] and log_decay [H] are at least float32. Any T >= 1, where `can_fold` holds.
    """
    T = qk.shape[3]
    padding = -T % chunk
    if padding:
        qk, v = F.pad(qk, (0, 0, 0, padding)), F.pad(v, (0, 0, 0, padding))
    out, last, _, _ = torch.ops.retnet_edge.chunkwise(qk, v, log_decay, state, chunk)
    if padding:  # the state was carried to the end of the last chunk
        kept = torch.exp(-padding * log_decay).to(last.dtype)
        out, last = out[:, :, :T], kept[:, None, None] * last
    return out, last


@torch.library.custom_op("retnet_edge::chunkwise", mutates_args=())
def _forward(
    qk: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """O and S_N; for the backward pass, tril(Q' K'ᵀ) and γ^C S_i, each [H·B·N, …]."""
    q, k = _chunks(qk, chunk).chunk(2)
    v_c = _chunks(v, chunk)
    scores = (q @ k.mT).tril_()
    kept, last = _scan(k.mT @ v_c, chunk * log_decay, state, reverse=False)
    out = torch.bmm(scores, v_c).baddbmm_(q, kept)
    return out.view(v.shape), last, scores, kept


@torch.library.custom_op("retnet_edge::chunkwise_backward", mutates_args=())
def _backward(
    grad_out: Tensor,
    grad_last: Tensor,
    qk: Tensor,
    v: Tensor,
    log_decay: Tensor,
    scores: Tensor,
    kept: Tensor,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of qk, v and state."""
    q, k = _chunks(qk, chunk).chunk(2)
    v_c, o_c = _chunks(v, chunk), _chunks(grad_out, chunk)
    grad_scores = torch.bmm(o_c, v_c.mT).tril_()
    grad_kept = torch.bmm(q.mT, o_c)
    summed, grad_state = _scan(grad_kept, chunk * log_decay, grad_last, reverse=True)
    grad_qk = torch.empty_like(qk)
    grad_q, grad_k = _chunks(grad_qk, chunk).chunk(2)
    torch.bmm(grad_scores, k, out=grad_q)
    grad_q.baddbmm_(o_c, kept.mT)
    torch.bmm(grad_scores.mT, q, out=grad_k)
    grad_k.baddbmm_(v_c, summed.mT)
    grad_v = torch.bmm(scores.mT, o_c).baddbmm_(k, summed)
    return grad_qk, grad_v.view(v.shape), grad_state


def _chunks(x: Tensor, chunk: int) -> Tensor:
    """Of x [H, B, T, D], or [2, H, B, T, D]: the chunks of all heads, [… · N, C, D]."""
    return x.contiguous().view(-1, chunk, x.shape[-1])


def _scan(x: Tensor, log_decay: Tensor, state: Tensor, *, reverse: bool) -> tuple[Tensor, Tensor]:
    """`scan` of x [H·B·N, K, V] from state [B, H, K, V]."""
    B, H, K, V = state.shape
    start = state.transpose(0, 1).reshape(H * B, K * V)
    decays = log_decay.to(state.dtype).repeat_interleave(B)
    out, end = scan(x.view(H * B, -1, K * V), decays, start, reverse)
    return out.view(x.shape), end.view(H, B, K, V).transpose(0, 1).contiguous()


@_forward.register_fake
def _(
    qk: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = v.numel() // (chunk * v.shape[-1])
    scores, kept = v.new_empty(rows, chunk, chunk), v.new_empty(rows, *state.shape[2:])
    return v.new_empty(v.shape), state.new_empty(state.shape), scores, kept


@_backward.register_fake
def _(
    grad_out: Tensor,
    grad_last: Tensor,
    qk: Tensor,
    v: Tensor,
    log_decay: Tensor,
    scores: Tensor,
    kept: Tensor,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return qk.new_empty(qk.shape), v.new_empty(v.shape), grad_last.new_empty(grad_last.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    qk, v, log_decay, state, ctx.chunk = inputs
    ctx.state_shape, ctx.state_dtype = state.shape, state.dtype
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(qk, v, log_decay, *output[2:])


def _gradients(
    ctx: Any, grad_out: Tensor | None, grad_last: Tensor | None, *_: None
) -> tuple[Tensor | None, ...]:
    qk, v, log_decay, scores, kept = ctx.saved_tensors
    grad_out = torch.zeros_like(v) if grad_out is None else grad_out
    if grad_last is None:
        grad_last = kept.new_zeros(ctx.state_shape, dtype=ctx.state_dtype)
    grad_qk, grad_v, grad_state = torch.ops.retnet_edge.chunkwise_backward(
        grad_out.contiguous(), grad_last, qk, v, log_decay, scores, kept, ctx.chunk
    )
    return grad_qk, grad_v, None, grad_state, None


_forward.register_autograd(_gradients, setup_context=_save)
