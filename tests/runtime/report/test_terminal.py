"""A verification fits 80 characters, with one to four columns, and shows every figure."""

from __future__ import annotations

import io
import itertools
import re

import msgspec
import pytest
from numpy_retnet import NetReference, NetSession, text
from rich.cells import cell_len
from rich.console import Console
from verification_samples import LOOSE, TOLERANCE, manifest, memory_of

from retnet_edge.runtime.bundle.manifest import Backend, Quantization
from retnet_edge.runtime.memory.slope import Slope
from retnet_edge.runtime.parity.backend_pairs import BackendPair
from retnet_edge.runtime.parity.golden import GoldenReplay
from retnet_edge.runtime.parity.parity import BlockError, Parity, measure_parity
from retnet_edge.runtime.report.page import ReportEntry, columns_of
from retnet_edge.runtime.report.terminal import check_table, names_of, print_report, short_name
from retnet_edge.runtime.report.terminal_tables import memory_table, parity_table
from retnet_edge.runtime.report.verdict import BackendResult, Check, Verdict, checks

LONG = "edge-135m-int4-weight-searched-and-tuned.edge"
KERNELS = (
    Check("kernel parity: steps against the same graph in NumPy, median", "2.9e-06", "≤ 0.0001",
          True, ""),
    Check("kernel parity: 29 quantized products", "0.00021", "≤ 0.0001", False, "too much"),
)  # fmt: skip
BACKENDS: tuple[Backend, ...] = ("onnxruntime", "executorch", "native")


@pytest.fixture(scope="module")
def parity() -> Parity:
    measured = measure_parity(
        NetSession(), NetReference(), [text(300)], allowed_error=2e-4, text_bytes=299
    )
    return msgspec.structs.replace(
        measured,
        blocks=(BlockError(0, 0.0123), BlockError(1, 0.0456)),
        golden=GoldenReplay(0.0012345, 0.0023456, 0.0034567),
    )


def entry(parity: Parity, name: str, backends: tuple[Backend, ...]) -> ReportEntry:
    """A bundle of 1.3 GB whose every figure differs a little from the others'."""
    results = []
    for index, backend in enumerate(backends):
        figures = msgspec.structs.replace(
            parity.figures, max_abs_logit_error=0.2 + index, mean_kl=1.23e-4 + 1e-6 * index
        )
        own = msgspec.structs.replace(parity, figures=figures)
        memory = memory_of(
            Slope(12_345.678 + index, -1_234.5, 22_345.678),
            base_bytes=5_234_567_890 + index,
            step_milliseconds=(101.25, 102.375 + index, 103.125),
        )
        found = (*checks(own, memory, LOOSE if index else TOLERANCE), *KERNELS)
        results.append(BackendResult(backend, found, own, memory, 7_654_321 + index))
    pairs = tuple(
        BackendPair(first, second, "int8", parity.figures)
        for first, second in itertools.combinations(backends, 2)
    )
    baseline = memory_of(Slope(21_678.848, 20_796.871, 22_560.824), model="transformer")
    reasons = tuple(reason for result in results for reason in result.reasons)
    verdict = Verdict(reasons, tuple(results), pairs, baseline, {})
    about = msgspec.structs.replace(manifest(), quantization=Quantization("int4-weight-tuned"))
    graphs = tuple(msgspec.structs.replace(about.graphs[0], backend=one) for one in backends)
    return name, msgspec.structs.replace(about, graphs=graphs), verdict


def entries_of(parity: Parity, columns: int) -> list[ReportEntry]:
    """Three backends of a bundle at most, and then bundles whose names are long."""
    if columns <= len(BACKENDS):
        return [entry(parity, "both.edge", BACKENDS[:columns])]
    return [
        entry(parity, f"{number}-{LONG}", ("onnxruntime", "native"))
        for number in range(columns // 2)
    ]


def shown(entries: list[ReportEntry], width: int) -> str:
    out = io.StringIO()
    between = []
    if len(entries) > 1:
        names = (f"{entries[0][0]} · onnxruntime", f"{entries[1][0]} · native")
        figures = entries[0][2].backends[0].parity.figures
        between = [BackendPair(*names, "int8", figures)]
    print_report("both.edge", entries, between, Console(file=out, width=width))
    return out.getvalue()


@pytest.mark.parametrize("columns", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("width", [60, 80])
def test_it_fits_and_breaks_no_word(columns: int, width: int, parity: Parity) -> None:
    entries = entries_of(parity, columns)
    found = shown(entries, width)
    for line in found.splitlines():
        assert cell_len(line) <= width, line
    assert "…" not in found
    words = found.split()
    _, rows = check_table(columns_of(entries), names_of(entries))
    labels = [row[0] for row in (*rows, *parity_table(columns_of(entries)))]
    for word in " ".join([*labels, *names_of(entries).columns]).split():
        assert word in words


@pytest.mark.parametrize("columns", [1, 2, 3, 4, 6])
def test_every_figure_is_there(columns: int, parity: Parity) -> None:
    entries = entries_of(parity, columns)
    words = shown(entries, 80).split()
    every = columns_of(entries)
    memories = [c.measured.memory for c in every if c.measured.memory is not None]
    assert len(memories) == columns
    tables = [
        check_table(every, names_of(entries))[1],
        parity_table(every),
        memory_table(memories, [c.measured.planned_bytes for c in every]),
    ]
    for row in itertools.chain(*tables):
        for cell in row[1:]:
            assert all(part in words for part in cell.split()), (row[0], cell)
    assert words.count("FAIL") == sum(
        not check.passed for column in every for check in column.measured.checks
    )


def test_the_page_shows_no_figure_that_the_terminal_leaves_out(parity: Parity) -> None:
    """Of what both have in tables of one column: checks, parity, far positions, memory."""
    entries = entries_of(parity, 1)
    result = entries[0][2].backends[0]
    words = set(shown(entries, 80).split())
    f = result.parity.figures
    for figure in (
        f"{f.p50_kl:.3g}", f"{f.p90_kl:.3g}", f"{f.max_kl:.3g}", f"{result.parity.contexts:,}",
        f"{f.perplexity_bundle:.4f}", f"{f.perplexity_reference:.4f}", f"{f.perplexity_ratio:.5f}",
        f"{result.parity.bits_per_byte_bundle:.4f}", f"{result.parity.halves_kl_ratio:.3g}",
        "0.00123", "0.00235", "0.00346", "0.0456", "7,654,321", "12,345.678", "-1,234.500",
        "22,345.678", "101.250", "102.375", "103.125", "21,678.848", "5,234,567,890",
        *(f"{place.figures.mean_abs_logit_error:.3g}" for place in result.parity.places),
        *(f"{place.prefix:,}" for place in result.parity.places),
    ):  # fmt: skip
        assert figure in words, figure


def test_marks_stand_beside_figures_and_bounds_below(parity: Parity) -> None:
    one = shown(entries_of(parity, 1), 80)
    assert re.search(r"largest logit error +0\.2 FAIL +≤ 0\.0002\n", one)
    two = shown(entries_of(parity, 2), 80)
    assert re.search(r"largest logit error +0\.2 FAIL +–\n  bound +≤ 0\.0002 *\n", two)
    assert re.search(r"mean KL +0\.000123 ok +0\.000124 ok *\n  bound +≤ 0\.0005 ", two)


def test_long_names_are_numbers_with_a_legend(parity: Parity) -> None:
    found = shown(entries_of(parity, 4), 80)
    assert f"  1     0-{LONG}, recipe\n        int4-weight-tuned" in found
    assert re.search(r"^figure +1 onnx +1 native +2 onnx +2 native *$", found, re.MULTILINE)
    assert "onnx  onnxruntime" in found
    short = [entry(parity, f"{letter}.edge", ("onnxruntime", "executorch")) for letter in "ab"]
    found = shown(short, 80)
    assert re.search(r"^ +a\.edge +a\.edge +b\.edge +b\.edge *\nfigure +onnx +et +onnx", found,
                     re.MULTILINE)  # fmt: skip
    assert "et      executorch" in found
    assert "a.edge  recipe int4-weight-tuned" in found


def test_a_comparison_stands_under_both_names(parity: Parity) -> None:
    found = shown(entries_of(parity, 3), 80)
    assert re.search(r"^ +onnx \| +onnx \| +et \| *\nfigure +et +native +native", found,
                     re.MULTILINE)  # fmt: skip
    found = shown(entries_of(parity, 4), 80)
    assert re.search(r"^ +1 onnx \| +2 onnx \| +1 onnx \| *\nfigure +1 native +2 native +2 native",
                     found, re.MULTILINE)  # fmt: skip


def test_a_column_without_memory_is_left_out_of_the_memory_table(parity: Parity) -> None:
    name, about, verdict = entry(parity, "a.edge", ("onnxruntime", "native"))
    first, second = verdict.backends
    bare = msgspec.structs.replace(first, memory=None)
    found = shown([(name, about, msgspec.structs.replace(verdict, backends=(bare, second)))], 80)
    assert re.search(r"Memory and speed\nfigure +native +transformer", found)


def test_names_of_checks_are_short(parity: Parity) -> None:
    (_, _, verdict) = entry(parity, "a.edge", ("onnxruntime",))
    for check in verdict.backends[0].checks:
        assert len(short_name(check.name)) <= 54, check.name
    assert short_name("mean KL at position 1,000,000 after 10 tokens") == (
        "mean KL at 1,000,000 (after 10)"
    )
