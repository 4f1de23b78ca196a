"""Context parallelism: one sequence over C ranks, which hand each other nothing but a state.

Rank c holds the tokens cS … (c+1)S - 1 of every sequence. From a zero state its span alone gives
outputs o'_n (n = 0 … S-1 within the span) and its summary s_c, the state after its last token.
What the tokens before it add is linear in the state S_c that they leave (paper, eq. 6 and 7):

    S_0 = 0,  S_c = γ^S S_{c-1} + s_{c-1} = Σ_{m<c} W_cm s_m,   W_cm = γ^(S(c-1-m))
    o_n = o'_n + γ^(n+1) q_n S_c

So the ranks are to a sequence what chunks are to a span: an exclusive scan, with the same matrix W.
Its backward is the scan in reverse: with G_c = ∂L/∂S_c, ∂L/∂s_m = Σ_{c>m} W_cm G_c. Both are one
all-gather of states, [B, H, K, V] a rank and a layer whatever the length of the sequence, and a
weighted sum. A document border makes W_cm zero where the last document of span m does not reach
the end of span c - 1. Every rank reads all the tokens (8 bytes each), so borders need no message.

Shapes: q [B, H, S, K]; out [B, H, S, V]; states [B, H, K, V]; log_decay [H]; documents as in
retention.py; ends [B, C] int64, the document that each span ends in.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed._functional_collectives
import torch.nn.functional as F
from torch import Tensor

from retnet_edge.model.retention import chunk_decay_matrix, state_contribution


class ContextParallelGroup(NamedTuple):
    """A rank's place among the `size` ranks of the named group, which share every sequence."""

    group: str
    rank: int
    size: int

    def padded(self, tokens: Tensor) -> Tensor:
        """Tokens [B, T] with zeros up to a multiple of `size`; no token sees what comes after."""
        return F.pad(tokens, (0, -tokens.shape[1] % self.size))

    def span(self, x: Tensor) -> Tensor:
        """The rank's part of x [B, T, …]; of a T that is no multiple of `size`, what there is."""
        length = -(-x.shape[1] // self.size)
        return x[:, self.rank * length : (self.rank + 1) * length]

    def documents(self, documents: Tensor) -> tuple[Tensor, Tensor]:
        """Of the ids [B, C·S]: the span's, counted from the state that comes in, and all ends."""
        ends = documents.reshape(len(documents), self.size, -1)[:, :, -1]
        before = ends[:, self.rank - 1 : self.rank] if self.rank else 0
        return self.span(documents) - before, ends

    def state_in(
        self, summary: Tensor, length: int, log_decay: Tensor, ends: Tensor | None
    ) -> Tensor:
        """S_c, of every rank's summary after `length` = S tokens from a zero state."""
        weights = chunk_decay_matrix(self.size, length, log_decay)[None]
        if ends is not None:
            before = F.pad(ends[:, :-1], (1, 0))
            weights = weights * (before[:, None, :, None] == ends[:, None, None, :])
        state: Tensor = _Scan.apply(summary, weights, self)  # type: ignore[no-untyped-call]
        return state


def add_state_in(
    out: Tensor,
    summary: Tensor,
    q: Tensor,
    log_decay: Tensor,
    state: Tensor,
    documents: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Outputs and state out of a span, given those from a zero state and the state coming in."""
    added = state_contribution(q, log_decay, state)
    kept = torch.exp(log_decay * q.shape[2])[:, None, None] * state
    if documents is not None:
        added = added * (documents == 0)[:, None, :, None]
        kept = kept * (documents[:, -1] == 0)[:, None, None, None]
    return out + added, kept + summary


class _Scan(torch.autograd.Function):
    """Row c of W times the states of all ranks; backward, column c times their gradients."""

    @staticmethod
    def forward(
        ctx: Any, summary: Tensor, weights: Tensor, context: ContextParallelGroup
    ) -> Tensor:
        ctx.context = context
        ctx.save_for_backward(weights)
        return _weighted_sum(summary, weights[:, :, context.rank], context)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (weights,) = ctx.saved_tensors
        return _weighted_sum(grads[0], weights[..., ctx.context.rank], ctx.context), None, None


def _weighted_sum(x: Tensor, weights: Tensor, context: ContextParallelGroup) -> Tensor:
    """Σ_c weights[…, c] x_c over the ranks' x [B, H, K, V]; weights [B or 1, H, C]."""
    gathered = torch.ops._c10d_functional.all_gather_into_tensor(
        x.contiguous(), context.size, context.group
    )
    everyone = torch.ops._c10d_functional.wait_tensor(gathered).view(context.size, *x.shape)
    total: Tensor = (weights.movedim(-1, 0)[..., None, None] * everyone).sum(0)
    return total
