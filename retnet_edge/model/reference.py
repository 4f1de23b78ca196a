"""The float64 reference: the checkpoint's own model in PyTorch, that every bundle is judged by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from retnet_edge.errors import InputError
from retnet_edge.model.checkpoint import Checkpoint
from retnet_edge.model.retnet import CHUNKWISE, RetNet


class Float64Reference:
    """A RetNet checkpoint in float64, run chunkwise (which equals one step after the other)."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Convert the model. Raises InputError for a checkpoint that is not a RetNet."""
        if not isinstance(checkpoint.model, RetNet):
            raise InputError(f"{checkpoint.path}: the float64 reference needs a RetNet checkpoint")
        self._model = RetNet(checkpoint.model.config)
        self._model.load_state_dict(checkpoint.model.state_dict())
        self._model.to(torch.float64).eval()

    @staticmethod
    @contextmanager
    def on_threads(threads: int) -> Iterator[None]:
        """In the block torch computes on so many threads, which is a setting of the process."""
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    @torch.no_grad()
    def block_outputs(self, tokens: NDArray[np.int64]) -> list[NDArray[np.float64]]:
        """The residual stream [T, d_model] after each block, of tokens [T] from an empty state."""
        seen: list[NDArray[np.float64]] = []
        hooks = [
            block.register_forward_hook(lambda _, __, output: seen.append(output[0][0].numpy()))
            for block in self._model.blocks
        ]
        try:
            self._model.features(torch.from_numpy(tokens)[None], None, None, CHUNKWISE, None)
        finally:
            for hook in hooks:
                hook.remove()
        return seen

    @torch.no_grad()
    def run(
        self,
        tokens: NDArray[np.int64],
        states: Sequence[NDArray[np.float64]] | None,
        position: int,
    ) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
        """Tokens [T] after `position` others -> logits [T, vocab], states [1, H, K, V] a layer."""
        logits, new_states = self._model(
            torch.from_numpy(tokens)[None],
            states=None if states is None else [torch.from_numpy(state) for state in states],
            position=torch.tensor([position]),
        )
        return logits[0].numpy(), [state.numpy() for state in new_states]
