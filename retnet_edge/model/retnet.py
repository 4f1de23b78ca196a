"""RetNet (arXiv 2307.08621): gated multi-scale retention, feed-forward blocks, language model.

Shapes: tokens [B, T] int64; x [B, T, d_model]; a layer's state [B, H, K, V] float32 (float64 in a
float64 model). The model holds no state: it goes in and comes out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from retnet_edge.config import RetNetConfig
from retnet_edge.model.context_parallel import ContextParallelGroup, add_state_in
from retnet_edge.model.loss import cross_entropy
from retnet_edge.model.retention import retention_chunkwise, retention_parallel, retention_recurrent
from retnet_edge.model.retention_folded import can_fold, decay_factors, retention_folded
from retnet_edge.model.rotary import cos_sin, frequencies, rotate_pairs

Form = Literal["parallel", "chunkwise", "recurrent"]
CHUNK = 256
INIT_STD = 0.02


class RetentionMode(NamedTuple):
    """How retention is computed; what comes out is the same.

    recompute: blocks keep only their inputs for the backward pass (activation checkpointing).
    context: the ranks that share each sequence, where there are several.
    """

    form: Form = "chunkwise"
    chunk: int = CHUNK
    recompute: bool = False
    context: ContextParallelGroup | None = None


CHUNKWISE = RetentionMode()


class PositionTerms(NamedTuple):
    """Where the tokens stand: cosines and sines of the rotation, n counted from 1, documents.

    ends: the document that each rank's span ends in, where ranks share a sequence. factors: what
    folds the decays into q and k, [T, 2, H], where retention is computed that way.
    """

    cos: Tensor
    sin: Tensor
    counts: Tensor
    documents: Tensor | None
    ends: Tensor | None = None
    factors: Tensor | None = None


def document_ids(tokens: Tensor, end: int) -> Tensor:
    """Document borders before each token, [B, T]: the `end` token closes its document."""
    ends = (tokens == end).long()
    return ends.cumsum(1) - ends


def positions_in_document(position: Tensor, documents: Tensor) -> Tensor:
    """n = 1, 2, … within each document, [B, T]; the first document goes on from `position`."""
    index = torch.arange(documents.shape[1], device=documents.device)
    begins = torch.diff(documents, dim=1, prepend=torch.zeros_like(documents[:, :1])) > 0
    start = torch.where(begins, index, -position[:, None]).cummax(1).values
    return index - start + 1


def decay_sum(log_decay: Tensor, n: Tensor) -> Tensor:
    """Z_n = (1 - γ^n)/(1 - γ), the sum of the decays seen; n [B, T] counts from 1: [B, H, T]."""
    log_decay = log_decay[:, None]
    # expm1 twice: γ - 1 as a difference loses the digits of a float32 γ near 1
    z = torch.expm1(log_decay * n[:, None, :]) / torch.expm1(log_decay)
    return torch.where(log_decay == 0.0, n[:, None, :].to(z.dtype), z)


class SplitLinear(nn.Linear):
    """A linear map without bias whose outputs come in parts, each a product of its own.

    The gradient of one product would be put together from the parts', which costs more than adding
    up what the products give their common input.
    """

    def __init__(self, inputs: int, widths: list[int]) -> None:
        """Make one weight, [sum(widths), inputs]."""
        super().__init__(inputs, sum(widths), bias=False)
        self.widths = widths

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """[…, inputs] -> […, width] for every width."""
        return tuple(F.linear(x, w) for w in torch.split(self.weight, self.widths))


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
        self.widths = [2 * keys, values, values]
        self.qkvg = SplitLinear(config.d_model, self.widths)
        self.out = nn.Linear(values, config.d_model, bias=False)
        self.head_norm = (
            nn.Parameter(torch.ones(config.value_head_dim)) if config.head_norm_affine else None
        )
        gammas = torch.tensor(config.gammas, dtype=torch.float64)
        self.register_buffer("log_decay", gammas.log(), persistent=False)

    def forward(
        self, x: Tensor, state: Tensor, terms: PositionTerms, mode: RetentionMode
    ) -> tuple[Tensor, Tensor]:
        """X [B, T, d_model] -> the same shape, and the state after the last token."""
        config = self.config
        rows = x.shape[:2]
        projected = self.qkvg(x)
        if isinstance(projected, Tensor):  # a linear map that stands in for `SplitLinear`
            projected = torch.split(projected, self.widths, dim=-1)
        qk, v, gate = projected
        qk = qk.reshape(*rows, 2, config.heads, config.key_head_dim)
        qk = rotate_pairs(qk, terms.cos[:, :, None, None], terms.sin[:, :, None, None])
        v = v.reshape(*rows, config.heads, config.value_head_dim)
        with torch.autocast(x.device.type, enabled=False):
            out, state = self._retain(qk, v, state, terms, mode)
            out = self._norm_heads(out, self.log_decay.to(state.dtype), terms.counts)
        return self.out(F.silu(gate) * out.flatten(2).to(gate.dtype)), state

    def _retain(
        self, qk: Tensor, v: Tensor, state: Tensor, terms: PositionTerms, mode: RetentionMode
    ) -> tuple[Tensor, Tensor]:
        """Of rotated q and k [B, T, 2, H, K] and v [B, T, H, V]: outputs [B, T, H, V], state."""
        documents = terms.documents
        log_decay = self.log_decay.to(state.dtype)
        v_h = v.transpose(1, 2)
        q = (qk[:, :, 0].transpose(1, 2) * self.config.key_head_dim**-0.5).to(v.dtype)
        k = qk[:, :, 1].transpose(1, 2).to(v.dtype)
        if terms.factors is not None:
            folded = (qk * terms.factors[..., None]).to(v.dtype).permute(2, 3, 0, 1, 4)
            values = v.permute(2, 0, 1, 3)
            out, state = retention_folded(
                folded.contiguous(), values.contiguous(), self.log_decay, state, mode.chunk
            )
            out = out.transpose(0, 1)
        elif mode.form == "parallel":
            out, state = retention_parallel(q, k, v_h, log_decay, state, documents)
        elif mode.form == "chunkwise":
            out, state = retention_chunkwise(q, k, v_h, log_decay, state, mode.chunk, documents)
        else:
            out, state = retention_recurrent(q, k, v_h, log_decay, state, documents)
        if mode.context is not None:
            state_in = mode.context.state_in(state, q.shape[2], log_decay, terms.ends)
            out, state = add_state_in(out, state, q, log_decay, state_in, documents)
        return out.transpose(1, 2), state

    def factors(self, tokens: int, mode: RetentionMode, dtype: torch.dtype) -> Tensor | None:
        """`PositionTerms.factors`, or None where the decays are not to be folded."""
        config = self.config
        if mode.form != "chunkwise" or not can_fold(-math.log(min(config.gammas)), mode.chunk):
            return None
        scale = config.key_head_dim**-0.5
        return decay_factors(self.log_decay, tokens, mode.chunk, scale).to(dtype)

    def _norm_heads(self, out: Tensor, log_decay: Tensor, counts: Tensor) -> Tensor:
        """RMS norm of each head's output [B, T, H, V] (the paper's GroupNorm over heads)."""
        out, eps = out.to(log_decay.dtype), self.config.head_norm_eps
        if self.config.head_norm_eps_rule == "constant":
            return F.rms_norm(out, out.shape[-1:], self.head_norm, eps)
        z = decay_sum(log_decay, counts).mT[..., None]
        normed = out * torch.rsqrt(out.square().mean(-1, keepdim=True) + eps * z)
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
        self, x: Tensor, state: Tensor, terms: PositionTerms, mode: RetentionMode, dropout: float
    ) -> tuple[Tensor, Tensor]:
        """X [B, T, d_model] -> the same shape, and the layer's state after the last token."""
        out, state = self.retention(self.retention_norm(x), state, terms, mode)
        x = x + F.dropout(out, dropout, self.training)
        return x + F.dropout(self.ffn(self.ffn_norm(x)), dropout, self.training), state


class RetNet(nn.Module):
    """The language model: embedding, blocks, final norm, head (tied to the embedding or not)."""

    frequencies: Tensor

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
        self.register_buffer("frequencies", frequencies(config.thetas), persistent=False)
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
        chunk: int = CHUNK,
        documents: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Tokens [B, T] -> logits [B, T, vocab] and the states after the last token.

        `position` int64 [B] is the index of the first token, 0 by default; `states` are zero by
        default; `documents` int64 [B, T] resets them at its borders (see retention.py).
        """
        x, new_states = self.features(
            tokens, states, position, RetentionMode(form, chunk), documents
        )
        return self.head(x), new_states

    def loss(
        self,
        tokens: Tensor,
        *,
        mode: RetentionMode = CHUNKWISE,
        document_end: int | None = None,
        compiled: bool = False,
    ) -> Tensor:
        """Mean nats a token of predicting tokens[:, 1:] from tokens[:, :-1]; tokens [B, T + 1].

        Where `document_end` is an id, documents that end with it do not see each other. Where
        `mode.context` shares the sequences, the mean is over the tokens of this rank's span.
        """
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        if mode.context is not None:
            inputs, targets = mode.context.padded(inputs), mode.context.span(targets)
        documents = None if document_end is None else document_ids(inputs, document_end)
        x, _ = self.features(inputs, None, None, mode, documents)
        return head_loss(self.head, x[:, : targets.shape[1]], targets, compiled=compiled)

    def features(
        self,
        tokens: Tensor,
        states: Sequence[Tensor] | None,
        position: Tensor | None,
        mode: RetentionMode,
        documents: Tensor | None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Tokens [B, T] -> what the head sees, [B, T, d_model], and the states after the last.

        Where `mode.context` shares the sequences, both are of this rank's span, and the state that
        comes in is the other ranks'.
        """
        if position is None:
            position = torch.zeros(tokens.shape[0], dtype=torch.int64, device=tokens.device)
        here = tokens if mode.context is None else mode.context.span(tokens)
        states = self.initial_states(tokens.shape[0]) if states is None else states
        terms = self._position_terms(position, here.shape[1], documents, mode, states[0].dtype)
        x = F.dropout(self.embedding(here), self.dropout, self.training)
        new_states = []
        for block, state in zip(self.blocks, states, strict=True):
            x, state = run_block(block, mode.recompute, x, state, terms, mode, self.dropout)
            new_states.append(state)
        return self.final_norm(x), new_states

    def _position_terms(
        self,
        position: Tensor,
        length: int,
        documents: Tensor | None,
        mode: RetentionMode,
        dtype: torch.dtype,
    ) -> PositionTerms:
        """Of the `length` tokens of this rank; `position` is that of the sequence's first."""
        context = mode.context
        if documents is None:
            if context is not None:
                position = position + context.rank * length
            counts = position[:, None] + torch.arange(1, length + 1, device=position.device)
            cos, sin = cos_sin(position, length, self.frequencies, dtype)
            first = self.blocks[0].get_submodule("retention")  # all have the same decays
            assert isinstance(first, MultiScaleRetention)
            factors = first.factors(length, mode, dtype)
            return PositionTerms(cos, sin, counts, None, factors=factors)
        counts, ends = positions_in_document(position, documents), None
        if context is not None:
            counts = context.span(counts)
            documents, ends = context.documents(documents)
        flat = cos_sin(counts.flatten() - 1, 1, self.frequencies, dtype)
        cos, sin = (x.reshape(*counts.shape, -1) for x in flat)
        return PositionTerms(cos, sin, counts, documents, ends)


def run_block(block: nn.Module, recompute: bool, *inputs: Any) -> Any:
    """The block's outputs; with `recompute`, what is inside is computed again going backward."""
    if recompute:
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)


def head_loss(head: nn.Linear, x: Tensor, targets: Tensor, *, compiled: bool) -> Tensor:
    """Mean nats a token of targets [B, T] under softmax(head(x)), x [B, T, d_model]."""
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    return cross_entropy(x.flatten(0, 1), head.weight, targets.flatten(), compiled=compiled)


def init_weights(model: nn.Module, layers: int) -> None:
    """Normal(0, 0.02); projections back into the residual stream are scaled by 1/√(2·layers)."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            std = INIT_STD / (2 * layers) ** 0.5 if name.endswith(".out") else INIT_STD
            nn.init.normal_(module.weight, std=std)


def to_float64(model: nn.Module) -> nn.Module:
    """The same model in float64, in place: the reference that everything is judged against."""
    return model.to(torch.float64)
