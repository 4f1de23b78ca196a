"""The step contract as XNNPACK likes it: one delegated subgraph, one sequence, T fixed.

    (tokens [1, T] int64, position [1] int64, state_0 … state_{L-1} [1, H, K, V] float32)
        -> (logits [1, vocab] float32 of the last token, next_state_0 … next_state_{L-1})

The same function as `retnet_edge.export.step`, from the same weights, written for another backend.
What keeps XNNPACK's subgraph whole (docs/executorch.md): means over the last two of four axes,
slices instead of `split`, `bmm` on three axes, linear maps on two. Outside remain the embedding
look-up and the float64 arithmetic on the position: a few numbers a call.

Letters: T tokens, H heads, K key head dim, V value head dim, D d_model.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retnet_edge.config import RetNetConfig
from retnet_edge.model.retnet import Block, FeedForward, MultiScaleRetention, RetNet


def inverse_rms(x: Tensor, eps: float | Tensor) -> Tensor:
    """1/sqrt(mean(x²) + eps) over the last axis: [rows, width] -> [rows, 1]."""
    rows, width = x.shape
    squares = (x * x).reshape(1, rows, 1, width)
    return torch.rsqrt(squares.mean((2, 3), keepdim=True) + eps).reshape(rows, 1)


class RMSNormGraph(nn.Module):
    """RMS norm over the last axis of [rows, width]."""

    def __init__(self, norm: nn.Module) -> None:
        """Copy the scale [width] of an nn.RMSNorm."""
        super().__init__()
        assert isinstance(norm, nn.RMSNorm)
        assert norm.eps is not None
        self.weight = nn.Parameter(norm.weight.detach().clone(), requires_grad=False)
        self.eps = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """[rows, width] -> the same shape."""
        return x * inverse_rms(x, self.eps) * self.weight


class PositionTerms(nn.Module):
    """What follows from the position: cosines, sines, and the head norm's eps.

    Whole turns are dropped in float64, as in `model/rotary.py`, which XNNPACK does not have:
    these few numbers a call run beside it.
    """

    def __init__(
        self, config: RetNetConfig, frequencies: Tensor, log_decay: Tensor, tokens: int
    ) -> None:
        """Keep frequencies [K/2] and log γ [H], float64."""
        super().__init__()
        self.tokens = tokens
        self.eps = config.head_norm_eps
        self.scaled_eps = config.head_norm_eps_rule == "z_n"
        self.frequencies = nn.Buffer(frequencies.double())
        self.log_decay = nn.Buffer(log_decay.double())
        self.steps = nn.Buffer(torch.arange(tokens, dtype=torch.int64))

    def forward(self, position: Tensor) -> tuple[Tensor, Tensor, float | Tensor]:
        """Position int64 [1] -> cos, sin [T, 1, K/2]; eps, or eps · Z_n as [1, T · H, 1, 1]."""
        n = (position + self.steps).to(torch.float64)
        fraction = torch.fmod(n[:, None] * self.frequencies, 1.0)
        angle = fraction.to(torch.float32) * (2.0 * math.pi)
        cos = angle.cos().reshape(self.tokens, 1, -1)
        sin = angle.sin().reshape(self.tokens, 1, -1)
        if not self.scaled_eps:
            return cos, sin, self.eps
        count = (n + 1.0)[:, None]
        z = torch.expm1(count * self.log_decay) / torch.expm1(self.log_decay)
        z = torch.where(self.log_decay == 0.0, count, z)
        return cos, sin, (self.eps * z).to(torch.float32).reshape(1, -1, 1, 1)


class Retention(nn.Module):
    """Gated multi-scale retention: eq. 6 for one token, one chunk of eq. 7 for more."""

    mask: Tensor
    from_state: Tensor
    to_state: Tensor
    decay: Tensor

    def __init__(self, retention: MultiScaleRetention, tokens: int) -> None:
        """Keep the weights; decays become constants, computed in float64."""
        super().__init__()
        self.config = retention.config
        self.tokens = tokens
        self.qkvg = _copy(retention.qkvg)
        self.out = _copy(retention.out)
        scale = retention.head_norm
        self.head_norm = (
            None if scale is None else nn.Parameter(scale.detach().clone(), requires_grad=False)
        )
        log_decay = retention.log_decay.double()[:, None, None]
        index = torch.arange(tokens, dtype=torch.float64)
        apart = index[:, None] - index[None, :]
        mask = torch.where(apart >= 0, torch.exp(log_decay * apart.clamp(min=0)), 0.0)
        constants = {
            "mask": mask,  # D of eq. 5: [H, T, T]
            "from_state": torch.exp(log_decay * (index + 1)[:, None]),  # ξ: [H, T, 1]
            "to_state": torch.exp(log_decay * (tokens - 1 - index)[:, None]),  # ζ: [H, T, 1]
            "decay": torch.exp(log_decay * tokens),  # γ^T: [H, 1, 1]
        }
        for name, value in constants.items():
            self.register_buffer(name, value.float().contiguous())

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, eps: float | Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """X [T, D] -> the same shape; state [1, H, K, V] -> the next one."""
        config, tokens = self.config, self.tokens
        heads, width = config.heads, config.value_head_dim
        keys, values = heads * config.key_head_dim, heads * width
        mixed = self.qkvg(x)
        q = self._rotate(mixed[:, :keys], cos, sin) * config.key_head_dim**-0.5
        k = self._rotate(mixed[:, keys : 2 * keys], cos, sin)
        v = mixed[:, 2 * keys : 2 * keys + values].reshape(tokens, heads, width)
        gate = mixed[:, 2 * keys + values :]
        flat = (heads, config.key_head_dim, width)
        if tokens == 1:
            # on four axes, so that the state is reshaped (that is, copied) once and not twice
            past = state * self.decay + k.reshape(1, heads, -1, 1) * v.reshape(1, heads, 1, width)
            y = torch.bmm(q.reshape(heads, 1, -1), past.reshape(flat)).reshape(heads, width)
        else:
            past = state.reshape(flat)
            q, k, v = (part.permute(1, 0, 2) for part in (q, k, v))
            scores = torch.bmm(q, k.permute(0, 2, 1)) * self.mask
            inner, cross = torch.bmm(scores, v), torch.bmm(q * self.from_state, past)
            past = past * self.decay + torch.bmm((k * self.to_state).permute(0, 2, 1), v)
            past = past.reshape(1, *flat)
            y = (inner + cross).permute(1, 0, 2).reshape(tokens * heads, width)
        y = y * inverse_rms(y, eps)
        if self.head_norm is not None:
            y = y * self.head_norm
        out = self.out(F.silu(gate) * y.reshape(tokens, values))
        return out, past

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[T, H · K] -> [T, H, K], each pair of channels turned."""
        half = self.config.key_head_dim // 2
        x = x.reshape(self.tokens, self.config.heads, 2 * half)
        real, imag = x[:, :, :half], x[:, :, half:]
        return torch.cat((real * cos - imag * sin, real * sin + imag * cos), dim=-1)


class FeedForwardNet(nn.Module):
    """W2(act(W_gate x) ⊙ W_up x), or W2 act(W1 x)."""

    def __init__(self, ffn: FeedForward) -> None:
        """Keep the weights."""
        super().__init__()
        self.act = F.silu if ffn.activation == "silu" else F.gelu
        self.gated = ffn.gated
        self.inner = _copy(ffn.inner)
        self.out = _copy(ffn.out)

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] -> the same shape."""
        h = self.inner(x)
        half = h.shape[1] // 2
        h = self.act(h[:, :half]) * h[:, half:] if self.gated else self.act(h)
        y: Tensor = self.out(h)
        return y


class BlockGraph(nn.Module):
    """One residual block on explicit state."""

    def __init__(self, block: Block, tokens: int) -> None:
        """Keep the weights."""
        super().__init__()
        self.retention_norm = RMSNormGraph(block.retention_norm)
        self.retention = Retention(block.retention, tokens)
        self.ffn_norm = RMSNormGraph(block.ffn_norm)
        self.ffn = FeedForwardNet(block.ffn)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, eps: float | Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """X [T, D] -> the same shape, and the next state."""
        out, state = self.retention(self.retention_norm(x), cos, sin, eps, state)
        x = x + out
        return x + self.ffn(self.ffn_norm(x)), state


class XnnpackGraph(nn.Module):
    """The step contract of a RetNet for `tokens` tokens a call; see the module's docstring.

    Weights are copies, under the names of `model.retnet.RetNet`; the head is never tied, since
    the embedding is looked up outside of XNNPACK, which packs a copy of its own.
    """

    def __init__(self, model: RetNet, tokens: int) -> None:
        """Copy the weights of a checkpoint's model."""
        super().__init__()
        self.tokens = tokens
        self.d_model = model.config.d_model
        first = model.blocks[0]
        assert isinstance(first, Block)
        log_decay = first.retention.log_decay
        self.terms = PositionTerms(model.config, model.frequencies, log_decay, tokens)
        self.embedding = nn.Embedding(*model.embedding.weight.shape)
        self.embedding.weight = nn.Parameter(
            model.embedding.weight.detach().clone(), requires_grad=False
        )
        self.blocks = nn.ModuleList(BlockGraph(block, tokens) for block in model.blocks)  # type: ignore[arg-type]
        self.final_norm = RMSNormGraph(model.final_norm)
        self.head = _copy(model.head)

    def forward(self, tokens: Tensor, position: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """The step contract: logits, then the next states."""
        cos, sin, eps = self.terms(position)
        x = self.embedding(tokens).reshape(self.tokens, self.d_model)
        following = []
        for block, state in zip(self.blocks, states, strict=True):
            x, state = block(x, cos, sin, eps, state)
            following.append(state)
        return self.head(self.final_norm(x[self.tokens - 1 :])), *following


def _copy(linear: nn.Linear) -> nn.Linear:
    rows, columns = linear.weight.shape
    copy = nn.Linear(columns, rows, bias=False)
    copy.weight = nn.Parameter(linear.weight.detach().clone(), requires_grad=False)
    return copy
