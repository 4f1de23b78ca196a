"""What llama.cpp's Q8_0, Q4_0 and Q4_K cost the Transformer baseline, beside our recipes.

    M=benchmarks.quantization.gguf_types
    .venv/bin/python -m $M reference CHECKPOINT --text TEXT --folder F
    .venv-peers/bin/python -m $M measure F [--out RESULTS.json]

`reference` writes the checkpoint's weights and its float64 log probabilities on held-out text;
`measure` writes GGUF files of the weights, runs them in llama.cpp and prints ratio of perplexities,
mean KL and top-1 agreement. F32 shows that file and runtime compute the model. In Q4_0 the
embedding and head, one matrix, are Q8_0, as our 4-bit recipes have them; Q4_K_S and Q4_K_M are the
mixtures that llama.cpp's own quantizer makes of the F32 file.
"""

from __future__ import annotations

import argparse
import ctypes
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
SPAN = 512


def reference(args: argparse.Namespace) -> None:
    """Tokens [B, T], log probabilities [B, T - 1, vocab] and weights, as NumPy files."""
    import msgspec
    import torch

    from retnet_edge.data.contexts import text_contexts
    from retnet_edge.model.checkpoint import load_checkpoint
    from retnet_edge.model.transformer import Transformer

    source = load_checkpoint(args.checkpoint)
    assert isinstance(source.model, Transformer)
    tokens = np.stack(text_contexts(source.tokenizer, args.text, args.tokens, args.context))
    args.folder.mkdir(parents=True, exist_ok=True)
    weights = {name: w.float().numpy() for name, w in source.model.state_dict().items()}
    np.savez(args.folder / "weights.npz", **weights)
    np.save(args.folder / "tokens.npy", tokens)
    (args.folder / "config.json").write_bytes(msgspec.json.encode(source.model.config))
    shape = (len(tokens), args.context - 1, source.model.config.vocab_size)
    file = args.folder / "log_odds.npy"
    odds = np.lib.format.open_memmap(file, "w+", dtype=np.float32, shape=shape)
    model = source.model.double().eval()
    with torch.no_grad():
        for row, ids in enumerate(tokens):
            logits, _ = model(torch.from_numpy(ids[None, :-1]))
            odds[row] = logits[0].log_softmax(-1).numpy()
    odds.flush()


def write_gguf(path: Path, config: dict[str, Any], weights: Any, matrices: str) -> int:
    """A file of the weights, matrices as `matrices` says; bytes of its matrices."""
    import gguf

    kinds = gguf.GGMLQuantizationType
    heads, width = config["heads"], config["d_model"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(1 << 16)
    writer.add_embedding_length(width)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    writer.add_layer_norm_rms_eps(config["norm_eps"])
    writer.add_block_count(config["layers"])
    writer.add_feed_forward_length(config["ffn_dim"])
    writer.add_head_count(heads)
    writer.add_rope_dimension_count(config["key_head_dim"])
    thetas = config["thetas"]
    writer.add_rope_freq_base(float(thetas[1] ** (-config["key_head_dim"] / 2)))
    size = 0

    def add(name: str, values: Array) -> None:
        nonlocal size
        if values.ndim == 1:
            writer.add_tensor(name, values)
            return
        kind = kinds[matrices]
        if name == "token_embd.weight" and matrices == "Q4_0":
            kind = kinds.Q8_0
        stored = values if kind == kinds.F32 else gguf.quants.quantize(values, kind)
        size += stored.nbytes
        writer.add_tensor(name, stored, raw_dtype=kind)

    def pairs_together(w: Array) -> Array:
        """Channels i and i + K/2 of a head as neighbours, where llama.cpp rotates them."""
        halves = w.reshape(heads, 2, -1, w.shape[-1])
        return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(w.shape))

    add("token_embd.weight", weights["embedding.weight"])
    add("output_norm.weight", weights["final_norm.weight"])
    for i in range(config["layers"]):
        of, to = f"blocks.{i}", f"blk.{i}"
        q, k, v = np.split(weights[f"{of}.attention.qkv.weight"], 3)
        gate, up = np.split(weights[f"{of}.ffn.inner.weight"], 2)
        for name, w in {
            "attn_norm": weights[f"{of}.attention_norm.weight"],
            "ffn_norm": weights[f"{of}.ffn_norm.weight"],
            "attn_q": pairs_together(q),
            "attn_k": pairs_together(k),
            "attn_v": np.ascontiguousarray(v),
            "attn_output": weights[f"{of}.attention.out.weight"],
            "ffn_gate": np.ascontiguousarray(gate),
            "ffn_up": np.ascontiguousarray(up),
            "ffn_down": weights[f"{of}.ffn.out.weight"],
        }.items():
            add(f"{to}.{name}.weight", w)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return size


def llama_quantized(source: Path, path: Path, kind: str) -> int:
    """The F32 file in one of llama.cpp's own mixtures; bytes of its matrices."""
    import gguf
    import llama_cpp

    how = llama_cpp.llama_model_quantize_default_params()
    how.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    if llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), how):
        raise RuntimeError(f"llama.cpp does not make {kind} of {source}")
    matrices = [t for t in gguf.GGUFReader(path).tensors if len(t.shape) == 2]
    return sum(int(t.n_bytes) for t in matrices)


class Llama:
    """A GGUF file in llama.cpp, with the logits of every token."""

    def __init__(self, path: Path, context: int, vocab: int) -> None:
        """Load. Raises RuntimeError where llama.cpp refuses."""
        import llama_cpp

        self.c, self.vocab = llama_cpp, vocab
        self._quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        how = llama_cpp.llama_context_default_params()
        how.n_ctx, how.n_batch, how.n_ubatch = context, SPAN, SPAN
        self.context = self.model and llama_cpp.llama_init_from_model(self.model, how)
        if not self.context:
            raise RuntimeError(f"llama.cpp does not run {path}")
        self.batch = llama_cpp.llama_batch_init(SPAN, 0, 1)

    def log_odds(self, ids: Array) -> Array:
        """[T] -> [T, vocab] from an empty cache."""
        self.c.llama_memory_clear(self.c.llama_get_memory(self.context), True)
        rows = []
        for start in range(0, len(ids), SPAN):
            part = ids[start : start + SPAN]
            self.batch.n_tokens = len(part)
            for i, token in enumerate(part):
                self.batch.token[i], self.batch.pos[i] = int(token), start + i
                self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, 0
                self.batch.logits[i] = True
            if self.c.llama_decode(self.context, self.batch):
                raise RuntimeError("llama_decode failed")
            found = self.c.llama_get_logits(self.context)
            logits = np.ctypeslib.as_array(found, (len(part), self.vocab)).astype(np.float64)
            logits -= logits.max(-1, keepdims=True)
            rows.append(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
        return np.concatenate(rows)


def measure(args: argparse.Namespace) -> None:
    """Every kind of file beside the reference."""
    config = json.loads((args.folder / "config.json").read_bytes())
    weights = np.load(args.folder / "weights.npz")
    tokens = np.load(args.folder / "tokens.npy")
    reference = np.load(args.folder / "log_odds.npy", mmap_mode="r")
    elements = sum(w.size for n, w in weights.items() if w.ndim == 2 and n != "head.weight")
    rows = []
    for kind in ("F32", "Q8_0", "Q4_0", "Q4_K_S", "Q4_K_M"):
        path = args.folder / f"{kind}.gguf"
        if kind.startswith("Q4_K"):
            size = llama_quantized(args.folder / "F32.gguf", path, kind)
        else:
            size = write_gguf(path, config, weights, kind)
        llama = Llama(path, tokens.shape[1], config["vocab_size"])
        surprise = kl = agrees = 0.0
        for ids, p in zip(tokens, reference, strict=True):
            p = p.astype(np.float64)
            q = llama.log_odds(ids[:-1])
            at = np.arange(len(p))
            surprise += float((p[at, ids[1:]] - q[at, ids[1:]]).sum())
            kl += float((np.exp(p) * (p - q)).sum())
            agrees += float((p.argmax(-1) == q.argmax(-1)).sum())
        count = reference.shape[0] * reference.shape[1]
        rows.append(
            {
                "matrices": kind,
                "bits a weight": 8 * size / elements,
                "tokens": count,
                "perplexity_ratio": float(np.exp(surprise / count)),
                "mean_kl": kl / count,
                "top1": agrees / count,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    if args.out:
        args.out.write_text(json.dumps(rows, indent=2) + "\n")


def main() -> None:
    """Run one half."""
    parser = argparse.ArgumentParser(description=__doc__)
    halves = parser.add_subparsers(required=True)
    first = halves.add_parser("reference")
    first.add_argument("checkpoint", type=Path)
    first.add_argument("--text", type=Path, required=True)
    first.add_argument("--folder", type=Path, required=True)
    first.add_argument("--tokens", type=int, default=24_576)
    first.add_argument("--context", type=int, default=2048)
    first.set_defaults(run=reference)
    second = halves.add_parser("measure")
    second.add_argument("folder", type=Path)
    second.add_argument("--out", type=Path)
    second.set_defaults(run=measure)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
