"""Texts to ids: never cut off or padded, and no text is a control token."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from retnet_edge.errors import InputError
from retnet_edge.tokenizer import END_OF_TEXT, train_tokenizer
from retnet_edge.tokenizing.texts import TextEncoder, prompt_ids, whole

TEXT = "the cat sat on the mat, and the dog sat by the door"


def byte_level() -> Tokenizer:
    return train_tokenizer([TEXT] * 3, 300)


def unmarked() -> Tokenizer:
    """Its end of text is an added token that nobody marked special."""
    bpe = train_tokenizer([TEXT] * 3, 300)
    plain = bpe.to_str().replace('"special":true', '"special":false')
    assert plain != bpe.to_str()
    return Tokenizer.from_str(plain)


def words() -> Tokenizer:
    """A control token that its model knows as a word."""
    names = ["[UNK]", END_OF_TEXT, "a", "b", "says"]
    made = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens([END_OF_TEXT])
    return made


def pieces() -> Tokenizer:
    """The same in a model of pieces, which adds a control token before every text."""
    letters = [(letter, -3.0) for letter in sorted(set(f"{END_OF_TEXT} absy"))]
    made = Tokenizer(models.Unigram([("<unk>", 0.0), (END_OF_TEXT, -1.0), *letters], unk_id=0))
    made.add_special_tokens([END_OF_TEXT])
    made.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, 1)]
    )
    return made


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level,
    "unmarked": unmarked,
    "words": words,
    "pieces": pieces,
}


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_is_a_control_token(kind: str) -> None:
    made = KINDS[kind]()
    end = made.token_to_id(END_OF_TEXT)
    added = made.encode("a").ids.count(end)  # what it puts around any text
    assert end in made.encode(f"a says {END_OF_TEXT} b").ids[added:]
    encode = TextEncoder(made, [END_OF_TEXT])
    for text in (f"a says {END_OF_TEXT} b", END_OF_TEXT, f" {END_OF_TEXT} " * 1_200):
        ids = encode(text)
        assert ids.count(end) == added
        assert ids[:added] == [end] * added
        if kind != "words":  # whose words are not its text
            assert made.decode(ids[added:], skip_special_tokens=False).replace(" ", "") == (
                text.replace(" ", "")
            )
    assert made.encode(f"a {END_OF_TEXT}").ids.count(end) == added + 1  # the argument stays


@pytest.mark.parametrize("kind", KINDS)
def test_other_texts_get_the_ids_that_they_had(kind: str) -> None:
    made = KINDS[kind]()
    texts = ["a says b", "", "b", "a b a"]
    assert TextEncoder(made).batch(texts) == [made.encode(text).ids for text in texts]
    bare = [made.encode(text, add_special_tokens=False).ids for text in texts]
    assert TextEncoder(made).batch(texts, begins=False) == bare


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.sampled_from([END_OF_TEXT, "<|", "endoftext", "|>", "the ", "naïve\n", "🙂"])))
def test_any_text_comes_back(encoder: TextEncoder, parts: list[str]) -> None:
    text = "".join(parts)
    ids = encoder(text)
    assert 0 not in ids
    assert encoder.tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder(byte_level())


def test_a_control_token_of_one_character_cannot_be_written_otherwise() -> None:
    made = Tokenizer(models.WordLevel({"[UNK]": 0, "|": 1, "a": 2}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["|"])
    encode = TextEncoder(made)
    assert encode("a a") == [2, 2]
    with pytest.raises(InputError, match=r"takes '\|' for the control token '\|', in texts too"):
        encode("a | a")


def test_nothing_is_cut_off_or_padded() -> None:
    made = byte_level()
    wanted = made.encode(TEXT).ids
    made.enable_truncation(4)
    made.enable_padding(length=100)
    assert len(made.encode(TEXT).ids) == 100
    assert TextEncoder(made)(TEXT) == wanted
    assert whole(made).encode(TEXT).ids == wanted
    for control_tokens in (True, False):
        found = prompt_ids(made, TEXT, begins=True, control_tokens=control_tokens)
        assert found == wanted
    assert (made.truncation["max_length"], made.padding["length"]) == (4, 100)
    bare = byte_level()
    assert whole(bare) is bare


def test_a_prompt_has_control_tokens_where_it_is_told() -> None:
    made = pieces()
    end = made.token_to_id(END_OF_TEXT)
    prompt = f"a{END_OF_TEXT}b"
    for begins in (True, False):
        hand = prompt_ids(made, prompt, begins=begins, control_tokens=True)
        text = prompt_ids(made, prompt, begins=begins, control_tokens=False)
        assert (hand.count(end), text.count(end)) == (1 + begins, int(begins))


def test_a_prompt_has_no_byte_order_mark() -> None:
    made = byte_level()
    for control_tokens in (True, False):
        found = prompt_ids(made, "\ufeffthe cat", begins=True, control_tokens=control_tokens)
        assert found == made.encode("the cat").ids
