"""`retnet-edge tune`: a quantized bundle learns to predict what its float model predicts.

Codes and scales of the matrices in blocks (`trainable_blocks.py`) are trained for a short while to
lessen

    mean KL(float ‖ quantized)

over text, where a recipe's own rounding costs more than it may. The float model is the checkpoint
that the bundle was made from, so `verify` judges the result as it judges the bundle before. What
kernels round activations to is left out: it is 1/40 of what 4-bit weights change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.func import functional_call

from retnet_edge.atomic import check_target, new_folder, temporary_folder
from retnet_edge.data.dataset import Shards
from retnet_edge.data.shards import write_shards
from retnet_edge.data.sources import check_readable
from retnet_edge.errors import CheckFailed, InputError
from retnet_edge.lowering.onnx_files import check_finite, graph_spec, save_models
from retnet_edge.model.checkpoint import TOKENIZER_FILE, load_checkpoint
from retnet_edge.progress import progress
from retnet_edge.quantize.graphs.block_tensors import read_blocks, write_blocks
from retnet_edge.quantize.native_plan import write_native_plan
from retnet_edge.quantize.numerics.rounding import BlockQuantized
from retnet_edge.quantize.quantize import copy_unchanged
from retnet_edge.quantize.tuning.trainable_blocks import TrainableBlocks
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.manifest import NOT_VERIFIED, GraphSpec, Quantization
from retnet_edge.runtime.bundle.writer import write_manifest
from retnet_edge.tokenizer import load_tokenizer
from retnet_edge.training.schedule import warmup_cosine

TUNED = "-tuned"
WARMUP = 0.05  # of the steps
SCALE_LR_FACTOR = 1 / 8  # a scale moves the largest of 16 codes as far as a code moves itself
BETAS = (0.9, 0.95)


class TuneOptions(msgspec.Struct, frozen=True, kw_only=True):
    """batch, seq_len: sequences of a step, and tokens of a sequence. lr: how far a 4-bit code moves
    in a step at most, in codes; 8-bit codes move 16 times as far.
    """

    steps: int = 600
    batch: int = 16
    seq_len: int = 1024
    lr: float = 0.001
    seed: int = 0


def tune(
    bundle: str | Path,
    out: str | Path,
    *,
    checkpoint: str | Path,
    data: Sequence[str | Path],
    text_field: str = "text",
    options: TuneOptions | None = None,
    device: str = "cpu",
    say: Callable[[str], None] = print,
) -> Path:
    """Tune a bundle of ONNX graphs on text, into a new bundle at `out`; `bundle` is only read.

    checkpoint: what the bundle was made from. data: as for training, not what `verify` replays.
    Raises InputError for a bundle with no matrix in blocks or with programs of ExecuTorch,
    one that was not made from the checkpoint, and text that is too short; CheckFailed where the KL
    is not finite.
    """
    options = TuneOptions() if options is None else options
    source, out = Bundle.open(bundle), Path(out)
    check_target(out)
    paths = [Path(path) for path in data]
    for path in paths:
        check_readable(path, text_field)
    if "executorch" in source.manifest.backends:
        raise InputError(
            f"{bundle}: ExecuTorch programs cannot be tuned; make a bundle without any"
        )
    loaded = load_checkpoint(checkpoint)
    source.check_made_from(loaded.path, loaded.weights_sha256())
    graphs = [graph for graph in source.manifest.graphs if graph.backend == "onnxruntime"]
    models = {graph.file: ir.load(source.file(graph.file)) for graph in graphs}
    for file, model in models.items():
        check_finite(model, str(source.file(file)))
    blocks = read_blocks(next(iter(models.values())))
    if not blocks:
        raise InputError(
            f"{bundle}: no matrix of recipe {source.manifest.quantization.recipe} is in blocks; "
            "int8, int4 and recipes of int8-block and int4-block can be tuned"
        )
    with new_folder(out) as folder:
        with temporary_folder() as shards:
            tokenizer = load_tokenizer(loaded.path / TOKENIZER_FILE)
            end = loaded.special.end
            text = Shards(
                write_shards(paths, tokenizer, shards / "tune", text_field=text_field, end=end)
            )
            tuned = train_blocks(loaded.model.to(device), blocks, text, options, say)
        for model in models.values():
            write_blocks(model, tuned)
        save_models(models, folder)
        copy_unchanged(source, folder)
        specs = [graph_spec(graph.file, graph.kind, models[graph.file]) for graph in graphs]
        if "native" in source.manifest.backends:
            specs += write_native_plan(models, specs, source.manifest.model, folder)
        _write_manifest(source, folder, specs, set(tuned))
    return out


def train_blocks(
    model: nn.Module,
    blocks: dict[str, BlockQuantized],
    text: Shards,
    options: TuneOptions,
    say: Callable[[str], None],
) -> dict[str, BlockQuantized]:
    """The blocks after training beside `model`, whose matrices they stand for, on its device."""
    if next(model.parameters()).is_cuda:
        torch.set_float32_matmul_precision("high")
    model.eval().requires_grad_(requires_grad=False)
    weights = dict(model.named_parameters())
    device = next(iter(weights.values())).device
    matrices = {name: TrainableBlocks(found, weights[name]) for name, found in blocks.items()}
    optimizer = torch.optim.Adam(
        [
            group
            for m in matrices.values()
            for group in (
                {"params": [m.latent], "lr": options.lr * 2.0 ** (m.bits - 4)},
                {"params": [m.log_scale], "lr": options.lr * SCALE_LR_FACTOR},
            )
        ],
        betas=BETAS,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: lr_factor(step, options.steps)
    )
    tenth: list[Tensor] = []
    with progress("tune", options.steps) as advance:
        for step in range(options.steps):
            block = text.batch(options.seed, step, options.batch, options.seq_len)
            tokens = torch.from_numpy(block[:, :-1]).to(device)
            kl = kl_divergence(model, {name: m() for name, m in matrices.items()}, tokens)
            optimizer.zero_grad(set_to_none=True)
            kl.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            advance(1)
            tenth.append(kl.detach())
            if len(tenth) == max(1, options.steps // 10) or step + 1 == options.steps:
                mean = torch.stack(tenth).mean().item()
                tenth = []
                if not math.isfinite(mean):
                    raise CheckFailed(f"the KL is {mean} by step {step + 1}; lower --lr")
                say(f"step {step + 1}/{options.steps}  KL {mean:.3e}")
    return {name: m.blocks() for name, m in matrices.items()}


def kl_divergence(model: nn.Module, weights: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Mean over tokens [B, T] of KL(model ‖ model with `weights` in place of its own), nats."""
    with torch.no_grad():
        p = torch.log_softmax(model(tokens)[0], dim=-1)
    q = torch.log_softmax(functional_call(model, weights, (tokens,))[0], dim=-1)
    return (p.exp() * (p - q)).sum(-1).mean()


def lr_factor(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to 0."""
    return warmup_cosine(1.0, step, steps=steps, warmup=max(1, round(WARMUP * steps)))


def _write_manifest(
    source: Bundle, folder: Path, graphs: Sequence[GraphSpec], tuned: set[str]
) -> None:
    manifest = source.manifest
    done = manifest.quantization
    tensors = [
        msgspec.structs.replace(t, scheme=f"{t.scheme}{TUNED}") if t.weight in tuned else t
        for t in done.tensors
    ]
    write_manifest(
        folder,
        msgspec.structs.replace(
            manifest,
            graphs=tuple(graphs),
            quantization=Quantization(f"{done.recipe}{TUNED}", tuple(tensors)),
            verification=NOT_VERIFIED,
        ),
    )
