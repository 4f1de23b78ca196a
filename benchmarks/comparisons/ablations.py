"""RetNets that lack a part (paper, table 6), which are no option of the product."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from retnet_edge.config import ModelConfig
from retnet_edge.model.checkpoint import LanguageModel, build_model
from retnet_edge.model.retnet import MultiScaleRetention, RetNet

SWISH_IS_ONE = 1.2784645427610738
"""x with x · sigmoid(x) = 1."""


class Ungated(nn.Module):
    """Stands for `qkvg`: queries, keys and values of it, and a gate whose swish is always 1."""

    def __init__(self, qkvg: nn.Linear, gate: int) -> None:
        """Keep the first rows of `qkvg`; its last `gate` ones go."""
        super().__init__()
        self.gate = gate
        self.weight = nn.Parameter(qkvg.weight.detach()[:-gate].clone())

    def forward(self, x: Tensor) -> Tensor:
        """X [B, T, d_model] -> [B, T, queries + keys + values + gate]."""
        qkv = nn.functional.linear(x, self.weight)
        return torch.cat((qkv, qkv.new_full((*x.shape[:-1], self.gate), SWISH_IS_ONE)), dim=-1)


class Unnormed(MultiScaleRetention):
    """Retention whose heads are not normalised: (swish(X W_G) ⊙ Retention(X)) W_O."""

    def _norm_heads(self, out: Tensor, log_decay: Tensor, counts: Tensor) -> Tensor:
        return out


def without_gate(config: ModelConfig, *, dropout: float = 0.0) -> LanguageModel:
    """Y = GroupNorm_heads(Retention(X)), out = Y W_O. Called as `build_model` is."""
    model = _retnet(config, dropout)
    for module in _retentions(model):
        gate = module.splits[-1]
        module.qkvg = Ungated(module.qkvg, gate)  # type: ignore[assignment]
    return model


def without_group_norm(config: ModelConfig, *, dropout: float = 0.0) -> LanguageModel:
    """out = (swish(X W_G) ⊙ Retention(X)) W_O. Called as `build_model` is."""
    model = _retnet(config, dropout)
    for module in _retentions(model):
        module.__class__ = Unnormed
    return model


def builder(variant: str) -> Callable[..., LanguageModel]:
    """What builds a variant's model; all but two are configurations that the product builds."""
    return {"no-gate": without_gate, "no-group-norm": without_group_norm}.get(variant, build_model)


def _retnet(config: ModelConfig, dropout: float) -> RetNet:
    model = build_model(config, dropout=dropout)
    assert isinstance(model, RetNet)
    return model


def _retentions(model: RetNet) -> list[MultiScaleRetention]:
    return [module for module in model.modules() if isinstance(module, MultiScaleRetention)]
