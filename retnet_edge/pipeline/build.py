"""`retnet-edge build`: checkpoint -> export -> quantize -> verify -> report, in one go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from retnet_edge.atomic import check_target, publish, remove_folder, work_folder
from retnet_edge.config import RetNetConfig
from retnet_edge.data.contexts import text_contexts
from retnet_edge.errors import InputError
from retnet_edge.export.export import BACKENDS, check_backends, export
from retnet_edge.model.checkpoint import load_checkpoint
from retnet_edge.pipeline.verify import verify
from retnet_edge.quantize.quantize import check_recipes, quantize
from retnet_edge.quantize.recipes.schemes import StateScheme
from retnet_edge.quantize.recipes.toml_file import recipes_for
from retnet_edge.runtime.packed.pack import pack as write_packed
from retnet_edge.runtime.report.verdict import Verdict
from retnet_edge.runtime.session.threads import check_threads

FP32 = "fp32"


def build(
    checkpoint: str | Path,
    out: str | Path,
    *,
    text: str | Path,
    recipe: str = "int8",
    to: Sequence[str] = ("onnx",),
    calibration: str | Path | None = None,
    state: StateScheme = "float32",
    native: bool = False,
    pack: str | Path | None = None,
    text_field: str = "text",
    tokens: int = 24_576,
    context: int = 2048,
    memory_steps: int | None = None,
    baseline: bool = True,
    threads: int | None = None,
    say: Callable[[str], None] = print,
) -> Verdict:
    """Make the bundle `out` from a checkpoint with `recipe` ("fp32": none) and verify it on `text`.

    `to`: keys of `export.BACKENDS`; each is verified. calibration, state, native: see `quantize`.
    pack: where to write the packed file, which needs `native`.
    text_field: where the texts of both stand, if they are tables.

    What is made lies in a hidden folder beside `out` until it is verified, the fp32 bundle too. It
    becomes `out` as well when a figure is out of tolerance, and its manifest says unverified; when
    verification is interrupted, killed or cannot be done, nothing is at `out`. Raises
    InputError for bad input, before any work is done where that can be.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    check_threads(threads)
    check_backends(to)
    if recipe == FP32 and state != "float32":
        raise InputError(f"--state {state} needs a recipe; fp32 leaves everything as it is")
    if recipe == FP32 and native:
        raise InputError("--native needs a recipe of 4 or 8 bits; fp32 has neither")
    if pack is not None:
        if not native:
            raise InputError("--pack needs --native: a packed file holds a native plan")
        check_target(Path(pack), "file")
    if recipe != FP32:
        recipes = recipes_for(recipe, [BACKENDS[name] for name in to], state)
        check_recipes(recipes, calibration, native=native)
    check_target(out)
    source = load_checkpoint(checkpoint)
    if not isinstance(source.config, RetNetConfig):
        raise InputError(f"{checkpoint}: build verifies what it makes, which needs a RetNet")
    text_contexts(source.tokenizer, Path(text), tokens, context, text_field, end=source.special.end)
    with work_folder(out) as folder:
        made = folder / out.name  # the name that reports give it
        if recipe == FP32:
            export(checkpoint, made, to=to, say=say)
        else:
            exported = export(checkpoint, folder / "fp32.edge", to=to, say=say)
            quantize(
                exported,
                made,
                recipe=recipe,
                checkpoint=checkpoint,
                calibration=calibration,
                state=state,
                native=native,
                text_field=text_field,
                say=say,
            )
            remove_folder(exported)
        verdict = verify(
            made,
            checkpoint=checkpoint,
            text=text,
            text_field=text_field,
            tokens=tokens,
            context=context,
            memory_steps=memory_steps,
            baseline=baseline,
            threads=threads,
            say=say,
        )
        publish(made, out)
    if pack is not None:
        write_packed(out, pack, say=say)
    return verdict
