"""Which models the comparisons train: sizes, contexts, ablations, head shapes, in order of value.

A run differs from another in its group by one thing. Both architectures of a size share width,
depth, heads and, to a few percent, parameters; both see the same tokens in the same order.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from retnet_edge.config import (
    ModelConfig,
    RetNetConfig,
    gammas_log_linear,
    retnet_config,
    thetas_rope,
    transformer_like,
)

Size = Literal["10m", "25m", "60m", "shape"]
Variant = Literal[
    "retnet",
    "transformer",
    "no-gate",
    "no-group-norm",
    "gamma-1",
    "one-gamma",
    "small-heads",
    "wide-heads",
]

SMALLEST: Size = "10m"
CONTEXT = 1024
CONTEXTS = (512, 1024, 2048)
SEEDS = (1, 2, 3)
ABLATIONS: tuple[Variant, ...] = (
    "gamma-1",
    "one-gamma",
    "no-gate",
    "no-group-norm",
    "small-heads",
)
ONE_GAMMA = 127 / 128
"""The paper's γ of the ablation with one decay (section 3.6)."""
SMOKE_SHRINKS = 16
"""A smoke run's contexts are shorter by this."""


class Dims(msgspec.Struct, frozen=True):
    """Width, depth and heads of a size; key head dim is d_model / heads, values are twice that."""

    d_model: int
    layers: int
    heads: int
    ffn_dim: int


SIZES: dict[Size, Dims] = {
    "10m": Dims(320, 6, 5, 384),
    "25m": Dims(512, 7, 8, 640),
    "60m": Dims(768, 8, 12, 960),
    "shape": Dims(768, 3, 12, 960),
}
SMOKE_SIZES: dict[Size, Dims] = {
    "10m": Dims(32, 1, 2, 64),
    "25m": Dims(48, 1, 2, 64),
    "60m": Dims(64, 1, 2, 64),
    "shape": Dims(64, 1, 4, 64),
}


class Run(msgspec.Struct, frozen=True):
    """One model to train."""

    variant: Variant
    size: Size
    context: int = CONTEXT
    seed: int = SEEDS[0]

    @property
    def name(self) -> str:
        """What its file is called: parts that are the usual ones are left out."""
        parts: list[str] = [self.variant, self.size]
        if self.context != CONTEXT:
            parts.append(str(self.context))
        if self.seed != SEEDS[0]:
            parts.append(f"seed{self.seed}")
        return "-".join(parts)


def planned() -> list[Run]:
    """Every run but those of further seeds, the most telling ones first."""
    runs = [Run(v, size) for size in ("10m", "25m", "60m") for v in ("retnet", "transformer")]
    runs += [Run(variant, SMALLEST) for variant in ABLATIONS]
    runs += [Run(variant, "shape") for variant in ("retnet", "wide-heads")]
    others = [context for context in CONTEXTS if context != CONTEXT]
    runs += [Run(v, SMALLEST, context) for context in others for v in ("retnet", "transformer")]
    return runs


def close_candidates() -> list[tuple[Run, Run]]:
    """Pairs whose closest gets more seeds: all against the full RetNet of the smallest size."""
    full = Run("retnet", SMALLEST)
    return [(full, Run(variant, SMALLEST)) for variant in ("transformer", *ABLATIONS)]


def further_seeds(pair: tuple[Run, Run]) -> list[Run]:
    """The same two runs with the seeds that the plan leaves out."""
    return [msgspec.structs.replace(run, seed=seed) for seed in SEEDS[1:] for run in pair]


def config_of(run: Run, vocab_size: int, *, smoke: bool = False) -> ModelConfig:
    """The configuration of a run's model.

    Without the gate, parameters are laid out as in a Transformer (value dim = key dim, the rest in
    the feed-forward net), as the paper does it. More, smaller heads keep the range of the decays.
    """
    dims = (SMOKE_SIZES if smoke else SIZES)[run.size]
    full = retnet_config(
        vocab_size=vocab_size,
        d_model=dims.d_model,
        layers=dims.layers,
        heads=dims.heads,
        ffn_dim=dims.ffn_dim,
    )
    replace = msgspec.structs.replace
    if run.variant == "transformer":
        return transformer_like(full)
    if run.variant == "gamma-1":
        return replace(full, gammas=(1.0,) * full.heads)
    if run.variant == "one-gamma":
        return replace(full, gammas=(ONE_GAMMA,) * full.heads)
    if run.variant == "no-gate":
        ffn_dim = transformer_like(full).ffn_dim
        return replace(full, value_head_dim=full.key_head_dim, ffn_dim=ffn_dim)
    if run.variant == "small-heads":
        return _with_heads(full, 2 * full.heads)
    if run.variant == "wide-heads":
        return _with_heads(full, full.heads // 4)
    return full


def parameters_of(run: Run, vocab_size: int, *, smoke: bool = False) -> int:
    """Those of the matrices, the embedding once."""
    config = config_of(run, vocab_size, smoke=smoke)
    keys, values, gates = config.heads * config.key_head_dim, 0, 0
    if isinstance(config, RetNetConfig):
        values = config.heads * config.value_head_dim
        gates = 0 if run.variant == "no-gate" else values
    layer = 2 * keys + 2 * (values or keys) + gates + 3 * config.ffn_dim
    return config.d_model * (config.vocab_size + config.layers * layer)


def context_of(run: Run, *, smoke: bool = False) -> int:
    """Tokens of a training sequence."""
    return run.context // (SMOKE_SHRINKS if smoke else 1)


def _with_heads(config: RetNetConfig, heads: int) -> RetNetConfig:
    width = config.d_model // heads
    return msgspec.structs.replace(
        config,
        heads=heads,
        key_head_dim=width,
        value_head_dim=2 * width,
        gammas=gammas_log_linear(heads),
        thetas=thetas_rope(width),
    )
