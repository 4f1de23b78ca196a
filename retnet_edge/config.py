"""Model configurations: everything that decides what a checkpoint computes, written out explicitly.

The decays γ and the rotary angles θ are stored as numbers, not as formulas: public RetNets differ
in both, and the wrong formula still gives fluent text
(docs/decisions/0018-imported-weights-are-rewritten.md).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from retnet_edge.errors import InputError

MODEL_TYPE = "retnet_edge"
"""What transformers' Auto classes read in config.json to find `retnet_edge.hf`."""

TRANSFORMERS_KEYS = frozenset(
    ("model_type", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version")
)
"""Keys of config.json that are transformers' and say nothing about what a model computes."""

CONFIG_BYTES = 64 << 20
"""Of a config.json at most: the longest has a θ for each of 500,000 pairs, indented."""

MOST_WIDE = 1_000_000

Dim = Annotated[int, msgspec.Meta(ge=1, le=MOST_WIDE)]
Layers = Annotated[int, msgspec.Meta(ge=1, le=1024)]
Heads = Annotated[int, msgspec.Meta(ge=1, le=1024)]
Epsilon = Annotated[float, msgspec.Meta(gt=0.0, lt=1.0)]


def gammas_eq8(heads: int) -> tuple[float, ...]:
    """γ_h = 1 - 2^(-5-h), h = 0 … heads-1 (paper, eq. 8; torchscale, flash-linear-attention)."""
    return tuple(1.0 - 2.0 ** (-5 - h) for h in range(heads))


def gammas_log_linear(heads: int) -> tuple[float, ...]:
    """γ = 1 - exp(linspace(log 1/32, log 1/512, heads)) (the paper's experiments, section 3.1)."""
    first, last = math.log(1 / 32), math.log(1 / 512)
    span = max(heads - 1, 1)
    return tuple(1.0 - math.exp(first + (last - first) * h / span) for h in range(heads))


def thetas_rope(key_head_dim: int) -> tuple[float, ...]:
    """θ_i = 10000^(-2i/d), i = 0 … d/2-1, in radians a position (RoPE; flash-linear-attention)."""
    return tuple(10000.0 ** (-2.0 * i / key_head_dim) for i in range(key_head_dim // 2))


def thetas_torchscale(key_head_dim: int) -> tuple[float, ...]:
    """θ = 10000^(-linspace(0, 1, d/2)), in radians a position (torchscale)."""
    half = key_head_dim // 2
    return tuple(10000.0 ** (-i / max(half - 1, 1)) for i in range(half))


class _Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Fields that a RetNet and its Transformer baseline share."""

    vocab_size: Dim
    d_model: Dim
    layers: Layers
    heads: Heads
    key_head_dim: Dim
    ffn_dim: Dim
    norm_eps: Epsilon = 1e-6
    tie_embeddings: bool = True
    thetas: tuple[float, ...]

    def _check_thetas(self) -> None:
        if self.key_head_dim % 2:
            raise InputError(
                f"key_head_dim is {self.key_head_dim}; rotary pairs need an even number"
            )
        if len(self.thetas) != self.key_head_dim // 2:
            raise InputError(
                f"thetas has {len(self.thetas)} values; key_head_dim {self.key_head_dim} needs "
                f"{self.key_head_dim // 2}"
            )


class RetNetConfig(_Config, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="retnet"):
    """A RetNet (arXiv 2307.08621), exactly.

    - `key_head_dim`, `value_head_dim`: width of one head's keys and values; the recurrent state of
      a layer is [heads, key_head_dim, value_head_dim].
    - `gammas`: decay of each head, 0 < γ <= 1; `thetas`: rotary angle of each pair of key
      channels, radians a position, half-split layout (channel i is paired with i + d/2).
    - `ffn`: "glu" is W2(act(W_gate x) ⊙ W_up x), "mlp" is W2 act(W1 x), `ffn_dim` wide inside.
    - `head_norm_eps_rule`: "constant" adds eps to mean(o²) as it is; "z_n" adds eps · Z_n with
      Z_n = (1 - γ^n)/(1 - γ), the sum of the decays that position n sees (n counts from 1), which
      is torchscale's recurrent form without its running normalisation.
    - `head_norm_affine`: the head norm has a learned scale [value_head_dim], shared by the heads.
    """

    value_head_dim: Dim
    ffn: Literal["glu", "mlp"] = "glu"
    activation: Literal["silu", "gelu"] = "silu"
    head_norm_eps: Epsilon = 1e-6
    head_norm_eps_rule: Literal["constant", "z_n"] = "constant"
    head_norm_affine: bool = False
    gammas: tuple[float, ...]

    def __post_init__(self) -> None:
        """Raises InputError where γ or θ do not fit the heads."""
        self._check_thetas()
        if len(self.gammas) != self.heads:
            raise InputError(
                f"gammas has {len(self.gammas)} values; {self.heads} heads need one each"
            )
        for gamma in self.gammas:
            if not 0.0 < gamma <= 1.0:
                raise InputError(f"gammas holds {gamma}; a decay lies in (0, 1]")

    def state_bytes(self) -> int:
        """Bytes of one sequence's float32 recurrent state, all layers."""
        return 4 * self.layers * self.heads * self.key_head_dim * self.value_head_dim


class TransformerConfig(
    _Config, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="transformer"
):
    """The baseline: pre-norm Transformer with rotary attention, SwiGLU and RMSNorm."""

    def __post_init__(self) -> None:
        """Raises InputError where θ does not fit the heads."""
        self._check_thetas()


ModelConfig = RetNetConfig | TransformerConfig


def retnet_config(
    *,
    vocab_size: int,
    d_model: int,
    layers: int,
    heads: int,
    ffn_dim: int,
    value_factor: int = 2,
    key_head_dim: int | None = None,
    ffn: Literal["glu", "mlp"] = "glu",
    tie_embeddings: bool = True,
    head_norm_affine: bool = False,
    schedule: Literal["log_linear", "eq8"] = "log_linear",
) -> RetNetConfig:
    """A RetNet by its usual proportions: d_model keys and value_factor · d_model values in heads.

    Raises InputError where d_model is no multiple of heads and no key_head_dim is given.
    """
    if key_head_dim is None:
        if d_model % heads:
            raise InputError(f"d_model {d_model} is not a multiple of heads {heads}")
        key_head_dim = d_model // heads
    return RetNetConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        layers=layers,
        heads=heads,
        key_head_dim=key_head_dim,
        value_head_dim=value_factor * key_head_dim,
        ffn=ffn,
        ffn_dim=ffn_dim,
        tie_embeddings=tie_embeddings,
        head_norm_affine=head_norm_affine,
        gammas=gammas_log_linear(heads) if schedule == "log_linear" else gammas_eq8(heads),
        thetas=thetas_rope(key_head_dim),
    )


def transformer_like(config: RetNetConfig) -> TransformerConfig:
    """The Transformer of the same width, depth, vocabulary and (to a few percent) parameters.

    Attention takes 4 d² where retention takes 2 d·(key + value dims) + value·d; the difference
    goes into a wider feed-forward net, rounded to 64.
    """
    d = config.d_model
    keys, values = config.heads * config.key_head_dim, config.heads * config.value_head_dim
    retention = d * (2 * keys + 3 * values)
    ffn_matrices = 3 if config.ffn == "glu" else 2
    spare = retention + ffn_matrices * d * config.ffn_dim - 4 * d * keys
    return TransformerConfig(
        vocab_size=config.vocab_size,
        d_model=d,
        layers=config.layers,
        heads=config.heads,
        key_head_dim=config.key_head_dim,
        ffn_dim=max(64, round(spare / (3 * d) / 64) * 64),
        norm_eps=config.norm_eps,
        tie_embeddings=config.tie_embeddings,
        thetas=thetas_rope(config.key_head_dim),
    )


def encode_config(config: ModelConfig) -> bytes:
    """The configuration as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(config), indent=2) + b"\n"


def encode_checkpoint_config(config: ModelConfig) -> bytes:
    """A checkpoint's config.json: the configuration, and the key that transformers looks for."""
    fields = msgspec.to_builtins(config)
    fields = {"type": fields.pop("type"), "model_type": MODEL_TYPE, **fields}
    return msgspec.json.format(msgspec.json.encode(fields), indent=2) + b"\n"


def checked_config(config: RetNetConfig, where: str | Path) -> RetNetConfig:
    """The configuration itself. Raises InputError naming the first field that is out of its range,
    which code that makes one is not asked about."""
    try:
        return msgspec.convert(msgspec.to_builtins(config), RetNetConfig)
    except msgspec.ValidationError as error:
        raise InputError(f"{where}: {error}") from error


def decode_config(raw: bytes, where: str | Path) -> ModelConfig:
    """Parse config.json; keys of transformers' own are skipped.

    Raises InputError naming the file, the field and what is allowed.
    """
    try:
        # what is no field makes no objects, however much of it there is
        fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        ours = {key: value for key, value in fields.items() if key not in TRANSFORMERS_KEYS}
        config: ModelConfig = msgspec.json.decode(msgspec.json.encode(ours), type=ModelConfig)
        return config
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{where}: not a valid model configuration: {error}") from error
