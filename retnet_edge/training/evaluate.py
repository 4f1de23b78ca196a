"""Held-out perplexity and bits per byte of a model over token shards."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from retnet_edge.data.dataset import Shards
from retnet_edge.model.checkpoint import LanguageModel
from retnet_edge.model.retnet import RetentionMode
from retnet_edge.training.distributed import World


@dataclass(frozen=True)
class Evaluation:
    """`nats` of negative log-likelihood summed over `tokens` predictions of `text_bytes` bytes.

    End-of-text tokens are predicted and paid for but count no bytes.
    """

    nats: float
    tokens: int
    text_bytes: int

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood, nats a token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(loss), a token."""
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Bits of negative log-likelihood a byte of UTF-8 text."""
        return self.nats / math.log(2.0) / self.text_bytes


@torch.no_grad()
def evaluate(
    model: LanguageModel,
    shard: Shards,
    *,
    length: int,
    batch: int,
    autocast: bool,
    world: World | None = None,
) -> Evaluation:
    """Score every token of the shard but the first, in contexts of `length` tokens from zero.

    The ranks of a `world` share the work, and all of them return the whole.
    """
    device = model.embedding.weight.device
    world = World(str(device)) if world is None else world
    mode = RetentionMode(context=world.context)
    was_training = model.training
    model.eval()
    nats, tokens = 0.0, 0
    rows: list[np.ndarray[tuple[int], np.dtype[np.int64]]] = []
    contexts = list(shard.contexts(length))
    with world.progress("validate (contexts)", len(contexts)) as advance:
        for index, context in enumerate(contexts):
            rows.append(context)
            last = index + 1 == len(contexts)
            if len(rows) < batch and not last and len(contexts[index + 1]) == len(context):
                continue
            share = world.share(len(rows))
            mine = [rows[i] for i in share] or rows[:1]  # with none of its own it still takes part
            block = torch.from_numpy(np.stack(mine)).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                mean = model.loss(block, mode=mode)
            targets = block[:, 1:] if world.context is None else world.context.span(block[:, 1:])
            if share:
                nats += mean.item() * targets.numel()
            tokens += len(rows) * (len(context) - 1)
            advance(len(rows))
            rows = []
    model.train(was_training)
    return Evaluation(world.sum(nats), tokens, shard.info.text_bytes)
