"""Which tokens end a text, of files that need not agree."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models

from retnet_edge.errors import InputError
from retnet_edge.tokenizing.special_tokens import (
    SpecialTokens,
    find_special_tokens,
    write_special_tokens,
)

WORDS = ["<|endoftext|>", "the", "cat", "sat", "<s>", "</s>", "<pad>", "<|im_end|>"]


def tokenizer(*special: str) -> Tokenizer:
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="the"))
    made.add_special_tokens([AddedToken(name, special=True) for name in special])
    return made


ALL = tokenizer("<|endoftext|>", "<s>", "</s>", "<pad>", "<|im_end|>")
Files = dict[str, dict[str, Any]]


def found(folder: Path, files: Files, of: Tokenizer = ALL) -> SpecialTokens:
    for name, fields in files.items():
        (folder / f"{name}.json").write_text(json.dumps(fields))
    return find_special_tokens(folder, of)


@pytest.mark.parametrize(
    ("files", "ends"),
    [
        ({}, (0,)),
        ({"config": {"eos_token_id": 5}}, (5,)),
        ({"config": {"eos_token_id": [5, 7]}}, (5, 7)),
        ({"generation_config": {"eos_token_id": [7, 5]}, "config": {"eos_token_id": 5}}, (7, 5)),
        ({"tokenizer_config": {"eos_token": "</s>"}}, (5,)),
        ({"tokenizer_config": {"eos_token": {"content": "</s>", "lstrip": False}}}, (5,)),
        ({"special_tokens_map": {"eos_token": "</s>"}}, (5,)),
        ({"tokenizer_config": {"eos_token": None}}, (0,)),
        # the default of a class of models, which is a word of this tokenizer
        ({"config": {"eos_token_id": 2}, "tokenizer_config": {"eos_token": "</s>"}}, (5,)),
        ({"config": {"eos_token_id": 2}}, (0,)),
        ({"generation_config": {"eos_token_id": 2, "_from_model_config": True}}, (0,)),
        # what somebody wrote counts
        ({"generation_config": {"eos_token_id": 2}}, (2,)),
    ],
)
def test_the_end_of_a_text(files: Files, ends: tuple[int, ...], tmp_path: Path) -> None:
    assert found(tmp_path, files) == SpecialTokens(ends=ends)


def test_without_a_special_token_the_first_that_is_named(tmp_path: Path) -> None:
    plain = Tokenizer(models.WordLevel({"a": 0, "end": 1}, unk_token="a"))
    assert found(tmp_path, {}, plain) == SpecialTokens()
    assert found(tmp_path, {"config": {"eos_token_id": 1}}, plain) == SpecialTokens(ends=(1,))


def test_ids_and_names_that_the_tokenizer_lacks_are_said_and_left_out(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "config.json").write_text('{"eos_token_id": [5, 900], "pad_token_id": -1}')
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<begin>"}')
    assert find_special_tokens(tmp_path, ALL, said.append) == SpecialTokens(ends=(5,))
    assert len(said) == 3
    assert "eos_token_id 900 is no token" in " ".join(said)
    assert "pad_token_id -1 is no token" in " ".join(said)
    assert "bos_token '<begin>' is no token" in " ".join(said)


@pytest.mark.parametrize("value", ["5", 5.0, True, [5, "7"], {"a": 1}])
def test_what_is_no_id_is_refused(value: object, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json: eos_token_id is .* number of a token"):
        found(tmp_path, {"config": {"eos_token_id": value}})


@pytest.mark.parametrize("raw", [b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_is_no_object(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_bytes(raw)
    with pytest.raises(InputError, match=r"tokenizer_config\.json: ") as caught:
        find_special_tokens(tmp_path, ALL)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "special",
    [
        SpecialTokens(ends=(0,)),
        SpecialTokens(ends=(5,), begin=4, padding=6),
        SpecialTokens(ends=(7, 5)),
        SpecialTokens(ends=(0,), padding=6),
    ],
)
def test_what_is_written_is_found(special: SpecialTokens, tmp_path: Path) -> None:
    write_special_tokens(tmp_path, SpecialTokens(ends=(7,)), ALL)  # from before
    write_special_tokens(tmp_path, special, ALL)
    assert find_special_tokens(tmp_path, ALL) == special
    usual = special == SpecialTokens(ends=(0,))
    assert (tmp_path / "generation_config.json").exists() != usual


@pytest.mark.parametrize("name", ["generation_config.json", "config.json", "tokenizer_config.json"])
def test_what_is_no_file_is_named_and_not_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=f"{name} is not a regular file"):
        find_special_tokens(tmp_path, ALL)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(InputError, match=f"{name} is not a regular file"):
        find_special_tokens(tmp_path, ALL)
