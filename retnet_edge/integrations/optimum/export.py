"""Our checkpoints in optimum's ONNX exporter: `main_export` and `optimum-cli export onnx`.

Importing this module registers them with transformers' Auto classes and optimum's TasksManager, for
the task text-generation-with-past. What optimum writes as model.onnx is the step graph of
`retnet-edge export`, with the same names (docs/how-to/optimum.md).

Letters: B batch, H heads, K and V key and value dimension of a head.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from optimum.exporters.onnx.base import OnnxConfig
from optimum.exporters.tasks import TasksManager
from optimum.utils import NormalizedTextConfig
from torch import Tensor
from transformers import PreTrainedModel

import retnet_edge.integrations.transformers  # noqa: F401 - AutoConfig and AutoTokenizer know our directories
from retnet_edge.config import MODEL_TYPE
from retnet_edge.errors import InputError
from retnet_edge.export.contract import EXAMPLE_BATCH, lowerings, state_specs
from retnet_edge.export.onnx_graph import lower_onnx
from retnet_edge.integrations.transformers.config import RetNetEdgeConfig
from retnet_edge.integrations.transformers.state import features
from retnet_edge.model.checkpoint import load_checkpoint
from retnet_edge.model.retnet import RetNet

TASK = "text-generation-with-past"
TOLERANCE = 2e-4  # of a logit, as FP32_TOLERANCE has it; optimum warns above it
_NAMES = {"states": "state", "next_states": "next_state"}


class RetNetEdgeStep(PreTrainedModel):
    """A checkpoint's RetNet behind the step contract, as optimum loads and calls it."""

    # optimum takes a model for one of transformers by this name alone
    __module__ = "transformers.retnet_edge"
    config_class = RetNetEdgeConfig
    main_input_name = "tokens"

    def __init__(self, config: RetNetEdgeConfig, net: RetNet | None = None) -> None:
        """Hold `net`, or a RetNet with fresh weights."""
        super().__init__(config)
        self.retnet = RetNet(config.retnet_config()) if net is None else net

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """The model of a checkpoint directory, in float32.

        Raises InputError for a directory that does not load, and for another dtype.
        """
        dtype = kwargs.get("torch_dtype") or kwargs.get("dtype") or torch.float32
        if dtype is not torch.float32:
            raise InputError(f"--dtype asks for {dtype}; a step graph is exported in fp32")
        folder = Path(pretrained_model_name_or_path) / (kwargs.get("subfolder") or "")
        source = load_checkpoint(folder)
        if not isinstance(source.model, RetNet):
            raise InputError(f"{folder}: is a Transformer; optimum exports our RetNets only")
        config = RetNetEdgeConfig.from_pretrained(folder)
        config.name_or_path = str(folder)  # where optimum finds the tokenizer
        return cls(config, source.model.eval())

    def forward(self, tokens: Tensor, position: Tensor, states: list[Tensor]) -> dict[str, Any]:
        """Tokens int64 [B, 1], position int64 [B], states float32 [B, H, K, V] each.

        `logits` float32 [B, vocab] of the token after, and `next_states`.
        """
        if torch.onnx.is_in_onnx_export():
            # for optimum's own tracing; see RetNetEdgeOnnxConfig.post_process_exported_models
            return {
                "logits": tokens.float() + position[:, None],
                "next_states": [-s for s in states],
            }
        x, after = features(self.retnet, tokens, states, position)
        return {"logits": self.retnet.head(x)[:, -1], "next_states": after}


class RetNetEdgeOnnxConfig(OnnxConfig):
    """Names, shapes and example values of the step graph for optimum's exporter."""

    NORMALIZED_CONFIG_CLASS = NormalizedTextConfig
    ATOL_FOR_VALIDATION = TOLERANCE
    SUPPORTS_PAST = True

    def __init__(
        self,
        config: Any,
        *args: Any,
        use_past: bool = True,
        use_past_in_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        """The two `use_past` arguments are optimum's protocol: a step graph always has states."""
        self.use_past = use_past
        super().__init__(config, *args, **kwargs)

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        """Dynamic axes by the arguments of `RetNetEdgeStep.forward`."""
        names = ["tokens", "position", *(f"states.{i}" for i in range(self._config.layers))]
        return {name: {0: "batch"} for name in names}

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        """Dynamic axes by the graph's output names."""
        names = ["logits", *(f"next_state_{i}" for i in range(self._config.layers))]
        return {name: {0: "batch"} for name in names}

    @property
    def torch_to_onnx_input_map(self) -> dict[str, str]:
        """`states.0` of the arguments is `state_0` of the graph."""
        return {f"states.{i}": f"state_{i}" for i in range(self._config.layers)}

    @classmethod
    def flatten_output_collection_property(cls, name: str, field: Iterable[Any]) -> dict[str, Any]:
        """A list of states under the graph's names."""
        return {f"{_NAMES[name]}_{i}": value for i, value in enumerate(field)}

    def generate_dummy_inputs(self, framework: str = "pt", **shapes: Any) -> dict[str, Any]:
        """Two sequences far apart in the text, their states not empty.

        The same values every time, so that what was traced and what is compared are one thing.
        """
        config = self._config
        random = torch.Generator().manual_seed(0)
        shape = (EXAMPLE_BATCH, config.heads, config.key_head_dim, config.value_head_dim)
        tokens = torch.randint(config.vocab_size, (EXAMPLE_BATCH, 1), generator=random)
        states = [torch.randn(shape, generator=random) for _ in range(config.layers)]
        return {"tokens": tokens, "position": torch.tensor([3, 20_011]), "states": states}

    def patch_model_for_export(self, model: Any, model_kwargs: Any = None) -> Any:
        """Nothing of optimum's patches (masks, key-value caches) has a place in a RetNet."""
        return contextlib.nullcontext()

    def fix_dynamic_axes(self, *args: Any, **kwargs: Any) -> None:
        """The axes are right."""

    def post_process_exported_models(
        self,
        path: Path,
        models_and_onnx_configs: Mapping[str, tuple[Any, Any]],
        onnx_files_subpaths: list[str],
    ) -> tuple[Mapping[str, tuple[Any, Any]], list[str]]:
        """Put the graph of `retnet-edge export` in the place of what optimum traced.

        optimum-onnx 0.1 traces with torch's old exporter, which knows neither RMS norms nor the
        operators of a step of retention, and has no other hook. So what it traces is a placeholder
        whose shapes are wrong: kept (`no_post_process`), it makes optimum's own validation raise.
        The real graph it then compares with `RetNetEdgeStep`, as it does for every model.
        """
        (name,) = models_and_onnx_configs
        model = models_and_onnx_configs[name][0]
        lowering = next(one for one in lowerings(model.retnet) if one.kind == "step")
        graph = lower_onnx(lowering, state_specs(model.retnet))
        file = Path(path) / onnx_files_subpaths[0]
        for old in (file, file.with_name(f"{file.name}_data")):
            old.unlink(missing_ok=True)
        ir.save(graph, file, external_data=f"{file.name}_data")
        onnx.checker.check_model(str(file), full_check=True)
        return models_and_onnx_configs, onnx_files_subpaths


def register() -> None:
    """Make our directories known to optimum; a second call changes nothing."""
    TasksManager._CUSTOM_CLASSES["pt", MODEL_TYPE, "text-generation"] = (
        "retnet_edge.integrations.optimum.export",
        RetNetEdgeStep.__name__,
    )
    TasksManager.create_register("onnx")(MODEL_TYPE, TASK)(RetNetEdgeOnnxConfig)


register()
