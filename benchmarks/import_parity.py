"""What the original projects compute on small random checkpoints: tests/data/import.

Run once for each project, in an environment that holds that project (not in ours). Every case is a
folder as its project writes it, with random weights, and expected.npz: tokens [1, T], and logits
[1, T, V] of each of the project's own forms.

    P=benchmarks/import_parity.py
    # torchscale 0.3.0 with fairscale 0.4.0 (pip install --no-deps), torch 2.13.0
    python $P torchscale-0.3.0
    # torchscale at its newest commit, 4d1e0e8, from a checkout
    PYTHONPATH=torchscale-checkout python $P torchscale-head
    # syncdoth/RetNet at 2634bbf, from a checkout, with transformers 4.38.2
    PYTHONPATH=RetNet-checkout python $P syncdoth
    # flash-linear-attention 0.6.0 with transformers 5.23.0 and triton 3.9.0: its own Triton
    # kernels, in Triton's interpreter where there is no GPU (--device cuda compiles them)
    python $P fla
"""

from __future__ import annotations

import argparse
import builtins
import json
import math
import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

OUT = Path("tests/data/import")
TOKENS = 83
"""More than fla's chunk of 64, and a multiple of nothing."""
VOCAB = 97
D, LAYERS, HEADS, VALUES, INNER = 48, 2, 3, 96, 40

Logits = dict[str, Tensor]
Case = tuple[dict[str, Any], nn.Module, Callable[[Tensor], Logits]]


def randomize(model: nn.Module, seed: int) -> None:
    """Weights that make every part count: matrices keep the size of what they see, norms vary."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5, generator=generator)
            else:
                width = 1 if "embed" in name else parameter.shape[-1]
                parameter.normal_(std=1.0 / math.sqrt(width), generator=generator)


def without_timm() -> None:
    """Let timm be imported without being there: drop path, all that is used of it, is off."""

    def drop_path(*_: Any) -> Any:
        raise AssertionError("drop_path_rate is 0")

    for name in ("timm", "timm.models", "timm.models.layers"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["timm.models.layers"].drop_path = drop_path  # type: ignore[attr-defined]


def torchscale_model(seed: int, **options: Any) -> Case:
    """A RetNetDecoder, run in its parallel and in its recurrent form."""
    without_timm()
    from torchscale.architecture.config import RetNetConfig
    from torchscale.architecture.retnet import RetNetDecoder

    fields = {
        "decoder_embed_dim": D,
        "decoder_value_embed_dim": VALUES,
        "decoder_retention_heads": HEADS,
        "decoder_ffn_embed_dim": INNER,
        "decoder_layers": LAYERS,
        "vocab_size": VOCAB,
        **options,
    }
    model = RetNetDecoder(RetNetConfig(**fields), nn.Embedding(VOCAB, D)).double().eval()
    randomize(model, seed)

    def run(tokens: Tensor) -> Logits:
        state: dict[Any, Any] = {"is_first_step": False}
        steps = [
            model(tokens[:, : n + 1], incremental_state=state)[0] for n in range(tokens.shape[1])
        ]
        return {"parallel": model(tokens)[0], "recurrent": torch.cat(steps, dim=1)}

    return fields, model, run


def syncdoth_model(seed: int, **options: Any) -> Case:
    """A RetNetForCausalLM, run in its parallel and in its recurrent form."""
    import transformers.modeling_utils  # noqa: F401 - looks for timm by itself

    without_timm()
    from retnet.configuration_retnet import RetNetConfig
    from retnet.modeling_retnet import RetNetForCausalLM

    fields = {
        "decoder_embed_dim": D,
        "decoder_value_embed_dim": VALUES,
        "decoder_retention_heads": HEADS,
        "decoder_ffn_embed_dim": INNER,
        "decoder_layers": LAYERS,
        "vocab_size": VOCAB,
        **options,
    }
    model = RetNetForCausalLM(RetNetConfig(**fields)).double().eval()
    randomize(model, seed)

    def run(tokens: Tensor) -> Logits:
        past, steps = None, []
        for n in range(tokens.shape[1]):
            out = model(
                tokens[:, : n + 1],
                forward_impl="recurrent",
                past_key_values=past,
                use_cache=True,
                return_dict=True,
            )
            past = out.past_key_values
            steps.append(out.logits[:, -1:])
        parallel = model(tokens, forward_impl="parallel", return_dict=True).logits
        return {"parallel": parallel, "recurrent": torch.cat(steps, dim=1)}

    return fields, model, run


def fla_model(seed: int, device: str, **options: Any) -> Case:
    """A RetNetForCausalLM, run by its chunk kernels and, 64 tokens long, by its recurrent one."""
    if device == "cpu":
        interpret_triton()
    from fla.models import RetNetConfig, RetNetForCausalLM

    config = RetNetConfig(
        hidden_size=D,
        num_hidden_layers=LAYERS,
        num_heads=HEADS,
        vocab_size=VOCAB,
        fuse_cross_entropy=False,
        **options,
    )
    model = RetNetForCausalLM(config).eval().to(device)
    randomize(model, seed)

    def run(tokens: Tensor) -> Logits:
        tokens = tokens.to(device)
        return {
            "chunk": model(tokens, use_cache=False).logits,
            "recurrent": model(tokens[:, :64], use_cache=False).logits,
        }

    return config.to_dict(), model, run


def interpret_triton() -> None:
    """Let Triton's interpreter run fla's kernels: no timing to choose a configuration by, and loop
    counters that are tensors, as the compiler makes them."""
    os.environ["TRITON_INTERPRET"] = "1"
    from triton.runtime import interpreter
    from triton.runtime.autotuner import Autotuner

    def first_configuration(self: Any, *args: Any, **kwargs: Any) -> Any:
        chosen = self.prune_configs(kwargs)[0].all_kwargs()
        return self.fn.run(*args, **{**kwargs, **chosen})

    def counters(*bounds: Any) -> Iterator[Any]:
        whole = (int(b.handle.data.item()) if hasattr(b, "handle") else int(b) for b in bounds)
        for i in builtins.range(*whole):
            yield interpreter._implicit_cvt(i)

    Autotuner.run = first_configuration
    from fla.ops.common import chunk_h, chunk_o

    chunk_h.range = chunk_o.range = counters


def write_case(name: str, case: Case, *, ending: str, prefix: str = "") -> None:
    """Write the folder: config.json, weights in the ending's format, expected.npz."""
    fields, model, run = case
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    tokens = torch.randint(0, VOCAB, (1, TOKENS), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        logits = run(tokens)
    (folder / "config.json").write_text(json.dumps(fields, indent=2, default=str) + "\n")
    weights = {
        f"{prefix}{key}": value.detach().float().cpu().contiguous().clone()
        for key, value in model.state_dict().items()
    }
    if ending == "pt":
        torch.save({"model": weights}, folder / "checkpoint.pt")
    elif ending == "bin":
        torch.save(weights, folder / "pytorch_model.bin")
    elif ending == "shards":
        write_shards(folder, weights)
    else:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    expected: dict[str, Any] = {form: value.float().cpu().numpy() for form, value in logits.items()}
    np.savez_compressed(folder / "expected.npz", tokens=tokens.numpy(), **expected)
    for form, value in expected.items():
        first = next(iter(expected.values()))[:, : value.shape[1]]
        print(
            f"{name:26} {form:10} logits {value.shape}, std {value.std():.3f}, "
            f"from the first form {np.abs(value - first).max():.2e}"
        )


def write_shards(folder: Path, weights: dict[str, Tensor]) -> None:
    """Two safetensors files and their index, as transformers writes large models."""
    names = sorted(weights)
    where = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, folder / file)
        where.update(dict.fromkeys(part, file))
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def main() -> None:
    """Write the cases of one project."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "project", choices=["torchscale-0.3.0", "torchscale-head", "syncdoth", "fla"]
    )
    parser.add_argument("--device", default="cpu", help="for fla: cpu interprets its kernels")
    args = parser.parse_args()
    if args.project == "torchscale-0.3.0":
        case = torchscale_model(1, activation_fn="swish")
        write_case("torchscale-0.3.0", case, ending="pt", prefix="decoder.")
    elif args.project == "torchscale-head":
        case = torchscale_model(
            2,
            activation_fn="gelu",
            share_decoder_input_output_embed=True,
            no_scale_embedding=False,
            layernorm_embedding=True,
            layernorm_eps=1e-3,
        )
        write_case("torchscale-head-tied", case, ending="safetensors")
    elif args.project == "syncdoth":
        lm_decay = {"use_lm_decay": True, "activation_fn": "swish"}
        scaled = {"no_scale_embedding": False, "layernorm_embedding": True}
        write_case("syncdoth-lm-decay", syncdoth_model(3, **lm_decay), ending="bin")
        write_case("syncdoth-scaled", syncdoth_model(4, **scaled), ending="shards")
    else:
        own = {"intermediate_size": INNER}
        write_case("fla", fla_model(6, args.device, **own), ending="safetensors")
        shared = {"num_kv_heads": 1, "fuse_norm": False, "fuse_swiglu": False, "norm_eps": 1e-3}
        write_case("fla-shared", fla_model(7, args.device, **own, **shared), ending="shards")


if __name__ == "__main__":
    main()
