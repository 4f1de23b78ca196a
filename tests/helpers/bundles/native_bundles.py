"""Bundles of micro models for the native backend, each made once in a run.

Files of tests take the fixtures by assignment, `quantized = native_bundles.quantized`: an imported
name would be hidden by their own parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from made_once import made_once
from micro_checkpoint import VOCABULARY, Exported, exported_once

from retnet_edge.quantize.quantize import quantize
from retnet_edge.quantize.recipes.recipe import Recipe, Rule
from retnet_edge.quantize.recipes.schemes import BlockInt, BlockInt4, BlockInt8, Scheme
from retnet_edge.runtime.backends.native.library import native_available
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.manifest import Tolerance

NEEDS_THE_LIBRARY = pytest.mark.skipif(
    not native_available(), reason="the native backend was not built: this needs a C compiler"
)
TOKENS = [int(token) for token in np.random.default_rng(5).integers(0, VOCABULARY, 300)]
LOOSE = Tolerance(None, 2.0, 2.0, 0.0)
Export = Callable[[str], Exported]
Quantized = Callable[..., Bundle]


def silent(text: str) -> None:
    pass


def mixed(name: str, scheme: Scheme) -> Recipe:
    """The scheme everywhere but in the embedding, which is looked up in and so symmetric."""
    rules = (Rule("embedding.weight", BlockInt8(block=64)), Rule("*", scheme))
    return Recipe(name, rules, LOOSE)


SCHEMES: dict[str, BlockInt] = {
    "8 by 32": BlockInt8(block=32),
    "8 by 256": BlockInt8(block=256),
    "8 asymmetric": BlockInt8(block=32, symmetric=False),
    "4 by 32": BlockInt4(block=32),
    "4 by 128": BlockInt4(block=128),
    "4 asymmetric": BlockInt4(block=32, symmetric=False),
}


@cache
def quantized_once(folder: Path, variant: str, recipe: str) -> Bundle:
    """The variant's fp32 bundle below `folder`, quantized for this backend too."""
    chosen = mixed(recipe, SCHEMES[recipe]) if recipe in SCHEMES else recipe

    def make(place: Path) -> None:
        source = exported_once(folder, variant).bundle
        quantize(source, place / "q.edge", recipe=chosen, native=True, say=silent)

    name = f"native-{recipe}-of-{variant}".replace(" ", "-")
    return Bundle.open(made_once(folder, name, make) / "q.edge")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Variant -> its fp32 bundle and checkpoint; no test changes them."""
    return lambda variant: exported_once(tmp_path_factory.getbasetemp(), variant)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    """(variant, recipe) -> its bundle; no test changes it."""
    folder = tmp_path_factory.getbasetemp()
    return lambda variant="base", recipe="int8": quantized_once(folder, variant, recipe)
