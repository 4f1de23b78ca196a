"""Tokenizers as other projects make them, with vocabularies that a reader can see through."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from retnet_edge.tokenizer import train_tokenizer

TEXT = ["the cat sat on the mat, and the dog sat by the door 123"] * 3
WIDE = {"ａ": "a", "①": "1", "ﬁ": "fi"}  # as SentencePiece's tables have them
Json = Any


def charsmap(table: dict[str, str]) -> str:
    """A table of characters as SentencePiece writes it, in base64: a double array, then texts.

    Every node has 256 units of its own, which is large and simple.
    """
    root: dict[int | None, Any] = {}
    for key, value in table.items():
        node: dict[int | None, Any] = root
        for byte in key.encode():
            node = node.setdefault(byte, {})
        node[None] = value
    texts, places = b"", {}
    for value in table.values():
        places[value] = len(texts)
        texts += value.encode() + b"\0"
    units = {0: 0}
    waiting, free = [(0, root)], 256
    while waiting:
        place, node = waiting.pop()
        own, free = free, free + 256
        units[place] |= (own ^ place) << 10
        for label, child in node.items():
            if label is None:
                units[place] |= 1 << 8
                units[own] = 1 << 31 | places[child]
            else:
                units[own ^ label] = label
                waiting.append((own ^ label, child))
    array = b"".join(struct.pack("<I", units.get(place, 0)) for place in range(free))
    return base64.b64encode(struct.pack("<I", len(array)) + array + texts).decode()


def byte_level() -> Tokenizer:
    return train_tokenizer(TEXT, 270)


def with_template() -> Tokenizer:
    made = train_tokenizer(TEXT, 270)
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    end = "<|endoftext|>"
    made.post_processor = processors.TemplateProcessing(
        single=f"{end} $A", pair=f"{end} $A $B:1", special_tokens=[(end, 0)]
    )
    return made


def llama() -> Tokenizer:
    """Llama 2's parts: no pre-tokenizer, bytes for what is unknown."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁thecasonmd"]
    names += ["th", "the", "▁c"]
    vocab: dict[str, int] = {}
    for name in names:
        vocab.setdefault(name, len(vocab))
    merges = [("t", "h"), ("th", "e"), ("▁", "c")]
    made = Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B:1", special_tokens=[("<s>", 1)]
    )
    return made


def bert() -> Tokenizer:
    names = ["[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "##a", "cat", "##s", "c"]
    made = Tokenizer(models.WordPiece({n: i for i, n in enumerate(names)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.add_special_tokens(["[UNK]", "[CLS]", "[SEP]", AddedToken("[MASK]", lstrip=True)])
    made.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return made


def t5() -> Tokenizer:
    """Pieces, with a table of characters."""
    letters = [(letter, -3.0 - i / 10) for i, letter in enumerate("thecasonmdé1fi")]
    scores = [("<unk>", 0.0), ("</s>", 0.0), ("▁", -2.0), *letters, ("▁the", -4.0), ("cat", -5.0)]
    made = Tokenizer(models.Unigram(scores, unk_id=0))
    made.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(base64.b64decode(charsmap(WIDE))),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    made.decoder = decoders.Metaspace()
    made.add_special_tokens(["<unk>", "</s>"])
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return made


def clip() -> Tokenizer:
    """Pieces that know where a word ends, and parts that nothing else here has."""
    names = ["a", "b", "a</w>", "b</w>", "##a", "##b", "ab", "<u>", "##b</w>", "##a</w>"]
    made = Tokenizer(
        models.BPE(
            {n: i for i, n in enumerate(names)},
            [("a", "##b")],
            unk_token="<u>",
            continuing_subword_prefix="##",
            end_of_word_suffix="</w>",
        )
    )
    made.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Whitespace(),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.UnicodeScripts(),
            pre_tokenizers.CharDelimiterSplit("x"),
        ]
    )
    made.decoder = decoders.BPEDecoder("</w>")
    made.post_processor = processors.RobertaProcessing(("a", 0), ("b", 1))
    return made


SHAPES = {
    "byte-level": (byte_level, True),
    "with template": (with_template, True),
    "llama": (llama, True),
    "bert": (bert, False),
    "t5": (t5, False),
    "clip": (clip, False),
}
"""Each with whether it is plain."""


def shape(name: str) -> Json:
    """Its tokenizer.json."""
    return json.loads(SHAPES[name][0]().to_str())


def places(value: Json, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Ways to every value of a JSON; of a long list or object, to its first two."""
    keys: list[Any] = []
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = list(range(len(value)))
    for key in keys[:2] if len(keys) > 12 else keys:
        yield (*path, key)
        yield from places(value[key], (*path, key))


def changed(value: Json, path: tuple[str | int, ...], *new: Json) -> Json:
    """A copy with another value at a place, or, where none is given, without it."""
    copy = json.loads(json.dumps(value))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    if new:
        inner[path[-1]] = new[0]
    else:
        del inner[path[-1]]
    return copy
