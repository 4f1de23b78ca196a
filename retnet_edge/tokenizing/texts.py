"""Text to token ids: whole, and as text, whatever a tokenizer would like to see in it.

A tokenizer.json may say that a text is cut off or padded, which is a matter of its first project's
batches. And the library turns the name of a control token, where it stands in a text, into the
token: a row that talks about `<|endoftext|>` would end there (docs/decisions/0052).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from tokenizers import Encoding, Tokenizer

from retnet_edge.errors import InputError


def whole(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer itself, or a copy where it would cut texts off or pad them; the copy does not.

    The copy is loaded from the tokenizer's own text, so nothing of the argument is changed.
    """
    if tokenizer.truncation is None and tokenizer.padding is None:
        return tokenizer
    return without_limits(Tokenizer.from_str(tokenizer.to_str()))


def without_limits(tokenizer: Tokenizer) -> Tokenizer:
    """The same object, which no longer cuts texts off or pads them."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


class TextEncoder:
    """Token ids of texts, in which no text is a control token.

    Control tokens are the added ones that are marked special, and those named. What a tokenizer
    adds around a text (a token at its start, say) is added.
    """

    def __init__(self, tokenizer: Tokenizer, controls: Iterable[str] = ()) -> None:
        """Copies the tokenizer, about 0.1 s for each 4 MB of its file; `controls`: more of them."""
        self.tokenizer = without_limits(Tokenizer.from_str(tokenizer.to_str()))
        self.tokenizer.encode_special_tokens = True
        added = self.tokenizer.get_added_tokens_decoder()
        names = {*controls, *(token.content for token in added.values() if token.special)}
        # A model may know a control token's name as a word, and a token may not be marked.
        self._words = {
            token
            for name in names
            if (token := self.tokenizer.token_to_id(name)) is not None
            and token in self.tokenizer.encode(name, add_special_tokens=False).ids
        }

    def __call__(self, text: str) -> list[int]:
        """The ids of one text. Raises InputError as `batch`."""
        return self.batch([text])[0]

    def batch(self, texts: Sequence[str], *, begins: bool = True) -> list[list[int]]:
        """The ids of each text; begins: with what the tokenizer adds around a text.

        Raises InputError where a control token is one character, which cannot be written otherwise.
        """
        if not self._words:
            rows = self.tokenizer.encode_batch_fast(texts, add_special_tokens=begins)
            return [row.ids for row in rows]
        return [
            self.tokenizer.post_process(merged, add_special_tokens=begins).ids
            for merged in (Encoding.merge(self._pieces(text), True) for text in texts)
        ]

    def _pieces(self, text: str) -> list[Encoding]:
        """The text in pieces, between which the names of control tokens are cut in two."""
        waiting, pieces = [text], []
        while waiting:
            piece = waiting.pop()
            found = self.tokenizer.encode(piece, add_special_tokens=False)
            cuts = [0]
            for token, (start, stop) in zip(found.ids, found.offsets, strict=True):
                if token in self._words:
                    if stop - start < 2:
                        raise InputError(
                            f"the tokenizer takes {piece[start:stop]!r} for the control token "
                            f"{self.tokenizer.id_to_token(token)!r}, in texts too: it cannot be "
                            "used"
                        )
                    cuts.append(start + 1)
            if len(cuts) == 1:
                pieces.append(found)
            else:
                spans = itertools.pairwise([*cuts, len(piece)])
                waiting += [piece[start:stop] for start, stop in spans][::-1]
        return pieces


def prompt_ids(
    tokenizer: Tokenizer, prompt: str, *, begins: bool, control_tokens: bool
) -> list[int]:
    """The ids of a prompt; `begins`: with what the tokenizer adds at a text's start.

    A byte-order mark before it, as in a file that an editor wrote, is no part of it.

    control_tokens: the names of control tokens in the prompt are these tokens, as whoever writes a
    prompt by hand wants it; else they are text (see `TextEncoder`).
    """
    prompt = prompt.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")
    if control_tokens:
        ids: list[int] = whole(tokenizer).encode(prompt, add_special_tokens=begins).ids
        return ids
    encoder = TextEncoder(tokenizer)
    return encoder.batch([prompt], begins=begins)[0]
