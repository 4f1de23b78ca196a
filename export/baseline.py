"""The Transformer of a RetNet's size as a bundle, to show a key-value cache growing beside it."""

from __future__ import annotations

from pathlib import Path

import torch

from retnet_edge.atomic import new_folder
from retnet_edge.config import RetNetConfig, transformer_like
from retnet_edge.errors import InputError
from retnet_edge.export.export import export
from retnet_edge.model.checkpoint import Checkpoint, build_model, write_checkpoint


def export_baseline(checkpoint: Checkpoint, folder: Path) -> Path:
    """Export the same-size Transformer into `folder` (existing) and return its bundle.

    Its weights are random: what a step allocates does not depend on them. Raises InputError for a
    checkpoint that is not a RetNet, and where the disk is full.
    """
    if not isinstance(checkpoint.config, RetNetConfig):
        raise InputError(f"{checkpoint.path}: the baseline is derived from a RetNet checkpoint")
    torch.manual_seed(0)
    source = folder / "baseline"
    model = build_model(transformer_like(checkpoint.config))
    with new_folder(source) as written:
        write_checkpoint(written, model, checkpoint.tokenizer, special=checkpoint.special)
    return export(source, folder / "baseline.edge", say=lambda text: None)
