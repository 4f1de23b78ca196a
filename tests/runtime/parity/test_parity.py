"""Parity figures against closed forms, and faults that they have to see."""

from __future__ import annotations

import dataclasses

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from numpy_retnet import VOCAB, NetReference, NetSession, text

from retnet_edge.errors import InputError
from retnet_edge.runtime.parity.agreement import compare, log_softmax, state_distance, summarise
from retnet_edge.runtime.parity.parity import Parity, measure_parity
from retnet_edge.runtime.parity.probes import measure_prefill, probe_positions
from retnet_edge.runtime.parity.replay import bucket_edges, replay, spans


def measure(session: NetSession, *lengths: int, **options: object) -> Parity:
    contexts = [text(length, seed) for seed, length in enumerate(lengths)]
    return measure_parity(session, NetReference(), contexts, **options)  # type: ignore[arg-type]


def reference_logits(tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    return NetReference().run(tokens, None, 0)[0]


def test_a_faithful_float32_session_agrees() -> None:
    parity = measure(NetSession(), 700, 300, allowed_error=1e-4)
    assert parity.contexts == 2
    assert parity.figures.tokens == 1000
    assert 0 < parity.figures.max_abs_logit_error < 2e-5
    assert parity.figures.mean_kl < 1e-11
    assert parity.figures.top1_agreement_without_ties == 1.0
    assert parity.figures.perplexity_ratio == pytest.approx(1, abs=1e-6)
    assert parity.figures.relative_state_error is not None
    assert parity.figures.relative_state_error < 1e-6
    assert parity.nonfinite_tokens == 0
    assert parity.prefill is not None
    assert parity.prefill.max_abs_logit_error == 0


class CountedReference(NetReference):
    """Adds up the tokens that it was given."""

    tokens = 0

    def run(
        self, tokens: NDArray[np.int64], states: list[NDArray[np.float64]] | None, position: int
    ) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
        self.tokens += len(tokens)
        return super().run(tokens, states, position)


def test_sessions_replayed_together_give_what_each_gives_alone() -> None:
    contexts = [text(300, 0), text(90, 1)]
    reference = CountedReference()
    advanced: list[int] = []
    sessions = [NetSession(), NetSession(state_scale=1.01)]
    together = replay(sessions, reference, contexts, block=50, advance=advanced.append)
    assert reference.tokens == 390
    assert sum(advanced) == 2 * 390
    for session, found in zip(sessions, together, strict=True):
        (alone,) = replay([session], NetReference(), contexts, block=50)
        assert found.states == alone.states
        for field in dataclasses.fields(alone.trace):
            ours, theirs = getattr(found.trace, field.name), getattr(alone.trace, field.name)
            np.testing.assert_array_equal(ours, theirs)
        given = measure_parity(session, NetReference(), contexts, replayed=found)
        assert given == measure_parity(session, NetReference(), contexts, block=50)
    assert together[0].states != together[1].states


@pytest.mark.parametrize("delta", [0.01, 0.5, -2.0])
def test_an_error_of_one_logit_gives_the_figures_of_its_closed_form(delta: float) -> None:
    def fault(logits: NDArray[np.float32], position: int) -> NDArray[np.float32]:
        logits[3] += delta
        return logits

    tokens = text(200, 0)
    logits = reference_logits(tokens)
    p = np.exp(log_softmax(logits))[:, 3]
    # q = p e^δ / Z on token 3 and p / Z elsewhere, with Z = 1 + p_3 (e^δ - 1)
    kl = np.log1p(p * np.expm1(delta)) - p * delta
    shifted = logits.copy()
    shifted[:, 3] += delta

    figures = measure(NetSession(fault), 200).figures
    assert figures.max_abs_logit_error == pytest.approx(abs(delta), abs=2e-5)
    assert figures.mean_abs_logit_error == pytest.approx(abs(delta) / VOCAB, abs=1e-5)
    assert figures.mean_kl == pytest.approx(kl.mean(), rel=1e-3)
    assert figures.max_kl == pytest.approx(kl.max(), rel=1e-3)
    five = [set(np.argsort(x)[-5:]) for x in logits]
    shifted_five = [set(np.argsort(x)[-5:]) for x in shifted]
    both = [len(a & b) / 5 for a, b in zip(five, shifted_five, strict=True)]
    assert figures.top5_agreement == pytest.approx(np.mean(both))
    rows = np.arange(199), tokens[1:]
    change = np.exp(log_softmax(shifted))[rows] - np.exp(log_softmax(logits))[rows]
    assert figures.mean_delta_p == pytest.approx(change.mean(), abs=1e-6)
    assert figures.rms_delta_p == pytest.approx(np.sqrt(np.square(change).mean()), rel=1e-3)
    quantiles = (figures.p50_kl, figures.p90_kl, figures.p99_kl)
    assert quantiles == pytest.approx(tuple(np.percentile(kl, (50, 90, 99))), rel=1e-3)
    same = (shifted.argmax(1) == logits.argmax(1)).mean()
    assert figures.top1_agreement == pytest.approx(same)
    surprisal = -log_softmax(shifted)[np.arange(199), tokens[1:]]
    assert figures.perplexity_bundle == pytest.approx(np.exp(surprisal.mean()), rel=1e-5)
    surprisal = -log_softmax(logits)[np.arange(199), tokens[1:]]
    assert figures.perplexity_reference == pytest.approx(np.exp(surprisal.mean()), rel=1e-12)


def test_a_shift_of_all_logits_is_an_error_but_no_divergence() -> None:
    figures = measure(NetSession(lambda logits, position: logits + np.float32(4)), 100).figures
    assert figures.max_abs_logit_error == pytest.approx(4, abs=1e-4)
    assert figures.mean_kl < 1e-10
    assert figures.perplexity_ratio == pytest.approx(1, abs=1e-6)


def wrong_from(first: int) -> NetSession:
    def fault(logits: NDArray[np.float32], position: int) -> NDArray[np.float32]:
        return logits[::-1] if position >= first else logits

    return NetSession(fault)


def test_a_fault_in_the_second_half_shows_in_the_ratio_and_in_its_bucket() -> None:
    parity = measure(wrong_from(256), 512)
    assert parity.halves_kl_ratio > 1e6
    by_bucket = [bucket.figures.mean_kl > 1e-3 for bucket in parity.buckets]
    assert by_bucket == [False, False, True]
    assert [(b.first, b.last, b.figures.tokens) for b in parity.buckets] == [
        (0, 63, 64),
        (64, 255, 192),
        (256, 1023, 256),
    ]
    everywhere = measure(wrong_from(0), 512)
    assert 0.5 < everywhere.halves_kl_ratio < 2


def test_bits_per_token_and_per_byte() -> None:
    parity = measure(NetSession(), 100, 50, text_bytes=74)
    figures = parity.figures
    bits = np.log2(figures.perplexity_reference)
    assert parity.bits_per_token_reference == pytest.approx(bits)
    # 148 predicted tokens over 74 bytes
    assert parity.bits_per_byte_reference == pytest.approx(2 * bits)
    assert measure(NetSession(), 100).bits_per_byte_reference is None


def test_state_errors_are_measured() -> None:
    parity = measure(NetSession(state_scale=1 + 2**-8), 300)
    assert parity.figures.relative_state_error == pytest.approx(2**-8, rel=1e-3)
    assert all(b.figures.relative_state_error is not None for b in parity.buckets)
    with pytest.raises(ValueError, match="reference states are"):
        state_distance([np.zeros((1, 2))], [np.zeros((1, 3))])


def test_blocks_do_not_change_the_figures() -> None:
    small, large = measure(NetSession(), 300, block=7), measure(NetSession(), 300, block=256)
    assert small.figures.mean_kl == pytest.approx(large.figures.mean_kl)
    assert small.figures.max_abs_logit_error == large.figures.max_abs_logit_error
    reference = NetReference()
    measure_parity(
        NetSession(), reference, [text(300)], block=50, places=False, prefill_tokens=None
    )
    assert max(reference.calls) <= 50


def test_spans_cover_everything_and_cross_no_edge() -> None:
    assert bucket_edges(64) == [0, 64]
    assert bucket_edges(5000) == [0, 64, 256, 1024, 2048, 4096, 8192]
    for length in (2, 63, 64, 65, 1000, 2049):
        found = list(spans(length, 100))
        assert [start for start, _ in found] == [0, *(stop for _, stop in found[:-1])]
        assert found[-1][1] == length
        assert all(0 < stop - start <= 100 for start, stop in found)
        assert {edge for edge in bucket_edges(length) if edge < length} <= {s for s, _ in found}


def test_ties_are_those_within_twice_the_allowed_error() -> None:
    reference = np.array([[1.0, 0.9, 0.0], [1.0, 0.9, 0.0], [1.0, 0.5, 0.0]])
    bundle = np.array([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.5, 1.0, 0.0]])
    trace = compare(reference, bundle, targets=np.array([0, 0, -1]), first=0, length=3)
    assert summarise(trace).top1_agreement == pytest.approx(1 / 3)
    assert summarise(trace).top1_agreement_without_ties is None
    assert summarise(trace, allowed_error=0.06).top1_agreement_without_ties == pytest.approx(2 / 3)
    assert summarise(trace, allowed_error=0.3).top1_agreement_without_ties == 1


def test_a_position_in_float32_is_seen_far_out_and_not_near() -> None:
    context = text(600)
    right = probe_positions(NetSession(), NetReference(), context)
    assert [(place.position, place.prefix) for place in right] == [
        (10, 10),
        (1_000_000, 10),
        (1_000_000, 536),
    ]
    assert all(place.figures.tokens == 64 for place in right)
    assert all(place.figures.max_abs_logit_error < 2e-5 for place in right)
    wrong = probe_positions(NetSession(angle_dtype=np.float32), NetReference(), context)
    near, far, far_long = (place.figures.max_abs_logit_error for place in wrong)
    assert near < 2e-5
    assert far > 1e-4
    assert far_long > 1e-4
    assert probe_positions(NetSession(), NetReference(), text(11)) == ()


def test_a_prefill_at_the_wrong_position_is_seen() -> None:
    context = text(1100)
    right = measure_prefill(NetSession(), context, 1000)
    assert right is not None
    assert (right.tokens, right.following) == (1000, 64)
    assert right.max_abs_logit_error == right.max_abs_state_error == 0
    wrong = measure_prefill(NetSession(prefill_shift=1), context, 1000)
    assert wrong is not None
    assert wrong.max_abs_logit_error > 0.01
    assert wrong.relative_state_error > 0.1
    assert measure_prefill(NetSession(), context[:1], 1000) is None


def test_logits_that_are_not_finite_are_counted() -> None:
    def fault(logits: NDArray[np.float32], position: int) -> NDArray[np.float32]:
        return logits * np.float32(np.nan) if position in (5, 6) else logits

    parity = measure(NetSession(fault), 100)
    assert parity.nonfinite_tokens == 2
    assert np.isnan(parity.figures.mean_kl)
    assert msgspec.json.decode(msgspec.json.encode(parity))["figures"]["mean_kl"] is None


@pytest.mark.parametrize("lengths", [(), (100, 1)])
def test_contexts_too_short_are_refused(lengths: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="at least one context"):
        measure(NetSession(), *lengths)


def test_progress_counts_every_token_of_the_contexts() -> None:
    seen: list[int] = []
    measure(NetSession(), 300, 80, advance=seen.append)
    assert sum(seen) == 380
