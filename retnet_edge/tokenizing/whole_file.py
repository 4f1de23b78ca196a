"""A whole tokenizer.json: its model, added tokens, and the parts of `parts.py`."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from retnet_edge.tokenizing.parts import (
    Decoder,
    Normalizer,
    PostProcessor,
    PreTokenizer,
    Score,
    Text,
    Token,
    TokenId,
)


class BPE(msgspec.Struct, frozen=True):
    """Pairs that become one token, in order."""

    vocab: dict[Token, TokenId]
    merges: list[tuple[Token, Token] | str]
    dropout: Annotated[float, Meta(ge=0, le=1)] | None = None
    unk_token: Token | None = None
    continuing_subword_prefix: Text | None = None
    end_of_word_suffix: Text | None = None
    fuse_unk: bool = False
    byte_fallback: bool = False
    ignore_merges: bool = False


class WordPiece(msgspec.Struct, frozen=True):
    """The longest piece first."""

    vocab: dict[Token, TokenId]
    unk_token: Token
    continuing_subword_prefix: Text
    max_input_chars_per_word: Annotated[int, Meta(ge=1, le=4096)]


class WordLevel(msgspec.Struct, frozen=True):
    """Whole words."""

    vocab: dict[Token, TokenId]
    unk_token: Token


class Unigram(msgspec.Struct, frozen=True):
    """The likeliest pieces; a token's id is its place."""

    vocab: Annotated[list[tuple[Token, Score]], Meta(min_length=1, max_length=2**24)]
    unk_id: TokenId | None = None
    byte_fallback: bool = False


Model = BPE | WordPiece | WordLevel | Unigram


class AddedToken(msgspec.Struct, frozen=True):
    """A token beside the model's; `special`: a control token."""

    id: TokenId
    content: Text
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool
    special: bool


class TokenizerFile(msgspec.Struct, frozen=True):
    """The whole; limits of a text (`truncation`, `padding`) are not obeyed, so not looked at."""

    version: Literal["1.0"]
    model: msgspec.Raw
    added_tokens: Annotated[list[AddedToken], Meta(max_length=2**20)] = []
    normalizer: Normalizer | None = None
    pre_tokenizer: PreTokenizer | None = None
    post_processor: PostProcessor | None = None
    decoder: Decoder | None = None
    truncation: msgspec.Raw = msgspec.Raw(b"null")
    padding: msgspec.Raw = msgspec.Raw(b"null")
