"""The command line: `retnet-edge COMMAND`.

`--help` reads the table below and imports nothing else; a command's module is imported when the
command is called, and imports torch or a backend only inside the command. Exit status: 0 done,
1 the work says no, 2 bad usage or bad input, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from types import FrameType
from typing import NamedTuple

import click

from retnet_edge.cli.say import escape_what_is_missing, say
from retnet_edge.errors import (
    DISK_FULL,
    CheckFailed,
    InputError,
    ReportedElsewhere,
    is_disk_full,
    printable,
)
from retnet_edge.quiet import VARIABLE, Quiet
from retnet_edge.runtime.session.threads import check_thread_variables
from retnet_edge.version import __version__

PROGRAM = "retnet-edge"


class LazyCommand(NamedTuple):
    """Where a command lives ("module:click command") and its line in the list of commands."""

    target: str
    help: str


COMMANDS = {
    "train": LazyCommand("retnet_edge.cli.train:train", "Train a model on text files."),
    "import": LazyCommand(
        "retnet_edge.cli.importing:import_command", "Take another project's RetNet checkpoint."
    ),
    "export": LazyCommand("retnet_edge.cli.make:export", "Lower a checkpoint to an fp32 bundle."),
    "quantize": LazyCommand("retnet_edge.cli.make:quantize", "Apply a recipe to a bundle."),
    "tune": LazyCommand(
        "retnet_edge.cli.tune:tune", "Train a quantized bundle to predict as its model does."
    ),
    "verify": LazyCommand("retnet_edge.cli.make:verify", "Judge a bundle by its checkpoint."),
    "build": LazyCommand("retnet_edge.cli.make:build", "Export, quantize and verify in one go."),
    "pack": LazyCommand("retnet_edge.cli.make:pack", "Write a bundle as one file for C."),
    "generate": LazyCommand("retnet_edge.cli.run:generate", "Continue a text with a bundle."),
    "prepare": LazyCommand(
        "retnet_edge.cli.bench:prepare", "Pack a bundle's weights for this machine."
    ),
    "bench": LazyCommand("retnet_edge.cli.bench:bench", "Measure a bundle's speed and memory."),
    "info": LazyCommand("retnet_edge.cli.run:info", "Print what a bundle or checkpoint holds."),
}

# Packages of the extras of pyproject.toml, by the extra that installs them.
_EXTRAS = {
    "torch": "train",
    "safetensors": "train",
    "tensorboard": "train",
    "onnx": "export",
    "onnxscript": "export",
    "onnx_ir": "export",
    "jinja2": "export",
    "matplotlib": "export",
    "executorch": "executorch",
    "torchao": "executorch",
}


class Terminated(KeyboardInterrupt):
    """SIGTERM; what cleans up after Ctrl-C cleans up after this too."""


class LazyGroup(click.Group):
    """A group whose commands are those of COMMANDS, imported when asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now; None for a name that the table lacks."""
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name].target.split(":")
        command = getattr(import_module(module), name)
        assert isinstance(command, click.Command), f"{module}:{name} is not a click command"
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of `--help`, out of the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=f"{VARIABLE}=1 in the environment shows what other libraries warn of.",
)
@click.version_option(__version__, prog_name=PROGRAM)
def cli() -> None:
    """Retentive Network language models from training to a phone."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (None: of this process) and return its exit status."""
    signal.signal(signal.SIGTERM, _terminate)
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed by who started this process
            setattr(sys, stream, open(os.devnull, "w"))  # noqa: SIM115 - until the end
    escape_what_is_missing()
    quiet = Quiet()
    try:
        args = list(sys.argv[1:] if arguments is None else arguments)
        # Not cli.main(): click would turn Ctrl-C and broken pipes into statuses of its own.
        with cli.make_context(PROGRAM, args) as context, quiet:
            check_thread_variables()
            cli.invoke(context)
        sys.stdout.flush()
        return 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        told = io.StringIO()
        error.show(told)  # repeats what was typed
        sys.stderr.write(printable(told.getvalue()))
        return 2
    except InputError as error:
        return _fail(str(error), 2)
    except CheckFailed as verdict:
        return _fail(str(verdict), 1)
    except ReportedElsewhere:
        return 1
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            quiet.show()
            raise
        return _fail(f"{error.name} is not installed: pip install 'retnet-edge[{extra}]'", 2)
    except BrokenPipeError:
        # The reader has gone; what is still buffered must not fail again when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            return _fail(f"{error.filename}: {error.strerror}", 2)
        if is_disk_full(error):
            return _fail(f"{DISK_FULL}: {str(error).splitlines()[0]}", 2)
        quiet.show()
        raise
    except Terminated:
        return 128 + signal.SIGTERM
    except (KeyboardInterrupt, click.Abort):
        click.echo(err=True)  # a line of its own for what follows the terminal's ^C
        return 128 + signal.SIGINT


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _fail(sentence: str, status: int) -> int:
    say(f"{PROGRAM}: {sentence}")
    return status


if __name__ == "__main__":
    sys.exit(main())
