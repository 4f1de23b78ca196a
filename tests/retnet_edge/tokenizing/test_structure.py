"""A tokenizer.json is judged before the tokenizers library sees it, and what passes can be used.

Damage is made by rule (each value gone, each value another), not by hand: no file that brings the
library down is kept here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizer_shapes import SHAPES, changed, places, shape

from retnet_edge.errors import InputError
from retnet_edge.tokenizer import load_tokenizer
from retnet_edge.tokenizing.structure import MOST_BYTES, judge
from retnet_edge.tokenizing.texts import TextEncoder, prompt_ids

OTHERS: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    3,
    2**24,
    2**40,
    0.5,
    "",
    "a",
    "▁▁",
    [],
    {},
    ["a", 1],
    {"id": 1},
)
TEXTS = ("", "the cat sat on the mat, naïve ａ① 漢字 🙂\n\n", "<s> [MASK] x" * 20)


def judged(value: Any) -> bool | str:
    """Whether it is plain, or why it was refused."""
    try:
        return judge(json.dumps(value).encode()).plain
    except ValueError as error:
        return str(error)


def use(path: Path) -> None:
    """As training and `generate` use it. What the library has to say is an InputError."""
    tokenizer = load_tokenizer(path)
    encode = TextEncoder(tokenizer)
    for text in TEXTS:
        encode(text)
        ids = prompt_ids(tokenizer, text, begins=True, control_tokens=True)
        tokenizer.decode(ids)
        tokenizer.decode(ids, skip_special_tokens=False)
    tokenizer.decode([])


@pytest.mark.parametrize("name", SHAPES)
def test_what_other_projects_write_is_read(name: str, tmp_path: Path) -> None:
    made, plain = SHAPES[name]
    path = tmp_path / "tokenizer.json"
    for pretty in (True, False):
        made().save(str(path), pretty)
        assert judge(path.read_bytes()).plain == plain
    assert load_tokenizer(path).to_str() == made().to_str()
    use(path)


def test_files_of_before_types_are_read() -> None:
    for name in SHAPES:
        assert judged(changed(shape(name), ("model", "type"))) == SHAPES[name][1]
    words = changed(shape("bert"), ("model",), {"vocab": {"a": 0}, "unk_token": "a"})
    assert judged(words) is False


def test_merges_are_pairs_or_lines() -> None:
    pairs = shape("llama")
    lines = [" ".join(pair) for pair in pairs["model"]["merges"]]
    assert judged(changed(pairs, ("model", "merges"), lines)) is True
    assert "not two tokens with a space" in str(judged(changed(pairs, ("model", "merges"), ["a"])))


@pytest.mark.parametrize("name", SHAPES)
def test_any_value_gone_or_another_is_refused_or_can_be_used(name: str, tmp_path: Path) -> None:
    """Whole files are loaded where they are plain; the others would be tried first."""
    whole, path = shape(name), tmp_path / "tokenizer.json"
    counts = {True: 0, False: 0, "refused": 0}
    for place in places(whole):
        for damage in ((), *((other,) for other in OTHERS)):
            value = changed(whole, place, *damage)
            found = judged(value)
            counts["refused" if isinstance(found, str) else found] += 1
            if found is True:
                path.write_text(json.dumps(value))
                try:
                    use(path)
                except InputError as error:
                    assert "\n" not in str(error)  # noqa: PT017 - most are not refused
    assert counts["refused"] > 300
    assert counts[SHAPES[name][1]] > 20


def many(count: int) -> Any:
    return [{"type": "NFC"}] * count


def nested(depth: int, kind: str) -> Any:
    value: Any = {"type": "NFC"}
    for _ in range(depth):
        value = {"type": "Sequence", kind: [value]}
    return value


DOUBLING = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
REFUSED = {
    "version": (("version",), "2.0", "Invalid enum value '2.0' - at `$.version`"),
    "no model": (("model",), {}, "model: Object missing required field"),
    "a model that is unknown": (("model", "type"), "Tree", "unknown model 'Tree'; known: BPE, "),
    "a part that is unknown": (("normalizer",), {"type": "X"}, "Invalid value 'X' - at `$.norm"),
    "a field that is unknown": (("decoder",), {"type": "Fuse", "x": 1}, "unknown field `x`"),
    "many parts": (("normalizer",), {"type": "Sequence", "normalizers": many(65)}, "length <= 64"),
    "many parts in many": (
        ("normalizer",),
        {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": many(9)}] * 9},
        "more than 64 parts",
    ),
    "deep parts": (("normalizer",), nested(9, "normalizers"), "nested more than 8 deep"),
    "very deep parts": (("decoder",), nested(400, "decoders"), "Invalid value 'NFC' - at …"),
    "growth": (
        ("normalizer",),
        {"type": "Sequence", "normalizers": [DOUBLING] * 17},
        "normalizer: what it replaces makes a text 65536 times as long",
    ),
    "growth of what is decoded": (
        ("decoder",),
        {"type": "Sequence", "decoders": [DOUBLING] * 17},
        "decoder: what it replaces makes a text 65536 times as long",
    ),
    "two patterns": (
        ("pre_tokenizer",),
        {
            "type": "Split",
            "pattern": {"String": "a", "Regex": "a"},
            "behavior": "Isolated",
            "invert": False,
        },
        "either String or Regex",
    ),
    "a long pattern": (
        ("pre_tokenizer",),
        {
            "type": "Split",
            "pattern": {"Regex": "a" * 2049},
            "behavior": "Isolated",
            "invert": False,
        },
        "length <= 2048",
    ),
    "an id that is large": (("model", "vocab", "a"), 2**24, "`int` <= 16777215"),
    "an id that is negative": (("model", "vocab", "a"), -1, "`int` >= 0"),
    "an id twice": (("model", "vocab", "a"), 3, "vocab gives one id to two tokens"),
    "a merge of no token": (
        ("model", "merges"),
        [["t", "q"]],
        "merges[0] makes 'tq' of 't' and 'q', which are not all in vocab",
    ),
    "a token that is empty": (("model", "vocab", ""), 999, "length >= 1"),
    "white space of two": (
        ("added_tokens",),
        [
            {"id": i, "content": content, "single_word": False, "lstrip": False,
             "rstrip": not i, "normalized": False, "special": False}
            for i, content in enumerate(["<unk>", " x"])
        ],
        "'<unk>' takes the white space behind it (rstrip), with which ' x' begins",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_a_refusal_says_what_and_where(what: str, tmp_path: Path) -> None:
    place, new, sentence = REFUSED[what]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(changed(shape("llama"), place, new)))
    with pytest.raises(InputError, match=r"tokenizer\.json: not a tokenizer file: ") as caught:
        load_tokenizer(path)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_put_around_a_text_has_an_id(tmp_path: Path) -> None:
    """And every control token of a template is described, once for each text."""
    whole, path = shape("llama"), tmp_path / "tokenizer.json"
    tokens = ("post_processor", "special_tokens", "<s>")
    for place, new, sentence in [
        ((*tokens, "ids"), [9_999], "post_processor adds the token 9999, which there is not"),
        ((*tokens, "tokens"), ["<s>", "</s>"], "'<s>' has 1 ids and 2 tokens"),
        (("post_processor", "single"), [], "single holds the texts none; A once each is right"),
        (
            ("post_processor", "pair"),
            [{"Sequence": {"id": "A", "type_id": 0}}],
            "pair holds the texts A; A and B once each is right",
        ),
    ]:
        path.write_text(json.dumps(changed(whole, place, new)))
        with pytest.raises(InputError) as caught:
            load_tokenizer(path)
        assert sentence in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"\xff", b"[" * 100_000, b'{"a":' * 100_000, b'"', b"null", b"\xef\xbb\xbf{}"],
)
def test_bytes_that_are_none(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"tokenizer\.json: not a tokenizer file") as caught:
        load_tokenizer(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with path.open("wb") as file:
        file.truncate(1 << 42)
    with pytest.raises(InputError, match=f"a tokenizer has at most {MOST_BYTES}"):
        load_tokenizer(path)


def test_limits_and_dropout_are_not_taken_over(tmp_path: Path) -> None:
    """They are for training's batches: a text is whole, and the same tokens every time."""
    path, made = tmp_path / "tokenizer.json", SHAPES["with template"][0]()
    text = "the cat sat on the mat, and the dog sat by the door"
    wanted = made.encode(text).ids
    made.enable_truncation(5)
    made.enable_padding(length=99)
    made.model.dropout = 0.9
    made.save(str(path))
    loaded = load_tokenizer(path)
    assert (loaded.truncation, loaded.padding, loaded.model.dropout) == (None, None, None)
    assert [loaded.encode(text).ids for _ in range(3)] == [wanted] * 3
    assert loaded.encode(text).ids == wanted
