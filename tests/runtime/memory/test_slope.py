"""The slope of memory over tokens and its interval: by their definitions, and of made-up leaks."""

from __future__ import annotations

import math

import numpy as np
import pytest

from retnet_edge.runtime.memory.slope import Slope, fit_slope

PAGE = 4096
TOKENS = list(range(0, 20_000, 40))


def fit(sizes: object) -> Slope:
    return fit_slope(TOKENS, np.asarray(sizes).astype(np.int64).tolist())


def by_definition(tokens: list[int], sizes: list[int]) -> tuple[float, float, float]:
    """Least squares, and Newey-West over pairs of weighted increments, in plain Python."""
    n, spacing = len(tokens), tokens[1] - tokens[0]
    mean_x, mean_y = sum(tokens) / n, sum(sizes) / n
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(tokens, sizes, strict=True))
    slope /= sum((x - mean_x) ** 2 for x in tokens)
    g = [
        6 * i * (n - i) / (n * (n * n - 1)) * (sizes[i] - sizes[i - 1] - slope * spacing)
        for i in range(1, n)
    ]
    width = n // 5
    variance = sum(
        (1 - abs(i - j) / width) * a * b
        for i, a in enumerate(g)
        for j, b in enumerate(g)
        if abs(i - j) < width
    )
    half = 2.74 * math.sqrt(variance) / spacing
    return slope, slope - half, slope + half


@pytest.mark.parametrize("n", [8, 9, 10, 14, 15, 37])
@pytest.mark.parametrize("spacing", [1, 40])
@pytest.mark.parametrize("most", [3, 10**6])
def test_the_slope_and_its_interval_are_those_of_the_definition(
    n: int, spacing: int, most: int
) -> None:
    tokens = list(range(300, 300 + n * spacing, spacing))
    sizes = np.random.default_rng(n).integers(most, size=n).cumsum().tolist()
    found = fit_slope(tokens, sizes)
    wanted = by_definition(tokens, sizes)
    assert (found.bytes_per_token, found.low, found.high) == pytest.approx(wanted)


def test_a_constant_series_has_no_slope_and_no_doubt() -> None:
    assert fit(np.full(len(TOKENS), 123_456_789_012)) == Slope(0.0, 0.0, 0.0)


def test_a_slope_stays_what_it_is() -> None:
    assert len({fit(range(500)), fit(range(500)), fit(range(0, 1000, 2))}) == 2


def test_an_exact_line_is_recovered() -> None:
    slope = fit(7 * np.array(TOKENS) + 10**9)
    assert (slope.bytes_per_token, slope.low, slope.high) == pytest.approx((7, 7, 7))


def test_the_slope_is_that_of_least_squares() -> None:
    sizes = np.random.default_rng(0).integers(10**6, size=len(TOKENS))
    expected = np.polyfit(TOKENS, sizes, 1)[0]
    assert fit(sizes).bytes_per_token == pytest.approx(expected)


@pytest.mark.parametrize("leak", [0, 8, 100])
@pytest.mark.parametrize("seed", range(5))
def test_a_leak_seen_through_pages_and_noise(leak: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pages = np.floor(leak * np.array(TOKENS) / PAGE + rng.random())
    noise = rng.random(len(TOKENS)) < 0.2  # a page comes and goes
    slope = fit(PAGE * (pages + noise))
    assert slope.low <= leak <= slope.high
    assert (slope.low > 0) == (leak > 0)
    assert slope.high - leak < 1 + 0.02 * leak


def test_interval_covers_random_walks() -> None:
    rng = np.random.default_rng(1)
    walks = 1000 * rng.standard_normal((300, len(TOKENS))).cumsum(axis=1)
    covered = [(s := fit(walk)).low <= 0 <= s.high for walk in walks]
    assert 0.9 <= np.mean(covered) <= 0.99


@pytest.mark.parametrize("at", [0.05, 0.3, 0.5, 0.9])
def test_one_step_is_not_growth_but_ten_are(at: float) -> None:
    x = np.arange(len(TOKENS)) / len(TOKENS)
    one = fit(PAGE * (x > at))
    assert one.low <= 0 < one.high < 1
    ten = fit(PAGE * (x[:, None] > np.linspace(0.05, 0.95, 10)).sum(axis=1))
    assert ten.low > 0


@pytest.mark.parametrize(
    ("tokens", "sizes", "says"),
    [
        (range(7), 7, "7 tokens and 7 sizes: the fit needs as many, 8 up"),
        (range(10), 9, "10 tokens and 9 sizes: the fit needs as many, 8 up"),
        (range(8), 9, "8 tokens and 9 sizes: the fit needs as many, 8 up"),
        ([0, 1, 2, 3, 4, 5, 6, 9], 8, "the samples must be equally spaced in tokens"),
        ([3] * 8, 8, "the samples must be equally spaced in tokens"),
        (range(8, 0, -1), 8, "the samples must be equally spaced in tokens"),
    ],
)
def test_series_that_cannot_be_fitted(tokens: range, sizes: int, says: str) -> None:
    with pytest.raises(ValueError, match=f"^{says}$"):
        fit_slope(list(tokens), list(range(sizes)))
