"""RetNet in transformers: the same module, and the same directory.

Runs on transformers 5 (`make test`) and 4.57 (`make test-hf4`).
"""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest
import torch
import transformers_checkpoints
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers_checkpoints import BASE, TEXT, VARIANTS, random_tokens, refused, write

from retnet_edge.config import transformer_like
from retnet_edge.errors import InputError
from retnet_edge.integrations.transformers import RetNetEdgeConfig, RetNetEdgeForCausalLM
from retnet_edge.model.checkpoint import load_checkpoint
from retnet_edge.model.retnet import RetNet

checkpoints = transformers_checkpoints.checkpoints
base = transformers_checkpoints.base


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_logits_are_the_retnets_own(name: str, checkpoints: dict[str, Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoints[name])
    assert isinstance(model, RetNetEdgeForCausalLM)
    assert isinstance(model.retnet, RetNet)
    assert not model.training
    tokens = random_tokens(3, 141)
    wanted, states = load_checkpoint(checkpoints[name]).model(tokens)
    found = model(tokens)
    assert torch.equal(found.logits, wanted)
    for a, b in zip(found.past_key_values.states, states, strict=True):
        assert torch.equal(a, b)


def test_auto_config_has_our_fields_and_transformers_names(base: Path) -> None:
    config = AutoConfig.from_pretrained(base)
    assert isinstance(config, RetNetEdgeConfig)
    assert config.retnet_config() == BASE
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (24, 2, 2)
    assert config.tie_word_embeddings
    assert config.to_json_string().encode() == (base / "config.json").read_bytes()


@pytest.mark.parametrize("name", VARIANTS)
def test_saved_directories_are_checkpoints(
    name: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    source = checkpoints[name]
    out = tmp_path / "saved"
    AutoModelForCausalLM.from_pretrained(source).save_pretrained(out)
    AutoTokenizer.from_pretrained(source).save_pretrained(out)
    assert (out / "config.json").read_bytes() == (source / "config.json").read_bytes()
    ours, wanted = load_file(out / "model.safetensors"), load_file(source / "model.safetensors")
    assert ours.keys() == wanted.keys()
    for key in wanted:
        assert ours[key].dtype == wanted[key].dtype
        assert torch.equal(ours[key], wanted[key]), key
    again = load_checkpoint(out)
    assert again.config == VARIANTS[name]
    assert again.tokenizer.encode(TEXT).ids == load_checkpoint(source).tokenizer.encode(TEXT).ids
    tokens = random_tokens(1, 9)
    assert torch.equal(
        AutoModelForCausalLM.from_pretrained(out)(tokens).logits, again.model(tokens)[0]
    )


def test_saving_into_the_directory_it_came_from(tmp_path: Path) -> None:
    path = write(tmp_path / "half", BASE, torch.float16)
    before = load_file(path / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float16)
    model.save_pretrained(path)
    after = load_file(path / "model.safetensors")
    assert {w.dtype for w in after.values()} == {torch.float16}
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert load_checkpoint(path).config == BASE


def test_directories_of_before_this_module_are_read(base: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(base, tmp_path / "old"))
    config = msgspec.json.decode((old / "config.json").read_bytes())
    del config["model_type"]
    (old / "config.json").write_bytes(msgspec.json.encode(config))
    weights = load_file(old / "model.safetensors")
    save_file(weights, old / "model.safetensors", metadata={"format": "retnet-edge"})
    model = RetNetEdgeForCausalLM.from_pretrained(old)
    tokens = random_tokens(1, 7)
    assert torch.equal(model(tokens).logits, load_checkpoint(old).model(tokens)[0])
    model.save_pretrained(old)
    assert isinstance(AutoModelForCausalLM.from_pretrained(old), RetNetEdgeForCausalLM)


def test_keys_that_transformers_writes_are_skipped(base: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(base, tmp_path / "extended"))
    config = msgspec.json.decode((path / "config.json").read_bytes())
    config |= {"architectures": ["X"], "dtype": "bfloat16", "transformers_version": "5.0.0"}
    (path / "config.json").write_bytes(msgspec.json.encode(config))
    assert load_checkpoint(path).config == BASE
    (path / "config.json").write_bytes(msgspec.json.encode({**config, "quantization_config": {}}))
    with pytest.raises(InputError, match="quantization_config"):
        load_checkpoint(path)


def test_the_tokenizer_is_tokenizer_json(base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    ours = load_checkpoint(base).tokenizer
    for text in (TEXT, "  two  spaces, naïve ⊙ \n\n", "a<|endoftext|>b", ""):
        encoded = tokenizer(text)
        assert set(encoded) == {"input_ids", "attention_mask"}
        assert encoded["input_ids"] == ours.encode(text).ids
        assert tokenizer.decode(encoded["input_ids"]) == text
    assert len(tokenizer) == ours.get_vocab_size()
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|endoftext|>", 0)
    assert tokenizer.bos_token is None
    assert tokenizer.pad_token is None


def test_a_tokenizer_s_limits_are_not_taken_over(base: Path, tmp_path: Path) -> None:
    """Of a hub's tokenizer.json, which was saved after it had cut off and padded a batch."""
    path = Path(shutil.copytree(base, tmp_path / "limited"))
    wanted = load_checkpoint(base).tokenizer.encode(TEXT * 20).ids
    limited = load_checkpoint(base).tokenizer
    limited.enable_truncation(4)
    limited.enable_padding(length=500)
    limited.save(str(path / "tokenizer.json"))
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert tokenizer.backend_tokenizer.truncation is None
    assert tokenizer.backend_tokenizer.padding is None
    assert tokenizer.backend_tokenizer.encode(TEXT * 20).ids == wanted
    assert tokenizer(TEXT * 20)["input_ids"] == wanted
    tokenizer.save_pretrained(tmp_path / "saved")
    again = load_checkpoint(path).tokenizer.from_file(str(tmp_path / "saved" / "tokenizer.json"))
    assert (again.truncation, again.padding) == (None, None)


@torch.no_grad()
def test_the_dtype_is_that_of_the_computation(tmp_path: Path) -> None:
    path = write(tmp_path / "half", BASE, torch.float16)
    tokens = random_tokens(1, 19)
    wanted = load_checkpoint(path).model(tokens)[0]
    for chosen in ({}, {"dtype": "auto"}):
        model = AutoModelForCausalLM.from_pretrained(path, **chosen)
        assert model.dtype == torch.float32
        assert torch.equal(model(tokens).logits, wanted)
    for model in (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16),
        AutoModelForCausalLM.from_pretrained(path).to(torch.bfloat16),
    ):
        assert model.dtype == torch.bfloat16
        assert model.retnet.frequencies.dtype == torch.float64
        assert torch.equal(model.retnet.frequencies, RetNet(BASE).frequencies)
        decays = [b for name, b in model.retnet.named_buffers() if name.endswith("log_decay")]
        assert len(decays) == 2
        for decay in decays:
            assert torch.equal(decay, torch.tensor(BASE.gammas, dtype=torch.float64).log())
        error = (model(tokens).logits.float() - wanted).abs().max() / wanted.abs().max()
        assert 1e-4 < error < 0.1
        assert model.generate(tokens, max_new_tokens=3, eos_token_id=None).shape == (1, 22)


def test_a_fresh_model_has_the_retnets_initialisation() -> None:
    config = RetNetEdgeConfig(**msgspec.to_builtins(BASE))
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(config)
    torch.manual_seed(5)
    for a, b in zip(model.parameters(), RetNet(BASE).parameters(), strict=True):
        assert torch.equal(a, b)
    assert model.retnet.head.weight is model.retnet.embedding.weight


def test_more_tokens(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path, dirs_exist_ok=True)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(300)
    model.save_pretrained(tmp_path)
    again = load_checkpoint(tmp_path)
    assert again.config.vocab_size == 300
    tokens = random_tokens(1, 6)
    assert torch.equal(again.model(tokens)[0], model(tokens).logits)


def test_a_transformer_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "baseline", transformer_like(BASE))
    for auto in (AutoConfig, AutoModelForCausalLM, RetNetEdgeForCausalLM):
        refused(lambda auto=auto: auto.from_pretrained(path), str(path), "Transformer", "RetNet")


def test_damaged_directories_are_refused(base: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(base, tmp_path / "broken"))

    def load() -> None:
        AutoModelForCausalLM.from_pretrained(path)

    weights = load_file(path / "model.safetensors")
    lacking = {k: w for k, w in weights.items() if k != "blocks.1.ffn.out.weight"}
    save_file(lacking, path / "model.safetensors", metadata={"format": "pt"})
    refused(load, "model.safetensors", "lacks", "blocks.1.ffn.out.weight")
    save_file({**weights, "more": torch.ones(2)}, path / "model.safetensors")
    refused(load, "unknown weight more")
    wrong = {**weights, "final_norm.weight": torch.ones(25)}
    save_file(wrong, path / "model.safetensors")
    refused(load, "final_norm.weight", "[25]", "[24]")
    (path / "model.safetensors").unlink()
    refused(load, "model.safetensors")
    config = msgspec.json.decode((path / "config.json").read_bytes())
    (path / "config.json").write_bytes(msgspec.json.encode({**config, "gammas": [0.9, 1.5]}))
    refused(load, str(path), "gammas", "1.5")
