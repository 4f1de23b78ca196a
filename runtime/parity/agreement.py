"""How far one set of logits is from another, a position at a time, and the figures drawn from it.

Letters: T positions of a block, V vocabulary, N positions of a whole measurement. The reference's
logits are r [V], the bundle's are b [V]; p = softmax(r), q = softmax(b); all sums in float64.

    error      e_i = |b_i - r_i|
    divergence KL(p ‖ q) = Σ_i p_i (log p_i - log q_i), in nats, clipped at 0 (rounding)
    agreement  argmax b == argmax r; of five: the share of r's five largest among b's five largest
    surprisal   -log p_y and -log q_y in nats, y being the token that follows
    Δp         q_y - p_y
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import msgspec
import numpy as np
from numpy.typing import NDArray

NO_TARGET = -1
FIVE = 5


@dataclass(frozen=True)
class Trace:
    """One entry a position, every array [N].

    position: int64, distance from the context's start. second_half: bool, position >= length / 2.
    max_error, mean_error: float64, over the vocabulary. kl: float64, nats. best_reference,
    best_bundle: int64, the most likely token. top5: float64, see above. gap: float64, the
    reference's best logit less its second best. surprisal_reference, surprisal_bundle: float64,
    nats, NaN where no token follows. finite: bool, of the bundle's row.
    """

    position: NDArray[np.int64]
    second_half: NDArray[np.bool_]
    max_error: NDArray[np.float64]
    mean_error: NDArray[np.float64]
    kl: NDArray[np.float64]
    best_reference: NDArray[np.int64]
    best_bundle: NDArray[np.int64]
    top5: NDArray[np.float64]
    gap: NDArray[np.float64]
    surprisal_reference: NDArray[np.float64]
    surprisal_bundle: NDArray[np.float64]
    finite: NDArray[np.bool_]

    @property
    def agrees(self) -> NDArray[np.bool_]:
        """Where both have the same most likely token."""
        return np.asarray(self.best_reference == self.best_bundle)

    @property
    def delta_p(self) -> NDArray[np.float64]:
        """Δp, NaN where no token follows."""
        return np.asarray(np.exp(-self.surprisal_bundle) - np.exp(-self.surprisal_reference))

    def where(self, mask: NDArray[np.bool_]) -> Trace:
        """The positions that `mask` [N] keeps."""
        return Trace(**{f.name: getattr(self, f.name)[mask] for f in fields(self)})

    @staticmethod
    def join(parts: Sequence[Trace]) -> Trace:
        """The parts one after another."""
        return Trace(
            **{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Trace)}
        )


@dataclass(frozen=True)
class StateSample:
    """Distance of the bundle's states from the reference's after the token at `position`.

    max_abs: max over states and elements of |bundle - reference|.
    relative: max over states of ‖bundle - reference‖_F / ‖reference‖_F.
    """

    position: int
    second_half: bool
    max_abs: float
    relative: float


class ParityMetrics(msgspec.Struct, frozen=True):
    """The figures of a set of positions (formulas at the top of the file).

    perplexity: exp(mean surprisal); the ratio is the bundle's over the reference's.
    top1_agreement_without_ties: the share of positions that agree, or where the reference's gap
    between its two best is at most twice the logit error that is allowed (None: no such bound).
    Note that an allowed error which is kept makes this 1 of necessity: two logits that swap places
    under errors of at most e were at most 2e apart. top5_agreement: mean of top5.
    mean_delta_p, rms_delta_p: of Δp. The state errors are the worst of the samples among these
    positions (None: no sample).
    """

    tokens: int
    max_abs_logit_error: float
    mean_abs_logit_error: float
    mean_kl: float
    p50_kl: float
    p90_kl: float
    p99_kl: float
    max_kl: float
    top1_agreement: float
    top1_agreement_without_ties: float | None
    top5_agreement: float
    mean_delta_p: float
    rms_delta_p: float
    perplexity_reference: float
    perplexity_bundle: float
    perplexity_ratio: float
    max_abs_state_error: float | None
    relative_state_error: float | None


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """log softmax over the last axis, float64: x - max - log Σ exp(x - max)."""
    return _log_softmax_and_softmax(logits)[0]


def _log_softmax_and_softmax(
    logits: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both from one exponential, which takes most of the time of a comparison."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    powers = np.exp(shifted)
    total = powers.sum(axis=-1, keepdims=True)
    shifted -= np.log(total)
    powers /= total
    return shifted, powers


def compare(
    reference: NDArray[np.float64],
    bundle: NDArray[np.floating],
    *,
    targets: NDArray[np.int64],
    first: int,
    length: int,
) -> Trace:
    """Compare a block of logits, [T, V] each.

    targets: int64 [T], the token that follows each position (NO_TARGET: none).
    first: position of the block's first row; length: the context's, which decides the halves.
    """
    bundle64 = bundle.astype(np.float64)
    if reference.shape != bundle64.shape:
        raise ValueError(f"reference logits are {reference.shape}, the bundle's {bundle64.shape}")
    rows = np.arange(len(targets))
    position = first + rows
    error = np.abs(bundle64 - reference)
    count = min(FIVE, reference.shape[-1])
    five, bundle_five = (
        np.argpartition(x, -count, axis=-1)[:, -count:] for x in (reference, bundle64)
    )
    with np.errstate(invalid="ignore", over="ignore"):  # logits that are not finite become NaN
        (log_p, p), log_q = _log_softmax_and_softmax(reference), log_softmax(bundle64)
        kl = np.einsum("tv,tv->t", p, log_p - log_q)
    top_two = np.sort(reference[rows[:, None], five], axis=-1)[:, -2:]
    known = targets != NO_TARGET
    column = np.where(known, targets, 0)
    return Trace(
        position=position,
        second_half=2 * position >= length,
        max_error=error.max(axis=-1),
        mean_error=error.mean(axis=-1),
        kl=np.maximum(kl, 0.0),
        best_reference=reference.argmax(axis=-1),
        best_bundle=bundle64.argmax(axis=-1),
        top5=(five[:, :, None] == bundle_five[:, None]).any(axis=-1).mean(axis=-1),
        gap=top_two[:, 1] - top_two[:, 0],
        surprisal_reference=np.where(known, -log_p[rows, column], np.nan),
        surprisal_bundle=np.where(known, -log_q[rows, column], np.nan),
        finite=np.asarray(np.isfinite(bundle64).all(axis=-1)),
    )


def state_distance(
    reference: Sequence[NDArray[np.floating]], bundle: Sequence[NDArray[np.floating]]
) -> tuple[float, float]:
    """(max_abs, relative) as in StateSample. Raises ValueError where counts or shapes differ."""
    shapes = [r.shape for r in reference], [b.shape for b in bundle]
    if shapes[0] != shapes[1]:
        raise ValueError(f"reference states are {shapes[0]}, the bundle's {shapes[1]}")
    max_abs = relative = 0.0
    for expected, got in zip(reference, bundle, strict=True):
        expected64 = expected.astype(np.float64)
        difference = got.astype(np.float64) - expected64
        norm, distance = _norm(expected64), _norm(difference)
        share = distance / norm if norm else (np.inf if distance else 0.0)
        max_abs = float(np.maximum(max_abs, np.abs(difference).max(initial=0.0)))
        relative = float(np.maximum(relative, share))
    return max_abs, relative


def _norm(x: NDArray[np.float64]) -> float:
    """‖x‖_F without BLAS, whose threads wait for cores that other work has."""
    return math.sqrt(float(np.square(x).sum()))


def mean_over(values: NDArray[np.float64], targets: NDArray[np.bool_]) -> float:
    """Mean over the positions that have a target; NaN where none has."""
    return float(values[targets].mean()) if targets.any() else float("nan")


def summarise(
    trace: Trace, states: Sequence[StateSample] = (), *, allowed_error: float | None = None
) -> ParityMetrics:
    """Reduce a trace of N >= 1 positions and its state samples to figures.

    allowed_error: bound on the logit error that decides what counts as a tie (None: none does).
    """
    targets = ~np.isnan(trace.surprisal_reference)
    surprisal = mean_over(trace.surprisal_reference, targets)
    surprisal_bundle = mean_over(trace.surprisal_bundle, targets)
    p50, p90, p99 = np.percentile(trace.kl, (50, 90, 99))
    without_ties = None
    if allowed_error is not None:
        without_ties = float((trace.agrees | (trace.gap <= 2 * allowed_error)).mean())
    return ParityMetrics(
        tokens=len(trace.position),
        max_abs_logit_error=float(trace.max_error.max()),
        mean_abs_logit_error=float(trace.mean_error.mean()),
        mean_kl=float(trace.kl.mean()),
        p50_kl=float(p50),
        p90_kl=float(p90),
        p99_kl=float(p99),
        max_kl=float(trace.kl.max()),
        top1_agreement=float(trace.agrees.mean()),
        top1_agreement_without_ties=without_ties,
        top5_agreement=float(trace.top5.mean()),
        mean_delta_p=mean_over(trace.delta_p, targets),
        rms_delta_p=float(np.sqrt(mean_over(np.square(trace.delta_p), targets))),
        perplexity_reference=float(np.exp(surprisal)),
        perplexity_bundle=float(np.exp(surprisal_bundle)),
        perplexity_ratio=float(np.exp(surprisal_bundle - surprisal)),
        max_abs_state_error=float(np.max([s.max_abs for s in states])) if states else None,
        relative_state_error=float(np.max([s.relative for s in states])) if states else None,
    )
