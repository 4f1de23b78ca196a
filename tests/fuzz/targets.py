"""What is fuzzed: for each kind of file its seeds, which files are damaged, and what reads them.

`shallow` opens and checks; `deep` computes with what passed. Each takes the case's folder and the
damaged files. Imports stand inside, so that a machine without torch can fuzz the rest.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fuzz.seeds import TESTS

Action = Callable[[Path, Sequence[str]], None]

TOKENS = [1, 2, 3, 5, 8]
PROMPT = "the cat sat, Ünïcode 日本 🙂\n"


@dataclass(frozen=True)
class Target:
    """`seeds`: names of folders; `files`: patterns of what is damaged; `weights`: cases of a round
    of the schedule, shallow and deep."""

    name: str
    seeds: tuple[str, ...]
    files: tuple[str, ...]
    shallow: Action
    deep: Action
    weights: tuple[int, int]


def open_bundle(case: Path, damaged: Sequence[str]) -> None:
    """What `info` and the readers of a bundle's other files do."""
    from retnet_edge.pipeline.info import info
    from retnet_edge.runtime.backends.native.session import open_model
    from retnet_edge.runtime.backends.ort.prepacked import find_prepared
    from retnet_edge.runtime.bundle.bundle import Bundle
    from retnet_edge.runtime.parity.golden import GOLDEN_FILE, read_golden

    bundle = Bundle.open(case / "model.edge")
    info(case / "model.edge")
    assert len(bundle.fingerprint) == 64
    for graph in bundle.manifest.graphs:
        if graph.backend == "native" and len(graph.external_data) == 1:
            open_model(bundle)
        if graph.backend == "onnxruntime":
            find_prepared(bundle, graph.file)
    if GOLDEN_FILE in bundle.manifest.files and bundle.manifest.model.kind == "retnet":
        read_golden(bundle.file(GOLDEN_FILE), bundle.manifest)


def open_packed(case: Path, damaged: Sequence[str]) -> None:
    """What `info` reads, the golden replay and the texts, and what the library checks."""
    from retnet_edge.errors import InputError
    from retnet_edge.pipeline.info import info
    from retnet_edge.runtime.backends.native.library import Model
    from retnet_edge.runtime.backends.native.session import open_model
    from retnet_edge.runtime.bundle.packed import open_bundle as opened
    from retnet_edge.runtime.parity.golden import golden_arrays

    path = case / "model.retnet"

    def by_python() -> None:
        bundle = opened(path)
        info(path)
        assert len(bundle.fingerprint) == 64
        golden_arrays(bundle)
        open_model(bundle)

    def by_c() -> None:
        model = Model.open(path, skip_weight_hash=True)
        for kind in range(-1, 14):
            model.section(kind)

    refused: InputError | None = None
    for read in (by_python, by_c):  # what one refuses the other meets all the same
        try:
            read()
        except InputError as error:
            refused = error
    if refused is not None:
        raise refused


def run_packed(case: Path, damaged: Sequence[str]) -> None:
    """A session, the golden replay where there is one, and text."""
    from retnet_edge import load
    from retnet_edge.runtime.backends.select import open_session
    from retnet_edge.runtime.bundle.packed import open_bundle as opened
    from retnet_edge.runtime.parity.golden import golden_arrays

    bundle = opened(case / "model.retnet")
    use(open_session(bundle, 1, "native"), bundle, golden=golden_arrays(bundle) is not None)
    "".join(load(case / "model.retnet", threads=1).generate(PROMPT, max_tokens=5))


def run_bundle(case: Path, damaged: Sequence[str]) -> None:
    """Some steps, a prompt, states and text on every backend that the manifest names."""
    from retnet_edge.errors import InputError
    from retnet_edge.runtime.backends.select import open_session
    from retnet_edge.runtime.bundle.bundle import Bundle

    bundle = Bundle.open(case / "model.edge")
    refused: InputError | None = None
    for backend in bundle.manifest.backends:
        try:
            session = open_session(bundle, 1, backend)
            use(session, bundle, golden=any("golden" in name for name in damaged))
        except InputError as error:  # the other backends are tried all the same
            refused = error
    if refused is not None:
        raise refused


def use(session: Any, bundle: Any, *, golden: bool = False) -> None:
    """What a program does with a session."""
    from retnet_edge.runtime.parity.golden import replay_golden
    from retnet_edge.runtime.text.generate import generate
    from retnet_edge.runtime.text.sampling import Sampling
    from retnet_edge.runtime.text.snapshot import Snapshot

    vocabulary = bundle.manifest.model.vocab_size
    logits = session.prefill([token % vocabulary for token in TOKENS])
    assert logits.shape == (vocabulary,), f"logits of shape {logits.shape}"
    kept = Snapshot.of(session)
    session.step(vocabulary - 1)
    session.prefill([1 % vocabulary] * 131)
    kept.restore(session)
    session.step(0)
    if golden:
        replay_golden(bundle, session)
    session.reset()
    end = bundle.manifest.tokenizer.end_of_text
    text = generate(
        session, bundle.tokenizer(), PROMPT, max_tokens=6, sampling=Sampling(), end_of_text=end
    )
    assert isinstance("".join(text), str)


@cache
def _opened(bundle: Path) -> Any:
    from retnet_edge.runtime.bundle.bundle import Bundle

    return Bundle.open(bundle)


@cache
def _session(bundle: Path, backend: str) -> Any:
    from retnet_edge.runtime.backends.select import open_session

    return open_session(_opened(bundle), 1, backend)


def _whole_bundle() -> Path:
    """The bundle that state files belong to, unchanged."""
    return TESTS / "data" / "compatibility" / "bundle"


def read_state(case: Path, damaged: Sequence[str]) -> None:
    """Load each state file."""
    from retnet_edge.runtime.text.snapshot import load_snapshot

    for name in damaged:
        load_snapshot(case / name.split(":")[0], _opened(_whole_bundle()))


def continue_state(case: Path, damaged: Sequence[str]) -> None:
    """Load a state file, go on from it on each backend, and take the state again."""
    from retnet_edge.runtime.text.snapshot import Snapshot, load_snapshot

    bundle = _opened(_whole_bundle())
    for name in damaged:
        snapshot = load_snapshot(case / name.split(":")[0], bundle)
        for backend in bundle.manifest.backends:
            session = _session(_whole_bundle(), backend)
            snapshot.restore(session)
            session.step(3)
            session.prefill(TOKENS)
            Snapshot.of(session)


def read_tokenizer(case: Path, damaged: Sequence[str]) -> None:
    """Load it, encode and decode."""
    from retnet_edge.tokenizer import check_vocabulary, load_tokenizer

    path = case / "tokenizer.json"
    words = load_tokenizer(path)
    for text in (PROMPT, "", "<|endoftext|>", "a\0b", "x" * 300):
        ids = words.encode(text).ids
        assert isinstance(words.decode(ids), str)
    words.decode([0, 1, 5, 2**31])
    check_vocabulary(words, max(1, words.get_vocab_size()), path)


def tokenizer_in_bundle(case: Path, damaged: Sequence[str]) -> None:
    """The tokenizer inside a bundle that agrees with it, and text from there."""
    import json

    from fuzz.scene import mend
    from retnet_edge.runtime.text.model import load

    bundle = case / "model.edge"
    shutil.copytree(_whole_bundle(), bundle)
    (bundle / "tokenizer.json").unlink()
    if os.path.lexists(case / "tokenizer.json"):
        (case / "tokenizer.json").rename(bundle / "tokenizer.json")
    before = {
        f"model.edge/{name}": (_whole_bundle() / name).read_bytes()
        for name in ("tokenizer.json", "manifest.json")
    }
    if (bundle / "tokenizer.json").is_file() and not any(":" in name for name in damaged):
        mend(case, before)
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    manifest["tokenizer"]["end_of_text"] = None
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    "".join(load(bundle, threads=1, backend="native").generate(PROMPT, max_tokens=5))


def read_checkpoint(case: Path, damaged: Sequence[str]) -> None:
    """What `info` reads, and the configuration and tokenizer as every command does."""
    from retnet_edge.config import decode_config
    from retnet_edge.pipeline.info import info
    from retnet_edge.tokenizer import load_tokenizer

    folder = case / "checkpoint"
    info(folder)
    if (folder / "config.json").is_file():
        decode_config((folder / "config.json").read_bytes(), folder / "config.json")
    load_tokenizer(folder / "tokenizer.json")


def run_checkpoint(case: Path, damaged: Sequence[str]) -> None:
    """Load the model, and let it read a few tokens."""
    import torch

    from retnet_edge.model.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(case / "checkpoint")
    checkpoint.weights_sha256()
    with torch.no_grad():
        checkpoint.model(torch.tensor([TOKENS]) % checkpoint.config.vocab_size)


def read_run(case: Path, damaged: Sequence[str]) -> None:
    """Which step checkpoint a run would go on from."""
    from retnet_edge.training.step_checkpoint import StepCheckpoints

    with StepCheckpoints(case / "run" / "steps", group=None, first=True) as checkpoints:
        checkpoints.newest(lambda text: None)


def resume_run(case: Path, damaged: Sequence[str]) -> None:
    """Go on with the run for its last steps."""
    from micro_training import run

    from retnet_edge.errors import CheckFailed

    with suppress(CheckFailed):  # the loss is not finite: that is a verdict
        run(case / "inputs", case / "run")


def read_import(case: Path, damaged: Sequence[str]) -> None:
    """The weights by name, and whose names they are."""
    from retnet_edge.importing.checkpoint import detect_format
    from retnet_edge.importing.files import read_fields, read_source_weights

    read_fields(case / "source")
    detect_format(read_source_weights(case / "source"))


def take_import(case: Path, damaged: Sequence[str]) -> None:
    """The whole of `retnet-edge import`, and what it wrote is read."""
    import torch

    from retnet_edge.importing.checkpoint import import_checkpoint
    from retnet_edge.model.checkpoint import load_checkpoint

    import_checkpoint(case / "source", case / "taken", say=lambda text: None)
    model = load_checkpoint(case / "taken").model
    with torch.no_grad():
        model(torch.tensor([TOKENS]) % model.config.vocab_size)


BUNDLE_FILES = (
    *("model.edge/manifest.json", "model.edge/manifest.json", "model.edge/native.json"),
    *("model.edge/native.table", "model.edge/*.onnx", "model.edge/weights.bin"),
    *("model.edge/tokenizer.json", "model.edge/golden.npz"),
)
BUNDLES = ("bundle-old", "bundle-fp32", "bundle-int4", "bundle-growing")
IMPORTS = tuple(
    f"import-{name}"
    for name in (
        *("fla", "fla-shared", "syncdoth-lm-decay", "syncdoth-scaled"),
        *("torchscale-0.3.0", "torchscale-head-tied"),
    )
)
SOURCE_FILES = ("source/config.json", "source/*.index.json", "source/*.safetensors", "source/*.bin")

TARGETS = (
    Target("bundle", BUNDLES, BUNDLE_FILES, open_bundle, run_bundle, (10, 12)),
    Target("manifest", BUNDLES, BUNDLE_FILES[:1], open_bundle, run_bundle, (6, 6)),
    Target("plan", ("bundle-old",), BUNDLE_FILES[2:3], open_bundle, run_bundle, (3, 3)),
    Target("table", ("bundle-int4",), BUNDLE_FILES[3:4], open_bundle, run_bundle, (4, 4)),
    Target("packed", ("packed",), ("model.retnet",), open_packed, run_packed, (8, 8)),
    Target("graph", BUNDLES, ("model.edge/*.onnx",), open_bundle, run_bundle, (6, 5)),
    Target(
        "executorch",
        ("executorch",),
        ("model.edge/manifest.json", "model.edge/*.pte", "model.edge/golden.npz"),
        open_bundle,
        run_bundle,
        (2, 3),
    ),
    Target("prepared", ("prepared",), ("model.edge.prepared/*",), open_bundle, run_bundle, (2, 4)),
    Target("state", ("state",), ("*.state",), read_state, continue_state, (8, 5)),
    Target(
        "tokenizer",
        ("tokenizer-bpe", "tokenizer-unigram", "tokenizer-wordpiece"),
        ("tokenizer.json",),
        read_tokenizer,
        tokenizer_in_bundle,
        (10, 4),
    ),
    Target(
        "checkpoint",
        ("checkpoint", "checkpoint-transformer"),
        ("checkpoint/config.json", "checkpoint/model.safetensors", "checkpoint/tokenizer.json"),
        read_checkpoint,
        run_checkpoint,
        (8, 6),
    ),
    Target(
        "run",
        ("run",),
        (
            *("run/steps/*/manifest.json", "run/steps/*/.metadata", "run/steps/*/*.distcp"),
            *("run/run.json", "run/data/*", "run/metrics.jsonl", "run/tokenizer.json"),
        ),
        read_run,
        resume_run,
        (3, 1),
    ),
    Target("import", IMPORTS, (*SOURCE_FILES, "source/*.pt"), read_import, take_import, (5, 5)),
)


TORCH = ("checkpoint", "run", "import")
NATIVE = "retnet_edge.runtime.backends.native._native"


def runnable(name: str) -> bool:
    """Whether what this target runs is installed; its seeds may come from another machine."""
    needed = ("torch", "safetensors") if name in TORCH else ()
    needed = ("torch", "executorch") if name == "executorch" else needed
    if name == "packed" and importlib.util.find_spec(NATIVE) is None:
        return False
    return all(importlib.util.find_spec(package) is not None for package in needed)


def warm(names: Collection[str]) -> None:
    """Import what the targets of these names use, so that a forked worker need not."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import retnet_edge.pipeline.info
    import retnet_edge.runtime.backends.native.session
    import retnet_edge.runtime.backends.ort.kv_session
    import retnet_edge.runtime.backends.ort.session
    import retnet_edge.runtime.parity.golden
    import retnet_edge.runtime.text.model

    if not {"executorch", *TORCH}.isdisjoint(names):
        import torch

        torch.set_num_threads(1)
    if not set(TORCH).isdisjoint(names):
        import micro_training  # noqa: F401

        import retnet_edge.importing.checkpoint
        import retnet_edge.model.checkpoint
    if "executorch" in names:
        import retnet_edge.runtime.backends.executorch.session  # noqa: F401
