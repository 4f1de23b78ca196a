"""Recipes in TOML: they come back as they were written, and what is wrong is said in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from retnet_edge.errors import InputError
from retnet_edge.quantize.recipes.built_in import RECIPES
from retnet_edge.quantize.recipes.recipe import Recipe
from retnet_edge.quantize.recipes.schemes import BlockInt4
from retnet_edge.quantize.recipes.toml_file import named_recipe, read_recipe, recipe_toml

BUILT_IN = [recipe for recipes in RECIPES.values() for recipe in recipes]
HEAD = 'name = "r"\n[tolerance]\nperplexity_ratio = 1.01\nmean_kl = 0.01\ntop1_agreement = 0.9\n'


@pytest.mark.parametrize("recipe", BUILT_IN, ids=lambda recipe: recipe.name)
def test_every_built_in_recipe_can_be_written_as_a_file(recipe: Recipe, tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text(recipe_toml(recipe))
    assert read_recipe(file) == recipe


def test_a_rule_takes_the_fields_of_its_scheme(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text(
        HEAD + '[[rules]]\npattern = "*"\nscheme = "int4-block"\nblock = 64\nsymmetric = false\n'
    )
    assert read_recipe(file).rules[0].scheme == BlockInt4(64, symmetric=False)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name = 1", "the key 'rules' is missing"),
        ("name =", "not a TOML file"),
        ("rules = []\n" + HEAD, "rules is no list of tables"),
        (HEAD + "[[rules]]\nscheme = 'float32'", "rule 1: the key 'pattern' is missing"),
        (HEAD + "[[rules]]\npattern = '*'\nscheme = 'int2'", "rule 1: scheme is 'int2'; known: "),
        (
            HEAD + "[[rules]]\npattern = '*'\nscheme = 'float32'\nblock = 32",
            "unknown key 'block'; float32 has no options",
        ),
        (
            HEAD + "[[rules]]\npattern = '*'\nscheme = 'int4-block'\nblock = 48",
            "blocks of 48; allowed: 16, 32, 64, 128, 256",
        ),
        (
            HEAD + "[[rules]]\npattern = '*'\nscheme = 'int6-block'\nblock = 16",
            "blocks of 16; allowed: 32, 64, 128",
        ),
        (
            HEAD + "[[rules]]\npattern = '*'\nscheme = 'int4-block'\ngptq = 1",
            "rule 1: Expected `bool`",
        ),
        (
            HEAD + "[[rules]]\npattern = '*'\nscheme = 'int4-block'\ntail = -1.0",
            "rule 1: tail is -1.0",
        ),
    ],
)
def test_what_is_wrong_is_named(text: str, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        read_recipe(file)
    assert sentence in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_scheme_of_another_backend_is_refused_before_any_work(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text(HEAD + "[[rules]]\npattern = '*'\nscheme = 'int4-block'")
    with pytest.raises(InputError, match="int4-block32, which is no scheme of executorch"):
        named_recipe(str(file), "executorch")
    with pytest.raises(InputError, match="cannot be read"):
        named_recipe(str(tmp_path / "none.toml"), "onnxruntime")
