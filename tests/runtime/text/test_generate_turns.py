"""Turns, stops and threads: a session holds what was shown, whoever stops reading, and when."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from conftest import Tiny
from numpy.typing import NDArray
from tiny_bundle import train_tokenizer

from retnet_edge.errors import InputError, SessionBusyError
from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.session.protocol import Session
from retnet_edge.runtime.text.generate import generate
from retnet_edge.runtime.text.sampling import Sampling
from retnet_edge.runtime.text.snapshot import Snapshot, load_snapshot, save_snapshot

TOKENIZER = train_tokenizer()
GREEDY = Sampling(temperature=0)


def said(session: Session, prompt: str, max_tokens: int = 12, penalty: float = 1.0) -> str:
    sampling = Sampling(temperature=0, repetition_penalty=penalty)
    return "".join(generate(session, TOKENIZER, prompt, max_tokens=max_tokens, sampling=sampling))


def test_break_leaves_a_session_that_has_seen_what_was_shown(tiny: Tiny) -> None:
    session, whole = (open_session(tiny.open(), threads=1) for _ in range(2))
    pieces = generate(session, TOKENIZER, "The cat", max_tokens=9, sampling=GREEDY)
    shown = ""
    for piece in pieces:  # the iterator lives on, suspended
        shown += piece
        if session.position >= len(TOKENIZER.encode("The cat").ids) + 3:
            break
    count = session.position - len(TOKENIZER.encode("The cat").ids)
    assert shown == said(whole, "The cat", count)
    np.testing.assert_array_equal(session.states()[0], whole.states()[0])
    assert said(session, " and") == said(whole, " and")


def test_ctrl_c_comes_when_all_that_was_fed_is_shown(tiny: Tiny) -> None:
    """It is pressed within a step; the text of that step is still yielded."""
    inner, whole = (open_session(tiny.open(), threads=1) for _ in range(2))
    real, steps = inner.step, 0

    def step(token: int) -> NDArray[np.float32]:
        nonlocal steps
        steps += 1
        if steps == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return real(token)

    inner.step = step  # type: ignore[method-assign]
    shown = ""
    try:
        for piece in generate(inner, TOKENIZER, "The cat", max_tokens=99, sampling=GREEDY):
            shown += piece
    except KeyboardInterrupt:
        pass
    else:
        pytest.fail("Ctrl-C was swallowed")
    assert shown == said(whole, "The cat", 3)
    assert inner.position == whole.position
    np.testing.assert_array_equal(inner.states()[0], whole.states()[0])


def test_ctrl_c_in_a_prompt_leaves_the_session_where_it_was(tiny: Tiny) -> None:
    session = open_session(tiny.open(), threads=1)
    session.prefill([5, 6, 7])
    before = session.states()

    def press(done: int, total: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    long = "The cat sat on the mat. " * 200
    with pytest.raises(KeyboardInterrupt):
        list(generate(session, TOKENIZER, long, max_tokens=2, sampling=GREEDY, on_prefill=press))
    assert (session.position, set(session.seen)) == (3, {5, 6, 7})
    np.testing.assert_array_equal(session.states()[0], before[0])


def test_the_repetition_penalty_counts_earlier_turns(tiny: Tiny, tmp_path: Path) -> None:
    """A bystander that never says a token twice must not repeat the turn before, nor a file's."""
    bundle = tiny.open()
    chat = open_session(bundle, threads=1)
    said(chat, "The cat sat", 40)
    turn = set(chat.seen)
    assert turn >= set(TOKENIZER.encode("The cat sat").ids)
    save_snapshot(Snapshot.of(chat), bundle, tmp_path / "s")
    restored = open_session(bundle, threads=1)
    load_snapshot(tmp_path / "s", bundle).restore(restored)
    assert set(restored.seen) == turn
    forgetful = open_session(bundle, threads=1)
    forgetful.load_states(chat.states(), chat.position)
    answers = [said(session, "x", 40, penalty=3.0) for session in (chat, restored, forgetful)]
    assert answers[0] == answers[1] != answers[2]


def test_a_prompt_that_is_not_unicode(tiny: Tiny) -> None:
    session = open_session(tiny.open(), threads=1)
    with pytest.raises(InputError, match=r"the prompt is not UTF-8: character 1 is '\\udcff'"):
        generate(session, TOKENIZER, "a\udcff", max_tokens=1, sampling=GREEDY)
    with pytest.raises(InputError, match="a stop string is not UTF-8"):
        generate(session, TOKENIZER, "a", max_tokens=1, sampling=GREEDY, stop=["\udc80"])


def test_two_texts_at_once_on_one_session_are_told(tiny: Tiny) -> None:
    session = open_session(tiny.open(), threads=1)
    first = generate(session, TOKENIZER, "The cat", max_tokens=30, sampling=GREEDY)
    next(first)
    said(session, "A dog", 2)
    with pytest.raises(SessionBusyError, match="another caller used it between two tokens"):
        list(first)
