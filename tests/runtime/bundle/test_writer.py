"""Whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import Tiny
from tiny_bundle import write_tiny_bundle

from retnet_edge.atomic import new_folder
from retnet_edge.errors import InputError
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.manifest import Verification
from retnet_edge.runtime.bundle.writer import update_manifest, write_manifest


def test_a_bundle_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "b.edge"
    with new_folder(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub/a").write_text("a")
        assert not target.exists()
    assert (target / "sub/a").read_text() == "a"
    assert os.listdir(tmp_path) == ["b.edge"]
    assert target.stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt(), SystemExit(1)])
def test_nothing_is_left_after_an_exception(error: BaseException, tmp_path: Path) -> None:
    def fail() -> None:
        with new_folder(tmp_path / "b.edge") as folder:
            (folder / "a").write_text("a")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert os.listdir(tmp_path) == []


def test_a_target_that_exists(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("b", "dangling"):
        with pytest.raises(InputError, match=f"{name} exists already"), new_folder(tmp_path / name):
            pytest.fail("not reached")
    with pytest.raises(InputError, match="is not a directory"), new_folder(tmp_path / "x/b"):
        pytest.fail("not reached")


def test_a_target_that_appears_meanwhile(tmp_path: Path) -> None:
    target = tmp_path / "b"

    def build() -> None:
        with new_folder(target):
            target.mkdir()
            (target / "theirs").write_text("x")

    with pytest.raises(InputError, match="exists already"):
        build()
    assert os.listdir(tmp_path) == ["b"]
    assert os.listdir(target) == ["theirs"]


LIMITED = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from tiny_bundle import write_tiny_bundle
from retnet_edge.errors import InputError
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    write_tiny_bundle(Path(sys.argv[1]))
except InputError as error:
    print(error)
"""


def test_disk_full(tmp_path: Path) -> None:
    target = tmp_path / "b.edge"
    script = LIMITED.format(tests=str(Path(__file__).parents[2] / "helpers"))
    done = subprocess.run(
        [sys.executable, "-c", script, str(target)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"{target}: disk full")
    assert done.stdout.endswith("nothing was written\n")
    assert done.stdout.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_disk_full_in_the_words_of_another_library(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"disk full .* nothing was written"),
        new_folder(tmp_path / "b"),
    ):
        raise RuntimeError("I/O error: No space left on device (os error 28)")


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """A tmpfs of 64 kB, where the tests may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    return disk


def test_a_disk_that_really_is_full(small_disk: Path) -> None:
    try:
        with (
            pytest.raises(InputError, match="disk full"),
            new_folder(small_disk / "b") as folder,
        ):
            (folder / "weights.bin").write_bytes(b"\1" * 200_000)
        assert os.listdir(small_disk) == []
    finally:
        subprocess.run(["umount", str(small_disk)], check=True)


INTERRUPTED = """
import sys, time
import click
from pathlib import Path
from retnet_edge.cli import app as cli

@click.command()
@click.argument("target", type=click.Path(path_type=Path))
def slow(target):
    from retnet_edge.atomic import new_folder
    with new_folder(target) as folder:
        with (folder / "weights.bin").open("wb") as file:
            while True:
                file.write(b"x" * 1000)
                file.flush()
                time.sleep(0.01)

sys.modules["slow_command"] = sys.modules["__main__"]
cli.COMMANDS["slow"] = cli.LazyCommand("slow_command:slow", "Never ends.")
sys.exit(cli.main(["slow", sys.argv[1]]))
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_the_middle(number: signal.Signals, status: int, tmp_path: Path) -> None:
    target = tmp_path / "b.edge"
    child = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(target)], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".b.edge.*.partial/weights.bin")):
        assert child.poll() is None, child.stderr
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(number)
    _, stderr = child.communicate(timeout=60)
    assert child.returncode == status
    assert "Traceback" not in stderr
    assert os.listdir(tmp_path) == []


SLOW_TO_CLEAN = """
import os, shutil, signal, sys
from pathlib import Path
from retnet_edge.cli import app as cli
from retnet_edge.atomic import new_folder

real = shutil.rmtree

def impatient(*args, **options):
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    real(*args, **options)

shutil.rmtree = impatient
signal.signal(signal.SIGTERM, cli._terminate)
try:
    with new_folder(Path(sys.argv[1])) as folder:
        (folder / "weights.bin").write_bytes(b"x")
        os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("and still can be")
"""


def test_a_second_ctrl_c_does_not_stop_the_cleaning_up(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SLOW_TO_CLEAN, str(tmp_path / "b.edge")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "interrupted\nand still can be\n"
    assert os.listdir(tmp_path) == []


def test_a_bundle_is_cleaned_up_in_a_thread_too(tmp_path: Path) -> None:
    """Where signals cannot be ignored, and do not arrive."""

    def fail() -> None:
        with new_folder(tmp_path / "b.edge") as folder:
            (folder / "a").write_text("a")
            raise RuntimeError("on purpose")

    with ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError, match="on purpose"):
        pool.submit(fail).result()
    assert os.listdir(tmp_path) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from retnet_edge.atomic import replace_file

os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
replace_file(Path(sys.argv[1]), b"half")
"""


def test_what_a_killed_write_left_is_removed(broken: Path) -> None:
    (broken / "reports").mkdir()
    for name in ("manifest.json", "reports/parity.json"):
        killed = [sys.executable, "-c", KILLED, str(broken / name)]
        assert subprocess.run(killed, check=False).returncode == -signal.SIGKILL
    assert len(list(broken.rglob(".*.partial"))) == 2
    bundle = Bundle.open(broken)
    verdict = Verification(status="verified")
    assert update_manifest(bundle, verification=verdict).manifest.files == bundle.manifest.files
    assert not list(broken.rglob(".*"))


def test_the_manifest_lists_every_file_but_itself(broken: Path, tiny: Tiny) -> None:
    (broken / "reports").mkdir()
    (broken / "reports/parity.json").write_text("{}")
    manifest = write_manifest(broken, tiny.open().manifest)
    assert sorted(manifest.files) == [
        "prefill.onnx",
        "reports/parity.json",
        "step.onnx",
        "tokenizer.json",
        "weights.bin",
    ]
    assert Bundle.open(broken).manifest == manifest


def test_a_symlink_is_not_listed(broken: Path, tiny: Tiny) -> None:
    (broken / "link").symlink_to(broken / "weights.bin")
    with pytest.raises(InputError, match="link is a symlink"):
        write_manifest(broken, tiny.open().manifest)
    assert Bundle.open(broken).manifest == tiny.open().manifest


def test_a_verdict_is_added(broken: Path) -> None:
    bundle = Bundle.open(broken)
    (broken / "report.html").write_text("<html></html>")
    verdict = Verification(status="verified", report="report.html")
    updated = update_manifest(bundle, verification=verdict)
    assert updated.manifest.verification == verdict
    assert "report.html" in updated.manifest.files
    assert Bundle.open(broken) == updated


def test_a_verdict_does_not_cover_up_a_change(broken: Path) -> None:
    bundle = Bundle.open(broken)
    (broken / "weights.bin").write_bytes(b"other")
    before = (broken / "manifest.json").read_bytes()
    with pytest.raises(InputError, match=r"weights\.bin was changed"):
        update_manifest(bundle, verification=Verification(status="verified"))
    assert (broken / "manifest.json").read_bytes() == before


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tiny_bundle(tmp_path / name)
    assert (tmp_path / "a/manifest.json").read_bytes() == (
        tmp_path / "b/manifest.json"
    ).read_bytes()
