"""What ExecuTorch's programs are refused for: each one sentence, and nothing is left."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import executorch_bundles
import msgspec
import pytest
from micro_checkpoint import write_variant

from retnet_edge.errors import InputError
from retnet_edge.export.export import export
from retnet_edge.quantize.quantize import quantize
from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.manifest import MANIFEST_FILE, decode, encode
from retnet_edge.runtime.bundle.writer import write_manifest

checkpoint = executorch_bundles.checkpoint
both = executorch_bundles.both
int8 = executorch_bundles.int8


def test_what_is_refused(both: Path, int8: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Each one sentence; nothing is left."""
    out = tmp_path / "out.edge"
    with pytest.raises(InputError, match="is quantized from its checkpoint; give it with --check"):
        quantize(both, out, recipe="int8", say=lambda _: None)
    other = write_variant("affine", tmp_path / "other")
    with pytest.raises(InputError, match="was not made from"):
        quantize(both, out, recipe="int8", checkpoint=other, say=lambda _: None)
    with pytest.raises(InputError, match="recipe 'int4-weight' is for onnxruntime; known for exec"):
        quantize(both, out, recipe="int4-weight", checkpoint=checkpoint, say=lambda _: None)
    with pytest.raises(InputError, match="programs of executorch keep theirs in float32"):
        quantize(both, out, checkpoint=checkpoint, state="int8", say=lambda _: None)
    with pytest.raises(InputError, match=r"unknown backend 'tflite'; --to takes: onnx, executorch"):
        export(checkpoint, out, to=("tflite",))
    transformer = write_variant("transformer", tmp_path / "transformer")
    with pytest.raises(InputError, match="Transformer baseline is exported to onnx only"):
        export(transformer, out, to=("executorch",))
    assert not out.exists()


def damaged(both: Path, folder: Path, **changes: Any) -> Path:
    """A copy of the bundle with its step.pte replaced and the manifest telling the new hash."""

    shutil.copytree(both, folder)
    for name, raw in changes.items():
        (folder / f"{name}.pte").write_bytes(raw)
    manifest = decode((folder / MANIFEST_FILE).read_bytes(), "")
    write_manifest(folder, manifest)
    return folder


def test_programs_that_are_damaged_or_of_another_model(both: Path, tmp_path: Path) -> None:
    raw = (both / "step.pte").read_bytes()

    mutated = tmp_path / "mutated"
    shutil.copytree(both, mutated)
    (mutated / "step.pte").write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(InputError, match=r"step\.pte was changed: its SHA-256 is"):
        Bundle.open(mutated)
    short = tmp_path / "short"
    shutil.copytree(both, short)
    (short / "step.pte").write_bytes(raw[:1000])
    with pytest.raises(InputError, match=r"step\.pte has 1000 bytes; the manifest says"):
        Bundle.open(short)
    cannot = r"step\.pte: ExecuTorch [\d.]+ cannot load the program, which version [\d.]+ made"
    cut = damaged(both, tmp_path / "cut", step=raw[:1000])
    with pytest.raises(InputError, match=cannot):
        open_session(Bundle.open(cut), backend="executorch")
    swapped = damaged(both, tmp_path / "swapped", step=(both / "prefill.pte").read_bytes())
    wrong = r"program's tokens is int64 \[1, 64\]; the manifest says int64 \[1, 1\]"
    with pytest.raises(InputError, match=wrong):
        open_session(Bundle.open(swapped), backend="executorch")


def test_a_program_of_a_newer_executorch(both: Path, tmp_path: Path) -> None:
    raw = (both / "step.pte").read_bytes()
    newer = damaged(both, tmp_path / "newer", step=raw[:4] + b"ET99" + raw[8:])
    manifest = decode((newer / MANIFEST_FILE).read_bytes(), "")
    versions = manifest.provenance.versions | {"executorch": "9.1.0"}
    provenance = msgspec.structs.replace(manifest.provenance, versions=versions)
    write_manifest(newer, msgspec.structs.replace(manifest, provenance=provenance))
    sentence = r"ExecuTorch [\d.]+ cannot load the program, which version 9\.1\.0 made: "
    with pytest.raises(InputError, match=sentence):
        open_session(Bundle.open(newer), backend="executorch")


def test_states_that_are_not_those_of_the_manifest(both: Path, tmp_path: Path) -> None:
    """The manifest is consistent, and speaks of another model than the program."""
    folder = tmp_path / "bundle"
    shutil.copytree(both, folder)
    manifest = decode((folder / MANIFEST_FILE).read_bytes(), "")

    def turned(tensor: Any) -> Any:
        if "state" not in getattr(tensor, "name", "state"):
            return tensor
        *front, keys, values = tensor.shape
        return msgspec.structs.replace(tensor, shape=(*front, values, keys))

    graphs = tuple(
        msgspec.structs.replace(
            graph,
            inputs=tuple(map(turned, graph.inputs)),
            outputs=tuple(map(turned, graph.outputs)),
        )
        for graph in manifest.graphs
    )
    states = tuple(map(turned, manifest.states))
    heads = manifest.model.config
    turned_heads = {
        "key_head_dim": heads["value_head_dim"],
        "value_head_dim": heads["key_head_dim"],
    }
    model = msgspec.structs.replace(manifest.model, config={**heads, **turned_heads})
    changed = msgspec.structs.replace(manifest, model=model, graphs=graphs, states=states)
    write_manifest(folder, changed)
    sentence = (
        r"program's state_0 is float32 \[1, 2, 10, 14\]; the manifest says .*\[1, 2, 14, 10\]"
    )
    with pytest.raises(InputError, match=sentence):
        open_session(Bundle.open(folder), backend="executorch")


def test_without_executorch_the_extra_is_named(
    both: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """`import retnet_edge` and the other backend work; asking for this one is a sentence."""
    script = (
        "import sys; sys.modules['executorch'] = None; from retnet_edge.cli import main; "
        "sys.exit(main(sys.argv[1:]))"
    )
    generate = ["generate", str(both), "-p", "the", "-n", "2", "--backend"]
    out = tmp_path / "out.edge"
    asked = (
        ([*generate, "onnxruntime"], 0, ""),
        ([*generate, "executorch"], 2, "executorch needs executorch, which is not installed"),
        (["export", str(checkpoint), str(out), "--to", "executorch"], 2, "is not installed"),
    )
    for arguments, status, sentence in asked:
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == status, done.stderr
        last = (done.stderr.splitlines() or [""])[-1]
        assert sentence in last
        assert ("pip install 'retnet-edge[executorch]'" in last) == (status == 2)
        assert "Traceback" not in done.stderr
    assert not out.exists()


def test_a_manifest_whose_program_has_another_shape(both: Path, tmp_path: Path) -> None:

    folder = tmp_path / "bundle"
    shutil.copytree(both, folder)
    manifest = decode((folder / MANIFEST_FILE).read_bytes(), "")
    graphs = []
    for graph in manifest.graphs:
        if graph.file == "step.pte":
            wide = msgspec.structs.replace(graph.inputs[2], shape=(2, 2, 10, 14))
            graph = msgspec.structs.replace(
                graph, inputs=(*graph.inputs[:2], wide, *graph.inputs[3:])
            )
        graphs.append(graph)
    changed = msgspec.structs.replace(manifest, graphs=tuple(graphs))
    (folder / MANIFEST_FILE).write_bytes(encode(changed))
    with pytest.raises(InputError, match=r"step\.pte has state_0 as float32 \[2, 2, 10, 14\]"):
        Bundle.open(folder)
