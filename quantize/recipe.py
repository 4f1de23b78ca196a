"""Recipes: which scheme each weight matrix gets. Rules in order, the first that matches wins."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import msgspec

from retnet_edge.errors import InputError
from retnet_edge.runtime.manifest import Backend, Manifest, Tolerance


@dataclass(frozen=True)
class BlockInt8:
    """8-bit weights with a scale for every `block` inputs of an output, int8 compute.

    `MatMulNBits` (accuracy level 4: activations are quantized to int8 in the same blocks inside
    the kernel) and `GatherBlockQuantized` for an embedding; a tied head shares its matrix.
    tail: see `tails.py`; symmetric: no zero point of a block's own; gptq: see `gptq.py`.
    """

    block: int = 128
    tail: float | None = None
    symmetric: bool = True
    gptq: bool = False

    @property
    def name(self) -> str:
        """As the manifest records it."""
        return _block_name("int8", self)


@dataclass(frozen=True)
class BlockInt4:
    """4-bit weights with a scale for every `block` inputs of an output, int8 compute.

    As for BlockInt8. What is looked up in has to be symmetric.
    tail: see `tails.py`; gptq: see `gptq.py`.
    """

    block: int = 32
    tail: float | None = None
    symmetric: bool = True
    gptq: bool = False

    @property
    def name(self) -> str:
        """As the manifest records it."""
        return _block_name("int4", self)


@dataclass(frozen=True)
class DynamicInt8:
    """8-bit weights with a scale for every output, activations quantized at run time.

    Standard operators that every ONNX Runtime has: `DynamicQuantizeLinear` and `MatMulInteger`.
    tail: see `tails.py`; smooth: α of `smoothing.py`.
    """

    tail: float | None = None
    smooth: float | None = None

    @property
    def name(self) -> str:
        """As the manifest records it."""
        return f"int8-dynamic{_smooth_name(self.smooth)}{_tail_name(self.tail)}"


@dataclass(frozen=True)
class StaticInt8Qdq:
    """8-bit weights with a scale for every output, activations with a scale measured on text.

    Standard operators: `QuantizeLinear` and `DequantizeLinear` around a `MatMul`.
    range: see `ranges.py`; tail: see `tails.py`; smooth: α of `smoothing.py`.
    """

    activation_bits: Literal[8, 16] = 8
    range: Literal["min-max", "percentile", "mse", "entropy"] = "mse"
    tail: float | None = None
    smooth: float | None = None

    @property
    def name(self) -> str:
        """As the manifest records it."""
        kind = f"int8-qdq{self.activation_bits}-{self.range}"
        return f"{kind}{_smooth_name(self.smooth)}{_tail_name(self.tail)}"


@dataclass(frozen=True)
class ChannelInt8:
    """ExecuTorch: 8-bit weights with a scale for every output (row of an embedding)."""

    @property
    def name(self) -> str:
        """As the manifest records it."""
        return "int8-channel"


@dataclass(frozen=True)
class GroupInt4:
    """ExecuTorch: 4-bit weights with a scale for every `group` inputs of an output, by GPTQ."""

    group: int = 32

    @property
    def name(self) -> str:
        """As the manifest records it."""
        return f"int4-group{self.group}-gptq"


@dataclass(frozen=True)
class StaticInt8:
    """ExecuTorch: as ChannelInt8, with one scale for all activations, measured on text."""

    @property
    def name(self) -> str:
        """As the manifest records it."""
        return "int8-static"


@dataclass(frozen=True)
class Half:
    """The matrix in 16 bits, cast to float32 where it is read (`half.py`)."""

    dtype: Literal["float16", "bfloat16"] = "float16"

    @property
    def name(self) -> str:
        """As the manifest records it."""
        return self.dtype


@dataclass(frozen=True)
class Float32:
    """Leave the matrix as it is."""

    @property
    def name(self) -> str:
        """As the manifest records it."""
        return "float32"


def _block_name(kind: str, scheme: BlockInt8 | BlockInt4) -> str:
    name = f"{kind}-block{scheme.block}{'' if scheme.symmetric else '-asymmetric'}"
    return f"{name}{'-gptq' if scheme.gptq else ''}{_tail_name(scheme.tail)}"


def _smooth_name(smooth: float | None) -> str:
    return "" if smooth is None else f"-smooth{smooth:g}"


def _tail_name(tail: float | None) -> str:
    return "" if tail is None else f"-tail{tail:g}"


StateScheme = Literal["float32", "float16", "int8"]
"""What a state is rounded to between two calls; see `states.py`."""

Scheme = (
    BlockInt8
    | BlockInt4
    | DynamicInt8
    | StaticInt8Qdq
    | ChannelInt8
    | GroupInt4
    | StaticInt8
    | Half
    | Float32
)


def _sampled(scheme: Scheme) -> bool:
    smoothed = isinstance(scheme, DynamicInt8) and scheme.smooth is not None
    return smoothed or isinstance(scheme, StaticInt8Qdq)


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
        return _sampled(self.rule_for(weight).scheme)

    @property
    def uses_samples(self) -> bool:
        """True where a rule's scheme is made from samples."""
        return any(_sampled(rule.scheme) for rule in self.rules)

    def tail_of(self, weight: str) -> float | None:
        """The tail of the scheme that a weight gets, in multiples of its input's rms."""
        scheme = self.rule_for(weight).scheme
        return scheme.tail if isinstance(scheme, BlockInt8 | BlockInt4 | DynamicInt8) else None


# What enters the two output projections of a block is a gate times a value: heavy tails, whose
# rounding makes two thirds of all that int8 changes.
TAILED = "*.out.weight"
TAIL = 2.0

_FP16 = Tolerance(
    max_abs_logit_error=None, perplexity_ratio=1.0002, mean_kl=1e-5, top1_agreement=0.998
)
_BF16 = Tolerance(
    max_abs_logit_error=None, perplexity_ratio=1.001, mean_kl=2e-4, top1_agreement=0.99
)
_INT8 = Tolerance(
    max_abs_logit_error=None, perplexity_ratio=1.001, mean_kl=5e-4, top1_agreement=0.99
)
_INT8_DYNAMIC = Tolerance(
    max_abs_logit_error=None, perplexity_ratio=1.002, mean_kl=1e-3, top1_agreement=0.985
)
_INT8_QDQ = Tolerance(
    max_abs_logit_error=None, perplexity_ratio=1.003, mean_kl=2e-3, top1_agreement=0.975
)
_INT8_QDQ16 = Tolerance(
    max_abs_logit_error=None, perplexity_ratio=1.001, mean_kl=7e-4, top1_agreement=0.985
)
_INT8_WEIGHT = Tolerance(
    max_abs_logit_error=None, perplexity_ratio=1.002, mean_kl=1e-3, top1_agreement=0.985
)
_INT4_WEIGHT = Tolerance(
    max_abs_logit_error=None, perplexity_ratio=1.02, mean_kl=2e-2, top1_agreement=0.90
)
# One scale for a whole row of weights and no tails: the figures of XNNPACK's 8-bit products.
_INT8_XNNPACK = Tolerance(
    max_abs_logit_error=None, perplexity_ratio=1.002, mean_kl=1e-3, top1_agreement=0.98
)
_INT8_STATIC = Tolerance(
    max_abs_logit_error=None, perplexity_ratio=1.007, mean_kl=5e-3, top1_agreement=0.95
)
_INT4 = Tolerance(
    max_abs_logit_error=None, perplexity_ratio=1.01, mean_kl=1e-2, top1_agreement=0.93
)

RECIPES: dict[Backend, tuple[Recipe, ...]] = {
    "onnxruntime": (
        Recipe(
            "int8",
            (Rule(TAILED, BlockInt8(128, tail=TAIL)), Rule("*", BlockInt8(128))),
            _INT8,
        ),
        Recipe(
            "int8-dynamic",
            (Rule(TAILED, DynamicInt8(tail=TAIL)), Rule("*", DynamicInt8())),
            _INT8_DYNAMIC,
        ),
        Recipe(
            "int8-static",
            (
                Rule(TAILED, StaticInt8Qdq(tail=TAIL)),
                Rule("*", StaticInt8Qdq()),
            ),
            _INT8_QDQ,
        ),
        Recipe(
            "int8-static-16",
            (
                Rule(TAILED, StaticInt8Qdq(16, "min-max", tail=TAIL)),
                Rule("*", StaticInt8Qdq(16, "min-max")),
            ),
            _INT8_QDQ16,
        ),
        Recipe("fp16", (Rule("*", Half("float16")),), _FP16),
        Recipe("bf16", (Rule("*", Half("bfloat16")),), _BF16),
        Recipe("int8-weight", (Rule("*", BlockInt8(128)),), _INT8_WEIGHT),
        Recipe(
            "int4-weight",
            (Rule("blocks.*", BlockInt4(32)), Rule("*", BlockInt8(128))),
            _INT4_WEIGHT,
        ),
        Recipe(
            "int4",
            (
                Rule(TAILED, BlockInt8(128, tail=TAIL)),
                Rule("blocks.*", BlockInt4(32, symmetric=False, gptq=True)),
                Rule("*", BlockInt8(128)),
            ),
            _INT4,
        ),
    ),
    # XNNPACK has 8-bit weights with one scale an output only, so both 8-bit recipes are that; they
    # differ in the embedding.
    "executorch": (
        Recipe("int8", (Rule("*", ChannelInt8()),), _INT8_XNNPACK),
        Recipe(
            "int8-dynamic",
            (Rule("embedding.weight", Float32()), Rule("*", ChannelInt8())),
            _INT8_XNNPACK,
        ),
        # What enters an output projection has heavy tails: with one scale for all of it mean KL is
        # 8e-3 more. Those stay dynamic, and so does the head, whose output are the logits.
        Recipe(
            "int8-static",
            (
                Rule("embedding.weight", ChannelInt8()),
                Rule("head.weight", ChannelInt8()),
                Rule(TAILED, ChannelInt8()),
                Rule("*", StaticInt8()),
            ),
            _INT8_STATIC,
        ),
        Recipe(
            "int4",
            (
                Rule("embedding.weight", ChannelInt8()),
                Rule("head.weight", ChannelInt8()),
                Rule(TAILED, ChannelInt8()),
                Rule("*", GroupInt4(32)),
            ),
            _INT4,
        ),
    ),
}


def find_recipe(name: str, backend: Backend = "onnxruntime") -> Recipe:
    """A built-in recipe. Raises InputError naming those that the backend can express."""
    for recipe in RECIPES[backend]:
        if recipe.name == name:
            return recipe
    known = ", ".join(recipe.name for recipe in RECIPES[backend])
    elsewhere = [b for b, recipes in RECIPES.items() if name in [r.name for r in recipes]]
    what = f"recipe {name!r} is for {elsewhere[0]}" if elsewhere else f"unknown recipe {name!r}"
    raise InputError(f"{what}; known for {backend}: {known}")


SCHEMES_OF: dict[Backend, tuple[type[Scheme], ...]] = {
    "onnxruntime": (BlockInt8, BlockInt4, DynamicInt8, StaticInt8Qdq, Half, Float32),
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
