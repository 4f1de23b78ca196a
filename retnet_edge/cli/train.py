"""The command that trains."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import click
from click.core import ParameterSource

from retnet_edge.cli.say import say
from retnet_edge.errors import InputError

_PATH = click.Path(path_type=Path)


@click.command()
@click.option("--out", type=_PATH, required=True, help="Run directory; a run begun there goes on.")
@click.option(
    "--data",
    type=_PATH,
    required=True,
    multiple=True,
    help="Text, JSON lines or Parquet file, or a folder of `datasets` (repeatable).",
)
@click.option("--valid", type=_PATH, required=True, help="Held-out text, in any of these forms.")
@click.option("--text-field", default="text", show_default=True, help="Column with the text.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes that tokenize; 1: this one, on the tokenizer's own threads.",
)
@click.option("--model", default="edge-15m", show_default=True, help="Preset or config.json.")
@click.option(
    "--arch",
    "architecture",
    type=click.Choice(["retnet", "transformer"]),
    default="retnet",
    show_default=True,
    help="transformer: the baseline of the same size.",
)
@click.option("--tokenizer", type=_PATH, help="tokenizer.json [default: train one on the data].")
@click.option("--vocab-size", type=int, default=8192, show_default=True)
@click.option("--init", type=_PATH, help="Checkpoint to start from: model, tokenizer, weights.")
@click.option("--steps", type=int, required=True)
@click.option("--batch", type=int, default=32, show_default=True, help="Sequences a step.")
@click.option("--seq-len", type=int, default=2048, show_default=True, help="Tokens a sequence.")
@click.option("--lr", type=float, default=1e-3, show_default=True, help="Peak learning rate.")
@click.option(
    "--warmup", type=int, help="Steps of warm-up [default: 375, at most a tenth of --steps]."
)
@click.option("--final-lr-ratio", type=float, default=0.1, show_default=True, help="Of --lr.")
@click.option("--weight-decay", type=float, default=0.1, show_default=True)
@click.option("--clip", type=float, default=2.0, show_default=True, help="Gradient norm.")
@click.option("--dropout", type=float, default=0.0, show_default=True)
@click.option(
    "--int8-aware",
    type=float,
    default=0.0,
    show_default=True,
    help="Weight of what int8 changes in the predictions; above 0 weights stay on the int8 grid.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--form",
    type=click.Choice(["parallel", "chunkwise", "recurrent"]),
    default="chunkwise",
    show_default=True,
)
@click.option(
    "--chunk",
    type=int,
    default=256,
    show_default=True,
    help="Tokens of a chunk in the chunkwise form; no influence on what is learnt.",
)
@click.option(
    "--recompute/--no-recompute",
    default=False,
    help="Compute activations again in the backward pass: less memory, a third more time.",
)
@click.option(
    "--kept-activations",
    type=float,
    default=1.0,
    show_default=True,
    help="Share of activations that compiled blocks keep, the rest being computed again: at 0.9 "
    "about a fifth less memory for 1 to 2 % more time.",
)
@click.option(
    "--separate-documents/--joined-documents",
    default=False,
    help="Reset the state where a document ends.  [default: joined]",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    show_default=True,
    help="auto: bfloat16 on a GPU.",
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1 …")
@click.option(
    "--context-parallel",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes that share each sequence (torchrun starts them; RetNet only).",
)
@click.option("--compile/--no-compile", "compile_model", default=None, help="[default: on a GPU]")
@click.option("--eval-every", type=click.IntRange(min=1), default=500, show_default=True)
@click.option("--save-every", type=click.IntRange(min=1), default=500, show_default=True)
@click.option("--tensorboard/--no-tensorboard", default=True, show_default=True)
@click.pass_context
def train(
    context: click.Context,
    /,
    out: Path,
    data: tuple[Path, ...],
    valid: Path,
    text_field: str,
    workers: int,
    model: str,
    architecture: Literal["retnet", "transformer"],
    tokenizer: Path | None,
    vocab_size: int,
    init: Path | None,
    precision: str,
    device: str,
    context_parallel: int,
    compile_model: bool | None,
    eval_every: int,
    save_every: int,
    tensorboard: bool,
    **options: Any,
) -> None:
    """Train a RetNet, or the Transformer baseline, on text."""
    from retnet_edge.training.train import pick_device, train_options
    from retnet_edge.training.train import train as run

    if init is not None:
        for name in ("model", "architecture", "tokenizer", "vocab_size"):
            if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                option = "--arch" if name == "architecture" else f"--{name.replace('_', '-')}"
                raise InputError(f"{option} is decided by the checkpoint of --init: leave it out")
    device = pick_device(device)
    if precision == "auto":
        precision = "bfloat16" if device.startswith("cuda") else "float32"
    result = run(
        out=out,
        data=data,
        valid=valid,
        text_field=text_field,
        workers=workers,
        options=train_options(precision=precision, **options),
        model=model,
        architecture=architecture,
        vocab_size=vocab_size,
        tokenizer=tokenizer,
        init=init,
        device=device,
        context_parallel=context_parallel,
        compile_model=compile_model,
        eval_every=eval_every,
        save_every=save_every,
        tensorboard=tensorboard,
        say=say,
    )
    if os.environ.get("RANK", "0") != "0":
        return
    click.echo(
        f"{out / 'checkpoint'}: held-out perplexity {result.perplexity:.2f}, "
        f"{result.bits_per_byte:.4f} bits a byte"
    )
