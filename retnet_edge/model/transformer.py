"""The baseline: a pre-norm Transformer (rotary attention, SwiGLU, RMSNorm) with a key-value cache.

Same trainer, tokenizer and exporter as RetNet, so that every claim stands beside it. Its state of
a layer is (keys, values), each [B, H, past, K], and grows by one position a token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retnet_edge.config import TransformerConfig
from retnet_edge.model.retnet import (
    CHUNKWISE,
    FeedForward,
    RetentionMode,
    document_ids,
    head_loss,
    init_weights,
    run_block,
)
from retnet_edge.model.rotary import cos_sin, frequencies, rotate


class Attention(nn.Module):
    """Causal rotary attention; W_Q, W_K and W_V are one matrix, `qkv`."""

    def __init__(self, config: TransformerConfig) -> None:
        """Make the two projections."""
        super().__init__()
        self.heads = config.heads
        width = config.heads * config.key_head_dim
        self.qkv = nn.Linear(config.d_model, 3 * width, bias=False)
        self.out = nn.Linear(width, config.d_model, bias=False)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        past: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """X [B, T, d_model] -> the same shape, and all keys and values so far.

        With a past, T must be 1 (one decoding step); without, attention is causal over T, or what
        `mask` (bool [B, 1, T, T]) allows.
        """
        shape = (*x.shape[:2], self.heads, -1)
        q, k, v = (y.reshape(shape).transpose(1, 2) for y in self._project(x))
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        if past is not None:
            k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
        causal = past is None and mask is None
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.out(y.transpose(1, 2).flatten(2)), (k, v)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return q, k, v


class AttentionBlock(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, config: TransformerConfig) -> None:
        """Make attention, feed-forward net and their norms."""
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.ffn = FeedForward(config.d_model, config.ffn_dim, gated=True, activation="silu")

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        past: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        dropout: float,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """X [B, T, d_model] -> the same shape, and the layer's keys and values."""
        out, present = self.attention(self.attention_norm(x), cos, sin, past, mask)
        x = x + F.dropout(out, dropout, self.training)
        return x + F.dropout(self.ffn(self.ffn_norm(x)), dropout, self.training), present


class Transformer(nn.Module):
    """The language model: embedding, blocks, final norm, head (tied to the embedding or not)."""

    frequencies: Tensor

    def __init__(self, config: TransformerConfig, *, dropout: float = 0.0) -> None:
        """Make the modules and initialise the weights from torch's global generator."""
        super().__init__()
        self.config = config
        self.dropout = dropout
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(AttentionBlock(config) for _ in range(config.layers))
        self.final_norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        self.register_buffer("frequencies", frequencies(config.thetas), persistent=False)
        init_weights(self, config.layers)

    def forward(
        self,
        tokens: Tensor,
        *,
        states: Sequence[tuple[Tensor, Tensor]] | None = None,
        position: Tensor | None = None,
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Tokens [B, T] -> logits [B, T, vocab] and every layer's keys and values."""
        x, presents = self.features(tokens, states, position)
        return self.head(x), presents

    def loss(
        self,
        tokens: Tensor,
        *,
        mode: RetentionMode = CHUNKWISE,
        document_end: int | None = None,
        compiled: bool = False,
    ) -> Tensor:
        """Mean nats a token of predicting tokens[:, 1:] from tokens[:, :-1]; tokens [B, T + 1].

        Where `document_end` is an id, documents that end with it do not see each other. Of `mode`
        only `recompute` counts here.
        """
        inputs = tokens[:, :-1]
        mask = None if document_end is None else _document_mask(inputs, document_end)
        x, _ = self.features(inputs, None, None, mask, recompute=mode.recompute)
        return head_loss(self.head, x, tokens[:, 1:], compiled=compiled)

    def features(
        self,
        tokens: Tensor,
        states: Sequence[tuple[Tensor, Tensor]] | None,
        position: Tensor | None,
        mask: Tensor | None = None,
        *,
        recompute: bool = False,
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Tokens [B, T] -> what the head sees, [B, T, d_model], and all keys and values."""
        batch, length = tokens.shape
        if position is None:
            position = torch.zeros(batch, dtype=torch.int64, device=tokens.device)
        dtype = torch.promote_types(self.embedding.weight.dtype, torch.float32)
        cos, sin = cos_sin(position, length, self.frequencies, dtype)
        x = F.dropout(self.embedding(tokens), self.dropout, self.training)
        presents = []
        for i, block in enumerate(self.blocks):
            past = None if states is None else states[i]
            x, present = run_block(block, recompute, x, cos, sin, past, mask, self.dropout)
            presents.append(present)
        return self.final_norm(x), presents


def _document_mask(tokens: Tensor, end: int) -> Tensor:
    """[B, 1, T, T]: the key is not after the query, and of the same document."""
    documents = document_ids(tokens, end)
    same = documents[:, None, :, None] == documents[:, None, None, :]
    return same & torch.ones_like(same[0, 0]).tril()
