"""The positions that are shown: the right ones, with the right text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from numpy_retnet import NetReference, NetSession, text

from retnet_edge.runtime.parity.parity import measure_parity


def words(tokens: Sequence[int]) -> str:
    return "".join(f"<{token}>" for token in tokens)


def test_the_worst_positions_come_first_with_their_text() -> None:
    calls = []

    def fault(logits: NDArray[np.float32], position: int) -> NDArray[np.float32]:
        calls.append(position)
        if position == 50:
            logits[3] += 30.0 if calls.count(50) == 1 else 10.0
        return logits

    contexts = [text(100, 0), text(60, 1)]
    parity = measure_parity(
        NetSession(fault), NetReference(), contexts, decode=words, places=False, prefill_tokens=None
    )
    assert len(parity.worst) == 10
    first, second, third = parity.worst[:3]
    assert (first.context, first.position) == (0, 50)
    assert (second.context, second.position) == (1, 50)
    assert first.kl > second.kl > 1 > third.kl
    assert first.kl == parity.figures.max_kl
    assert first.before == words(contexts[0][19:51].tolist())
    assert first.follows == words([int(contexts[0][51])])
    logits = NetReference().run(contexts[0], None, 0)[0]
    assert first.best_reference == words([int(logits[50].argmax())])
    assert first.best_bundle == "<3>"


def test_a_position_at_the_end_of_a_context_has_nothing_after_it() -> None:
    def fault(logits: NDArray[np.float32], position: int) -> NDArray[np.float32]:
        return logits[::-1] if position == 29 else logits

    (worst, *_) = measure_parity(
        NetSession(fault), NetReference(), [text(30, 0)], decode=words, places=False
    ).worst
    assert (worst.position, worst.follows) == (29, None)


def test_without_a_tokenizer_there_is_none() -> None:
    assert measure_parity(NetSession(), NetReference(), [text(30, 0)]).worst == ()
