"""Long runs without a boundary, cut for the training of a tokenizer alone.

BPE counts words and merges within them, in a time that grows with the square of a word. In prose a
word is short; a megabyte of DNA, of a table's rule or of a script without spaces is one word, and
took hours. Cut into pieces, it takes the time that so much prose takes, and teaches the same pairs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

LONGEST_RUN = 1024
"""Characters of a word that training sees whole; longer ones are cut after so many."""

_WINDOW = 1 << 16
# No word of a byte-level vocabulary is of both, but for a space before it.
_LETTERS, _REST = re.compile(r"[^\W_]+"), re.compile(r"[\W_]+")


def short_words(document: str, pre_tokenizer: Any) -> Iterator[str]:
    """The document in pieces, in order, in which no word has more than LONGEST_RUN characters.

    pre_tokenizer: of the tokenizers library; what it makes of a text is words. A document without
    such a word is one piece, and other words are not cut, but for one in every 65,536 characters of
    a long run.
    """
    begun = 0
    for start, stop in _long_runs(document):
        for place in _cuts(document[start:stop], pre_tokenizer):
            yield document[begun : start + place]
            begun = start + place
    if begun < len(document):
        yield document[begun:]


def _long_runs(text: str) -> Iterator[tuple[int, int]]:
    """Where runs of more than LONGEST_RUN characters of one kind begin and end.

    Such a run holds the character that is LONGEST_RUN behind the end of the run before it, so that
    no other one need be looked at.
    """
    before, place = 0, LONGEST_RUN
    while place < len(text):
        kind = _REST if (found := _LETTERS.match(text, place)) is None else _LETTERS
        stop = (found or kind.match(text, place)).end()  # type: ignore[union-attr]
        behind = kind.match(text[before:place][::-1])
        start = place - (0 if behind is None else behind.end())
        if stop - start > LONGEST_RUN:
            yield start, stop
        before, place = stop, stop + LONGEST_RUN


def _cuts(run: str, pre_tokenizer: Any) -> Iterator[int]:
    """Where to cut: in the words that are too long, and between windows, which bound the memory."""
    for window in range(0, len(run), _WINDOW):
        if window:
            yield window
        for _, (start, stop) in pre_tokenizer.pre_tokenize_str(run[window : window + _WINDOW]):
            yield from range(window + start + LONGEST_RUN, window + stop, LONGEST_RUN)
