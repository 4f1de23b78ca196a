"""RetNet checkpoints in Hugging Face transformers, 4.57 and 5.

`import retnet_edge.hf` registers the classes below with AutoConfig, AutoModelForCausalLM and
AutoTokenizer. The model is `retnet_edge.model.retnet.RetNet` itself, and a directory is the same
checkpoint on both sides (docs/how-to/transformers.md).
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from retnet_edge.config import MODEL_TYPE
from retnet_edge.integrations.transformers.config import RetNetEdgeConfig, RetNetEdgeTokenizer
from retnet_edge.integrations.transformers.model import RetNetEdgeForCausalLM
from retnet_edge.integrations.transformers.state import RetNetCache

__all__ = ["RetNetCache", "RetNetEdgeConfig", "RetNetEdgeForCausalLM", "RetNetEdgeTokenizer"]

AutoConfig.register(MODEL_TYPE, RetNetEdgeConfig)
AutoModelForCausalLM.register(RetNetEdgeConfig, RetNetEdgeForCausalLM)
AutoTokenizer.register(RetNetEdgeConfig, fast_tokenizer_class=RetNetEdgeTokenizer)
