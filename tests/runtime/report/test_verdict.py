"""Each bound fails on its own, and says which."""

from __future__ import annotations

import msgspec
import pytest
from numpy_retnet import NetReference, NetSession, text
from verification_samples import FLAT, LOOSE, TOLERANCE, memory_of

from retnet_edge.runtime.bundle.manifest import Backend
from retnet_edge.runtime.memory.memory import Memory
from retnet_edge.runtime.memory.slope import Slope
from retnet_edge.runtime.parity.golden import GoldenReplay
from retnet_edge.runtime.parity.parity import Parity, measure_parity
from retnet_edge.runtime.report.verdict import BackendResult, Verdict, checks, judge, reasons_of

replace = msgspec.structs.replace


@pytest.fixture(scope="module")
def parity() -> Parity:
    return measure_parity(NetSession(), NetReference(), [text(300)], allowed_error=2e-4)


def test_a_good_bundle_has_no_reasons(parity: Parity) -> None:
    assert judge(parity, FLAT, TOLERANCE) == ()
    assert judge(parity, FLAT, LOOSE) == ()
    assert all(check.passed for check in checks(parity, FLAT, TOLERANCE))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"max_abs_logit_error": 3e-4}, "largest logit error is 0.0003, at most 0.0002 is allowed"),
        ({"max_abs_logit_error": float("nan")}, "largest logit error is nan"),
        ({"mean_kl": 6e-4}, "mean KL (nats) is 0.0006, at most 0.0005 is allowed"),
        ({"mean_kl": float("nan")}, "mean KL (nats) is nan"),
        (
            {"top1_agreement_without_ties": 0.98},
            "top-1 agreement apart from ties is 98.00 %, at least 99.00 % is asked for",
        ),
        ({"perplexity_ratio": 1.002}, "perplexity ratio is 1.00200, 0.99900 to 1.00100 is allowed"),
        ({"perplexity_ratio": 0.998}, "perplexity ratio is 0.99800"),
    ],
)
def test_each_figure_fails_alone(parity: Parity, changes: dict[str, float], sentence: str) -> None:
    bad = replace(parity, figures=replace(parity.figures, **changes))
    (reason,) = judge(bad, FLAT, TOLERANCE)
    assert reason.startswith(sentence)


def test_the_bound_itself_is_allowed(parity: Parity) -> None:
    edge = replace(parity.figures, max_abs_logit_error=2e-4, mean_kl=5e-4, perplexity_ratio=1.001)
    assert judge(replace(parity, figures=edge), FLAT, TOLERANCE) == ()
    edge = replace(edge, top1_agreement_without_ties=0.99, perplexity_ratio=1 / 1.001)
    edge = replace(edge, relative_state_error=1e-4)
    assert judge(replace(parity, figures=edge), FLAT, TOLERANCE) == ()


def test_states(parity: Parity) -> None:
    """Judged where the logit error is: to 1e-4 of their norm."""
    figures = replace(parity.figures, relative_state_error=1.1e-4)
    bad = replace(parity, figures=figures)
    (reason,) = judge(bad, FLAT, TOLERANCE)
    assert reason == "relative state error is 0.00011, at most 0.0001 is allowed"
    assert judge(bad, FLAT, LOOSE) == ()


def test_golden(parity: Parity) -> None:
    """Each of the three figures fails alone; none is judged where the logit error is not."""
    good = GoldenReplay(2e-4, 2e-4, 1e-4)
    assert judge(replace(parity, golden=good), FLAT, TOLERANCE) == ()
    name = "golden.npz: largest logit error"
    for changes, sentence in (
        ({"near_logit_error": 3e-4}, f"{name} is 0.0003, at most 0.0002 is allowed"),
        ({"far_logit_error": 4e-4}, f"{name} at position 1,000,000 is 0.0004, at most 0.0002"),
        ({"relative_state_error": 2e-4}, "golden.npz: relative state error is 0.0002, at most 0.0"),
    ):
        bad = replace(parity, golden=replace(good, **changes))
        (reason,) = judge(bad, FLAT, TOLERANCE)
        assert reason.startswith(sentence)
        assert judge(bad, FLAT, LOOSE) == ()


def test_without_a_logit_bound_every_disagreement_counts(parity: Parity) -> None:
    figures = replace(parity.figures, top1_agreement=0.98, top1_agreement_without_ties=None)
    (reason,) = judge(replace(parity, figures=figures), FLAT, LOOSE)
    assert reason.startswith("top-1 agreement is 98.00 %")


def test_second_halves(parity: Parity) -> None:
    def with_halves(first: float, second: float) -> Parity:
        return replace(
            parity,
            first_half=replace(parity.first_half, mean_kl=first),
            second_half=replace(parity.second_half, mean_kl=second),
        )

    assert judge(with_halves(1e-4, 2e-4), FLAT, TOLERANCE) == ()
    (reason,) = judge(with_halves(1e-4, 2.1e-4), FLAT, TOLERANCE)
    assert reason.startswith("mean KL of second halves of contexts is 0.00021, at most 0.0002")
    # rounding of float32 is not drift
    assert judge(with_halves(1e-13, 1e-11), FLAT, TOLERANCE) == ()


def test_far_positions(parity: Parity) -> None:
    def with_far(**changes: float) -> Parity:
        near, far, *rest = parity.places
        far = replace(far, figures=replace(far.figures, **changes))
        return replace(parity, places=(near, far, *rest))

    (reason,) = judge(with_far(max_abs_logit_error=1.0), FLAT, TOLERANCE)
    assert reason.startswith("largest logit error at position 1,000,000 after 10 tokens is 1")
    (reason,) = judge(with_far(mean_kl=0.01), FLAT, LOOSE)
    assert reason.startswith("mean KL at position 1,000,000 after 10 tokens is 0.01, at most 0.001")
    (reason,) = judge(with_far(relative_state_error=2e-4), FLAT, TOLERANCE)
    assert reason.startswith("relative state error at position 1,000,000 after 10 tokens is 0.0002")
    assert judge(with_far(relative_state_error=1e-4), FLAT, TOLERANCE) == ()


def test_every_later_place_is_held_to_the_first(parity: Parity) -> None:
    """To twice its mean KL, where that is more than what the recipe allows; also the last one."""

    def with_kl(first: float, last: float) -> Parity:
        near, *rest, far = parity.places
        near = replace(near, figures=replace(near.figures, mean_kl=first))
        far = replace(far, figures=replace(far.figures, mean_kl=last))
        return replace(parity, places=(near, *rest, far))

    assert judge(with_kl(0.01, 0.02), FLAT, TOLERANCE) == ()
    (reason,) = judge(with_kl(0.01, 0.021), FLAT, TOLERANCE)
    assert reason.endswith("is 0.021, at most 0.02 is allowed")
    assert judge(with_kl(0.01, 0.0), FLAT, TOLERANCE) == ()


def result(backend: Backend, parity: Parity) -> BackendResult:
    return BackendResult(backend, checks(parity, FLAT, TOLERANCE), parity, FLAT, None)


def test_reasons_of_backends(parity: Parity) -> None:
    """A reason names its backend where there are several; one left out is a reason."""
    good = result("onnxruntime", parity)
    bad = result("native", replace(parity, nonfinite_tokens=2))
    sentence = "the logits of 2 of 300 positions are not finite"
    assert (good.reasons, bad.reasons) == ((), (sentence,))
    assert reasons_of([good], ["onnxruntime"]) == ()
    assert reasons_of([bad], ["native"]) == (sentence,)
    both: list[Backend] = ["onnxruntime", "native"]
    assert reasons_of([good, bad], both) == (f"native: {sentence}",)
    assert reasons_of([bad], both) == (f"native: {sentence}", "onnxruntime was not measured")


def test_status_and_what_a_result_is_by_default(parity: Parity) -> None:
    one = result("native", parity)
    assert (one.operators, one.profiled_steps) == ((), 0)
    good = Verdict((), (one,), (), None, {})
    assert (good.verified, good.status) == (True, "verified")
    bad = replace(good, reasons=("memory was not measured",))
    assert (bad.verified, bad.status) == (False, "unverified")
    for record in (good, one, one.checks[0]):
        with pytest.raises(AttributeError, match="immutable"):
            setattr(record, "reason", "none")  # noqa: B010 - what a checker would find


def test_prefill(parity: Parity) -> None:
    assert parity.prefill is not None
    bad = replace(parity, prefill=replace(parity.prefill, mean_kl=0.1, max_abs_logit_error=1.0))
    logits, kl = judge(bad, FLAT, TOLERANCE)
    assert logits.startswith("largest logit error of steps after a prefill of 299 tokens is 1")
    assert kl.startswith("mean KL of steps after a prefill of 299 tokens is 0.1")


def test_logits_that_are_not_finite(parity: Parity) -> None:
    (reason,) = judge(replace(parity, nonfinite_tokens=2), FLAT, TOLERANCE)
    assert reason == "the logits of 2 of 300 positions are not finite"


@pytest.mark.parametrize(
    ("memory", "sentence"),
    [
        (None, "memory was not measured"),
        (
            memory_of(Slope(0.5, 0.2, 0.8)),
            "anonymous memory grows by 0.5 bytes a token over 20,000",
        ),
        (memory_of(Slope(0.5, -1, 2)), "the upper end of the 95 % interval of anonymous memory is"),
        (memory_of(Slope(0.0, 0.0, 1.0)), "the upper end of the 95 % interval"),
        (
            memory_of(Slope(0, 0, 0), state_bytes=384),
            "the states take 384 bytes, the manifest says",
        ),
    ],
)
def test_memory(parity: Parity, memory: Memory | None, sentence: str) -> None:
    (reason,) = judge(parity, memory, TOLERANCE)
    assert reason.startswith(sentence)


def test_a_leak_fails_both_ways(parity: Parity) -> None:
    assert len(judge(parity, memory_of(Slope(8, 7, 9)), TOLERANCE)) == 2
