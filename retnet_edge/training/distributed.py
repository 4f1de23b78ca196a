"""Several processes that train one model: who they are, what they share, what they must agree on.

`torchrun --nproc-per-node N -m retnet_edge.cli train …` starts N processes that know their ranks
from the environment. Each group of C = --context-parallel ranks shares its sequences (see
context_parallel.py); the N/C groups share the rows of the batch; all N share the weights, each
holding 1/N of every parameter, its gradient and its moments (FSDP2, `fully_shard`).

The loss is the mean over the tokens of the batch. All ranks hold equally many, so it is the mean of
their losses, and its gradient the mean of theirs, which is what FSDP's reduction computes; what a
rank's tokens contribute to the losses of later spans comes to it by the scan's backward pass.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from retnet_edge.errors import CheckFailed, InputError, ReportedElsewhere
from retnet_edge.model.context_parallel import ContextParallelGroup
from retnet_edge.progress import progress

T = TypeVar("T")

STEP_TIMEOUT = timedelta(minutes=10)
"""Of what ranks do in every step; the first one compiles meanwhile."""
FILES_TIMEOUT = timedelta(hours=6)
"""Of preparing data and of writing checkpoints, which one rank may do while the others wait."""
LAST_WORD_SECONDS = 5.0


@dataclass(frozen=True)
class World:
    """A process among the `size` that train together; one alone where the defaults are left."""

    device: str
    rank: int = 0
    size: int = 1
    context: ContextParallelGroup | None = None
    files: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this rank writes what is written once: messages, metrics, the result."""
        return self.rank == 0

    @property
    def groups(self) -> int:
        """Groups of ranks that share the rows of a batch."""
        return self.size if self.context is None else self.size // self.context.size

    def share(self, rows: int) -> range:
        """Which of the `rows` of a batch this rank trains on; whole rows, as even as they go."""
        group = self.rank if self.context is None else self.rank // self.context.size
        return range(rows * group // self.groups, rows * (group + 1) // self.groups)

    def mean(self, x: Tensor) -> Tensor:
        """Mean of the ranks' x."""
        if self.size == 1:
            return x
        total = x.clone()
        dist.all_reduce(total)
        return total / self.size

    def sum(self, value: float) -> float:
        """Sum of the ranks' values, in float64."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.item()

    def once(self, work: Callable[[], T]) -> T:
        """`work` done by the first rank alone; its result, or its InputError, is everyone's."""
        if self.size == 1:
            return work()
        outcome: list[T | InputError | None] = [None]
        if self.first:
            try:
                outcome = [work()]
            except InputError as error:
                outcome = [error]
        dist.broadcast_object_list(outcome, src=0, group=self.files)
        (found,) = outcome
        if isinstance(found, InputError):
            self.fail(found)
        return found  # type: ignore[return-value]

    def fail(self, error: InputError | CheckFailed) -> NoReturn:
        """Raise what all ranks have found, so that only the first one says it."""
        if self.first:
            raise error
        time.sleep(LAST_WORD_SECONDS)  # torchrun ends all ranks as soon as one has ended
        raise ReportedElsewhere(str(error))

    def progress(self, label: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """The first rank's progress; nothing elsewhere."""
        return progress(label, total) if self.first else nullcontext(lambda n: None)


@contextmanager
def processes(device: str, context_parallel: int = 1) -> Iterator[World]:
    """The processes that torchrun started, connected: NCCL between GPUs, gloo between CPUs.

    A process that torchrun did not start is alone. Raises InputError where `context_parallel` does
    not divide their number, and for a numbered GPU where there are several.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local = (int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK"))
    if context_parallel < 1 or size % context_parallel:
        error = InputError(
            f"--context-parallel {context_parallel} must divide the number of processes, which is "
            f"{size} (torchrun --nproc-per-node starts several)"
        )
        World(device, rank, size).fail(error)
    if size == 1:
        yield World(device)
        return
    kind, _, number = device.partition(":")
    if number:
        error = InputError(f"--device {device}: each process takes a GPU: give --device {kind}")
        World(device, rank, size).fail(error)
    if kind == "cuda":
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=STEP_TIMEOUT)
    try:
        files = dist.new_group(backend="gloo", timeout=FILES_TIMEOUT)
        context = None
        if context_parallel > 1:
            shape = (size // context_parallel, context_parallel)
            mesh = init_device_mesh(kind, shape, mesh_dim_names=("data", "context"))
            context = ContextParallelGroup(
                mesh.get_group("context").group_name,
                mesh.get_local_rank("context"),
                context_parallel,
            )
        yield World(device, rank, size, context, files)
        dist.barrier(group=files)  # no rank takes its connections down while another uses them
    except (InputError, CheckFailed, ReportedElsewhere):
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()  # not after other errors: it would wait for ranks that are gone


def shard(model: nn.Module, world: World, *, bfloat16: bool) -> None:
    """Spread the model's parameters over all ranks, block by block, in place, on their devices.

    Every rank gives the same weights. With `bfloat16` the parameters are float32 where they lie and
    bfloat16 where they are used; gradients are summed in float32.
    """
    mesh: DeviceMesh = init_device_mesh(torch.device(world.device).type, (world.size,))
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    if bfloat16:
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for block in model.get_submodule("blocks").children():
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    register_fsdp_forward_method(model, "loss")


def gather_tensor(x: Tensor) -> Tensor:
    """A tensor that may be spread over ranks, whole on each; all ranks must ask."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def gather_weights(parameters: dict[str, nn.Parameter], world: World) -> dict[str, Tensor]:
    """The parameters by name, whole, on the CPU of the first rank; elsewhere empty."""
    found = {}
    for name, parameter in parameters.items():
        value = gather_tensor(parameter.detach())
        if world.first:
            found[name] = value.cpu()
    return found
