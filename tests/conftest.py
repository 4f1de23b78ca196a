"""Fixtures that several folders of tests share."""

from __future__ import annotations

import os
import resource
import shutil
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, settings
from tiny_bundle import TinyModel, train_tokenizer, write_tiny_bundle

from retnet_edge.runtime.bundle.bundle import Bundle

# A busy machine is no fault of the code: the same examples in every run, and no clock among the
# checks. `make test PYTEST_ARGS=--hypothesis-profile=explore` draws others.
settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.register_profile("explore", settings.get_profile("ci"), derandomize=False)
settings.load_profile("ci")


def native_extension() -> dict[str, Any]:
    """What pyproject.toml says of the C library: sources, depends, extra-compile-args."""
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    (extension,) = tomllib.loads(text)["tool"]["setuptools"]["ext-modules"]
    found: dict[str, Any] = extension
    return found


@pytest.fixture(scope="session", autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `prepare` keeps its secret, for the processes that tests start, too."""
    folder = tmp_path_factory.mktemp("state_home")
    os.environ["XDG_STATE_HOME"] = str(folder)
    return folder


@dataclass(frozen=True)
class Tiny:
    """A bundle on disk and the model that it was written from."""

    path: Path
    model: TinyModel

    def open(self) -> Bundle:
        return Bundle.open(self.path)


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """No file grows beyond `limit` bytes: what a full disk looks like to a process."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)


@contextmanager
def another_thread_in(thing: Any) -> Iterator[None]:
    """It stands where a method of `thing`, a session or its like, would be while it computes."""
    entered, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with thing._caller:
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=stay)
    thread.start()
    entered.wait(60)
    try:
        yield
    finally:
        leave.set()
        thread.join()


def child_processes() -> set[str]:
    """Ids of the processes that any thread of this one has started and that still run."""
    return {
        pid
        for path in Path("/proc/self/task").glob("*/children")
        for pid in path.read_text().split()
    }


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A retention bundle that no test changes."""
    path = tmp_path_factory.mktemp("bundles") / "tiny.edge"
    return Tiny(path, write_tiny_bundle(path))


@pytest.fixture(scope="session")
def tiny_transformer(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """An attention bundle, whose state grows, that no test changes."""
    path = tmp_path_factory.mktemp("bundles") / "transformer.edge"
    return Tiny(path, write_tiny_bundle(path, growing=True))


@pytest.fixture
def broken(tiny: Tiny, tmp_path: Path) -> Path:
    """A copy of the retention bundle, to be broken."""
    return Path(shutil.copytree(tiny.path, tmp_path / "broken.edge"))


@pytest.fixture(scope="session")
def tokenizer() -> tokenizers.Tokenizer:
    """The tokenizer of the tiny bundles."""
    return train_tokenizer()
