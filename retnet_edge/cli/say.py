"""What commands print: results on standard output, everything else on standard error.

Every sentence passes through here, so a control character out of a file's name or text is an escape
by the time that a terminal sees it (docs/decisions/0057-control-characters.md). So is what the
console's encoding lacks: both streams escape it (`escape_what_is_missing`).
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import TextIO

from retnet_edge.errors import printable


def say(text: str) -> None:
    """Print a line on standard error; on a terminal it is broken between words, elsewhere never."""
    text = printable(text)
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns
        text = textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)
    _write(sys.stderr, f"{text}\n")


def show(text: str) -> None:
    """Print a line on standard output."""
    _write(sys.stdout, f"{printable(text)}\n")


def show_piece(text: str) -> None:
    """Print a piece of a model's text on standard output, at once and as it is.

    On a terminal control characters are escaped: a bundle is somebody else's file, and its model
    may have learned to write them. A file or a pipe gets the text itself.
    """
    _write(sys.stdout, for_display(text))


def for_display(text: str) -> str:
    """A piece of a model's text as `show_piece` prints it."""
    return printable(text) if sys.stdout.isatty() else text


def escape_what_is_missing() -> None:
    """Have both streams write what their encoding lacks as \\xe9 or \\u2026, not fail."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # a caller's stream may be any object
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _write(stream: TextIO, text: str) -> None:
    # Not click.echo: it writes UTF-8 where the stream's encoding is ASCII.
    stream.write(text)
    stream.flush()
