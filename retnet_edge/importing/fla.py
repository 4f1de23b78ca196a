"""flash-linear-attention's RetNet (fla 0.6, `fla/models/retnet`).

Rotary pairs are half-split with θ_i = 10000^(-2i/K), γ follows eq. 8 and is stored nowhere, and the
head norm has a scale [value head dim]. Heads that share keys and values are written out.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import torch
from torch import Tensor

from retnet_edge.config import (
    Dim,
    Epsilon,
    Heads,
    Layers,
    RetNetConfig,
    gammas_eq8,
    thetas_rope,
)
from retnet_edge.errors import InputError
from retnet_edge.importing.files import SourceWeights
from retnet_edge.importing.layout import (
    Imported,
    exact_quotient,
    repeat_heads,
    require_fields,
    tied_head,
    typed_fields,
)

Ratio = Annotated[float, msgspec.Meta(gt=0, le=1024)]
WholeRatio = Annotated[int, msgspec.Meta(ge=1, le=1024)]

_HEAD_NORMS = ("attn.g_norm_swish_gate.weight", "attn.g_norm.weight")  # fuse_norm, or not


class FlaFields(msgspec.Struct, frozen=True):
    """What decides the computation, with fla's defaults (`configuration_retnet.py`)."""

    hidden_size: Dim = 2048
    expand_k: Ratio = 1.0
    expand_v: Ratio = 2.0
    hidden_ratio: WholeRatio | None = 2
    intermediate_size: Dim | None = None
    num_hidden_layers: Layers = 24
    num_heads: Heads = 8
    num_kv_heads: Heads | None = None
    feature_map: str | None = None
    hidden_act: str = "swish"
    use_short_conv: bool = False
    use_output_gate: bool = True
    elementwise_affine: bool | None = True
    norm_eps: Epsilon = 1e-6
    attn: dict[str, Any] | None = None
    tie_word_embeddings: bool = False
    attnres_block_size: int | None = None

    def ffn_dim(self) -> int:
        """Width inside the FFN: 2/3 · ratio · hidden_size, up to a multiple of 256."""
        if self.intermediate_size is not None:
            return self.intermediate_size
        ratio = 4 if self.hidden_ratio is None else self.hidden_ratio
        return 256 * -(-int(self.hidden_size * ratio * 2 / 3) // 256)


def import_fla(fields: dict[str, Any], weights: SourceWeights, where: str) -> Imported:
    """A RetNetForCausalLM's state_dict.

    Raises InputError for what our model does not compute and for weights that do not fit.
    """
    given = typed_fields(fields, FlaFields, where)
    require_fields(
        where, given, feature_map=None, use_output_gate=True, attn=None, attnres_block_size=None
    )
    require_fields(where, given, use_short_conv=False)
    if given.hidden_act not in ("swish", "silu"):
        raise InputError(f"{where}: hidden_act is {given.hidden_act!r}; known: swish, silu")
    d, heads = given.hidden_size, given.num_heads
    shared = heads if given.num_kv_heads is None else given.num_kv_heads
    exact_quotient(where, "num_heads", heads, shared)
    keys = exact_quotient(where, "hidden_size · expand_k", d * given.expand_k, heads)
    embedding = weights.take("model.embeddings.weight", None, d)
    head = tied_head(weights, "lm_head.weight", embedding, given.tie_word_embeddings)
    weights.drop("attn.rotary.inv_freq")  # a buffer of old versions: θ by the formula
    config = RetNetConfig(
        vocab_size=len(embedding),
        d_model=d,
        layers=given.num_hidden_layers,
        heads=heads,
        key_head_dim=keys,
        value_head_dim=exact_quotient(where, "hidden_size · expand_v", d * given.expand_v, heads),
        ffn_dim=given.ffn_dim(),
        norm_eps=given.norm_eps,
        head_norm_eps=given.norm_eps,
        head_norm_affine=bool(given.elementwise_affine),
        tie_embeddings=head is None,
        gammas=gammas_eq8(heads),
        thetas=thetas_rope(keys),
    )
    ours = {
        "embedding.weight": embedding,
        "final_norm.weight": weights.take("model.norm.weight", d),
    }
    if head is not None:
        ours["head.weight"] = head
    for layer in range(config.layers):
        ours |= _layer(config, shared, weights, f"model.layers.{layer}.", f"blocks.{layer}.")
    return Imported(config, ours)


def _layer(
    config: RetNetConfig, shared: int, weights: SourceWeights, theirs: str, ours: str
) -> dict[str, Tensor]:
    d, inner, times = config.d_model, config.ffn_dim, config.heads // shared
    values = config.heads * config.value_head_dim
    attn = f"{theirs}attn."
    q = weights.take(f"{attn}q_proj.weight", config.heads * config.key_head_dim, d)
    k = weights.take(f"{attn}k_proj.weight", shared * config.key_head_dim, d)
    v = weights.take(f"{attn}v_proj.weight", shared * config.value_head_dim, d)
    g = weights.take(f"{attn}g_proj.weight", values, d)
    gate = weights.take(f"{theirs}mlp.gate_proj.weight", inner, d)
    up = weights.take(f"{theirs}mlp.up_proj.weight", inner, d)
    found = {
        f"{ours}retention_norm.weight": weights.take(f"{theirs}attn_norm.weight", d),
        f"{ours}retention.qkvg.weight": torch.cat(
            (q, repeat_heads(k, shared, times), repeat_heads(v, shared, times), g)
        ),
        f"{ours}retention.out.weight": weights.take(f"{attn}o_proj.weight", d, values),
        f"{ours}ffn_norm.weight": weights.take(f"{theirs}mlp_norm.weight", d),
        f"{ours}ffn.inner.weight": torch.cat((gate, up)),
        f"{ours}ffn.out.weight": weights.take(f"{theirs}mlp.down_proj.weight", d, inner),
    }
    if config.head_norm_affine:
        fused, plain = (f"{theirs}{name}" for name in _HEAD_NORMS)
        name = plain if plain in weights else fused
        found[f"{ours}retention.head_norm"] = weights.take(name, config.value_head_dim)
    return found
