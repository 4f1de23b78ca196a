"""A checkpoint's config.json and tokenizer.json as transformers' classes (see retnet_edge.hf)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from transformers import PretrainedConfig, PreTrainedTokenizerFast
from transformers.utils import cached_file

from retnet_edge.config import (
    MODEL_TYPE,
    RetNetConfig,
    decode_config,
    encode_checkpoint_config,
)
from retnet_edge.errors import InputError
from retnet_edge.tokenizing.special_tokens import GENERATION_FILE, find_special_tokens
from retnet_edge.tokenizing.texts import without_limits

TOKENIZER_FILE = "tokenizer.json"


class RetNetEdgeConfig(PretrainedConfig):
    """A RetNetConfig, field by field, with what transformers keeps beside it.

    `dropout` and `use_cache` are not part of a checkpoint: give them to `from_pretrained`.
    """

    model_type = MODEL_TYPE
    has_no_defaults_at_init = True
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 - transformers' own form
    attribute_map = {  # noqa: RUF012
        "hidden_size": "d_model",
        "intermediate_size": "ffn_dim",
        "num_attention_heads": "heads",
        "num_hidden_layers": "layers",
        "tie_word_embeddings": "tie_embeddings",
    }

    def __init__(self, **kwargs: Any) -> None:
        """Check the fields of a config.json. Raises InputError naming what is not allowed."""
        where = kwargs.get("name_or_path") or kwargs.get("_name_or_path") or "RetNetEdgeConfig"
        names = ("type", *RetNetConfig.__struct_fields__)
        fields = {name: kwargs.pop(name) for name in names if name in kwargs}
        config = decode_config(msgspec.json.encode({"type": "retnet", **fields}), where)
        if not isinstance(config, RetNetConfig):
            raise InputError(f"{where}: is a Transformer; retnet_edge.hf runs RetNets only")
        for name in RetNetConfig.__struct_fields__:
            setattr(self, name, getattr(config, name))
        self.type = "retnet"
        self.dropout = kwargs.pop("dropout", 0.0)
        self.use_cache = kwargs.pop("use_cache", True)
        kwargs["tie_word_embeddings"] = config.tie_embeddings
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As its parent; `name_or_path` says where the fields are from (4.57 tells it too late)."""
        if "name_or_path" in kwargs:
            config_dict = {**config_dict, "name_or_path": kwargs["name_or_path"]}
        return super().from_dict(config_dict, **kwargs)

    def retnet_config(self) -> RetNetConfig:
        """The configuration that the attributes spell now. Raises InputError if they do not fit."""
        fields = {name: getattr(self, name) for name in RetNetConfig.__struct_fields__}
        return msgspec.convert(fields | {"type": "retnet"}, RetNetConfig)

    def to_json_string(self, use_diff: bool = True) -> str:
        """What a checkpoint's config.json holds, and nothing else."""
        return encode_checkpoint_config(self.retnet_config()).decode()


class RetNetEdgeTokenizer(PreTrainedTokenizerFast):
    """tokenizer.json as it is, without token types.

    It has no `__init__`: with one, transformers 5 rebuilds the tokenizer from its vocabulary alone.
    """

    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """The tokens that begin, end and pad a text are those that the checkpoint's files name.

        Where they name no end, `<|endoftext|>` is it, if the vocabulary has it.
        """
        tokenizer = super().from_pretrained(*args, **kwargs)
        without_limits(tokenizer.backend_tokenizer)
        folder = _folder(*args, **kwargs)
        special = find_special_tokens(folder, tokenizer.backend_tokenizer)
        for name, token in (
            ("eos_token", special.end),
            ("bos_token", special.begin),
            ("pad_token", special.padding),
        ):
            if getattr(tokenizer, name) is None and token is not None:
                setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(token))
        return tokenizer


def _folder(name: Any, **kwargs: Any) -> Path:
    """Where a checkpoint's small files are: the directory, or what the hub's cache holds of it."""
    folder = Path(name)
    if folder.is_dir():
        return folder / (kwargs.get("subfolder") or "")
    names = ("cache_dir", "revision", "token", "local_files_only", "subfolder", "force_download")
    hub = {key: kwargs[key] for key in names if kwargs.get(key) is not None}
    cached_file(name, GENERATION_FILE, _raise_exceptions_for_missing_entries=False, **hub)
    return Path(cached_file(name, TOKENIZER_FILE, **hub)).parent
