"""A matrix in blocks whose codes and scales are trained: the grid of the kernel, to the bit.

    w = (q - z) · s,    q = clip(round(u), 0, 2^bits - 1),    s = round(s_0 · exp(t))

u (in codes) and t are trained; gradients pass straight through the rounding. Zeros z stay. At the
start u lies where the float weight lies, but inside the cell of the code that the recipe chose.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retnet_edge.quantize.numerics.rounding import FLOAT16_SCALE_RANGE, BlockQuantized
from retnet_edge.training.quantization_aware import straight_through

INSIDE = 0.49  # of a cell, half as wide as a code


class TrainableBlocks(nn.Module):
    """Codes and scales of one matrix [outputs, inputs] as parameters."""

    def __init__(self, blocks: BlockQuantized, weight: Tensor) -> None:
        """`blocks` of the float matrix `weight` [outputs, inputs], on the weight's device."""
        super().__init__()
        device = weight.device
        self.bits = blocks.bits
        self.inputs = weight.shape[1]
        scales = torch.from_numpy(np.array(blocks.scales, dtype=np.float32)).to(device)
        self.scales = nn.Buffer(scales)
        self.zeros = nn.Buffer(torch.from_numpy(blocks.zeros.astype(np.float32)).to(device))
        codes = torch.from_numpy(blocks.codes.astype(np.float32)).to(device)
        padded = F.pad(weight.detach().float(), (0, codes[0].numel() - self.inputs))
        exact = padded.reshape(codes.shape) / scales[..., None] + self.zeros[..., None]
        self.latent = nn.Parameter(codes + (exact - codes).clamp(-INSIDE, INSIDE))
        self.log_scale = nn.Parameter(torch.zeros_like(scales))

    def forward(self) -> Tensor:
        """The matrix [outputs, inputs] that codes and scales stand for."""
        clipped = self.latent.clamp(0, 2**self.bits - 1)
        codes = straight_through(clipped, clipped.round())
        weights = (codes - self.zeros[..., None]) * self._scales()[..., None]
        return weights.flatten(1)[:, : self.inputs]

    @torch.no_grad()
    def blocks(self) -> BlockQuantized:
        """As the graph stores them."""
        codes = self.latent.clamp(0, 2**self.bits - 1).round()
        stored, zeros = (x.to(torch.uint8).cpu().numpy() for x in (codes, self.zeros))
        return BlockQuantized(stored, self._scales().cpu().numpy(), zeros, self.bits)

    def _scales(self) -> Tensor:
        scales = self.scales * self.log_scale.exp()
        if self.bits == 8:
            return scales
        return straight_through(scales, scales.clamp(*FLOAT16_SCALE_RANGE).half().float())
