"""RetNet checkpoints in Hugging Face transformers: a short name of `integrations.transformers`."""

from retnet_edge.integrations.transformers import (
    RetNetCache,
    RetNetEdgeConfig,
    RetNetEdgeForCausalLM,
    RetNetEdgeTokenizer,
)

__all__ = ["RetNetCache", "RetNetEdgeConfig", "RetNetEdgeForCausalLM", "RetNetEdgeTokenizer"]
