"""One run of the comparisons: the project's own trainer on one of its models, and its metrics."""

from __future__ import annotations

import lzma
import os
import shutil
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from benchmarks.comparisons.records import About, Curve, Failed, Record, Result, write_records
from benchmarks.comparisons.runs import Run, config_of, context_of
from retnet_edge.config import RetNetConfig, encode_config
from retnet_edge.errors import CheckFailed, InputError

if TYPE_CHECKING:
    from retnet_edge.training.trainer import TrainOptions

WARMUP_SHARE = 0.05
VALIDATIONS = 20


class Settings(msgspec.Struct, frozen=True):
    """What all runs of a queue share; handed to their processes as a file."""

    train: str
    valid: str
    heldout: str
    tokenizer: str
    work: str
    results: str
    tokens: int
    step_tokens: int
    learning_rates: dict[str, float]
    dropout: float
    device: str
    precision: str
    compile: bool
    parallel: int
    smoke: bool

    def folder(self, run: Run) -> Path:
        """A run's directory while it trains."""
        return Path(self.work) / "runs" / run.name

    def record(self, run: Run) -> Path:
        """A run's metrics."""
        return Path(self.results) / f"{run.name}.jsonl"


def train_options(settings: Settings, run: Run) -> dict[str, Any]:
    """The arguments of TrainOptions."""
    context = context_of(run, smoke=settings.smoke)
    if settings.step_tokens % context:
        raise InputError(f"--step-tokens {settings.step_tokens} is no multiple of {context}")
    steps = max(1, round(settings.tokens / settings.step_tokens))
    return {
        "steps": steps,
        "batch": settings.step_tokens // context,
        "seq_len": context,
        "lr": settings.learning_rates[run.size],
        "warmup": round(WARMUP_SHARE * steps),
        "clip": 1.0,
        "dropout": settings.dropout,
        "seed": run.seed,
        "precision": settings.precision,
    }


def checked_options(settings: Settings, run: Run) -> TrainOptions:
    """The run's TrainOptions. Raises InputError naming what is not allowed."""
    from retnet_edge.training.trainer import TrainOptions

    try:
        return msgspec.convert(train_options(settings, run), TrainOptions)
    except msgspec.ValidationError as error:
        raise InputError(f"training options of {run.name}: {error}") from error


def unpacked(text: Path, work: Path) -> Path:
    """The text file itself, or what an .xz file holds, unpacked once."""
    if text.suffix != ".xz":
        return text
    target = work / text.stem
    if not target.exists():
        partial = target.with_name(target.name + ".partial")
        with lzma.open(text) as packed, partial.open("wb") as file:
            shutil.copyfileobj(packed, file)
        os.replace(partial, target)
    return target


def shards(settings: Settings) -> Any:
    """The three tokenized texts (train, valid, heldout), made by the first caller."""
    from retnet_edge.data.dataset import Shards
    from retnet_edge.data.shards import write_shards
    from retnet_edge.tokenizer import load_tokenizer

    work = Path(settings.work)
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(Path(settings.tokenizer))
    return [
        Shards(write_shards([unpacked(Path(text), work)], tokenizer, work / "data" / name))
        for name, text in (
            ("train", settings.train),
            ("valid", settings.valid),
            ("heldout", settings.heldout),
        )
    ]


def train_one(settings: Settings, run: Run) -> Record:
    """Train and judge one run in this process, and write its file."""
    began = time.perf_counter()
    import torch

    from benchmarks.comparisons.ablations import builder
    from retnet_edge.model.checkpoint import TOKENIZER_FILE, WEIGHTS_FILE, load_weights
    from retnet_edge.tokenizer import load_tokenizer
    from retnet_edge.training.evaluate import evaluate
    from retnet_edge.training.metrics import METRICS_FILE, read_metrics
    from retnet_edge.training.trainer import fit

    train, valid, heldout = shards(settings)
    entries = load_tokenizer(Path(settings.tokenizer)).get_vocab_size()
    config = config_of(run, -(-entries // 128) * 128, smoke=settings.smoke)
    options = checked_options(settings, run)
    build = builder(run.variant)
    out = settings.folder(run)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    shutil.copyfile(settings.tokenizer, out / TOKENIZER_FILE)
    about = About(
        run=run.name,
        variant=run.variant,
        size=run.size,
        context=options.seq_len,
        seed=run.seed,
        parameters=sum(p.numel() for p in build(config).parameters()),
        state_bytes=config.state_bytes() if isinstance(config, RetNetConfig) else 0,
        options=msgspec.to_builtins(options),
        config=msgspec.json.decode(encode_config(config)),
        train_tokens=train.info.tokens,
        device=device_name(settings.device),
        torch=str(torch.__version__),
        parallel=settings.parallel,
    )
    reason = ""
    try:
        fit(
            out,
            config,
            options,
            train,
            valid,
            device=settings.device,
            compile_model=settings.compile,
            eval_every=max(1, options.steps // VALIDATIONS),
            save_every=options.steps,
            tensorboard=False,
            build=build,
        )
    except CheckFailed as error:  # such as a loss that is no longer finite: a finding
        reason = str(error)
    step_tokens = options.batch * options.seq_len
    curve = [
        Curve(
            run=run.name,
            step=row["step"],
            tokens=row["step"] * step_tokens,
            train_loss=row["train_loss"],
            valid_loss=row["valid_loss"],
            valid_bits_per_byte=row["valid_bits_per_byte"],
            tokens_per_second=row["tokens_per_second"],
        )
        for row in read_metrics(out / METRICS_FILE)
    ]
    end: Result | Failed
    if reason:
        end = Failed(run.name, time.perf_counter() - began, reason)
    else:
        model = build(config)
        load_weights(model, out / "checkpoint" / WEIGHTS_FILE)
        found = evaluate(
            model.to(settings.device),
            heldout,
            length=options.seq_len,
            batch=max(1, options.batch // 2),
            autocast=False,
        )
        end = Result(
            run=run.name,
            tokens=options.steps * step_tokens,
            wall_seconds=time.perf_counter() - began,
            tokens_per_second=statistics.median(line.tokens_per_second for line in curve),
            loss=found.loss,
            perplexity=found.perplexity,
            bits_per_byte=found.bits_per_byte,
        )
    record = Record(about, curve, end)
    write_records(settings.record(run), [record])
    return record


def device_name(device: str) -> str:
    """What the figures were measured on."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"
