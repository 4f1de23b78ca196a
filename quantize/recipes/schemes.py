"""Schemes: what a weight matrix can become. A recipe's rules give one to each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

BLOCKS = (16, 32, 64, 128, 256)
"""Sizes of blocks and groups."""


@dataclass(frozen=True)
class BlockInt:
    """Weights with a scale for every `block` inputs of an output, int8 compute.

    `MatMulNBits` (accuracy level 4: activations are quantized to int8 in the same blocks inside
    the kernel) and `GatherBlockQuantized` for an embedding; a tied head shares its matrix. What is
    looked up in has to be symmetric.
    tail: see `passes/outliers.py`; symmetric: no zero point of a block's own; gptq: see `gptq.py`.
    """

    bits: ClassVar[int]
    blocks: ClassVar[tuple[int, ...]] = BLOCKS
    block: int = 128
    tail: float | None = None
    symmetric: bool = True
    gptq: bool = False

    @property
    def name(self) -> str:
        """As the manifest records it."""
        name = f"int{self.bits}-block{self.block}{'' if self.symmetric else '-asymmetric'}"
        return f"{name}{'-gptq' if self.gptq else ''}{_tail_name(self.tail)}"


@dataclass(frozen=True)
class BlockInt8(BlockInt):
    """8-bit weights in blocks."""

    bits = 8


@dataclass(frozen=True)
class BlockInt6(BlockInt):
    """6-bit weights in blocks, of which the kernels read 4 bits and 2 (`graphs/block_tensors.py`).

    Those of 2 bits know three sizes of blocks.
    """

    bits = 6
    blocks = (32, 64, 128)


@dataclass(frozen=True)
class BlockInt4(BlockInt):
    """4-bit weights in blocks."""

    bits = 4
    block: int = 32


@dataclass(frozen=True)
class DynamicInt8:
    """8-bit weights with a scale for every output, activations quantized at run time.

    Standard operators that every ONNX Runtime has: `DynamicQuantizeLinear` and `MatMulInteger`.
    tail: see `passes/outliers.py`; smooth: α of `smoothing.py`.
    """

    tail: float | None = None
    smooth: float | None = None

    @property
    def name(self) -> str:
        """As the manifest records it."""
        return f"int8-dynamic{_smooth_name(self.smooth)}{_tail_name(self.tail)}"


@dataclass(frozen=True)
class StaticInt8Qdq:
    """8-bit weights with a scale for every output, activations with a scale measured on text.

    Standard operators: `QuantizeLinear` and `DequantizeLinear` around a `MatMul`.
    range: see `ranges.py`; tail: see `passes/outliers.py`; smooth: α of `smoothing.py`.
    """

    activation_bits: Literal[8, 16] = 8
    range: Literal["min-max", "percentile", "mse", "entropy"] = "mse"
    tail: float | None = None
    smooth: float | None = None

    @property
    def name(self) -> str:
        """As the manifest records it."""
        kind = f"int8-qdq{self.activation_bits}-{self.range}"
        return f"{kind}{_smooth_name(self.smooth)}{_tail_name(self.tail)}"


@dataclass(frozen=True)
class ChannelInt8:
    """ExecuTorch: 8-bit weights with a scale for every output (row of an embedding)."""

    @property
    def name(self) -> str:
        """As the manifest records it."""
        return "int8-channel"


@dataclass(frozen=True)
class GroupInt4:
    """ExecuTorch: 4-bit weights with a scale for every `group` inputs of an output, by GPTQ."""

    group: int = 32

    @property
    def name(self) -> str:
        """As the manifest records it."""
        return f"int4-group{self.group}-gptq"


@dataclass(frozen=True)
class StaticInt8:
    """ExecuTorch: as ChannelInt8, with one scale for all activations, measured on text."""

    @property
    def name(self) -> str:
        """As the manifest records it."""
        return "int8-static"


@dataclass(frozen=True)
class Half:
    """The matrix in 16 bits, cast to float32 where it is read (`half.py`)."""

    dtype: Literal["float16", "bfloat16"] = "float16"

    @property
    def name(self) -> str:
        """As the manifest records it."""
        return self.dtype


@dataclass(frozen=True)
class Float32:
    """Leave the matrix as it is."""

    @property
    def name(self) -> str:
        """As the manifest records it."""
        return "float32"


def _smooth_name(smooth: float | None) -> str:
    return "" if smooth is None else f"-smooth{smooth:g}"


def _tail_name(tail: float | None) -> str:
    return "" if tail is None else f"-tail{tail:g}"


StateScheme = Literal["float32", "float16", "int8"]
"""What a state is rounded to between two calls; see `states.py`."""

Scheme = (
    BlockInt | DynamicInt8 | StaticInt8Qdq | ChannelInt8 | GroupInt4 | StaticInt8 | Half | Float32
)


def is_sampled(scheme: Scheme) -> bool:
    """True where a scheme is made from a sample of what the matrix is multiplied with."""
    smoothed = isinstance(scheme, DynamicInt8) and scheme.smooth is not None
    return smoothed or isinstance(scheme, StaticInt8Qdq)
