"""Training over several processes is training in one: to 1e-5 in float32, resumed on any number.

Processes are started as torchrun starts them and speak over gloo.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from micro_training import OPTIONS, run, write_inputs
from safetensors.torch import load_file
from several_processes import launch

from retnet_edge.config import ModelConfig, decode_config, transformer_like
from retnet_edge.data.dataset import Shards
from retnet_edge.errors import InputError
from retnet_edge.model.context_parallel import ContextParallelGroup
from retnet_edge.training.distributed import World, processes
from retnet_edge.training.metrics import read_metrics
from retnet_edge.training.trainer import check_shares

TOLERANCE = 1e-5
"""Of losses, in nats, and of weights (issue 3)."""

ALONE = msgspec.structs.replace(OPTIONS, steps=12, batch=4, dropout=0.0)
SHARED = ["--steps", "12", "--batch", "4", "--seq-len", "32", "--lr", "3e-3", "--warmup", "4"]
CLI = ["-m", "retnet_edge.cli"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def alone(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process leaves, which trains without FSDP."""
    out = tmp_path_factory.mktemp("alone")
    run(inputs, out, ALONE, eval_every=1)
    return out


def train(
    inputs: Path, out: Path, ranks: int, *more: str, script: str | None = None, status: int = 0
) -> str:
    """`retnet-edge train` in so many processes, with ALONE's options; what it says."""
    done = launch(
        ranks,
        CLI if script is None else script,
        *("train", "--out", out, "--data", inputs / "train.txt", "--valid", inputs / "valid.txt"),
        *("--model", inputs / "config.json", "--vocab-size", "384", "--device", "cpu"),
        *("--eval-every", "1", "--save-every", "5", "--no-tensorboard", "--seed", "7"),
        *SHARED,
        *more,
        status=status,
    )
    return done.stdout + done.stderr


def differences(out: Path, other: Path) -> dict[str, float]:
    """The largest of each figure, over all steps and all weights."""
    rows, others = (read_metrics(path / "metrics.jsonl") for path in (out, other))
    assert [row["step"] for row in rows] == [row["step"] for row in others]
    assert len(rows) > 0
    found = {
        name: max(abs(a[name] - b[name]) for a, b in zip(rows, others, strict=True))
        for name in ("train_loss", "valid_loss", "gradient_norm")
    }
    a, b = (load_file(path / "checkpoint" / "model.safetensors") for path in (out, other))
    assert a.keys() == b.keys()
    found["weights"] = max((a[name] - b[name]).abs().max().item() for name in a)
    print(out.name, found)
    return found


def resumed_from_step_5(done: Path, out: Path) -> Path:
    """A copy of a complete run as it was when its checkpoint of step 5 was its newest."""
    shutil.copytree(done, out)
    shutil.rmtree(out / "checkpoint")
    shutil.rmtree(out / "steps" / "step-00000010")
    return out


def test_two_processes_train_as_one(inputs: Path, alone: Path, tmp_path: Path) -> None:
    said = train(inputs, tmp_path / "two", 2)
    assert said.count("step 12/12") == said.count("held-out perplexity") == 1
    assert max(differences(tmp_path / "two", alone).values()) < TOLERANCE
    written = (tmp_path / "two" / "steps" / "step-00000010").iterdir()
    assert {"__0_0.distcp", "__1_0.distcp"} < {path.name for path in written}
    assert (tmp_path / "two" / "run.json").read_bytes() == (alone / "run.json").read_bytes()

    out = resumed_from_step_5(tmp_path / "two", tmp_path / "resumed")
    run(inputs, out, ALONE, eval_every=1)
    assert max(differences(out, alone).values()) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "context"), [(4, 1), (2, 2), (4, 4), (4, 2)])
def test_ranks_and_spans_train_as_one(
    inputs: Path, alone: Path, tmp_path: Path, ranks: int, context: int
) -> None:
    out = tmp_path / f"{ranks}-{context}"
    train(inputs, out, ranks, "--context-parallel", str(context))
    assert max(differences(out, alone).values()) < TOLERANCE


@pytest.mark.slow
def test_spans_with_borders_and_recomputed_activations(inputs: Path, tmp_path: Path) -> None:
    options = msgspec.structs.replace(ALONE, separate_documents=True)
    run(inputs, tmp_path / "alone", options, eval_every=1)
    train(
        *(inputs, tmp_path / "spans", 4, "--context-parallel", "2"),
        *("--separate-documents", "--recompute"),
    )
    assert max(differences(tmp_path / "spans", tmp_path / "alone").values()) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["1", "0.5"])
def test_compiled_blocks_train_as_one(inputs: Path, alone: Path, tmp_path: Path, kept: str) -> None:
    options = ("--context-parallel", "2", "--compile", "--kept-activations", kept)
    train(inputs, tmp_path / "compiled", 2, *options)
    assert max(differences(tmp_path / "compiled", alone).values()) < TOLERANCE


@pytest.mark.slow
def test_the_baseline_over_ranks(inputs: Path, tmp_path: Path) -> None:
    run(inputs, tmp_path / "alone", ALONE, eval_every=1, architecture="transformer")
    train(inputs, tmp_path / "two", 2, "--arch", "transformer")
    assert max(differences(tmp_path / "two", tmp_path / "alone").values()) < TOLERANCE


@pytest.mark.slow
def test_bfloat16_parameters_train_nearly_as_float32(
    inputs: Path, alone: Path, tmp_path: Path
) -> None:
    """bfloat16 keeps 8 bits: each product is off by up to 2^-9, and the losses by far less."""
    train(inputs, tmp_path / "two", 2, "--precision", "bfloat16", "--context-parallel", "2")
    found = differences(tmp_path / "two", alone)
    assert 1e-5 < found["train_loss"] < 1e-2
    stored = load_file(tmp_path / "two" / "checkpoint" / "model.safetensors")
    assert any((x != x.bfloat16().float()).any() for x in stored.values())  # float32 where they lie


@pytest.mark.slow
def test_what_four_wrote_is_read_by_two_and_by_one_and_back(
    inputs: Path, alone: Path, tmp_path: Path
) -> None:
    train(inputs, tmp_path / "four", 4, "--context-parallel", "2")
    for ranks in (2, 4):
        out = resumed_from_step_5(tmp_path / "four", tmp_path / f"on-{ranks}")
        said = train(inputs, out, ranks)
        assert f"resuming from {out / 'steps' / 'step-00000005'}" in said
        assert max(differences(out, alone).values()) < TOLERANCE
    out = resumed_from_step_5(tmp_path / "four", tmp_path / "on-1")
    run(inputs, out, ALONE, eval_every=1)
    assert max(differences(out, alone).values()) < TOLERANCE
    out = resumed_from_step_5(alone, tmp_path / "from-1")
    train(inputs, out, 4, "--context-parallel", "4")
    assert max(differences(out, alone).values()) < TOLERANCE


KILLED = """
import os, signal, sys
from retnet_edge import cli
from retnet_edge.training import trainer
real = trainer.learning_rate
def rate(options, step):
    if step == 11 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return real(options, step)
trainer.learning_rate = rate
sys.exit(cli.main())
"""


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_run_which_then_resumes(
    inputs: Path, alone: Path, tmp_path: Path
) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    out = tmp_path / "run"
    train(inputs, out, 2, script=str(script), status=1)
    assert not (out / "checkpoint").exists()
    said = train(inputs, out, 4)
    assert "resuming from" in said
    assert max(differences(out, alone).values()) < TOLERANCE
    assert not list((out / "steps").glob(".step*"))


NOT_FINITE = """
import os, sys
from retnet_edge import cli
from retnet_edge.model.retnet import RetNet
real, calls = RetNet.loss, 0
def loss(self, tokens, **options):
    global calls
    calls += self.training
    value = real(self, tokens, **options)
    bad = self.training and calls == 3 and os.environ["RANK"] == "1"
    return value * float("nan") if bad else value
RetNet.loss = loss
sys.exit(cli.main())
"""


@pytest.mark.slow
def test_all_ranks_skip_a_batch_that_is_not_finite_on_one(inputs: Path, tmp_path: Path) -> None:
    script = tmp_path / "not_finite.py"
    script.write_text(NOT_FINITE)
    said = train(inputs, tmp_path / "run", 2, script=str(script))
    assert said.count("step 3: loss nan, gradient norm nan: this batch is not trained on") == 1
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["skipped"] for row in rows] == [0, 0, *[1] * 10]
    assert rows[2]["valid_loss"] == rows[1]["valid_loss"]
    assert rows[-1]["valid_loss"] < rows[0]["valid_loss"] - 0.3


@pytest.mark.slow
def test_only_the_first_rank_says_what_is_refused(inputs: Path, tmp_path: Path) -> None:
    said = train(inputs, tmp_path / "run", 2, "--batch", "3", status=1)
    sentence = "retnet-edge: --batch 3 cannot be shared by 2 processes"
    assert said.count("retnet-edge: ") == said.count(sentence) == 1
    assert not (tmp_path / "run").exists()


def config(inputs: Path) -> ModelConfig:
    return decode_config((inputs / "config.json").read_bytes(), "config.json")


@pytest.mark.parametrize(
    ("changes", "size", "context", "sentence"),
    [
        ({"batch": 6}, 4, 1, "--batch 6 cannot be shared by 4 processes"),
        ({"batch": 3}, 4, 2, "--batch 3 cannot be shared by 2 processes or groups"),
        ({"seq_len": 30}, 4, 4, "--seq-len 30 cannot be cut into 4 equal spans"),
        ({"int8_aware": 1.0}, 2, 1, "int8-aware training runs in a single process"),
    ],
)
def test_what_the_processes_cannot_share_is_refused(
    inputs: Path, changes: dict[str, Any], size: int, context: int, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        check_shares(
            config(inputs), msgspec.structs.replace(ALONE, **changes), world(size, context)
        )
    check_shares(config(inputs), ALONE, world(size, context))


def test_the_baseline_has_no_context_parallelism(inputs: Path) -> None:
    baseline = transformer_like(config(inputs))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="--context-parallel is for RetNets"):
        check_shares(baseline, ALONE, world(2, 2))
    check_shares(baseline, ALONE, world(2, 1))


def world(size: int, context: int, rank: int = 0) -> World:
    """A rank's place, without the connections."""
    shared = ContextParallelGroup("", rank % context, context) if context > 1 else None
    return World("cpu", rank, size, shared)


def test_spans_in_a_single_process_are_refused(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--context-parallel 2 must divide the number of proc"):
        run(inputs, tmp_path / "run", context_parallel=2)
    assert not (tmp_path / "run").exists()


def test_a_numbered_gpu_for_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(InputError, match="--device cuda:1: each process takes a GPU"),
        processes("cuda:1"),
    ):
        pass


@pytest.mark.parametrize(("size", "context"), [(1, 1), (2, 1), (4, 1), (4, 2), (4, 4)])
def test_the_order_of_the_data_does_not_depend_on_the_ranks(
    alone: Path, size: int, context: int
) -> None:
    shard = Shards(alone / "data" / "train")
    for step in (0, 100):
        wanted = shard.batch(7, step, 4, 32)
        parts = [
            shard.batch(7, step, 4, 32, world(size, context, rank).share(4))
            for rank in range(0, size, context)
        ]
        assert np.array_equal(np.concatenate(parts), wanted)
        for rank in range(size):  # ranks of a group read the same rows
            first = rank // context * context
            assert world(size, context, rank).share(4) == world(size, context, first).share(4)


def test_rows_that_do_not_divide_are_all_shared_out() -> None:
    for rows in range(9):
        shares = [world(4, 1, rank).share(rows) for rank in range(4)]
        assert [i for share in shares for i in share] == list(range(rows))


def test_spans_cover_the_sequence() -> None:
    x = torch.arange(2 * 10).reshape(2, 10)
    parts = [ContextParallelGroup("", rank, 4).span(x) for rank in range(4)]
    assert torch.equal(torch.cat(parts, dim=1), x)
    assert [part.shape[1] for part in parts] == [3, 3, 3, 1]
