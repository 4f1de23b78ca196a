"""Each process holds a span of the sequences; the first compares with a process that holds all.

Everything is float64. Prints the largest difference of each case; a worker's assertion fails all.
"""

from __future__ import annotations

import itertools
import os
from datetime import timedelta

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor

from retnet_edge.config import retnet_config
from retnet_edge.model.context_parallel import ContextParallelGroup
from retnet_edge.model.retnet import Form, RetentionMode, RetNet, document_ids

END = 7
TOLERANCE = 1e-10
FORMS: list[tuple[Form, int]] = [("chunkwise", 5), ("chunkwise", 64), ("parallel", 1)]


def model(rule: str) -> RetNet:
    torch.manual_seed(0)
    config = retnet_config(vocab_size=24, d_model=16, layers=2, heads=2, ffn_dim=24)
    made = RetNet(msgspec.structs.replace(config, head_norm_eps_rule=rule, head_norm_eps=1e-2))
    for p in made.parameters():  # at the size of their initialisation states hardly count
        p.data *= 4.0
    return made.double()


def gradients(model: RetNet, loss: Tensor) -> Tensor:
    found = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([g.flatten() for g in found])


def tokens(span: int, size: int) -> Tensor:
    """Rows [4, T + 1]: no border, some, one right before a span and one at its first token."""
    g = torch.Generator().manual_seed(1)
    made = torch.randint(8, 24, (4, span * size + 1), generator=g)
    made[1, [3, 4, span + 2]] = END
    made[2, span - 1] = END
    made[3, span] = END
    return made


def compare(
    context: ContextParallelGroup, rule: str, mode: RetentionMode, end: int | None, recompute: bool
) -> float:
    whole = model(rule)
    rows = tokens(12, context.size)
    wanted = whole.loss(rows, mode=mode, document_end=end)
    shared = mode._replace(context=context, recompute=recompute)
    part = whole.loss(rows, mode=shared, document_end=end)
    found = torch.cat((part.detach()[None], gradients(whole, part)))
    dist.all_reduce(found)  # the loss of all is the mean of equal spans, and so are its gradients
    expected = torch.cat((wanted.detach()[None], gradients(whole, wanted)))
    worst = (found / context.size - expected).abs().max().item()

    documents = None if end is None else document_ids(rows[:, :-1], end)
    with torch.no_grad():
        x, states = whole.features(rows[:, :-1], None, None, mode, documents)
        mine, after = whole.features(rows[:, :-1], None, None, shared, documents)
    worst = max(worst, (mine - context.span(x)).abs().max().item())
    if context.rank + 1 == context.size:
        worst = max(
            worst, *((a - b).abs().max().item() for a, b in zip(after, states, strict=True))
        )
    return worst


def a_length_that_does_not_divide(context: ContextParallelGroup) -> float:
    """As in evaluation: the last ranks hold less, or nothing."""
    whole = model("z_n")
    worst = 0.0
    for length in (1, context.size, 3 * context.size + 1):
        rows = tokens(12, context.size)[:, : length + 1]
        with torch.no_grad():
            part = whole.loss(rows, mode=RetentionMode("chunkwise", 4, context=context))
            nats = part * context.span(rows[:, 1:]).numel()
            dist.all_reduce(nats)
            wanted = whole.loss(rows, mode=RetentionMode("parallel"))
        worst = max(worst, (nats / rows[:, 1:].numel() - wanted).abs().item())
    return worst


if __name__ == "__main__":
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    group = dist.group.WORLD
    assert group is not None
    context = ContextParallelGroup(group.group_name, dist.get_rank(), dist.get_world_size())
    assert context.size == int(os.environ["WORLD_SIZE"]) > 1
    cases = itertools.product(("constant", "z_n"), FORMS, (None, END), (False, True))
    for rule, (form, chunk), end, recompute in cases:
        worst = compare(context, rule, RetentionMode(form, chunk), end, recompute)
        assert worst < TOLERANCE, (rule, form, chunk, end, recompute, worst)
        if context.rank == 0:
            print(rule, form, chunk, end, recompute, f"{worst:.1e}")
    worst = a_length_that_does_not_divide(context)
    assert worst < TOLERANCE, worst
    dist.barrier()
    dist.destroy_process_group()
