"""The command line. Heavy imports are inside the verbs, so that `--help` answers at once."""

from softprompt.cli.app import app, main

__all__ = ["app", "main"]
