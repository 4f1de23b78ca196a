"""A tokenizer.json, judged before the tokenizers library sees it.

The library trusts the file: an index beyond a list ends in a panic, which is no `Exception`, and a
rule that doubles a text thirty times in an endless growth. What it can be told to do here is
bounded, and every name that stands for another place is looked up (docs/decisions/0053).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from retnet_edge.tokenizing.charsmap import check_charsmap
from retnet_edge.tokenizing.parts import (
    NFC,
    NFD,
    NFKC,
    NFKD,
    BertProcessing,
    ByteFallback,
    ByteLevel,
    Digits,
    Fuse,
    Precompiled,
    Prepend,
    Replace,
    RobertaProcessing,
    Split,
    StripDecoder,
    TemplateProcessing,
)
from retnet_edge.tokenizing.whole_file import (
    BPE,
    Model,
    TokenizerFile,
    Unigram,
    WordLevel,
    WordPiece,
)

MOST_BYTES = 64 << 20
"""Of a file; the largest vocabularies known take 34 MB."""
MOST_PARTS, MOST_NESTED = 64, 8
MOST_GROWTH = 1 << 16
"""How much longer a text may get by what is replaced in it."""

# Words as the models with byte-level vocabularies split them; their time is linear.
KNOWN_PATTERNS = frozenset(
    {
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    }
)
_PLAIN = (NFC, NFD, NFKC, NFKD, ByteFallback, ByteLevel, Digits, Fuse, Prepend, StripDecoder)


class _Kind(msgspec.Struct):
    """What tells which model it is."""

    type: str | None = None
    vocab: msgspec.Raw = msgspec.Raw()
    merges: msgspec.Raw = msgspec.Raw()
    max_input_chars_per_word: int | None = None


class Judged(NamedTuple):
    """A file that the library may be given.

    raw: its JSON, without what would limit texts. plain: nothing in it but what byte-level and
    Llama's vocabularies are made of, whose use was understood. controls: ids that it puts around
    texts.
    """

    raw: bytes
    plain: bool
    controls: tuple[int, ...]


def judge(raw: bytes) -> Judged:
    """A file's bytes, judged. Raises ValueError (msgspec's too), with what is wrong and where."""
    try:
        file = msgspec.json.decode(raw, type=TokenizerFile)
        model = _model(file.model)
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error
    parts = [
        part
        for part in (file.normalizer, file.pre_tokenizer, file.post_processor, file.decoder)
        for part in _flat(part)
    ]
    _check_growth("normalizer", _flat(file.normalizer))
    _check_growth("decoder", _flat(file.decoder))
    controls: list[int] = []
    for part in parts:
        if isinstance(part, TemplateProcessing):
            controls += _check_template(part)
        elif isinstance(part, BertProcessing | RobertaProcessing):
            controls += [part.sep[1], part.cls[1]]
        elif isinstance(part, Precompiled) and part.precompiled_charsmap is not None:
            try:
                check_charsmap(part.precompiled_charsmap)
            except ValueError as error:
                raise ValueError(f"normalizer: precompiled_charsmap {error}") from error
    _check_added(file)
    _check_model(model)
    return Judged(
        _without_limits(raw, file, model),
        _is_plain(file, model, parts),
        tuple(controls),
    )


def _model(raw: msgspec.Raw) -> Model:
    """The model by its type; files of before 2020 have none, and are told by their fields."""

    kind = msgspec.json.decode(raw, type=_Kind)
    if kind.type is not None:
        name = kind.type
    elif kind.merges:
        name = "BPE"
    elif bytes(kind.vocab).lstrip().startswith(b"["):
        name = "Unigram"
    else:
        name = "WordLevel" if kind.max_input_chars_per_word is None else "WordPiece"
    models: dict[str, type[Model]] = {
        "BPE": BPE,
        "WordPiece": WordPiece,
        "WordLevel": WordLevel,
        "Unigram": Unigram,
    }
    if name not in models:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(models)}")
    try:
        return msgspec.json.decode(raw, type=models[name])
    except msgspec.ValidationError as error:
        raise ValueError(f"model: {error}") from error


def _flat(part: Any) -> Iterator[Any]:
    """A part, or all those of a sequence. Raises ValueError where these are too many or deep."""
    waiting, count = [(part, 0)], 0
    while waiting:
        part, depth = waiting.pop()
        count += 1
        if count > MOST_PARTS or depth > MOST_NESTED:
            raise ValueError(
                f"more than {MOST_PARTS} parts, or sequences nested more than {MOST_NESTED} deep"
            )
        inner = next((getattr(part, name) for name in _SEQUENCES if hasattr(part, name)), None)
        if inner is not None:
            waiting += [(one, depth + 1) for one in reversed(inner)]
        elif part is not None:
            yield part


_SEQUENCES = ("normalizers", "pretokenizers", "processors", "decoders")


def _check_growth(what: str, parts: Iterable[Any]) -> None:
    growth = 1.0
    for part in parts:
        if isinstance(part, Replace):
            # a regular expression may match nothing, before every character
            found = len(part.pattern.text) if part.pattern.text else 0
            growth *= max(1.0, len(part.content) / found if found else 1.0 + len(part.content))
        elif isinstance(part, Prepend):
            growth *= 1.0 + len(part.prepend)
        if growth > MOST_GROWTH:
            raise ValueError(f"{what}: what it replaces makes a text {MOST_GROWTH} times as long")


def _check_template(template: TemplateProcessing) -> Iterator[int]:
    """The ids that it puts around a text."""
    for name, pieces, wanted in (
        ("single", template.single, ["A"]),
        ("pair", template.pair, ["A", "B"]),
    ):
        texts = sorted(piece.sequence.id for piece in pieces if piece.sequence is not None)
        if texts != wanted:
            raise ValueError(
                f"post_processor: {name} holds the texts {', '.join(texts) or 'none'}; "
                f"{' and '.join(wanted)} once each is right"
            )
        for piece in pieces:
            if piece.token is not None and piece.token.id not in template.special_tokens:
                raise ValueError(
                    f"post_processor: {name} names {piece.token.id!r}, which special_tokens lacks"
                )
    for name, token in template.special_tokens.items():
        if len(token.ids) != len(token.tokens):
            raise ValueError(
                f"post_processor: {name!r} has {len(token.ids)} ids and {len(token.tokens)} tokens"
            )
        yield from token.ids


def _check_added(file: TokenizerFile) -> None:
    """White space that one token takes from what follows it is no other token's."""
    taking = [token.content for token in file.added_tokens if token.rstrip]
    spaces = [token.content for token in file.added_tokens if token.content[:1].isspace()]
    if taking and spaces:
        raise ValueError(
            f"added_tokens: {taking[0]!r} takes the white space behind it (rstrip), with which "
            f"{spaces[0]!r} begins"
        )


def _check_model(model: Model) -> None:
    if isinstance(model, Unigram):
        if model.unk_id is not None and model.unk_id >= len(model.vocab):
            raise ValueError(
                f"model: unk_id is {model.unk_id}, of {len(model.vocab)} tokens in vocab"
            )
        return
    if len(set(model.vocab.values())) != len(model.vocab):
        raise ValueError("model: vocab gives one id to two tokens")
    if not isinstance(model, BPE) and model.unk_token not in model.vocab:
        raise ValueError(f"model: unk_token {model.unk_token!r} is not in vocab")
    if isinstance(model, BPE):
        _check_merges(model)


def _check_merges(model: BPE) -> None:
    prefix = model.continuing_subword_prefix or ""
    vocab, cut = model.vocab, len(prefix)
    for number, merge in enumerate(model.merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if len(pair) != 2:
            raise ValueError(f"model: merges[{number}] is not two tokens with a space between")
        first, second = pair
        whole = first + second[cut:]
        if not (
            first in vocab and second in vocab and whole in vocab and second.startswith(prefix)
        ):
            raise ValueError(
                f"model: merges[{number}] makes {whole!r} of {first!r} and {second!r}, which are "
                "not all in vocab"
            )


def _without_limits(raw: bytes, file: TokenizerFile, model: Model) -> bytes:
    """The JSON without truncation, padding and dropout, which is for training and draws lots."""
    drops = isinstance(model, BPE) and model.dropout
    if bytes(file.truncation) == b"null" and bytes(file.padding) == b"null" and not drops:
        return raw
    whole = msgspec.json.decode(raw)
    whole["truncation"] = whole["padding"] = None
    if drops:
        whole["model"]["dropout"] = None
    return msgspec.json.encode(whole)


def _is_plain(file: TokenizerFile, model: Model, parts: list[Any]) -> bool:
    understood: dict[type, Callable[[Any], bool]] = {
        Replace: lambda part: part.pattern.regex is None,
        Split: lambda part: part.pattern.regex is None or part.pattern.regex in KNOWN_PATTERNS,
        TemplateProcessing: lambda part: True,
    }
    return (
        isinstance(model, BPE)
        and not model.continuing_subword_prefix
        and not model.end_of_word_suffix
        and (model.unk_token is None or model.unk_token in model.vocab)
        and all(
            isinstance(part, _PLAIN) or understood.get(type(part), lambda part: False)(part)
            for part in parts
        )
        and not any(
            token.single_word or token.lstrip or token.rstrip or not token.content
            for token in file.added_tokens
        )
        and not (file.normalizer and any(token.normalized for token in file.added_tokens))
    )
