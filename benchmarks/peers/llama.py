"""A GGUF file in llama.cpp, as a process: `FILE THREADS CONTEXT [FILL_THREADS]`.

llama.cpp's C interface, so that Python's part of a step is a call. Flash attention is on, prompts
go in batches of 512, the KV cache is float16 and as long as the deepest test.
"""

from __future__ import annotations

import ctypes
import sys

import llama_cpp

from benchmarks.peers.process import FILL, serve


class GGUF:
    """One sequence in one context."""

    def __init__(self, path: str, threads: int, context: int, fill_threads: int) -> None:
        """Load and allocate. Raises RuntimeError where llama.cpp refuses."""
        self._quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            path.encode(), llama_cpp.llama_model_default_params()
        )
        if not self._model:
            raise RuntimeError(f"llama.cpp does not load {path}")
        how = llama_cpp.llama_context_default_params()
        how.n_ctx, how.n_batch, how.n_ubatch = context, FILL, FILL
        how.n_threads = how.n_threads_batch = threads
        how.flash_attn_type = 1
        self._context = llama_cpp.llama_init_from_model(self._model, how)
        if not self._context:
            raise RuntimeError(f"llama.cpp makes no context for {path}")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._threads, self._fill_threads = threads, fill_threads

    def clear(self) -> None:
        """Back to depth 0."""
        llama_cpp.llama_memory_clear(self._memory, False)

    def feed(self, tokens: list[int]) -> None:
        """A prompt: its last logits."""
        for first in range(0, len(tokens), FILL):
            part = tokens[first : first + FILL]
            array = (llama_cpp.llama_token * len(part))(*part)
            if llama_cpp.llama_decode(
                self._context, llama_cpp.llama_batch_get_one(array, len(part))
            ):
                raise RuntimeError("llama_decode failed")
        llama_cpp.llama_get_logits_ith(self._context, -1)

    def fill(self, tokens: list[int]) -> None:
        """A prompt on the threads for filling."""
        llama_cpp.llama_set_n_threads(self._context, self._threads, self._fill_threads)
        self.feed(tokens)
        llama_cpp.llama_set_n_threads(self._context, self._threads, self._threads)

    def decode(self, token: int) -> None:
        """One token: its logits."""
        self.feed([token])

    def back_to(self, depth: int) -> None:
        """Cut the KV cache; a recurrent state stays where it is, as every step costs alike."""
        llama_cpp.llama_memory_seq_rm(self._memory, 0, depth, -1)


if __name__ == "__main__":
    path, threads, context, *fill_threads = sys.argv[1:]
    serve(GGUF(path, int(threads), int(context), int(fill_threads[0] if fill_threads else threads)))
