"""The operators of the exported graphs that torch has no single function for.

Each is one ONNX Runtime kernel in the graph and the plain formula outside an export, so a module
built from them runs in PyTorch as well. `fused` False gives the plain formula in an export too, in
standard operators that older runtimes have.
"""

from __future__ import annotations

import torch
from torch import Tensor

from retnet_edge.model.retention import retention_recurrent
from retnet_edge.model.rotary import rotate


def rotate_packed(x: Tensor, cos: Tensor, sin: Tensor, heads: int, *, fused: bool = True) -> Tensor:
    """Rotary embedding of packed heads: x [B, T, heads · K]; cos, sin [B, T, K/2]."""
    if fused and torch.onnx.is_in_onnx_export():
        rotated: Tensor = torch.onnx.ops.rotary_embedding(x, cos, sin, num_heads=heads)
        return rotated
    return merge_heads(rotate(split_heads(x, heads), cos, sin))


def retention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor,
    scale: float,
    *,
    fused: bool = True,
) -> tuple[Tensor, Tensor]:
    """Eq. 6 token by token, fused: `com.microsoft.LinearAttention`, "gated" with decay log γ.

    q, k [B, T, H · K]; v, out [B, T, H · V]; log_decay [H]; state [B, H, K, V]. out is scaled.
    """
    heads = log_decay.shape[0]
    if not (fused and torch.onnx.is_in_onnx_export()):
        out, state = retention_recurrent(
            split_heads(q, heads) * scale,
            split_heads(k, heads),
            split_heads(v, heads),
            log_decay,
            state,
        )
        return merge_heads(out), state
    batch, tokens, _ = q.shape
    out, new_state = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::LinearAttention",
        (q, k, v, state, log_decay.expand(batch, tokens, heads)),
        {"q_num_heads": heads, "kv_num_heads": heads, "update_rule": "gated", "scale": scale},
        dtypes=(v.dtype, state.dtype),
        shapes=(v.shape, state.shape),
        version=1,
    )
    return out, new_state


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, T, heads · D] -> [B, heads, T, D]."""
    return x.reshape(*x.shape[:2], heads, x.shape[-1] // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[B, heads, T, D] -> [B, T, heads · D]."""
    return x.transpose(1, 2).flatten(2)
