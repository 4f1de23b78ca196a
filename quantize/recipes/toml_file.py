"""Recipes as TOML files, with the same power as the built-in ones.

    name = "mixed"
    state = "float16"               # optional: float32, float16, int8

    [tolerance]                     # what verify holds the bundle to
    perplexity_ratio = 1.01
    mean_kl = 1e-2
    top1_agreement = 0.93

    [[rules]]                       # in order; the first that matches a matrix decides
    pattern = "blocks.0.*"
    scheme = "int8-block"
    block = 64

    [[rules]]
    pattern = "*.out.weight"        # a role, in every layer
    scheme = "int4-block"
    block = 32
    gptq = true

The keys of a rule beside pattern and scheme are the fields of the scheme's class in `schemes.py`.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import msgspec

from retnet_edge.errors import InputError
from retnet_edge.quantize.recipes.built_in import find_recipe
from retnet_edge.quantize.recipes.recipe import Recipe, Rule, check_backend, with_state
from retnet_edge.quantize.recipes.schemes import (
    BLOCKS,
    BlockInt4,
    BlockInt6,
    BlockInt8,
    ChannelInt8,
    DynamicInt8,
    Float32,
    GroupInt4,
    Half,
    Scheme,
    StateScheme,
    StaticInt8,
    StaticInt8Qdq,
)
from retnet_edge.runtime.bundle.manifest import Backend, Tolerance

SCHEMES: dict[str, type[Scheme]] = {
    "int8-block": BlockInt8,
    "int6-block": BlockInt6,
    "int4-block": BlockInt4,
    "int8-dynamic": DynamicInt8,
    "int8-qdq": StaticInt8Qdq,
    "int8-channel": ChannelInt8,
    "int4-group": GroupInt4,
    "int8-static": StaticInt8,
    "half": Half,
    "float32": Float32,
}
STATES: tuple[StateScheme, ...] = get_args(StateScheme)


def recipes_for(
    recipe: str | Recipe, backends: Iterable[Backend], state: StateScheme
) -> dict[Backend, Recipe]:
    """The recipe of each backend, with its states in `state`; see `named_recipe`, `with_state`."""
    return {
        backend: with_state(
            named_recipe(recipe, backend) if isinstance(recipe, str) else recipe, state
        )
        for backend in backends
    }


def named_recipe(name: str, backend: Backend) -> Recipe:
    """The file that ends in .toml, or the built-in recipe of that name.

    Raises InputError for a file that is none, and a recipe that the backend cannot take.
    """
    if not name.endswith(".toml"):
        return find_recipe(name, backend)
    recipe = read_recipe(name)
    check_backend(recipe, backend)
    return recipe


def read_recipe(path: str | Path) -> Recipe:
    """The recipe of a file. Raises InputError naming what is wrong with it, and where."""
    try:
        raw = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a TOML file: {error}") from error
    state = raw.pop("state", "float32")
    if state not in STATES:
        raise InputError(f"{path}: state is {state!r}; allowed: {', '.join(STATES)}")
    _check_keys(raw, {"name", "tolerance", "rules"}, f"{path}")
    if not isinstance(raw["name"], str) or not raw["name"] or raw["name"] == "fp32":
        raise InputError(f"{path}: name is {raw['name']!r}; give a text other than 'fp32'")
    if not isinstance(raw["rules"], list) or not raw["rules"]:
        raise InputError(f"{path}: rules is no list of tables ([[rules]]) with one rule or more")
    bounds = {"max_abs_logit_error": None, **_table(raw["tolerance"], f"{path}: tolerance")}
    try:
        tolerance = msgspec.convert(bounds, Tolerance)
    except msgspec.ValidationError as error:
        raise InputError(f"{path}: tolerance: {error}") from error
    rules = tuple(_rule(rule, f"{path}: rule {i + 1}") for i, rule in enumerate(raw["rules"]))
    return Recipe(raw["name"], rules, tolerance, state)


def recipe_toml(recipe: Recipe) -> str:
    """The file that `read_recipe` reads this recipe from."""
    names = {scheme: name for name, scheme in SCHEMES.items()}
    lines = [f"name = {json.dumps(recipe.name)}"]
    lines += [f'state = "{recipe.state}"'] if recipe.state != "float32" else []
    lines += ["", "[tolerance]"]
    bounds = msgspec.to_builtins(recipe.tolerance)
    lines += [f"{key} = {value!r}" for key, value in bounds.items() if value is not None]
    for rule in recipe.rules:
        lines += ["", "[[rules]]", f"pattern = {json.dumps(rule.pattern)}"]
        lines.append(f'scheme = "{names[type(rule.scheme)]}"')
        fields = dataclasses.asdict(rule.scheme)
        lines += [f"{key} = {json.dumps(v)}" for key, v in fields.items() if v is not None]
    return "\n".join(lines) + "\n"


def _rule(raw: Any, where: str) -> Rule:
    options = _table(raw, where)
    for key in ("pattern", "scheme"):
        if key not in options:
            raise InputError(f"{where}: the key {key!r} is missing")
    pattern, name = options.pop("pattern"), options.pop("scheme")
    if not isinstance(pattern, str):
        raise InputError(f"{where}: pattern is {pattern!r}; give a text")
    if name not in SCHEMES:
        raise InputError(f"{where}: scheme is {name!r}; known: {', '.join(SCHEMES)}")
    scheme = SCHEMES[name]
    known = [field.name for field in dataclasses.fields(scheme)]
    if unknown := [key for key in options if key not in known]:
        has = f"has: {', '.join(known)}" if known else "has no options"
        raise InputError(f"{where}: unknown key {unknown[0]!r}; {name} {has}")
    try:
        made = msgspec.convert(options, scheme)
    except msgspec.ValidationError as error:
        raise InputError(f"{where}: {error}") from error
    block = getattr(made, "block", getattr(made, "group", BLOCKS[0]))
    allowed = getattr(made, "blocks", BLOCKS)
    if block not in allowed:
        raise InputError(f"{where}: blocks of {block}; allowed: {', '.join(map(str, allowed))}")
    if (tail := getattr(made, "tail", None)) is not None and tail <= 0:
        raise InputError(f"{where}: tail is {tail}; give a number above 0")
    if (smooth := getattr(made, "smooth", None)) is not None and not 0 < smooth < 1:
        raise InputError(f"{where}: smooth is {smooth}; give a number between 0 and 1")
    return Rule(pattern, made)


def _table(raw: Any, where: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise InputError(f"{where}: is no table")
    return dict(raw)


def _check_keys(raw: dict[str, Any], wanted: set[str], where: str) -> None:
    if unknown := sorted(raw.keys() - wanted):
        raise InputError(f"{where}: unknown key {unknown[0]!r}; keys: {', '.join(sorted(wanted))}")
    if missing := sorted(wanted - raw.keys()):
        raise InputError(f"{where}: the key {missing[0]!r} is missing")
