"""The commands that make and check bundles: export, quantize, verify, build."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import click
from click.core import ParameterSource

from retnet_edge.cli.say import say, show
from retnet_edge.errors import CheckFailed, InputError
from retnet_edge.runtime.bundle.manifest import Backend
from retnet_edge.runtime.session.threads import MOST_THREADS

if TYPE_CHECKING:
    from retnet_edge.pipeline.verify import Verdicts
    from retnet_edge.runtime.report.page import ReportEntry
    from retnet_edge.runtime.report.verdict import Verdict

_PATH = click.Path(path_type=Path)
_BACKEND = click.Choice(get_args(Backend))
_CALIBRATION = "Text for recipes that are calibrated; not what is verified on."
_state = click.option(
    "--state",
    type=click.Choice(["float32", "float16", "int8"]),
    default="float32",
    show_default=True,
    help="What states are kept in between calls.",
)
_native = click.option(
    "--native",
    is_flag=True,
    help="Plan the weights of the ONNX graphs for the native backend too.",
)
_text_field = click.option(
    "--text-field",
    default="text",
    show_default=True,
    help="Where the text stands in JSON lines or a table.",
)
_TO = "onnx, executorch, or both with a comma between."


def _verification(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that verify and build share."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON."),
        click.option("--threads", type=click.IntRange(1, MOST_THREADS), help="Computing threads."),
        click.option(
            "--baseline/--no-baseline",
            default=True,
            show_default=True,
            help="Show a Transformer's memory beside.",
        ),
        click.option(
            "--memory-steps",
            type=click.IntRange(min=100),
            help="Steps of the memory run  [default: as many as its interval needs].",
        ),
        click.option("--context", type=click.IntRange(min=2), default=2048, show_default=True),
        click.option("--tokens", type=click.IntRange(min=2), default=24_576, show_default=True),
        _text_field,
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

    run(checkpoint, out, to=to.split(","), flavour=flavour, say=say)
    show(f"wrote {out}")


@click.command()
@click.argument("bundle", type=_PATH)
@click.argument("out", type=_PATH)
@click.option(
    "--recipe",
    default="int8",
    show_default=True,
    help="int8, int8-weight, int8-dynamic, int8-static, int8-static-16, int4, int4-weight, fp16, "
    "bf16, or a .toml file.",
)
@click.option("--checkpoint", type=_PATH, help="What BUNDLE was made from; ExecuTorch needs it.")
@click.option("--calibration", type=_PATH, help=_CALIBRATION)
@_text_field
@_state
@_native
@click.option(
    "--search",
    "found",
    type=_PATH,
    help="Find a mixed recipe within --budget, write it to this .toml file, and apply it.",
)
@click.option("--budget", help="Bits a weight (5.2), or bytes of all matrices (12MB).")
@click.pass_context
def quantize(
    context: click.Context,
    /,
    bundle: Path,
    out: Path,
    found: Path | None,
    budget: str | None,
    **options: Any,
) -> None:
    """Apply a recipe to the fp32 BUNDLE, into a new bundle at OUT."""
    from retnet_edge.quantize.quantize import quantize as run

    if (found is None) != (budget is None):
        raise InputError("--search and --budget go together: give both or neither")
    if found is not None and budget is not None:
        if context.get_parameter_source("recipe") is not ParameterSource.DEFAULT:
            raise InputError("--search finds a recipe: leave --recipe out")
        from retnet_edge.atomic import check_target
        from retnet_edge.quantize.search import search

        check_target(out)
        text = {name: options[name] for name in ("calibration", "text_field")}
        search(bundle, found, budget=budget, say=say, **text)
        options["recipe"] = str(found)
    run(bundle, out, say=say, **options)
    show(f"wrote {out}")


@click.command()
@click.argument("bundles", type=_PATH, nargs=-1, required=True)
@click.option("--checkpoint", type=_PATH, required=True, help="What the bundles were made from.")
@click.option("--backend", type=_BACKEND, help="Only this one  [default: all that they have].")
@click.option("--report", type=_PATH, help="Write the page of all bundles side by side here.")
@click.option("--card", type=_PATH, help="Write a section for a model card, in Markdown, here.")
@_verification
def verify(
    bundles: tuple[Path, ...],
    as_json: bool,
    report: Path | None,
    card: Path | None,
    **options: Any,
) -> None:
    """Compare BUNDLES with their checkpoint in float64, measure memory; status 1 if one fails.

    Every backend of every bundle is a column of one report; each bundle also gets its own.
    """
    from retnet_edge.atomic import check_writable, replace_file
    from retnet_edge.pipeline.verify import verify_all
    from retnet_edge.runtime.report.card import model_card
    from retnet_edge.runtime.report.page import render_report

    for option, path in (("--report", report), ("--card", card)):
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise InputError(f"{option} {path}: name a file in a directory that exists")
        if path is not None:
            check_writable(path.absolute().parent, path)
    found = verify_all(bundles, say=say, **options)
    if report is not None or card is not None:
        entries = _entries(found.bundles)
        if report is not None:
            page = render_report(report.stem, entries, found.between)
            replace_file(report, page.encode())
        if card is not None:
            replace_file(card, model_card(entries).encode())
    if len(bundles) == 1:
        _conclude(bundles[0], found.bundles[str(bundles[0])], as_json)
    else:
        _conclude_all(found, as_json)


@click.command()
@click.argument("checkpoint", type=_PATH)
@click.argument("out", type=_PATH)
@click.option("--recipe", default="int8", show_default=True, help="int8, int8-dynamic, … or fp32.")
@click.option("--to", default="onnx", show_default=True, help=_TO)
@click.option("--calibration", type=_PATH, help=_CALIBRATION)
@_state
@_native
@click.option(
    "--pack", type=_PATH, help="Pack the bundle for the C library into this file (with --native)."
)
@_verification
def build(checkpoint: Path, out: Path, as_json: bool, to: str, **options: Any) -> None:
    """Export CHECKPOINT, quantize it, verify it: a bundle at OUT; status 1 if a figure fails."""
    from retnet_edge.pipeline.build import build as run

    _conclude(out, run(checkpoint, out, to=to.split(","), say=say, **options), as_json)


@click.command()
@click.argument("bundle", type=_PATH)
@click.argument("out", type=_PATH)
@click.option("--licence", type=_PATH, help="A text to go along: the model's licence.")
@click.option("--card", type=_PATH, help="The model card  [default: what verify found].")
@click.option("--chat-template", type=_PATH, help="A chat template to go along.")
def pack(bundle: Path, out: Path, **texts: Path | None) -> None:
    """Write BUNDLE, which has a native plan, as one file OUT for the C library."""
    from retnet_edge.runtime.packed.pack import pack as run

    run(bundle, out, say=say, **texts)
    show(f"wrote {out}, {out.stat().st_size / 1e6:.1f} MB")


def _conclude(path: Path, verdict: Verdict, as_json: bool) -> None:
    from retnet_edge.runtime.report.terminal import print_report
    from retnet_edge.runtime.verify import to_json

    if as_json:
        sys.stdout.write(to_json(verdict).decode())
    else:
        print_report(path.name, _entries({str(path): verdict}))
    if verdict.reasons:
        raise CheckFailed(f"{path} is unverified: {'; '.join(verdict.reasons)}")


def _conclude_all(found: Verdicts, as_json: bool) -> None:
    from retnet_edge.runtime.report.terminal import print_report
    from retnet_edge.runtime.verify import to_json

    if as_json:
        sys.stdout.write(to_json(found).decode())
    else:
        print_report(f"{len(found.bundles)} bundles", _entries(found.bundles), found.between)
    if failed := [name for name, verdict in found.bundles.items() if verdict.reasons]:
        raise CheckFailed(f"unverified: {', '.join(failed)}; {found.bundles[failed[0]].reasons[0]}")


def _entries(verdicts: dict[str, Verdict]) -> list[ReportEntry]:
    from retnet_edge.runtime.bundle.packed import open_bundle
    from retnet_edge.runtime.report.page import labels

    called = labels(list(verdicts))
    return [
        (called[path], open_bundle(path).manifest, verdict) for path, verdict in verdicts.items()
    ]
