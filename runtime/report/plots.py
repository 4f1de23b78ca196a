"""The report's plots, each an <svg> that can stand inside a page beside the others.

Ink is `currentColor`, so that text and axes follow the page, light or dark; ids carry the plot's
name, so that they are unique in the page; the same figures give the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from retnet_edge.runtime.memory.memory import Memory
from retnet_edge.runtime.parity.parity import Parity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#3987e5", "#d95926", "#8a8983"
COLORS = (BLUE, ORANGE, "#4f9d4f", "#a667c9", "#c2951f", "#3aa6a0")
INK = "#0a0b0c"  # stands for currentColor until the figure is written
MIB = 2**20
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "retnet-edge",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 2,
}


def draw_parity(parity: Parity, prefix: str = "") -> dict[str, str]:
    """The plots kl, logit_error, state_error and, where measured, blocks: text beginning "<svg".

    prefix: of their ids, which must be unique in a page.
    """
    lines = {
        "kl": ("KL (nats)", {"99 %": "p99_kl", "mean": "mean_kl"}),
        "logit_error": (
            "logit error",
            {"largest": "max_abs_logit_error", "mean": "mean_abs_logit_error"},
        ),
        "state_error": (
            "state error",
            {"largest": "max_abs_state_error", "relative": "relative_state_error"},
        ),
    }
    plots = {
        name: _plot(
            f"{prefix}{name}",
            2.8,
            partial(by_position, parity=parity, label=label, lines=fields),
        )
        for name, (label, fields) in lines.items()
    }
    if parity.blocks:
        plots["blocks"] = _plot(f"{prefix}blocks", 2.4, partial(by_block, parity=parity))
    return plots


def by_block(axes: Axes, parity: Parity) -> None:
    """The error after every block."""
    axes.plot(
        [error.block for error in parity.blocks],
        [error.relative for error in parity.blocks],
        color=BLUE,
        marker="o",
    )
    axes.set_xticks([error.block for error in parity.blocks])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("block")
    axes.set_ylabel("relative error")


def draw_memory(cases: Sequence[tuple[str, Memory]]) -> dict[str, str]:
    """The plots memory and resident of (name, memory); none where nothing was measured."""
    if not cases:
        return {}
    height = 0.9 + 0.5 * len(cases)
    return {
        "memory": _plot("memory", 2.8, lambda axes: growth(axes, cases)),
        "resident": _plot("resident", height, lambda axes: resident(axes, cases)),
    }


def draw_side_by_side(columns: Sequence[tuple[str, Parity]]) -> dict[str, str]:
    """The plot side_by_side: mean KL by position, a line for each (name, parity)."""

    def draw(axes: Axes) -> None:
        for (name, parity), color in zip(columns, _colors(len(columns)), strict=True):
            names = [f"{bucket.first:,} to {bucket.last:,}" for bucket in parity.buckets]
            values = [bucket.figures.mean_kl for bucket in parity.buckets]
            axes.plot(names, values, color=color, marker="o", label=name)
        if any(value > 0 for line in axes.get_lines() for value in _finite(line.get_ydata())):
            axes.set_yscale("log")
        axes.set_xlabel("position in the context (tokens)")
        axes.set_ylabel("mean KL (nats)")
        axes.legend()

    return {"side_by_side": _plot("side_by_side", 3.2, draw)}


def _plot(name: str, height: float, draw: Callable[[Axes], None]) -> str:
    """One figure, drawn and written as <svg>."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, height), layout="constrained")
        draw(figure.add_subplot())
        return inline_svg(figure, name)


def _colors(count: int) -> list[str]:
    return [COLORS[index % len(COLORS)] for index in range(count)]


def by_position(axes: Axes, parity: Parity, label: str, lines: dict[str, str]) -> None:
    """Figures of the buckets of positions, log axes, one line for each of `lines`."""
    names = [f"{bucket.first:,} to {bucket.last:,}" for bucket in parity.buckets]
    for (name, field), color, marker in zip(lines.items(), (ORANGE, BLUE), "so", strict=True):
        values = [getattr(bucket.figures, field) for bucket in parity.buckets]
        axes.plot(names, values, color=color, marker=marker, label=name)
    if any(value > 0 for line in axes.get_lines() for value in _finite(line.get_ydata())):
        axes.set_yscale("log")
    axes.set_xlabel("position in the context (tokens)")
    axes.set_ylabel(label)
    axes.legend()


def _finite(values: Any) -> list[float]:
    return [float(value) for value in values if value is not None and abs(value) < float("inf")]


def growth(axes: Axes, cases: Sequence[tuple[str, Memory]]) -> None:
    """Anonymous memory above that of the first sample, against tokens; growing states dashed."""
    for (name, case), color in zip(cases, _colors(len(cases)), strict=True):
        style = "dashed" if case.state_bytes_per_token else "solid"
        grown = [(size - case.anonymous[0]) / MIB for size in case.anonymous]
        axes.plot(case.tokens, grown, color=color, linestyle=style, label=label_of(name))
    axes.set_xlabel("tokens")
    axes.set_ylabel("anonymous memory grown (MiB)")
    axes.legend()


def resident(axes: Axes, named: Sequence[tuple[str, Memory]]) -> None:
    """Where resident memory is at the end: the process before the bundle, then two kinds."""
    cases = [case for _, case in named]
    names = [label_of(name) for name, _ in named]
    left = [0.0] * len(cases)
    base = [case.base_bytes / MIB for case in cases]
    files = [(c.file_backed[-1] - (c.base_bytes - c.base_anonymous_bytes)) / MIB for c in cases]
    private = [(c.anonymous[-1] - c.base_anonymous_bytes) / MIB for c in cases]
    for part, color, label in (
        (base, GREY, "Python and libraries"),
        (private, BLUE, "anonymous"),
        (files, ORANGE, "file-backed"),
    ):
        width = [max(value, 0.0) for value in part]
        axes.barh(names, width, left=left, color=color, label=label, height=0.55)
        left = [start + value for start, value in zip(left, width, strict=True)]
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("resident (MiB)")
    axes.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)


def label_of(name: str) -> str:
    """What a column is called in a plot: kinds of models by their own names."""
    return {"transformer": "Transformer, KV cache", "retnet": "RetNet"}.get(name, name)


def inline_svg(figure: Figure, name: str) -> str:
    """The figure as one <svg> element with no namespace links, and ids that start with `name`."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text).replace("url(#", f"url(#{name}-")
    text = re.sub(
        r'<svg width="[^"]*" height="[^"]*"', f'<svg role="img" aria-label="{name}"', text
    )
    return text.replace(INK, "currentColor")
