"""Placeholder until the table's own module is merged."""

from __future__ import annotations

from retnet_edge.errors import InputError


def encode_tokenizer(raw: bytes, vocab_size: int) -> bytes:
    raise InputError("this version has no tokenizer tables")
