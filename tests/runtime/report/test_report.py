"""The report stands on its own, is well formed, says what was measured, and is reproducible."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser

import msgspec
import pytest
from numpy_retnet import NetReference, NetSession, text
from rich.console import Console
from verification_samples import TOLERANCE, manifest, memory_of

from retnet_edge.runtime.memory.memory import Memory
from retnet_edge.runtime.memory.slope import Slope, fit_slope
from retnet_edge.runtime.parity.backend_pairs import BackendPair
from retnet_edge.runtime.parity.parity import BlockError, measure_parity
from retnet_edge.runtime.report.page import labels, render_report
from retnet_edge.runtime.report.terminal import print_report
from retnet_edge.runtime.report.verdict import BackendResult, Verdict, checks

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Tags opened and closed, ids, links, and the text of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.words = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "action", "data"):
                self.links.append(value or "")
            self.links += re.findall(r"url\(([^)]*)\)", value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(scope="module")
def verdict() -> Verdict:
    parity = measure_parity(
        NetSession(),
        NetReference(),
        [text(300)],
        allowed_error=2e-4,
        text_bytes=299,
        decode=lambda tokens: " & ".join(f"<token {token}>" for token in tokens),
    )
    blocks = (BlockError(0, 0.0123), BlockError(1, 0.0456))
    parity = msgspec.structs.replace(parity, blocks=blocks)
    memory = memory_of(Slope(0.0, 0.0, 0.0))
    grown = [(40 << 20) + 2048 * token for token in memory.tokens]
    baseline = msgspec.structs.replace(
        memory,
        model="transformer",
        anonymous=grown,
        anonymous_slope=fit_slope(memory.tokens, grown),
        state_bytes_per_token=2048,
    )
    found = checks(parity, memory, TOLERANCE)
    measured = BackendResult("onnxruntime", found, parity, memory, None)
    return Verdict((), (measured,), (), baseline, {"onnxruntime": "1.32.0"})


def test_the_page_is_well_formed_and_needs_nothing_else(verdict: Verdict) -> None:
    source = render_report("tiny.edge", [("tiny.edge", manifest(), verdict)])
    page = Page(source)
    assert page.open == []
    assert "http:" not in source
    assert "https:" not in source
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert page.tags.count("svg") == 6
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert "currentColor" in source


def test_the_page_holds_the_figures(verdict: Verdict) -> None:
    words = Page(render_report("tiny.edge", [("tiny.edge", manifest(), verdict)])).words
    figures = verdict.backends[0].parity.figures
    for expected in (
        "tiny.edge: verified",
        f"{figures.max_abs_logit_error:.4g}",
        f"{figures.mean_kl:.3g}",
        f"{figures.perplexity_ratio:.5f}",
        "≤ 0.0002",
        "≥ 99.00 %",
        "1,000,000, after 10 tokens",
        "2,048.000 [2,048.000, 2,048.000]",
        "0.000 [0.000, 0.000]",
        "ab" * 32,
        "cd" * 32,
        "2.13.0",
        "bits per byte",
        "After every block",
        "0.0456",
        "Where it differs most",
        f"“{verdict.backends[0].parity.worst[0].best_bundle}”",
        "top-1 / top-5 agreement",
    ):
        assert expected in words


def test_the_same_figures_give_the_same_page(verdict: Verdict) -> None:
    pages = {render_report("tiny.edge", [("tiny.edge", manifest(), verdict)]) for _ in range(2)}
    assert len(pages) == 1


def test_what_went_wrong_is_shown_and_names_are_escaped(verdict: Verdict) -> None:
    failed = msgspec.structs.replace(verdict, reasons=("mean KL is 1 & too much",))
    source = render_report("<b>.edge", [("<b>.edge", manifest(), failed)])
    page = Page(source)
    assert "<b>.edge: unverified" in page.words
    assert "mean KL is 1 & too much" in page.words
    assert "b" not in page.tags


def test_a_page_without_memory_and_with_figures_that_are_not_finite(verdict: Verdict) -> None:
    figures = msgspec.structs.replace(verdict.backends[0].parity.figures, mean_kl=float("nan"))
    bucket = msgspec.structs.replace(verdict.backends[0].parity.buckets[0], figures=figures)
    parity = msgspec.structs.replace(
        verdict.backends[0].parity, figures=figures, buckets=(bucket,), places=()
    )
    measured = msgspec.structs.replace(verdict.backends[0], parity=parity, memory=None)
    bare = msgspec.structs.replace(verdict, backends=(measured,), baseline=None)
    page = Page(render_report("tiny.edge", [("tiny.edge", manifest(), bare)]))
    assert "Memory was not measured." in page.words
    assert page.tags.count("svg") == 4


def test_the_terminal_shows_the_figures(verdict: Verdict) -> None:
    out = io.StringIO()
    print_report(
        "tiny.edge", [("tiny.edge", manifest(), verdict)], console=Console(file=out, width=200)
    )
    shown = out.getvalue()
    assert "tiny.edge: verified" in shown
    assert f"{verdict.backends[0].parity.figures.perplexity_ratio:.5f}" in shown
    assert shown.count("2,048.000") == 3  # the slope and both ends of its interval
    assert isinstance(verdict.backends[0].memory, Memory)


def test_two_columns_stand_side_by_side(verdict: Verdict) -> None:
    """Ids stay unique, and each backend's figures are there, planned memory beside measured."""
    first = verdict.backends[0]
    second = msgspec.structs.replace(first, backend="executorch", planned_bytes=7_654_321)
    pair = BackendPair("onnxruntime", "executorch", "int8", first.parity.figures)
    both = msgspec.structs.replace(verdict, backends=(first, second), between=(pair,))
    source = render_report("both.edge", [("both.edge", manifest(), both)])
    page = Page(source)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("svg") == 4 + 4 + 2 + 1
    for expected in ("Side by side", "7,654,321", "executorch: Against position", "0.250"):
        assert expected in page.words
    out = io.StringIO()
    print_report(
        "both.edge", [("both.edge", manifest(), both)], console=Console(file=out, width=200)
    )
    assert "7,654,321" in out.getvalue()
    assert "onnx |" in out.getvalue()
    entries = [("a", manifest(), both), ("b", manifest(), both)]
    assert "b · executorch: Against position" in Page(render_report("two", entries)).words


def test_bundles_are_called_by_their_directory_unless_two_share_it() -> None:
    assert labels(["x/a.edge", "y/b.edge"]) == {"x/a.edge": "a.edge", "y/b.edge": "b.edge"}
    assert labels(["x/a.edge", "y/a.edge"]) == {"x/a.edge": "x/a.edge", "y/a.edge": "y/a.edge"}
