"""What no page may do: hide a block, point nowhere, run wide or long, or forget a name."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import doc_blocks
import pytest
from doc_blocks import DOCUMENTS, PARTS, ROOT, SHOWN, documents_of, examples, reason_not_run

import retnet_edge
from retnet_edge.quantize.recipes.built_in import RECIPES
from retnet_edge.quantize.recipes.toml_file import SCHEMES

WRITTEN_BY_BENCHMARKS = {ROOT / "docs/peers.md", ROOT / "docs/results.md"}
BY_HAND = [path for path in DOCUMENTS if path not in WRITTEN_BY_BENCHMARKS]
LINKING = [*DOCUMENTS, ROOT / "CONTRIBUTING.md", *ROOT.glob("checkpoints/*/README.md")]
WIDEST, LONGEST = 100, 300
FOLDERS = "retnet_edge|export|quantize|runtime|native|tests|benchmarks|docs|checkpoints"
FILES = re.compile(rf"`((?:{FOLDERS})/[\w./-]+\.\w+)`")
"""A path in back-quotes that names a file of the repository."""
NAME_IN_FILE = re.compile(rf"`([\w.]+)`\s+in\s+`((?:{FOLDERS})/[\w./-]+\.\w+)`")
FENCE = re.compile(r"^[ \t]*```(\w*)", re.MULTILINE)
GENERATED = (
    "docs/reference/commands.md",
    "docs/reference/manifest.md",
    "docs/reference/modules",
)
"""By docs/tools/reference_pages.py, when mkdocs makes the site; it checks links to them."""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def outside_of_fences(path: Path) -> str:
    """The text without its blocks of code."""
    return re.sub(r"(?ms)^[ \t]*```.*?^[ \t]*```", "", path.read_text())


def sources() -> list[Path]:
    """The product's Python and C."""
    folders = ("retnet_edge", "export", "quantize", "runtime", "native", "optimum_plugin")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.[pch]*")]
    return [path for path in found if path.suffix in (".py", ".c", ".h")]


def test_every_document_is_run_by_one_file() -> None:
    shares = [document for part in PARTS for document in documents_of(part)]
    assert sorted(shares) == sorted(DOCUMENTS)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_block_is_run_or_says_why_not(path: Path) -> None:
    languages = FENCE.findall(path.read_text())[::2]
    runnable = [language for language in languages if language not in SHOWN]
    found = list(examples(path))
    assert len(found) == len(runnable), f"{set(runnable)}: known are {doc_blocks.RUN}, {SHOWN}"
    for example in found:
        reason = reason_not_run(example)
        assert reason is None or len(reason.split()) > 1, f"line {example.line}: say why"
    markers = path.read_text().count("not run:")
    assert markers == sum(reason_not_run(example) is not None for example in found)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_commands_stand_in_blocks(path: Path) -> None:
    text = outside_of_fences(path)
    assert not re.search(r"^( {4}|\t)(\$|pip|python|make|retnet-edge|git) ", text, re.MULTILINE)
    for language, body in re.findall(r"(?ms)^[ \t]*```(\w+)\n(.*?)^[ \t]*```", path.read_text()):
        assert language == "console" or not re.search(r"^\$ ", body, re.MULTILINE), body


@pytest.mark.parametrize("path", BY_HAND, ids=name_of)
def test_a_page_fits_a_screen(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= LONGEST
    in_table_or_link = re.compile(r"^\s*(\||<!--|!\[)|\]\(\S+\)[.,;:]?$")
    wide = [line for line in lines if len(line) > WIDEST and not in_table_or_link.search(line)]
    assert not wide


@pytest.mark.parametrize("path", LINKING, ids=name_of)
def test_links_and_paths_lead_somewhere(path: Path) -> None:
    text = outside_of_fences(path)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if ":" in target:
            continue
        file = (path.parent / target).resolve()
        assert file.exists() or any(file.is_relative_to(ROOT / made) for made in GENERATED), target
    for name in FILES.findall(text):
        assert (ROOT / name).exists(), name


def test_a_name_that_is_said_to_be_in_a_file_is_in_it() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    rows = re.findall(r"^\| … .* \| `([\w/.]+)` \| `(\w+)` \|$", text, re.MULTILINE)
    assert len(rows) >= 30
    said = [(name, file) for file, name in rows] + NAME_IN_FILE.findall(text)
    for name, file in said:
        last = name.rpartition(".")[2]
        pattern = rf"^\s*(def|class) {last}\b|^{last}\b.*=|^EXPORTED.*\b{last}\(|^[\w ]+\b{last}\("
        assert re.search(pattern, (ROOT / file).read_text(), re.MULTILINE), (name, file)
    code = "\n".join(path.read_text() for path in sources())
    for name in set(re.findall(r"`([A-Za-z_]\w*)(?:\.\w+)?`", text)):
        assert re.search(rf"\b{name}\b", code), name


def test_documentation_that_code_speaks_of_is_there() -> None:
    for path in sources():
        for name in re.findall(r"docs/[\w./-]+\.md", path.read_text()):
            assert (ROOT / name).exists(), f"{path}: {name}"


def test_every_decision_is_in_the_index() -> None:
    folder = ROOT / "docs/decisions"
    index = (folder / "index.md").read_text()
    for path in folder.glob("[0-9]*.md"):
        assert f"[{path.name[:4]}]({path.name})" in index, path.name


def test_public_names_schemes_and_recipes_are_in_the_reference() -> None:
    api = (ROOT / "docs/reference/api.md").read_text()
    for name in set(retnet_edge.__all__) - {"__version__"}:
        assert re.search(rf"^::: retnet_edge[\w.]*\.{name}$", api, re.MULTILINE), name
    file = (ROOT / "docs/reference/recipe-file.md").read_text()
    for name, scheme in SCHEMES.items():
        for key in (name, *(field.name for field in dataclasses.fields(scheme))):
            assert f"`{key}`" in file, key
    recipes = (ROOT / "docs/reference/recipes.md").read_text()
    for recipe in RECIPES["onnxruntime"]:
        assert f"`{recipe.name}`" in recipes, recipe.name


def test_the_readme_shows_what_was_measured() -> None:
    import runpy

    tool = runpy.run_path(str(ROOT / "docs/tools/draw_readme_picture.py"))
    assert tool["draw"](tool["RESULT"]) == (ROOT / "docs/readme.svg").read_bytes()
