"""Byte-level BPE through the `tokenizers` library: every byte string has a tokenization."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from retnet_edge.errors import InputError
from retnet_edge.files import read_input
from retnet_edge.tokenizing.library import calling
from retnet_edge.tokenizing.runs import short_words
from retnet_edge.tokenizing.special_tokens import END_OF_TEXT
from retnet_edge.tokenizing.structure import MOST_BYTES, judge
from retnet_edge.tokenizing.trial import try_tokenizer

__all__ = [
    "END_OF_TEXT",
    "SMALLEST_VOCABULARY",
    "check_vocabulary",
    "drawable_ids",
    "load_tokenizer",
    "padding_fields",
    "tokenizer_of",
    "train_tokenizer",
    "used_vocabulary",
]

SMALLEST_VOCABULARY = 257

_VOCABULARY_PADDING = 128
_LONGEST_REASON = 400  # characters: a way into nested parts may be any number


def train_tokenizer(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of `vocab_size` entries, `<|endoftext|>` being id 0.

    Words of more than 1,024 characters are learnt from in pieces (`tokenizing/runs.py`). Raises
    InputError where the vocabulary cannot hold the 256 bytes and the end of text.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise InputError(f"vocab_size is {vocab_size}; byte-level BPE needs {SMALLEST_VOCABULARY}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = tokenizer.pre_tokenizer
    pieces = (piece for document in documents for piece in short_words(document, words))
    tokenizer.train_from_iterator(pieces, trainer)
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """Read tokenizer.json, from wherever it is: the only place that does.

    The file is judged before the library sees it, and an unusual one tried in a process of its own.
    Truncation, padding and dropout in it are not taken over: texts are whole. Raises InputError
    where it is missing, too large or not a tokenizer that can be used.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such tokenizer file")
    return tokenizer_of(read_input(path, MOST_BYTES, "a tokenizer"), path)


def tokenizer_of(raw: bytes, path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json's bytes, which stand in `path`; as `load_tokenizer`."""
    try:
        judged = judge(raw)
    except ValueError as error:  # msgspec's are ValueErrors
        said = textwrap.shorten(str(error), _LONGEST_REASON, placeholder=" …")
        raise InputError(f"{path}: not a tokenizer file: {said}") from error
    if not judged.plain:
        try_tokenizer(judged.raw, path)
    with calling(f"{path}: not a tokenizer file"):
        tokenizer = Tokenizer.from_buffer(judged.raw)
    for token in judged.controls:
        if tokenizer.id_to_token(token) is None:
            raise InputError(f"{path}: post_processor adds the token {token}, which there is not")
    return tokenizer


def used_vocabulary(tokenizer: Tokenizer) -> int:
    """How many rows an embedding needs: the largest id and one, whatever ids are left out."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def drawable_ids(tokenizer: Tokenizer, rows: int) -> int:
    """How many ids, of a vocabulary of `rows`, can be tokens; those after them are padding."""
    count = rows
    while count and tokenizer.id_to_token(count - 1) is None:
        count -= 1
    return count or rows


def padding_fields(tokenizer: Tokenizer, rows: int) -> dict[str, list[int]]:
    """What keeps transformers' `generate` from ids without a token; nothing where all have one."""
    padding = list(range(drawable_ids(tokenizer, rows), rows))
    return {"suppress_tokens": padding} if padding else {}


def check_vocabulary(tokenizer: Tokenizer, vocabulary: int, path: Path) -> None:
    """Every token id has a logit, and the vocabulary is at most padded to a multiple of 128.

    Raises InputError naming `path`, the tokenizer's file.
    """
    size, used = tokenizer.get_vocab_size(), used_vocabulary(tokenizer)
    padded = -(-used // _VOCABULARY_PADDING) * _VOCABULARY_PADDING
    if not 0 < used <= vocabulary <= padded:
        raise InputError(
            f"{path} does not match the vocabulary: the tokenizer has {size} tokens (largest id "
            f"{used - 1}) and the model {vocabulary}, where {used} to {padded} are allowed"
        )
