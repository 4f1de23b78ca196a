"""AdamW over the parts of the parameters that lie on this rank, and which batches it leaves out.

Under FSDP a parameter is a DTensor, of which a rank holds a part. AdamW treats every number alone,
so it runs over the parts as plain tensors: over hundreds of DTensors, dispatching each takes the
CPU longer than the GPU needs for the work. Only the gradient's norm is of all ranks,

    |g|² = Σ_ranks Σ_parts |g_part|²

On a GPU the update itself finds out on the device whether it is to be left out (`found_inf` of the
fused AdamW), and the trainer reads what happened one step later: the CPU is never waited for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm


class Optimizer:
    """AdamW with weight decay on matrices only and clipping at the global norm `clip`."""

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        clip: float,
    ) -> None:
        """Of `parameters` by name: plain ones, or DTensors that are all spread over all ranks."""
        self.parameters = parameters
        self.clip = clip
        self._parts = {
            name: nn.Parameter(p.to_local().detach()) if isinstance(p, DTensor) else p
            for name, p in parameters.items()
        }
        self._shared = any(isinstance(p, DTensor) for p in parameters.values())
        parts = list(self._parts.values())
        self.fused = all(p.is_cuda for p in parts)
        self.adamw = torch.optim.AdamW(
            [
                {"params": [p for p in parts if p.ndim >= 2], "weight_decay": weight_decay},
                {"params": [p for p in parts if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=lr,
            betas=betas,
            fused=self.fused,
        )

    @torch.no_grad()
    def step(self, loss: Tensor, rate: float) -> Tensor:
        """Update with the gradients, unless the loss or their norm is not finite; clears them.

        `loss` is the mean over all ranks. Returns the norm of all gradients before clipping.
        """
        for group in self.adamw.param_groups:
            group["lr"] = rate
        for name, parameter in self.parameters.items():
            gradient, part = parameter.grad, self._parts[name]
            if isinstance(parameter, DTensor):
                part.data = parameter.to_local()  # FSDP may move it at the first forward pass
                part.grad = gradient.to_local() if isinstance(gradient, DTensor) else None
        trained = [p for p in self._parts.values() if p.grad is not None]
        norm = self._norm(trained)
        self._update(trained, loss, norm)
        for name, parameter in self.parameters.items():
            parameter.grad = self._parts[name].grad = None
        return norm

    def training_state(self) -> dict[str, Tensor]:
        """Every tensor that a step changes: weights, moments and steps, themselves, by name.

        What is spread over ranks is given as DTensors. Moments that the first step would make are
        made here, zero as there.
        """
        state = {}
        for name, parameter in self.parameters.items():
            part = self._parts[name]
            moments = self.adamw.state[part]
            if not moments:
                device = part.device if self.fused else torch.device("cpu")
                moments["step"] = torch.zeros((), dtype=torch.float32, device=device)
                moments["exp_avg"] = torch.zeros_like(part.detach())
                moments["exp_avg_sq"] = torch.zeros_like(part.detach())
            state[f"weights.{name}"] = parameter.detach()
            for key, value in moments.items():
                state[f"{key}.{name}"] = value if value.ndim == 0 else _spread(value, parameter)
        return state

    def _norm(self, trained: list[nn.Parameter]) -> Tensor:
        norm = get_total_norm([p.grad for p in trained if p.grad is not None])
        if not self._shared:
            return norm
        squared = norm.square()
        dist.all_reduce(squared)
        return squared.sqrt()

    def _update(self, trained: list[nn.Parameter], loss: Tensor, norm: Tensor) -> None:
        finite = _finite(loss, norm)
        if self.fused:
            self.adamw.grad_scale = (norm / self.clip).clamp(min=1.0)  # type: ignore[attr-defined]
            self.adamw.found_inf = (~finite).float()  # type: ignore[attr-defined]
            self.adamw.step()
        elif finite.item():
            clip_grads_with_norm_(trained, self.clip, norm)
            self.adamw.step()


def _finite(loss: Tensor, norm: Tensor) -> Tensor:
    """Whether a batch is trained on."""
    return torch.isfinite(loss) & torch.isfinite(norm)


def _spread(part: Tensor, like: nn.Parameter) -> Tensor:
    """A rank's part as a DTensor that is spread as `like` is; itself where `like` is plain."""
    if not isinstance(like, DTensor):
        return part
    whole: Tensor = DTensor.from_local(
        part, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
    )
    return whole


class _Judged(NamedTuple):
    step: int
    loss: Tensor
    norm: Tensor


class SkippedBatches:
    """Counts the batches that were left out, on a GPU after the next one began."""

    def __init__(self, before: int, say: Callable[[str], None], *, late: bool) -> None:
        """`before`: batches left out in the run before it was resumed.

        late: a step is read when the next one is added, as its loss lies on a GPU that is still at
        work; else at once.
        """
        self.total = before
        self.in_a_row = 0
        self._say = say
        self._keep = 1 if late else 0
        self._waiting: list[_Judged] = []

    def add(self, step: int, loss: Tensor, norm: Tensor) -> None:
        """Of step `step`, the loss and norm that decided; both are the same on all ranks."""
        self._waiting.append(_Judged(step, loss, norm))
        self._read(self._keep)

    def settle(self) -> None:
        """Read all steps."""
        self._read(0)

    def _read(self, keep: int) -> None:
        """All but the last `keep` steps."""
        while len(self._waiting) > keep:
            self._count(*self._waiting.pop(0))

    def _count(self, step: int, loss: Tensor, norm: Tensor) -> None:
        if _finite(loss, norm).item():
            self.in_a_row = 0
            return
        self.total += 1
        self.in_a_row += 1
        self._say(
            f"step {step}: loss {loss.item()}, gradient norm {norm.item()}: this batch is not "
            f"trained on ({self.total} skipped so far)"
        )
