"""The step contract as torch modules: everything explicit, nothing hidden.

    (tokens [B, T] int64, position [B] int64, state_0 … state_{L-1} [B, H, K, V] float32)
        -> (logits [B, vocab] float32 of the last token, next_state_0 … next_state_{L-1})

`RetNetGraph` computes what `model.retnet.RetNet` does, with the weights of a checkpoint, in the
operators that run best: weight matrices stand [in, out] so that each linear map is one MatMul
of a named initializer, heads stay packed, decays and angles are constants of the graph.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retnet_edge.export.graph_ops import merge_heads, retention_step, rotate_packed, split_heads
from retnet_edge.model.retention import retention_span
from retnet_edge.model.retnet import Block, FeedForward, MultiScaleRetention, RetNet, decay_sum
from retnet_edge.model.rotary import cos_sin

CHUNK = 128
Form = Literal["fused", "plain", "chunkwise"]


class Projection(nn.Module):
    """X @ W with W [in, out]: the transpose of an nn.Linear's weight, stored that way."""

    def __init__(self, linear: nn.Linear) -> None:
        """Copy the weight."""
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().mT.contiguous(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, in] -> [B, T, out]."""
        return x @ self.weight


class RMSNormGraph(nn.Module):
    """RMS norm over the last axis."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        """Copy the scale [width]."""
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[…, width] -> the same shape."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class RetentionGraph(nn.Module):
    """Gated multi-scale retention on packed heads."""

    def __init__(self, retention: MultiScaleRetention, form: Form) -> None:
        """Copy the weights."""
        super().__init__()
        self.config = retention.config
        self.form = form
        self.splits = retention.splits
        self.qkvg = Projection(retention.qkvg)
        self.out = Projection(retention.out)
        scale = retention.head_norm
        width = self.config.value_head_dim
        self.head_norm = RMSNormGraph(
            torch.ones(width) if scale is None else scale, self.config.head_norm_eps
        )
        self.log_decay = nn.Buffer(retention.log_decay.to(torch.float32))

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, position: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """X [B, T, d_model] -> the same shape, and the next state."""
        heads = self.config.heads
        scale = self.config.key_head_dim**-0.5
        q, k, v, gate = self.qkvg(x).split(self.splits, dim=-1)
        fused = self.form == "fused"
        q = rotate_packed(q, cos, sin, heads, fused=fused)
        k = rotate_packed(k, cos, sin, heads, fused=fused)
        if self.form == "chunkwise":
            q, k, v = (split_heads(part, heads) for part in (q * scale, k, v))
            y, state = retention_span(q, k, v, self.log_decay, state, CHUNK)
            y = merge_heads(y)
        else:
            y, state = retention_step(q, k, v, self.log_decay, state, scale, fused=fused)
        y = self._norm_heads(y, position).flatten(2)
        return self.out(F.silu(gate) * y), state

    def _norm_heads(self, y: Tensor, position: Tensor) -> Tensor:
        """RMS norm of each head: [B, T, H · V] -> [B, T, H, V]."""
        y = y.reshape(*y.shape[:2], self.config.heads, self.config.value_head_dim)
        if self.config.head_norm_eps_rule == "constant":
            normed: Tensor = self.head_norm(y)
            return normed
        n = position[:, None] + torch.arange(1, y.shape[1] + 1, device=y.device)
        z = decay_sum(self.log_decay, n).mT[..., None]
        variance = y.square().mean(-1, keepdim=True) + self.config.head_norm_eps * z
        return y * torch.rsqrt(variance) * self.head_norm.weight


class FeedForwardGraph(nn.Module):
    """The feed-forward net with weights [in, out]."""

    def __init__(self, ffn: FeedForward) -> None:
        """Copy the weights."""
        super().__init__()
        self.gated = ffn.gated
        self.activation = ffn.activation
        self.inner = Projection(ffn.inner)
        self.out = Projection(ffn.out)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, d_model] -> the same shape."""
        act = F.silu if self.activation == "silu" else F.gelu
        h = self.inner(x)
        if self.gated:
            gate, up = h.chunk(2, dim=-1)
            y: Tensor = self.out(act(gate) * up)
        else:
            y = self.out(act(h))
        return y


class BlockGraph(nn.Module):
    """One block on explicit state."""

    def __init__(self, block: Block, form: Form) -> None:
        """Copy the weights."""
        super().__init__()
        self.retention_norm = norm_graph(block.retention_norm)
        self.retention = RetentionGraph(block.retention, form)
        self.ffn_norm = norm_graph(block.ffn_norm)
        self.ffn = FeedForwardGraph(block.ffn)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, position: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """X [B, T, d_model] -> the same shape, and the next state."""
        out, state = self.retention(self.retention_norm(x), cos, sin, position, state)
        x = x + out
        return x + self.ffn(self.ffn_norm(x)), state


class RetNetGraph(nn.Module):
    """The step contract of a RetNet.

    "fused": any T >= 1, eq. 6 token by token in one operator of ONNX Runtime. In standard
    operators, "plain" is eq. 6 for T = 1, and "chunkwise" any T >= 1.
    """

    def __init__(self, model: RetNet, form: Form = "fused") -> None:
        """Copy the weights of a checkpoint's model (in its dtype, float32 for an export)."""
        super().__init__()
        self.embedding = model.embedding
        self.blocks = nn.ModuleList(BlockGraph(block, form) for block in model.blocks)  # type: ignore[arg-type]
        self.final_norm = norm_graph(model.final_norm)
        self.head = None if model.config.tie_embeddings else Projection(model.head)
        self.frequencies = nn.Buffer(model.frequencies)

    def forward(
        self, tokens: Tensor, position: Tensor, states: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """The step contract, as the module's docstring writes it."""
        cos, sin = cos_sin(position, tokens.shape[1], self.frequencies, torch.float32)
        x = self.embedding(tokens)
        next_states = []
        for block, state in zip(self.blocks, states, strict=True):
            x, state = block(x, cos, sin, position, state)
            next_states.append(state)
        return head_logits(self.final_norm(x[:, -1:]), self.head, self.embedding), next_states


def norm_graph(norm: nn.Module) -> RMSNormGraph:
    """The graph form of an nn.RMSNorm."""
    assert isinstance(norm, nn.RMSNorm)
    assert norm.eps is not None
    return RMSNormGraph(norm.weight, norm.eps)


def head_logits(x: Tensor, head: Projection | None, embedding: nn.Embedding) -> Tensor:
    """Logits [B, vocab] of x [B, 1, d_model]; a tied head (None) reads the embedding."""
    logits = x @ embedding.weight.mT if head is None else head(x)
    return logits[:, 0]
