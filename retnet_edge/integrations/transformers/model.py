"""`retnet_edge.model.retnet.RetNet` as a transformers model (see retnet_edge.hf).

Letters: B batch, T tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from retnet_edge.errors import InputError
from retnet_edge.integrations.transformers.config import RetNetEdgeConfig
from retnet_edge.integrations.transformers.state import RetNetCache, features, masked_features
from retnet_edge.model.checkpoint import CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE, read_weights
from retnet_edge.model.retnet import MultiScaleRetention, RetNet
from retnet_edge.model.rotary import frequencies
from retnet_edge.tokenizer import load_tokenizer, padding_fields
from retnet_edge.tokenizing.special_tokens import (
    GENERATION_FILE,
    find_special_tokens,
    generation_fields,
)

PREFIX = "retnet."
HEAD, EMBEDDING = f"{PREFIX}head.weight", f"{PREFIX}embedding.weight"
REFUSED = ("inputs_embeds", "position_ids", "output_attentions", "output_hidden_states")
VERSION_5 = int(transformers.__version__.split(".")[0]) >= 5


class RetNetEdgeForCausalLM(PreTrainedModel, GenerationMixin):
    """`retnet_edge.model.retnet.RetNet` as a transformers model; the states are the cache."""

    config_class = RetNetEdgeConfig
    main_input_name = "input_ids"
    _is_stateful = True
    _no_split_modules = ["Block"]  # noqa: RUF012
    _tied_weights_keys = {HEAD: EMBEDDING} if VERSION_5 else [HEAD]

    def __init__(self, config: RetNetEdgeConfig) -> None:
        """Make the RetNet; fresh weights are its own initialisation."""
        super().__init__(config)
        self.retnet = RetNet(config.retnet_config(), dropout=config.dropout)
        self.post_init()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, config: Any = None, **kwargs: Any
    ) -> Any:
        """A checkpoint directory or hub id as a model in evaluation mode.

        `dtype` is what the weights are computed in. What they are stored in is a matter of disk
        space, so None and "auto" are float32. Raises InputError naming what is missing or does not
        fit.
        """
        folder = _folder(str(pretrained_model_name_or_path), kwargs)
        dtype = kwargs.pop("torch_dtype", None)
        dtype = kwargs.pop("dtype", dtype)
        if dtype in (None, "auto"):
            dtype = torch.float32
        if not isinstance(config, RetNetEdgeConfig):
            source = folder if config is None else config
            config, kwargs = RetNetEdgeConfig.from_pretrained(
                source, return_unused_kwargs=True, name_or_path=str(source), **kwargs
            )
            kwargs.pop("name_or_path", None)
        with torch.device("meta"):
            shape = RetNet(config.retnet_config())
        weights = read_weights(shape, folder / WEIGHTS_FILE)
        stated = (folder / GENERATION_FILE).is_file()
        if stated and kwargs.get("generation_config") is None:
            kwargs["generation_config"] = GenerationConfig.from_pretrained(folder)
        loaded = super().from_pretrained(
            None,
            *args,
            config=config,
            state_dict={f"{PREFIX}{name}": weight for name, weight in weights.items()},
            dtype=dtype,
            **kwargs,
        )
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.name_or_path = model.config.name_or_path = str(pretrained_model_name_or_path)
        if (folder / TOKENIZER_FILE).is_file():
            tokenizer = load_tokenizer(folder / TOKENIZER_FILE)
            fields: dict[str, int | list[int]] = {**padding_fields(tokenizer, config.vocab_size)}
            if model.generation_config.eos_token_id is None:
                fields |= generation_fields(find_special_tokens(folder, tokenizer))
            for name, value in fields.items():
                if getattr(model.generation_config, name, None) is None:
                    setattr(model.generation_config, name, value)
        return loaded

    def save_pretrained(
        self,
        save_directory: Any,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write config.json and model.safetensors as `load_checkpoint` reads them: in one file.

        generation_config.json comes along; tokenizer.json is the tokenizer's to save.
        """
        weights = dict(self.state_dict() if state_dict is None else state_dict)
        if self.config.tie_embeddings:
            weights.pop(HEAD, None)
        weights = {name.removeprefix(PREFIX): weight for name, weight in weights.items()}
        kwargs["max_shard_size"] = "1000TB"
        super().save_pretrained(save_directory, is_main_process, weights, **kwargs)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Weights under this model's names or a checkpoint's (Trainer resumes from its file)."""
        if not any(name.startswith(PREFIX) for name in state_dict):
            state_dict = {f"{PREFIX}{name}": weight for name, weight in state_dict.items()}
        if self.config.tie_embeddings and EMBEDDING in state_dict:
            state_dict = {HEAD: state_dict[EMBEDDING], **state_dict}
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: RetNetCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Tokens [B, T] -> loss (with `labels` [B, T], -100 where none), logits, cache.

        `attention_mask` [B, T], or with the columns of the cache before it, is 1 where there is a
        token: a masked one enters no state (`state.masked_features`). `logits_to_keep` asks for
        the last ones only. Other keywords go to transformers' loss.
        """
        for name in REFUSED:
            given = kwargs.pop(name, None)
            if given is not None and given is not False:
                raise InputError(f"{name} was given; {type(self).__name__} does not take it")
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        batch, length = input_ids.shape
        if not length:
            raise InputError("input_ids holds no token: begin with the end of the text before")
        cache = self._cache(batch, past_key_values)
        present = _present(attention_mask, input_ids, cache.columns)
        every = isinstance(logits_to_keep, int) and logits_to_keep == 0
        if present is None or (every and not use_cache and _right_padded(present)):
            x, states = features(self.retnet, input_ids, cache.states, cache.position)
            seen: Tensor | int = length
        else:
            x, states = masked_features(
                self.retnet, input_ids, present, cache.states, cache.position
            )
            seen = present.sum(dim=1)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.retnet.head(x[:, kept])
        loss = None
        if labels is not None:
            if logits.shape[1] != labels.shape[1]:
                raise InputError("labels need every logit: do not give logits_to_keep with them")
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        after = RetNetCache(states, cache.position + seen, cache.columns + length)
        out = CausalLMOutputWithPast(loss, logits, after if use_cache else None)
        return out.to_tuple() if return_dict is False else out

    def _cache(self, batch: int, given: RetNetCache | None) -> RetNetCache:
        if given is None:
            position = torch.zeros(batch, dtype=torch.int64, device=self.device)
            return RetNetCache(self.retnet.initial_states(batch), position, 0)
        if not isinstance(given, RetNetCache):
            raise InputError(f"past_key_values is a {type(given).__name__}, not a RetNetCache")
        if given.position.shape[0] != batch:
            raise InputError(
                f"past_key_values holds {given.position.shape[0]} rows; the input has {batch}"
            )
        return given

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: RetNetCache | None = None,
        attention_mask: Tensor | None = None,
        cache_position: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The columns that the cache has not seen (version 5 says how many, 4 which)."""
        if next_sequence_length is None and cache_position is not None:
            next_sequence_length = cache_position.shape[0]
        if next_sequence_length is not None:
            input_ids = input_ids[:, -next_sequence_length:]
        forwarded = ("use_cache", "logits_to_keep", *REFUSED)
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
            **{name: kwargs[name] for name in forwarded if name in kwargs},
        }

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def get_input_embeddings(self) -> nn.Module:
        """The embedding."""
        return self.retnet.embedding

    def set_input_embeddings(self, value: Any) -> None:
        """Replace the embedding."""
        self.retnet.embedding = value

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.retnet.head

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        """Replace the head."""
        self.retnet.head = new_embeddings

    def _init_weights(self, module: nn.Module) -> None:
        """γ and θ only, which no file holds and a meta device loses; RetNet makes weights."""
        if isinstance(module, MultiScaleRetention):
            gammas = torch.tensor(module.config.gammas, dtype=torch.float64, device="cpu")
            module.log_decay = gammas.log().to(module.log_decay.device)
        elif isinstance(module, RetNet):
            with torch.device("cpu"):
                angles = frequencies(module.config.thetas)
            module.frequencies = angles.to(module.frequencies.device)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """γ and θ stay float64 whatever dtype the weights are moved to."""
        super()._apply(fn, recurse)
        if self.retnet.frequencies.dtype != torch.float64:
            for module in self.modules():
                self._init_weights(module)
        return self


def _folder(name: str, kwargs: dict[str, Any]) -> Path:
    """The checkpoint's directory, downloaded where `name` is no local one; takes hub keywords."""
    hub = {
        key: kwargs.pop(key, None)
        for key in ("revision", "cache_dir", "token", "local_files_only", "force_download")
    }
    kwargs.pop("trust_remote_code", None)
    folder = Path(name)
    if not folder.is_dir():
        files = [CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE, GENERATION_FILE]
        given = {key: value for key, value in hub.items() if value is not None}
        folder = Path(snapshot_download(name, allow_patterns=files, **given))
    return folder / (kwargs.pop("subfolder", None) or "")


def _present(mask: Tensor | None, input_ids: Tensor, columns: int) -> Tensor | None:
    """Which of the input's columns hold a token, bool [B, T]; None where all do."""
    if mask is None:
        return None
    batch, length = input_ids.shape
    if mask.shape not in ((batch, length), (batch, columns + length)):
        raise InputError(
            f"attention_mask has shape {list(mask.shape)}; {batch} rows of {length} tokens after "
            f"{columns} columns need [{batch}, {length}] or [{batch}, {columns + length}]"
        )
    present = mask[:, -length:].bool()
    return None if bool(present.all()) else present


def _right_padded(present: Tensor) -> bool:
    """Whether every masked place comes after a row's last token, which then cannot see it."""
    return not bool((present[:, 1:] & ~present[:, :-1]).any())
