"""RetNet (arXiv 2307.08621): gated multi-scale retention, feed-forward blocks, language model.

Shapes: tokens [B, T] int64; x [B, T, d_model]; a layer's state [B, H, K, V] float32 (float64 in a
float64 model). The model holds no state: it goes in and comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retnet_edge.config import RetNetConfig
from retnet_edge.retention import retention_chunkwise, retention_parallel, retention_recurrent
from retnet_edge.rotary import cos_sin, rotate, turns

Form = Literal["parallel", "chunkwise", "recurrent"]
CHUNK = 128
INIT_STD = 0.02


def position_sum(log_decay: Tensor, position: Tensor, tokens: int) -> Tensor:
    """Z_n = (1 - γ^n)/(1 - γ) for n = position + 1 …, the sum of decays seen: [B, H, T]."""
    n = position[:, None] + torch.arange(1, tokens + 1, device=position.device)
    log_decay = log_decay[:, None]
    # expm1 twice: γ - 1 as a difference loses the digits of a float32 γ near 1
    z = torch.expm1(log_decay * n[:, None, :]) / torch.expm1(log_decay)
    return torch.where(log_decay == 0.0, n[:, None, :].to(z.dtype), z)


class MultiScaleRetention(nn.Module):
    """Gated multi-scale retention: (swish(X W_G) ⊙ Norm_heads(Retention(X))) W_O (eq. 8).

    W_Q, W_K, W_V and W_G are one matrix, `qkvg`, in that order. Queries carry the scale
    1/√key_head_dim, so the state is the plain sum of eq. 6.
    """

    log_decay: Tensor

    def __init__(self, config: RetNetConfig) -> None:
        """Make the two projections and the decays."""
        super().__init__()
        self.config = config
        keys = config.heads * config.key_head_dim
        values = config.heads * config.value_head_dim
        self.splits = [keys, keys, values, values]
        self.qkvg = nn.Linear(config.d_model, sum(self.splits), bias=False)
        self.out = nn.Linear(values, config.d_model, bias=False)
        self.head_norm = (
            nn.Parameter(torch.ones(config.value_head_dim)) if config.head_norm_affine else None
        )
        gammas = torch.tensor(config.gammas, dtype=torch.float64)
        self.register_buffer("log_decay", gammas.log(), persistent=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, position: Tensor, state: Tensor, form: Form
    ) -> tuple[Tensor, Tensor]:
        """X [B, T, d_model] -> the same shape, and the state after the last token."""
        config = self.config
        q, k, v, gate = self.qkvg(x).split(self.splits, dim=-1)
        q, k = self._heads(q, config.key_head_dim), self._heads(k, config.key_head_dim)
        v = self._heads(v, config.value_head_dim)
        q = (rotate(q, cos, sin) * config.key_head_dim**-0.5).to(v.dtype)
        k = rotate(k, cos, sin).to(v.dtype)
        log_decay = self.log_decay.to(state.dtype)
        with torch.autocast(x.device.type, enabled=False):
            if form == "parallel":
                out, state = retention_parallel(q, k, v, log_decay, state)
            elif form == "chunkwise":
                out, state = retention_chunkwise(q, k, v, log_decay, state, CHUNK)
            else:
                out, state = retention_recurrent(q, k, v, log_decay, state)
            out = self._norm_heads(out, log_decay, position)
        y = out.transpose(1, 2).flatten(2).to(gate.dtype)
        return self.out(F.silu(gate) * y), state

    def _heads(self, x: Tensor, width: int) -> Tensor:
        return x.reshape(*x.shape[:2], self.config.heads, width).transpose(1, 2)

    def _norm_heads(self, out: Tensor, log_decay: Tensor, position: Tensor) -> Tensor:
        """RMS norm of each head's output (the paper's GroupNorm over heads)."""
        eps: float | Tensor = self.config.head_norm_eps
        if self.config.head_norm_eps_rule == "z_n":
            eps = eps * position_sum(log_decay, position, out.shape[2])[..., None]
        normed = out * torch.rsqrt(out.square().mean(-1, keepdim=True) + eps)
        return normed if self.head_norm is None else normed * self.head_norm


class FeedForward(nn.Module):
    """W2(act(W_gate x) ⊙ W_up x), gate and up being one matrix; or W2 act(W1 x) for "mlp"."""

    def __init__(self, d_model: int, ffn_dim: int, *, gated: bool, activation: str) -> None:
        """Make the two projections."""
        super().__init__()
        self.gated = gated
        self.activation = activation
        self.inner = nn.Linear(d_model, ffn_dim * (2 if gated else 1), bias=False)
        self.out = nn.Linear(ffn_dim, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """X [B, T, d_model] -> the same shape."""
        act = F.silu if self.activation == "silu" else F.gelu
        if not self.gated:
            return self._project(act(self.inner(x)))
        gate, up = self.inner(x).chunk(2, dim=-1)
        return self._project(act(gate) * up)

    def _project(self, h: Tensor) -> Tensor:
        y: Tensor = self.out(h)
        return y


class Block(nn.Module):
    """Pre-norm residual block: x + MSR(norm x), then x + FFN(norm x) (paper, section 2.3)."""

    def __init__(self, config: RetNetConfig) -> None:
        """Make retention, feed-forward net and their norms."""
        super().__init__()
        self.retention_norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.retention = MultiScaleRetention(config)
        self.ffn_norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.ffn = FeedForward(
            config.d_model,
            config.ffn_dim,
            gated=config.ffn == "glu",
            activation=config.activation,
        )

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        position: Tensor,
        state: Tensor,
        form: Form,
        dropout: float,
    ) -> tuple[Tensor, Tensor]:
        """X [B, T, d_model] -> the same shape, and the layer's state after the last token."""
        out, state = self.retention(self.retention_norm(x), cos, sin, position, state, form)
        x = x + F.dropout(out, dropout, self.training)
        return x + F.dropout(self.ffn(self.ffn_norm(x)), dropout, self.training), state


class RetNet(nn.Module):
    """The language model: embedding, blocks, final norm, head (tied to the embedding or not)."""

    turns: Tensor

    def __init__(self, config: RetNetConfig, *, dropout: float = 0.0) -> None:
        """Make the modules and initialise the weights from torch's global generator."""
        super().__init__()
        self.config = config
        self.dropout = dropout
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        self.register_buffer("turns", turns(config.thetas), persistent=False)
        init_weights(self, config.layers)

    def initial_states(self, batch: int) -> list[Tensor]:
        """Zero states, one [batch, H, K, V] a layer, float32 (float64 in a float64 model)."""
        config = self.config
        weight = self.embedding.weight
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        shape = (batch, config.heads, config.key_head_dim, config.value_head_dim)
        return [torch.zeros(shape, dtype=dtype, device=weight.device) for _ in self.blocks]

    def forward(
        self,
        tokens: Tensor,
        *,
        states: Sequence[Tensor] | None = None,
        position: Tensor | None = None,
        form: Form = "chunkwise",
    ) -> tuple[Tensor, list[Tensor]]:
        """Tokens [B, T] -> logits [B, T, vocab] and the states after the last token.

        `position` int64 [B] is the index of the first token, 0 by default; `states` are zero by
        default.
        """
        x, new_states = self.features(tokens, states, position, form)
        return self.head(x), new_states

    def features(
        self,
        tokens: Tensor,
        states: Sequence[Tensor] | None,
        position: Tensor | None,
        form: Form,
    ) -> tuple[Tensor, list[Tensor]]:
        """Tokens [B, T] -> what the head sees, [B, T, d_model], and the states after the last."""
        batch, length = tokens.shape
        states = self.initial_states(batch) if states is None else states
        if position is None:
            position = torch.zeros(batch, dtype=torch.int64, device=tokens.device)
        cos, sin = cos_sin(position, length, self.turns, states[0].dtype)
        x = F.dropout(self.embedding(tokens), self.dropout, self.training)
        new_states = []
        for block, state in zip(self.blocks, states, strict=True):
            x, state = block(x, cos, sin, position, state, form, self.dropout)
            new_states.append(state)
        return self.final_norm(x), new_states


def init_weights(model: nn.Module, layers: int) -> None:
    """Normal(0, 0.02); projections back into the residual stream are scaled by 1/√(2·layers)."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            std = INIT_STD / (2 * layers) ** 0.5 if name.endswith(".out") else INIT_STD
            nn.init.normal_(module.weight, std=std)


def to_float64(model: nn.Module) -> nn.Module:
    """The same model in float64, in place: the reference that everything is judged against."""
    return model.to(torch.float64)
