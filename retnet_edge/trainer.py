"""Training on one device: AdamW, warm-up and cosine, clipping, exact resume.

A run is a directory: `run.json` (options and configuration), `tokenizer.json`, `data/` (token
shards), `metrics.jsonl`, `tensorboard/`, `steps/step-N/` (checkpoints that also hold the
optimizer) and, when it is done, `checkpoint/`. Everything random in a step follows from
(seed, step), so a run that was killed and resumed ends with the weights of one that was not.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import torch
from tokenizers import Tokenizer
from torch import Tensor

from retnet_edge.checkpoint import (
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    LanguageModel,
    build_model,
    load_weights,
    write_checkpoint,
)
from retnet_edge.config import ModelConfig
from retnet_edge.data import Shards
from retnet_edge.errors import CheckFailed, InputError
from retnet_edge.evaluate import Evaluation, evaluate
from retnet_edge.int8_aware import Int8Aware, on_grid
from retnet_edge.metrics import MetricsLog
from retnet_edge.model import CHUNK, Form, How, RetNet
from retnet_edge.progress import progress
from retnet_edge.runtime.writer import new_bundle
from retnet_edge.tokenizer import END_OF_TEXT, load_tokenizer

RUN_FILE = "run.json"
OPTIMIZER_FILE = "optimizer.pt"
KEPT_CHECKPOINTS = 2
MOST_SKIPPED_IN_A_ROW = 10

Positive = Annotated[int, msgspec.Meta(ge=1)]


class TrainOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything but the model and the text that decides the weights a run ends with.

    int8_aware: weight of the KL terms of `int8_aware.py`; above 0 the weights stay on the int8
    grid. init_sha256: of the weights that the run starts from, "" for fresh ones. chunk: tokens of
    a chunk in the chunkwise form. recompute: activations inside blocks are computed again in the
    backward pass, for less memory. separate_documents: no token sees the document before its own.
    """

    steps: Positive
    batch: Positive
    seq_len: Positive
    lr: Annotated[float, msgspec.Meta(gt=0)] = 1e-3
    final_lr_ratio: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.1
    warmup: Annotated[int, msgspec.Meta(ge=0)] = 375
    weight_decay: Annotated[float, msgspec.Meta(ge=0)] = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    clip: Annotated[float, msgspec.Meta(gt=0)] = 2.0
    dropout: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] = 0
    form: Form = "chunkwise"
    chunk: Positive = CHUNK
    recompute: bool = False
    separate_documents: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    int8_aware: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    init_sha256: str = ""

    def __post_init__(self) -> None:
        """Raises InputError for what int8-aware training cannot be combined with."""
        if self.int8_aware > 0 and self.dropout > 0:
            raise InputError("int8-aware training needs dropout 0")
        if self.int8_aware > 0 and (self.recompute or self.separate_documents):
            raise InputError("int8-aware training has no recompute and no separate documents")


class Progress(NamedTuple):
    """Steps done, and how many of them were skipped because something was not finite."""

    step: int
    skipped: int


class Run(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A run directory's `run.json`."""

    options: TrainOptions
    config: ModelConfig


def learning_rate(options: TrainOptions, step: int) -> float:
    """Linear warm-up, then a cosine down to final_lr_ratio · lr at the last step."""
    if step < options.warmup:
        return options.lr * (step + 1) / options.warmup
    done = (step - options.warmup) / max(1, options.steps - options.warmup)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))
    return options.lr * (options.final_lr_ratio + (1.0 - options.final_lr_ratio) * cosine)


def make_optimizer(model: LanguageModel, options: TrainOptions) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": options.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=options.lr,
        betas=options.betas,
        fused=matrices[0].is_cuda,
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
    compile_model: bool = False,
    eval_every: int = 500,
    save_every: int = 500,
    tensorboard: bool = True,
    say: Callable[[str], None] = print,
    build: Callable[..., LanguageModel] = build_model,
) -> Evaluation:
    """Train `config` in the run directory `out`, from its newest checkpoint if it has one.

    `out` holds tokenizer.json already; `initial` is a weights file to start from; `build` makes
    the model, called as `build_model` is. Returns the last validation and leaves
    `out/checkpoint`. Raises InputError where `out` was begun with other options, CheckFailed where
    the loss is not finite.
    """
    _open_run(out, Run(options, config))
    if (out / "checkpoint").exists():
        raise InputError(f"{out / 'checkpoint'}: the run is complete; give another --out")
    tokenizer = load_tokenizer(out / TOKENIZER_FILE)
    torch.manual_seed(options.seed)
    model = build(config, dropout=options.dropout)
    if initial is not None:
        load_weights(model, initial)
    model.to(device).train()
    optimizer = make_optimizer(model, options)
    start, skipped = _resume(out, model, optimizer, say)
    autocast = options.precision == "bfloat16"
    if autocast:
        torch.set_float32_matmul_precision("high")  # TF32: finer than the bfloat16 around it
    losses_of = _loss_function(model, options, tokenizer, compile_model)
    skipped_in_a_row = 0

    def validate() -> Evaluation:
        return evaluate(
            model, valid_shard, length=options.seq_len, batch=options.batch, autocast=autocast
        )

    with (
        MetricsLog(out, from_step=start, tensorboard=tensorboard) as metrics,
        progress("train", options.steps - start) as advance,
    ):
        began, began_step = time.perf_counter(), start
        for step in range(start, options.steps):
            torch.manual_seed(options.seed * 1_000_003 + step)
            block = train_shard.batch(options.seed, step, options.batch, options.seq_len)
            tokens = torch.from_numpy(block).to(device, non_blocking=True)
            rate = learning_rate(options, step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=autocast):
                loss, int8_kl = losses_of(tokens)
            (loss + options.int8_aware * int8_kl).backward()  # type: ignore[no-untyped-call]
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip)
            done = step + 1
            if math.isfinite((loss.detach() + norm).item()):
                optimizer.step()
                skipped_in_a_row = 0
            else:
                skipped += 1
                skipped_in_a_row += 1
                say(
                    f"step {done}: loss {loss.item()}, gradient norm {norm.item()}: this batch is "
                    f"not trained on ({skipped} skipped so far)"
                )
                if skipped_in_a_row == MOST_SKIPPED_IN_A_ROW:
                    raise CheckFailed(
                        f"the loss or its gradient is not finite in {skipped_in_a_row} steps in a "
                        f"row up to step {done}; lower --lr"
                    )
            optimizer.zero_grad(set_to_none=True)
            advance(1)

            if done % eval_every == 0 or done == options.steps:
                value = loss.item()
                seconds = time.perf_counter() - began
                rate_tokens = (done - began_step) * options.batch * options.seq_len / seconds
                result = validate()
                _check_finite(result.loss, done)  # the last update has no training loss yet
                metrics.write(
                    done,
                    train_loss=value,
                    **({"int8_kl": int8_kl.item()} if options.int8_aware else {}),
                    gradient_norm=norm.item(),
                    learning_rate=rate,
                    skipped=skipped,
                    tokens_per_second=rate_tokens,
                    valid_loss=result.loss,
                    valid_perplexity=result.perplexity,
                    valid_bits_per_byte=result.bits_per_byte,
                )
                say(
                    f"step {done}/{options.steps}  loss {value:.4f}  valid {result.loss:.4f}  "
                    f"ppl {result.perplexity:.2f}  {result.bits_per_byte:.4f} bits/byte  "
                    f"{rate_tokens:,.0f} tokens/s"
                )
                began, began_step = time.perf_counter(), done
            if done % save_every == 0 and done < options.steps:
                _save(out, done, skipped, model, optimizer, tokenizer)
                began, began_step = time.perf_counter(), done

    if options.int8_aware:
        with torch.no_grad():
            for parameter, rounded in zip(
                model.parameters(), on_grid(dict(model.named_parameters())).values(), strict=True
            ):
                parameter.copy_(rounded)
    with new_bundle(out / "checkpoint") as folder:
        write_checkpoint(folder, model, tokenizer)
    return validate()


def _check_finite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise CheckFailed(f"the loss is {loss} at step {step}; lower --lr")


def _loss_function(
    model: LanguageModel, options: TrainOptions, tokenizer: Tokenizer, compile_model: bool
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Of a block [batch, T + 1] of token ids, nats a token: cross-entropy, and the int8 KL or 0."""
    if options.int8_aware:
        form: dict[str, str] = {"form": options.form} if isinstance(model, RetNet) else {}
        aware = Int8Aware(model, compile_blocks=compile_model)
        return lambda tokens: aware.losses(tokens, **form)

    how = How(options.form, options.chunk, options.recompute)
    end = tokenizer.token_to_id(END_OF_TEXT) if options.separate_documents else None
    if compile_model:
        for block in model.blocks:  # one graph for all of them: the whole model takes minutes
            block.compile(dynamic=False)

    def losses(tokens: Tensor) -> tuple[Tensor, Tensor]:
        loss = model.loss(tokens, how=how, document_end=end, compiled=compile_model)
        return loss, torch.zeros_like(loss)

    return losses


def _open_run(out: Path, run: Run) -> None:
    """Write run.json, or check that the run in `out` is the same one."""
    path = out / RUN_FILE
    if path.exists():
        try:
            found = msgspec.json.decode(path.read_bytes(), type=Run)
        except msgspec.DecodeError as error:
            raise InputError(f"{path}: not the description of a run: {error}") from error
        if found != run:
            raise InputError(
                f"{path}: the run was begun with other options; resume with the same ones or give "
                "another --out"
            )
        return
    path.write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=2) + b"\n")


def _checkpoints(out: Path) -> list[Path]:
    """Complete checkpoints of the run, oldest first (they are renamed into place when whole)."""
    return sorted((out / "steps").glob("step-*"))


def _save(
    out: Path,
    step: int,
    skipped: int,
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    tokenizer: Any,
) -> None:
    target = out / "steps" / f"step-{step:08d}"
    target.parent.mkdir(exist_ok=True)
    with new_bundle(target) as folder:
        write_checkpoint(folder, model, tokenizer)
        # into an open file: given a path, torch hides a full disk behind an error of its own
        with (folder / OPTIMIZER_FILE).open("wb") as file:
            saved = {"step": step, "skipped": skipped, "optimizer": optimizer.state_dict()}
            torch.save(saved, file)
    for old in _checkpoints(out)[:-KEPT_CHECKPOINTS]:
        shutil.rmtree(old)


def _resume(
    out: Path,
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    say: Callable[[str], None],
) -> Progress:
    """Load the newest checkpoint, if there is one."""
    found = _checkpoints(out)
    if not found:
        return Progress(0, 0)
    newest = found[-1]
    load_weights(model, newest / WEIGHTS_FILE)
    device = model.embedding.weight.device
    saved = torch.load(newest / OPTIMIZER_FILE, map_location=device, weights_only=True)
    optimizer.load_state_dict(saved["optimizer"])
    say(f"resuming from {newest}")
    return Progress(int(saved["step"]), int(saved["skipped"]))
