"""An import whose texts end at `</s>`, in a vocabulary that is padded, through every room."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer

import retnet_edge
import retnet_edge.hf
from retnet_edge.data.contexts import text_contexts
from retnet_edge.data.dataset import Shards
from retnet_edge.errors import InputError
from retnet_edge.export.export import export
from retnet_edge.importing.checkpoint import import_checkpoint
from retnet_edge.model.checkpoint import load_checkpoint
from retnet_edge.quantize.quantize import quantize
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.text.model import Model
from retnet_edge.training.train import train
from retnet_edge.training.trainer import TrainOptions

FLA = Path(__file__).parents[2] / "data" / "import" / "fla"
END, BEGIN, PADDING, TURN = 0, 1, 2, 3
PADDED = 512


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Byte-level, whose first token is `</s>`."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=277,
        special_tokens=["</s>", "<s>", "<pad>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["the cat sat on the mat, and the dog sat by the door"] * 3, trainer)
    assert made.get_vocab_size() == 277
    return made


def source(folder: Path, tokenizer: Tokenizer, *, tied: bool, rows: int = PADDED) -> Path:
    """fla's model with another vocabulary, for which every token is as likely as any other."""
    shutil.copytree(FLA, folder)
    weights = load_file(folder / "model.safetensors")
    torch.manual_seed(0)
    weights["model.embeddings.weight"] = torch.randn(rows, 48)
    weights["lm_head.weight"] = torch.randn(rows, 48)
    weights["model.norm.weight"] = torch.zeros(48)
    if tied:
        del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors")
    fields = json.loads((folder / "config.json").read_bytes())
    fields |= {"tie_word_embeddings": tied, "vocab_size": rows, "eos_token_id": END}
    fields |= {"bos_token_id": BEGIN, "pad_token_id": PADDING}
    (folder / "config.json").write_text(json.dumps(fields))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session", params=["tied", "untied"])
def checkpoint(
    request: pytest.FixtureRequest, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    made = source(folder / "source", tokenizer, tied=request.param == "tied")
    (made / "generation_config.json").write_text(json.dumps({"eos_token_id": [END, TURN]}))
    return import_checkpoint(made, folder / "checkpoint", say=lambda text: None)


@pytest.fixture(scope="session")
def bundle(checkpoint: Path) -> Path:
    return export(checkpoint, checkpoint.parent / "fp32.edge", say=lambda text: None)


def test_rows_of_no_token_are_cut(checkpoint: Path) -> None:
    found, given = load_checkpoint(checkpoint), checkpoint.parent / "source"
    theirs = load_file(given / "model.safetensors")
    assert found.config.vocab_size == 277
    assert torch.equal(found.model.embedding.weight, theirs["model.embeddings.weight"][:277])
    head = theirs.get("lm_head.weight", theirs["model.embeddings.weight"])
    assert torch.equal(found.model.head.weight, head[:277])


def test_the_bundle_knows_the_ends_and_draws_no_padding(bundle: Path, tmp_path: Path) -> None:
    eight = quantize(bundle, tmp_path / "int8.edge", recipe="int8", say=lambda text: None)
    for path in (bundle, eight):
        spec = Bundle.open(path).manifest.tokenizer
        assert spec.ends == (END, TURN)
        assert (spec.begin_of_text, spec.padding) == (BEGIN, PADDING)
        model = retnet_edge.load(path, threads=1)
        assert list(model.generate("the cat", max_tokens=9, temperature=0)) == []  # END at once
        before = model.position
        drawn = ids_drawn(model, 300)
        assert max(drawn) < 277
        assert END not in drawn
        assert TURN not in drawn
        assert model.position == before + len(model.tokenizer.encode(" a").ids) + len(drawn)


def ids_drawn(model: Model, count: int) -> list[int]:
    """Token ids that a session is fed, all equally likely, up to an end of text."""
    session, fed = model.session, []
    step = session.step
    session.step = lambda token: (fed.append(token), step(token))[1]  # type: ignore[method-assign]
    list(model.generate(" a", max_tokens=count, temperature=1, top_k=0, top_p=1, seed=3))
    session.step = step  # type: ignore[method-assign]
    assert fed
    return fed


def test_transformers_know_them(checkpoint: Path) -> None:
    words = AutoTokenizer.from_pretrained(checkpoint)
    assert (words.eos_token, words.eos_token_id) == ("</s>", END)
    assert (words.bos_token_id, words.pad_token_id) == (BEGIN, PADDING)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert model.generation_config.eos_token_id == [END, TURN]
    assert model.generation_config.pad_token_id == PADDING
    out = model.generate(torch.tensor([[70, 71]]), max_new_tokens=5, do_sample=False)
    assert out.tolist() == [[70, 71, END]]


def test_the_tokenizer_in_the_hubs_cache(checkpoint: Path, tmp_path: Path) -> None:
    revision = "0" * 40
    repository = tmp_path / "models--some--retnet"
    shutil.copytree(checkpoint, repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    words = AutoTokenizer.from_pretrained("some/retnet", cache_dir=tmp_path, local_files_only=True)
    assert (words.eos_token, words.pad_token) == ("</s>", "<pad>")


def test_training_goes_on_with_them(checkpoint: Path, tmp_path: Path) -> None:
    """Documents are joined by the model's own end, and the next checkpoint knows it."""
    text = tmp_path / "text.txt"
    text.write_text("\n<|endoftext|>\n".join(["the cat sat on the mat. " * 9] * 9))
    train(
        out=tmp_path / "run",
        data=[text],
        valid=text,
        options=TrainOptions(steps=1, batch=2, seq_len=16, separate_documents=True),
        init=checkpoint,
        device="cpu",
        tensorboard=False,
        say=lambda line: None,
    )
    shards = Shards(tmp_path / "run" / "data" / "train")
    assert shards.info.end_of_text == END
    raw = (tmp_path / "run" / "data" / "train" / "shard-00000.bin").read_bytes()
    ids = [int.from_bytes(raw[i : i + 2], "little") for i in range(0, len(raw), 2)]
    assert ids.count(END) == 9
    again = load_checkpoint(tmp_path / "run" / "checkpoint")
    assert again.special == load_checkpoint(checkpoint).special
    (contexts,) = text_contexts(again.tokenizer, text, len(ids), len(ids), end=again.special.end)
    assert contexts.tolist() == ids


def test_a_tokenizer_of_another_model(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Rows beyond any padding, and ids beyond the rows."""
    folder = source(tmp_path / "many", tokenizer, tied=True, rows=1_025)
    with pytest.raises(InputError, match=r"ids up to 276 .* vocabulary of 1025; .* at most 1024"):
        import_checkpoint(folder, tmp_path / "out")
    gap = json.loads(tokenizer.to_str())
    gap["model"]["vocab"]["far"] = 600
    folder = source(tmp_path / "gap", tokenizer, tied=True, rows=512)
    (folder / "tokenizer.json").write_text(json.dumps(gap))
    with pytest.raises(InputError, match=r"278 tokens with ids up to 600 do not fit .* of 512"):
        import_checkpoint(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_names_that_compiling_and_parallelism_change(
    prefix: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = source(tmp_path / "source", tokenizer, tied=False)
    weights = load_file(folder / "model.safetensors")
    save_file({prefix + name: w for name, w in weights.items()}, folder / "model.safetensors")
    out = import_checkpoint(folder, tmp_path / "out", say=lambda text: None)
    ours = load_file(out / "model.safetensors")
    wrapped = {name.replace("blocks.0.", "blocks.0._orig_mod."): w for name, w in ours.items()}
    save_file(wrapped, out / "model.safetensors")
    model = load_checkpoint(out).model
    assert torch.equal(model.embedding.weight, weights["model.embeddings.weight"][:277])
    both = {**wrapped, **{name: weight.clone() for name, weight in ours.items()}}
    save_file(both, out / "model.safetensors")
    with pytest.raises(InputError, match=r"are one weight, blocks\.0\."):
        load_checkpoint(out)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("expand_v", 1e308),
        ("expand_k", -1.0),
        ("hidden_size", 10**9),
        ("hidden_ratio", 10**300),
        ("intermediate_size", -5),
        ("num_heads", 10**9),
        ("num_kv_heads", 0),
        ("num_hidden_layers", 10**9),
        ("norm_eps", 2.0),
    ],
)
def test_numbers_out_of_any_range(
    field: str, value: Any, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = source(tmp_path / "source", tokenizer, tied=False)
    fields = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps({**fields, field: value}))
    with pytest.raises(InputError, match=rf"config\.json: .*{field}"):
        import_checkpoint(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def odd_pickles() -> dict[str, Any]:
    spread = torch.zeros(1).expand(1 << 20, 1 << 20)
    return {
        "is empty": b"",
        "cannot be read": b"\x80\x02}q\x00(K\x01",
        "1 is not the name of a tensor": {1: torch.zeros(2)},
        "has more numbers than the file holds": {"model.embeddings.weight": spread},
        "holds no weights by name": [torch.zeros(2)],
    }


@pytest.mark.parametrize("said", odd_pickles())
def test_odd_pickles(said: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = source(tmp_path / "source", tokenizer, tied=False)
    (folder / "model.safetensors").unlink()
    content = odd_pickles()[said]
    if isinstance(content, bytes):
        (folder / "model.bin").write_bytes(content)
    else:
        torch.save(content, folder / "model.bin")
    with pytest.raises(InputError, match=rf"model\.bin: .*{said}") as caught:
        import_checkpoint(folder, tmp_path / "out")
    assert "\n" not in str(caught.value)
