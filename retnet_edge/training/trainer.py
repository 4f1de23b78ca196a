"""Training on one device or on many: AdamW, warm-up and cosine, clipping, exact resume.

A run is a directory: `run.json` (options and configuration), `tokenizer.json`, `data/` (token
shards), `metrics.jsonl`, `tensorboard/`, `steps/step-N/` (see step_checkpoint.py) and, when it is
done, `checkpoint/`. Everything random in a step follows from (seed, step) and, of dropout, the
rank, so a run that was killed and resumed ends with the weights of one that was not. How many
processes there are is no option of the run: it may change where it is resumed.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from retnet_edge.atomic import new_folder
from retnet_edge.config import CONFIG_BYTES, ModelConfig, RetNetConfig
from retnet_edge.data.dataset import Shards
from retnet_edge.errors import CheckFailed, InputError
from retnet_edge.files import read_input
from retnet_edge.model.checkpoint import (
    TOKENIZER_FILE,
    LanguageModel,
    build_model,
    load_weights,
    write_checkpoint,
)
from retnet_edge.model.retnet import CHUNK, Form, RetentionMode, RetNet
from retnet_edge.progress import about
from retnet_edge.tokenizer import load_tokenizer
from retnet_edge.tokenizing.special_tokens import SpecialTokens, find_special_tokens
from retnet_edge.training.distributed import World, gather_weights, shard
from retnet_edge.training.evaluate import Evaluation, evaluate
from retnet_edge.training.metrics import MetricsLog
from retnet_edge.training.optimizer import Optimizer, SkippedBatches
from retnet_edge.training.quantization_aware import Int8Aware, fake_quantize_weights
from retnet_edge.training.schedule import warmup_cosine
from retnet_edge.training.step_checkpoint import Progress, StepCheckpoints

RUN_FILE = "run.json"
PAPERS_WARMUP = 375
COMPILE_SECONDS = 60.0  # of one block, which all others share, roughly
MAX_SKIPPED_IN_A_ROW = 10

Positive = Annotated[int, msgspec.Meta(ge=1)]


class TrainOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything but the model and the text that decides the weights a run ends with.

    int8_aware: weight of the KL terms of `quantization_aware.py`; above 0 the weights stay on the
    int8 grid. init_sha256: of the weights that the run starts from, "" for fresh ones. chunk:
    tokens of a chunk in the chunkwise form. warmup: steps, None: see `warmup_steps`. recompute:
    activations inside blocks are computed again in the backward pass, for less memory.
    kept_activations: share of them that compiled blocks keep, the compiler choosing which to
    compute again. separate_documents: no token sees the document before its own.
    """

    steps: Positive
    batch: Positive
    seq_len: Positive
    lr: Annotated[float, msgspec.Meta(gt=0)] = 1e-3
    final_lr_ratio: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.1
    warmup: Annotated[int, msgspec.Meta(ge=0)] | None = None
    weight_decay: Annotated[float, msgspec.Meta(ge=0)] = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    clip: Annotated[float, msgspec.Meta(gt=0)] = 2.0
    dropout: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] = 0
    form: Form = "chunkwise"
    chunk: Positive = CHUNK
    recompute: bool = False
    kept_activations: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    separate_documents: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    int8_aware: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    init_sha256: str = ""

    @property
    def warmup_steps(self) -> int:
        """Steps of warm-up: 375, the paper's, but no more than a tenth of the run by default."""
        if self.warmup is not None:
            return self.warmup
        return min(PAPERS_WARMUP, self.steps // 10)

    def __post_init__(self) -> None:
        """Raises InputError for options that cannot be combined."""
        if self.kept_activations < 1 and (self.recompute or self.int8_aware > 0):
            raise InputError(
                "--kept-activations below 1 goes with neither --recompute nor int8-aware training"
            )
        if self.int8_aware > 0 and self.dropout > 0:
            raise InputError("int8-aware training needs dropout 0")
        if self.int8_aware > 0 and (self.recompute or self.separate_documents):
            raise InputError("int8-aware training has no recompute and no separate documents")


class Run(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A run directory's `run.json`."""

    options: TrainOptions
    config: ModelConfig


def check_shares(config: ModelConfig, options: TrainOptions, world: World) -> None:
    """Raises InputError for a run that the processes of `world` cannot share."""
    if options.batch % world.groups:
        raise InputError(
            f"--batch {options.batch} cannot be shared by {world.groups} processes or groups of "
            "them: each takes equally many sequences"
        )
    if world.size > 1 and options.int8_aware > 0:
        raise InputError("int8-aware training runs in a single process")
    if world.context is None:
        return
    if not isinstance(config, RetNetConfig):
        raise InputError("--context-parallel is for RetNets: attention needs all keys on each rank")
    if options.seq_len % world.context.size:
        raise InputError(
            f"--seq-len {options.seq_len} cannot be cut into {world.context.size} equal spans "
            "(--context-parallel)"
        )


def learning_rate(options: TrainOptions, step: int) -> float:
    """Linear warm-up, then a cosine down to final_lr_ratio · lr at the last step."""
    return warmup_cosine(
        options.lr,
        step,
        steps=options.steps,
        warmup=options.warmup_steps,
        final_ratio=options.final_lr_ratio,
    )


def make_optimizer(parameters: dict[str, nn.Parameter], options: TrainOptions) -> Optimizer:
    """The options' AdamW."""
    return Optimizer(
        parameters,
        lr=options.lr,
        betas=options.betas,
        weight_decay=options.weight_decay,
        clip=options.clip,
    )


def fit(
    out: Path,
    config: ModelConfig,
    options: TrainOptions,
    train_shard: Shards,
    valid_shard: Shards,
    *,
    initial: Path | None = None,
    device: str = "cpu",
    world: World | None = None,
    compile_model: bool = False,
    eval_every: int = 500,
    save_every: int = 500,
    tensorboard: bool = True,
    say: Callable[[str], None] = print,
    build: Callable[..., LanguageModel] = build_model,
) -> Evaluation:
    """Train `config` in the run directory `out`, from its newest checkpoint if it has one.

    `out` holds tokenizer.json already; `initial` is a weights file to start from; `build` makes
    the model, called as `build_model` is. Where several processes train, each calls this with its
    `world`, which then decides the device. Returns the last validation and leaves
    `out/checkpoint`. Raises InputError where `out` was begun with other options or does not fit
    the number of processes, CheckFailed where the loss is not finite.
    """
    world = World(device) if world is None else world
    options = world.once(lambda: _open_run(out, Run(options, config), world)).options
    say = say if world.first else lambda text: None
    if said := _about_warmup(options):
        say(said)
    tokenizer = load_tokenizer(out / TOKENIZER_FILE)
    special = find_special_tokens(out, tokenizer)
    torch.manual_seed(options.seed)
    model = build(config, dropout=options.dropout)
    if initial is not None:
        load_weights(model, initial)
    autocast = options.precision == "bfloat16"
    if autocast:
        torch.set_float32_matmul_precision("high")  # TF32: finer than the bfloat16 around it
    if world.size > 1:
        shard(model, world, bfloat16=autocast)
        autocast = False  # the parameters themselves are bfloat16 where they are used
    model.to(world.device).train()
    # taken once: after an evaluation FSDP's root module shows gathered copies instead
    parameters = dict(model.named_parameters())
    optimizer = make_optimizer(parameters, options)
    losses_of = _loss_function(model, options, special.end, world, compile_model)
    if compile_model:
        say(about("compiling in the first step, which takes longer", COMPILE_SECONDS))
    checkpoints = StepCheckpoints(out / "steps", group=world.files, first=world.first)
    start, skipped_before = _resume(
        checkpoints, optimizer.training_state(), options.steps, world, say
    )
    skips = SkippedBatches(skipped_before, say, late=optimizer.fused)
    log = MetricsLog(out, from_step=start, tensorboard=tensorboard) if world.first else None

    def validate() -> Evaluation:
        return evaluate(
            model,
            valid_shard,
            length=options.seq_len,
            batch=options.batch,
            autocast=autocast,
            world=world,
        )

    with (
        log or nullcontext(),
        checkpoints,
        world.progress("train", options.steps - start) as advance,
    ):
        began, began_step = time.perf_counter(), start
        for step in range(start, options.steps):
            torch.manual_seed(options.seed * 1_000_003 + step + (world.rank << 53))
            rows = world.share(options.batch)
            block = train_shard.batch(options.seed, step, options.batch, options.seq_len, rows)
            tokens = torch.from_numpy(block).to(world.device, non_blocking=True)
            rate = learning_rate(options, step)
            with torch.autocast(torch.device(world.device).type, torch.bfloat16, enabled=autocast):
                loss, int8_kl = losses_of(tokens)
            (loss + options.int8_aware * int8_kl).backward()  # type: ignore[no-untyped-call]
            loss = world.mean(loss.detach())
            norm = optimizer.step(loss, rate)
            done = step + 1
            skips.add(done, loss, norm)
            validates = done % eval_every == 0 or done == options.steps
            saves = done % save_every == 0 and done < options.steps
            if validates or saves:
                skips.settle()
            if skips.in_a_row >= MAX_SKIPPED_IN_A_ROW:
                world.fail(
                    CheckFailed(
                        f"the loss or its gradient is not finite in {skips.in_a_row} steps "
                        f"in a row up to step {done}; lower --lr"
                    )
                )
            advance(1)

            if validates:
                value = loss.item()
                seconds = time.perf_counter() - began
                rate_tokens = (done - began_step) * options.batch * options.seq_len / seconds
                result = validate()
                if not math.isfinite(result.loss):  # the last update has no training loss yet
                    world.fail(CheckFailed(f"the loss is {result.loss} at step {done}; lower --lr"))
                if log is not None:
                    log.write(
                        done,
                        train_loss=value,
                        **({"int8_kl": int8_kl.item()} if options.int8_aware else {}),
                        gradient_norm=norm.item(),
                        learning_rate=rate,
                        skipped=skips.total,
                        tokens_per_second=rate_tokens,
                        valid_loss=result.loss,
                        valid_perplexity=result.perplexity,
                        valid_bits_per_byte=result.bits_per_byte,
                    )
                say(
                    f"step {done}/{options.steps}  loss {value:.4f}  valid {result.loss:.4f}  "
                    f"ppl {result.perplexity:.2f}  bpb {result.bits_per_byte:.4f}  "
                    f"{rate_tokens:,.0f} tok/s"
                )
                began, began_step = time.perf_counter(), done
            if saves:
                checkpoints.save(Progress(done, skips.total), optimizer.training_state())
                began, began_step = time.perf_counter(), done

    if options.int8_aware:
        with torch.no_grad():
            for parameter, rounded in zip(
                parameters.values(), fake_quantize_weights(dict(parameters)).values(), strict=True
            ):
                parameter.copy_(rounded)
    weights = gather_weights(parameters, world)
    world.once(lambda: _write_result(out / "checkpoint", model, tokenizer, special, weights))
    return validate()


def _loss_function(
    model: LanguageModel,
    options: TrainOptions,
    end_of_text: int | None,
    world: World,
    compile_model: bool,
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Of a block [batch, T + 1] of token ids, nats a token: cross-entropy, and the int8 KL or 0."""
    if options.int8_aware:
        form: dict[str, str] = {"form": options.form} if isinstance(model, RetNet) else {}
        aware = Int8Aware(model, compile_blocks=compile_model)
        return lambda tokens: aware.losses(tokens, **form)

    mode = RetentionMode(options.form, options.chunk, options.recompute, world.context)
    end = end_of_text if options.separate_documents else None
    if compile_model:
        for block in model.blocks:  # one graph for all of them: the whole model takes minutes
            if world.size == 1:
                block.compile(dynamic=False)
            else:  # what gathers and frees the parameters before and after stays outside
                block.forward = torch.compile(block.forward, dynamic=False)

    def losses(tokens: Tensor) -> tuple[Tensor, Tensor]:
        # read where blocks are compiled, in the first call
        with torch._functorch.config.patch(activation_memory_budget=options.kept_activations):
            loss = model.loss(tokens, mode=mode, document_end=end, compiled=compile_model)
        return loss, torch.zeros_like(loss)

    return losses


def _about_warmup(options: TrainOptions) -> str:
    """What a warm-up makes of the learning rate that one would not expect, "" for nothing."""
    steps = options.warmup_steps
    if options.warmup is None and steps < PAPERS_WARMUP:
        return f"warm-up of {steps} steps, a tenth of the run ({PAPERS_WARMUP} of longer ones)"
    if steps > options.steps:
        peak = options.steps / steps
        return f"a warm-up of {steps} steps ends after the run: at {peak:.0%} of --lr"
    return ""


def _open_run(out: Path, run: Run, world: World) -> Run:
    """Write run.json, or check that the run in `out` is the same one and not complete.

    Returns the run as it was begun: an older version wrote down its default warm-up, of 375 steps
    in any run, and a run goes on as it began. Raises InputError also for what `check_shares`
    refuses.
    """
    check_shares(run.config, run.options, world)
    path = out / RUN_FILE
    if os.path.lexists(path):
        raw = read_input(path, CONFIG_BYTES, "the description of a run")
        try:
            found = msgspec.json.decode(raw, type=Run)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InputError(f"{path}: not the description of a run: {error}") from error
        if run.options.warmup is None:
            begun = msgspec.structs.replace(run.options, warmup=found.options.warmup)
            run = msgspec.structs.replace(run, options=begun)
        if found != run:
            raise InputError(
                f"{path}: the run was begun with other options; resume with the same ones or give "
                "another --out"
            )
    else:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=2) + b"\n")
    if (out / "checkpoint").exists():
        raise InputError(f"{out / 'checkpoint'}: the run is complete; give another --out")
    return run


def _resume(
    checkpoints: StepCheckpoints,
    state: dict[str, Tensor],
    steps: int,
    world: World,
    say: Callable[[str], None],
) -> Progress:
    """Load the newest checkpoint that is whole, if there is any, of a run of `steps`."""
    newest = world.once(lambda: checkpoints.newest(say))
    if newest is None:
        return Progress(0, 0)
    progress = checkpoints.load(newest, state)
    if progress.step >= steps:
        raise InputError(f"{newest}: is of step {progress.step}; the run has {steps}")
    say(f"resuming from {newest}")
    return progress


def _write_result(
    target: Path,
    model: LanguageModel,
    tokenizer: Tokenizer,
    special: SpecialTokens,
    weights: dict[str, Tensor],
) -> None:
    with new_folder(target) as folder:
        write_checkpoint(folder, model, tokenizer, weights=weights, special=special)
