"""RetNet in transformers: the same module, the same directory, states as generate()'s cache.

Runs on transformers 5 (`make test`) and 4.57 (`make test-hf4`).
"""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from retnet_edge.config import ModelConfig, RetNetConfig, gammas_log_linear, transformer_like
from retnet_edge.errors import InputError
from retnet_edge.integrations.transformers import (
    RetNetCache,
    RetNetEdgeConfig,
    RetNetEdgeForCausalLM,
)
from retnet_edge.model.checkpoint import build_model, load_checkpoint, write_checkpoint
from retnet_edge.model.retnet import RetNet
from retnet_edge.tokenizer import train_tokenizer

SHIPPED = Path(__file__).resolve().parents[3] / "checkpoints" / "edge-15m"
TEXT = "the cat sat on the mat, and the dog sat by the door"
BASE = RetNetConfig(
    vocab_size=288,
    d_model=24,
    layers=2,
    heads=2,
    key_head_dim=6,
    value_head_dim=10,
    ffn_dim=20,
    gammas=gammas_log_linear(2),
    thetas=(1.0, 0.31, 0.02),
)
VARIANTS: dict[str, RetNetConfig] = {
    "base": BASE,
    "untied": msgspec.structs.replace(BASE, tie_embeddings=False),
    "mlp": msgspec.structs.replace(BASE, ffn="mlp", activation="gelu"),
    "affine": msgspec.structs.replace(BASE, head_norm_affine=True),
    "z_n": msgspec.structs.replace(
        BASE, head_norm_eps_rule="z_n", head_norm_eps=0.02, gammas=(0.9982, 1.0)
    ),
}


def write(folder: Path, config: ModelConfig, dtype: torch.dtype = torch.float32) -> Path:
    """A checkpoint with weights large enough that no two logits are close."""
    torch.manual_seed(3)
    model = build_model(config)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(1.0 + 0.2 * torch.randn(p.shape) if p.ndim == 1 else 0.4 * torch.randn(p.shape))
    folder.mkdir()
    write_checkpoint(folder, model, train_tokenizer([TEXT] * 3, 270), dtype=dtype)
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: write(folder / name.replace(" ", "-"), VARIANTS[name]) for name in VARIANTS}


@pytest.fixture
def base(checkpoints: dict[str, Path]) -> Path:
    return checkpoints["base"]


def exact(path: Path) -> tuple[RetNetEdgeForCausalLM, RetNet]:
    """The checkpoint in transformers and in ours, both float64."""
    net = load_checkpoint(path).model.double()
    assert isinstance(net, RetNet)
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64), net


def random_tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(1, 270, shape, generator=torch.Generator().manual_seed(seed))


def greedy(net: RetNet, prompt: Tensor, steps: int) -> list[int]:
    """Argmax after argmax, one recurrent step at a time; prompt [T]."""
    states, token, chosen = net.initial_states(1), prompt[:1], []
    for n in range(len(prompt) + steps - 1):
        logits, states = net(
            token[None], states=states, position=torch.tensor([n]), form="recurrent"
        )
        token = logits[0, -1].argmax()[None] if n + 1 >= len(prompt) else prompt[n + 1 : n + 2]
        if n + 1 >= len(prompt):
            chosen.append(int(token))
    return chosen


# --- the same module and the same directory


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


def test_generation_ends_at_the_end_of_text(base: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    assert model.generation_config.eos_token_id == 0
    model.generation_config.max_new_tokens = 3
    model.save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).generation_config.max_new_tokens == 3


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
        assert model.retnet.turns.dtype == torch.float64
        assert torch.equal(model.retnet.turns, RetNet(BASE).turns)
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


# --- generate()


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_greedy_is_the_recurrent_loop(name: str, checkpoints: dict[str, Path]) -> None:
    model, net = exact(checkpoints[name])
    for length in (1, 13, 131):
        prompt = random_tokens(length, seed=length)
        out = model.generate(prompt[None], max_new_tokens=15, do_sample=False, eos_token_id=None)
        assert out[0, :length].tolist() == prompt.tolist()
        assert out[0, length:].tolist() == greedy(net, prompt, 15)


def test_it_stops_at_the_end_of_text(base: Path) -> None:
    model, net = exact(base)
    prompt = random_tokens(5, seed=4)
    text = greedy(net, prompt, 12)
    end = text[4]
    wanted = text[: text.index(end) + 1]
    assert len(wanted) < 12
    out = model.generate(prompt[None], max_new_tokens=12, eos_token_id=end, pad_token_id=0)
    assert out[0, 5:].tolist() == wanted


def test_sampling_draws_from_the_softmax(base: Path) -> None:
    model, net = exact(base)
    prompt = random_tokens(1, 7)
    options: dict[str, Any] = {"do_sample": True, "top_k": 0, "eos_token_id": None}
    torch.manual_seed(11)
    found = model.generate(prompt, max_new_tokens=10, temperature=0.7, **options)
    torch.manual_seed(11)
    tokens = prompt
    for _ in range(10):  # the whole text again and again, without any state
        p = (net(tokens)[0][:, -1].float() / 0.7).softmax(-1)
        tokens = torch.cat((tokens, torch.multinomial(p, 1)), dim=1)
    assert found.tolist() == tokens.tolist()


@torch.no_grad()
def test_beam_search_finds_what_trying_everything_finds(base: Path) -> None:
    model, net = exact(base)
    prompt = random_tokens(2, 5)
    found = model.generate(
        prompt, max_new_tokens=2, num_beams=288, eos_token_id=None, length_penalty=0.0
    )
    first = net(prompt)[0][:, -1].log_softmax(-1)
    for row in range(2):
        both = torch.cat((prompt[row].expand(288, -1), torch.arange(288)[:, None]), dim=1)
        scores = first[row][:, None] + net(both)[0][:, -1].log_softmax(-1)
        best = int(scores.argmax())
        assert found[row, 5:].tolist() == [best // 288, best % 288]


def test_beams_carry_their_own_states(base: Path) -> None:
    model, _ = exact(base)
    prompt = random_tokens(2, 6)
    options: dict[str, Any] = {"max_new_tokens": 12, "num_beams": 4, "eos_token_id": None}
    with_states = model.generate(prompt, num_return_sequences=3, **options)
    without = model.generate(prompt, num_return_sequences=3, use_cache=False, **options)
    assert with_states.tolist() == without.tolist()
    assert len({tuple(row) for row in with_states.tolist()}) == 6


@torch.no_grad()
def test_generation_sees_one_token_at_a_time(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = exact(base)
    widths, real = [], model.retnet.features

    def spy(tokens: Tensor, *args: Any) -> Any:
        widths.append(tokens.shape[1])
        return real(tokens, *args)

    monkeypatch.setattr(model.retnet, "features", spy)
    model.generate(random_tokens(1, 9), max_new_tokens=5, eos_token_id=None)
    assert widths == [9, 1, 1, 1, 1]
    widths.clear()
    model.generate(random_tokens(1, 9), max_new_tokens=3, eos_token_id=None, use_cache=False)
    assert widths == [9, 10, 11]


@torch.no_grad()
def test_the_cache_does_not_grow_and_can_be_continued_twice(base: Path) -> None:
    model, net = exact(base)
    prompt = random_tokens(1, 9)
    first = model.generate(
        prompt, max_new_tokens=4, eos_token_id=None, return_dict_in_generate=True
    )
    cache = first.past_key_values
    assert isinstance(cache, RetNetCache)
    assert [list(s.shape) for s in cache.states] == [[1, 2, 6, 10]] * 2
    assert cache.get_seq_length() == 12  # the last token was not fed in yet
    kept = [s.clone() for s in cache.states]
    for seed in (1, 2):
        chat = torch.cat((first.sequences, random_tokens(1, 5, seed=seed)), dim=1)
        found = model.generate(chat, past_key_values=cache, max_new_tokens=6, eos_token_id=None)
        assert found[0, chat.shape[1] :].tolist() == greedy(net, chat[0], 6)
    for a, b in zip(cache.states, kept, strict=True):
        assert torch.equal(a, b)
    cache.batch_repeat_interleave(3)
    both = torch.cat((first.sequences.expand(3, -1), random_tokens(3, 2)), dim=1)
    found = model.generate(both, past_key_values=cache, max_new_tokens=4, eos_token_id=None)
    for row in range(3):
        assert found[row, both.shape[1] :].tolist() == greedy(net, both[row], 4)


# --- masks


LENGTHS = (4, 17, 9, 17, 1)


def padded(side: str, pad: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    rows = [random_tokens(length, seed=length + i) for i, length in enumerate(LENGTHS)]
    width = max(LENGTHS) + 2
    tokens, mask = torch.full((len(rows), width), pad), torch.zeros(len(rows), width).long()
    for i, row in enumerate(rows):
        place = slice(width - len(row), None) if side == "left" else slice(0, len(row))
        tokens[i, place], mask[i, place] = row, 1
    return tokens, mask, rows


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padded_rows_are_what_they_are_alone(
    side: str, name: str, checkpoints: dict[str, Path]
) -> None:
    model, net = exact(checkpoints[name])
    tokens, mask, rows = padded(side, pad=0)
    found = model(tokens, attention_mask=mask, use_cache=True)
    for i, row in enumerate(rows):
        logits, states = net(row[None], form="recurrent")
        torch.testing.assert_close(found.logits[i][mask[i] == 1], logits[0], rtol=0, atol=1e-10)
        for a, b in zip(found.past_key_values.states, states, strict=True):
            torch.testing.assert_close(a[i], b[0], rtol=0, atol=1e-10)
    assert found.past_key_values.position.tolist() == list(LENGTHS)
    other = model(torch.where(mask == 1, tokens, 99), attention_mask=mask, use_cache=True)
    assert torch.equal(found.logits, other.logits)
    alone = model(tokens, attention_mask=mask, use_cache=False).logits
    torch.testing.assert_close(alone[mask == 1], found.logits[mask == 1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["base", "z_n"])
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_a_padded_batch_writes_what_each_row_writes(
    side: str, name: str, checkpoints: dict[str, Path]
) -> None:
    model, net = exact(checkpoints[name])
    tokens, mask, rows = padded(side, pad=0)
    options: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 8, "eos_token_id": None}
    for how in ({}, {"use_cache": False}):
        found = model.generate(tokens, pad_token_id=0, **options, **how)
        for i, row in enumerate(rows):
            assert found[i, tokens.shape[1] :].tolist() == greedy(net, row, 8)


@torch.no_grad()
def test_a_masked_token_inside_a_text_is_not_there(base: Path) -> None:
    model, net = exact(base)
    tokens, mask = random_tokens(1, 11), torch.ones(1, 11).long()
    mask[0, 3:6] = 0
    found = model(tokens, attention_mask=mask)
    logits, states = net(tokens[mask == 1][None])
    torch.testing.assert_close(found.logits[mask == 1][None], logits, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.past_key_values.states[1], states[1], rtol=0, atol=1e-10)


@torch.no_grad()
def test_a_row_of_nothing_is_left_alone(base: Path) -> None:
    model, _ = exact(base)
    mask = torch.tensor([[1, 1, 1], [0, 0, 0]])
    found = model(random_tokens(2, 3), attention_mask=mask)
    assert torch.count_nonzero(found.past_key_values.states[0][1]) == 0
    assert torch.isfinite(found.logits).all()


# --- training


def test_the_loss_is_of_the_next_token(base: Path) -> None:
    model, net = exact(base)
    tokens, mask, _ = padded("right", pad=0)
    labels = torch.where(mask == 1, tokens, -100)
    wanted = F.cross_entropy(
        net(tokens)[0][:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100
    )
    model.train()
    found = model(tokens, attention_mask=mask, labels=labels)
    assert found.past_key_values is None
    torch.testing.assert_close(found.loss.float(), wanted, rtol=0, atol=1e-6)
    found.loss.backward()
    on_the_right = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    tokens, mask, _ = padded("left", pad=0)
    labels = torch.where(mask == 1, tokens, -100)
    labels[mask.cumsum(1) == 1] = -100  # what follows the padding is no prediction
    model(tokens, attention_mask=mask, labels=labels).loss.backward()
    for p, grad in zip(model.parameters(), on_the_right, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=0, atol=1e-6)


@torch.no_grad()
def test_logits_to_keep(base: Path) -> None:
    model, _ = exact(base)
    tokens = random_tokens(2, 13)
    full = model(tokens).logits
    for kept, wanted in ((1, full[:, -1:]), (4, full[:, -4:]), (0, full)):
        torch.testing.assert_close(model(tokens, logits_to_keep=kept).logits, wanted)
    some = torch.tensor([2, 5])
    torch.testing.assert_close(model(tokens, logits_to_keep=some).logits, full[:, some])
    assert isinstance(model(tokens, return_dict=False), tuple)


def test_dropout_is_a_matter_of_training(base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dropout=0.5)
    tokens = random_tokens(1, 13)
    assert torch.equal(model(tokens).logits, model(tokens).logits)
    model.train()
    assert not torch.equal(model(tokens).logits, model(tokens).logits)
    assert "dropout" not in model.config.to_json_string()


class Texts(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens = (torch.arange(12) * 7 + index % 4 * 3) % 200 + 1
        return {"input_ids": tokens, "labels": tokens.clone()}


def test_trainer_learns_and_resumes(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="Trainer needs it: pip install 'retnet-edge[hf]'")
    from transformers import Trainer, TrainingArguments

    def trained(out: Path, resume: Path | None = None) -> Any:
        arguments = TrainingArguments(
            output_dir=str(out),
            max_steps=12,
            save_steps=8,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            learning_rate=3e-3,
            report_to=[],
            use_cpu=True,
            logging_steps=4,
            disable_tqdm=True,
        )
        model = AutoModelForCausalLM.from_pretrained(base)
        trainer = Trainer(model, arguments, train_dataset=Texts(), eval_dataset=Texts())
        before = trainer.evaluate()["eval_loss"]
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        return model, before, trainer.evaluate()["eval_loss"]

    model, before, after = trained(tmp_path / "a")
    assert after < 0.7 * before
    halfway = tmp_path / "a" / "checkpoint-8"
    shutil.copyfile(base / "tokenizer.json", halfway / "tokenizer.json")
    assert load_checkpoint(halfway).config == BASE
    resumed, _, _ = trained(tmp_path / "b", resume=halfway)
    for a, b in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


# --- what is refused, in one sentence


def refused(call: Any, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)


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


def test_bad_inputs_are_refused(base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    tokens = random_tokens(2, 5)
    cache = model(tokens).past_key_values
    ones = torch.ones(2, 4)
    refused(lambda: model(tokens, attention_mask=ones), "attention_mask", "[2, 4]", "[2, 5]")
    refused(lambda: model(tokens[:1], past_key_values=cache), "2 rows", "has 1")
    refused(lambda: model(tokens, past_key_values=((ones,),)), "tuple", "RetNetCache")
    refused(lambda: model(tokens, labels=tokens, logits_to_keep=1), "labels", "logits_to_keep")
    for name, value in (("position_ids", tokens), ("output_hidden_states", True)):
        refused(lambda name=name, value=value: model(tokens, **{name: value}), name)
    refused(lambda: model(tokens[:, :0]), "input_ids", "no token")
    refused(lambda: RetNetEdgeConfig(vocab_size=5), "d_model")
    with pytest.raises(ValueError, match="assisted generation is not supported"):
        model.generate(tokens[:1], prompt_lookup_num_tokens=2, max_new_tokens=2)


# --- the shipped checkpoint


@torch.no_grad()
def test_the_shipped_checkpoint() -> None:
    model = AutoModelForCausalLM.from_pretrained(SHIPPED)
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    ours = load_checkpoint(SHIPPED)
    assert isinstance(ours.model, RetNet)
    tokens = tokenizer("My fellow citizens, the condition", return_tensors="pt")
    assert torch.equal(model(**tokens).logits, ours.model(tokens["input_ids"])[0])
    out = model.generate(**tokens, max_new_tokens=12, do_sample=False)
    wanted = greedy(ours.model, tokens["input_ids"][0], 12)
    assert out[0, tokens["input_ids"].shape[1] :].tolist() == wanted
    pairs = itertools.pairwise(wanted)
    assert any(a != b for a, b in pairs), "it repeats one token"
