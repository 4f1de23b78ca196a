"""torchscale's RetNet (microsoft/torchscale 0.3.0 and HEAD), and syncdoth/RetNet, its port.

torchscale calls the FFN's norm `final_layer_norm` and the gate's projection `fc1`: its GLU is
fc2(act(fc1 x) ⊙ gate x). Rotary pairs are interleaved; 1/√key_dim is on k; head norms have no
scale, and in the recurrent form see o / sqrt(Z_n), which is our eps rule "z_n".
"""

from __future__ import annotations

import math
from typing import Any, Literal

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
    gammas_log_linear,
    thetas_torchscale,
)
from retnet_edge.errors import InputError
from retnet_edge.importing.files import SourceWeights
from retnet_edge.importing.layout import (
    Imported,
    exact_quotient,
    fold_embedding,
    half_split,
    require_fields,
    tied_head,
    typed_fields,
)

_ACTIVATIONS: dict[str, Literal["silu", "gelu"]] = {"swish": "silu", "silu": "silu", "gelu": "gelu"}
_BEFORE_SEPTEMBER_2023 = "retention.q_proj.bias"


class TorchscaleFields(msgspec.Struct, frozen=True):
    """What decides the computation, with torchscale's defaults (`architecture/config.py`)."""

    decoder_embed_dim: Dim = 768
    decoder_value_embed_dim: Dim = 1280
    decoder_retention_heads: Heads = 3
    decoder_ffn_embed_dim: Dim = 1280
    decoder_layers: Layers = 12
    decoder_normalize_before: bool = True
    activation_fn: str = "gelu"
    layernorm_embedding: bool = False
    no_scale_embedding: bool = True
    layernorm_eps: Epsilon = 1e-6
    share_decoder_input_output_embed: bool = False
    deepnorm: bool = False
    multiway: bool = False
    moe_freq: int = 0


class SyncdothFields(msgspec.Struct, frozen=True):
    """The same in syncdoth/RetNet's words (`configuration_retnet.py`)."""

    decoder_embed_dim: Dim = 768
    decoder_value_embed_dim: Dim = 1280
    decoder_retention_heads: Heads = 3
    decoder_ffn_embed_dim: Dim = 1280
    decoder_layers: Layers = 12
    decoder_normalize_before: bool = True
    activation_fn: str = "gelu"
    layernorm_embedding: bool = False
    no_scale_embedding: bool = True
    layernorm_eps: Epsilon = 1e-6
    tie_word_embeddings: bool = False
    deepnorm: bool = False
    use_glu: bool = True
    use_lm_decay: bool = False


def import_torchscale(fields: dict[str, Any], weights: SourceWeights, where: str) -> Imported:
    """A RetNetDecoder's state_dict, with fairseq's prefix `decoder.` or without.

    Raises InputError for what our model does not compute and for weights that do not fit.
    """
    given = typed_fields(fields, TorchscaleFields, where)
    require_fields(where, given, multiway=False, moe_freq=0)
    prefix = "decoder." if "decoder.embed_tokens.weight" in weights else ""
    return _import(
        given,
        weights,
        where,
        prefix=prefix,
        head=f"{prefix}output_projection.weight",
        tied=given.share_decoder_input_output_embed,
        gammas=gammas_eq8(given.decoder_retention_heads),
    )


def import_syncdoth(fields: dict[str, Any], weights: SourceWeights, where: str) -> Imported:
    """A RetNetForCausalLM's state_dict: torchscale's under `model.`, and `lm_head`.

    Raises InputError for what our model does not compute and for weights that do not fit.
    """
    given = typed_fields(fields, SyncdothFields, where)
    require_fields(where, given, use_glu=True)
    schedule = gammas_log_linear if given.use_lm_decay else gammas_eq8
    return _import(
        given,
        weights,
        where,
        prefix="model.",
        head="lm_head.weight",
        tied=given.tie_word_embeddings,
        gammas=schedule(given.decoder_retention_heads),
    )


def _import(
    given: TorchscaleFields | SyncdothFields,
    weights: SourceWeights,
    where: str,
    *,
    prefix: str,
    head: str,
    tied: bool,
    gammas: tuple[float, ...],
) -> Imported:
    require_fields(where, given, deepnorm=False, decoder_normalize_before=True)
    if given.activation_fn not in _ACTIVATIONS:
        raise InputError(
            f"{where}: activation_fn is {given.activation_fn!r}; known: {', '.join(_ACTIVATIONS)}"
        )
    if f"{prefix}layers.0.{_BEFORE_SEPTEMBER_2023}" in weights:
        raise InputError(
            f"{weights.where}: has biases and LayerNorms, as torchscale's RetNet had before "
            "28 September 2023; only the later one can be imported"
        )
    d, heads = given.decoder_embed_dim, given.decoder_retention_heads
    embedding = weights.take(f"{prefix}embed_tokens.weight", None, d)
    keys = exact_quotient(where, "decoder_embed_dim", d, heads)
    values = exact_quotient(where, "decoder_value_embed_dim", given.decoder_value_embed_dim, heads)
    norm = (
        weights.take(f"{prefix}layernorm_embedding.weight", d)
        if given.layernorm_embedding
        else None
    )
    first = fold_embedding(
        embedding,
        tied_head(weights, head, embedding, tied),
        scale=1.0 if given.no_scale_embedding else math.sqrt(d),
        norm=norm,
        eps=given.layernorm_eps,
    )
    config = RetNetConfig(
        vocab_size=len(embedding),
        d_model=d,
        layers=given.decoder_layers,
        heads=heads,
        key_head_dim=keys,
        value_head_dim=values,
        ffn_dim=given.decoder_ffn_embed_dim,
        activation=_ACTIVATIONS[given.activation_fn],
        norm_eps=given.layernorm_eps,
        head_norm_eps=given.layernorm_eps,
        head_norm_eps_rule="z_n",
        tie_embeddings=first.head is None,
        gammas=_stored_gammas(weights, f"{prefix}retnet_rel_pos.decay", gammas),
        thetas=_stored_thetas(
            weights, f"{prefix}retnet_rel_pos.angle", thetas_torchscale(keys), keys
        ),
    )
    ours = {
        "embedding.weight": first.embedding,
        "final_norm.weight": weights.take(f"{prefix}layer_norm.weight", d),
    }
    if first.head is not None:
        ours["head.weight"] = first.head
    for layer in range(config.layers):
        ours |= _layer(config, weights, f"{prefix}layers.{layer}.", f"blocks.{layer}.")
    return Imported(config, ours)


def _layer(
    config: RetNetConfig, weights: SourceWeights, theirs: str, ours: str
) -> dict[str, Tensor]:
    d, inner = config.d_model, config.ffn_dim
    keys, values = config.heads * config.key_head_dim, config.heads * config.value_head_dim
    retention = f"{theirs}retention."
    q = half_split(weights.take(f"{retention}q_proj.weight", keys, d), config.heads)
    k = half_split(weights.take(f"{retention}k_proj.weight", keys, d), config.heads)
    v = weights.take(f"{retention}v_proj.weight", values, d)
    g = weights.take(f"{retention}g_proj.weight", values, d)
    gate = weights.take(f"{theirs}ffn.fc1.weight", inner, d)
    up = weights.take(f"{theirs}ffn.gate.weight", inner, d)
    return {
        f"{ours}retention_norm.weight": weights.take(f"{theirs}retention_layer_norm.weight", d),
        f"{ours}retention.qkvg.weight": torch.cat((q, k, v, g)),
        f"{ours}retention.out.weight": weights.take(f"{retention}out_proj.weight", d, values),
        f"{ours}ffn_norm.weight": weights.take(f"{theirs}final_layer_norm.weight", d),
        f"{ours}ffn.inner.weight": torch.cat((gate, up)),
        f"{ours}ffn.out.weight": weights.take(f"{theirs}ffn.fc2.weight", d, inner),
    }


def _stored_gammas(
    weights: SourceWeights, name: str, formula: tuple[float, ...]
) -> tuple[float, ...]:
    """γ from the buffer of log γ [H] if the file has it: what the weights were trained with."""
    if name not in weights:
        return formula
    return tuple(weights.take(name, len(formula)).double().exp().tolist())


def _stored_thetas(
    weights: SourceWeights, name: str, formula: tuple[float, ...], keys: int
) -> tuple[float, ...]:
    """θ from the buffer [K], which holds each one twice, if the file has it."""
    if name not in weights:
        return formula
    real, imag = weights.take(name, keys).double().reshape(keys // 2, 2).T
    if not torch.equal(real, imag):
        raise InputError(
            f"{weights.where}: {name} does not hold one angle for each pair of channels"
        )
    return tuple(real.tolist())
