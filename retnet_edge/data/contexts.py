"""Text as contexts of tokens: what `verify` replays and what quantization is calibrated on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from retnet_edge.data.sources import find_sources, read_texts
from retnet_edge.errors import InputError
from retnet_edge.tokenizer import END_OF_TEXT
from retnet_edge.tokenizing.texts import TextEncoder

CONTEXT = 2048
CONTEXTS = 12
MIN_TOKENS = 256
READ_TOKENS = 2**21  # of a longer calibration text, the beginning


def text_contexts(
    tokenizer: Tokenizer,
    path: Path,
    tokens: int,
    context: int,
    field: str = "text",
    *,
    end: int | None = None,
) -> list[NDArray[np.int64]]:
    """The first `tokens` tokens of a text, documents joined, in contexts of `context` tokens.

    `path` is anything that training reads (`sources.py`), `field` the column of a table. end:
    the id after each document, None: `<|endoftext|>` where the tokenizer has it. A shorter
    last piece is left out. Raises InputError where there is not one whole context, and for what
    cannot be read.
    """
    if context < 2 or tokens < context:
        raise InputError(f"{tokens} tokens in contexts of {context}: give 2 <= context <= tokens")
    end = tokenizer.token_to_id(END_OF_TEXT) if end is None else end
    ids: list[int] = []
    encode = TextEncoder(tokenizer, () if end is None else (tokenizer.id_to_token(end),))
    for document in read_texts(find_sources([path]), field):
        ids += [*encode(document), *([] if end is None else [end])]
        if len(ids) >= tokens:
            break
    whole = min(len(ids), tokens) // context
    if whole == 0:
        raise InputError(f"{path}: {len(ids)} tokens are fewer than one context of {context}")
    return list(np.array(ids[: whole * context], dtype=np.int64).reshape(whole, context))


def calibration_contexts(
    tokenizer: Tokenizer, path: Path, field: str = "text", *, end: int | None = None
) -> NDArray[np.int64]:
    """Twelve contexts of 2,048 tokens [B, T], spread evenly over a text; fewer of a short text.

    Of a text with fewer than 2,048 tokens, contexts of 256. end: see `text_contexts`. Raises
    InputError for fewer than 256.
    """
    try:
        contexts = text_contexts(tokenizer, path, READ_TOKENS, CONTEXT, field, end=end)
    except InputError:
        contexts = text_contexts(tokenizer, path, READ_TOKENS, MIN_TOKENS, field, end=end)
    every = max(1, len(contexts) // CONTEXTS)
    return np.stack(contexts[::every][:CONTEXTS])
