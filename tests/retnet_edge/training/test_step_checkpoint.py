"""Step checkpoints: whole or not there, damage is found and named, nothing in them is executed."""

from __future__ import annotations

import os
import pickle
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from conftest import file_size_limit
from micro_training import OPTIONS, run, write_inputs
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from retnet_edge.errors import InputError
from retnet_edge.files import file_entry
from retnet_edge.training import step_checkpoint
from retnet_edge.training.optimizer import Optimizer
from retnet_edge.training.step_checkpoint import Progress, StepCheckpoints, read_manifest


def state(value: float) -> dict[str, Tensor]:
    return {
        "weights.a.b": torch.full((5, 3), value),
        "weights.a": torch.full((2,), -value),
        "step.a": torch.tensor(value),
    }


def open_in(folder: Path) -> StepCheckpoints:
    return StepCheckpoints(folder, group=None, first=True)


def saved(folder: Path, *steps: int) -> None:
    with open_in(folder) as checkpoints:
        for step in steps:
            checkpoints.save(Progress(step, step // 10), state(float(step)))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def never(text: str) -> None:
    raise AssertionError(f"said: {text}")


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    saved(tmp_path, 7, 12)
    checkpoints = open_in(tmp_path)
    newest = checkpoints.newest(never)
    assert newest == tmp_path / "step-00000012"
    found = state(0.0)
    places = {name: tensor.data_ptr() for name, tensor in found.items()}
    assert checkpoints.load(newest, found) == Progress(12, 1)
    for name, tensor in state(12.0).items():
        assert torch.equal(found[name], tensor)
        assert found[name].data_ptr() == places[name]
    assert names(newest) == [".metadata", "__0_0.distcp", "manifest.json"]
    assert set(read_manifest(newest).files) == {".metadata", "__0_0.distcp"}


def test_without_any_there_is_none(tmp_path: Path) -> None:
    assert open_in(tmp_path / "steps").newest(never) is None


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3, 4)
    assert names(tmp_path) == ["step-00000003", "step-00000004"]


def test_what_training_changes_meanwhile_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state is copied before `save` returns; writing waits here until it has been changed."""
    changed = threading.Event()
    real = FileSystemWriter.write_data

    def write(self: Any, *arguments: Any) -> Any:
        assert changed.wait(20)
        return real(self, *arguments)

    monkeypatch.setattr(FileSystemWriter, "write_data", write)
    with open_in(tmp_path) as checkpoints:
        live = state(3.0)
        checkpoints.save(Progress(3, 0), live)
        assert not (tmp_path / "step-00000003").exists()
        for tensor in live.values():
            tensor.fill_(100.0)
        changed.set()
    found = state(0.0)
    checkpoints.load(tmp_path / "step-00000003", found)
    assert all(torch.equal(found[name], tensor) for name, tensor in state(3.0).items())


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def alter(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("damage", "file", "sentence"),
    [
        (truncate, "__0_0.distcp", r"\d+ bytes where \d+ were written"),
        (alter, "__0_0.distcp", "altered since it was written"),
        (truncate, ".metadata", r"\d+ bytes where \d+ were written"),
        (alter, ".metadata", "altered since it was written"),
        (Path.unlink, "__0_0.distcp", "cannot be read: No such file or directory"),
        (Path.unlink, "manifest.json", "cannot be read: No such file or directory"),
        (halve, "manifest.json", "not the manifest of a"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    tmp_path: Path, damage: Callable[[Path], None], file: str, sentence: str
) -> None:
    saved(tmp_path, 5, 10)
    damage(tmp_path / "step-00000010" / file)
    said: list[str] = []
    assert open_in(tmp_path).newest(said.append) == tmp_path / "step-00000005"
    (line,) = said
    assert line.startswith(f"{tmp_path / 'step-00000010' / file}: ")
    assert line.endswith(": passed over")
    with pytest.raises(InputError, match=sentence):
        read_manifest(tmp_path / "step-00000010")

    damage(tmp_path / "step-00000005" / file)
    with pytest.raises(InputError, match="none of the 2 checkpoints is whole; remove the folder"):
        open_in(tmp_path).newest(said.append)


def test_a_step_saved_again_takes_the_place_of_the_damaged_one(tmp_path: Path) -> None:
    saved(tmp_path, 5, 10)
    truncate(tmp_path / "step-00000010" / ".metadata")
    saved(tmp_path, 8)
    assert names(tmp_path) == ["step-00000005", "step-00000008"]
    truncate(tmp_path / "step-00000008" / ".metadata")
    saved(tmp_path, 8)
    assert open_in(tmp_path).newest(never) == tmp_path / "step-00000008"


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    shutil.copytree(tmp_path / "step-00000005", tmp_path / ".step-00000010.partial")
    assert open_in(tmp_path).newest(never) == tmp_path / "step-00000005"
    assert names(tmp_path) == ["step-00000005"]


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["BOMB"],)


def test_a_pickle_that_would_execute_something_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its hash is right."""
    saved(tmp_path, 5)
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    path = tmp_path / "step-00000005"
    (path / ".metadata").write_bytes(pickle.dumps(Bomb()))
    manifest = read_manifest_anew(path)
    (path / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    assert open_in(tmp_path).newest(never) == path
    with pytest.raises(InputError, match=r"\.metadata asks for posix\.mkdir, which is not its"):
        open_in(tmp_path).load(path, state(0.0))
    assert not (tmp_path / "exploded").exists()
    pickle.loads((path / ".metadata").read_bytes())
    assert (tmp_path / "exploded").exists()  # the pickle was one that works


def read_manifest_anew(path: Path) -> step_checkpoint.Manifest:
    files = {file.name: file_entry(file) for file in path.iterdir() if file.suffix != ".json"}
    return step_checkpoint.Manifest(5, 0, files)


def test_a_tensor_that_the_checkpoint_lacks(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    wanted = {**state(0.0), "weights.c": torch.zeros(2)}
    with pytest.raises(InputError, match=r"step-00000005: cannot be read: .*weights\.c"):
        open_in(tmp_path).load(tmp_path / "step-00000005", wanted)


@pytest.mark.parametrize("limit", [100, 1_500, 3_000])
def test_a_full_disk_is_said_and_leaves_the_checkpoint_before(tmp_path: Path, limit: int) -> None:
    saved(tmp_path, 5)
    sizes = sorted(entry.size for entry in read_manifest(tmp_path / "step-00000005").files.values())
    assert limit < sizes[-1]
    checkpoints = open_in(tmp_path)
    with file_size_limit(limit):
        checkpoints.save(Progress(10, 0), state(1.0))
        with pytest.raises(InputError, match=f"{tmp_path}: disk full .*: no room for a step"):
            checkpoints.wait()
    assert names(tmp_path) == ["step-00000005"]


def test_the_state_is_what_adamw_makes_itself() -> None:
    """Moments made before the first step change nothing in it."""
    torch.manual_seed(0)
    models = [nn.Linear(4, 3) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [
        Optimizer(
            dict(model.named_parameters()), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1, clip=1.0
        )
        for model in models
    ]
    made = optimizers[1].training_state()
    assert set(made) == {
        f"{kind}.{name}"
        for kind in ("weights", "step", "exp_avg", "exp_avg_sq")
        for name in ("weight", "bias")
    }
    for model, optimizer in zip(models, optimizers, strict=True):
        for step in range(3):
            loss = model(torch.arange(8.0).reshape(2, 4) * (step + 1)).square().sum()
            loss.backward()
            optimizer.step(loss, 1e-3)
    found = [optimizer.training_state() for optimizer in optimizers]
    for name, tensor in found[0].items():
        assert torch.equal(tensor, found[1][name])
        assert found[1][name].data_ptr() == made[name].data_ptr()


def test_a_run_with_a_damaged_checkpoint_ends_with_the_same_bits(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path)
    run(inputs, tmp_path / "undisturbed")
    out = tmp_path / "run"
    shutil.copytree(tmp_path / "undisturbed", out)
    wanted = (out / "checkpoint" / "model.safetensors").read_bytes()
    shutil.rmtree(out / "checkpoint")
    alter(out / "steps" / "step-00000020" / "__0_0.distcp")
    said: list[str] = []
    run(inputs, out, OPTIONS, say=said.append)
    assert f"resuming from {out / 'steps' / 'step-00000015'}" in said
    assert any("step-00000020/__0_0.distcp: altered" in line for line in said)
    assert (out / "checkpoint" / "model.safetensors").read_bytes() == wanted
    assert names(out / "steps") == ["step-00000015", "step-00000020"]
    read_manifest(out / "steps" / "step-00000020")


@pytest.mark.parametrize(("step", "skipped"), [(-5, 0), (10**9, 0), (6, 0), (5, 6), (5, -1)])
def test_a_step_that_is_not_its_folders(tmp_path: Path, step: int, skipped: int) -> None:
    saved(tmp_path, 4, 5)
    path = tmp_path / "step-00000005" / "manifest.json"
    fields = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode({**fields, "step": step, "skipped": skipped}))
    said: list[str] = []
    assert open_in(tmp_path).newest(said.append) == tmp_path / "step-00000004"
    assert len(said) == 1
    assert str(path) in said[0]


@pytest.mark.parametrize("table", [b"", b"\x80\x04garbage", b"\x80\x04}.", b"("])
def test_a_table_of_contents_that_is_none_is_refused_without_traces(
    tmp_path: Path, table: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path, 5)
    (tmp_path / "step-00000005" / ".metadata").write_bytes(table)
    with pytest.raises(InputError, match=r"\.metadata: cannot be read"):
        open_in(tmp_path).load(tmp_path / "step-00000005", state(0.0))
    captured = capfd.readouterr()
    assert captured.err + captured.out == ""


@pytest.mark.parametrize("name", ["manifest.json", ".metadata"])
def test_what_is_no_file_is_named_and_not_waited_for(name: str, tmp_path: Path) -> None:
    saved(tmp_path, 5)
    path = tmp_path / "step-00000005"
    (path / name).unlink()
    os.mkfifo(path / name)
    with open_in(tmp_path) as checkpoints, pytest.raises(InputError, match="not a regular file"):
        checkpoints.load(path, state(0.0))
