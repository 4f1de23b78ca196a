"""Streaming text out of a session."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np
import tokenizers
from numpy.typing import NDArray

from retnet_edge.errors import InputError, SessionBusyError
from retnet_edge.interrupts import deliver, held_back
from retnet_edge.runtime.session.protocol import Session
from retnet_edge.runtime.text.sampling import Sampler, Sampling
from retnet_edge.runtime.text.snapshot import Snapshot
from retnet_edge.tokenizer import drawable_ids
from retnet_edge.tokenizing.texts import prompt_ids

PREFILL_CHUNK = 1024
"""Tokens of a prompt between two reports of progress: whole spans of every backend's prefill."""

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_LONGEST_WAIT = 64  # tokens: a character has at most four bytes, so this many are no text


def generate(
    session: Session,
    tokenizer: tokenizers.Tokenizer,
    prompt: str,
    *,
    max_tokens: int,
    sampling: Sampling,
    stop: Sequence[str] = (),
    end_of_text: int | Collection[int] | None = None,
    control_tokens: bool = True,
    on_prefill: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[str]:
    """Continue `prompt` from the session's state; yields pieces of text as they are settled.

    Ends after `max_tokens` tokens, at a token of `end_of_text`, or where one of the strings `stop`
    is complete (none of its text is yielded). A stop string that is the name of a special token,
    such as `</s>`, which is no text, stands for the token: an end of text as well. Whenever a piece
    was yielded, and at the end, the session has seen the prompt and every generated token but that
    end, so a later call goes on from there: after `break` too. (Then it may have seen tokens of
    which nothing was yielded: the bytes of a character, or the beginning of a stop string, that
    wait for what follows.) Ctrl-C is raised between two pieces, when all that was generated has
    been yielded; while the prompt is fed it puts the session back to where it was. The repetition
    penalty counts what the session has seen, earlier calls and restored states included. Ids
    without a token (padding of the vocabulary) are not drawn.
    control_tokens: whether the name of a control token, such as `<|endoftext|>`, stands for the
    token in a prompt, which lets a prompt be written in a model's own chat format. False for text
    that somebody else wrote: there it is text. on_prefill(done, total): called while the prompt is
    fed, after every PREFILL_CHUNK of its tokens.

    Raises InputError, before anything is fed, where the prompt has no tokens, max_tokens is below
    1, a stop string is empty or a text is not Unicode (lone surrogates, which stand for bytes that
    are not UTF-8); SessionBusyError, from the iterator, where another caller uses the session
    meanwhile.
    """
    if max_tokens < 1:
        raise InputError(f"max_tokens is {max_tokens}; at least 1 is needed")
    if "" in stop:
        raise InputError("a stop string is empty; it needs at least one character")
    for name, text in (("the prompt", prompt), *(("a stop string", text) for text in stop)):
        _check_unicode(name, text)
    # A text begins once: what a tokenizer adds at its start does not belong in the middle.
    begins = session.position == 0
    ids = prompt_ids(tokenizer, prompt, begins=begins, control_tokens=control_tokens)
    if not ids:
        raise InputError(f"the prompt {prompt!r} has 0 tokens; at least one is needed")
    ends = _ends(tokenizer, stop, end_of_text)
    return _stream(session, tokenizer, ids, max_tokens, sampling, stop, ends, on_prefill)


def _ends(
    tokenizer: tokenizers.Tokenizer, stop: Sequence[str], end_of_text: int | Collection[int] | None
) -> frozenset[int]:
    """The tokens that end a text, those among them that a stop string names."""
    added = tokenizer.get_added_tokens_decoder().items()
    named = {token for token, known in added if known.special and known.content in stop}
    given = [end_of_text] if isinstance(end_of_text, int) else end_of_text or ()
    return frozenset(named.union(given))


def _check_unicode(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name} is not UTF-8: character {error.start} is {text[error.start]!a}; a text has "
            "none of U+D800 to U+DFFF"
        ) from None


def _feed(
    session: Session, prompt: list[int], on_prefill: Callable[[int, int], None]
) -> NDArray[np.float32]:
    """The logits after the prompt, which is fed as a whole or, where stopped, not at all."""
    before = Snapshot.of(session)
    try:
        for start in range(0, len(prompt), PREFILL_CHUNK):
            with held_back() as came:
                logits = session.prefill(prompt[start : start + PREFILL_CHUNK])
            deliver(came)
            on_prefill(min(start + PREFILL_CHUNK, len(prompt)), len(prompt))
    except SessionBusyError:  # whoever is in there goes on
        raise
    except BaseException:
        with held_back() as came:
            before.restore(session)
        raise
    return logits


def _stream(
    session: Session,
    tokenizer: tokenizers.Tokenizer,
    prompt: list[int],
    max_tokens: int,
    sampling: Sampling,
    stop: Sequence[str],
    ends: Collection[int],
    on_prefill: Callable[[int, int], None],
) -> Iterator[str]:
    sampler = Sampler(sampling)
    text = IncrementalDetokenizer(tokenizer, _context(tokenizer, prompt))
    stops = StopStrings(stop)
    logits = _feed(session, prompt, on_prefill)
    tokens, position = drawable_ids(tokenizer, len(logits)), session.position
    made, ended = 0, False
    while made < max_tokens and not ended:
        piece, came, stopped = "", list[int](), None
        try:
            with held_back() as came:
                while not (piece or came or ended) and made < max_tokens:
                    _check_position(session, position)
                    token = sampler.sample(logits[:tokens], session.seen)
                    if token in ends:
                        ended = True
                        break
                    # Fed before it is shown: whoever stops reading has a session that saw it.
                    logits = session.step(token)
                    position, made = position + 1, made + 1
                    piece = stops.push(text.push(token))
                    ended = stops.found
        except KeyboardInterrupt as error:  # as the block began or ended, with nothing half done
            stopped = error
        if ended or came or stopped or made == max_tokens:
            piece += stops.push(text.flush()) + stops.flush()
        try:
            if piece:
                yield piece
        finally:
            if stopped is not None:
                raise stopped
            deliver(came)


def _context(tokenizer: tokenizers.Tokenizer, prompt: list[int]) -> list[int]:
    """The end of the prompt that decides how the first new tokens are written.

    It has text, or a decoder takes off the space before the first new word; and it begins with a
    whole character, for a decoder of single bytes (`ByteFallback`) makes U+FFFD of every one in a
    row of them that begins with half a character.
    """
    for size in range(1, _LONGEST_WAIT):
        text = tokenizer.decode(prompt[-size:])
        if text and not text.startswith(_REPLACEMENT):
            return prompt[-size:]
    return prompt


def _check_position(session: Session, position: int) -> None:
    if session.position != position:
        raise SessionBusyError(
            f"the session is at position {session.position}, not at {position}: another caller "
            "used it between two tokens of this text; it takes one caller at a time"
        )


class IncrementalDetokenizer:
    """Tokens to text, one at a time: never half a character, spaces as in the whole text.

    A decoder may treat the start of a text differently, so the tokens not yet settled are decoded
    together with the settled ones before them, and the text of those is taken off.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, context: Sequence[int] = ()) -> None:
        """`context`: the tokens before the first that is pushed; their text is not returned."""
        self._tokenizer = tokenizer
        self._window = list(context)
        self._settled = len(self._window)

    def push(self, token: int) -> str:
        """The text that this token settles ("" while a character is incomplete).

        Tokens without text, special ones for example, wait for the first one that has some.
        """
        self._window.append(token)
        text = self._unsettled()
        waiting = len(self._window) - self._settled
        if waiting < _LONGEST_WAIT and (not text or text.endswith(_REPLACEMENT)):
            return ""
        return self._settle(text)

    def flush(self) -> str:
        """The rest, incomplete characters as U+FFFD."""
        return self._settle(self._unsettled())

    def _unsettled(self) -> str:
        before = self._tokenizer.decode(self._window[: self._settled])
        return self._tokenizer.decode(self._window)[len(before) :]

    def _settle(self, text: str) -> str:
        self._window = self._window[self._settled :]
        self._settled = len(self._window)
        return text


class StopStrings:
    """Lets text through up to the first stop string, which may be spread over many pieces."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """The text that can no longer belong to a stop string; "" after one was found."""
        if self.found:
            return ""
        self._held += text
        # The string that is complete first; of two that end together, the longer.
        ends = [
            (start + len(stop), start)
            for stop in self._stop
            if (start := self._held.find(stop)) >= 0
        ]
        if ends:
            self.found = True
            cut = min(ends)[1]
        else:
            cut = len(self._held) - self._possible_start()
        out, self._held = self._held[:cut], self._held[cut:]
        return out

    def flush(self) -> str:
        """What was held back, if no stop string was found."""
        out, self._held = ("" if self.found else self._held), ""
        return out

    def _possible_start(self) -> int:
        """Length of the longest end of the held text that a stop string begins with."""
        longest = max((len(stop) for stop in self._stop), default=0)
        for size in range(min(longest - 1, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self._stop):
                return size
        return 0
