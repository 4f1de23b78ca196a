"""A hook of mkdocs that writes the pages which would rot by hand: commands, manifest, modules.

Commands come from click's own help, the manifest from the records that read it, and the modules of
a room from a look at its folder; mkdocstrings then reads what they say of themselves.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from retnet_edge.cli.app import COMMANDS, PROGRAM, cli
from retnet_edge.runtime.bundle import manifest as manifest_module
from retnet_edge.runtime.bundle.manifest import Manifest

ROOT = Path(__file__).parents[2]
PACKAGE = "retnet_edge"
MODULES = "reference/modules"
TOP = "top"
COMMANDS_PAGE = "reference/commands.md"
MANIFEST_PAGE = "reference/manifest.md"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of every room and of every decision where the navigation names them."""
    decisions = sorted(Path(config.docs_dir).glob("decisions/[0-9]*.md"))
    lists = {
        f"<{MODULES}>": [f"{MODULES}/{room or TOP}.md" for room in rooms()],
        "<decisions>": [f"decisions/{path.name}" for path in decisions],
    }
    config.nav = _filled(config.nav, lists)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    written = {COMMANDS_PAGE: commands_page(), MANIFEST_PAGE: manifest_page()}
    for room, modules in rooms().items():
        written[f"{MODULES}/{room or TOP}.md"] = room_page(room, modules)
    for name, content in written.items():
        files.append(File.generated(config, name, content=content))
    return files


def _filled(nav: Any, lists: dict[str, list[str]]) -> Any:
    """The navigation with a list in place of each entry that names one."""
    if isinstance(nav, list):
        return [_filled(entry, lists) for entry in nav]
    if isinstance(nav, dict):
        return {title: _filled(entry, lists) for title, entry in nav.items()}
    return lists.get(nav, nav)


def rooms() -> dict[str, list[str]]:
    """Public modules by room ("" is the top), in the order of their names, as Python imports them.

    A room is a package; its own name comes first.
    """
    found: dict[str, list[str]] = {}
    for module in sorted(_modules(ROOT / PACKAGE, PACKAGE)):
        is_package = (ROOT / module.replace(".", "/") / "__init__.py").exists()
        room = module if is_package else module.rpartition(".")[0]
        found.setdefault(room.removeprefix(PACKAGE).lstrip("."), []).append(module)
    return dict(sorted(found.items()))


def _modules(folder: Path, name: str) -> Iterator[str]:
    yield name
    for path in folder.iterdir():
        if path.name.startswith("_"):
            continue
        if path.suffix == ".py":
            yield f"{name}.{path.stem}"
        elif (path / "__init__.py").exists():
            yield from _modules(path, f"{name}.{path.name}")


def room_page(room: str, modules: list[str]) -> str:
    """The names of a room's modules, as mkdocstrings finds them."""
    return "\n".join([f"# {room or PACKAGE}\n", *(f"::: {module}\n" for module in modules)])


def commands_page() -> str:
    """Every command with what `--help` says of it."""
    parts = [
        "# Commands\n",
        f"`{PROGRAM} COMMAND --help` prints the same. Exit status: 0 done, 1 a figure fell short, "
        "2 bad usage or bad input, with one sentence that says what and where.\n",
    ]
    root = click.Context(cli, info_name=PROGRAM)
    for name in COMMANDS:
        command = cli.get_command(root, name)
        assert command is not None
        context = click.Context(command, info_name=name, parent=root)
        usage = " ".join([PROGRAM, name, *command.collect_usage_pieces(context)])
        about = inspect.cleandoc(command.help or "")
        parts += [f"## {name}\n", f"```text\n{usage}\n```\n", f"{about}\n"]
        for parameter in command.get_params(context):
            if (record := parameter.get_help_record(context)) is not None:
                parts.append(_option(*record))
        parts.append("")
    return "\n".join(parts)


def _option(names: str, about: str) -> str:
    text = " ".join(about.split()).replace("<", "&lt;")
    return f"- `{names}`" + (f": {text}" if text else "")


def manifest_page() -> str:
    """The records of manifest.json: what each field is, by type."""
    parts = [
        "# The manifest\n",
        f"`manifest.json` of a bundle, schema version {manifest_module.SCHEMA_VERSION}. A key that "
        "is not listed here is refused, and so is a number outside of its bounds. A field with a "
        "default may be missing.\n",
    ]
    for record in _records(Manifest):
        parts += [f"## {record.__name__}\n", f"{inspect.cleandoc(record.__doc__ or '')}\n"]
        parts += ["| field | type | default |", "|---|---|---|"]
        for field in msgspec.structs.fields(record):
            default = "" if field.required else f"`{_default(field)}`"
            parts.append(f"| `{field.encode_name}` | {type_text(field.type)} | {default} |")
        parts.append("")
    return "\n".join(parts)


def _records(first: type[msgspec.Struct]) -> list[type[msgspec.Struct]]:
    """The record and all that its fields hold, each once, in the order of the fields."""
    found: dict[type[msgspec.Struct], None] = {}
    ahead: list[type[msgspec.Struct]] = [first]
    while ahead:
        record = ahead.pop(0)
        if record in found:
            continue
        found[record] = None
        for field in msgspec.structs.fields(record):
            ahead += _structs(msgspec.inspect.type_info(field.type))
    return list(found)


def _structs(info: Any) -> list[type[msgspec.Struct]]:
    if isinstance(info, msgspec.inspect.StructType):
        return [info.cls]
    inner = [getattr(info, name, None) for name in ("item_type", "key_type", "value_type")]
    inner += [*getattr(info, "types", ()), *getattr(info, "item_types", ())]
    return [record for part in inner if part is not None for record in _structs(part)]


def _default(field: Any) -> Any:
    value = field.default
    return field.default_factory() if value is msgspec.NODEFAULT else value


def type_text(of: Any) -> str:
    """A type in words: `int 1 to 16`, list of `TensorSpec`."""
    return _words(msgspec.inspect.type_info(of))


def _words(info: Any) -> str:
    i = msgspec.inspect
    if isinstance(info, i.StructType):
        name = info.cls.__name__
        return f"[{name}](#{name.lower()})"
    if isinstance(info, i.LiteralType):
        return ", ".join(f'`"{value}"`' for value in info.values)
    if isinstance(info, i.DictType):
        return f"object: {_words(info.key_type)} to {_words(info.value_type)}"
    if isinstance(info, i.VarTupleType | i.ListType):
        most = "" if info.max_length is None else f", at most {info.max_length:,}"
        return f"list of {_words(info.item_type)}{most}"
    if isinstance(info, i.UnionType):
        return " or ".join(_words(part) for part in info.types)
    if isinstance(info, i.NoneType):
        return "null"
    if isinstance(info, i.AnyType):
        return "anything"
    if isinstance(info, i.StrType):
        return f"text `{info.pattern}`" if info.pattern else f"text{_bounds(info)}"
    names = {i.IntType: "integer", i.FloatType: "number", i.BoolType: "true or false"}
    return f"{names[type(info)]}{_bounds(info)}"


def _bounds(info: Any) -> str:
    """The limits of a number, or of a text's length."""
    least = _first(info, "ge", "gt", "min_length")
    most = _first(info, "le", "lt", "max_length")
    unit = " characters" if isinstance(info, msgspec.inspect.StrType) else ""
    if least is None and most is None:
        return ""
    if most is None:
        return f", {least} or more{unit}"
    return f", at most {most:,}{unit}" if least is None else f", {least} to {most:,}{unit}"


def _first(info: Any, *names: str) -> Any:
    """The first of these attributes that is there and says something."""
    return next((v for name in names if (v := getattr(info, name, None)) is not None), None)
