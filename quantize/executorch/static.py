"""Static activations for an ExecuTorch program: PT2E with ranges that were measured beforehand.

    q(x) = clamp(round(x / s) + z, -128, 127),  one s and z for the input and one for the output

Only linear maps are annotated, by name. Step and prefill get the same ranges, so a state continues
from one to the other as it does in float32. Quantizing every operator (`set_global`) is unusable:
the states themselves would be rounded at each step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from retnet_edge.lowering.executorch_files import example_inputs
from retnet_edge.lowering.xnnpack_graph import XnnpackGraph
from retnet_edge.quantize.executorch.calibration import LinearStatistics
from retnet_edge.quiet import hushed
from retnet_edge.runtime.bundle.manifest import StateSpec

_EPS = 2**-12


def static_module(
    graph: XnnpackGraph, statistics: Mapping[str, LinearStatistics], states: tuple[StateSpec, ...]
) -> nn.Module:
    """The graph with int8 weights (one scale a row) and static int8 activations for `statistics`.

    statistics: what the linear maps of these names saw on text. The rest of the graph stays as it
    is, torchao's dynamic products included.
    """
    with hushed():
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        exported = torch.export.export(graph.eval(), example_inputs(graph.tokens, states))
        prepared = prepare_pt2e(exported.module(), _quantizer(statistics))
        prepared(*example_inputs(graph.tokens, states))  # the weights' scales
        converted: nn.Module = convert_pt2e(prepared)
    return converted


def _quantizer(statistics: Mapping[str, LinearStatistics]) -> Any:
    """A PT2E quantizer of these linear maps and of nothing else.

    XNNPACKQuantizer with names of modules also annotates every `cat` of the graph, whatever module
    it is in, and what shares a scale with it: rotated queries and keys, of all layers with one
    scale. On the shipped model that is a mean KL of 0.1 in place of 2e-3.
    """
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer_utils import OP_TO_ANNOTATOR
    from torchao.quantization.pt2e.quantizer import Quantizer
    from torchao.quantization.pt2e.quantizer.utils import get_module_name_filter

    class Linears(Quantizer):  # type: ignore[misc]
        def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            for name, found in statistics.items():
                OP_TO_ANNOTATOR["linear"](model, _config(found), get_module_name_filter(name))
            return model

        def validate(self, model: torch.fx.GraphModule) -> None:
            pass

    return Linears()


def _config(statistics: LinearStatistics) -> Any:
    """XNNPACK's symmetric configuration, activations with the given ranges."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer_utils import QuantizationConfig
    from torchao.quantization.pt2e import MinMaxObserver, PerChannelMinMaxObserver
    from torchao.quantization.pt2e.quantizer import QuantizationSpec

    class FixedRangeObserver(MinMaxObserver):  # type: ignore[misc]
        """Keeps the range that it is made with."""

        def __init__(self, *, limits: tuple[float, float], **options: Any) -> None:
            super().__init__(**options)
            self.min_val, self.max_val = map(torch.tensor, limits)

        def forward(self, x: Tensor) -> Tensor:
            return x

    def activation(limits: tuple[float, float]) -> Any:
        return QuantizationSpec(
            dtype=torch.int8,
            quant_min=-128,
            quant_max=127,
            qscheme=torch.per_tensor_affine,
            observer_or_fake_quant_ctr=FixedRangeObserver.with_args(limits=limits, eps=_EPS),
        )

    weight = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-127,
        quant_max=127,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=_EPS),
    )
    return QuantizationConfig(
        activation(statistics.inputs), activation(statistics.outputs), weight, None
    )
