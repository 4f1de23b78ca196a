"""The byte-level tokenizer: every text comes back byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from retnet_edge.errors import InputError
from retnet_edge.tokenizer import (
    END_OF_TEXT,
    SMALLEST_VOCABULARY,
    load_tokenizer,
    train_tokenizer,
)

TEXT = [
    "The cat sat on the mat, and the dogs sat by the door of the house. " * 5,
    "A quiet night, and nobody woke.",
]


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_tokenizer(TEXT, 300)


@settings(max_examples=150)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
def test_any_unicode_text_comes_back(bpe: Tokenizer, text: str) -> None:
    ids = bpe.encode(text).ids
    assert all(0 <= i < bpe.get_vocab_size() for i in ids)
    assert bpe.decode(ids, skip_special_tokens=False) == text


def test_end_of_text_is_id_zero_and_one_token(bpe: Tokenizer) -> None:
    assert bpe.token_to_id(END_OF_TEXT) == 0
    assert bpe.encode(f"a{END_OF_TEXT}b").ids.count(0) == 1
    assert 0 not in bpe.encode("<|endoftext|").ids


def test_the_vocabulary_is_learnt_and_of_the_size_asked(bpe: Tokenizer) -> None:
    assert bpe.get_vocab_size() == 300
    ids = bpe.encode(TEXT[0]).ids
    assert len(ids) < 0.6 * len(TEXT[0])
    assert train_tokenizer(TEXT, 300).to_str() == bpe.to_str()


def test_a_vocabulary_too_small_for_the_bytes() -> None:
    with pytest.raises(InputError, match=r"vocab_size is 256; byte-level BPE needs 257"):
        train_tokenizer(TEXT, SMALLEST_VOCABULARY - 1)
    least = train_tokenizer(TEXT, SMALLEST_VOCABULARY)
    assert least.get_vocab_size() == SMALLEST_VOCABULARY
    assert least.decode(least.encode("naïve 🙂").ids) == "naïve 🙂"


def test_load_is_the_inverse_of_save(bpe: Tokenizer, tmp_path: Path) -> None:
    bpe.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path / "tokenizer.json").to_str() == bpe.to_str()


def test_a_tokenizer_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(InputError, match=r"tokenizer\.json: no such tokenizer file"):
        load_tokenizer(path)
    for content in (b"", b"{}", b"\xff"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"tokenizer\.json: not a tokenizer file") as caught:
            load_tokenizer(path)
        assert "\n" not in str(caught.value)
