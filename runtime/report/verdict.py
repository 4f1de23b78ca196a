"""Is the bundle verified? Every figure that is judged, beside its bound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from retnet_edge.runtime.bundle.manifest import Backend, Tolerance
from retnet_edge.runtime.memory.memory import Memory
from retnet_edge.runtime.parity.backend_pairs import BackendPair
from retnet_edge.runtime.parity.parity import Parity
from retnet_edge.runtime.parity.probes import FAR_POSITION
from retnet_edge.runtime.session.operators import OperatorTime

HALVES_RATIO = 2.0
STATE_ERROR = 1e-4
KL_FLOOR = 1e-8  # nats; below it a difference is the rounding of float32 logits, not drift


class Check(msgspec.Struct, frozen=True):
    """One figure and its bound as they are shown, and whether it passed.

    reason: the sentence for a figure that did not pass.
    """

    name: str
    value: str
    bound: str
    passed: bool
    reason: str


class BackendResult(msgspec.Struct, frozen=True):
    """What one backend of a bundle showed. memory is None where the system cannot measure it.

    planned_bytes: of the step's own memory plan, by the manifest (None: it has none). operators:
    where `profiled_steps` steps on one thread spent their time.
    """

    backend: Backend
    checks: tuple[Check, ...]
    parity: Parity
    memory: Memory | None
    planned_bytes: int | None
    operators: tuple[OperatorTime, ...] = ()
    profiled_steps: int = 0

    @property
    def reasons(self) -> tuple[str, ...]:
        """A sentence for every figure out of its bound."""
        return tuple(check.reason for check in self.checks if not check.passed)


class Verdict(msgspec.Struct, frozen=True):
    """What `verify` found of a bundle. reasons: why it is not verified; empty where it is.

    between: backends compared with one another, reported and not judged. baseline: the memory of a
    key-value cache Transformer, for comparison only. measured_with: versions of what ran it.
    """

    reasons: tuple[str, ...]
    backends: tuple[BackendResult, ...]
    between: tuple[BackendPair, ...]
    baseline: Memory | None
    measured_with: dict[str, str]

    @property
    def verified(self) -> bool:
        """True where every figure is within its bound."""
        return not self.reasons

    @property
    def status(self) -> Literal["verified", "unverified"]:
        """ "verified" or "unverified"."""
        return "verified" if self.verified else "unverified"


def reasons_of(measured: Sequence[BackendResult], has: Sequence[Backend]) -> tuple[str, ...]:
    """Why a bundle that has the backends `has` is not verified; empty: it is.

    A backend that was left out is a reason, and a reason names its backend where there are several.
    """
    found = [
        f"{m.backend}: {reason}" if len(has) > 1 else reason
        for m in measured
        for reason in m.reasons
    ]
    seen = [m.backend for m in measured]
    return (*found, *(f"{backend} was not measured" for backend in has if backend not in seen))


def judge(parity: Parity, memory: Memory | None, tolerance: Tolerance) -> tuple[str, ...]:
    """The reasons why the bundle is not verified, a sentence each; empty: it is."""
    found = checks(parity, memory, tolerance)
    return tuple(check.reason for check in found if not check.passed)


def checks(parity: Parity, memory: Memory | None, tolerance: Tolerance) -> tuple[Check, ...]:
    """Every figure that `tolerance` speaks of, in the order of a report.

    A figure that is not a number fails. Two bounds are rules of the product and not of a recipe:
    the mean KL of the second halves of contexts is at most twice that of the first halves, and at
    position 1,000,000 at most twice what the same text has at position 10 (or the mean KL
    tolerance, where that is more: 64 tokens are few). States and golden.npz are judged where the
    logit error is: states to 1e-4 of their norm, golden.npz's to 1e-4 of their largest magnitude.
    memory: None where it was not measured.
    """
    return (*_parity_checks(parity, tolerance), *_memory_checks(memory, tolerance))


def _at_most(name: str, value: float, bound: float, *, digits: str = ".4g") -> Check:
    shown, limit = format(value, digits), format(bound, digits)
    reason = f"{name} is {shown}, at most {limit} is allowed"
    return Check(name, shown, f"≤ {limit}", value <= bound, reason)


def _parity_checks(parity: Parity, tolerance: Tolerance) -> list[Check]:
    figures = parity.figures
    allowed = tolerance.max_abs_logit_error
    bad = parity.nonfinite_tokens
    found = [
        Check(
            "positions with logits that are not finite",
            f"{bad}",
            "0",
            bad == 0,
            f"the logits of {bad} of {figures.tokens} positions are not finite",
        )
    ]
    if allowed is not None:
        found.append(_at_most("largest logit error", figures.max_abs_logit_error, allowed))
        state_error = figures.relative_state_error
        if state_error is not None:
            found.append(_at_most("relative state error", state_error, STATE_ERROR))
    found.append(_at_most("mean KL (nats)", figures.mean_kl, tolerance.mean_kl))
    found += [_top1(parity, tolerance), _perplexity(parity, tolerance)]
    first, second = parity.first_half.mean_kl, parity.second_half.mean_kl
    halves = _at_most(
        "mean KL of second halves of contexts", second, HALVES_RATIO * max(first, KL_FLOOR)
    )
    found.append(halves)
    near = parity.places[0].figures.mean_kl if parity.places else 0.0
    for place in parity.places:
        where = f"at position {place.position:,} after {place.prefix:,} tokens"
        if allowed is not None:
            error = place.figures.max_abs_logit_error
            found.append(_at_most(f"largest logit error {where}", error, allowed))
            if (states := place.figures.relative_state_error) is not None:
                found.append(_at_most(f"relative state error {where}", states, STATE_ERROR))
        if place is not parity.places[0]:
            bound = HALVES_RATIO * max(near, tolerance.mean_kl)
            found.append(_at_most(f"mean KL {where}", place.figures.mean_kl, bound))
    if (prefill := parity.prefill) is not None:
        where = f"of steps after a prefill of {prefill.tokens:,} tokens"
        if allowed is not None:
            error = prefill.max_abs_logit_error
            found.append(_at_most(f"largest logit error {where}", error, allowed))
        found.append(_at_most(f"mean KL {where}", prefill.mean_kl, tolerance.mean_kl))
    if (golden := parity.golden) is not None and allowed is not None:
        near, far = golden.near_logit_error, golden.far_logit_error
        name = "golden.npz: largest logit error"
        found.append(_at_most(name, near, allowed))
        found.append(_at_most(f"{name} at position {FAR_POSITION:,}", far, allowed))
        name = "golden.npz: relative state error"
        found.append(_at_most(name, golden.relative_state_error, STATE_ERROR))
    return found


def _top1(parity: Parity, tolerance: Tolerance) -> Check:
    """Ties within the logit error that is allowed do not count where there is such a bound."""
    figures = parity.figures
    name, value = "top-1 agreement", figures.top1_agreement
    if figures.top1_agreement_without_ties is not None:
        name, value = "top-1 agreement apart from ties", figures.top1_agreement_without_ties
    shown, limit = f"{100 * value:.2f} %", f"{100 * tolerance.top1_agreement:.2f} %"
    reason = f"{name} is {shown}, at least {limit} is asked for"
    return Check(name, shown, f"≥ {limit}", value >= tolerance.top1_agreement, reason)


def _perplexity(parity: Parity, tolerance: Tolerance) -> Check:
    """Within the ratio both ways: a bundle that is much better is not the same model either."""
    value, high = parity.figures.perplexity_ratio, tolerance.perplexity_ratio
    low = 1 / high
    bound = f"{low:.5f} to {high:.5f}"
    reason = f"perplexity ratio is {value:.5f}, {bound} is allowed"
    return Check("perplexity ratio", f"{value:.5f}", bound, low <= value <= high, reason)


def _memory_checks(memory: Memory | None, tolerance: Tolerance) -> list[Check]:
    if memory is None:
        reason = "memory was not measured"
        return [
            Check("anonymous memory (bytes a token)", "not measured", "measured", False, reason)
        ]
    slope, bound = memory.anonymous_slope, tolerance.memory_bytes_per_token
    interval = f"[{slope.low:.3g}, {slope.high:.3g}]"
    return [
        Check(
            "95 % interval of anonymous memory (bytes a token)",
            interval,
            "contains 0",
            slope.low <= 0 <= slope.high,
            f"anonymous memory grows by {slope.bytes_per_token:.3g} bytes a token over "
            f"{memory.steps:,} steps, and its 95 % interval {interval} does not contain 0",
        ),
        Check(
            "its upper end (bytes a token)",
            f"{slope.high:.3g}",
            f"< {bound:.3g}",
            slope.high < bound,
            f"the upper end of the 95 % interval of anonymous memory is {slope.high:.3g} bytes a "
            f"token, less than {bound:.3g} is asked for",
        ),
        Check(
            "bytes of the states",
            f"{memory.state_bytes:,}",
            f"= {memory.state_bytes_manifest:,}",
            memory.state_bytes == memory.state_bytes_manifest,
            f"the states take {memory.state_bytes:,} bytes, the manifest says "
            f"{memory.state_bytes_manifest:,}",
        ),
    ]
