"""The command line: `retnet-edge COMMAND`, one file a group of commands."""

from retnet_edge.cli.app import main

__all__ = ["main"]
