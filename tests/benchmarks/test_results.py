"""docs/results.md is what the metrics say, in tables and in words."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest
from comparison_samples import record

from benchmarks.comparisons.head_shape_records import ShapeCost, ShapeCosts, write_costs
from benchmarks.comparisons.records import write_records
from benchmarks.comparisons.runs import Run
from benchmarks.results_page.__main__ import ROOT, page, read_speed, write_results
from benchmarks.results_page.text import order_in_words
from retnet_edge.errors import InputError

EXPECTED = Path(__file__).parent / "expected_results.md"
PERPLEXITIES = {
    Run("retnet", "10m"): 20.0,
    Run("retnet", "10m", seed=2): 20.4,
    Run("retnet", "10m", seed=3): 20.2,
    Run("transformer", "10m"): 19.0,
    Run("transformer", "10m", seed=2): 19.2,
    Run("retnet", "60m"): 15.0,
    Run("transformer", "60m"): 16.0,
    Run("no-gate", "10m"): 22.0,
    Run("gamma-1", "10m"): 21.0,
    Run("one-gamma", "10m"): 21.3,
    Run("transformer", "10m", 512): 18.0,
    Run("wide-heads", "shape"): 11.0,
    Run("retnet", "shape"): 10.0,
}


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    """Figures that nobody measured, in the files that measurements leave."""
    folder = tmp_path / "comparisons"
    for run, perplexity in PERPLEXITIES.items():
        write_records(folder / f"{run.name}.jsonl", [record(run, math.log(perplexity))])
    norm = Run("no-group-norm", "10m")
    failed = record(norm, 3.0, reason="the loss is nan at step 60")
    write_records(folder / f"{norm.name}.jsonl", [failed])
    shapes = [
        ShapeCost("wide-heads-shape", 3, 256, 512, 4_718_592, 5.5, (5.0, 6.0)),
        ShapeCost("retnet-shape", 12, 64, 128, 1_179_648, 4.25, (4.0, 4.5)),
    ]
    write_costs(folder, ShapeCosts("a CPU", 1, 15, 200, shapes))
    speed = tmp_path / "speed"
    speed.mkdir()
    rows = [
        {"model": "ours | theirs", "tokens/s": 137_000.4, "GiB": 25.25},
        {"model": "b", "tokens/s": None, "compiled": True, "chunk": 1024},
    ]
    table = {"title": "A step", "command": "python x.py", "device": "a GPU", "rows": rows}
    (speed / "step.json").write_bytes(msgspec.json.encode(table))
    return tmp_path


def test_the_page_of_a_few_figures(metrics: Path) -> None:
    written = write_results(metrics / "comparisons", metrics / "speed", metrics / "docs")
    assert written.read_text() == EXPECTED.read_text()


def test_the_plots_are_small_and_the_same_every_time(metrics: Path) -> None:
    docs = [metrics / "docs", metrics / "again"]
    for folder in docs:
        write_results(metrics / "comparisons", metrics / "speed", folder)
    for name in ("results-sizes.svg", "results-ablations.svg"):
        first, second = (folder / name for folder in docs)
        assert first.read_bytes() == second.read_bytes()
        assert first.stat().st_size < 200_000
        assert "Transformer 60M" in first.read_text() or "no swish gate" in first.read_text()


def test_nothing_measured_makes_no_sections(tmp_path: Path) -> None:
    text = page(tmp_path / "none", tmp_path / "neither", {})
    assert "##" not in text


def test_the_committed_page_is_that_of_the_committed_metrics() -> None:
    """Else: run `python -m benchmarks.results_page` and commit what it writes."""
    results, docs = ROOT / "benchmarks" / "results", ROOT / "docs"
    drawn = {path.name: path.read_bytes() for path in docs.glob("results-*.svg")}
    committed = (docs / "results.md").read_text()
    assert committed == page(results / "comparisons", results / "speed", drawn)


def test_the_order_in_words() -> None:
    paper = {"retnet": 26.05, "one-gamma": 27.02, "no-gate": 27.84}
    same = order_in_words({"retnet": 1.0, "one-gamma": 2.0, "no-gate": 3.0}, paper, None)  # type: ignore[arg-type]
    assert same == ["The order is the paper's."]
    other = order_in_words({"retnet": 10.0, "one-gamma": 12.0, "no-gate": 11.0}, paper, 0.05)  # type: ignore[arg-type]
    assert other[0] == "Where the order is not the paper's (1 of 3 pairs):"
    assert "one γ, 127/128 (27.02) before no swish gate (27.84)" in other[2]
    assert "within the range" not in other[2]
    close = order_in_words({"one-gamma": 10.1, "no-gate": 10.0}, paper, 0.05)  # type: ignore[arg-type]
    assert close[2].endswith("that is within the range of seeds (5.00 %)")


def test_a_speed_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "step.json"
    path.write_text('{"title": "A step", "rows": []}')
    with pytest.raises(InputError, match=r"step\.json: not a table of figures: .*command"):
        read_speed(path)
