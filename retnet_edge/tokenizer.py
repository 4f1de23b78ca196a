"""Byte-level BPE through the `tokenizers` library: every byte string has a tokenization."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from retnet_edge.errors import InputError
from retnet_edge.tokenizing.special_tokens import END_OF_TEXT
from retnet_edge.tokenizing.texts import without_limits

__all__ = [
    "END_OF_TEXT",
    "SMALLEST_VOCABULARY",
    "check_vocabulary",
    "load_tokenizer",
    "train_tokenizer",
    "used_vocabulary",
]

SMALLEST_VOCABULARY = 257

_VOCABULARY_PADDING = 128


def train_tokenizer(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of `vocab_size` entries, `<|endoftext|>` being id 0.

    Raises InputError where the vocabulary cannot hold the 256 bytes and the end of text.
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
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """Read tokenizer.json. Raises InputError where it is missing or not a tokenizer."""
    if not path.is_file():
        raise InputError(f"{path}: no such tokenizer file")
    try:
        return without_limits(Tokenizer.from_file(str(path)))
    except Exception as error:  # the library raises a bare Exception
        raise InputError(f"{path}: not a tokenizer file: {error}") from error


def used_vocabulary(tokenizer: Tokenizer) -> int:
    """How many rows an embedding needs: the largest id and one, whatever ids are left out."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


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
