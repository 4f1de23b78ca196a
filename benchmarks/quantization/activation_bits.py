"""What bits of activations cost, beside weights of 8 and of 4 bits: KL on held-out text.

    python -m benchmarks.quantization.activation_bits checkpoints/edge-15m

The checkpoint's model in float64, its matrices rounded in blocks as recipes round them, and what
enters each product (the head's too) rounded as a kernel would round it; all else is exact. KL is
against the same model with the same weights and exact activations, which is what the activations'
rounding costs, and against the checkpoint. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from retnet_edge.data.contexts import text_contexts
from retnet_edge.errors import InputError
from retnet_edge.model.checkpoint import load_checkpoint
from retnet_edge.model.retnet import RetNet
from retnet_edge.progress import progress
from retnet_edge.quantize.numerics.rounding import round_blocks


class Activations(NamedTuple):
    """A rounding: codes up to `limit` in size, a scale for each `block` inputs (0: a token's)."""

    name: str
    limit: int
    block: int


ROUNDINGS = (
    Activations("16 bits, one scale a token (NEON, AVX2)", 32767, 0),
    Activations("16 bits in two halves (SDOT)", 127 * 256 + 127, 0),
    Activations("8 bits, a scale for 32 inputs", 127, 32),
    Activations("8 bits, a scale for 128 inputs", 127, 128),
    Activations("8 bits, one scale a token", 127, 0),
)
WEIGHTS = {"8 bits, blocks of 128": (8, 128, True), "4 bits, blocks of 32": (4, 32, False)}
"""Bits, block, and whether zero points are in the middle: as `int8` and `int4` have them."""


def rounded(x: Tensor, kind: Activations) -> Tensor:
    """X [..., inputs] on the grid that the kernel gives it; inputs are whole blocks."""
    block = kind.block or x.shape[-1]
    groups = x.reshape(*x.shape[:-1], -1, block)
    step = groups.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny) / kind.limit
    codes = torch.trunc(groups / step + 0.5 * groups.sign())
    return (codes * step).reshape(x.shape)


def products(model: RetNet) -> list[nn.Linear]:
    """Every linear map of a model, the head among them."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def round_weights(model: RetNet, bits: int, block: int, *, symmetric: bool) -> None:
    """Round every matrix in place, and the embedding with the head that it is tied to."""
    for module in products(model):
        weight = module.weight.detach().float().numpy()
        found = round_blocks(weight, block, bits, symmetric=symmetric).matrix(weight.shape[1])
        module.weight.data.copy_(torch.from_numpy(found))


@torch.no_grad()
def log_probabilities(model: RetNet, tokens: Tensor, kind: Activations | None) -> Tensor:
    """Of tokens [T], from an empty state: [T, vocab], float64. None: nothing is rounded."""
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: (rounded(inputs[0], kind),))
        for module in products(model)
        if kind is not None
    ]
    try:
        logits, _ = model(tokens[None])
    finally:
        for hook in hooks:
            hook.remove()
    found: Tensor = logits[0].log_softmax(-1)
    return found


def mean_kl(p: Tensor, q: Tensor) -> float:
    """KL(p ‖ q) in nats a token."""
    return float((p.exp() * (p - q)).sum(-1).mean())


def measure(checkpoint: Path, contexts: Sequence[NDArray[np.int64]]) -> list[tuple[str, ...]]:
    """Rows of the table. Raises InputError for a checkpoint that is not a RetNet."""
    source = load_checkpoint(checkpoint).model
    if not isinstance(source, RetNet):
        raise InputError(f"{checkpoint}: the activations measured are those of a RetNet")
    reference = RetNet(source.config)
    reference.load_state_dict(source.state_dict())
    reference.double().eval()
    rows: list[tuple[str, ...]] = []
    with progress("models and roundings", len(WEIGHTS) * len(ROUNDINGS)) as advance:
        for weights, (bits, block, symmetric) in WEIGHTS.items():
            model = RetNet(source.config)
            model.load_state_dict(source.state_dict())
            model.double().eval()
            round_weights(model, bits, block, symmetric=symmetric)
            for kind in ROUNDINGS:
                own, whole, same = [], [], []
                for context in contexts:
                    tokens = torch.from_numpy(context)
                    q = log_probabilities(model, tokens, kind)
                    exact = log_probabilities(model, tokens, None)
                    p = log_probabilities(reference, tokens, None)
                    own.append(mean_kl(exact, q))
                    whole.append(mean_kl(p, q))
                    same.append(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
                figures = (np.mean(own), np.mean(whole), np.mean(same))
                rows.append(
                    (
                        weights,
                        kind.name,
                        f"{figures[0]:.1e}",
                        f"{figures[1]:.1e}",
                        f"{figures[2]:.2%}",
                    )
                )
                advance(1)
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--context", type=int, default=1024)
    args = parser.parse_args()
    tokenizer = load_checkpoint(args.checkpoint).tokenizer
    text = args.checkpoint / "heldout.txt"
    contexts = text_contexts(tokenizer, text, args.tokens, args.context)
    print("| weights | activations | KL of the activations | KL in all | same best token |")
    print("|---|---|---|---|---|")
    for row in measure(args.checkpoint, contexts):
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
