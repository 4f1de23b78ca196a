"""When a piece of text is shown: at once, whole, and before Ctrl-C is raised."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

import numpy as np
import pytest
import tokenizers
from conftest import Tiny
from numpy.typing import NDArray
from scripted_session import Script
from tiny_bundle import END_OF_TEXT, train_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from retnet_edge.errors import SessionBusyError
from retnet_edge.interrupts import held_back
from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.session.protocol import PREFILL_SPAN
from retnet_edge.runtime.text.generate import (
    PREFILL_CHUNK,
    IncrementalDetokenizer,
    StopStrings,
    generate,
)
from retnet_edge.runtime.text.sampling import Sampling

TOKENIZER = train_tokenizer()
GREEDY = Sampling(temperature=0)
CLEF = TOKENIZER.encode("\N{MUSICAL SYMBOL G CLEF}").ids  # four tokens, a byte each
GARBAGE = CLEF[1]  # byte 0x9D: never starts a character


def spoken(
    tokenizer: tokenizers.Tokenizer, prompt: str, answer: Sequence[int], count: int = 99
) -> list[str]:
    """The pieces of a session that wants to say `answer`."""
    return list(
        generate(
            Script(answer), tokenizer, prompt, max_tokens=count, sampling=GREEDY,
            end_of_text=END_OF_TEXT,
        )
    )  # fmt: skip


def pressed_in(call: Callable[..., NDArray[np.float32]], at: int) -> Callable[..., object]:
    """`call`, within whose `at`-th time Ctrl-C is pressed."""
    times = 0

    def pressed(argument: object) -> NDArray[np.float32]:
        nonlocal times
        times += 1
        if times == at:
            os.kill(os.getpid(), signal.SIGINT)
        return call(argument)

    return pressed


def until_interrupt(pieces: Iterator[str]) -> str:
    """What is shown before Ctrl-C comes."""
    shown = ""
    try:
        for piece in pieces:
            shown += piece
    except KeyboardInterrupt:
        return shown
    pytest.fail("Ctrl-C was swallowed")


def test_each_token_with_text_is_a_piece_and_shown_before_the_next_is_fed() -> None:
    answer = TOKENIZER.encode("the cat sat on the mat").ids
    assert spoken(TOKENIZER, "A", answer) == [TOKENIZER.decode([token]) for token in answer]
    session = Script(answer)
    pieces = generate(session, TOKENIZER, "A", max_tokens=9, sampling=GREEDY)
    for count in (1, 2, 3):
        next(pieces)
        assert session.said == count


def test_a_long_prompt_has_the_bits_of_one_prefill(tiny: Tiny) -> None:
    """Its pieces are whole spans of what a session feeds at once."""
    prompt = "The cat sat on the mat. " * 300
    ids = TOKENIZER.encode(prompt).ids
    assert len(ids) > 2 * PREFILL_CHUNK
    assert PREFILL_CHUNK % PREFILL_SPAN == 0
    fed, whole = (open_session(tiny.open(), threads=1) for _ in range(2))
    list(generate(fed, TOKENIZER, prompt, max_tokens=1, sampling=GREEDY))
    whole.step(int(whole.prefill(ids)[: TOKENIZER.get_vocab_size()].argmax()))
    for mine, other in zip(fed.states(), whole.states(), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_ctrl_c_while_a_prompt_is_computed_comes_after_that_piece(tiny: Tiny) -> None:
    session = open_session(tiny.open(), threads=1)
    session.prefill([5, 6, 7])
    before, said = session.states(), list[int]()
    session.prefill = pressed_in(session.prefill, 2)  # type: ignore[method-assign,assignment]
    pieces = generate(
        session, TOKENIZER, "The cat sat on the mat. " * 400, max_tokens=2, sampling=GREEDY,
        on_prefill=lambda done, total: said.append(done),
    )  # fmt: skip
    assert until_interrupt(pieces) == ""
    assert said == [PREFILL_CHUNK]
    assert (session.position, set(session.seen)) == (3, {5, 6, 7})
    np.testing.assert_array_equal(session.states()[0], before[0])


def test_a_busy_session_is_left_to_whoever_is_in_it(tiny: Tiny) -> None:
    """The other caller goes on: its tokens are not rolled back."""
    session = open_session(tiny.open(), threads=1)

    def busy(tokens: Sequence[int]) -> NDArray[np.float32]:
        session.step(5)  # by another thread
        raise SessionBusyError("prefill was called while another thread is in the same object")

    session.prefill = busy  # type: ignore[method-assign]
    with pytest.raises(SessionBusyError):
        list(generate(session, TOKENIZER, "The cat", max_tokens=2, sampling=GREEDY))
    assert (session.position, set(session.seen)) == (1, {5})


def test_ctrl_c_waits_for_no_further_token() -> None:
    """Half a character and the beginning of a stop string are shown as they are."""
    session = Script(CLEF)
    session.step = pressed_in(session.step, 2)  # type: ignore[method-assign,assignment]
    pieces = generate(session, TOKENIZER, "A", max_tokens=9, sampling=GREEDY)
    assert until_interrupt(pieces) == TOKENIZER.decode(CLEF[:2])
    assert session.said == 2

    answer = TOKENIZER.encode("the cat").ids
    session = Script(answer)
    session.step = pressed_in(session.step, 1)  # type: ignore[method-assign,assignment]
    stop = [TOKENIZER.decode(answer[:1]) + "!"]
    pieces = generate(session, TOKENIZER, "A", max_tokens=9, sampling=GREEDY, stop=stop)
    assert until_interrupt(pieces) == TOKENIZER.decode(answer[:1])
    assert session.said == 1


@pytest.mark.parametrize("at_the_end", [False, True])
def test_ctrl_c_just_before_or_after_signals_are_held(
    at_the_end: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was generated is shown; `e`, with which a stop string could begin, as well."""
    blocks = 0

    @contextmanager
    def held_back_but() -> Iterator[list[int]]:
        nonlocal blocks
        blocks += 1
        if blocks == 3 and not at_the_end:
            raise KeyboardInterrupt
        with held_back() as came:
            yield came
        if blocks == 3 and at_the_end:
            raise KeyboardInterrupt

    module = import_module("retnet_edge.runtime.text.generate")
    monkeypatch.setattr(module, "held_back", held_back_but)
    answer = [*TOKENIZER.encode("the").ids, *TOKENIZER.encode("the").ids, 40, 41]
    assert TOKENIZER.decode(answer[:2]) == "thethe"
    session = Script(answer)  # the first block is the prompt's
    pieces = generate(session, TOKENIZER, "A", max_tokens=9, sampling=GREEDY, stop=["e!"])
    assert until_interrupt(pieces) == TOKENIZER.decode(answer[: session.said])
    assert session.said == (2 if at_the_end else 1)


@pytest.mark.parametrize("context", [[], [40] * 20])
def test_garbage_waits_for_64_tokens(context: list[int]) -> None:
    text = IncrementalDetokenizer(TOKENIZER, context)
    pieces = [text.push(GARBAGE) for _ in range(64)]
    assert pieces == [*[""] * 63, "\ufffd" * 64]


def test_a_long_text_is_not_decoded_again_for_every_token() -> None:
    lengths: list[int] = []

    class Noted:
        """The tokenizer, which notes how many tokens it is to decode."""

        def decode(self, ids: list[int]) -> str:
            lengths.append(len(ids))
            return str(TOKENIZER.decode(ids))

    text = IncrementalDetokenizer(Noted(), [])  # type: ignore[arg-type]
    answer = TOKENIZER.encode("the cat sat on the mat " * 9).ids
    assert "".join(text.push(token) for token in answer) == TOKENIZER.decode(answer)
    assert max(lengths) == 2  # one new token, and the one before it


def test_the_stop_string_that_is_complete_first_counts() -> None:
    for stop, text, shown in (
        (["abcd", "bc"], "abcd", "a"),  # `bc` is complete while `abcd` is not
        (["bc", "abc"], "xabc", "x"),  # both at once: the longer
        (["ab"], "xab", "x"),
        (["ab"], "ab", ""),
    ):
        stops = StopStrings(stop)
        assert (stops.push(text), stops.found, stops.flush()) == (shown, True, "")


def test_every_beginning_of_a_stop_string_is_held_back() -> None:
    for held in ("a", "ab", "abc", "abcd"):
        stops = StopStrings(["abcde", "x"])
        assert (stops.push(held), stops.push("!")) == ("", held + "!")
        stops = StopStrings(["abcde", "x"])
        assert (stops.push("1" + held), stops.flush()) == ("1", held)


def byte_fallback() -> tokenizers.Tokenizer:
    """Words, and single bytes for what is none of them, as in Llama's and Gemma's tokenizers."""
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "b"]
    vocabulary = {name: token for token, name in enumerate(names)}
    made: tokenizers.Tokenizer = Tokenizer(
        models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True)
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )  # fmt: skip
    return made


@pytest.mark.parametrize("end", ["\N{SLIGHTLY SMILING FACE}" * 5, "\u65e5\u672c", "a", " ", "ab "])
@pytest.mark.parametrize("text", ["\N{LATIN SMALL LETTER E WITH ACUTE}b", "b a", "\u8a9e"])
def test_bytes_after_a_prompt_that_ends_in_bytes(end: str, text: str) -> None:
    """Of a row of bytes that begins with half a character, a decoder makes U+FFFD alone."""
    words = byte_fallback()
    prompt = "a" + end
    ids = words.encode(prompt).ids
    answer = words.encode(prompt + text).ids[len(ids) :]
    assert "".join(spoken(words, prompt, answer)) == text


def test_the_space_after_a_control_token() -> None:
    """A decoder takes off the space before the first word of a text, and this is not the first."""
    words = ["<s>", "\u2581the", "\u2581cat", "s"]
    model = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<s>")
    metaspace: tokenizers.Tokenizer = Tokenizer(model)
    metaspace.pre_tokenizer = pre_tokenizers.Metaspace()
    metaspace.decoder = decoders.Metaspace()
    metaspace.add_special_tokens(["<s>"])
    assert spoken(metaspace, "the<s><s>", [2, 3]) == [" cat", "s"]
    assert spoken(metaspace, "<s>", [2, 3]) == ["cat", "s"]


def test_the_name_of_a_control_token_stands_for_it_where_nobody_says_otherwise() -> None:
    session = Script([])
    list(generate(session, TOKENIZER, "a<|endoftext|>b", max_tokens=1, sampling=GREEDY))
    assert session.on_prefill[: session.position - 1].count(END_OF_TEXT) == 1
