"""A model table as native/format.h describes it, read by hand."""

from __future__ import annotations

import struct
from typing import Any

from retnet_edge.runtime.backends.native.plan import (
    Data,
    FileRange,
    Plan,
    PlannedLayer,
    PlannedMatrix,
)

HEADER = (
    *("version", "header_bytes", "layer_bytes", "flags", "layer_count", "d_model", "heads"),
    *("key_dim", "value_dim", "ffn_dim", "vocab_size", "decay", "conv_width", "reserved"),
    *("norm_eps", "head_norm_eps", "table_bytes", "layers_offset", "gammas_offset"),
    *("frequencies_offset", "own_offset", "own_bytes"),
)
HEADER_FORMAT = "<4I7i3I2f6Q"
LAYER_BYTES, MATRIX_BYTES, PLACE_BYTES = 456, 96, 24


def header_of(table: bytes) -> dict[str, Any]:
    """The fields before the final norm."""
    return dict(zip(HEADER, struct.unpack_from(HEADER_FORMAT, table), strict=True))


def changed(table: bytes, **fields: float) -> bytes:
    """The table with other fields in its header."""
    values = {**header_of(table), **fields}
    return struct.pack(HEADER_FORMAT, *values.values()) + table[struct.calcsize(HEADER_FORMAT) :]


def decode_table(table: bytes) -> Plan:
    """The plan that the table holds."""
    header = header_of(table)
    own = table[header["own_offset"] :][: header["own_bytes"]]

    def place(at: int) -> Data:
        offset, size, in_own = struct.unpack_from("<QQq", table, at)
        return own[offset : offset + size] if in_own else FileRange(offset, size)

    def matrix(at: int) -> PlannedMatrix:
        numbers = struct.unpack_from("<6i", table, at + 3 * PLACE_BYTES)
        rows, inputs, bits, block, half_scales, own_zeros = numbers
        return PlannedMatrix(
            rows=rows,
            inputs=inputs,
            bits=bits,
            block=block,
            codes=place(at),
            scales=place(at + PLACE_BYTES),
            scale_dtype="float16" if half_scales else "float32",
            zeros=place(at + 2 * PLACE_BYTES) if own_zeros else None,
        )

    def layer(at: int) -> PlannedLayer:
        before, head, after = (place(at + i * PLACE_BYTES) for i in range(3))
        first = at + 3 * PLACE_BYTES
        qkvg, out, inner, down = (matrix(first + i * MATRIX_BYTES) for i in range(4))
        return PlannedLayer(before, head, after, qkvg, out, inner, down)

    ends = struct.calcsize(HEADER_FORMAT)
    return Plan(
        1,
        embedding=matrix(ends + PLACE_BYTES),
        head=matrix(ends + PLACE_BYTES + MATRIX_BYTES),
        final_norm=place(ends),
        layers=tuple(
            layer(header["layers_offset"] + i * LAYER_BYTES) for i in range(header["layer_count"])
        ),
    )
