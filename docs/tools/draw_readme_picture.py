"""docs/readme.svg, README's picture: memory and tokens/s by depth, beside a Transformer.

    python docs/tools/draw_readme_picture.py

Drawn from the committed run to 32,768 tokens (`benchmarks/results/peers-32k.json`): our int8 bundle
and llama.cpp's Llama Q8_0 of as many parameters, on one thread.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks/results/peers-32k.json"
PICTURE = ROOT / "docs/readme.svg"
SHOWN = {"int8": ("RetNet (ours, int8)", "#0a84d6"), "llama-q8_0": ("Llama (Q8_0)", "#e0701a")}
INK = "#010203"  # becomes the text's own colour, by the page's light or dark mode
STYLE: Any = {
    "font.size": 11,
    "svg.fonttype": "none",
    "svg.hashsalt": "retnet-edge",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
MODES = (
    "<style>svg{color:#1f2328}@media(prefers-color-scheme:dark){svg{color:#e6edf3}}"
    "text{font-family:sans-serif}</style>"
)


def draw(result: Path) -> bytes:
    """The picture as SVG; the same figures give the same bytes."""
    rows: list[dict[str, Any]] = json.loads(result.read_text())["rows"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 3.2), layout="constrained")
        figure.patch.set_alpha(0)
        memory, speed = figure.subplots(1, 2)
        for name, (words, colour) in SHOWN.items():
            mine = [row for row in rows if row["contender"] == name and row["test"] == "decode"]
            depths = [row["depth"] for row in mine]
            _line(memory, depths, [row["resident MB"] for row in mine], words, colour)
            _line(speed, depths, [row["tokens/s"][1] for row in mine], words, colour)
        for axes, title in ((memory, "Memory, MB resident"), (speed, "Speed, tokens a second")):
            axes.patch.set_alpha(0)
            axes.set(title=title, xlabel="tokens read before", xlim=(0, None))
            axes.set_ylim(0, 1.2 * axes.get_ylim()[1])
            axes.yaxis.set_major_formatter("{x:,.0f}")
            axes.set_xticks(depths, [f"{depth:,}" for depth in depths])
        speed.legend(frameon=False, loc="center right")
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    svg = out.getvalue().decode().replace(INK, "currentColor")
    start = svg.index(">", svg.index("<svg")) + 1
    return (svg[:start] + MODES + svg[start:]).encode()


def _line(axes: Axes, depths: list[int], values: list[float], words: str, colour: str) -> None:
    axes.plot(depths, values, color=colour, marker="o", linewidth=2.5, label=words, clip_on=False)
    for at in (0, -1):
        value = values[at]
        text = f"{value:,.0f}" if value >= 10 else f"{value:.1f}"
        axes.annotate(
            text,
            (depths[at], value),
            xytext=(6 if at == 0 else -2, 8),
            textcoords="offset points",
            ha="left" if at == 0 else "right",
            color=colour,
            fontweight="bold",
        )


if __name__ == "__main__":
    PICTURE.write_bytes(draw(RESULT))
