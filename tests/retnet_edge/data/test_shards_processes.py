"""Shards made by several processes: the same bytes, and no half of them when one dies."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import text_files
from text_files import DOCUMENTS, SAVED, expected, files
from tokenizers import Tokenizer

from retnet_edge.data import shards as module
from retnet_edge.data.dataset import Shards
from retnet_edge.data.encoding import encode_groups
from retnet_edge.data.shards import write_shards
from retnet_edge.errors import InputError

bpe = text_files.bpe
source = text_files.source


def test_the_number_of_processes_cannot_be_seen(
    source: Path, bpe: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Manifest included; with more groups than are in flight, and other groups too."""
    one, two, three = (tmp_path / name for name in "123")
    write_shards([source, SAVED / "train"], bpe, one, shard_tokens=1_000)
    monkeypatch.setattr(module, "GROUP_CHARACTERS", 500)
    write_shards([source, SAVED / "train"], bpe, two, shard_tokens=1_000, workers=2)
    write_shards([source, SAVED / "train"], bpe, three, shard_tokens=1_000, workers=3)
    assert files(one) == files(two) == files(three)
    assert len(files(one)) > 10


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from retnet_edge.data import shards
from retnet_edge import atomic
from retnet_edge.tokenizer import load_tokenizer

moment, source, tokenizer, folder = sys.argv[1], *map(Path, sys.argv[2:])

def kill(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)

def half_removed(path, ignore_errors=False):
    if list(path.glob("shard-00002*")):
        next(path.glob("shard-00002*")).unlink()
        kill()

if moment == "between shards":
    real = shards.ShardWriter._close
    def close(self):
        real(self)
        if len(self.shards) == 3:
            kill()
    shards.ShardWriter._close = close
elif moment == "before the manifest":
    shards.ShardManifest.own_sha256 = kill
elif moment == "before the first rename":
    atomic._sync_tree = kill
elif moment == "while the old is removed":
    atomic.shutil.rmtree = half_removed
elif moment == "before the second rename":
    real = Path.rename
    Path.rename = lambda self, to: kill() if to == folder else real(self, to)
shards.write_shards([source], load_tokenizer(tokenizer), folder, shard_tokens=1_000)
"""
MOMENTS = {  # what is there afterwards
    "between shards": "old",
    "before the manifest": "old",
    "before the first rename": "old",
    "before the second rename": "none",
    "while the old is removed": "new",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_writer_leaves_the_old_shards_the_new_ones_or_none(
    moment: str, source: Path, bpe: Tokenizer, tmp_path: Path
) -> None:
    """And the next one makes them, and leaves nothing else."""
    bpe.save(str(tmp_path / "tokenizer.json"))
    old = tmp_path / "old.txt"
    old.write_text("An old text. " * 2_000)
    folder = write_shards([old], bpe, tmp_path / "data" / "train", shard_tokens=1_000)
    before = files(folder)
    command = [sys.executable, "-c", KILLED, moment]
    paths = [source, tmp_path / "tokenizer.json", folder]
    done = subprocess.run([*command, *map(str, paths)], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    if MOMENTS[moment] == "old":
        assert files(folder) == before
    elif MOMENTS[moment] == "new":
        assert Shards(folder).tokens().tolist() == expected(bpe, DOCUMENTS)
    else:
        assert not folder.exists()
    write_shards([source], bpe, folder, shard_tokens=1_000)
    assert Shards(folder).tokens().tolist() == expected(bpe, DOCUMENTS)
    assert os.listdir(folder.parent) == ["train"]


def test_a_process_that_dies_is_a_sentence(bpe: Tokenizer) -> None:
    def groups() -> Iterator[list[str]]:
        yield DOCUMENTS[:10]
        for _ in range(10):
            yield DOCUMENTS[:10]
            for child in multiprocessing.active_children():
                assert child.pid is not None
                with contextlib.suppress(ProcessLookupError):  # it died the round before
                    os.kill(child.pid, signal.SIGKILL)
                child.join()

    with pytest.raises(InputError, match=r"one of 2 tokenizing processes died"):
        for _ in encode_groups(groups(), bpe, "uint16", 2):
            pass


ENDLESS = """
import itertools, multiprocessing, sys
from pathlib import Path
from retnet_edge.data.encoding import encode_groups
from retnet_edge.tokenizer import load_tokenizer

bpe = load_tokenizer(Path(sys.argv[1]))
for _ in encode_groups(itertools.repeat(["a text"] * 10), bpe, "uint16", 2):
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
"""


def test_processes_end_when_their_parent_was_killed(bpe: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    bpe.save(str(path))
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(path)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        children = [int(pid) for pid in parent.stdout.readline().split()]
        parent.kill()
    assert children
    deadline = time.monotonic() + 60
    while any(alive(pid) for pid in children):
        assert time.monotonic() < deadline, "a process outlived its parent by a minute"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Running still; not a zombie that nobody has collected yet."""
    with contextlib.suppress(OSError):
        stat = Path(f"/proc/{pid}/stat").read_text()
        return stat.rsplit(")", 1)[1].split()[0] != "Z"
    return False
