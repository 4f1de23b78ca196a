"""Recipes: which scheme each weight matrix gets. Rules in order, the first that matches wins."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from retnet_edge.errors import InputError
from retnet_edge.runtime.manifest import Tolerance


@dataclass(frozen=True)
class BlockInt8:
    """8-bit weights with a scale for every `block` inputs of an output, int8 compute.

    `MatMulNBits` (accuracy level 4: activations are quantized to int8 in the same blocks inside
    the kernel) and `GatherBlockQuantized` for an embedding; a tied head shares its matrix.
    """

    block: int = 128

    @property
    def name(self) -> str:
        """As the manifest records it."""
        return f"int8-block{self.block}"


@dataclass(frozen=True)
class DynamicInt8:
    """8-bit weights with a scale for every output, activations quantized at run time.

    Standard operators that every ONNX Runtime has: `DynamicQuantizeLinear` and `MatMulInteger`.
    """

    @property
    def name(self) -> str:
        """As the manifest records it."""
        return "int8-dynamic"


@dataclass(frozen=True)
class Float32:
    """Leave the matrix as it is."""

    @property
    def name(self) -> str:
        """As the manifest records it."""
        return "float32"


Scheme = BlockInt8 | DynamicInt8 | Float32


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

    def rule_for(self, weight: str) -> Rule:
        """The first rule whose pattern matches. Raises InputError where none does."""
        for rule in self.rules:
            if fnmatchcase(weight, rule.pattern):
                return rule
        patterns = ", ".join(rule.pattern for rule in self.rules)
        raise InputError(f"recipe {self.name}: no rule matches the weight {weight} ({patterns})")


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "int8",
            (Rule("*", BlockInt8(128)),),
            Tolerance(
                max_abs_logit_error=None, perplexity_ratio=1.001, mean_kl=5e-4, top1_agreement=0.99
            ),
        ),
        Recipe(
            "int8-dynamic",
            (Rule("*", DynamicInt8()),),
            Tolerance(
                max_abs_logit_error=None, perplexity_ratio=1.002, mean_kl=1e-3, top1_agreement=0.985
            ),
        ),
    )
}


def find_recipe(name: str) -> Recipe:
    """A built-in recipe. Raises InputError naming the known ones."""
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}; known: {', '.join(RECIPES)}")
    return RECIPES[name]
