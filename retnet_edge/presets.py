"""Named model sizes. `vocab_size` is the tokenizer's, so a preset is a function of it."""

from __future__ import annotations

from collections.abc import Callable

from retnet_edge.config import RetNetConfig, retnet_config
from retnet_edge.errors import InputError


def _tiny(vocab_size: int) -> RetNetConfig:
    return retnet_config(vocab_size=vocab_size, d_model=128, layers=2, heads=2, ffn_dim=256)


def _edge_15m(vocab_size: int) -> RetNetConfig:
    return retnet_config(vocab_size=vocab_size, d_model=384, layers=7, heads=6, ffn_dim=512)


def _edge_135m(vocab_size: int) -> RetNetConfig:
    return retnet_config(vocab_size=vocab_size, d_model=768, layers=15, heads=12, ffn_dim=1024)


def _paper(d_model: int, layers: int, heads: int) -> Callable[[int], RetNetConfig]:
    """Paper, table 1: key head dim 256, value head dim 512, a plain FFN of width 2·d_model."""

    def preset(vocab_size: int) -> RetNetConfig:
        return retnet_config(
            vocab_size=vocab_size,
            d_model=d_model,
            layers=layers,
            heads=heads,
            ffn="mlp",
            ffn_dim=2 * d_model,
        )

    return preset


def _fla(d_model: int, layers: int, heads: int) -> Callable[[int], RetNetConfig]:
    """flash-linear-attention: eq. 8 decays, affine head norm, SwiGLU of width 256·⌈⌊4d/3⌋/256⌉."""

    def preset(vocab_size: int) -> RetNetConfig:
        return retnet_config(
            vocab_size=vocab_size,
            d_model=d_model,
            layers=layers,
            heads=heads,
            ffn_dim=256 * -(-(4 * d_model // 3) // 256),
            tie_embeddings=False,
            head_norm_affine=True,
            schedule="eq8",
        )

    return preset


PRESETS: dict[str, Callable[[int], RetNetConfig]] = {
    "tiny": _tiny,
    "edge-15m": _edge_15m,
    "edge-135m": _edge_135m,
    "paper-1.3b": _paper(2048, 24, 8),
    "paper-2.7b": _paper(2560, 32, 10),
    "paper-6.7b": _paper(4096, 32, 16),
    "fla-1.3b": _fla(2048, 24, 8),
    "fla-2.7b": _fla(2560, 32, 10),
}


def preset(name: str, vocab_size: int) -> RetNetConfig:
    """The preset's configuration. Raises InputError naming the known presets."""
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name](vocab_size)
