"""Chunkwise retention with the decays folded into q and k: the form that trains fastest.

D[n,m] = γ^(n-m) of eq. 5 is a product of a row's and a column's factor, so that with

    q'_n = γ^(n-C+1) q_n        k'_m = γ^(C-1-m) k_m        (n, m counted within the chunk)

eq. 7 is left with a causal mask and no decay but the one from chunk to chunk:

    O_i = tril(Q' K'ᵀ) V + Q' (γ^C S_i)        S_{i+1} = γ^C S_i + K'ᵀ V

q' and k' come out of the pass that rotates them, K' serves twice, and both terms of O are summed
inside a matrix product. Above the diagonal Q' K'ᵀ holds γ^(n-m), n < m, which is large and unused:
`folds` says for which γ and C it stays far from overflow.

The products are one operator with a backward of its own. Left to torch.compile they were copied
into a layout of heads and back, and their gradients computed anew for every element of the
gradient that they are concatenated into; here each head is a strided view of rows that stay in the
order [B, T, H, ·] in which they are projected.

Letters as in retention.py, with which outputs and states agree to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from retnet_edge.state_scan import scan

MOST_LOG_FACTOR = 40.0
"""Largest log γ^-(C-1): e^40 = 2·10^17, and float32 and bfloat16 reach 10^38."""


def folds(steepest: float, chunk: int) -> bool:
    """Whether chunks of `chunk` tokens can be used where the smallest γ is exp(-steepest)."""
    return steepest * (chunk - 1) <= MOST_LOG_FACTOR


def decay_factors(log_decay: Tensor, tokens: int, chunk: int, scale: float) -> Tensor:
    """q'/q and k'/k of each token and head, [T, 2, H]; q' is scaled by `scale` too. log γ [H]."""
    to_end = chunk - 1 - torch.arange(tokens, device=log_decay.device) % chunk
    decay = to_end[:, None] * log_decay
    return torch.stack((scale * torch.exp(-decay), torch.exp(decay)), dim=1)


def retention_scaled(
    qk: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """From q' and k' [B, T, 2, H, K] and v [B, T, H, V] to outputs [B, T, H, V] and the state.

    qk and v have one dtype, that of the products and of the outputs. state [B, H, K, V] and
    log_decay [H] are at least float32. Any T >= 1, where `folds` holds.
    """
    T = qk.shape[1]
    padding = -T % chunk
    if padding:
        qk, v = F.pad(qk, (0, 0, 0, 0, 0, 0, 0, padding)), F.pad(v, (0, 0, 0, 0, 0, padding))
    out, last, _, _ = torch.ops.retnet_edge.chunkwise(qk, v, log_decay, state, chunk)
    if padding:  # the state was carried to the end of the last chunk
        kept = torch.exp(-padding * log_decay).to(last.dtype)
        out, last = out[:, :T], kept[:, None, None] * last
    return out, last


@torch.library.custom_op("retnet_edge::chunkwise", mutates_args=())
def _forward(
    qk: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """O and S_N; for the backward pass, tril(Q' K'ᵀ) [H, B·N, C, C] and γ^C S_i [H, B·N, K, V]."""
    H, K, V = state.shape[1:]
    q_h, k_h, v_h = _heads(qk[:, :, 0], chunk), _heads(qk[:, :, 1], chunk), _heads(v, chunk)
    rows = q_h[0].shape[0]
    scores = v.new_empty(H, rows, chunk, chunk)
    summaries = v.new_empty(H, rows, K, V)
    for h in range(H):
        torch.bmm(q_h[h], k_h[h].mT, out=scores[h])
        torch.bmm(k_h[h].mT, v_h[h], out=summaries[h])
    scores.tril_()
    kept, last = _scan(summaries, chunk * log_decay, state, reverse=False)
    out = torch.empty_like(v, memory_format=torch.contiguous_format)
    for h, out_h in enumerate(_heads(out, chunk)):
        torch.bmm(scores[h], v_h[h], out=out_h)
        out_h.baddbmm_(q_h[h], kept[h])
    return out, last, scores, kept


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
    H = len(scores)
    q_h, k_h, v_h = _heads(qk[:, :, 0], chunk), _heads(qk[:, :, 1], chunk), _heads(v, chunk)
    o_h = _heads(grad_out, chunk)
    grad_kept, grad_scores = torch.empty_like(kept), torch.empty_like(scores)
    for h in range(H):
        torch.bmm(q_h[h].mT, o_h[h], out=grad_kept[h])
        torch.bmm(o_h[h], v_h[h].mT, out=grad_scores[h])
    grad_scores.tril_()
    summed, grad_state = _scan(grad_kept, chunk * log_decay, grad_last, reverse=True)
    grad_qk = torch.empty_like(qk, memory_format=torch.contiguous_format)
    grad_v = torch.empty_like(v, memory_format=torch.contiguous_format)
    grad_q_h, grad_k_h = (_heads(grad_qk[:, :, i], chunk) for i in range(2))
    grad_v_h = _heads(grad_v, chunk)
    for h in range(H):
        torch.bmm(grad_scores[h], k_h[h], out=grad_q_h[h])
        grad_q_h[h].baddbmm_(o_h[h], kept[h].mT)
        torch.bmm(grad_scores[h].mT, q_h[h], out=grad_k_h[h])
        grad_k_h[h].baddbmm_(v_h[h], summed[h].mT)
        torch.bmm(scores[h].mT, o_h[h], out=grad_v_h[h])
        grad_v_h[h].baddbmm_(k_h[h], summed[h])
    return grad_qk, grad_v, grad_state


def _heads(x: Tensor, chunk: int) -> list[Tensor]:
    """Of x [B, T, H, D], each head's chunks: H views [B·N, C, D] where rows are evenly spaced."""
    chunks = x.shape[0] * x.shape[1] // chunk
    return [x[:, :, h].reshape(chunks, chunk, x.shape[-1]) for h in range(x.shape[2])]


def _scan(x: Tensor, log_decay: Tensor, state: Tensor, *, reverse: bool) -> tuple[Tensor, Tensor]:
    """`scan` of x [H, B·N, K, V] from state [B, H, K, V]."""
    B, H, K, V = state.shape
    start = state.transpose(0, 1).reshape(H * B, K * V)
    decays = log_decay.to(state.dtype).repeat_interleave(B)
    out, end = scan(x.view(H * B, -1, K * V), decays, start, reverse)
    return out.view(x.shape), end.view(H, B, K, V).transpose(0, 1).contiguous()


@_forward.register_fake
def _(
    qk: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    H, K, V = state.shape[1:]
    rows = v.shape[0] * v.shape[1] // chunk
    scores, kept = v.new_empty(H, rows, chunk, chunk), v.new_empty(H, rows, K, V)
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
