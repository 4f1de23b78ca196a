"""Retention in its three forms, as pure functions (paper, section 2.2).

Every form computes, per head with decay γ,

    S_n = γ S_{n-1} + k_nᵀ v_n          o_n = q_n S_n                                    (eq. 6)

from `(q, k, v, log_decay, state)` to `(out, state)`, and all three agree to rounding, states
included. Rotation by the position and the scale 1/√key_dim belong to the caller.

Shapes: q, k [B, H, T, K]; v, out [B, H, T, V]; log_decay = log γ [H]; state [B, H, K, V].
Letters: B batch, H heads, T tokens, K key dim, V value dim, C chunk length, N chunks.
The decays are computed in log_decay's dtype (at least float32): bfloat16 rounds γ to 1.

`documents` [B, T] int64, where given, counts for each token the document borders between the state
that comes in and that token (0: still the document of that state). No token then sees a state, a
key or a value of another document, and the state that comes out is of the last document alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SPAN_CHUNKS = 64
"""Chunks that one decay matrix spans; longer inputs carry the state from span to span."""


def retention_recurrent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor,
    documents: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One token after the other: O(1) memory, the form that runs on the device (eq. 6)."""
    decay = log_decay.exp()[:, None, None]
    outs = []
    for t in range(q.shape[2]):
        if documents is not None:
            before = documents[:, t - 1] if t else torch.zeros_like(documents[:, 0])
            state = torch.where((documents[:, t] == before)[:, None, None, None], state, 0.0)
        state = decay * state + k[:, :, t, :, None] * v[:, :, t, None, :]
        outs.append((q[:, :, t, None, :] @ state).squeeze(2))
    return torch.stack(outs, dim=2), state


def retention_parallel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor,
    documents: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """All tokens at once: (Q Kᵀ ⊙ D) V, D[n,m] = γ^(n-m) for n >= m (eq. 5), plus the state in."""
    tokens = q.shape[2]
    mask = _decay_mask(tokens, log_decay)
    from_state = state_contribution(q, log_decay, state)
    if documents is not None:
        mask = mask * (documents[:, None, :, None] == documents[:, None, None, :])
        from_state = from_state * (documents == 0)[:, None, :, None]
    inner = (q @ k.mT * mask).to(v.dtype) @ v
    return inner + from_state, state_out(k, v, log_decay, state, documents)


def retention_chunkwise(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor,
    chunk: int,
    documents: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Parallel inside chunks of `chunk` tokens, recurrent between them (eq. 7); any T >= 1."""
    span = chunk * SPAN_CHUNKS
    outs = []
    for start in range(0, q.shape[2], span):
        part = slice(start, start + span)
        inside = documents
        if documents is not None:
            inside = documents[:, part] - (documents[:, start - 1 : start] if start else 0)
        out, state = retention_span(
            q[:, :, part], k[:, :, part], v[:, :, part], log_decay, state, chunk, inside
        )
        outs.append(out)
    return (outs[0] if len(outs) == 1 else torch.cat(outs, dim=2)), state


def retention_span(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor,
    chunk: int,
    documents: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The chunkwise form without a loop: the scan over N chunks is one [N, N] decay matrix a head.

    T may be symbolic, so this is also the form that is exported. A last chunk that is not full is
    padded with zero keys, which add nothing.
    """
    B, H, T, K = q.shape
    V = v.shape[-1]
    N = (T + chunk - 1) // chunk
    padding = N * chunk - T

    def chunks(x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, padding)).reshape(B, H, N, chunk, x.shape[-1])

    q_c, k_c, v_c = chunks(q), chunks(k), chunks(v)
    mask = _decay_mask(chunk, log_decay)[:, None]
    between = chunk_decay_matrix(N, chunk, log_decay)
    from_in = torch.exp(log_decay[:, None] * (chunk * torch.arange(N, device=q.device)))
    if documents is not None:
        ids = torch.cat((documents, documents[:, -1:].expand(B, padding)), 1).reshape(B, N, chunk)
        last = ids[:, :, -1]
        before = torch.cat((torch.zeros_like(last[:, :1]), last[:, :-1]), dim=1)
        mask = mask * (ids[:, None, :, :, None] == ids[:, None, :, None, :])
        between = between * (before[:, None, :, None] == last[:, None, None, :])
        from_in = from_in * (before == 0)[:, None]

    inner = (q_c @ k_c.mT * mask).to(v.dtype) @ v_c

    # ζ, counted to the end of the chunk or, in the last one, to the last token
    steps = torch.arange(T, device=q.device)
    to_end = torch.minimum(chunk - 1 - steps % chunk, T - 1 - steps)
    zeta = F.pad(torch.exp(log_decay[:, None] * to_end), (0, padding)).reshape(H, N, chunk, 1)
    if documents is not None:
        zeta = zeta * (ids == last[..., None])[:, None, :, :, None]
    summaries = ((k_c * zeta).to(v.dtype).mT @ v_c).to(between.dtype)
    starts = (between @ summaries.reshape(B, H, N, K * V)).reshape(B, H, N, K, V)
    starts = starts + from_in[..., None, None] * state[:, :, None]

    cross = state_contribution(q_c, log_decay, starts)
    kept = torch.exp(log_decay * (T - (N - 1) * chunk))[:, None, None] * starts[:, :, -1]
    if documents is not None:
        cross = cross * (ids == before[..., None])[:, None, :, :, None]
        kept = kept * (last[:, -1] == before[:, -1])[:, None, None, None]
    out = (inner + cross).reshape(B, H, N * chunk, V)[:, :, :T]
    return out, kept + summaries[:, :, -1]


def state_out(
    k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, documents: Tensor | None = None
) -> Tensor:
    """γ^T S + (K ⊙ ζ)ᵀ V, ζ_j = γ^(T-1-j): the state after the last token."""
    tokens = k.shape[2]
    zeta = torch.exp(log_decay[:, None] * (tokens - 1 - torch.arange(tokens, device=k.device)))
    kept = torch.exp(log_decay * tokens)[:, None, None] * state
    if documents is not None:
        last = documents[:, -1:]
        zeta = zeta * (documents == last)[:, None]
        kept = kept * (last == 0)[..., None, None]
    return kept + (k * zeta[..., None]).to(v.dtype).mT @ v


def _decay_mask(tokens: int, log_decay: Tensor) -> Tensor:
    """D [H, T, T] of eq. 5: γ^(n-m) for n >= m, else 0."""
    steps = torch.arange(tokens, device=log_decay.device)
    distance = steps[:, None] - steps[None, :]
    decays = torch.exp(log_decay[:, None, None] * distance.clamp(min=0))
    return torch.where(distance >= 0, decays, 0.0)


def chunk_decay_matrix(chunks: int, chunk: int, log_decay: Tensor) -> Tensor:
    """[H, N, N]: weight of chunk m's summary in the state at the start of chunk n > m."""
    index = torch.arange(chunks, device=log_decay.device)
    distance = index[:, None] - 1 - index[None, :]
    decays = torch.exp(log_decay[:, None, None] * (chunk * distance.clamp(min=0)))
    return torch.where(distance >= 0, decays, 0.0)


def state_contribution(q: Tensor, log_decay: Tensor, state: Tensor) -> Tensor:
    """(Q S) ⊙ ξ, ξ_j = γ^(j+1): what the state carried in adds to each output.

    q [B, H, …, T, K], state [B, H, …, K, V].
    """
    steps = torch.arange(1, q.shape[-2] + 1, device=q.device)
    shape = (log_decay.shape[0],) + (1,) * (q.dim() - 4) + (q.shape[-2], 1)
    decays = torch.exp(log_decay[:, None] * steps).reshape(shape)
    return (q @ state.to(q.dtype)) * decays
