"""Prompts that begin alike are fed once: snapshots by their tokens, the longest prefix found.

A recurrent state cannot be cut back to an earlier token, so what can be reused is what was kept:
each fed prompt, whole. Feed a common beginning by itself first, and all that begin with it
continue from there.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retnet_edge.errors import InputError
from retnet_edge.runtime.session.one_sequence import one_caller
from retnet_edge.runtime.session.protocol import Session
from retnet_edge.runtime.text.snapshot import Snapshot


class PromptCache:
    """At most `entries` snapshots of prompts; the one that was used longest ago goes first.

    It is for one caller at a time, like its session: SessionBusyError where a thread comes between.
    """

    def __init__(self, session: Session, entries: int = 8) -> None:
        """`session`: what prompts are fed to. Raises InputError for fewer than one entry."""
        if entries < 1:
            raise InputError(f"entries is {entries}; a prompt cache holds at least 1")
        self._caller = threading.RLock()
        self._session = session
        self._entries = entries
        self._kept: dict[tuple[int, ...], Snapshot] = {}  # the one used last at the end

    @one_caller
    def feed(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Bring the session to the state after exactly `tokens`; the logits [vocab] that follow.

        Whatever the session had seen before is gone. Logits need at least one token to be fed, so
        a prompt is continued from the longest kept one that is shorter. Raises InputError for no
        tokens or a bad id; nothing is kept then.
        """
        prompt = tuple(tokens)
        known = self.longest_prefix(prompt)
        if known is None:
            self._session.reset()
            logits = self._session.prefill(prompt)
        else:
            self._kept[known.tokens] = self._kept.pop(known.tokens)
            known.restore(self._session)
            logits = self._session.prefill(prompt[len(known.tokens) :])
        self.keep(Snapshot.of(self._session, prompt))
        return logits

    @one_caller
    def longest_prefix(self, tokens: Sequence[int]) -> Snapshot | None:
        """The longest kept snapshot that `tokens` begin with, and go on after."""
        prompt = tuple(tokens)
        fits = [
            kept
            for ids, kept in self._kept.items()
            if len(ids) < len(prompt) and prompt[: len(ids)] == ids
        ]
        return max(fits, key=lambda kept: len(kept.tokens), default=None)

    @one_caller
    def keep(self, snapshot: Snapshot) -> None:
        """Add a snapshot, a loaded one for example. Raises InputError where it has no tokens, or
        they are not all that it has seen.
        """
        if not snapshot.tokens or len(snapshot.tokens) != snapshot.position:
            raise InputError(
                f"a snapshot at position {snapshot.position} has {len(snapshot.tokens)} token ids; "
                "a prompt cache needs all of them"
            )
        self._kept.pop(snapshot.tokens, None)
        self._kept[snapshot.tokens] = snapshot
        while len(self._kept) > self._entries:
            del self._kept[next(iter(self._kept))]

    def __len__(self) -> int:
        """Number of snapshots."""
        return len(self._kept)
