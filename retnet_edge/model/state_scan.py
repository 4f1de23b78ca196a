"""The recurrence between chunks (paper, eq. 7) in one pass over the states.

    S_0 = start,   S_{i+1} = g S_i + s_i,   g = γ^C

of the summaries s_i of N chunks. Written out for GPUs, because torch's own operators read and write
the N states several times: as a float32 matrix product with its casts this took 17.7 of the 235 ms
of a training step of 380M parameters, and 4.8 ms where every state crosses the memory once. The sum
is float32 (float64 for float64) whatever the summaries are.

Letters: G sequences that each have a decay of their own (heads × batch), N chunks, S = K·V numbers.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

BLOCK = 1024


def scan(x: Tensor, log_decay: Tensor, start: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """Of x [G, N, S], log g [G] and a [G, S]: out [G, N, S] in x's dtype, and a at the end.

    Forward, i = 0 … N-1: out_i = g a, then a = out_i + x_i; with summaries as x these are g S_i.
    Reverse, i = N-1 … 0: out_i = a, then a = g (a + x_i); with ∂L/∂(g S_i) as x and ∂L/∂S_N as
    start these are ∂L/∂s_i, and a ends as ∂L/∂S_0.
    """
    if x.is_cuda and start.dtype == torch.float32:
        return _scan_on_gpu(x, log_decay, start, reverse)
    decay = log_decay.exp()[:, None]
    out, a = torch.empty_like(x), start
    for i in range(x.shape[1] - 1, -1, -1) if reverse else range(x.shape[1]):
        if reverse:
            out[:, i] = a
            a = decay * (a + x[:, i])
        else:
            a = decay * a
            out[:, i] = a
            a = a + x[:, i]
    return out, a


def _scan_on_gpu(
    x: Tensor, log_decay: Tensor, start: Tensor, reverse: bool
) -> tuple[Tensor, Tensor]:
    x, start, log_decay = x.contiguous(), start.contiguous(), log_decay.contiguous()
    out, end = torch.empty_like(x), torch.empty_like(start)
    sequences, chunks, size = x.shape
    with torch.cuda.device(x.device):
        _kernel()[-(-size // BLOCK), sequences](
            x, log_decay, start, out, end, chunks, size, BLOCK, reverse
        )
    return out, end


@cache
def _kernel() -> Any:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator]
    def kernel(  # type: ignore[no-untyped-def]
        x, log_decay, start, out, end, chunks, size, block: tl.constexpr, reverse: tl.constexpr
    ):
        sequence = tl.program_id(1).to(tl.int64)
        place = tl.program_id(0) * block + tl.arange(0, block)
        inside = place < size
        decay = tl.exp(tl.load(log_decay + sequence))
        a = tl.load(start + sequence * size + place, inside)
        for step in range(chunks):
            i = sequence * chunks + (chunks - 1 - step if reverse else step)
            read = tl.load(x + i * size + place, inside).to(tl.float32)
            if reverse:
                tl.store(out + i * size + place, a, inside)
                a = decay * (a + read)
            else:
                a = decay * a
                tl.store(out + i * size + place, a, inside)
                a = a + read
        tl.store(end + sequence * size + place, a, inside)

    return kernel
