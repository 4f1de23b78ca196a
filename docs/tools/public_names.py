"""A hook of mkdocs: every public name of the package says what it is, and stands in the reference.

Public are the names in `retnet_edge.__all__`, and every module, class, function and method whose
name and place have no part that begins with `_`. What is missing is a warning, which `--strict`
makes an error.
"""

from __future__ import annotations

import ast
import logging
import zlib
from collections.abc import Iterator
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig

ROOT = Path(__file__).parents[2]
PACKAGE = "retnet_edge"
_log = logging.getLogger("mkdocs.hooks.public_names")


def on_post_build(config: MkDocsConfig) -> None:
    """Warn of every public name without a docstring or without a place in the reference."""
    found = inventory(Path(config.site_dir) / "objects.inv")
    names = list(public_names())
    for name, has_docstring in names:
        if not has_docstring:
            _log.warning("%s has no docstring", name)
        if name not in found:
            _log.warning("%s is missing in the reference", name)
    exported = [f"{PACKAGE}.{name}" for name in exported_names() if not name.startswith("_")]
    for name in exported:
        if name not in found:
            _log.warning("%s, of __all__, is missing in the reference", name)
    _log.info("%d public names are documented, %d of them of __all__", len(names), len(exported))


def public_names() -> Iterator[tuple[str, bool]]:
    """Path of every public module, class, function and method, and whether it has a docstring."""
    loader = griffe.GriffeLoader(search_paths=[ROOT])
    package = loader.load(PACKAGE)
    assert isinstance(package, griffe.Module)
    yield package.path, package.has_docstring
    yield from _below(package)


def _below(parent: griffe.Object) -> Iterator[tuple[str, bool]]:
    for name, member in parent.members.items():
        if name.startswith("_") or member.is_alias or member.is_attribute:
            continue
        assert isinstance(member, griffe.Object)
        yield member.path, member.has_docstring
        if member.is_module or member.is_class:
            yield from _below(member)


def exported_names() -> list[str]:
    """`retnet_edge.__all__`, read without importing anything."""
    tree = ast.parse((ROOT / PACKAGE / "__init__.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names: list[str] = ast.literal_eval(node.value)
            return names
    raise AssertionError(f"{PACKAGE}/__init__.py has no __all__")


def inventory(path: Path) -> set[str]:
    """The names in mkdocstrings' inventory (Sphinx's format: four lines, then zlib)."""
    rest = path.read_bytes().split(b"\n", 4)[4]
    return {line.split(" ", 1)[0] for line in zlib.decompress(rest).decode().splitlines()}
