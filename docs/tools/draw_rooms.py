"""The picture and the table of the rooms: `make rooms` (Debian: apt install graphviz).

The arrows are import-linter's own (`import-linter drawgraph`), drawn by Graphviz: docs/rooms.svg is
the whole house, docs/rooms-runtime.svg and docs/rooms-quantize.svg look inside two of its rooms.
The table, between two marks of docs/architecture.md, is counted from the files.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

from grimp import ImportGraph, build_graph

DOCS = Path(__file__).resolve().parent.parent
ROOT = DOCS.parent
PAGE = DOCS / "architecture.md"
BEGIN, END = "<!-- rooms: written by make rooms -->\n", "<!-- end of rooms -->\n"
PACKAGE = "retnet_edge"
MAPPED = ("export", "quantize", "runtime")
STYLE = (
    'graph [rankdir=TB, nodesep=0.3, ranksep=0.55, bgcolor="white"]\n'
    'node [shape=box, style="rounded,filled", fillcolor="#eef3f8", color="#5b7083", fontsize=13]\n'
    'edge [color="#7a8b99", fontsize=10, fontcolor="#5b7083"]\n'
)


def ground_floor() -> list[str]:
    """What everything stands on, by the contract of the rooms: all that lies below `runtime`."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = (c["layers"] for c in settings["contracts"] if c["id"] == "rooms")
    (runtime,) = (i for i, layer in enumerate(layers) if "runtime" in layer.split(" | "))
    return [name for layer in layers[runtime + 1 :] for name in layer.split(" | ")]


def draw(module: str, path: Path, without: list[str]) -> None:
    """Write the SVG of the arrows between the parts of `module`."""
    command: list[str | Path] = [
        Path(sys.executable).with_name("import-linter"),
        "drawgraph",
        module,
    ]
    dot = subprocess.run(
        [*command, "--show-import-totals"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    names = "|".join(map(re.escape, without))
    kept = [
        line
        for line in dot.splitlines()
        if not (without and re.search(rf'"\.({names})"', line)) and "node [font" not in line
    ]
    text = kept[0] + STYLE + 'node [fontname="Helvetica"]\n' + "\n".join(kept[1:])
    svg = subprocess.run(
        ["dot", "-Tsvg"], input=text, check=True, capture_output=True, text=True
    ).stdout
    path.write_text(re.sub(r"<!--.*?-->\n?", "", svg, flags=re.S))
    print(f"wrote {path.relative_to(ROOT)}")


def folder_of(room: str) -> Path:
    """Where a room's files are: retnet_edge.runtime.text in runtime/text."""
    parts = room.split(".")[1:]
    return ROOT.joinpath(*(parts if parts and parts[0] in MAPPED else [PACKAGE, *parts]))


def table(graph: ImportGraph) -> str:
    """One row a room: files, lines, imports of other rooms, and imports by other rooms."""
    rooms = {name for name in graph.modules if (folder_of(name) / "__init__.py").is_file()}

    def room_of(module: str) -> str:
        return module if module in rooms else module.rpartition(".")[0]

    arrows: dict[str, Counter[str]] = {room: Counter() for room in rooms}
    for module in graph.modules:
        for found in graph.find_modules_directly_imported_by(module):
            if module != PACKAGE and room_of(found) != room_of(module):
                arrows[room_of(module)][room_of(found)] += 1
    rows = ["| room | files | lines | imports | imported |", "|---|---|---|---|---|"]
    for room in sorted(rooms, key=lambda name: folder_of(name).relative_to(ROOT).as_posix()):
        files = sorted(folder_of(room).glob("*.py"))
        lines = sum(len(path.read_text().splitlines()) for path in files)
        into = _counted([count for other, count in arrows[room].items() if other != room])
        by = _counted([found[room] for found in arrows.values() if room in found])
        where = folder_of(room).relative_to(ROOT).as_posix()
        rows.append(f"| `{where}/` | {len(files)} | {lines:,} | {into} | {by} |")
    return "\n".join(rows) + "\n"


def _counted(imports: list[int]) -> str:
    """How many imports there are, and of or by how many rooms."""
    return f"{sum(imports)} ({len(imports)})" if imports else "–"


def main() -> None:
    """Draw the pictures and write the table into the page."""
    draw(PACKAGE, DOCS / "rooms.svg", [*ground_floor(), "hf", "lm_eval"])
    draw(f"{PACKAGE}.runtime", DOCS / "rooms-runtime.svg", [])
    draw(f"{PACKAGE}.quantize", DOCS / "rooms-quantize.svg", [])
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table(build_graph(PACKAGE))}\n{END}{after}")
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
