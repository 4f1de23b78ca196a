"""Streaming: no half characters, no text behind a stop string, and nothing lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tokenizers
from conftest import Tiny
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scripted_session import Script
from tiny_bundle import END_OF_TEXT, train_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from retnet_edge.errors import InputError
from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.text.generate import (
    PREFILL_CHUNK,
    IncrementalDetokenizer,
    StopStrings,
    generate,
)
from retnet_edge.runtime.text.sampling import Sampling

TOKENIZER = train_tokenizer()
GREEDY = Sampling(temperature=0)


def pieces_of(
    answer: Sequence[int], *, stop: Sequence[str] = (), max_tokens: int = 1000
) -> list[str]:
    return list(
        generate(
            Script(answer),
            TOKENIZER,
            "The",
            max_tokens=max_tokens,
            sampling=GREEDY,
            stop=stop,
            end_of_text=END_OF_TEXT,
        )
    )


answers = st.lists(st.integers(1, 299), max_size=40)


@given(answers)
def test_pieces_add_up_to_the_text(answer: list[int]) -> None:
    assert "".join(pieces_of(answer)) == TOKENIZER.decode(answer)


@given(st.text(max_size=60))
def test_no_half_characters(text: str) -> None:
    pieces = pieces_of(TOKENIZER.encode(text).ids)
    expected = text.replace("<|endoftext|>", "")
    if "<|endoftext|>" not in text:
        assert "".join(pieces) == expected
    assert "" not in pieces
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_of_four_tokens_comes_at_once() -> None:
    ids = TOKENIZER.encode("\N{MUSICAL SYMBOL G CLEF}").ids
    assert len(ids) == 4
    text = IncrementalDetokenizer(TOKENIZER)
    assert [text.push(token) for token in ids] == ["", "", "", "\N{MUSICAL SYMBOL G CLEF}"]
    assert text.flush() == ""


def test_half_a_character_at_the_end_is_a_replacement() -> None:
    ids = TOKENIZER.encode("a\N{MUSICAL SYMBOL G CLEF}").ids[:-1]
    assert "".join(pieces_of(ids)) == "a\ufffd"


def test_garbage_without_end_does_not_wait_for_ever() -> None:
    byte = TOKENIZER.token_to_id("\u0122")  # byte 0x80 in byte-level BPE: never starts a character
    assert byte is not None
    text = IncrementalDetokenizer(TOKENIZER)
    emitted = "".join(text.push(byte) for _ in range(200))
    assert len(emitted) >= 128
    assert emitted + text.flush() == "\ufffd" * 200


def test_spaces_of_a_decoder_that_strips_the_first() -> None:
    words = ["\u2581the", "\u2581cat", "s", "\u2581sat", "<s>"]
    model = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<s>")
    metaspace: tokenizers.Tokenizer = Tokenizer(model)
    metaspace.pre_tokenizer = pre_tokenizers.Metaspace()
    metaspace.decoder = decoders.Metaspace()
    metaspace.add_special_tokens(["<s>"])
    text = IncrementalDetokenizer(metaspace, context=[0])
    assert [text.push(t) for t in (1, 2, 4, 3)] == [" cat", "s", "", " sat"]
    alone = IncrementalDetokenizer(metaspace)
    assert [alone.push(t) for t in (0, 1)] == ["the", " cat"]


stop_sets = st.lists(st.text("ab ", min_size=1, max_size=4), max_size=3)


@given(st.lists(st.text("ab ", max_size=5), max_size=12), stop_sets)
def test_stop_strings(pieces: list[str], stop: list[str]) -> None:
    whole = "".join(pieces)
    stops = StopStrings(stop)
    emitted = "".join(stops.push(piece) for piece in pieces) + stops.flush()
    assert whole.startswith(emitted)
    assert not any(s in emitted for s in stop)
    assert stops.found == any(s in whole for s in stop)
    if not stops.found:
        assert emitted == whole
    # how the text was cut into pieces makes no difference
    letters = StopStrings(stop)
    assert "".join(letters.push(letter) for letter in whole) + letters.flush() == emitted


@given(st.lists(st.text("ab ", max_size=5), max_size=12), stop_sets)
def test_no_more_is_held_back_than_a_stop_string_could_need(
    pieces: list[str], stop: list[str]
) -> None:
    stops = StopStrings(stop)
    emitted = given_so_far = ""
    for piece in pieces:
        given_so_far += piece
        emitted += stops.push(piece)
        if not stops.found:
            held = given_so_far[len(emitted) :]
            assert held == "" or any(s.startswith(held) for s in stop)


@given(answers, st.lists(st.sampled_from(["e", "at", " t", "the", "\u00e9"]), max_size=2))
def test_generate_never_emits_beyond_a_stop(answer: list[int], stop: list[str]) -> None:
    whole = TOKENIZER.decode(answer)
    emitted = "".join(pieces_of(answer, stop=stop))
    assert whole.startswith(emitted)
    assert not any(s in emitted for s in stop)
    if not any(s in whole for s in stop):
        assert emitted == whole


def test_stopping_early_asks_for_no_more_tokens() -> None:
    ids = TOKENIZER.encode("the cat sat on the mat").ids
    session = Script(ids)
    out = "".join(generate(session, TOKENIZER, "A", max_tokens=99, sampling=GREEDY, stop=["cat"]))
    assert out == "the "
    assert len(session.on_prefill) < len(ids)


def test_max_tokens_counts_tokens() -> None:
    ids = TOKENIZER.encode("the cat sat on the mat").ids
    assert "".join(pieces_of(ids, max_tokens=2)) == TOKENIZER.decode(ids[:2])


def test_the_session_has_seen_everything_but_the_end() -> None:
    answer = TOKENIZER.encode("the dog").ids
    session = Script(answer)
    prompt = TOKENIZER.encode("A cat").ids
    list(
        generate(
            session, TOKENIZER, "A cat", max_tokens=50, sampling=GREEDY, end_of_text=END_OF_TEXT
        )
    )
    assert session.on_prefill == [*prompt, *answer]


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "stop", "complaint"),
    [
        ("", 5, [], "the prompt '' has 0 tokens; at least one is needed"),
        ("A", 0, [], "max_tokens is 0; at least 1 is needed"),
        ("A", 5, ["x", ""], "a stop string is empty; it needs at least one character"),
    ],
)
def test_bad_arguments_are_refused_before_the_first_token(
    prompt: str, max_tokens: int, stop: list[str], complaint: str
) -> None:
    session = Script([])
    with pytest.raises(InputError, match=complaint):
        generate(session, TOKENIZER, prompt, max_tokens=max_tokens, sampling=GREEDY, stop=stop)
    assert session.position == 0


def test_a_real_session(tiny: Tiny) -> None:
    bundle = tiny.open()

    def text(seed: int) -> str:
        session = open_session(bundle, threads=1)
        return "".join(
            generate(
                session, bundle.tokenizer(), "The cat", max_tokens=30, sampling=Sampling(seed=seed)
            )
        )

    assert text(1) == text(1) != text(2)


def test_a_second_prompt_continues_the_same_state(tiny: Tiny) -> None:
    bundle = tiny.open()
    session = open_session(bundle, threads=1)
    tokenizer = bundle.tokenizer()
    list(generate(session, tokenizer, "The cat", max_tokens=5, sampling=GREEDY))
    first = session.position
    assert first == len(tokenizer.encode("The cat").ids) + 5
    list(generate(session, tokenizer, " and a dog", max_tokens=5, sampling=GREEDY))
    assert session.position == first + len(tokenizer.encode(" and a dog").ids) + 5


def test_a_long_prompt_is_fed_in_pieces_and_said(tiny: Tiny) -> None:
    prompt = "The cat sat on the mat. " * 400
    said: list[tuple[int, int]] = []
    session = open_session(tiny.open(), threads=1)
    list(
        generate(
            session,
            TOKENIZER,
            prompt,
            max_tokens=1,
            sampling=GREEDY,
            on_prefill=lambda done, total: said.append((done, total)),
        )
    )
    total = len(TOKENIZER.encode(prompt).ids)
    assert total > 2 * PREFILL_CHUNK
    assert said == [
        (min(done, total), total)
        for done in range(PREFILL_CHUNK, total + PREFILL_CHUNK, PREFILL_CHUNK)
    ]
    assert session.position == total + 1


def test_a_prompt_is_fed_whole_whatever_its_tokenizer_would_like() -> None:
    limited = train_tokenizer()
    prompt = "The cat sat on the mat. " * 20
    wanted = limited.encode(prompt).ids
    limited.enable_truncation(16)
    limited.enable_padding(length=32)
    session = Script([])
    list(generate(session, limited, prompt, max_tokens=1, sampling=GREEDY, end_of_text=END_OF_TEXT))
    assert session.on_prefill == wanted


def test_control_tokens_in_a_prompt_are_what_the_caller_says() -> None:
    """The token for whoever writes a prompt by hand; text where somebody else wrote it."""
    prompt = "a<|endoftext|>b"
    by_hand, text = Script([]), Script([])
    for session, control_tokens in ((by_hand, True), (text, False)):
        made = generate(
            session,
            TOKENIZER,
            prompt,
            max_tokens=1,
            sampling=GREEDY,
            end_of_text=END_OF_TEXT,
            control_tokens=control_tokens,
        )
        list(made)
    assert by_hand.on_prefill == TOKENIZER.encode(prompt).ids
    assert by_hand.on_prefill.count(END_OF_TEXT) == 1
    assert END_OF_TEXT not in text.on_prefill
    assert TOKENIZER.decode(text.on_prefill) == prompt


def special(name: str, token: int) -> tokenizers.Tokenizer:
    """TOKENIZER, whose token of that id is a special one of that name."""
    made = tokenizers.Tokenizer.from_str(TOKENIZER.to_str().replace("<|endoftext|>", name))
    assert made.token_to_id(name) == token
    return made


def said_until_end(tokenizer: tokenizers.Tokenizer, answer: list[int], **options: Any) -> Script:
    session = Script(answer)
    drawn = generate(session, tokenizer, "The", max_tokens=20, sampling=GREEDY, **options)
    assert "".join(drawn) == tokenizer.decode(session.on_prefill[1:])
    return session


def test_any_of_several_tokens_ends_a_text() -> None:
    for end in (40, 50):
        session = said_until_end(TOKENIZER, [30, 31, end, 32], end_of_text=(40, 50))
        assert session.on_prefill[-2:] == [30, 31]


def test_a_special_token_is_a_stop_string() -> None:
    """It has no text in which the string could be found."""
    words = special("</s>", 0)
    session = said_until_end(words, [30, 31, 0, 32, 33], stop=["</s>"])
    assert session.on_prefill[-2:] == [30, 31]
    session = said_until_end(words, [30, 31, 0, 32, 33], stop=["</t>"])
    assert session.on_prefill[-20:-15] == [30, 31, 0, 32, 33]


def test_ids_without_a_token_are_never_drawn() -> None:
    """Rows that pad a vocabulary: here the likeliest."""

    class Padded(Script):
        def _logits(self) -> NDArray[np.float32]:
            return np.append(super()._logits(), np.full(84, 9.0, dtype=np.float32))

    answer = TOKENIZER.encode(" cat and dog").ids
    for sampling in (GREEDY, Sampling(top_k=0, top_p=1.0, temperature=0.01)):
        session = Padded(answer)
        options = {"max_tokens": len(answer), "sampling": sampling}
        assert "".join(generate(session, TOKENIZER, "The", **options)) == " cat and dog"  # type: ignore[arg-type]
