"""Bundles of micro models and their quantized ones, each made once in a run.

Files of tests take the fixtures by assignment, `quantized = micro_quantized.quantized`: an imported
name would be hidden by their own parameters.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from made_once import made_once
from micro_checkpoint import Exported, exported_once
from numpy.typing import NDArray
from onnx import numpy_helper

from retnet_edge.errors import InputError
from retnet_edge.quantize.quantize import quantize
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.writer import write_manifest

VARIANTS = ("base", "untied")  # a tied head, and one of its own
BUILT_IN = ("int8", "int8-dynamic")
EACH = pytest.mark.parametrize(
    ("variant", "recipe"), [(variant, recipe) for variant in VARIANTS for recipe in BUILT_IN]
)
TOKENS = np.random.default_rng(4).integers(0, 384, 48)
KERNEL_BOUND = 1e-4


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    """The fp32 bundles, which no test changes."""
    return {name: exported_once(tmp_path_factory.getbasetemp(), name) for name in VARIANTS}


Quantized = Callable[[str, str], Bundle]


@cache
def quantized_once(folder: Path, variant: str, recipe: str) -> Path:
    """The variant's fp32 bundle below `folder`, quantized."""

    def make(place: Path) -> None:
        source, out = exported_once(folder, variant).bundle, place / "q.edge"
        said: list[str] = []
        assert quantize(source, out, recipe=recipe, say=said.append) == out
        assert said == [f"quantizing {kind} ({recipe})" for kind in ("step", "prefill")]

    return made_once(folder, f"{recipe}-of-{variant}", make) / "q.edge"


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    """(variant, recipe) -> its bundle; no test changes it."""
    folder = tmp_path_factory.getbasetemp()
    return lambda variant, recipe: Bundle.open(quantized_once(folder, variant, recipe))


def arrays(bundle: Path, kind: str) -> dict[str, NDArray[Any]]:
    model = onnx.load(str(bundle / f"{kind}.onnx"))
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def edited(bundle: Path, copy: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    """A copy of a bundle whose graphs were changed, and whose manifest knows it."""
    shutil.copytree(bundle, copy)
    for path in copy.glob("*.onnx"):
        model = onnx.load(str(path), load_external_data=False)
        change(model)
        onnx.save(model, str(path))
    write_manifest(copy, Bundle.open(bundle).manifest)
    return copy


def distance(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """‖found - wanted‖ / ‖wanted‖."""
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def refused(bundle: Path, out: Path, **options: Any) -> str:
    """The sentence that quantize refuses with, having left nothing beside the target."""
    before = sorted(os.listdir(out.parent))
    with pytest.raises(InputError) as caught:
        quantize(bundle, out, say=lambda text: None, **options)
    assert sorted(os.listdir(out.parent)) == before
    return str(caught.value)
