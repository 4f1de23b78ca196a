"""Recipes: which scheme each weight matrix gets. Rules in order, the first that matches wins."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec

from retnet_edge.errors import InputError
from retnet_edge.quantize.recipes.schemes import (
    BlockInt,
    ChannelInt8,
    DynamicInt8,
    Float32,
    GroupInt4,
    Half,
    Scheme,
    StateScheme,
    StaticInt8,
    StaticInt8Qdq,
    is_sampled,
)
from retnet_edge.runtime.bundle.manifest import Backend, Manifest, Tolerance


@dataclass(frozen=True)
class Rule:
    """`scheme` for every weight matrix whose name matches `pattern` (shell-style: `*`, `?`)."""

    pattern: str
    scheme: Scheme


@dataclass(frozen=True)
class Recipe:
    """A named list of rules, and the figures that `verify` holds the result to."""

    name: str
    rules: tuple[Rule, ...]
    tolerance: Tolerance
    state: StateScheme = "float32"

    def rule_for(self, weight: str) -> Rule:
        """The first rule whose pattern matches. Raises InputError where none does."""
        for rule in self.rules:
            if fnmatchcase(weight, rule.pattern):
                return rule
        patterns = ", ".join(rule.pattern for rule in self.rules)
        raise InputError(f"recipe {self.name}: no rule matches the weight {weight} ({patterns})")

    @property
    def calibrated(self) -> bool:
        """True where the recipe needs text to calibrate on."""
        return any(isinstance(rule.scheme, GroupInt4 | StaticInt8) for rule in self.rules)

    def gptq_of(self, weight: str) -> bool:
        """True where the weight is rounded by GPTQ."""
        return getattr(self.rule_for(weight).scheme, "gptq", False)

    @property
    def uses_gptq(self) -> bool:
        """True where a rule rounds by GPTQ."""
        return any(getattr(rule.scheme, "gptq", False) for rule in self.rules)

    def sampled(self, weight: str) -> bool:
        """True where the weight's scheme is made from a sample of what it is multiplied with."""
        return is_sampled(self.rule_for(weight).scheme)

    @property
    def uses_samples(self) -> bool:
        """True where a rule's scheme is made from samples."""
        return any(is_sampled(rule.scheme) for rule in self.rules)

    def outlier_threshold_of(self, weight: str) -> float | None:
        """The tail of the scheme that a weight gets, in multiples of its input's rms."""
        scheme = self.rule_for(weight).scheme
        return scheme.tail if isinstance(scheme, BlockInt | DynamicInt8) else None


SCHEMES_OF: dict[Backend, tuple[type[Scheme], ...]] = {
    "onnxruntime": (BlockInt, DynamicInt8, StaticInt8Qdq, Half, Float32),
    "executorch": (ChannelInt8, GroupInt4, StaticInt8, Float32),
}


_OF_STATE = {"float16": (0.0, 1e-4, 0.002), "int8": (0.003, 1.5e-3, 0.015)}
"""What a state adds to the tolerance: perplexity ratio, mean KL, top-1."""


def with_state(recipe: Recipe, state: StateScheme) -> Recipe:
    """The recipe with its states in `state`, by a name and a tolerance that say so.

    float32 leaves what the recipe says. Raises InputError where it says something else.
    """
    if state in ("float32", recipe.state):
        return recipe
    if recipe.state != "float32":
        raise InputError(
            f"recipe {recipe.name} keeps its states in {recipe.state}, not {state} (--state)"
        )
    ratio, kl, top1 = _OF_STATE[state]
    tolerance = msgspec.structs.replace(
        recipe.tolerance,
        perplexity_ratio=recipe.tolerance.perplexity_ratio + ratio,
        mean_kl=recipe.tolerance.mean_kl + kl,
        top1_agreement=recipe.tolerance.top1_agreement - top1,
    )
    return replace(recipe, name=f"{recipe.name}+{state}-state", tolerance=tolerance, state=state)


def check_backend(recipe: Recipe, backend: Backend) -> None:
    """Raises InputError where a rule or the state is something that the backend cannot do."""
    if recipe.state != "float32" and backend != "onnxruntime":
        raise InputError(
            f"recipe {recipe.name}: states in {recipe.state} are for onnxruntime; programs of "
            f"{backend} keep theirs in float32"
        )
    for rule in recipe.rules:
        if not isinstance(rule.scheme, SCHEMES_OF[backend]):
            raise InputError(
                f"recipe {recipe.name}: rule {rule.pattern!r} is {rule.scheme.name}, which is no "
                f"scheme of {backend}"
            )


def check_calibration(recipe: Recipe, calibration: str | Path | None) -> None:
    """Raises InputError where the recipe needs text and none is given."""
    if recipe.calibrated and calibration is None:
        raise InputError(
            f"recipe {recipe.name} is calibrated on text; give a file of it with --calibration"
        )


_OPERATORS_16 = 21
"""The first operator set of ONNX whose QuantizeLinear has 16 bits."""


def check_graphs(recipe: Recipe, manifest: Manifest) -> None:
    """Raises InputError where the graphs of a bundle cannot take the recipe."""
    if recipe.state != "float32" and any(s.growing_axis is not None for s in manifest.states):
        raise InputError(f"recipe {recipe.name}: states that grow stay float32")
    sets = [g.operator_sets.get("ai.onnx", g.operator_sets.get("")) for g in manifest.graphs]
    oldest = min((found for found in sets if found is not None), default=_OPERATORS_16)
    for rule in recipe.rules:
        wide = isinstance(rule.scheme, StaticInt8Qdq) and rule.scheme.activation_bits == 16
        if wide and oldest < _OPERATORS_16:
            raise InputError(
                f"recipe {recipe.name}: rule {rule.pattern!r} has 16-bit activations, which ONNX "
                f"has since operator set {_OPERATORS_16}; the bundle's graphs have {oldest}"
            )
