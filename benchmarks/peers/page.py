"""docs/peers.md and its plot, from the rows that `python -m benchmarks.peers measure` left."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.results_page.plots import COLOURS, STYLE
from benchmarks.results_page.text import table

Row = dict[str, Any]
DEEP = "peers-32k.json"
IN_WORDS = {
    "int8-native": "ours, `int8` native",
    "int4-native": "ours, `int4` native",
    "int8": "ours, `int8`",
    "int8-weight": "ours, `int8-weight`",
    "int4": "ours, `int4`",
    "int4-weight": "ours, `int4-weight`",
    "llama-q8_0": "Llama Q8_0",
    "llama-q4_0": "Llama Q4_0",
    "rwkv7-q8_0": "RWKV-7 Q8_0",
    "mamba2-q8_0": "Mamba-2 Q8_0",
}
GOALS = (
    ("decode", 0, "int8", "llama-q8_0", 1.3),
    ("decode", 8192, "int8", "llama-q8_0", 4.0),
    ("decode", 0, "int8", "rwkv7-q8_0", 1.5),
    ("decode", 0, "int4", "llama-q4_0", 1.2),
    ("prompt", 512, "int8", "llama-q8_0", 1.0),
)
"""Test, depth or prompt, our recipe, theirs, the ratio of medians that is asked for."""
BACKENDS = ("-native", "")
HEAD = """# Beside llama.cpp

Written by `python -m benchmarks.peers page`: edit `benchmarks/peers/page.py`, not this page.
`make bench-peers` measures.

The preset edge-135m (130.8M parameters) beside models of as many parameters to 3 %, all with random
weights, a vocabulary of 32,000 and width 768, in llama-cpp-python built from source for this CPU: a
Llama (12 layers, tied head), an RWKV-7 (11 layers, a head of its own) and a Mamba-2 (28 layers,
tied head). Each contender is a process of its own; rounds of each are interleaved. Tokens a second:
median (quartiles)."""


def find(rows: list[Row], name: str, threads: int, test: str, depth: int) -> Row | None:
    """A contender's row."""
    wanted = (name, threads, test, depth)
    for row in rows:
        if (row["contender"], row["threads"], row["test"], row["depth"]) == wanted:
            return row
    return None


def ratios(rows: list[Row]) -> list[list[str]]:
    """Of every goal and number of threads: asked, and the ratio of medians."""
    found = []
    threads_of_rows = sorted({row["threads"] for row in rows})
    for (test, depth, recipe, theirs, asked), backend, threads in product(
        GOALS, BACKENDS, threads_of_rows
    ):
        ours = recipe + backend
        mine = find(rows, ours, threads, test, depth)
        other = find(rows, theirs, threads, test, depth)
        if mine is None or other is None:
            continue
        where = f"decode at depth {depth:,}" if test == "decode" else f"prompt of {depth:,}"
        got = mine["tokens/s"][1] / other["tokens/s"][1]
        pair = f"{IN_WORDS[ours]} over {IN_WORDS[theirs]}"
        found.append([where, pair, str(threads), f"{asked:.1f}", f"{got:.2f}"])
    return found


def page(data: dict[str, Any]) -> str:
    """The Markdown text."""
    rows: list[Row] = data["rows"]
    lines = [HEAD, "", f"{data['machine']}; `{data['command']}`. Read bandwidth:"]
    lines[-1] += " " + ", ".join(
        f"{v[1]:.1f} GB/s on {n} thread{'s' if n != '1' else ''}"
        for n, v in data["bandwidth GB/s"].items()
    )
    lines[-1] += "."
    lines += ["", "## Asked and measured", ""]
    lines += table(["", "", "threads", "asked", "measured"], ratios(rows))
    for test, title in (("decode", "Decode, by depth"), ("prompt", "Prompts, by length")):
        depths = sorted({row["depth"] for row in rows if row["test"] == test})
        if not depths:
            continue
        lines += ["", f"## {title}", ""]
        body = []
        for threads in sorted({row["threads"] for row in rows}):
            for name, words in IN_WORDS.items():
                found = [find(rows, name, threads, test, depth) for depth in depths]
                if any(found):
                    body.append([words, str(threads), *(rate(row) for row in found)])
        lines += table(["", "threads", *(f"{depth:,}" for depth in depths)], body)
    lines += filling(rows)
    lines += [
        "",
        "![Tokens a second and memory by depth](peers.svg)",
        "",
        "## Memory, by depth",
        "",
    ]
    lines += [
        "MB resident (anonymous) of the process on the fewest threads. llama.cpp allocates its KV",
        "cache for the deepest test at the start. Ours are not `prepare`d.",
        "",
    ]
    lines += by_depth(rows, held)
    return "\n".join(lines) + "\n"


def by_depth(rows: list[Row], cell: Callable[[Row | None], str]) -> list[str]:
    """A table of decoding on the fewest threads, a column a depth."""
    least = min(row["threads"] for row in rows)
    depths = sorted({row["depth"] for row in rows if row["test"] == "decode"})
    body = []
    for name, words in IN_WORDS.items():
        found = [find(rows, name, least, "decode", depth) for depth in depths]
        if any(found):
            body.append([words, *map(cell, found)])
    return table(["", *(f"{depth:,}" for depth in depths)], body)


def deep_section(data: dict[str, Any]) -> str:
    """The section of a run to greater depths, on another machine."""
    rows: list[Row] = data["rows"]
    about = f"{data['machine']}; `{data['command']}`. {data['conditions']}"
    lines = ["", f"## To {max(row['depth'] for row in rows):,} tokens", "", about]
    lines += ["", *by_depth(rows, rate), "", "MB resident (anonymous):", "", *by_depth(rows, held)]
    lines += ["", "![Tokens a second and memory of the deep run](peers-32k.svg)"]
    return "\n".join(lines) + "\n"


def filling(rows: list[Row]) -> list[str]:
    """Tokens a second of long prompts: from one depth to the next."""
    key = "prompt tokens/s from the depth before"
    depths = sorted({row["depth"] for row in rows if row.get(key)})
    if not depths:
        return []
    body = []
    for threads in sorted({row["threads"] for row in rows}):
        for name, words in IN_WORDS.items():
            found = [find(rows, name, threads, "decode", depth) for depth in depths]
            if any(found):
                cells = [f"{row[key]:,}" if row and row[key] else "–" for row in found]
                body.append([words, str(threads), *cells])
    head = ["", "threads", *(f"to {depth:,}" for depth in depths)]
    words = "Tokens a second of the prompt that leads from one depth to the next, once:"
    return ["", words, "", *table(head, body)]


def rate(row: Row | None) -> str:
    """Median (quartiles)."""
    if row is None:
        return "–"
    low, middle, high = row["tokens/s"]
    return f"{middle:,.0f} ({low:,.0f} – {high:,.0f})"


def held(row: Row | None) -> str:
    """Resident (anonymous)."""
    return "–" if row is None else f"{row['resident MB']:,.0f} ({row['anonymous MB']:,.0f})"


def plot(data: dict[str, Any]) -> bytes:
    """Tokens a second and resident memory against depth, on the fewest threads."""
    import matplotlib
    from matplotlib.figure import Figure

    rows: list[Row] = data["rows"]
    least = min(row["threads"] for row in rows)
    colours = (*COLOURS, "#111111", "#7a4a2a", "#5a9", "#c6a")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 4.0), layout="constrained")
        speed, memory = figure.subplots(1, 2)
        for colour, (name, words) in zip(colours, IN_WORDS.items(), strict=True):
            mine = [
                r
                for r in rows
                if (r["contender"], r["threads"], r["test"]) == (name, least, "decode")
            ]
            if not mine:
                continue
            x = [r["depth"] for r in mine]
            style = {"color": colour, "marker": "o", "markersize": 3}
            speed.plot(x, [r["tokens/s"][1] for r in mine], label=words.replace("`", ""), **style)
            memory.plot(x, [r["resident MB"] for r in mine], **style)
        for axes, label in ((speed, "tokens/s"), (memory, "resident MB")):
            axes.set(xlabel="depth (tokens before)", ylabel=label, ylim=(0, None))
        speed.legend(fontsize=8)
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def write_page(result: Path, docs: Path) -> Path:
    """docs/peers.md and its plots; of the deep run beside `result`, where there is one."""
    data = json.loads(result.read_text())
    (docs / "peers.svg").write_bytes(plot(data))
    text, deep = page(data), result.with_name(DEEP)
    if deep.exists():
        further = json.loads(deep.read_text())
        (docs / "peers-32k.svg").write_bytes(plot(further))
        text += deep_section(further)
    path = docs / "peers.md"
    path.write_text(text)
    return path
