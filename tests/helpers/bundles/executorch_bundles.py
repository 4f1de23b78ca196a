"""A micro checkpoint's bundles for ExecuTorch, each made once in a process.

Files of tests take the fixtures by assignment, `both = executorch_bundles.both`: an imported name
would be hidden by their own parameters.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from micro_checkpoint import write_variant

from retnet_edge.export.export import export
from retnet_edge.quantize.quantize import quantize


@cache
def checkpoint_once(folder: Path) -> Path:
    return write_variant("base", folder / "executorch")


@cache
def both_once(folder: Path) -> Path:
    out = folder / "executorch" / "both.edge"
    return export(checkpoint_once(folder), out, to=("onnx", "executorch"), say=lambda _: None)


@cache
def int8_once(folder: Path) -> Path:
    source, checkpoint = both_once(folder), checkpoint_once(folder)
    out = folder / "executorch" / "int8.edge"
    return quantize(source, out, recipe="int8", checkpoint=checkpoint, say=lambda _: None)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint_once(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One fp32 bundle for both backends."""
    return both_once(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return int8_once(tmp_path_factory.getbasetemp())
