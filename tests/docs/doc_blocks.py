"""The runnable blocks of README.md and docs/, found by sybil and run as they are written.

A block of Python, shell, console lines (`$ command`) or TOML runs in a folder of its document's
own (`doc_folder.py`), in the order of the page. One that cannot run here says why, in a comment
just before it: `<!-- not run: needs two GPUs -->`. `make docs-blocks` prints how many there are.
"""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from doc_folder import folder_of
from sybil import Example, Region, Sybil
from sybil.document import Document
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

ROOT = Path(__file__).parents[2]
DOCUMENTS = tuple(sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")]))
SHOWN = frozenset({"text", "json", "c", "cpp", "cmake", "html", "yaml"})
"""Languages of blocks that nobody would paste into a terminal or an interpreter."""
PARTS = {
    "readme": ("README.md", "docs/*.md", "docs/tutorial/*.md", "docs/decisions/*.md"),
    "how_to_first": ("docs/how-to/[a-m]*.md",),
    "how_to_second": ("docs/how-to/[n-z]*.md",),
    "reference": ("docs/reference/*.md", "docs/explanation/*.md"),
}
"""Which documents a file of tests/docs runs: pytest-xdist hands out whole files."""

_MARKER = re.compile(r"<!--\s*not run:(?P<reason>.*?)-->\s*", re.DOTALL)
_SHELL_SECONDS = 300


def reason_not_run(example: Example) -> str | None:
    """What the marker before a block says, "" for one that says nothing (None: no marker)."""
    before = example.document.text[: example.start]
    start = before.rfind("<!--")
    found = None if start < 0 else _MARKER.fullmatch(before[start:])
    return None if found is None else " ".join(found["reason"].split())


def blocks(documents: Iterable[Path] = DOCUMENTS) -> list[Any]:
    """A pytest parameter for every runnable block, named after its document and line."""
    return [
        pytest.param(example, id=f"{path.relative_to(ROOT)}:{example.line}")
        for path in documents
        for example in examples(path)
    ]


def blocks_of(part: str) -> list[Any]:
    """The blocks of one of PARTS."""
    return blocks(documents_of(part))


def documents_of(part: str) -> list[Path]:
    """The documents of one of PARTS, in order."""
    return sorted(path for pattern in PARTS[part] for path in ROOT.glob(pattern))


def examples(path: Path) -> Iterator[Example]:
    """The runnable blocks of a document, in order."""
    yield from _SYBIL.parse(path).examples()


def run(example: Example, factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a block in its document's folder; skip where a marker says why."""
    if reason := reason_not_run(example):
        pytest.skip(reason)
    folder, environment = folder_of(example.path, factory)
    monkeypatch.chdir(folder)
    example.namespace["__name__"] = "__main__"
    example.namespace["_environment"] = environment
    example.evaluate()


def _shell(example: Example) -> None:
    _bash(example.parsed, example.namespace["_environment"])


def _console(example: Example) -> None:
    """The lines after `$ `, and those that a backslash goes on to."""
    commands, goes_on = [], False
    for line in example.parsed.splitlines():
        if goes_on or line.startswith("$ "):
            commands.append(line if goes_on else line.removeprefix("$ "))
            goes_on = line.endswith("\\")
    assert commands, "a console block has at least one line that begins with `$ `"
    _bash("\n".join(commands), example.namespace["_environment"])


def _bash(script: str, environment: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_SHELL_SECONDS,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, f"exit status {done.returncode}:\n{script}\n{done.stdout[-3000:]}"


def _toml(example: Example) -> None:
    """A recipe is read as one, and lies in the folder under its name for the blocks that follow."""
    from retnet_edge.quantize.recipes.toml_file import read_recipe

    parsed = tomllib.loads(example.parsed)
    if "rules" in parsed:
        path = Path(f"{parsed['name']}.toml")
        path.write_text(example.parsed)
        read_recipe(path)


RUN: dict[str, Callable[[Example], None]] = {
    "python": PythonEvaluator(),
    "sh": _shell,
    "console": _console,
    "toml": _toml,
}
"""Languages of blocks that are run, and how."""


def _parse(document: Document) -> Iterator[Region]:
    for language, evaluate in RUN.items():
        yield from CodeBlockParser(language, evaluate)(document)


_SYBIL = Sybil([_parse], patterns=["*.md"], path=str(ROOT))


def table() -> str:
    """How many blocks of each part of the documentation are run and are not, and why not."""
    counts: Counter[tuple[str, bool]] = Counter()
    reasons: Counter[str] = Counter()
    for path in DOCUMENTS:
        where = path.relative_to(ROOT).parts
        part = "/".join(where[: len(where) - 1]) or where[0]
        for example in examples(path):
            reason = reason_not_run(example)
            counts[part, reason is None] += 1
            if reason is not None:
                reasons[reason] += 1
    lines = [f"{'':18} run  not run"]
    for part in sorted({part for part, _ in counts}):
        lines.append(f"{part:18} {counts[part, True]:3}  {counts[part, False]:7}")
    total = {run: sum(n for (_, is_run), n in counts.items() if is_run == run) for run in (1, 0)}
    lines += [f"{'all':18} {total[1]:3}  {total[0]:7}", ""]
    lines += [f"{count:3}  {reason}" for reason, count in sorted(reasons.items())]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
