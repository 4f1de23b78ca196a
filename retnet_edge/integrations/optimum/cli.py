"""What `optimum-cli` finds of us: `optimum-cli export onnx` knows our checkpoints.

optimum's command imports every file of the namespace optimum.commands.register, and ours calls
`install` (optimum_plugin/register_retnet_edge.py). It has no hook for a model's registration, so
the command's `run` is wrapped: what costs seconds to import is imported when an export begins.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from retnet_edge.config import CONFIG_BYTES, MODEL_TYPE
from retnet_edge.errors import InputError
from retnet_edge.files import read_input

# what a graph that is lowered by us and not traced by optimum cannot be asked for
_REFUSED = ("optimize", "slim", "no_dynamic_axes", "monolith", "no_post_process", "opset")


def install(command: type[Any]) -> None:
    """Wrap the `run` of optimum's ONNXExportCommand, once."""
    run = command.run
    if getattr(run, "knows_retnet_edge", False):
        return

    def with_retnet_edge(self: Any) -> None:
        if not is_ours(self.args.model):
            run(self)
            return
        try:
            _check(self.args)
            run(self)
        except InputError as error:
            print(f"optimum-cli: {error}", file=sys.stderr)
            sys.exit(2)

    with_retnet_edge.knows_retnet_edge = True  # type: ignore[attr-defined]
    command.run = with_retnet_edge


def is_ours(model: str | Path) -> bool:
    """Whether `model` is a directory whose config.json names our model type."""
    try:
        raw = read_input(Path(model) / "config.json", CONFIG_BYTES, "a configuration")
        config = json.loads(raw)
    except (InputError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and config.get("model_type") == MODEL_TYPE


def _check(args: Any) -> None:
    """Register our model, and name the task, which optimum infers for no local directory."""
    from retnet_edge.integrations.optimum.export import TASK

    for name in _REFUSED:
        if getattr(args, name, None):
            option = name.replace("_", "-") if name != "no_dynamic_axes" else name
            raise InputError(
                f"--{option} was given; a RetNet's step graph is exported in one form, without it"
            )
    if args.task == "auto":
        args.task = TASK
    elif args.task != TASK:
        raise InputError(f"--task is {args.task}; a RetNet's step graph is for {TASK}")
