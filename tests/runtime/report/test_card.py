"""The section of a model card."""

from __future__ import annotations

import msgspec
from numpy_retnet import NetReference, NetSession, text
from verification_samples import TOLERANCE, manifest, memory_of

from retnet_edge.runtime.memory.slope import Slope
from retnet_edge.runtime.parity.parity import measure_parity
from retnet_edge.runtime.report.card import HEADER, model_card
from retnet_edge.runtime.report.verdict import BackendResult, Verdict, checks


def test_the_card_has_a_row_for_every_bundle_with_its_figures() -> None:
    parity = measure_parity(NetSession(), NetReference(), [text(300)], text_bytes=299)
    memory = memory_of(Slope(0.25, -0.125, 0.5))
    measured = BackendResult("onnxruntime", checks(parity, memory, TOLERANCE), parity, memory, None)
    failed = checks(msgspec.structs.replace(parity, nonfinite_tokens=3), None, TOLERANCE)
    other = msgspec.structs.replace(measured, checks=failed, memory=None)
    verdicts = [
        Verdict((), (one,), (), None, {"onnxruntime": "1.32.0"}) for one in (measured, other)
    ]
    card = model_card([("a.edge", manifest(), verdicts[0]), ("b.edge", manifest(), verdicts[1])])
    table = [line for line in card.splitlines() if line.startswith("|")]
    assert table[0] == "| " + " | ".join(HEADER) + " |"
    assert [line.count("|") for line in table] == [len(HEADER) + 1] * 4
    cells = [cell.strip() for cell in table[2].strip("|").split("|")]
    assert cells[0] == "int8"
    assert cells[3] == f"{parity.figures.perplexity_ratio:.5f}"
    assert cells[5] == f"{parity.figures.mean_kl:.2e}"
    assert cells[10:] == ["0.25 [-0.125, 0.5]", "yes"]
    assert table[3].endswith("| – | no |")
    assert f"`{'ab' * 32}`" in card
    assert "300 held-out tokens in 1 contexts" in card
    assert f"perplexity is {parity.figures.perplexity_reference:.4f}" in card
    assert "onnxruntime 1.32.0" in card
