"""The plan of a native backend: which bytes of the bundle's weights are which matrix of the model.

A RetNet is four matrices and three norms a layer. The plan says where each lies in the weights file
that the ONNX graphs read too, so that a bundle holds its weights once. What the graphs keep to
themselves, being small, stands in the plan. It is written as a table that C reads
(`native.table`, table.py); bundles of older versions have it as JSON (`native.json`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from retnet_edge.config import RetNetConfig, decode_config
from retnet_edge.errors import InputError
from retnet_edge.runtime.bundle.manifest import Manifest, ModelSpec

PLAN_VERSION = 1
BLOCKS = (32, 64, 128, 256)
"""Sizes of blocks. The products of a longer one, of 8 by 16 bits, might not fit into 32, and a pair
of 4-bit halves is unpacked 64 at a time, which no 96 is made of."""
MOST_WIDTH = 1 << 24
"""Rows or inputs of a matrix (native/table.c): products of two widths fit into 64 bits."""

_LARGEST_FILE = 64 << 20

Bits = Literal[4, 8]
_Count = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
_Offset = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class _Frozen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every record."""


class FileRange(_Frozen, frozen=True):
    """`size` bytes at `offset` of the weights file."""

    offset: _Offset
    size: _Count


Data = FileRange | bytes
"""Where a tensor's bytes lie, or the bytes (base64 in the file)."""


class PlannedMatrix(_Frozen, frozen=True):
    """W [rows, inputs] in blocks along its inputs, laid out as ONNX Runtime's MatMulNBits has it.

    codes: [rows, blocks, block · bits / 8] bytes, the last block filled up; scales: [rows, blocks]
    in scale_dtype; zeros: packed like codes, each row padded to a byte (None: all are
    2^(bits - 1)).
    """

    rows: _Count
    inputs: _Count
    bits: Bits
    block: _Count
    codes: Data
    scales: Data
    scale_dtype: Literal["float32", "float16"]
    zeros: Data | None = None

    @property
    def blocks(self) -> int:
        """Blocks of a row."""
        return -(-self.inputs // self.block)


class PlannedLayer(_Frozen, frozen=True):
    """A layer; norms are float32 [d_model], head_norm float32 [value_head_dim]."""

    retention_norm: Data
    head_norm: Data
    ffn_norm: Data
    qkvg: PlannedMatrix
    out: PlannedMatrix
    inner: PlannedMatrix
    down: PlannedMatrix


class Plan(_Frozen, frozen=True):
    """The whole plan. A tied head is the embedding once more."""

    version: int
    embedding: PlannedMatrix
    head: PlannedMatrix
    final_norm: Data
    layers: Annotated[tuple[PlannedLayer, ...], msgspec.Meta(max_length=1024)]


def _size(data: Data) -> int:
    return data.size if isinstance(data, FileRange) else len(data)


def retnet_config(model: ModelSpec, where: str) -> RetNetConfig:
    """The configuration of a bundle's model. Raises InputError, naming `where`, for no RetNet."""
    config = decode_config(msgspec.json.encode(model.config), where)
    if not isinstance(config, RetNetConfig):
        raise InputError(f"{where}: the native backend runs RetNets, and this is a {model.kind}")
    return config


def decode_plan(path: Path) -> Plan:
    """The plan in a JSON file of an older version.

    Raises InputError where the file is no plan, or one of another version.
    """
    if (size := path.stat().st_size) > _LARGEST_FILE:
        raise InputError(f"{path} has {size} bytes; a plan has at most {_LARGEST_FILE}")
    try:
        plan = msgspec.json.decode(path.read_bytes(), type=Plan)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not a valid plan: {error}") from error
    if plan.version != PLAN_VERSION:
        raise InputError(f"{path}: version is {plan.version}; this one reads {PLAN_VERSION}")
    return plan


def check_states(manifest: Manifest, config: RetNetConfig, where: Path) -> None:
    """Raises InputError naming `where` unless states and vocabulary are the configuration's:
    a float32 state [batch, heads, key_head_dim, value_head_dim] a layer, in their order."""
    if manifest.model.vocab_size != config.vocab_size:
        raise InputError(
            f"{where}: vocab_size is {manifest.model.vocab_size}, and {config.vocab_size} in the "
            "model's configuration"
        )
    if len(manifest.states) != config.layers:
        raise InputError(
            f"{where}: {len(manifest.states)} states; the model's configuration has "
            f"{config.layers} layers"
        )
    shape = ("batch", config.heads, config.key_head_dim, config.value_head_dim)
    for state in manifest.states:
        if state.dtype != "float32" or state.shape != shape:
            raise InputError(
                f"{where}: the state {state.input!r} is {state.dtype} "
                f"[{', '.join(map(str, state.shape))}]; the native backend and the model's "
                f"configuration say float32 [{', '.join(map(str, shape))}]"
            )


def check_plan(plan: Plan, config: RetNetConfig, weights_bytes: int, where: str) -> None:
    """Raises InputError naming `where` and a tensor whose shape or place is not the model's."""
    d, heads = config.d_model, config.heads
    keys, values = heads * config.key_head_dim, heads * config.value_head_dim
    inner = config.ffn_dim * (2 if config.ffn == "glu" else 1)
    if len(plan.layers) != config.layers:
        raise InputError(f"{where}: {len(plan.layers)} layers; the model has {config.layers}")
    matrices = {
        "embedding": (plan.embedding, config.vocab_size, d),
        "head": (plan.head, config.vocab_size, d),
    }
    norms = {"final_norm": (plan.final_norm, d)}
    for index, layer in enumerate(plan.layers):
        matrices |= {
            f"layer {index} qkvg": (layer.qkvg, 2 * keys + 2 * values, d),
            f"layer {index} out": (layer.out, d, values),
            f"layer {index} inner": (layer.inner, inner, d),
            f"layer {index} down": (layer.down, d, config.ffn_dim),
        }
        norms |= {
            f"layer {index} retention_norm": (layer.retention_norm, d),
            f"layer {index} head_norm": (layer.head_norm, config.value_head_dim),
            f"layer {index} ffn_norm": (layer.ffn_norm, d),
        }
    for name, (data, width) in norms.items():
        _check_place(f"{where}: {name}", data, 4 * width, 4, weights_bytes)
    for name, (matrix, rows, inputs) in matrices.items():
        _check_matrix(f"{where}: {name}", matrix, rows, inputs, weights_bytes)


def _check_matrix(
    name: str, matrix: PlannedMatrix, rows: int, inputs: int, weights_bytes: int
) -> None:
    if (matrix.rows, matrix.inputs) != (rows, inputs):
        raise InputError(
            f"{name} is [{matrix.rows}, {matrix.inputs}]; the model says [{rows}, {inputs}]"
        )
    if max(rows, inputs) > MOST_WIDTH:
        raise InputError(
            f"{name} is [{rows}, {inputs}]; the native backend takes up to {MOST_WIDTH} of each"
        )
    block = matrix.block
    if block not in BLOCKS:
        raise InputError(
            f"{name} has blocks of {block}; the native backend takes "
            f"{', '.join(map(str, BLOCKS[:-1]))} and {BLOCKS[-1]}"
        )
    scale_bytes = 4 if matrix.scale_dtype == "float32" else 2
    for part, data, size, align in (
        ("codes", matrix.codes, matrix.blocks * block * matrix.bits // 8, 1),
        ("scales", matrix.scales, matrix.blocks * scale_bytes, scale_bytes),
        ("zeros", matrix.zeros, -(-matrix.blocks * matrix.bits // 8), 1),
    ):
        if data is not None:
            _check_place(f"{name}: {part}", data, rows * size, align, weights_bytes)


def _check_place(name: str, data: Data, expected: int, align: int, weights_bytes: int) -> None:
    size = _size(data)
    if size != expected:
        raise InputError(f"{name} has {size} bytes; its shape needs {expected}")
    if isinstance(data, FileRange) and data.offset + size > weights_bytes:
        raise InputError(
            f"{name} lies at bytes {data.offset} to {data.offset + size} of a file of "
            f"{weights_bytes}"
        )
    if isinstance(data, FileRange) and data.offset % align:
        raise InputError(
            f"{name} lies at byte {data.offset}; numbers of {align} bytes need a multiple of it"
        )
