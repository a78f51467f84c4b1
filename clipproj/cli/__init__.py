"""The `clipproj` command. What it does without a terminal is `clipproj.cli.erase.erase`."""

from clipproj_command import main

__all__ = ["main"]
