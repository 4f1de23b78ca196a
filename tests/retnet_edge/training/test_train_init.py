"""Training that starts from a checkpoint: its weights, its configuration, its tokenizer."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import torch.nn.functional as F
from micro_training import OPTIONS, run, write_inputs

from retnet_edge.config import TransformerConfig, retnet_config
from retnet_edge.data.dataset import Shards
from retnet_edge.errors import InputError
from retnet_edge.model.checkpoint import build_model, load_checkpoint, write_checkpoint
from retnet_edge.training.evaluate import evaluate
from retnet_edge.training.metrics import read_metrics

FURTHER = msgspec.structs.replace(OPTIONS, steps=12, dropout=0.0)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def first(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a short run, with a tokenizer of its own size, that no test changes."""
    out = tmp_path_factory.mktemp("first") / "run"
    run(inputs, out, msgspec.structs.replace(FURTHER, lr=1e-2), vocab_size=300)
    return out / "checkpoint"


@pytest.fixture(scope="module")
def undisturbed(inputs: Path, first: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that goes on from `first`."""
    out = tmp_path_factory.mktemp("undisturbed")
    started(inputs, out, first)
    return out


def started(inputs: Path, out: Path, init: Path | None, **changes: Any) -> Any:
    """A run from `init`, whose other arguments name a model that is not the checkpoint's."""
    given = {"model": "edge-15m", "vocab_size": 8192, "options": FURTHER, "eval_every": 1}
    return run(inputs, out, **{**given, "init": init, **changes})


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_first_loss_is_the_checkpoints(undisturbed: Path, first: Path) -> None:
    """Before any update; weights that are not the checkpoint's begin elsewhere."""
    model = load_checkpoint(first).model
    shard = Shards(undisturbed / "data" / "train")
    block = torch.from_numpy(shard.batch(FURTHER.seed, 0, FURTHER.batch, FURTHER.seq_len))
    torch.manual_seed(FURTHER.seed)
    fresh = build_model(model.config)
    with torch.no_grad():
        wanted, other = (
            F.cross_entropy(m(block[:, :-1])[0].flatten(0, 1), block[:, 1:].flatten()).item()
            for m in (model, fresh)
        )
    rows = read_metrics(undisturbed / "metrics.jsonl")
    assert rows[0]["train_loss"] == pytest.approx(wanted, rel=1e-5)
    assert other > wanted + 0.5


def test_a_step_of_no_size_leaves_the_checkpoints_validation(
    inputs: Path, first: Path, tmp_path: Path
) -> None:
    options = msgspec.structs.replace(FURTHER, steps=1, lr=1e-30, weight_decay=0.0)
    found = started(inputs, tmp_path / "run", first, options=options)
    shard = Shards(tmp_path / "run" / "data" / "valid")
    model = load_checkpoint(first).model
    assert found == evaluate(model, shard, length=32, batch=2, autocast=False)
    name = "model.safetensors"
    assert sha256(tmp_path / "run" / "checkpoint" / name) == sha256(first / name)


def test_it_goes_on_learning(undisturbed: Path, first: Path) -> None:
    shard = Shards(undisturbed / "data" / "valid")
    before, after = (
        evaluate(load_checkpoint(path).model, shard, length=32, batch=2, autocast=False).loss
        for path in (first, undisturbed / "checkpoint")
    )
    assert after < before - 0.1


def test_configuration_and_tokenizer_are_the_checkpoints(undisturbed: Path, first: Path) -> None:
    """Whatever else is named: here, a preset and a vocabulary of 8192."""
    written = load_checkpoint(undisturbed / "checkpoint")
    source = load_checkpoint(first)
    assert written.config == source.config
    assert written.tokenizer.to_str() == source.tokenizer.to_str()
    assert source.tokenizer.get_vocab_size() == 300
    tokenizer = (first / "tokenizer.json").read_bytes()
    assert (undisturbed / "tokenizer.json").read_bytes() == tokenizer
    info = Shards(undisturbed / "data" / "train").info
    assert info.tokenizer_sha256 == hashlib.sha256(source.tokenizer.to_str().encode()).hexdigest()


def test_the_run_records_the_weights_that_it_began_with(
    undisturbed: Path, first: Path, inputs: Path
) -> None:
    def recorded(out: Path) -> Any:
        return msgspec.json.decode((out / "run.json").read_bytes())["options"]["init_sha256"]

    assert recorded(undisturbed) == sha256(first / "model.safetensors")
    assert recorded(first.parent) == ""


def interrupted(inputs: Path, out: Path, init: Path) -> None:
    """The run, stopped two steps after its second checkpoint was saved."""

    def interrupt(text: str) -> None:
        if text.startswith("step 12/12"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        started(inputs, out, init, say=interrupt)
    saved = sorted(path.name for path in (out / "steps").iterdir())
    assert saved == ["step-00000005", "step-00000010"]


def test_a_resumed_run_goes_on_from_its_own_weights(
    inputs: Path, first: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    interrupted(inputs, out, first)
    started(inputs, out, first)
    name = "checkpoint/model.safetensors"
    assert sha256(out / name) == sha256(undisturbed / name)


def test_resuming_from_other_weights_is_refused(inputs: Path, first: Path, tmp_path: Path) -> None:
    """Those of another checkpoint, of fresh ones, and of one that was changed in its place."""
    out, init = tmp_path / "run", tmp_path / "init"
    shutil.copytree(first, init)
    interrupted(inputs, out, init)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    sentence = r"run\.json: the run was begun with other options"
    with pytest.raises(InputError, match=sentence):
        run(inputs, out, FURTHER, eval_every=1)
    source = load_checkpoint(first)
    with torch.no_grad():
        next(source.model.parameters())[0, 0] += 0.5
    write_checkpoint(init, source.model, source.tokenizer)
    with pytest.raises(InputError, match=sentence):
        started(inputs, out, init)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    started(inputs, out, first)  # the same weights in another place
    assert (out / "checkpoint").is_dir()


def test_a_fresh_run_does_not_become_one_from_a_checkpoint(
    inputs: Path, first: Path, tmp_path: Path
) -> None:
    """One of the very same configuration."""
    out = tmp_path / "run"

    def interrupt(text: str) -> None:
        if text.startswith("step 8/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(inputs, out, FURTHER, say=interrupt, vocab_size=300)
    with pytest.raises(InputError, match=r"run\.json: the run was begun with other options"):
        started(inputs, out, first)


def test_a_checkpoint_in_float16_is_one_to_start_from(
    inputs: Path, first: Path, tmp_path: Path
) -> None:
    """As the shipped one is kept: its rounded weights are the first ones, in float32."""
    half = tmp_path / "half"
    half.mkdir()
    source = load_checkpoint(first)
    write_checkpoint(half, source.model, source.tokenizer, dtype=torch.float16)
    options = msgspec.structs.replace(FURTHER, steps=1, lr=1e-30, weight_decay=0.0)
    started(inputs, tmp_path / "run", half, options=options)
    found = dict(load_checkpoint(tmp_path / "run" / "checkpoint").model.named_parameters())
    for name, p in source.model.named_parameters():
        assert torch.equal(found[name], p.half().float()), name
        assert found[name].dtype == torch.float32


def test_the_baseline_goes_on_as_what_it_is(inputs: Path, tmp_path: Path) -> None:
    options = msgspec.structs.replace(FURTHER, steps=2)
    run(inputs, tmp_path / "first", options, architecture="transformer")
    init = tmp_path / "first" / "checkpoint"
    started(inputs, tmp_path / "run", init, options=options)
    config = load_checkpoint(tmp_path / "run" / "checkpoint").config
    assert isinstance(config, TransformerConfig)
    assert config == load_checkpoint(init).config


def test_a_checkpoint_that_does_not_open_leaves_nothing(
    inputs: Path, first: Path, tmp_path: Path
) -> None:
    out, init = tmp_path / "run", tmp_path / "init"
    with pytest.raises(InputError, match=r"init: no such checkpoint directory"):
        started(inputs, out, init)
    shutil.copytree(first, init)
    torch.manual_seed(0)
    other = build_model(retnet_config(vocab_size=384, d_model=16, layers=1, heads=2, ffn_dim=24))
    write_checkpoint(init, other, load_checkpoint(first).tokenizer)
    shutil.copyfile(first / "config.json", init / "config.json")
    with pytest.raises(InputError, match=r"model\.safetensors: lacks the weight"):
        started(inputs, out, init)
    assert not out.exists()
