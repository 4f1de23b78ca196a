"""What commands say beside their result, on standard error."""

from __future__ import annotations

import shutil
import sys
import textwrap

import click


def say(text: str) -> None:
    """Print a line on standard error; on a terminal it is broken between words, elsewhere never."""
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns
        text = textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)
    click.echo(text, err=True)
