"""What `retnet_edge.hf` adds around a RetNet: the cache of generate(), and tokens that are masked.

Letters: B batch, T tokens, D d_model. A layer's state is [B, H, K, V], as in model/retnet.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from retnet_edge.model.retnet import CHUNKWISE, RetentionMode, RetNet


class RetNetCache:
    """What generate() carries on: it does not grow.

    - `states`: one [B, H, K, V] a layer;
    - `position` int64 [B]: tokens of each row that the states have seen;
    - `columns`: input columns that were fed in, masked ones included.

    A forward pass makes a new cache and leaves the one it was given as it was, so that a cache can
    be kept and continued from more than once.
    """

    is_compileable = False
    is_croppable = False

    def __init__(self, states: Sequence[Tensor], position: Tensor, columns: int) -> None:
        """Hold the three as they are."""
        self.states = list(states)
        self.position = position
        self.columns = columns

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns seen; transformers slices its inputs by it."""
        return self.columns

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row beam_idx[i] was (beam search)."""
        self.states = [s.index_select(0, beam_idx.to(s.device)) for s in self.states]
        self.position = self.position.index_select(0, beam_idx.to(self.position.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times, one after the other (several continuations of one prompt)."""
        self.states = [s.repeat_interleave(repeats, dim=0) for s in self.states]
        self.position = self.position.repeat_interleave(repeats, dim=0)


def features(
    net: RetNet, tokens: Tensor, states: Sequence[Tensor], position: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """What the head sees, [B, T, D], and the states after the last token.

    One token takes the parallel form: the chunkwise one would pad it to a whole chunk.
    """
    mode = RetentionMode("parallel") if tokens.shape[1] == 1 else CHUNKWISE
    return net.features(tokens, states, position, mode, None)


def masked_features(
    net: RetNet, tokens: Tensor, present: Tensor, states: Sequence[Tensor], position: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """The same where some tokens are masked: as if each row held its other tokens only.

    `present` bool [B, T]. A masked token enters no state and moves no position. Its own place shows
    what the token before it showed (zeros where there is none), so a row may be padded on either
    side and its last place still predicts what follows. The rows are run side by side up to the end
    of the shortest one, which then leaves the batch, and so on: as many calls as there are lengths.
    """
    counts = present.sum(dim=1)
    packed = tokens.gather(1, present.long().argsort(dim=1, descending=True, stable=True))
    states = list(states)
    shown = torch.zeros((*tokens.shape, net.config.d_model), device=tokens.device)
    shown = shown.to(net.embedding.weight.dtype)
    start = 0
    for stop in sorted(set(counts.tolist()) - {0}):
        rows = (counts >= stop).nonzero()[:, 0]
        x, after = features(
            net, packed[rows, start:stop], [s[rows] for s in states], position[rows] + start
        )
        shown = shown.to(x.dtype).index_put(
            (rows[:, None], torch.arange(start, stop, device=tokens.device)[None]), x
        )
        states = [s.index_copy(0, rows, new) for s, new in zip(states, after, strict=True)]
        start = stop
    before = present.cumsum(dim=1)  # tokens of the row up to and with each place
    index = (before - 1).clamp(min=0)[..., None].expand_as(shown)
    return torch.where(before[..., None] > 0, shown.gather(1, index), 0.0), states
