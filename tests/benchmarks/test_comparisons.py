"""The queue of comparison runs: it trains, resumes, merges, and does not start what cannot end."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from comparison_samples import record, records

from benchmarks.comparisons.__main__ import ROOT, closest_pair, missing
from benchmarks.comparisons.ablations import builder
from benchmarks.comparisons.queue import expected_seconds
from benchmarks.comparisons.records import Failed, Record, read_folder, read_records, write_records
from benchmarks.comparisons.runs import (
    SIZES,
    SMOKE_SIZES,
    Run,
    close_candidates,
    config_of,
    parameters_of,
    planned,
)
from retnet_edge.config import RetNetConfig, TransformerConfig, retnet_config
from retnet_edge.errors import InputError
from retnet_edge.model.checkpoint import build_model
from retnet_edge.model.retnet import CHUNKWISE, MultiScaleRetention, PositionTerms, RetNet
from retnet_edge.model.rotary import cos_sin, frequencies
from retnet_edge.tokenizer import train_tokenizer

WORDS = ["the", "a", "cat", "dog", "river", "sees", "follows", "paints", "bread", "at", "night"]


def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.comparisons",
            *(str(argument) for argument in arguments),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    rng = random.Random(0)
    for name, words in (("train", 20_000), ("valid", 600), ("heldout", 700)):
        (folder / f"{name}.txt").write_text(" ".join(rng.choices(WORDS, k=words)))
    train_tokenizer([(folder / "train.txt").read_text()], 300).save(str(folder / "tokenizer.json"))
    return folder


def run_arguments(inputs: Path, work: Path, *more: str) -> list[str | Path]:
    texts = [("--train", "train.txt"), ("--valid", "valid.txt"), ("--heldout", "heldout.txt")]
    return [
        "run",
        *(part for flag, name in texts for part in (flag, inputs / name)),
        *("--tokenizer", inputs / "tokenizer.json", "--work", work / "work"),
        *("--results", work / "results", "--out", work / "out", "--device", "cpu"),
        *("--smoke", "--parallel", "2", *more),
    ]


@pytest.fixture(scope="module")
def trained(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a queue of two runs has ended."""
    work = tmp_path_factory.mktemp("queue")
    done = call(*run_arguments(inputs, work, "--only", "retnet-10m,transformer-10m"))
    assert done.returncode == 0, done.stdout + done.stderr
    return work


def test_two_runs_of_the_queue(trained: Path, inputs: Path) -> None:
    found = read_folder(trained / "results")
    assert list(found) == ["retnet-10m", "transformer-10m"]
    for name, one in found.items():
        assert one.about.options["steps"] == 4
        assert one.about.options["batch"] * one.about.options["seq_len"] == 256
        assert [line.tokens for line in one.curve] == [256, 512, 768, 1024]
        assert one.result is not None
        assert one.result.tokens == 1024
        assert one.result.wall_seconds > 0
        # bits a byte of the held-out text from the loss a token, counted here
        text = (inputs / "heldout.txt").read_bytes()
        bits = one.result.bits_per_byte * len(text)
        config = config_of(Run(name.removesuffix("-10m"), "10m"), 384, smoke=True)  # type: ignore[arg-type]
        assert one.about.parameters == sum(p.numel() for p in build_model(config).parameters())
        tokens = bits * torch.log(torch.tensor(2.0)).item() / one.result.loss
        assert tokens == pytest.approx(round(tokens), abs=1e-2)


def test_both_models_saw_the_same_tokens_with_the_same_options(trained: Path) -> None:
    one, other = read_folder(trained / "results").values()
    assert one.about.options == other.about.options
    assert one.about.train_tokens == other.about.train_tokens


def test_the_combined_file_comes_apart_into_the_same_files(trained: Path, tmp_path: Path) -> None:
    combined = trained / "out" / "comparisons.jsonl"
    done = call("merge", combined, "--results", tmp_path / "apart")
    assert done.stdout.split() == ["retnet-10m", "transformer-10m"]
    for path in (trained / "results").iterdir():
        assert (tmp_path / "apart" / path.name).read_bytes() == path.read_bytes()


def test_a_queue_called_again_goes_on(trained: Path, inputs: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in (trained / "results").iterdir()}
    only = ("--only", "retnet-10m,transformer-10m,gamma-1-10m")
    late = call(*run_arguments(inputs, trained, *only, "--until", "1"))
    assert late.returncode == 1
    assert "started" not in late.stdout
    assert "1 runs without a result" in late.stdout
    done = call(*run_arguments(inputs, trained, *only))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": started") == 1
    after = {path.name: path.stat().st_mtime_ns for path in (trained / "results").iterdir()}
    assert after.keys() - before.keys() == {"gamma-1-10m.jsonl"}
    assert {name: after[name] for name in before} == before
    combined = read_records(trained / "out" / "comparisons.jsonl")
    assert len(combined) == 3


def test_results_of_other_options_are_not_mixed(trained: Path, inputs: Path) -> None:
    done = call(*run_arguments(inputs, trained, "--tokens", "2048"))
    assert done.returncode == 2
    assert "was made with steps 4, not 8" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--lr", "10m=-1"], "training options of retnet-10m: .*lr"),
        (["--lr", "huge=1"], "--lr huge=1: give SIZE=RATE, SIZE one of 10m, 25m, 60m, shape"),
        (["--lr", "10m=fast"], "--lr 10m=fast: fast is no number"),
        (["--dropout", "1"], "training options of retnet-10m: .*dropout"),
        (["--step-tokens", "100"], "--step-tokens 100 is no multiple of 64"),
        (["--parallel", "0"], "--parallel 0: at least one process"),
        (["--train", "none.txt"], r"none\.txt: cannot be read"),
    ],
)
def test_bad_arguments(inputs: Path, tmp_path: Path, arguments: list[str], sentence: str) -> None:
    done = call(*run_arguments(inputs, tmp_path, *arguments))
    assert done.returncode == 2
    assert re.search(sentence, done.stderr), done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_that_crashes_is_reported_and_leaves_no_result(inputs: Path, tmp_path: Path) -> None:
    in_the_way = tmp_path / "work" / "runs" / "retnet-10m"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("a file where the run's directory should be")
    done = call(*run_arguments(inputs, tmp_path, "--only", "retnet-10m"))
    assert done.returncode == 1
    assert "retnet-10m: exit status" in done.stdout
    assert read_folder(tmp_path / "results") == {}


def test_a_loss_that_is_not_finite_is_a_result(inputs: Path, tmp_path: Path) -> None:
    done = call(
        *run_arguments(
            inputs, tmp_path, "--only", "retnet-10m", "--lr", "10m=1e30", "--tokens", "4096"
        )
    )
    assert done.returncode == 0, done.stdout
    (found,) = read_folder(tmp_path / "results").values()
    assert isinstance(found.end, Failed)
    assert "not finite in 10 steps in a row" in found.end.reason


def test_sizes() -> None:
    """About 10, 25 and 60 million, and both architectures within 1.5 %."""
    for size, wanted in (("10m", 10e6), ("25m", 25e6), ("60m", 60e6)):
        ours, theirs = (parameters_of(Run(v, size), 8192) for v in ("retnet", "transformer"))  # type: ignore[arg-type]
        assert ours == pytest.approx(wanted, rel=0.05)
        assert theirs == pytest.approx(ours, rel=0.015)
    assert SIZES.keys() == SMOKE_SIZES.keys()


@pytest.mark.parametrize("run", planned(), ids=lambda run: run.name)
def test_the_matrices_of_every_planned_model_are_counted_right(run: Run) -> None:
    model = builder(run.variant)(config_of(run, 384, smoke=True))
    matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    assert matrices == parameters_of(run, 384, smoke=True)


def test_what_the_ablations_change() -> None:
    full = config_of(Run("retnet", "10m"), 8192)
    assert isinstance(full, RetNetConfig)
    for run in planned():
        config = config_of(run, 8192)
        assert isinstance(config, TransformerConfig) == (run.variant == "transformer")
        if isinstance(config, RetNetConfig) and run.variant not in ("gamma-1", "one-gamma"):
            assert (config.gammas[0], config.gammas[-1]) == pytest.approx((31 / 32, 511 / 512))
    shapes = [config_of(Run(v, "shape"), 8192) for v in ("wide-heads", "retnet")]
    assert [(c.heads, c.key_head_dim) for c in shapes] == [(3, 256), (12, 64)]
    assert [c.value_head_dim for c in shapes if isinstance(c, RetNetConfig)] == [512, 128]


def layer(variant: str) -> MultiScaleRetention:
    """The retention of a one-layer model whose output projection hands the heads through."""
    torch.manual_seed(0)
    factor = 1 if variant == "no-gate" else 2
    config = retnet_config(
        vocab_size=32, d_model=16, layers=1, heads=2, ffn_dim=8, value_factor=factor
    )
    model = builder(variant)(config)
    assert isinstance(model, RetNet)
    retention = model.double().blocks[0].get_submodule("retention")
    assert isinstance(retention, MultiScaleRetention)
    return retention


def output(retention: MultiScaleRetention, x: torch.Tensor) -> torch.Tensor:
    config = retention.config
    state = torch.zeros(1, config.heads, config.key_head_dim, config.value_head_dim, dtype=x.dtype)
    position = torch.zeros(1, dtype=torch.int64)
    cos, sin = cos_sin(position, x.shape[1], frequencies(config.thetas), x.dtype)
    with torch.no_grad():
        terms = PositionTerms(cos, sin, torch.arange(1, x.shape[1] + 1)[None], None)
        return retention(x, state, terms, CHUNKWISE)[0]  # type: ignore[no-any-return]


def test_without_the_gate_heads_come_out_as_the_norm_left_them() -> None:
    retention = layer("no-gate")
    x = 30.0 * torch.randn(1, 7, 16, dtype=torch.float64)
    with torch.no_grad():
        retention.out.weight.copy_(torch.eye(16))
    heads = output(retention, x).reshape(1, 7, 2, 8)
    assert torch.allclose(heads.square().mean(-1), torch.ones(1, 7, 2).double(), atol=1e-4)
    assert torch.allclose(output(retention, 2.0 * x), heads.flatten(-2), atol=1e-4)
    gated = layer("retnet")
    assert not torch.allclose(output(gated, 2.0 * x), output(gated, x), rtol=0.1)


def test_without_the_group_norm_values_count_with_their_size() -> None:
    x = 30.0 * torch.randn(1, 7, 16, dtype=torch.float64)
    for variant, grows in (("no-group-norm", 3.0), ("retnet", 1.0)):
        retention = layer(variant)
        before = output(retention, x)
        with torch.no_grad():
            retention.qkvg.weight[32:64] *= 3.0  # values, after 16 queries and 16 keys
        assert torch.allclose(output(retention, x), grows * before, rtol=1e-3)


def test_further_seeds_are_for_the_closest_pair_once_all_are_known() -> None:
    runs = [run for pair in close_candidates() for run in pair]
    losses = {run: 3.0 + 0.1 * index for index, run in enumerate(dict.fromkeys(runs))}
    full, close = Run("retnet", "10m"), Run("no-gate", "10m")
    losses[close] = losses[full] - 0.02
    known = records(losses)
    assert closest_pair(known) == (full, close)
    names = [run.name for run in missing(known, ["*-10m*"])]
    assert [name for name in names if "seed" in name] == [
        "retnet-10m-seed2",
        "no-gate-10m-seed2",
        "retnet-10m-seed3",
        "no-gate-10m-seed3",
    ]
    del known["gamma-1-10m"]
    assert not [run for run in missing(known, ["*"]) if run.seed != 1]
    known["gamma-1-10m"] = record(Run("gamma-1", "10m"), 3.0, reason="the loss is nan")
    assert [run for run in missing(known, ["*"]) if run.seed != 1]


def test_expected_seconds() -> None:
    def done(size: str, parameters: int, seconds: float) -> Record:
        run = Run("retnet", size)  # type: ignore[arg-type]
        assert parameters_of(run, 8192) == parameters
        return record(run, 3.0, seconds=seconds)

    ten, sixty = (
        parameters_of(Run("retnet", "10m"), 8192),
        parameters_of(Run("retnet", "60m"), 8192),
    )
    assert expected_seconds(Run("retnet", "10m"), ten, []) == 0.0
    small = done("10m", ten, 50.0)
    assert expected_seconds(Run("transformer", "10m"), ten, [small]) == 50.0
    assert expected_seconds(Run("retnet", "60m"), sixty, [small]) == pytest.approx(
        50.0 * sixty / ten
    )
    large = done("60m", sixty, 250.0)
    middle = (ten + sixty) // 2
    assert expected_seconds(Run("retnet", "25m"), middle, [small, large]) == pytest.approx(150.0)


def test_files_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "retnet-10m.jsonl"
    write_records(path, [record(Run("retnet", "10m"), 3.0)])
    whole = path.read_bytes()
    path.write_bytes(b"\n".join(whole.splitlines()[:-1]))
    with pytest.raises(InputError, match=r"retnet-10m\.jsonl: the run retnet-10m is not whole"):
        read_records(path)
    path.write_bytes(whole[:-20])
    with pytest.raises(InputError, match=r"retnet-10m\.jsonl, line 4: not a line of a run"):
        read_records(path)
