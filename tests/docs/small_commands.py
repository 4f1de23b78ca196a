"""`retnet-edge` for the blocks of the documentation: the same command line, at a small size.

The arguments are those of the page, and behind them the ones below, since of an option that is
given twice click takes the last: a page may ask for 7,000 steps, a test has seconds. What a page
makes under a name that its folder was prepared with (`.prepared`) replaces what was prepared. At
these sizes a figure of `verify` may fall short, which says nothing about the page.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click

from retnet_edge.cli.app import COMMANDS, cli, main

Options = dict[str, str | int]
_VERIFY: Options = {"tokens": 128, "context": 64, "memory-steps": 100, "threads": 1}
_TRAIN: Options = {"steps": 2, "batch": 4, "seq-len": 256, "warmup": 1, "eval-every": 2}
SMALL: dict[str, Options] = {
    "train": {**_TRAIN, "device": "cpu"},
    "tune": {"steps": 2, "batch": 1, "seq-len": 32, "device": "cpu"},
    "verify": _VERIFY,
    "build": _VERIFY,
    "bench": {"prompt": 8, "generate": 8, "depth": 0, "threads": 1, "repetitions": 1},
    "generate": {"max-tokens": 8, "threads": 1},
}
FLAGS = {"train": "--no-tensorboard", "verify": "--no-baseline", "build": "--no-baseline"}
MODEL: Options = {"model": "tiny"}
VOCABULARY: Options = {"vocab-size": 300}
"""Of a training that begins from no checkpoint; the latter of one that trains a tokenizer too."""
MAKERS = {"export", "build", "quantize", "tune", "import"}
"""Commands that write a new folder, which their second argument names."""
PREPARED = Path(".prepared")


def run(arguments: list[str]) -> int:
    """Run the command; its exit status, 0 where nothing but a figure fell short."""
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if command in COMMANDS and "--help" not in rest:  # the page's own line is a good one
        found = cli.get_command(click.Context(cli), command)
        assert found is not None
        found.make_context(command, list(rest))
    _make_room(command, rest)
    options = dict(SMALL.get(command, {}))
    if command == "train" and "--init" not in rest:
        options |= MODEL if "--tokenizer" in rest else MODEL | VOCABULARY
    more = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    status = main([*arguments, *more, *FLAGS.get(command, "").split()])
    if status == 1 and command in ("build", "verify"):
        print("(a figure fell short, at the size of a test)")
        return 0
    return status


def _make_room(command: str, rest: list[str]) -> None:
    names = PREPARED.read_text().splitlines() if PREPARED.exists() else []
    values = _positional(rest)
    out = None
    if command == "train" and "--out" in rest:
        out = rest[rest.index("--out") + 1]
    elif command in MAKERS and len(values) > 1:
        out = values[1]
    if out in names:
        shutil.rmtree(out)
        PREPARED.write_text("\n".join(name for name in names if name != out))


def _positional(rest: list[str]) -> list[str]:
    """The arguments before the first option, where the pages put them."""
    first = next((i for i, word in enumerate(rest) if word.startswith("-")), len(rest))
    return rest[:first]


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
