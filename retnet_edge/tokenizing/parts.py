"""The parts that a tokenizer.json may have, as the tokenizers library writes them (0.21 to 0.23).

They are read strictly: an unknown part, field or value is refused. The library reads some of them
by their fields alone, so a field too many could make another part of one.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Character = Annotated[str, Meta(min_length=1, max_length=1)]
Text = Annotated[str, Meta(max_length=4096)]
Token = Annotated[str, Meta(min_length=1, max_length=4096)]
TokenId = Annotated[int, Meta(ge=0, lt=2**24)]
Score = Annotated[float, Meta(ge=-1e30, le=1e30)]
Few = Meta(max_length=64)
"""Of what stands in a list beside the vocabulary."""

Behavior = Literal["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"]


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag=True):
    """`type` is the name of the class, where it is not said otherwise."""


class Pattern(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Either characters or a regular expression, by the name of the only field."""

    text: Annotated[str, Meta(min_length=1, max_length=256)] | None = msgspec.field(
        name="String", default=None
    )
    regex: Annotated[str, Meta(min_length=1, max_length=2048)] | None = msgspec.field(
        name="Regex", default=None
    )

    def __post_init__(self) -> None:
        """Raises ValueError, which the decoder turns into its own, unless there is one field."""
        if (self.text is None) == (self.regex is None):
            raise ValueError("a pattern has either String or Regex")


# Normalizers.


class BertNormalizer(_Part, frozen=True):
    """BERT's cleaning."""

    clean_text: bool
    handle_chinese_chars: bool
    strip_accents: bool | None
    lowercase: bool


class StripNormalizer(_Part, frozen=True, tag="Strip"):
    """White space at the ends."""

    strip_left: bool
    strip_right: bool


class StripAccents(_Part, frozen=True):
    """Marks on letters, taken off."""


class NFC(_Part, frozen=True):
    """A Unicode form."""


class NFD(_Part, frozen=True):
    """A Unicode form."""


class NFKC(_Part, frozen=True):
    """A Unicode form."""


class NFKD(_Part, frozen=True):
    """A Unicode form."""


class Lowercase(_Part, frozen=True):
    """Small letters."""


class Nmt(_Part, frozen=True):
    """SentencePiece's cleaning."""


class Precompiled(_Part, frozen=True):
    """SentencePiece's table of characters (`charsmap.py`)."""

    precompiled_charsmap: Annotated[str, Meta(max_length=2**24)] | None


class Replace(_Part, frozen=True):
    """Another text in the place of each match; of a decoder, in each token."""

    pattern: Pattern
    content: Annotated[str, Meta(max_length=64)]


class Prepend(_Part, frozen=True):
    """A text before each text."""

    prepend: Annotated[str, Meta(max_length=64)]


class NormalizerSequence(_Part, frozen=True, tag="Sequence"):
    """One after the other."""

    normalizers: Annotated[list[Normalizer], Few]


# Pre-tokenizers.


class BertPreTokenizer(_Part, frozen=True):
    """At white space and punctuation."""


class ByteLevel(_Part, frozen=True):
    """Bytes as visible characters; GPT-2's words where `use_regex` is set."""

    add_prefix_space: bool = True
    trim_offsets: bool = True
    use_regex: bool = True


class CharDelimiterSplit(_Part, frozen=True):
    """At a character."""

    delimiter: Character


class Metaspace(_Part, frozen=True):
    """White space as a character of its own."""

    replacement: Character
    prepend_scheme: Literal["first", "never", "always"] = "always"
    split: bool | None = None
    add_prefix_space: bool | None = None
    str_rep: Text | None = None


class Whitespace(_Part, frozen=True):
    """At white space and between words and the rest."""


class WhitespaceSplit(_Part, frozen=True):
    """At white space."""


class Split(_Part, frozen=True):
    """At each match, or, inverted, between."""

    pattern: Pattern
    behavior: Behavior
    invert: bool


class Punctuation(_Part, frozen=True):
    """At punctuation."""

    behavior: Behavior = "Isolated"


class Digits(_Part, frozen=True):
    """At digits."""

    individual_digits: bool


class UnicodeScripts(_Part, frozen=True):
    """Where the script changes."""


class FixedLength(_Part, frozen=True):
    """After every `length` characters."""

    length: Annotated[int, Meta(ge=1, le=2**20)] = 5


class PreTokenizerSequence(_Part, frozen=True, tag="Sequence"):
    """One after the other."""

    pretokenizers: Annotated[list[PreTokenizer], Few]


# Post-processors.


class BertProcessing(_Part, frozen=True):
    """Control tokens around a text, as BERT's."""

    sep: tuple[Token, TokenId]
    cls: tuple[Token, TokenId]


class RobertaProcessing(_Part, frozen=True):
    """Control tokens around a text, as RoBERTa's."""

    sep: tuple[Token, TokenId]
    cls: tuple[Token, TokenId]
    trim_offsets: bool
    add_prefix_space: bool


class SequencePiece(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The text (A), or the second one of a pair (B)."""

    id: Literal["A", "B"]
    type_id: Annotated[int, Meta(ge=0, lt=2**16)]


class TokenPiece(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A control token, by its name in `special_tokens`."""

    id: Token
    type_id: Annotated[int, Meta(ge=0, lt=2**16)]


class Piece(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of the two, by the name of the only field."""

    sequence: SequencePiece | None = msgspec.field(name="Sequence", default=None)
    token: TokenPiece | None = msgspec.field(name="SpecialToken", default=None)

    def __post_init__(self) -> None:
        """Raises ValueError, which the decoder turns into its own, unless there is one field."""
        if (self.sequence is None) == (self.token is None):
            raise ValueError("a piece of a template has either Sequence or SpecialToken")


class TemplateToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A control token of a template, or several under one name."""

    id: Token
    ids: Annotated[list[TokenId], Meta(min_length=1, max_length=64)]
    tokens: Annotated[list[Token], Meta(min_length=1, max_length=64)]


class TemplateProcessing(_Part, frozen=True):
    """Control tokens around a text, anywhere."""

    single: Annotated[list[Piece], Few]
    pair: Annotated[list[Piece], Few]
    special_tokens: Annotated[dict[str, TemplateToken], Few]


class ProcessorSequence(_Part, frozen=True, tag="Sequence"):
    """One after the other."""

    processors: Annotated[list[PostProcessor], Few]


# Decoders.


class BPEDecoder(_Part, frozen=True):
    """Space for a suffix."""

    suffix: Text


class WordPieceDecoder(_Part, frozen=True, tag="WordPiece"):
    """Words of pieces that begin with `prefix`."""

    prefix: Text
    cleanup: bool


class CTC(_Part, frozen=True):
    """Of speech."""

    pad_token: Text
    word_delimiter_token: Text
    cleanup: bool


class Fuse(_Part, frozen=True):
    """All tokens as one."""


class StripDecoder(_Part, frozen=True, tag="Strip"):
    """`stop` is 0: the library looks before the first character of a token that has fewer."""

    content: Character
    start: Annotated[int, Meta(ge=0, le=64)]
    stop: Annotated[int, Meta(ge=0, le=0)]


class ByteFallback(_Part, frozen=True):
    """Bytes of tokens such as `<0x61>`."""


class DecoderSequence(_Part, frozen=True, tag="Sequence"):
    """One after the other."""

    decoders: Annotated[list[Decoder], Few]


Normalizer = (
    BertNormalizer
    | StripNormalizer
    | StripAccents
    | NFC
    | NFD
    | NFKC
    | NFKD
    | Lowercase
    | Nmt
    | Precompiled
    | Replace
    | Prepend
    | ByteLevel
    | NormalizerSequence
)
PreTokenizer = (
    BertPreTokenizer
    | ByteLevel
    | CharDelimiterSplit
    | Metaspace
    | Whitespace
    | WhitespaceSplit
    | Split
    | Punctuation
    | Digits
    | UnicodeScripts
    | FixedLength
    | PreTokenizerSequence
)
PostProcessor = (
    BertProcessing | RobertaProcessing | ByteLevel | TemplateProcessing | ProcessorSequence
)
Decoder = (
    BPEDecoder
    | ByteLevel
    | WordPieceDecoder
    | Metaspace
    | CTC
    | Replace
    | Fuse
    | StripDecoder
    | ByteFallback
    | DecoderSequence
)
