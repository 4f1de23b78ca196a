"""Training: it learns, it resumes bit for bit, and it says so when it does not work."""

from __future__ import annotations

import importlib
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import micro_training
import msgspec
import numpy as np
import pytest
import torch
from micro_training import OPTIONS, run, write_inputs

from retnet_edge.config import TransformerConfig, encode_config, retnet_config
from retnet_edge.data.dataset import Shards
from retnet_edge.errors import CheckFailed, InputError
from retnet_edge.model.checkpoint import build_model, load_checkpoint
from retnet_edge.model.retnet import Form, RetNet
from retnet_edge.training.evaluate import evaluate
from retnet_edge.training.metrics import read_metrics
from retnet_edge.training.trainer import TrainOptions, learning_rate, make_optimizer

EVALUATED = [4, 8, 12, 16, 20, 24]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def undisturbed(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    run(inputs, out)
    return out


def weights(out: Path) -> bytes:
    return (out / "checkpoint" / "model.safetensors").read_bytes()


def killed(inputs: Path, out: Path, moment: str) -> None:
    """The run in a child process, which dies of SIGKILL at `moment`."""
    child = subprocess.run(
        [sys.executable, micro_training.__file__, str(inputs), str(out), moment],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert not (out / "checkpoint").exists()


def steps_saved(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "steps").glob("step-*"))


def test_the_loss_falls_below_that_of_single_tokens(inputs: Path, tmp_path: Path) -> None:
    """Better than the best guess without context: the model has learnt what follows what."""
    options = msgspec.structs.replace(OPTIONS, steps=120, lr=1e-2, dropout=0.0, batch=4)
    result = run(inputs, tmp_path / "run", options, eval_every=40, save_every=1_000)
    losses = [row["valid_loss"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == result.loss
    tokens = Shards(tmp_path / "run" / "data" / "valid").tokens()
    counts = np.bincount(tokens)
    shares = counts[counts > 0] / len(tokens)
    assert result.loss < 0.6 * -(shares * np.log(shares)).sum()


def test_what_a_run_leaves(undisturbed: Path, inputs: Path) -> None:
    checkpoint = load_checkpoint(undisturbed / "checkpoint")
    assert encode_config(checkpoint.config) == (inputs / "config.json").read_bytes()
    assert steps_saved(undisturbed) == ["step-00000015", "step-00000020"]
    rows = read_metrics(undisturbed / "metrics.jsonl")
    assert [row["step"] for row in rows] == EVALUATED
    assert {"train_loss", "valid_loss", "valid_perplexity", "valid_bits_per_byte",
            "learning_rate", "gradient_norm", "tokens_per_second"} <= rows[0].keys()  # fmt: skip
    for row in rows:
        assert row["valid_perplexity"] == pytest.approx(math.exp(row["valid_loss"]))
        assert row["learning_rate"] == learning_rate(OPTIONS, row["step"] - 1)
    assert not list(undisturbed.rglob("*.partial"))


def test_the_same_run_twice_is_the_same_to_the_bit(
    undisturbed: Path, inputs: Path, tmp_path: Path
) -> None:
    run(inputs, tmp_path / "again")
    assert weights(tmp_path / "again") == weights(undisturbed)
    other = msgspec.structs.replace(OPTIONS, seed=8)
    run(inputs, tmp_path / "other", other)
    assert weights(tmp_path / "other") != weights(undisturbed)


@pytest.mark.parametrize(
    ("moment", "saved"),
    [
        ("before the first checkpoint", []),
        ("between checkpoints", ["step-00000005", "step-00000010"]),
        ("while writing a checkpoint", ["step-00000005", "step-00000010"]),
        ("while writing the result", ["step-00000015", "step-00000020"]),
    ],
)
def test_a_killed_and_resumed_run_ends_with_the_same_bits(
    undisturbed: Path, inputs: Path, tmp_path: Path, moment: str, saved: list[str]
) -> None:
    """With dropout on, weights, optimizer and randomness all have to come back exactly."""
    out = tmp_path / "run"
    killed(inputs, out, moment)
    assert steps_saved(out) == saved
    said: list[str] = []
    result = run(inputs, out, say=said.append)
    resumed = [line for line in said if line.startswith("resuming")]
    assert resumed == ([f"resuming from {out / 'steps' / saved[-1]}"] if saved else [])
    assert weights(out) == weights(undisturbed)
    rows, wanted = (read_metrics(x / "metrics.jsonl") for x in (out, undisturbed))
    assert [row["step"] for row in rows] == EVALUATED
    for row, other in zip(rows, wanted, strict=True):
        del row["tokens_per_second"], other["tokens_per_second"]
        assert row == other
    assert result.loss == rows[-1]["valid_loss"]


def test_a_line_cut_short_by_a_kill_is_dropped(
    undisturbed: Path, inputs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    killed(inputs, out, "between checkpoints")
    with (out / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step":16,"train_l')
    run(inputs, out)
    assert [row["step"] for row in read_metrics(out / "metrics.jsonl")] == EVALUATED
    assert weights(out) == weights(undisturbed)


@pytest.mark.parametrize(
    "changes", [{"lr": 1e-4}, {"seed": 1}, {"steps": 30}, {"form": "recurrent"}]
)
def test_resuming_with_other_options_is_refused(
    inputs: Path, tmp_path: Path, changes: dict[str, float]
) -> None:
    out = tmp_path / "run"
    first = msgspec.structs.replace(OPTIONS, steps=6)
    with pytest.raises(KeyboardInterrupt):
        run(inputs, out, first, say=_interrupt)
    before = {path: path.read_bytes() for path in (out / "steps").rglob("*.distcp")}
    assert before
    with pytest.raises(InputError, match=r"run\.json: the run was begun with other options"):
        run(inputs, out, msgspec.structs.replace(first, **changes))
    assert {path: path.read_bytes() for path in before} == before


def _interrupt(text: str) -> None:
    if text.startswith("step 6/6"):
        raise KeyboardInterrupt


def test_a_complete_run_is_not_run_again(undisturbed: Path, inputs: Path) -> None:
    before = weights(undisturbed)
    with pytest.raises(InputError, match="the run is complete; give another --out"):
        run(inputs, undisturbed)
    assert weights(undisturbed) == before


def test_the_three_forms_train_alike(inputs: Path, tmp_path: Path) -> None:
    """The loss curve of 20 steps, to 1e-4."""
    curves = []
    forms: tuple[Form, ...] = ("parallel", "chunkwise", "recurrent")
    for form in forms:
        options = msgspec.structs.replace(
            OPTIONS, steps=20, batch=1, seq_len=160, dropout=0.0, form=form
        )
        run(inputs, tmp_path / form, options, eval_every=1, save_every=100)
        rows = read_metrics(tmp_path / form / "metrics.jsonl")
        assert len(rows) == 20
        curves.append([row["train_loss"] for row in rows])
    assert curves[0][-1] < curves[0][0] - 0.1
    assert np.abs(np.array(curves) - curves[0]).max() <= 1e-4


def test_bits_per_byte_by_an_independent_formula(undisturbed: Path) -> None:
    """log₂ of each token's probability, one recurrent step after the other, in float64."""
    checkpoint = load_checkpoint(undisturbed / "checkpoint")
    shard = Shards(undisturbed / "data" / "valid")
    tokens = shard.tokens()
    found = evaluate(checkpoint.model, shard, length=50, batch=3, autocast=False)
    model = checkpoint.model.to(torch.float64)
    bits, predictions = 0.0, 0
    for start in range(0, len(tokens) - 1, 50):
        states = None
        for n in range(start, min(start + 50, len(tokens) - 1)):
            with torch.no_grad():
                logits, states = model(
                    torch.tensor([[int(tokens[n])]]),
                    states=states,
                    position=torch.tensor([n - start]),
                    form="recurrent",
                )
            row = logits[0, 0].numpy()
            chances = np.exp(row - row.max())
            bits -= math.log2(chances[int(tokens[n + 1])] / chances.sum())
            predictions += 1
    text = checkpoint.tokenizer.decode(tokens.tolist(), skip_special_tokens=True)
    assert found.tokens == predictions == len(tokens) - 1
    assert found.text_bytes == len(text.encode())
    assert found.bits_per_byte == pytest.approx(bits / len(text.encode()), rel=1e-5)
    assert found.perplexity == pytest.approx(2.0 ** (bits / predictions), rel=1e-5)


def test_evaluation_does_not_depend_on_the_batch(undisturbed: Path) -> None:
    model = load_checkpoint(undisturbed / "checkpoint").model
    shard = Shards(undisturbed / "data" / "valid")
    one, many = (
        evaluate(model, shard, length=37, batch=batch, autocast=False) for batch in (1, 64)
    )
    assert one.tokens == many.tokens
    assert one.nats == pytest.approx(many.nats, rel=1e-6)
    model.train()
    evaluate(model, shard, length=37, batch=64, autocast=False)
    assert model.training


def test_a_loss_that_is_not_finite_fails_the_check(inputs: Path, tmp_path: Path) -> None:
    options = msgspec.structs.replace(OPTIONS, lr=1e30, warmup=0)
    with pytest.raises(
        CheckFailed, match=r"not finite in 10 steps in a row up to step \d+; lower --lr"
    ):
        run(inputs, tmp_path / "run", options)
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_a_batch_that_is_not_finite_is_skipped_counted_and_reported(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bad step in eight leaves weights and optimizer as they were before it."""
    real, calls = RetNet.loss, 0
    seen: list[list[torch.Tensor]] = []

    def loss(self: RetNet, tokens: torch.Tensor, **options: Any) -> torch.Tensor:
        nonlocal calls
        if not self.training:
            return real(self, tokens, **options)
        calls += 1
        seen.append([p.detach().clone() for p in self.parameters()])
        value = real(self, tokens, **options)
        return value * float("nan") if calls == 6 else value

    monkeypatch.setattr(RetNet, "loss", loss)
    said: list[str] = []
    options = msgspec.structs.replace(OPTIONS, steps=8)
    run(inputs, tmp_path / "run", options, say=said.append)
    assert all(torch.equal(a, b) for a, b in zip(seen[5], seen[6], strict=True))
    for before, after in ((4, 5), (6, 7)):
        assert not torch.equal(seen[before][0], seen[after][0])
    assert (
        "step 6: loss nan, gradient norm nan: this batch is not trained on (1 skipped so far)"
        in said
    )
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [(row["step"], row["skipped"]) for row in rows] == [(4, 0), (8, 1)]


def test_recomputing_activations_changes_no_bit(
    undisturbed: Path, inputs: Path, tmp_path: Path
) -> None:
    run(inputs, tmp_path / "run", msgspec.structs.replace(OPTIONS, recompute=True))
    assert weights(tmp_path / "run") == weights(undisturbed)


@pytest.mark.parametrize("architecture", ["retnet", "transformer"])
def test_separate_documents_train_unlike_joined_ones(
    undisturbed: Path, inputs: Path, tmp_path: Path, architecture: str
) -> None:
    options = msgspec.structs.replace(OPTIONS, separate_documents=True, seq_len=256, batch=1)
    result = run(inputs, tmp_path / "run", options, architecture=architecture)
    assert result.loss < math.log(384) - 0.3


def test_damage_done_by_the_last_update_fails_the_check(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No training loss has seen those weights; the validation has."""

    def step(self: torch.optim.AdamW) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.data.fill_(float("nan"))

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    options = msgspec.structs.replace(OPTIONS, steps=1)
    with pytest.raises(CheckFailed, match="the loss is nan at step 1; lower --lr"):
        run(inputs, tmp_path / "run", options)
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_tensorboard_events_hold_the_metrics(inputs: Path, tmp_path: Path) -> None:
    board: Any = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    options = msgspec.structs.replace(OPTIONS, steps=8)
    run(inputs, tmp_path / "run", options, tensorboard=True)
    files = list((tmp_path / "run" / "tensorboard").glob("events.out.tfevents.*"))
    assert len(files) == 1
    events = board.EventAccumulator(str(files[0]))
    events.Reload()
    scalars = events.Scalars("valid_loss")
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [e.step for e in scalars] == [row["step"] for row in rows] == [4, 8]
    assert [e.value for e in scalars] == pytest.approx([row["valid_loss"] for row in rows])


def test_the_baseline_trains_by_the_same_trainer(inputs: Path, tmp_path: Path) -> None:
    result = run(inputs, tmp_path / "run", architecture="transformer")
    config = load_checkpoint(tmp_path / "run" / "checkpoint").config
    assert isinstance(config, TransformerConfig)
    assert (config.d_model, config.layers) == (32, 2)
    assert result.loss < math.log(384) - 0.3


def test_learning_rate_schedule() -> None:
    options = TrainOptions(steps=100, batch=1, seq_len=8, lr=1.0, warmup=10, final_lr_ratio=0.1)
    rates = [learning_rate(options, step) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_weight_decay_on_matrices_only() -> None:
    model = build_model(retnet_config(vocab_size=300, d_model=16, layers=1, heads=2, ffn_dim=24))
    optimizer = make_optimizer(dict(model.named_parameters()), OPTIONS).adamw
    decayed = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert len(decayed) == len(list(model.parameters()))
    for p in model.parameters():
        assert decayed[id(p)] == (0.1 if p.ndim == 2 else 0.0)


def test_a_tokenizer_too_large_for_the_configuration(inputs: Path, tmp_path: Path) -> None:
    config = retnet_config(vocab_size=300, d_model=32, layers=1, heads=2, ffn_dim=48)
    path = tmp_path / "small.json"
    path.write_bytes(encode_config(config))
    with pytest.raises(InputError, match=r"small\.json: vocab_size is 300; .* has 3\d\d tokens"):
        run(inputs, tmp_path / "run", model=str(path))


def test_text_too_short_for_the_sequences(inputs: Path, tmp_path: Path) -> None:
    options = msgspec.structs.replace(OPTIONS, seq_len=100_000)
    with pytest.raises(InputError, match="too few for sequences of 100000"):
        run(inputs, tmp_path / "run", options)


def test_bad_inputs_of_train(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json: cannot be read"):
        run(inputs, tmp_path / "a", model=str(tmp_path / "none.json"))
    with pytest.raises(InputError, match="unknown preset 'huge'"):
        run(inputs, tmp_path / "b", model="huge")
    with pytest.raises(InputError, match="device 'quantum'"):
        run(inputs, tmp_path / "c", device="quantum")
    with pytest.raises(InputError, match=r"none\.tok: no such tokenizer file"):
        run(inputs, tmp_path / "d", tokenizer=tmp_path / "none.tok")
