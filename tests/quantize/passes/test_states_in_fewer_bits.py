"""States in fewer bits: what graphs hand on, what it costs, and that a session goes on from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from micro_checkpoint import Exported, exported_once

from retnet_edge.errors import InputError
from retnet_edge.quantize.kernel_parity import measure_kernel_parity
from retnet_edge.quantize.quantize import quantize
from retnet_edge.quantize.recipes.built_in import find_recipe
from retnet_edge.quantize.recipes.recipe import Recipe, Rule, check_backend, with_state
from retnet_edge.quantize.recipes.schemes import Float32, StateScheme
from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.state_values import rounded_states, state_values
from retnet_edge.runtime.parity.golden import replay_golden
from retnet_edge.runtime.parity.replay import run_steps
from retnet_edge.runtime.session.protocol import Session
from retnet_edge.runtime.text.snapshot import Snapshot, load_snapshot, save_snapshot

TOKENS = np.random.default_rng(4).integers(0, 384, 96)
SCHEMES: list[StateScheme] = ["float16", "int8"]
EACH = pytest.mark.parametrize("scheme", SCHEMES)
# half a unit in the last place, 2^-11 and 1/253, some times over: a state is rounded at every token
ERRORS = {"float16": 5e-3, "int8": 0.1}
BYTES = {"float16": 2, "int8": 1}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported_once(tmp_path_factory.getbasetemp(), "base")


@pytest.fixture(scope="module")
def bundles(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """By what states are kept in, with float32 weights; no test changes them."""
    made = {"float32": Bundle.open(exported.bundle)}
    for scheme in SCHEMES:
        out = tmp_path_factory.mktemp("states") / f"{scheme}.edge"
        recipe = Recipe("plain", (Rule("*", Float32()),), find_recipe("int8").tolerance)
        quantize(exported.bundle, out, recipe=recipe, state=scheme, say=lambda _: None)
        made[scheme] = Bundle.open(out)
    return made


def session(bundle: Bundle) -> Session:
    return open_session(bundle, threads=1)


@EACH
def test_what_a_sequence_takes(bundles: dict[str, Bundle], scheme: StateScheme) -> None:
    whole, bundle = bundles["float32"].manifest, bundles[scheme].manifest
    assert bundle.quantization.recipe == f"plain+{scheme}-state"
    scales = 2 * 2 * (10 + 14) * 4 if scheme == "int8" else 0  # layers, heads, keys and values
    values = whole.state_bytes(0) // 4
    assert bundle.state_bytes(0) == values * BYTES[scheme] + scales
    assert session(bundles[scheme]).state_bytes == bundle.state_bytes(0)


@EACH
def test_logits_and_states_are_near_those_of_float32(
    bundles: dict[str, Bundle], scheme: StateScheme
) -> None:
    one, other = session(bundles["float32"]), session(bundles[scheme])
    wanted, found = run_steps(one, TOKENS), run_steps(other, TOKENS)
    bound = ERRORS[scheme]
    assert np.linalg.norm(found - wanted) <= bound * np.linalg.norm(wanted)
    for a, b in zip(state_values(one.states()), state_values(other.states()), strict=True):
        assert 0 < np.linalg.norm(a - b) <= bound * np.linalg.norm(a)


@EACH
def test_a_prompt_leaves_what_its_steps_leave(
    bundles: dict[str, Bundle], scheme: StateScheme
) -> None:
    stepped, prompted = session(bundles[scheme]), session(bundles[scheme])
    run_steps(stepped, TOKENS)
    prompted.prefill(TOKENS.tolist())
    bound = ERRORS[scheme]
    states = zip(state_values(stepped.states()), state_values(prompted.states()), strict=True)
    for a, b in states:
        assert np.linalg.norm(a - b) <= bound * np.linalg.norm(a)


@EACH
def test_a_saved_state_and_a_fork_go_on_bit_for_bit(
    bundles: dict[str, Bundle], scheme: StateScheme, tmp_path: Path
) -> None:
    bundle = bundles[scheme]
    one = session(bundle)
    run_steps(one, TOKENS[:40])
    save_snapshot(Snapshot.of(one), bundle, tmp_path / "s.state")
    rest = run_steps(one, TOKENS[40:])
    again = session(bundle)
    load_snapshot(tmp_path / "s.state", bundle).restore(again)
    np.testing.assert_array_equal(run_steps(again, TOKENS[40:]), rest)
    for a, b in zip(one.states(), again.states(), strict=True):
        np.testing.assert_array_equal(a, b)


@EACH
def test_kernel_parity_and_golden(bundles: dict[str, Bundle], scheme: StateScheme) -> None:
    found = measure_kernel_parity(bundles[scheme], TOKENS[:48])
    assert found.logit_error_median <= 1e-4
    golden = replay_golden(bundles[scheme], session(bundles[scheme]))
    assert golden.relative_state_error <= ERRORS[scheme]


def test_dither_keeps_what_plain_rounding_loses(bundles: dict[str, Bundle]) -> None:
    """The states of one token that repeats are nearer than their codes are apart."""
    one, other = session(bundles["float32"]), session(bundles["int8"])
    tokens = np.full(400, 7)
    run_steps(one, tokens)
    run_steps(other, tokens)
    for a, b in zip(state_values(one.states()), state_values(other.states()), strict=True):
        assert np.linalg.norm(a - b) <= 0.03 * np.linalg.norm(a)


def test_rounded_states_are_the_values_to_half_a_code(bundles: dict[str, Bundle]) -> None:
    one = session(bundles["int8"])
    run_steps(one, TOKENS)
    values = state_values(one.states())
    states = rounded_states(values, like=one.states())
    assert [s.dtype for s in states] == [s.dtype for s in one.states()]
    for a, b in zip(values, state_values(states), strict=True):
        codes = np.abs(a).max() / 126.5
        assert np.abs(a - b).max() <= 0.51 * codes


def test_empty_states_are_empty(bundles: dict[str, Bundle]) -> None:
    one = session(bundles["int8"])
    empty = state_values(one.states())
    assert all(not value.any() for value in empty)
    assert all(not s.any() for s in rounded_states(empty, like=one.states()))


def test_states_that_grow_are_refused(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    baseline = exported_once(tmp_path_factory.getbasetemp(), "transformer")
    with pytest.raises(InputError, match="states that grow stay float32"):
        quantize(baseline.bundle, tmp_path / "q.edge", state="int8", say=lambda _: None)
    assert not (tmp_path / "q.edge").exists()


def test_states_of_executorch_are_refused() -> None:
    recipe = with_state(find_recipe("int8", "executorch"), "float16")
    with pytest.raises(InputError, match="programs of executorch keep theirs in float32"):
        check_backend(recipe, "executorch")


def test_two_sayings_about_the_state_are_refused() -> None:
    recipe = replace(find_recipe("int8"), state="float16")
    assert with_state(recipe, "float16") is recipe
    assert with_state(recipe, "float32") is recipe  # not said
    with pytest.raises(InputError, match=r"keeps its states in float16, not int8 \(--state\)"):
        with_state(recipe, "int8")
