"""The commands that make and check bundles: export, quantize, verify, build."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from retnet_edge.errors import CheckFailed

if TYPE_CHECKING:
    from retnet_edge.runtime.report import Verdict

_PATH = click.Path(path_type=Path)
_BACKEND = click.Choice(["onnxruntime", "executorch"])
_TO = "onnx, executorch, or both with a comma between."


def _say(text: str) -> None:
    click.echo(text, err=True)


def _verification(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that verify and build share."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON."),
        click.option("--threads", type=click.IntRange(min=1), help="Computing threads."),
        click.option(
            "--baseline/--no-baseline",
            default=True,
            show_default=True,
            help="Show a Transformer's memory beside.",
        ),
        click.option(
            "--memory-steps", type=click.IntRange(min=100), default=40_000, show_default=True
        ),
        click.option("--context", type=click.IntRange(min=2), default=2048, show_default=True),
        click.option("--tokens", type=click.IntRange(min=2), default=24_576, show_default=True),
        click.option("--text", type=_PATH, required=True, help="Held-out text to replay."),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("checkpoint", type=_PATH)
@click.argument("out", type=_PATH)
@click.option("--to", default="onnx", show_default=True, help=_TO)
@click.option(
    "--flavour",
    type=click.Choice(["ort", "portable"]),
    default="ort",
    show_default=True,
    help="Operators of the ONNX graphs: ONNX Runtime's fused ones, or those of ONNX 18 alone.",
)
def export(checkpoint: Path, out: Path, to: str, flavour: Literal["ort", "portable"]) -> None:
    """Lower CHECKPOINT to an fp32 bundle at OUT."""
    from retnet_edge.export.export import export as run

    run(checkpoint, out, to=to.split(","), flavour=flavour, say=_say)
    click.echo(f"wrote {out}")


@click.command()
@click.argument("bundle", type=_PATH)
@click.argument("out", type=_PATH)
@click.option("--recipe", default="int8", show_default=True, help="int8, int8-dynamic, int4 …")
@click.option("--checkpoint", type=_PATH, help="What BUNDLE was made from; ExecuTorch needs it.")
def quantize(bundle: Path, out: Path, recipe: str, checkpoint: Path | None) -> None:
    """Apply a recipe to the fp32 BUNDLE, into a new bundle at OUT."""
    from retnet_edge.quantize.quantize import quantize as run

    run(bundle, out, recipe=recipe, checkpoint=checkpoint, say=_say)
    click.echo(f"wrote {out}")


@click.command()
@click.argument("bundle", type=_PATH)
@click.option("--checkpoint", type=_PATH, required=True, help="What the bundle was made from.")
@click.option("--backend", type=_BACKEND, help="Of those that BUNDLE has  [default: the first].")
@_verification
def verify(bundle: Path, as_json: bool, **options: Any) -> None:
    """Compare BUNDLE with its checkpoint in float64, measure its memory; status 1 if it fails."""
    from retnet_edge.verify import verify as run

    _conclude(bundle, run(bundle, say=_say, **options), as_json)


@click.command()
@click.argument("checkpoint", type=_PATH)
@click.argument("out", type=_PATH)
@click.option("--recipe", default="int8", show_default=True, help="int8, int8-dynamic, … or fp32.")
@click.option("--to", default="onnx", show_default=True, help=_TO)
@_verification
def build(checkpoint: Path, out: Path, as_json: bool, to: str, **options: Any) -> None:
    """Export CHECKPOINT, quantize it, verify it: a bundle at OUT; status 1 if a figure fails."""
    from retnet_edge.build import build as run

    _conclude(out, run(checkpoint, out, to=to.split(","), say=_say, **options), as_json)


def _conclude(path: Path, verdict: Verdict, as_json: bool) -> None:
    from retnet_edge.runtime.report import print_report
    from retnet_edge.runtime.verify import to_json

    if as_json:
        sys.stdout.write(to_json(verdict).decode())
    else:
        print_report(path.name, verdict)
    if verdict.reasons:
        raise CheckFailed(f"{path} is unverified: {'; '.join(verdict.reasons)}")
