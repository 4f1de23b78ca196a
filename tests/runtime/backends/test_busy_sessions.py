"""The sessions of the native backend and of ExecuTorch are for one caller at a time, too."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import executorch_bundles
import native_bundles
import numpy as np
import pytest
from conftest import another_thread_in
from micro_checkpoint import VOCABULARY

from retnet_edge.errors import SessionBusyError
from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.session.protocol import Session

PROMPT = [1, 2, 3]
CALLS: dict[str, Callable[[Session], object]] = {
    "step": lambda session: session.step(1),
    "prefill": lambda session: session.prefill(PROMPT),
    "reset": lambda session: session.reset(),
    "states": lambda session: session.states(),
    "load_states": lambda session: session.load_states([], 0),
}


@pytest.fixture(
    scope="module",
    params=[pytest.param("native", marks=native_bundles.NEEDS_THE_LIBRARY), "executorch"],
)
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """One for all tests, each of which resets it."""
    folder: Path = tmp_path_factory.getbasetemp()
    if request.param == "native":
        bundle = native_bundles.quantized_once(folder, "base", "int8")
    else:
        pytest.importorskip("executorch")
        bundle = Bundle.open(executorch_bundles.both_once(folder))
    return open_session(bundle, threads=1, backend=request.param)


@pytest.mark.parametrize("name", CALLS)
def test_a_second_caller_is_refused_and_the_first_goes_on(session: Session, name: str) -> None:
    session.reset()
    expected = session.prefill(PROMPT).copy()
    with another_thread_in(session), pytest.raises(SessionBusyError) as caught:
        CALLS[name](session)
    sentence = f"{type(session).__name__}.{name} was called while another thread is in the same"
    assert str(caught.value).startswith(sentence)
    assert "takes one caller at a time: use a lock, or one for each thread" in str(caught.value)
    assert (session.position, session.seen) == (3, {1, 2, 3})
    session.reset()
    np.testing.assert_array_equal(session.prefill(PROMPT), expected)


def test_threads_that_meet_get_right_numbers_or_the_error(session: Session) -> None:
    """Every piece is fed whole or not at all."""
    session.reset()
    accepted: list[list[int]] = []
    refused: list[SessionBusyError] = []

    def work(seed: int) -> None:
        for piece in np.random.default_rng(seed).integers(0, VOCABULARY, (60, 5)).tolist():
            try:
                session.prefill(piece)
            except SessionBusyError as error:
                refused.append(error)
            else:
                accepted.append(piece)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(accepted) + len(refused) == 180
    assert session.position == sum(len(piece) for piece in accepted)
    assert session.seen == {token for piece in accepted for token in piece}
