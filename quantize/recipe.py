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
    tail: see `tails.py`.
    """

    block: int = 128
    tail: float | None = None

    @property
    def name(self) -> str:
        """As the manifest records it."""
        return f"int8-block{self.block}{_tail_name(self.tail)}"


@dataclass(frozen=True)
class DynamicInt8:
    """8-bit weights with a scale for every output, activations quantized at run time.

    Standard operators that every ONNX Runtime has: `DynamicQuantizeLinear` and `MatMulInteger`.
    tail: see `tails.py`.
    """

    tail: float | None = None

    @property
    def name(self) -> str:
        """As the manifest records it."""
        return f"int8-dynamic{_tail_name(self.tail)}"


@dataclass(frozen=True)
class Float32:
    """Leave the matrix as it is."""

    @property
    def name(self) -> str:
        """As the manifest records it."""
        return "float32"


def _tail_name(tail: float | None) -> str:
    return "" if tail is None else f"-tail{tail:g}"


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

    def tail_of(self, weight: str) -> float | None:
        """The tail of the scheme that a weight gets, in multiples of its input's rms."""
        scheme = self.rule_for(weight).scheme
        return None if isinstance(scheme, Float32) else scheme.tail


# What enters the two output projections of a block is a gate times a value: heavy tails, whose
# rounding makes two thirds of all that int8 changes.
_TAIL = 2.0

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "int8",
            (Rule("*.out.weight", BlockInt8(128, tail=_TAIL)), Rule("*", BlockInt8(128))),
            Tolerance(
                max_abs_logit_error=None, perplexity_ratio=1.001, mean_kl=5e-4, top1_agreement=0.99
            ),
        ),
        Recipe(
            "int8-dynamic",
            (Rule("*.out.weight", DynamicInt8(tail=_TAIL)), Rule("*", DynamicInt8())),
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
