"""A model and options for int8-aware training, and the recipes' rounding in NumPy."""

from __future__ import annotations

import msgspec
import numpy as np
from micro_training import OPTIONS
from numpy.typing import NDArray

from retnet_edge.config import retnet_config
from retnet_edge.quantize.numerics.rounding import dequantize, quantize_blocks, quantize_channels
from retnet_edge.training.quantization_aware import BLOCK

Floats = NDArray[np.float32]
AWARE = msgspec.structs.replace(OPTIONS, dropout=0.0, int8_aware=10.0)
WIDE = retnet_config(vocab_size=384, d_model=136, layers=1, heads=2, ffn_dim=144)


def blocks_by_recipe(x: Floats) -> Floats:
    """[N, K] quantized and dequantized, as the int8 recipe does with a matrix."""
    return dequantize(*quantize_blocks(x, BLOCK)).reshape(len(x), -1)[:, : x.shape[1]]


def rows_by_recipe(x: Floats) -> Floats:
    """[N, K] quantized and dequantized, as the int8-dynamic recipe does with a matrix."""
    return dequantize(*quantize_channels(x))
