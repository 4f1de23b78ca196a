"""Retention in its three forms, as pure functions (paper, section 2.2).

Every form computes, per head with decay γ,

    S_n = γ S_{n-1} + k_nᵀ v_n          o_n = q_n S_n                                    (eq. 6)

from `(q, k, v, log_decay, state)` to `(out, state)`, and all three agree to rounding, states
included. Rotation by the position and the scale 1/√key_dim belong to the caller.

Shapes: q, k [B, H, T, K]; v, out [B, H, T, V]; log_decay = log γ [H]; state [B, H, K, V].
Letters: B batch, H heads, T tokens, K key dim, V value dim, C chunk length, N chunks.
The decays are computed in log_decay's dtype (at least float32): bfloat16 rounds γ to 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SPAN_CHUNKS = 64
"""Chunks that one decay matrix spans; longer inputs carry the state from span to span."""


def retention_recurrent(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One token after the other: O(1) memory, the form that runs on the device (eq. 6)."""
    decay = log_decay.exp()[:, None, None]
    outs = []
    for t in range(q.shape[2]):
        state = decay * state + k[:, :, t, :, None] * v[:, :, t, None, :]
        outs.append((q[:, :, t, None, :] @ state).squeeze(2))
    return torch.stack(outs, dim=2), state


def retention_parallel(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """All tokens at once: (Q Kᵀ ⊙ D) V, D[n,m] = γ^(n-m) for n >= m (eq. 5), plus the state in."""
    tokens = q.shape[2]
    inner = (q @ k.mT * _decay_mask(tokens, log_decay)).to(v.dtype) @ v
    return inner + _from_state(q, log_decay, state), _state_out(k, v, log_decay, state)


def retention_chunkwise(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """Parallel inside chunks of `chunk` tokens, recurrent between them (eq. 7); any T >= 1."""
    span = chunk * SPAN_CHUNKS
    outs = []
    for start in range(0, q.shape[2], span):
        stop = start + span
        out, state = retention_span(
            q[:, :, start:stop], k[:, :, start:stop], v[:, :, start:stop], log_decay, state, chunk
        )
        outs.append(out)
    return (outs[0] if len(outs) == 1 else torch.cat(outs, dim=2)), state


def retention_span(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """The chunkwise form without a loop: the scan over N chunks is one [N, N] decay matrix a head.

    T may be symbolic, so this is also the form that is exported. A last chunk that is not full is
    padded with zero keys, which add nothing.
    """
    B, H, T, K = q.shape
    V = v.shape[-1]
    N = (T + chunk - 1) // chunk
    q_c, k_c, v_c = (
        F.pad(x, (0, 0, 0, N * chunk - T)).reshape(B, H, N, chunk, x.shape[-1]) for x in (q, k, v)
    )

    inner = (q_c @ k_c.mT * _decay_mask(chunk, log_decay)[:, None]).to(v.dtype) @ v_c

    steps = torch.arange(chunk, device=q.device)
    to_chunk_end = torch.exp(log_decay[:, None] * (chunk - 1 - steps))[:, None, :, None]
    summaries = (k_c * to_chunk_end).to(v.dtype).mT @ v_c
    between = _chunk_scan(N, chunk, log_decay)
    from_start = torch.exp(log_decay[:, None] * (chunk * torch.arange(N, device=q.device)))
    starts = (between @ summaries.reshape(B, H, N, K * V).to(between.dtype)).reshape(
        B, H, N, K, V
    ) + from_start[:, :, None, None] * state[:, :, None]

    cross = _from_state(q_c, log_decay, starts)
    out = (inner + cross).reshape(B, H, N * chunk, V)[:, :, :T]
    return out, _state_out(k, v, log_decay, state)


def _decay_mask(tokens: int, log_decay: Tensor) -> Tensor:
    """D [H, T, T] of eq. 5: γ^(n-m) for n >= m, else 0."""
    steps = torch.arange(tokens, device=log_decay.device)
    distance = steps[:, None] - steps[None, :]
    decays = torch.exp(log_decay[:, None, None] * distance.clamp(min=0))
    return torch.where(distance >= 0, decays, 0.0)


def _chunk_scan(chunks: int, chunk: int, log_decay: Tensor) -> Tensor:
    """[H, N, N]: weight of chunk m's summary in the state at the start of chunk n > m."""
    index = torch.arange(chunks, device=log_decay.device)
    distance = index[:, None] - 1 - index[None, :]
    decays = torch.exp(log_decay[:, None, None] * (chunk * distance.clamp(min=0)))
    return torch.where(distance >= 0, decays, 0.0)


def _from_state(q: Tensor, log_decay: Tensor, state: Tensor) -> Tensor:
    """(Q S) ⊙ ξ, ξ_j = γ^(j+1): what the state carried in adds to each output.

    q [B, H, …, T, K], state [B, H, …, K, V].
    """
    steps = torch.arange(1, q.shape[-2] + 1, device=q.device)
    shape = (log_decay.shape[0],) + (1,) * (q.dim() - 4) + (q.shape[-2], 1)
    decays = torch.exp(log_decay[:, None] * steps).reshape(shape)
    return (q @ state.to(q.dtype)) * decays


def _state_out(k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor) -> Tensor:
    """γ^T S + (K ⊙ ζ)ᵀ V, ζ_j = γ^(T-1-j): the state after the last token."""
    tokens = k.shape[2]
    to_end = torch.exp(log_decay[:, None] * (tokens - 1 - torch.arange(tokens, device=k.device)))
    kept = torch.exp(log_decay * tokens)[:, None, None] * state
    return kept + (k * to_end[:, :, None]).to(v.dtype).mT @ v
