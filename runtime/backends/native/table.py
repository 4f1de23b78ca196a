"""A model table: the native plan as C reads it. The layout is documented in native/format.h.

Python writes tables and asks one question of them, whether they are of the manifest's model; all
else that is to be known of one, C says (`native/table.c`).
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from retnet_edge.config import RetNetConfig
from retnet_edge.errors import InputError
from retnet_edge.files import read_regular
from retnet_edge.runtime.backends.native.plan import (
    Data,
    FileRange,
    Plan,
    PlannedMatrix,
    check_plan,
    decode_plan,
)

TABLE_FILE = "native.table"

_LARGEST_FILE = 64 << 20  # bytes
_VERSION = 1
_HEADER = struct.Struct("<4I7i3I2f6Q")  # what comes before final_norm, embedding and head
_PLACE = struct.Struct("<QQq")
_MATRIX = struct.Struct("<6i")
_HEADER_BYTES, _LAYER_BYTES = 328, 456
_ALIGNMENT = 64  # of a tensor among the table's own bytes: a cache line
_GATED, _GELU, _EPS_Z_N = 1, 2, 4


def encode_table(plan: Plan, config: RetNetConfig) -> bytes:
    """The table of a plan and the numbers of its model."""
    own = bytearray()

    def place(data: Data | None) -> bytes:
        if data is None:
            return _PLACE.pack(0, 0, 0)
        if isinstance(data, FileRange):
            return _PLACE.pack(data.offset, data.size, 0)
        own.extend(b"\0" * (-len(own) % _ALIGNMENT))
        own.extend(data)
        return _PLACE.pack(len(own) - len(data), len(data), 1)

    def matrix(of: PlannedMatrix) -> bytes:
        return b"".join(
            (
                place(of.codes),
                place(of.scales),
                place(of.zeros),
                _MATRIX.pack(
                    of.rows,
                    of.inputs,
                    of.bits,
                    of.block,
                    of.scale_dtype == "float16",
                    of.zeros is not None,
                ),
            )
        )

    layers = b"".join(
        b"".join(map(place, (layer.retention_norm, layer.head_norm, layer.ffn_norm)))
        + b"".join(map(matrix, (layer.qkvg, layer.out, layer.inner, layer.down)))
        for layer in plan.layers
    )
    ends = place(plan.final_norm) + matrix(plan.embedding) + matrix(plan.head)
    gammas, frequencies = _decays(config)
    offsets = [_HEADER_BYTES]
    for part in (layers, gammas, frequencies):
        offsets.append(offsets[-1] + len(part))
    own_offset = -(-offsets[-1] // _ALIGNMENT) * _ALIGNMENT
    padding = b"\0" * (own_offset - offsets[-1])
    header = _HEADER.pack(
        *_numbers(config),
        own_offset + len(own),
        *offsets[:3],
        own_offset,
        len(own),
    )
    return b"".join((header, ends, layers, gammas, frequencies, padding, own))


def read_table(path: Path, config: RetNetConfig, weights_bytes: int) -> bytes:
    """The table in a bundle's file, or of the plan that an older version wrote there as JSON.

    Raises InputError, naming the file, where it is of another model than `config`, or a JSON plan
    does not hold up on weights of so many bytes. The rest of a table C checks.
    """
    if path.suffix == ".json":
        plan = decode_plan(path)
        check_plan(plan, config, weights_bytes, str(path))
        return encode_table(plan, config)
    table = read_regular(path, _LARGEST_FILE, "a model table")
    check_table(table, config, str(path))
    return table


def check_table(table: bytes, config: RetNetConfig, where: str) -> None:
    """Raises InputError naming `where` unless the table is of a model with this configuration.

    Nothing else of it is checked here; what is no table at all is left to C.
    """
    if len(table) < _HEADER_BYTES:
        return
    found = _HEADER.unpack_from(table)
    wanted = struct.unpack("<4I7i3I2f", struct.pack("<4I7i3I2f", *_numbers(config)))
    names = ("", "", "", "flags", *_DIMENSIONS, "decay", "convolution", "", *_EPS)
    for name, is_, says in zip(names, found, wanted, strict=False):
        if name and is_ != says:
            raise InputError(
                f"{where}: {name} is {is_:g}, and {says:g} in the manifest's configuration of the "
                "model"
            )
    for name, numbers, at in zip(("gammas", "thetas"), _decays(config), found[18:20], strict=True):
        if table[at : at + len(numbers)] != numbers:
            raise InputError(
                f"{where}: its {name} are not those of the manifest's configuration of the model"
            )


_DIMENSIONS = (
    *("layers", "d_model", "heads", "key_head_dim", "value_head_dim"),
    *("ffn_dim", "vocab_size"),
)
_EPS = ("norm_eps", "head_norm_eps")


def _numbers(config: RetNetConfig) -> tuple[int | float, ...]:
    """The header's fields up to its size."""
    flags = (
        (_GATED if config.ffn == "glu" else 0)
        | (_GELU if config.activation == "gelu" else 0)
        | (_EPS_Z_N if config.head_norm_eps_rule == "z_n" else 0)
    )
    dimensions = (getattr(config, name) for name in _DIMENSIONS)
    eps = (getattr(config, name) for name in _EPS)
    return (_VERSION, _HEADER_BYTES, _LAYER_BYTES, flags, *dimensions, 0, 0, 0, *eps)


def _decays(config: RetNetConfig) -> tuple[bytes, bytes]:
    """float64 gamma of each head, and theta / (2 pi) of each pair of key channels."""
    gammas = np.array(config.gammas, dtype="<f8")
    frequencies = np.array(config.thetas, dtype="<f8") / (2 * np.pi)
    return gammas.tobytes(), frequencies.astype("<f8").tobytes()
