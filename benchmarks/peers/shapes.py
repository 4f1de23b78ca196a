"""Tensors of the peers that `gguf_files.py` writes: names as llama.cpp knows them, NumPy shapes.

Each has edge-135m's width and vocabulary and as many layers as make its number of parameters
(130.8M) to 3 %.
"""

from __future__ import annotations

from collections.abc import Iterator

VOCAB, D = 32_000, 768
LLAMA = {"layers": 12, "ffn": 2816, "heads": 12}
RWKV7 = {"layers": 11, "ffn": 3072, "head": 64, "decay": 64, "iclr": 64, "value": 32, "gate": 128}
MAMBA2 = {"layers": 28, "inner": 1536, "state": 128, "head": 64, "kernel": 4, "groups": 1}

Shape = tuple[str, tuple[int, ...]]


def llama() -> Iterator[Shape]:
    """Names and NumPy shapes of a Llama with a tied head."""
    yield "token_embd.weight", (VOCAB, D)
    yield "output_norm.weight", (D,)
    for i in range(LLAMA["layers"]):
        for part in ("attn_norm", "ffn_norm"):
            yield f"blk.{i}.{part}.weight", (D,)
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield f"blk.{i}.{part}.weight", (D, D)
        for part in ("ffn_gate", "ffn_up"):
            yield f"blk.{i}.{part}.weight", (LLAMA["ffn"], D)
        yield f"blk.{i}.ffn_down.weight", (D, LLAMA["ffn"])


def rwkv7() -> Iterator[Shape]:
    """Names and NumPy shapes of an RWKV-7; it has a head of its own."""
    for part in ("token_embd", "output"):
        yield f"{part}.weight", (VOCAB, D)
    for part in ("token_embd_norm", "output_norm"):
        yield f"{part}.weight", (D,)
        yield f"{part}.bias", (D,)
    for i in range(RWKV7["layers"]):
        for part in ("attn_norm", "attn_norm_2", "time_mix_ln"):
            yield f"blk.{i}.{part}.weight", (D,)
            yield f"blk.{i}.{part}.bias", (D,)
        value = RWKV7["value"] if i else RWKV7["iclr"]
        for part, rank in (("w", "decay"), ("a", "iclr"), ("v", "value"), ("g", "gate")):
            width = value if rank == "value" else RWKV7[rank]
            if part != "g":
                yield f"blk.{i}.time_mix_{part}0.weight", (D,)
            yield f"blk.{i}.time_mix_{part}1.weight", (width, D)
            yield f"blk.{i}.time_mix_{part}2.weight", (D, width)
        yield f"blk.{i}.time_mix_lerp_fused.weight", (6, 1, 1, D)
        for part in ("k_k", "k_a", "r_k"):
            yield f"blk.{i}.time_mix_{part}.weight", (D,)
        for part in ("key", "value", "receptance", "output"):
            yield f"blk.{i}.time_mix_{part}.weight", (D, D)
        yield f"blk.{i}.channel_mix_lerp_k.weight", (1, 1, D)
        yield f"blk.{i}.channel_mix_key.weight", (RWKV7["ffn"], D)
        yield f"blk.{i}.channel_mix_value.weight", (D, RWKV7["ffn"])


def mamba2() -> Iterator[Shape]:
    """Names and NumPy shapes of a Mamba-2 with a tied head."""
    inner, heads = MAMBA2["inner"], MAMBA2["inner"] // MAMBA2["head"]
    convolved = inner + 2 * MAMBA2["groups"] * MAMBA2["state"]
    yield "token_embd.weight", (VOCAB, D)
    yield "output_norm.weight", (D,)
    for i in range(MAMBA2["layers"]):
        yield f"blk.{i}.attn_norm.weight", (D,)
        yield f"blk.{i}.ssm_in.weight", (inner + convolved + heads, D)
        yield f"blk.{i}.ssm_conv1d.weight", (convolved, MAMBA2["kernel"])
        yield f"blk.{i}.ssm_conv1d.bias", (convolved,)
        yield f"blk.{i}.ssm_dt.bias", (heads,)
        yield f"blk.{i}.ssm_a", (heads, 1)
        yield f"blk.{i}.ssm_d", (heads, 1)
        yield f"blk.{i}.ssm_norm.weight", (MAMBA2["groups"], inner // MAMBA2["groups"])
        yield f"blk.{i}.ssm_out.weight", (D, inner)
