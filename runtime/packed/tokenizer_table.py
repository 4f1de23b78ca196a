"""The tokenizer table of a packed file: the C library has no tokenizer yet, and runs on ids."""

from __future__ import annotations

from retnet_edge.errors import InputError


def encode_tokenizer(raw: bytes, vocab_size: int) -> bytes:
    """Raises InputError: there is no such table yet."""
    raise InputError("this version has no tokenizer tables")
