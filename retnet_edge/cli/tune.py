"""The command that tunes a quantized bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from retnet_edge.cli.say import say, show

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("bundle", type=_PATH)
@click.argument("out", type=_PATH)
@click.option("--checkpoint", type=_PATH, required=True, help="What BUNDLE was made from.")
@click.option(
    "--data",
    type=_PATH,
    required=True,
    multiple=True,
    help="Text as for training, not what is verified on (repeatable).",
)
@click.option("--text-field", default="text", show_default=True, help="Column with the text.")
@click.option("--steps", type=click.IntRange(min=1), default=600, show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--seq-len", type=click.IntRange(min=1), default=1024, show_default=True)
@click.option(
    "--lr",
    type=click.FloatRange(min=0, min_open=True),
    default=0.001,
    show_default=True,
    help="How far a 4-bit code moves in a step at most.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1 …")
def tune(
    bundle: Path,
    out: Path,
    checkpoint: Path,
    data: tuple[Path, ...],
    text_field: str,
    device: str,
    **options: Any,
) -> None:
    """Train codes and scales of the quantized BUNDLE to predict what its checkpoint predicts.

    The new bundle at OUT has the same graphs, and is as large and as fast.
    """
    from retnet_edge.quantize.tuning.tune import TuneOptions
    from retnet_edge.quantize.tuning.tune import tune as run
    from retnet_edge.training.train import pick_device

    run(
        bundle,
        out,
        checkpoint=checkpoint,
        data=data,
        text_field=text_field,
        options=TuneOptions(**options),
        device=pick_device(device),
        say=say,
    )
    show(f"wrote {out}")
