"""The step contract of the Transformer baseline: its state is the key-value cache, and grows.

(tokens [B, 1], position [B], key_0, value_0 … [B, H, past, K]) -> (logits, caches one longer).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retnet_edge.export.graph_ops import rotate_packed, split_heads
from retnet_edge.export.step import FeedForwardGraph, Projection, head_logits, norm_graph
from retnet_edge.model.rotary import cos_sin
from retnet_edge.model.transformer import Attention, AttentionBlock, Transformer


class AttentionGraph(nn.Module):
    """One step of rotary attention over an explicit cache."""

    def __init__(self, attention: Attention) -> None:
        """Copy the weights."""
        super().__init__()
        self.heads = attention.heads
        self.qkv = Projection(attention.qkv)
        self.out = Projection(attention.out)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """X [B, 1, d_model] -> the same shape, keys and values [B, H, past + 1, K]."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k = (split_heads(rotate_packed(y, cos, sin, self.heads), self.heads) for y in (q, k))
        keys = torch.cat((keys, k), dim=2)
        values = torch.cat((values, split_heads(v, self.heads)), dim=2)
        scores = (q @ keys.mT) * q.shape[-1] ** -0.5
        y = F.softmax(scores, dim=-1) @ values
        return self.out(y.transpose(1, 2).flatten(2)), keys, values


class AttentionBlockGraph(nn.Module):
    """One block over an explicit cache."""

    def __init__(self, block: AttentionBlock) -> None:
        """Copy the weights."""
        super().__init__()
        self.attention_norm = norm_graph(block.attention_norm)
        self.attention = AttentionGraph(block.attention)
        self.ffn_norm = norm_graph(block.ffn_norm)
        self.ffn = FeedForwardGraph(block.ffn)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """X [B, 1, d_model] -> the same shape, and the longer cache."""
        out, keys, values = self.attention(self.attention_norm(x), cos, sin, keys, values)
        x = x + out
        return x + self.ffn(self.ffn_norm(x)), keys, values


class TransformerGraph(nn.Module):
    """The step contract of a Transformer; states alternate keys and values, layer by layer."""

    def __init__(self, model: Transformer) -> None:
        """Copy the weights of a checkpoint's model."""
        super().__init__()
        self.embedding = model.embedding
        self.blocks = nn.ModuleList(AttentionBlockGraph(block) for block in model.blocks)  # type: ignore[arg-type]
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
        for block, keys, values in zip(self.blocks, states[::2], states[1::2], strict=True):
            x, keys, values = block(x, cos, sin, keys, values)
            next_states += [keys, values]
        return head_logits(self.final_norm(x), self.head, self.embedding), next_states
