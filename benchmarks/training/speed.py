"""Tokens a second and peak memory of a training step, peers interleaved in one run on one GPU.

    python -m benchmarks.training.speed speed --size 400m --seq 8192 --out results.json
    python -m benchmarks.training.speed retention --out results.json
    python -m benchmarks.training.speed profile --size 400m --seq 8192

Every contender has float32 weights, bfloat16 autocast, the same fused AdamW, the same number of
tokens a step and a vocabulary of 32,000. RetNets have flash-linear-attention's shape; Transformers
as many parameters. `ours` runs once for every chunk length that is asked for.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from retnet_edge.config import RetNetConfig, retnet_config, thetas_rope, transformer_like
from retnet_edge.model.checkpoint import build_model
from retnet_edge.model.retention import retention_chunkwise
from retnet_edge.model.retnet import RetentionMode

VOCAB = 32_000
SHAPES = {"tiny": (128, 2, 1), "400m": (1024, 24, 4), "1.3b": (2048, 24, 8)}
HEAD_DIM = 128  # of the Transformers, the usual one

Step = Callable[[Tensor], Tensor]


def retnet(size: str) -> RetNetConfig:
    """flash-linear-attention's shape: SwiGLU of width 256·⌈⌊4d/3⌋/256⌉, untied head."""
    d, layers, heads = SHAPES[size]
    return retnet_config(
        vocab_size=VOCAB,
        d_model=d,
        layers=layers,
        heads=heads,
        ffn_dim=256 * -(-(4 * d // 3) // 256),
        tie_embeddings=False,
        head_norm_affine=True,
        schedule="eq8",
    )


def ours(size: str, chunk: int, kept: float) -> tuple[nn.Module, Step]:
    """Our RetNet: compiled blocks, chunked cross-entropy; at 0, blocks keep their inputs only.

    Blocks are compiled at the first step of a length, with this share: ask for no two contenders
    with the same chunk, or the second gets the first one's graph.
    """
    model, loss = _own(build_model(retnet(size)), RetentionMode("chunkwise", chunk, kept == 0.0))

    def step(tokens: Tensor) -> Tensor:
        with torch._functorch.config.patch(activation_memory_budget=kept or 1.0):
            return loss(tokens)

    return model, step


def our_transformer(size: str) -> tuple[nn.Module, Step]:
    """Our Transformer baseline with heads of 128, same blocks and loss otherwise."""
    like = transformer_like(retnet(size))
    config = msgspec.structs.replace(
        like,
        heads=like.d_model // HEAD_DIM,
        key_head_dim=HEAD_DIM,
        thetas=thetas_rope(HEAD_DIM),
    )
    return _own(build_model(config), RetentionMode())


def _own(model: Any, mode: RetentionMode) -> tuple[nn.Module, Step]:
    for block in model.blocks:
        block.compile(dynamic=False)
    return model, lambda tokens: model.loss(tokens, mode=mode, compiled=True)


def fla(size: str) -> tuple[nn.Module, Step]:
    """flash-linear-attention's RetNet with its defaults (Triton kernels, fused cross-entropy)."""
    from fla.models import RetNetConfig as FlaConfig
    from fla.models import RetNetForCausalLM

    d, layers, heads = SHAPES[size]
    config = FlaConfig(
        hidden_size=d,
        num_hidden_layers=layers,
        num_heads=heads,
        vocab_size=VOCAB,
        use_cache=False,
    )
    model = RetNetForCausalLM(config)
    return model, lambda tokens: model(input_ids=tokens[:, :-1], labels=tokens[:, :-1]).loss


def llama(size: str) -> tuple[nn.Module, Step]:
    """transformers' Llama of our Transformer's shape, SDPA, compiled."""
    from transformers import LlamaConfig, LlamaForCausalLM

    like = transformer_like(retnet(size))
    heads = like.d_model // HEAD_DIM
    shape: dict[str, Any] = {
        "hidden_size": like.d_model,
        "num_hidden_layers": like.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "intermediate_size": like.ffn_dim,
        "vocab_size": VOCAB,
        "max_position_embeddings": 1 << 17,
        "attn_implementation": "sdpa",
        "use_cache": False,
    }
    model = LlamaForCausalLM(LlamaConfig(**shape))
    for layer in model.model.layers:
        layer.compile(dynamic=False)
    return model, lambda tokens: model(input_ids=tokens[:, :-1], labels=tokens[:, :-1]).loss


class Contender:
    """A model with its optimizer on the GPU."""

    def __init__(self, name: str, made: tuple[nn.Module, Step]) -> None:
        """Move the model and make its optimizer."""
        self.name = name
        before = torch.cuda.memory_allocated()
        self.model, self.loss = made[0].cuda().train(), made[1]
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.own = torch.cuda.memory_allocated() - before
        self.seconds: list[float] = []
        self.peak = 0

    def step(self, tokens: Tensor) -> float:
        """Train on the tokens; seconds."""
        torch.cuda.synchronize()
        began = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16):
            loss = self.loss(tokens)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        return time.perf_counter() - began

    def warm_up(self, tokens: Tensor) -> float:
        """Compile and tune; then measure what memory a step needs, states of AdamW included."""
        resident = torch.cuda.memory_allocated() - self.own
        began = time.perf_counter()
        self.step(tokens)
        self.step(tokens)
        seconds = time.perf_counter() - began
        torch.cuda.reset_peak_memory_stats()
        self.step(tokens)
        self.peak = torch.cuda.max_memory_allocated() - resident
        return seconds


def matmul_rate() -> float:
    """Measured bf16 matmul FLOP/s at 8192³, random data."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        a @ b
    times = []
    for _ in range(10):
        torch.cuda.synchronize()
        began = time.perf_counter()
        a @ b
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return 2 * 8192**3 / statistics.median(times)


def contenders(names: list[str], size: str) -> dict[str, Callable[[], tuple[nn.Module, Step]]]:
    """By name: ours-256 has chunks of 256; ours-512-0.6 keeps 0.6 of the activations too."""
    known: dict[str, Callable[[], tuple[nn.Module, Step]]] = {
        "transformer": lambda: our_transformer(size),
        "fla": lambda: fla(size),
        "llama": lambda: llama(size),
    }
    for name in names:
        if name.startswith("ours-"):
            chunk, *kept = name.split("-")[1:]
            known[name] = lambda chunk=chunk, kept=kept: ours(  # type: ignore[misc]
                size, int(chunk), float(kept[0]) if kept else 1.0
            )
    return {name: known[name] for name in names}


def speed(args: argparse.Namespace) -> list[dict[str, Any]]:
    """For each length: warm every contender up, then a step of each in turn, `--rounds` times."""
    rate = matmul_rate()
    print(f"bf16 matmul {rate / 1e12:.0f} TFLOP/s", flush=True)
    ready = []
    for name, make in contenders(args.contenders.split(","), args.size).items():
        torch.manual_seed(0)
        ready.append(Contender(name, make()))
    return [row for seq in args.seq for row in speed_at(seq, ready, rate, args)]


def speed_at(
    seq: int, ready: list[Contender], rate: float, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Rows of one sequence length."""
    g = torch.Generator().manual_seed(0)
    batch = max(1, args.tokens // seq)
    tokens = torch.randint(VOCAB, (batch, seq + 1), generator=g).cuda()
    made = []
    for one in ready:
        one.seconds = []
        try:
            warm = one.warm_up(tokens)
        except torch.cuda.OutOfMemoryError as error:
            one.optimizer.zero_grad(set_to_none=True)
            print(f"{one.name}: {str(error).splitlines()[0]}", flush=True)
            continue
        print(f"{one.name}: warm-up {warm:.0f} s, peak {one.peak / 2**30:.1f} GiB", flush=True)
        made.append((one, warm))
        gc.collect()
        torch.cuda.empty_cache()
    for _ in range(args.rounds):
        for one, _ in made:
            one.step(tokens)  # the caches are its own again
            one.seconds.append(one.step(tokens))
    rows = []
    for one, warm in made:
        per_second = batch * seq / statistics.median(one.seconds)
        rows.append(
            {
                "size": args.size,
                "tokens a sequence": seq,
                "tokens a step": batch * seq,
                "contender": one.name,
                "parameters": one.parameters,
                "tokens/s": round(per_second),
                "peak GiB": round(one.peak / 2**30, 2),
                "share of matmul rate": round(6 * one.parameters * per_second / rate, 3),
                "warm-up s": round(warm),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def retention(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Forward and backward of retention alone, 16,384 tokens of width 2048 (values 4096)."""
    import torch.nn.functional as F

    heads, K, V = 8, 256, 512
    gammas = torch.tensor(retnet("1.3b").gammas, dtype=torch.float64).log().float().cuda()
    rows = []
    for T in (2048, 8192, 32768):
        B = max(1, 16384 // T)

        def inputs(h: int, k: int, v: int, B: int = B, T: int = T) -> list[Tensor]:
            widths = (k, k, v)
            return [
                torch.randn(B, T, h, w, device="cuda", dtype=torch.bfloat16).requires_grad_()
                for w in widths
            ]

        def mine(q: Tensor, k: Tensor, v: Tensor, chunk: int) -> Tensor:
            state = torch.zeros(q.shape[0], heads, K, V, device="cuda")
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            return retention_chunkwise(q, k, v, gammas, state, chunk)[0].to(v.dtype)

        compiled = torch.compile(mine, dynamic=False)
        calls: dict[str, tuple[list[Tensor], Callable[..., Tensor]]] = {
            f"ours-{c}": (inputs(heads, K, V), lambda q, k, v, c=c, f=compiled: f(q, k, v, c))
            for c in (128, 256, 512)
        }
        if "fla" in args.contenders:
            from fla.ops.retention import chunk_retention

            calls["fla chunk_retention"] = (
                inputs(heads, K, V),
                lambda q, k, v: chunk_retention(q, k, v)[0],
            )
        calls["SDPA, 16 heads of 128"] = (
            inputs(16, 128, 128),
            lambda q, k, v: F.scaled_dot_product_attention(
                q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
            ),
        )
        times: dict[str, list[float]] = {name: [] for name in calls}
        peaks: dict[str, float] = {}
        for turn in range(3 + args.rounds):
            for name, (xs, call) in calls.items():
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                resident = torch.cuda.memory_allocated()
                began = time.perf_counter()
                out = call(*xs)
                out.sum().backward()  # type: ignore[no-untyped-call]
                torch.cuda.synchronize()
                seconds = time.perf_counter() - began
                peaks[name] = (torch.cuda.max_memory_allocated() - resident) / 2**30
                if turn >= 3:
                    times[name].append(seconds)
                del out
                for x in xs:
                    x.grad = None
        for name in calls:
            rows.append(
                {
                    "tokens a sequence": T,
                    "sequences": B,
                    "contender": name,
                    "forward + backward ms": round(1e3 * statistics.median(times[name]), 2),
                    "peak GiB": round(peaks[name], 2),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    return rows


def profile(args: argparse.Namespace) -> list[dict[str, Any]]:
    """What the GPU's time in a step of the first contender is spent on, by kernel."""
    name = args.contenders.split(",")[0]
    one = Contender(name, contenders([name], args.size)[name]())
    seq = args.seq[0]
    tokens = torch.randint(VOCAB, (max(1, args.tokens // seq), seq + 1)).cuda()
    one.warm_up(tokens)
    with torch.profiler.profile() as profiler:
        wall = one.step(tokens)
    found = [e for e in profiler.key_averages() if e.device_type.name == "CUDA"]
    total = sum(e.self_device_time_total for e in found)
    print(f"{name}: wall {1e3 * wall:.1f} ms, kernels {total / 1e3:.1f} ms", flush=True)
    rows = []
    for event in sorted(found, key=lambda e: -e.self_device_time_total)[: args.kernels]:
        share = event.self_device_time_total / total
        rows.append(
            {
                "kernel": event.key[:110],
                "ms": round(event.self_device_time_total / 1e3, 2),
                "calls": event.count,
                "share": round(share, 3),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    """Run the sub-command and write its table as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["speed", "retention", "profile"])
    parser.add_argument("--size", choices=list(SHAPES), default="400m")
    parser.add_argument("--seq", type=int, nargs="+", default=[8192])
    parser.add_argument("--title", default="")
    parser.add_argument("--tokens", type=int, default=16384, help="a step")
    parser.add_argument("--contenders", default="ours-256,fla,transformer,llama")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--kernels", type=int, default=25)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    torch._dynamo.config.cache_size_limit = 64
    work = {"speed": speed, "retention": retention, "profile": profile}[args.what]
    rows = work(args)
    if args.out is not None:
        table = {
            "title": args.title or args.what,
            "command": "python -m benchmarks.training.speed " + " ".join(sys.argv[1:]),
            "device": f"{torch.cuda.get_device_name()}, torch {torch.__version__}",
            "rows": rows,
        }
        args.out.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
