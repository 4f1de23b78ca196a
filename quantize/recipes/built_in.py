"""The built-in recipes of each backend, and what `verify` holds them to."""

from __future__ import annotations

from retnet_edge.errors import InputError
from retnet_edge.quantize.recipes.recipe import Recipe, Rule
from retnet_edge.quantize.recipes.schemes import (
    BlockInt4,
    BlockInt8,
    ChannelInt8,
    DynamicInt8,
    Float32,
    GroupInt4,
    Half,
    StaticInt8,
    StaticInt8Qdq,
)
from retnet_edge.runtime.bundle.manifest import Backend, Tolerance

# What enters the two output projections of a block is a gate times a value: heavy tails, whose
# rounding makes two thirds of all that int8 changes.
OUTPUT_PROJECTIONS = "*.out.weight"
OUTLIER_THRESHOLD = 2.0
DYNAMIC_OUTLIER_THRESHOLD = (
    1.5  # where one scale serves all inputs of a product, every product gains by one
)
# What enters the head is scaled channel by channel, and every error in it is one in the logits:
# two fifths of what int8 changes once the output projections have tails.
EMBEDDING_AND_HEAD = (
    "[eh]*.weight"  # embedding.weight, which a tied head multiplies with, and head.weight
)

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
            (
                Rule(OUTPUT_PROJECTIONS, BlockInt8(128, tail=OUTLIER_THRESHOLD)),
                Rule(EMBEDDING_AND_HEAD, BlockInt8(128, tail=OUTLIER_THRESHOLD)),
                Rule("*", BlockInt8(128)),
            ),
            _INT8,
        ),
        Recipe(
            "int8-dynamic", (Rule("*", DynamicInt8(tail=DYNAMIC_OUTLIER_THRESHOLD)),), _INT8_DYNAMIC
        ),
        Recipe(
            "int8-static",
            (
                Rule(OUTPUT_PROJECTIONS, StaticInt8Qdq(tail=OUTLIER_THRESHOLD)),
                Rule("*", StaticInt8Qdq()),
            ),
            _INT8_QDQ,
        ),
        Recipe(
            "int8-static-16",
            (
                Rule(OUTPUT_PROJECTIONS, StaticInt8Qdq(16, "min-max", tail=OUTLIER_THRESHOLD)),
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
                Rule(OUTPUT_PROJECTIONS, BlockInt8(128, tail=OUTLIER_THRESHOLD)),
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
                Rule(OUTPUT_PROJECTIONS, ChannelInt8()),
                Rule("*", StaticInt8()),
            ),
            _INT8_STATIC,
        ),
        Recipe(
            "int4",
            (
                Rule("embedding.weight", ChannelInt8()),
                Rule("head.weight", ChannelInt8()),
                Rule(OUTPUT_PROJECTIONS, ChannelInt8()),
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
