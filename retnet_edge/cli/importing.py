"""The command that brings other projects' checkpoints in."""

from __future__ import annotations

from pathlib import Path

import click

from retnet_edge.cli.say import show

_FORMATS = ("auto", "torchscale", "fla", "syncdoth")


@click.command("import")
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "source_format",
    type=click.Choice(_FORMATS),
    default="auto",
    show_default=True,
    help="Whose checkpoint it is.",
)
@click.option(
    "--tokenizer", type=click.Path(path_type=Path), help="tokenizer.json, if it has none."
)
def import_command(source: str, out: Path, source_format: str, tokenizer: Path | None) -> None:
    """Write the RetNet in SOURCE, a folder or a hub id, as a checkpoint at OUT."""
    from retnet_edge.importing.checkpoint import import_checkpoint

    import_checkpoint(source, out, source_format=source_format, tokenizer=tokenizer, say=show)
    show(f"wrote {out}")
