"""The C sampler draws the tokens that Python draws, from the same logits and the same seed."""

from __future__ import annotations

import ctypes
from typing import Any

import native_bundles
import numpy as np
import pytest

from retnet_edge.errors import InputError
from retnet_edge.runtime.backends.native import library
from retnet_edge.runtime.text.exponential import exponential
from retnet_edge.runtime.text.sampling import Sampler, Sampling

pytestmark = native_bundles.NEEDS_THE_LIBRARY
DRAWS = 4


class COptions(ctypes.Structure):
    """`retnet_sampling`."""

    _fields_ = (
        ("temperature", ctypes.c_double),
        ("top_p", ctypes.c_double),
        ("min_p", ctypes.c_double),
        ("repetition_penalty", ctypes.c_double),
        ("top_k", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("seed", ctypes.c_uint64),
    )


def c_library() -> Any:
    found = library._LIBRARY
    assert found is not None
    return found


def options_of(settings: Sampling) -> COptions:
    named = {name: getattr(settings, name) for name, _ in COptions._fields_ if name != "reserved"}
    return COptions(**named)


def drawn(settings: Sampling, logits: Any, seen: Any, count: int = DRAWS) -> list[int]:
    """What C draws, one after the other."""
    c, handle, token = c_library(), ctypes.c_void_p(), ctypes.c_int32()
    options = options_of(settings)
    assert c.retnet_sampler_new(ctypes.byref(options), logits.size, ctypes.byref(handle), None) == 0
    found = []
    for _ in range(count):
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (logits, seen)]
        assert c.retnet_sample(handle, *pointers, ctypes.byref(token)) == 0
        found.append(token.value)
    c.retnet_sampler_free(handle)
    return found


def test_the_same_tokens() -> None:
    """Ties, -inf, one token, every option, seeds of one and two words."""
    rng = np.random.default_rng(1)
    for case in range(1500):
        size = int(rng.choice([1, 2, 3, 7, 50, 300, 1000]))
        logits = (rng.standard_normal(size) * rng.choice([0.1, 1, 5, 30])).astype(np.float32)
        if case % 4 == 1:
            logits = np.round(logits)
        elif case % 4 == 2:
            logits[rng.random(size) < 0.3] = -np.inf
            logits[0] = 0
        settings = Sampling(
            temperature=float(rng.choice([0, 1e-3, 0.1, 0.8, 1, 50])),
            top_k=int(rng.choice([0, 1, 2, 5, 40, 10_000])),
            top_p=float(rng.choice([1, 0.999, 0.95, 0.5, 0.01])),
            min_p=float(rng.choice([0, 0.05, 0.5, 1])),
            repetition_penalty=float(rng.choice([1, 0.5, 1.1, 1.7])),
            seed=int(rng.choice([0, 1, 2**32, 2**62 + 5])),
        )
        seen = (rng.random(size) < 0.3).astype(np.uint8)
        sampler = Sampler(settings)
        expected = [sampler.sample(logits, np.flatnonzero(seen).tolist()) for _ in range(DRAWS)]
        assert drawn(settings, logits, seen) == expected, settings


def test_what_is_refused() -> None:
    c, handle, error = c_library(), ctypes.c_void_p(), library._CError()
    for name, value, allowed in (
        ("temperature", -1.0, "0 (greedy) or more"),
        ("temperature", float("inf"), "0 (greedy) or more"),
        ("top_k", -1, "0 (off) or more"),
        ("top_p", 0.0, "above 0 and at most 1"),
        ("min_p", 1.5, "0 to 1"),
        ("repetition_penalty", 0.0, "0.01 to 100"),
        ("repetition_penalty", float("nan"), "0.01 to 100"),
    ):
        options = options_of(Sampling())
        setattr(options, name, value)
        assert (
            c.retnet_sampler_new(
                ctypes.byref(options), 3, ctypes.byref(handle), ctypes.byref(error)
            )
            == 10
        )
        assert error.message.decode() == f"{name} is {value:g}; allowed is {allowed}"
        assert handle.value is None
    options = options_of(Sampling())
    assert (
        c.retnet_sampler_new(ctypes.byref(options), 0, ctypes.byref(handle), ctypes.byref(error))
        == 10
    )
    assert error.message.decode() == "count is 0; allowed is 1 or more"


@pytest.mark.parametrize("bad", [[np.nan, 0.0], [0.0, np.nan], [np.inf, 0.0], [-np.inf, -np.inf]])
def test_logits_of_a_broken_model(bad: list[float]) -> None:
    logits = np.array(bad, dtype=np.float32)
    with pytest.raises(InputError, match="largest of the model's logits"):
        Sampler(Sampling()).sample(logits)
    c, handle, token = c_library(), ctypes.c_void_p(), ctypes.c_int32(-5)
    options = options_of(Sampling())
    assert c.retnet_sampler_new(ctypes.byref(options), 2, ctypes.byref(handle), None) == 0
    data = ctypes.c_void_p(logits.ctypes.data)
    assert c.retnet_sample(handle, data, None, ctypes.byref(token)) == 9
    assert token.value == -5
    c.retnet_sampler_free(handle)


def test_our_exponential() -> None:
    x = -np.abs(np.random.default_rng(0).standard_normal(100_000)) * 20
    exact = np.exp(x)
    assert np.abs(exponential(x) - exact).max() <= 1e-15
    assert (np.abs(exponential(x) - exact) / exact).max() < 4e-16
    odd = exponential(np.array([0.0, -0.0, -np.inf, -745.1, -746.5, -1e308, np.nan]))
    np.testing.assert_array_equal(odd, [1, 1, 0, 5e-324, 0, 0, np.nan])
