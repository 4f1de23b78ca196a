"""A RetNet token by token in NumPy float64, straight from the paper, for the model's tests.

It shares no code with `retnet_edge`: only the names of the weights in a state dict.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn

from retnet_edge.config import RetNetConfig

Float = NDArray[np.float64]


def weights_of(model: nn.Module) -> dict[str, Float]:
    return {name: w.detach().double().numpy() for name, w in model.named_parameters()}


def run(
    config: RetNetConfig,
    weights: Mapping[str, Float],
    tokens: Sequence[int],
    states: Sequence[Float],
    position: int,
) -> tuple[Float, list[Float]]:
    """Logits [T, vocab] and the states [H, K, V] a layer after the last token."""
    states = list(states)
    rows = []
    for offset, token in enumerate(tokens):
        n = position + offset
        x = weights["embedding.weight"][token]
        for i in range(config.layers):
            w = {k.removeprefix(f"blocks.{i}."): v for k, v in weights.items()}
            h = _rms(x, config.norm_eps) * w["retention_norm.weight"]
            y, states[i] = _retention(config, w, h, states[i], n)
            x = x + y
            h = _rms(x, config.norm_eps) * w["ffn_norm.weight"]
            x = x + _feed_forward(config, w, h)
        x = _rms(x, config.norm_eps) * weights["final_norm.weight"]
        rows.append(weights.get("head.weight", weights["embedding.weight"]) @ x)
    return np.stack(rows), states


def _retention(
    config: RetNetConfig, w: Mapping[str, Float], x: Float, state: Float, n: int
) -> tuple[Float, Float]:
    H, K, V = config.heads, config.key_head_dim, config.value_head_dim
    q, k, v, gate = np.split(w["retention.qkvg.weight"] @ x, np.cumsum([H * K, H * K, H * V]))
    angles = np.exp(1j * np.longdouble(n) * np.asarray(config.thetas, dtype=np.longdouble))

    def turn(y: Float) -> Float:
        z = (y[: K // 2] + 1j * y[K // 2 :]) * angles
        return np.concatenate((z.real, z.imag)).astype(np.float64)

    new, heads = np.empty_like(state), []
    for h, gamma in enumerate(config.gammas):
        key, value = turn(k[h * K : h * K + K]), v[h * V : h * V + V]
        new[h] = gamma * state[h] + np.outer(key, value)
        o = turn(q[h * K : h * K + K]) / math.sqrt(K) @ new[h]
        eps = config.head_norm_eps
        if config.head_norm_eps_rule == "z_n":
            eps *= math.fsum(gamma**i for i in range(n + 1)) if n < 10_000 else _z(gamma, n + 1)
        o = o / np.sqrt(np.mean(o * o) + eps)
        heads.append(o * w["retention.head_norm"] if config.head_norm_affine else o)
    return w["retention.out.weight"] @ (_silu(gate) * np.concatenate(heads)), new


def _z(gamma: float, n: int) -> float:
    return float(n) if gamma == 1.0 else (1.0 - gamma**n) / (1.0 - gamma)


def _feed_forward(config: RetNetConfig, w: Mapping[str, Float], x: Float) -> Float:
    def act(y: Float) -> Float:
        if config.activation == "silu":
            return _silu(y)
        erf = np.array([math.erf(v / math.sqrt(2.0)) for v in y])
        gelu: Float = 0.5 * y * (1.0 + erf)
        return gelu

    inner = w["ffn.inner.weight"] @ x
    if config.ffn == "mlp":
        return w["ffn.out.weight"] @ act(inner)
    gate, up = np.split(inner, 2)
    return w["ffn.out.weight"] @ (act(gate) * up)


def _rms(x: Float, eps: float) -> Float:
    y: Float = x / np.sqrt(np.mean(x * x) + eps)
    return y


def _silu(x: Float) -> Float:
    return x / (1.0 + np.exp(-x))
