"""Prompts that begin alike: the same logits as without the cache, with less to feed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from conftest import Tiny
from numpy.typing import NDArray

from retnet_edge.errors import InputError
from retnet_edge.runtime.backends.ort.session import OrtSession
from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.text.prompt_cache import PromptCache
from retnet_edge.runtime.text.snapshot import Snapshot

TOKENS = [int(token) for token in np.random.default_rng(6).integers(0, 300, size=90)]


class Counting(OrtSession):
    """Counts the tokens that are fed."""

    fed = 0

    def prefill(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        self.fed += len(tokens)
        return super().prefill(tokens)


def test_a_common_beginning_is_fed_once_and_changes_nothing(tiny: Tiny) -> None:
    session = Counting(tiny.open(), threads=1)
    cache = PromptCache(session)
    cache.feed(TOKENS[:60])
    assert session.fed == 60
    for more in ([7], [8, 9], [7, 3, 4]):
        before = session.fed
        logits = cache.feed([*TOKENS[:60], *more]).copy()
        # [7, 3, 4] goes on from [7]
        assert session.fed - before == (2 if more == [7, 3, 4] else len(more))
        plain = open_session(tiny.open(), threads=1)
        plain.prefill(TOKENS[:60])
        if more == [7, 3, 4]:
            plain.prefill([7])
            expected = plain.prefill([3, 4])
        else:
            expected = plain.prefill(more)
        np.testing.assert_array_equal(logits, expected)
        for mine, other in zip(session.states(), plain.states(), strict=True):
            np.testing.assert_array_equal(mine, other)
        assert session.position == plain.position


def test_nothing_of_an_earlier_prompt_is_left(tiny: Tiny) -> None:
    cache = PromptCache(open_session(tiny.open(), threads=1))
    cache.feed(TOKENS[:40])
    fresh = open_session(tiny.open(), threads=1)
    np.testing.assert_array_equal(cache.feed(TOKENS[50:60]), fresh.prefill(TOKENS[50:60]))


def test_the_same_prompt_again_gives_its_logits(tiny: Tiny) -> None:
    cache = PromptCache(open_session(tiny.open(), threads=1))
    first = cache.feed(TOKENS[:9]).copy()
    cache.feed(TOKENS[:30])
    np.testing.assert_array_equal(first, cache.feed(TOKENS[:9]))


def test_the_longest_prefix_is_found(tiny: Tiny) -> None:
    cache = PromptCache(open_session(tiny.open(), threads=1))
    for length in (3, 12, 6):
        cache.feed(TOKENS[:length])
    found = cache.longest_prefix(TOKENS[:20])
    assert found is not None
    assert found.position == 12
    assert cache.longest_prefix(TOKENS[:3]) is None
    assert cache.longest_prefix([TOKENS[0] + 1 if TOKENS[0] < 299 else 0, 1, 2, 3]) is None


def test_what_was_used_longest_ago_goes_first(tiny: Tiny) -> None:
    cache = PromptCache(open_session(tiny.open(), threads=1), entries=2)
    cache.feed([1, 2])
    cache.feed([3, 4])
    cache.feed([1, 2, 5])  # uses [1, 2], so [3, 4] goes
    assert len(cache) == 2
    assert cache.longest_prefix([3, 4, 5]) is None
    assert cache.longest_prefix([1, 2, 6]) is not None


def test_a_bad_prompt_leaves_the_cache_as_it_was(tiny: Tiny) -> None:
    cache = PromptCache(open_session(tiny.open(), threads=1))
    cache.feed([1, 2])
    for bad in ([], [1, 2, 300]):
        with pytest.raises(InputError):
            cache.feed(bad)
    assert len(cache) == 1


def test_what_a_cache_cannot_hold(tiny: Tiny) -> None:
    session = open_session(tiny.open(), threads=1)
    with pytest.raises(InputError, match="holds at least 1"):
        PromptCache(session, entries=0)
    session.prefill([1, 2, 3])
    for tokens in ((), (1, 2)):
        with pytest.raises(InputError, match="needs all of them"):
            PromptCache(session).keep(Snapshot.of(session, tokens))
