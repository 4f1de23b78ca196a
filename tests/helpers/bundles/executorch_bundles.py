"""A micro checkpoint's bundles for ExecuTorch, each made once in a run of the tests.

Files of tests take the fixtures by assignment, `both = executorch_bundles.both`: an imported name
would be hidden by their own parameters.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from made_once import made_once
from micro_checkpoint import exported_once

from retnet_edge.export.export import export
from retnet_edge.quantize.quantize import quantize


def checkpoint_once(folder: Path) -> Path:
    return exported_once(folder, "base").checkpoint


def both_once(folder: Path) -> Path:
    def make(place: Path) -> None:
        export(
            checkpoint_once(folder), place / "both.edge", to=("onnx", "executorch"),
            say=lambda _: None,
        )  # fmt: skip

    return made_once(folder, "executorch-both", make) / "both.edge"


def int8_once(folder: Path) -> Path:
    def make(place: Path) -> None:
        quantize(
            both_once(folder), place / "int8.edge", recipe="int8",
            checkpoint=checkpoint_once(folder), say=lambda _: None,
        )  # fmt: skip

    return made_once(folder, "executorch-int8", make) / "int8.edge"


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
