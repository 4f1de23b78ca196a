"""What is damaged: valid bundles, states, checkpoints, runs and imports, one folder each.

Committed files (tests/data) serve everywhere; what today's code writes is added where its libraries
are installed. They are made in a process of their own, `python -m fuzz.seeds FOLDER NAME …`: the
one that forks workers must have started no thread.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
OLD = TESTS / "data" / "compatibility"
IMPORTED = TESTS / "data" / "import"
WATCHED = ("retnet_edge", "export", "quantize", "runtime", "tests/helpers")


def _silent(text: str) -> None:
    pass


def _old(folder: Path) -> None:
    """The committed bundle for ONNX Runtime and the native backend."""
    shutil.copytree(OLD / "bundle", folder / "model.edge")


def _packed(folder: Path) -> None:
    """The committed bundle as one file, with all that it may hold."""
    from retnet_edge.runtime.packed.pack import pack

    licence, template = folder / "licence", folder / "template"
    licence.write_text("All rights and wrongs. ©")
    template.write_text("{{ messages[0].content }}")
    pack(
        OLD / "bundle",
        folder / "model.retnet",
        licence=licence,
        card=ROOT / "README.md",
        chat_template=template,
        say=_silent,
    )
    licence.unlink()
    template.unlink()


def _prepared(folder: Path) -> None:
    from retnet_edge.runtime.backends.ort.prepare import prepare

    _old(folder)
    prepare(folder / "model.edge", say=_silent)


def _state(folder: Path) -> None:
    """The bundle, a state file of an earlier version and one of this."""
    from retnet_edge.runtime.text.model import load

    _old(folder)
    shutil.copy(OLD / "onnxruntime.state", folder / "old.state")
    model = load(folder / "model.edge", threads=1)
    "".join(model.generate("the cat", max_tokens=9))
    model.save_state(folder / "new.state")


def _new(recipe: str) -> Callable[[Path], None]:
    """The committed checkpoint, exported and quantized by today's code."""

    def make(folder: Path) -> None:
        from retnet_edge.export.export import export
        from retnet_edge.quantize.quantize import quantize

        target = folder / "model.edge"
        exported = target if recipe == "fp32" else folder / "fp32.edge"
        export(OLD / "checkpoint", exported, say=_silent)
        if recipe != "fp32":
            quantize(exported, target, recipe=recipe, native=True, say=_silent)
            shutil.rmtree(exported)

    return make


def _growing(folder: Path) -> None:
    """A Transformer's bundle, by hand: its state grows."""
    from tiny_bundle import write_tiny_bundle

    write_tiny_bundle(folder / "model.edge", growing=True)


def _executorch(folder: Path) -> None:
    from retnet_edge.export.export import export

    export(OLD / "checkpoint", folder / "model.edge", to=("executorch",), say=_silent)


def _checkpoint(folder: Path) -> None:
    shutil.copytree(OLD / "checkpoint", folder / "checkpoint")


def _transformer(folder: Path) -> None:
    from micro_checkpoint import write_variant

    write_variant("transformer", folder)


def _run(folder: Path) -> None:
    """A run of 24 steps with checkpoints of steps 15 and 20, to be gone on with."""
    from micro_training import run, write_inputs

    inputs = folder / "inputs"
    inputs.mkdir()
    run(write_inputs(inputs), folder / "run")
    shutil.rmtree(folder / "run" / "checkpoint")


def _import(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        from tokenizers import Tokenizer, models

        shutil.copytree(IMPORTED / name, folder / "source")
        (folder / "source" / "expected.npz").unlink()
        words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
        words.save(str(folder / "source" / "tokenizer.json"))

    return make


def _tokenizer(kind: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

        if kind == "bpe":
            shutil.copy(OLD / "bundle" / "tokenizer.json", folder / "tokenizer.json")
            return
        if kind == "unigram":
            letters = [(letter, -float(n)) for n, letter in enumerate("abcdefghij klmno▁")]
            pairs = [(f"{a}{b}", -20.0) for a in "abcdefghijklmnop" for b in "abcdefghijklmnop▁"]
            words = Tokenizer(models.Unigram([("<unk>", 0.0), *letters, *pairs], unk_id=0))
            words.normalizer = normalizers.Sequence(
                [normalizers.NFKC(), normalizers.Replace("x", "y")]
            )
            words.pre_tokenizer = pre_tokenizers.Metaspace()
            words.decoder = decoders.Metaspace()
        else:
            pieces = ["[UNK]", "[CLS]", "[SEP]", "a", "b", "##c", *(f"##{n}" for n in range(290))]
            known = {piece: n for n, piece in enumerate(pieces)}
            words = Tokenizer(models.WordPiece(known, unk_token="[UNK]"))
            words.normalizer = normalizers.BertNormalizer()
            words.pre_tokenizer = pre_tokenizers.Sequence(
                [pre_tokenizers.Whitespace(), pre_tokenizers.Split("d", "isolated")]
            )
            words.decoder = decoders.WordPiece()
            words.post_processor = processors.TemplateProcessing(
                "[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
            )
            words.enable_truncation(20)
            words.enable_padding(length=8)
            words.add_special_tokens(["<s>", "</s>"])
        words.save(str(folder / "tokenizer.json"))

    return make


# Name -> how it is made, and the packages without which it cannot be.
SEEDS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "bundle-old": (_old, ()),
    "bundle-fp32": (_new("fp32"), ("torch", "onnx", "onnxscript")),
    "bundle-int4": (_new("int4"), ("torch", "onnx", "onnxscript")),
    "bundle-growing": (_growing, ("onnx",)),
    "executorch": (_executorch, ("torch", "executorch")),
    "packed": (_packed, ()),
    "prepared": (_prepared, ()),
    "state": (_state, ()),
    "checkpoint": (_checkpoint, ("torch", "safetensors")),
    "checkpoint-transformer": (_transformer, ("torch", "safetensors", "onnx")),
    "run": (_run, ("torch", "safetensors")),
    **{
        f"import-{name}": (_import(name), ("torch", "safetensors"))
        for name in (
            *("fla", "fla-shared", "syncdoth-lm-decay", "syncdoth-scaled"),
            *("torchscale-0.3.0", "torchscale-head-tied"),
        )
    },
    **{f"tokenizer-{kind}": (_tokenizer(kind), ()) for kind in ("bpe", "unigram", "wordpiece")},
}


def lacking(name: str) -> list[str]:
    """The packages that this seed needs to be made, and that are not installed."""
    return [package for package in SEEDS[name][1] if importlib.util.find_spec(package) is None]


def made(folder: Path, names: Iterable[str] = SEEDS) -> dict[str, Path]:
    """Of the named seeds those that are there, made first where they are missing or of other code.

    What cannot be made here, for want of a package, is taken as it lies: from another machine.
    """
    wanted = [name for name in SEEDS if name in set(names)]
    stamp = _stamp()
    for name in wanted:
        mark = folder / f"{name}.made-by"
        if not lacking(name) and (not mark.is_file() or mark.read_text() != stamp):
            shutil.rmtree(folder / name, ignore_errors=True)
    missing = [name for name in wanted if not (folder / name).is_dir() and not lacking(name)]
    if missing:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "fuzz.seeds", str(folder), *missing]
        subprocess.run(command, check=True, env=environment, cwd=ROOT)
        for name in missing:
            (folder / f"{name}.made-by").write_text(stamp)
    return {name: folder / name for name in wanted if (folder / name).is_dir()}


def _stamp() -> str:
    """Of the code that makes seeds, and of the machine, which prepared weights are for."""
    digest = hashlib.sha256(Path(__file__).read_bytes() + platform.node().encode())
    for top in WATCHED:
        for path in sorted((ROOT / top).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def make(folder: Path, names: Iterable[str]) -> None:
    """Make these seeds, which are not there."""
    for name in names:
        partial = folder / f".{name}.making"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        SEEDS[name][0](partial)
        partial.rename(folder / name)


if __name__ == "__main__":
    make(Path(sys.argv[1]), sys.argv[2:])
