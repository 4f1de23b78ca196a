"""`retnet-edge train`: from text to a checkpoint directory."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from tokenizers import Tokenizer

from retnet_edge.atomic import replace_file
from retnet_edge.config import (
    CONFIG_BYTES,
    ModelConfig,
    RetNetConfig,
    decode_config,
    transformer_like,
)
from retnet_edge.data.dataset import Shards
from retnet_edge.data.shards import write_shards
from retnet_edge.data.sources import Source, check_readable, find_sources, read_texts
from retnet_edge.errors import InputError
from retnet_edge.files import read_input
from retnet_edge.model.checkpoint import TOKENIZER_FILE, WEIGHTS_FILE, load_checkpoint
from retnet_edge.presets import preset
from retnet_edge.progress import about, progress, working
from retnet_edge.tokenizer import (
    END_OF_TEXT,
    SMALLEST_VOCABULARY,
    load_tokenizer,
    train_tokenizer,
    used_vocabulary,
)
from retnet_edge.tokenizing.special_tokens import (
    SpecialTokens,
    find_special_tokens,
    write_special_tokens,
)
from retnet_edge.tokenizing.structure import MOST_BYTES
from retnet_edge.training.distributed import World, processes
from retnet_edge.training.evaluate import Evaluation
from retnet_edge.training.trainer import RUN_FILE, TrainOptions, check_shares, fit

TRAIN_SHARDS = Path("data/train")
VALID_SHARDS = Path("data/valid")
VOCABULARY_MULTIPLE = 128
BPE_BYTES_A_SECOND = 4e6  # of text whose words are counted, roughly, on one core
MERGES_OF_10_MB, DISTINCT_WORDS = 2.0, 0.6  # seconds for merges, and how they grow with the text


def train(
    *,
    out: str | Path,
    data: Sequence[str | Path],
    valid: str | Path,
    text_field: str = "text",
    workers: int = 1,
    options: TrainOptions,
    model: str = "edge-15m",
    architecture: Literal["retnet", "transformer"] = "retnet",
    vocab_size: int = 8192,
    tokenizer: str | Path | None = None,
    init: str | Path | None = None,
    device: str = "auto",
    context_parallel: int = 1,
    compile_model: bool | None = None,
    eval_every: int = 500,
    save_every: int = 500,
    tensorboard: bool = True,
    say: Callable[[str], None] = print,
) -> Evaluation:
    """Train a model on text into the run directory `out`; a run begun there goes on.

    `data` and `valid` are text files, JSON lines, Parquet files or saved folders of `datasets`
    (`sources.py`), tables holding their text in `text_field`; `workers` > 1 tokenizes in processes.
    `model` is a preset's name or a config.json; "transformer" trains the baseline of the same
    size. Without `tokenizer` a byte-level BPE of `vocab_size` is trained on the same text. A
    checkpoint `init` gives configuration, tokenizer and first weights instead of all these.
    `device` "auto" takes a GPU where there is one; the model is compiled there by default.
    Where torchrun has started several processes, each calls this and they train together, groups
    of `context_parallel` of them sharing each sequence.
    Raises InputError for bad input, CheckFailed where the loss is not finite.
    """
    out = Path(out)
    device = pick_device(device)
    compile_model = device.startswith("cuda") if compile_model is None else compile_model
    if options.kept_activations < 1 and not compile_model:
        raise InputError("--kept-activations below 1 needs a compiled model: give --compile")

    def prepare() -> tuple[ModelConfig, TrainOptions, Path | None]:
        return _prepare(
            out,
            [Path(source) for source in data],
            Path(valid),
            options,
            model=model,
            architecture=architecture,
            vocab_size=vocab_size,
            tokenizer=tokenizer,
            init=init,
            text_field=text_field,
            workers=workers,
            world=world,
            say=say,
        )

    with processes(device, context_parallel) as world:
        config, options, initial = world.once(prepare)
        return fit(
            out,
            config,
            options,
            Shards(out / TRAIN_SHARDS),
            Shards(out / VALID_SHARDS),
            initial=initial,
            device=world.device,
            world=world,
            compile_model=compile_model,
            eval_every=eval_every,
            save_every=save_every,
            tensorboard=tensorboard,
            say=say,
        )


def _prepare(
    out: Path,
    sources: list[Path],
    valid: Path,
    options: TrainOptions,
    *,
    model: str,
    architecture: Literal["retnet", "transformer"],
    vocab_size: int,
    tokenizer: str | Path | None,
    init: str | Path | None,
    text_field: str,
    workers: int,
    world: World,
    say: Callable[[str], None],
) -> tuple[ModelConfig, TrainOptions, Path | None]:
    """Tokenizer and shards of the run; its configuration, options and first weights."""
    for path in (*sources, valid):
        check_readable(path, text_field)  # before the work
    started = None if init is None else load_checkpoint(init)
    if started is not None:
        tokenizer = started.path / TOKENIZER_FILE
        options = msgspec.structs.replace(options, init_sha256=started.weights_sha256())
        config = started.config
    else:
        config = _config(model, architecture, SMALLEST_VOCABULARY)
    check_shares(config, options, world)
    with _removed_on_bad_input(out):
        bpe = _tokenizer(out, find_sources(sources), text_field, tokenizer, vocab_size, say)
        if started is None:
            config = _config(model, architecture, used_vocabulary(bpe))
        end = find_special_tokens(out, bpe).end
        train_shard, valid_shard = (
            Shards(
                write_shards(
                    paths,
                    bpe,
                    out / folder,
                    text_field=text_field,
                    workers=workers,
                    replace=not (out / RUN_FILE).exists(),
                    end=end,
                )
            )
            for folder, paths in ((TRAIN_SHARDS, sources), (VALID_SHARDS, [valid]))
        )
        train_shard.batch(options.seed, 0, options.batch, options.seq_len)  # it is long enough
    say(
        f"{train_shard.info.tokens:,} training tokens of "
        f"{train_shard.info.text_bytes / train_shard.info.tokens:.2f} bytes, "
        f"{valid_shard.info.tokens:,} held out; device {world.device}"
    )
    return config, options, None if started is None else started.path / WEIGHTS_FILE


def train_options(**options: Any) -> TrainOptions:
    """TrainOptions, validated. Raises InputError naming the option and what is allowed."""
    try:
        return msgspec.convert(options, TrainOptions)
    except msgspec.ValidationError as error:
        raise InputError(f"training options: {error}") from error


def pick_device(name: str) -> str:
    """A device that works: "auto" is a GPU where there is one. Raises InputError for others."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return name


@contextmanager
def _removed_on_bad_input(out: Path) -> Iterator[None]:
    """Make the run directory; on an InputError in the block it goes again, if it is new."""
    fresh = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except InputError:
        if fresh:
            shutil.rmtree(out)
        raise


def _tokenizer(
    out: Path,
    sources: list[Source],
    text_field: str,
    given: str | Path | None,
    vocab_size: int,
    say: Callable[[str], None],
) -> Tokenizer:
    """The run's tokenizer: the one it was begun with, the one given, or a new one.

    What a call that ended before its run began left is replaced: it may be of other options.
    """
    path = out / TOKENIZER_FILE
    if not (out / RUN_FILE).exists():
        if given is not None:
            bpe = load_tokenizer(Path(given))
            special = find_special_tokens(Path(given).parent, bpe, say)
            content = read_input(Path(given), MOST_BYTES, "a tokenizer")
        else:
            bpe = _new_tokenizer(sources, text_field, vocab_size, say)
            end = bpe.token_to_id(END_OF_TEXT)
            assert end is not None  # it is the first that is trained
            special = SpecialTokens(ends=(end,))
            content = bpe.to_str(pretty=True).encode()
        write_special_tokens(out, special, bpe)
        replace_file(path, content)
    return load_tokenizer(path)


def _new_tokenizer(
    sources: list[Source], text_field: str, vocab_size: int, say: Callable[[str], None]
) -> Tokenizer:
    """A byte-level BPE of the text; shows how much of it was read, then that merges are learnt."""
    size = sum(source.size() for source in sources)
    read = size / BPE_BYTES_A_SECOND
    merge = MERGES_OF_10_MB * (size / 1e7) ** DISTINCT_WORDS
    say(about(f"training a byte-level BPE of {vocab_size} tokens", read + merge))
    with ExitStack() as after:

        def reading() -> Iterator[str]:
            with progress("read for the tokenizer (bytes)", size) as advance:
                yield from read_texts(sources, text_field, advance)
            after.enter_context(working(f"learning {vocab_size} tokens", merge))

        return train_tokenizer(reading(), vocab_size)


def _config(
    model: str, architecture: Literal["retnet", "transformer"], entries: int
) -> ModelConfig:
    """A preset with the tokenizer's entries, rounded up to what block quantizers divide."""
    config: ModelConfig
    if model.endswith(".json"):
        config = decode_config(read_input(Path(model), CONFIG_BYTES, "a configuration"), model)
        if entries > config.vocab_size:
            raise InputError(
                f"{model}: vocab_size is {config.vocab_size}; the tokenizer has {entries} tokens"
            )
    else:
        config = preset(model, -(-entries // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE)
    if architecture == "retnet":
        return config
    if not isinstance(config, RetNetConfig):
        raise InputError(f"{model}: --arch transformer derives its size from a RetNet's")
    return transformer_like(config)
