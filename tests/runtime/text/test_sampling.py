"""The sampler against the plain definition: sort everything, then cut."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from retnet_edge.errors import InputError
from retnet_edge.runtime.text.sampling import Sampler, Sampling, _candidates

Logits = NDArray[np.float32]
logits_of = hnp.arrays(
    np.float32,
    st.integers(1, 400),
    elements=st.floats(-30, 30, width=32),
    unique=True,
)
settings_of = st.builds(
    Sampling,
    temperature=st.floats(0.05, 5),
    top_k=st.integers(0, 500),
    # nearer to 1, rounding of a sum of shares decides about all that are smaller than it
    top_p=st.one_of(st.just(1.0), st.floats(0.01, 1 - 1e-9)),
    min_p=st.floats(0, 1),
    seed=st.integers(0, 2**63),
)


@pytest.mark.parametrize(
    ("setting", "value", "allowed"),
    [
        ("temperature", -0.1, "0 \\(greedy\\) or more"),
        ("temperature", math.nan, "0 \\(greedy\\) or more"),
        ("temperature", math.inf, "0 \\(greedy\\) or more"),
        ("top_k", -1, "0 \\(off\\) or more"),
        ("top_p", 0.0, "above 0 and at most 1"),
        ("top_p", 1.1, "above 0 and at most 1"),
        ("min_p", -0.1, "0 to 1"),
        ("min_p", 1.5, "0 to 1"),
        ("repetition_penalty", 0.0, "0.01 to 100"),
        ("repetition_penalty", 0.0099, "0.01 to 100"),
        ("repetition_penalty", 100.5, "0.01 to 100"),
        ("seed", -1, "0 or more"),
    ],
)
def test_ranges(setting: str, value: float, allowed: str) -> None:
    with pytest.raises(InputError, match=f"{setting} is {value}; allowed is {allowed}"):
        Sampling(**{setting: value})  # type: ignore[arg-type]


def test_both_ends_of_a_range_are_allowed() -> None:
    for penalty in (0.01, 100):
        assert Sampling(repetition_penalty=penalty).repetition_penalty == penalty


def test_defaults_are_those_of_the_documentation() -> None:
    assert Sampling() == Sampling(0.8, 40, 0.95, 0.0, 1.0, 0)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (Sampling(), [270, 219, 219, 219, 247, 259, 219, 270]),
        (Sampling(seed=1), [219, 211, 219, 211, 219, 219, 247, 219]),
        (Sampling(top_k=0, top_p=1.0), [219, 219, 79, 47, 259, 270, 219, 247]),
        (Sampling(1.5, top_k=0, top_p=0.9), [48, 270, 219, 219, 187, 149, 74, 233]),
        (Sampling(2, top_k=300, top_p=1.0), [219, 87, 21, 7, 247, 270, 219, 232]),
        (Sampling(top_k=0, min_p=0.05), [270, 219, 219, 219, 270, 247, 219, 270]),
    ],
)
def test_a_seed_draws_the_same_in_every_version(settings: Sampling, expected: list[int]) -> None:
    """So that a text can be told again by its seed: these draws are of 1 December 2026."""
    logits = 3 * np.random.default_rng(0).standard_normal(300).astype(np.float32)
    sampler = Sampler(settings)
    assert [sampler.sample(logits) for _ in range(8)] == expected


def reference(logits: Logits, settings: Sampling) -> dict[int, float]:
    """Token -> probability, in float64, by the definition; without ties."""
    scores = logits.astype(np.float64) / settings.temperature
    order = np.argsort(-scores)
    if settings.top_k:
        order = order[: settings.top_k]
    weights = np.exp(scores[order] - scores[order[0]])
    shares = weights / weights.sum()
    before = np.concatenate(([0.0], np.cumsum(shares)[:-1]))
    # a sum of shares rounds to 1 while some are still to come, and 1 keeps all
    reached = (before >= settings.top_p) & (settings.top_p < 1)
    kept = ~reached & (weights >= settings.min_p)
    kept[0] = True
    total = weights[kept].sum()
    return {int(t): float(w / total) for t, w in zip(order[kept], weights[kept], strict=True)}


@given(logits_of, settings_of)
def test_candidates_are_those_of_the_definition(logits: Logits, settings: Sampling) -> None:
    expected = reference(logits, settings)
    ids, weights = _candidates(logits, settings)
    found = dict(zip(ids.tolist(), (weights / weights.sum()).tolist(), strict=True))
    # Where a share meets top_p or min_p to the last bit, rounding may decide for one token.
    different = set(expected) ^ set(found)
    assert len(different) <= 1
    if not different:
        assert found == pytest.approx(expected, rel=1e-9)


def test_top_p_1_keeps_what_is_too_unlikely_to_change_a_sum() -> None:
    logits = np.array([0.0, -90.0, -100.0], dtype=np.float32)
    settings = Sampling(temperature=1, top_k=0, top_p=1.0)
    ids, _ = _candidates(logits, settings)
    assert ids.tolist() == [0, 1, 2]
    assert list(reference(logits, settings)) == [0, 1, 2]
    more = np.array([0.0, -90.0, -100.0, -110.0], dtype=np.float32)
    ids, _ = _candidates(more, Sampling(temperature=1, top_k=3, top_p=1.0))
    assert ids.tolist() == [0, 1, 2]


@given(logits_of, settings_of)
def test_a_draw_is_a_candidate_and_repeats(logits: Logits, settings: Sampling) -> None:
    ids, _ = _candidates(logits, settings)
    one, two = Sampler(settings), Sampler(settings)
    drawn = [one.sample(logits) for _ in range(5)]
    assert set(drawn) <= set(ids.tolist())
    assert drawn == [two.sample(logits) for _ in range(5)]


@given(logits_of)
def test_greedy(logits: Logits) -> None:
    assert Sampler(Sampling(temperature=0)).sample(logits) == int(logits.argmax())
    assert Sampler(Sampling(top_k=1)).sample(logits) == int(logits.argmax())
    assert Sampler(Sampling(temperature=1e-300)).sample(logits) == int(logits.argmax())


def test_frequencies_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.2, 0.2, 0.06, 0.04], dtype=np.float32))
    sampler = Sampler(Sampling(temperature=1, top_k=0, top_p=1, seed=1))
    counts = np.bincount([sampler.sample(logits) for _ in range(20_000)], minlength=5)
    np.testing.assert_allclose(counts / 20_000, np.exp(logits), atol=0.012)


def test_the_order_top_k_then_top_p() -> None:
    """Top-p counts shares of what top-k left: 0.4/0.7 < 0.6, so two tokens; alone it would be 3."""
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1], dtype=np.float32))
    ids, _ = _candidates(logits, Sampling(temperature=1, top_k=2, top_p=0.6))
    assert ids.tolist() == [0, 1]
    ids, _ = _candidates(logits, Sampling(temperature=1, top_k=0, top_p=0.75))
    assert ids.tolist() == [0, 1, 2]


def test_a_nucleus_wider_than_the_first_look() -> None:
    logits = np.zeros(10_000, dtype=np.float32)
    ids, _ = _candidates(logits, Sampling(temperature=1, top_k=0, top_p=0.5))
    assert len(ids) == 5_000


def test_repetition_penalty() -> None:
    logits = np.array([2.0, 1.5, -1.0, -1.1], dtype=np.float32)
    greedy = Sampler(Sampling(temperature=0, repetition_penalty=2))
    assert greedy.sample(logits) == 0
    assert greedy.sample(logits, [0]) == 1
    assert greedy.sample(logits, [0, 0, 1, 1]) == 0
    assert greedy.sample(np.array([-1.0, -1.1], dtype=np.float32), {0}) == 1
    assert logits.tolist() == pytest.approx([2.0, 1.5, -1.0, -1.1])
    # small logits of either sign lose too
    assert greedy.sample(np.array([0.6, 0.5], dtype=np.float32), {0}) == 1
    assert greedy.sample(np.array([-0.5, -0.6], dtype=np.float32), {0}) == 1


def test_logits_may_be_read_only_and_partly_impossible() -> None:
    logits = np.array([-np.inf, 0.0, -np.inf], dtype=np.float32)
    logits.flags.writeable = False
    sampler = Sampler(Sampling(top_k=0, top_p=1, repetition_penalty=1.5))
    assert {sampler.sample(logits, [0, 1, 2]) for _ in range(50)} == {1}


@pytest.mark.parametrize("bad", [[math.nan, 1.0], [math.inf, 1.0], [-math.inf, -math.inf]])
def test_a_broken_graph_is_noticed(bad: list[float]) -> None:
    with pytest.raises(InputError, match="it must be finite"):
        Sampler(Sampling()).sample(np.array(bad, dtype=np.float32))
