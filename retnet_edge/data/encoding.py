"""Text to token ids, in this process or in several, always in the order of the text."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from retnet_edge.errors import InputError
from retnet_edge.tokenizer import END_OF_TEXT
from retnet_edge.tokenizing.texts import TextEncoder

GROUPS_IN_FLIGHT = 3  # of each process: one at work, others so that it need not wait


class Encoded(NamedTuple):
    """Token ids of some documents, an end-of-text id after each.

    tokens: [n]. ends, text_bytes: int64 [documents], where in `tokens` each document ends (after
    its end-of-text id) and its UTF-8 bytes.
    """

    tokens: NDArray[np.unsignedinteger]
    ends: NDArray[np.int64]
    text_bytes: NDArray[np.int64]


def encode(texts: list[str], encoder: TextEncoder, dtype: str, end: int | None = None) -> Encoded:
    """Tokenize documents, each followed by `end` (None: `<|endoftext|>`); ids fit `dtype`."""
    end = encoder.tokenizer.token_to_id(END_OF_TEXT) if end is None else end
    rows = [np.array([*ids, end], dtype=dtype) for ids in encoder.batch(texts)]
    ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
    text_bytes = np.array([len(text.encode()) for text in texts], dtype=np.int64)
    return Encoded(np.concatenate(rows), ends, text_bytes)


def encode_groups(
    groups: Iterable[list[str]],
    tokenizer: Tokenizer,
    dtype: str,
    workers: int,
    end: int | None = None,
) -> Generator[Encoded]:
    """Tokenize groups of documents, in order, with at most a few groups a process in memory.

    end: as `encode` takes it; no text is this token. Processes are new ones (spawned): a fork of a
    process with threads, such as torch's, may hang. Raises InputError where one of them died.
    """
    if workers == 1:
        encoder = _encoder(tokenizer, end)
        for texts in groups:
            yield encode(texts, encoder, dtype, end)
        return
    waiting: deque[Future[Encoded]] = deque()
    with ProcessPoolExecutor(
        workers,
        mp_context=get_context("spawn"),
        initializer=_start_worker,
        initargs=(tokenizer.to_str(), dtype, end),
    ) as pool:
        try:
            for texts in groups:
                waiting.append(pool.submit(_encode_in_worker, texts))
                if len(waiting) >= GROUPS_IN_FLIGHT * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise InputError(
                f"one of {workers} tokenizing processes died (out of memory?): give fewer --workers"
            ) from error


_worker: tuple[TextEncoder, str, int | None]


def _encoder(tokenizer: Tokenizer, end: int | None) -> TextEncoder:
    return TextEncoder(tokenizer, () if end is None else (tokenizer.id_to_token(end),))


def _start_worker(tokenizer: str, dtype: str, end: int | None) -> None:
    """One thread, deaf to Ctrl-C (the parent ends it), and gone when the parent was killed."""
    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _worker = (_encoder(Tokenizer.from_str(tokenizer), end), dtype, end)


def _exit_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_in_worker(texts: list[str]) -> Encoded:
    return encode(texts, *_worker)
