"""One caller at a time, on every kind of session, batch and cache: the second is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import Tiny, another_thread_in
from micro_checkpoint import exported_once

from retnet_edge.errors import SessionBusyError
from retnet_edge.runtime.backends.ort.session import OrtSession
from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.text.batch import Batch
from retnet_edge.runtime.text.prompt_cache import PromptCache


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(exported_once(tmp_path_factory.getbasetemp(), "z_n").bundle)


@pytest.mark.parametrize("kind", ["tiny", "tiny_transformer"])
@pytest.mark.parametrize(
    "call",
    [
        lambda session: session.step(1),
        lambda session: session.prefill([1, 2]),
        lambda session: session.reset(),
        lambda session: session.states(),
        lambda session: session.load_states([], 0),
    ],
)
def test_a_session_in_use(
    call: Callable[[Any], object], kind: str, request: pytest.FixtureRequest
) -> None:
    made: Tiny = request.getfixturevalue(kind)
    session = open_session(made.open(), threads=1)
    expected = session.prefill([1, 2, 3]).copy()
    with (
        another_thread_in(session),
        pytest.raises(SessionBusyError, match="takes one caller at a time"),
    ):
        call(session)
    assert session.position == 3
    session.reset()
    np.testing.assert_array_equal(session.prefill([1, 2, 3]), expected)


def test_threads_get_right_numbers_or_the_error(tiny: Tiny) -> None:
    session = open_session(tiny.open(), threads=1)
    assert isinstance(session, OrtSession)
    refused: list[int] = []

    def work() -> None:
        for token in range(300):
            try:
                session.step(token)
            except SessionBusyError:
                refused.append(token)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert session.position == 900 - len(refused)


def test_a_batch_in_use(fp32: Bundle) -> None:
    batch = Batch(fp32, 2, threads=1)
    one = batch.join()
    with another_thread_in(batch):
        for call in (
            batch.join,
            lambda: batch.step({one: 1}),
            lambda: batch.prefill(one, [1]),
            lambda: batch.snapshot(one),
            lambda: batch.leave(one),
        ):
            with pytest.raises(SessionBusyError):
                call()
    batch.step({one: 1})
    assert (batch.position(one), batch.seen(one)) == (1, {1})


def test_a_prompt_cache_in_use(tiny: Tiny) -> None:
    cache = PromptCache(open_session(tiny.open(), threads=1))
    with another_thread_in(cache), pytest.raises(SessionBusyError):
        cache.feed([1, 2])
    cache.feed([1, 2])


def test_what_was_seen_goes_with_the_states(fp32: Bundle) -> None:
    session = open_session(fp32, threads=1)
    cache, batch = PromptCache(session), Batch(fp32, 2, threads=1)
    cache.feed([1, 2])
    cache.feed([7])
    assert session.seen == {7}
    cache.feed([1, 2, 9])
    assert session.seen == {1, 2, 9}
    one, two = batch.join(cache.longest_prefix([1, 2, 5])), batch.join()
    batch.prefill(two, [3, 4, 3])
    batch.step({one: 8, two: 3})
    assert (batch.seen(one), batch.seen(two)) == ({1, 2, 8}, {3, 4})
    assert batch.leave(one).seen == {1, 2, 8}
    assert batch.leave(two).seen == {3, 4}
    session.reset()
    assert session.seen == set()
