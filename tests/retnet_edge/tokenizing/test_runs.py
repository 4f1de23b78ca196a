"""A tokenizer's training sees no endless word, and every other word as it stands."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from retnet_edge.tokenizer import END_OF_TEXT, train_tokenizer
from retnet_edge.tokenizing.runs import LONGEST_RUN, short_words

WORDS: Any = pre_tokenizers.ByteLevel(add_prefix_space=False)
PROSE = "The cat sat on the mat, and the dog's 1,000 naïve 漢字 friends -- too!\n\n\t" * 40


def lengths(text: str) -> list[int]:
    """Characters of each word."""
    return [stop - start for _, (start, stop) in WORDS.pre_tokenize_str(text)]


def plainly_trained(pieces: list[str], size: int) -> str:
    """What the library makes of texts as they are."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = WORDS, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(pieces, trainer)
    text: str = made.to_str()
    return text


def runs() -> dict[str, str]:
    rng = random.Random(0)
    return {
        "DNA": "".join(rng.choice("ACGT") for _ in range(5_000)),
        "no spaces": "".join(chr(rng.randrange(0x4E00, 0x5E00)) for _ in range(4_000)),
        "spaces": " " * 3_000,
        "a rule": "=" * 4_321,
        "digits": "12½" * 1_500,
        "underscores": "_-" * 2_000,
        "newlines": "\n\r\t" * 1_000,
    }


@pytest.mark.parametrize("kind", runs())
def test_no_word_is_longer_than_the_longest(kind: str) -> None:
    for text in (runs()[kind], PROSE + runs()[kind] + PROSE, f"{PROSE} {runs()[kind]} x"):
        assert max(lengths(text)) > LONGEST_RUN
        pieces = list(short_words(text, WORDS))
        assert "".join(pieces) == text
        assert len(pieces) > 2
        assert max(max(lengths(piece)) for piece in pieces) <= LONGEST_RUN + 1  # a space before


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from(["a" * 1_000, "b", " ", "=" * 700, "1" * 2_500, "é", "\n" * 1_024]))
)
@example(["a" * 1_000, "b" * 24, " "])
@example(["a" * 1_000, "b" * 25, " ", "c" * 1_026])
@example(["=" * 1_023, "a" * 1_025, "=" * 1_025])
@example([" ", "\n" * 1_024, "a" * 1_000])
def test_only_words_that_are_too_long_are_cut(parts: list[str]) -> None:
    text = "".join(parts)
    pieces = list(short_words(text, WORDS))
    assert "".join(pieces) == text
    # a space before a word belongs to it, and is not counted where a run begins
    short = [length for piece in pieces for length in lengths(piece)]
    assert max(short, default=0) <= LONGEST_RUN + 1
    kept = [length for length in lengths(text) if length <= LONGEST_RUN]
    assert not Counter(kept) - Counter(short)
    if len(kept) == len(lengths(text)) and "\n" not in text:  # a space makes that run longer
        assert pieces == [text] * bool(text)


def test_a_long_mixture_is_left_as_it_is() -> None:
    """Base64 and code without spaces: no word in it is long, and nearly nothing is cut."""
    rng = random.Random(1)
    text = "".join(rng.choice("abcXYZ019+/") for _ in range(200_000))
    pieces = list(short_words(text, WORDS))
    assert "".join(pieces) == text
    assert len(pieces) == 1
    letters = "".join(rng.choice("abcXYZ019") for _ in range(200_000))
    assert len(list(short_words(letters, WORDS))) == 4


def test_prose_trains_to_what_it_trained_to() -> None:
    texts = [PROSE, "", "x" * LONGEST_RUN, " " + "y" * (LONGEST_RUN - 1)]
    assert train_tokenizer(texts, 400).to_str() == plainly_trained(texts, 400)


def test_no_token_is_learnt_of_an_endless_word() -> None:
    """Pairs of pairs of one letter: without the cut, tokens of 8,192 letters."""
    bpe = train_tokenizer(["a" * 16_384], 300)
    longest = max(len(token) for token in bpe.get_vocab() if set(token) == {"a"})
    assert longest == LONGEST_RUN
    assert bpe.decode(bpe.encode("a" * 5_000).ids) == "a" * 5_000
