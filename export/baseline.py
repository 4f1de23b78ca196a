"""The Transformer of a RetNet's size as a bundle, to show a key-value cache growing beside it."""

from __future__ import annotations

from pathlib import Path

import torch

from retnet_edge.checkpoint import Checkpoint, build_model, write_checkpoint
from retnet_edge.config import RetNetConfig, transformer_like
from retnet_edge.errors import InputError
from retnet_edge.export.export import export


def export_baseline(checkpoint: Checkpoint, folder: Path) -> Path:
    """Export the same-size Transformer into `folder` (existing) and return its bundle.

    Its weights are random: what a step allocates does not depend on them. Raises InputError for a
    checkpoint that is not a RetNet.
    """
    if not isinstance(checkpoint.config, RetNetConfig):
        raise InputError(f"{checkpoint.path}: the baseline is derived from a RetNet checkpoint")
    torch.manual_seed(0)
    source = folder / "baseline"
    source.mkdir()
    model = build_model(transformer_like(checkpoint.config))
    write_checkpoint(source, model, checkpoint.tokenizer)
    return export(source, folder / "baseline.edge", say=lambda text: None)
