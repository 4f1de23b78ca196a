"""benchmarks/peers/ without llama.cpp, which has a venv of its own (`make bench-peers`)."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.peers import __main__ as peers
from benchmarks.peers import page as peers_page
from benchmarks.peers import shapes as peers_shapes
from retnet_edge.model.checkpoint import build_model
from retnet_edge.presets import preset


@pytest.mark.parametrize("shapes", [peers_shapes.llama, peers_shapes.rwkv7, peers_shapes.mamba2])
def test_every_peer_has_as_many_parameters_as_ours(
    shapes: Callable[[], Iterator[peers_shapes.Shape]],
) -> None:
    with torch.device("meta"):
        model = build_model(preset("edge-135m", peers_shapes.VOCAB))
    ours = sum(parameter.numel() for parameter in model.parameters())
    theirs = sum(math.prod(shape) for _, shape in shapes())
    assert abs(theirs / ours - 1.0) < 0.03


def row(contender: str, median: float, test: str = "decode", depth: int = 0) -> dict[str, Any]:
    """One of one thread."""
    made: dict[str, Any] = {"contender": contender, "threads": 1, "test": test, "depth": depth}
    made["tokens/s"] = [0.9 * median, median, 1.1 * median]
    if test == "decode":
        made |= {"resident MB": 200.0, "anonymous MB": 100.0}
    return made


def test_a_goal_is_set_beside_the_ratio_of_medians() -> None:
    rows = [row("int8", 150.0), row("llama-q8_0", 100.0), row("int8", 150.0, depth=8192)]
    assert peers_page.ratios(rows) == [
        ["decode at depth 0", "ours, `int8` over Llama Q8_0", "1", "1.3", "1.50"]
    ]


def test_the_page_and_its_plot_show_every_contender_measured(tmp_path: Path) -> None:
    rows = [row("int8", 150.0), row("llama-q8_0", 100.0), row("int8", 700.0, "prompt", 512)]
    data = {"machine": "a CPU", "command": "c", "bandwidth GB/s": {"1": [19, 20, 21]}, "rows": rows}
    result = tmp_path / "peers.json"
    result.write_text(json.dumps(data))
    text = peers_page.write_page(result, tmp_path).read_text()
    assert "| ours, `int8` | 1 | 150 (135 – 165) |" in text
    assert "| ours, `int8` | 1 | 700 (630 – 770) |" in text
    assert "20.0 GB/s on 1 thread." in text
    assert "<svg" in (tmp_path / "peers.svg").read_text()
    assert "To 32,768 tokens" not in text


def test_a_deeper_run_gets_a_section_and_a_plot_of_its_own(tmp_path: Path) -> None:
    about = {"machine": "a CPU", "command": "c", "bandwidth GB/s": {"1": [19, 20, 21]}}
    about["conditions"] = "On a quiet Sunday."
    for name, rows in (
        ("peers.json", [row("int8", 150.0)]),
        (peers_page.DEEP, [row("int8", 140.0), row("int8", 130.0, depth=32_768)]),
    ):
        (tmp_path / name).write_text(json.dumps({**about, "rows": rows}))
    text = peers_page.write_page(tmp_path / "peers.json", tmp_path).read_text()
    _, deep = text.split("## To 32,768 tokens")
    assert "On a quiet Sunday." in deep
    assert "| ours, `int8` | 140 (126 – 154) | 130 (117 – 143) |" in deep
    assert "| ours, `int8` | 200 (100) | 200 (100) |" in deep
    assert "<svg" in (tmp_path / "peers-32k.svg").read_text()


def test_a_contender_that_does_not_start_is_named_with_what_it_said(tmp_path: Path) -> None:
    ours = [sys.executable, "-m", "benchmarks.peers.ours"]
    missing = tmp_path / "no.edge"
    with pytest.raises(RuntimeError, match=r"ours ended: .*no\.edge"):
        peers.Contender("ours", [*ours, str(missing), "1", "native"])
