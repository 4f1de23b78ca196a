"""GGUF files of the peers' shapes with random weights, which take as long as trained ones.

    .venv-peers/bin/python -m benchmarks.peers.gguf_files FOLDER

Matrices, the embedding included, are in the named type; `llama-q4_0` keeps the
embedding, which is its head too, at Q8_0 as our 4-bit recipes do. Vectors are float32.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np

from benchmarks.peers.shapes import LLAMA, MAMBA2, RWKV7, VOCAB, D, llama, mamba2, rwkv7

Q8, Q4 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_0


def describe(writer: gguf.GGUFWriter, arch: str) -> None:
    """The keys that llama.cpp asks for."""
    writer.add_context_length(1 << 20)
    writer.add_embedding_length(D)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("none")
    writer.add_layer_norm_rms_eps(1e-5)
    if arch == "llama":
        writer.add_block_count(LLAMA["layers"])
        writer.add_feed_forward_length(LLAMA["ffn"])
        writer.add_head_count(LLAMA["heads"])
        writer.add_rope_dimension_count(D // LLAMA["heads"])
        return
    writer.add_head_count(0)  # unused, but asked for
    if arch == "rwkv7":
        writer.add_block_count(RWKV7["layers"])
        writer.add_feed_forward_length(RWKV7["ffn"])
        writer.add_layer_norm_eps(1e-5)
        writer.add_wkv_head_size(RWKV7["head"])
        writer.add_decay_lora_rank(RWKV7["decay"])
        writer.add_iclr_lora_rank(RWKV7["iclr"])
        writer.add_value_residual_mix_lora_rank(RWKV7["value"])
        writer.add_gate_lora_rank(RWKV7["gate"])
        return
    writer.add_block_count(MAMBA2["layers"])
    writer.add_feed_forward_length(0)
    writer.add_ssm_conv_kernel(MAMBA2["kernel"])
    writer.add_ssm_inner_size(MAMBA2["inner"])
    writer.add_ssm_state_size(MAMBA2["state"])
    writer.add_ssm_time_step_rank(MAMBA2["inner"] // MAMBA2["head"])
    writer.add_ssm_group_count(MAMBA2["groups"])


PEERS = {
    "llama-q8_0": ("llama", llama, Q8),
    "llama-q4_0": ("llama", llama, Q4),
    "rwkv7-q8_0": ("rwkv7", rwkv7, Q8),
    "mamba2-q8_0": ("mamba2", mamba2, Q8),
}


def write(name: str, path: Path) -> int:
    """The file of a peer; its number of parameters."""
    arch, shapes, kind = PEERS[name]
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, arch)
    describe(writer, arch)
    count = 0
    for tensor, shape in shapes():
        count += int(np.prod(shape))
        values = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
        if tensor.endswith(("norm.weight", "ln.weight")):
            values += 1.0
        if tensor.endswith("ssm_a"):
            values = -np.exp(values)
        quantized = len(shape) == 2 and shape[-1] % 32 == 0 and min(shape) >= 32
        if quantized:
            used = Q8 if tensor == "token_embd.weight" else kind
            writer.add_tensor(tensor, gguf.quants.quantize(values, used), raw_dtype=used)
        else:
            writer.add_tensor(tensor, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return count


def main() -> None:
    """Write those that are missing."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name in PEERS:
        path = folder / f"{name}.gguf"
        if not path.exists():
            count = write(name, part := path.with_suffix(".part"))
            part.rename(path)
            print(f"{path}: {count:,} parameters, {path.stat().st_size / 1e6:.1f} MB", flush=True)


if __name__ == "__main__":
    main()
