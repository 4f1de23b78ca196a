"""A sequence over several ranks is the sequence on one: losses, gradients, outputs and states."""

from __future__ import annotations

import pytest
import spans_of_a_sequence
from several_processes import launch


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_sequence_over_ranks_is_the_sequence_on_one(ranks: int) -> None:
    """In each form, with and without document borders, recomputed or not; float64, 1e-10."""
    done = launch(ranks, spans_of_a_sequence.__file__)
    assert len(done.stdout.splitlines()) == 2 * len(spans_of_a_sequence.FORMS) * 2 * 2
