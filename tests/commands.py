"""The command line, as tests call it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from typer.testing import CliRunner

from softprompt.cli import app


def rows(path: Path, content: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


def run(*arguments: str):
    return CliRunner().invoke(app, list(map(str, arguments)))


def assert_refused(result, *parts: str, status: int = 2) -> None:
    """One message, the right status, nothing else."""
    assert (result.exit_code, result.stdout) == (status, ""), result.output
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("softprompt: ")
    assert result.stderr.count("\n") == 1, "one message on one line"
    for part in parts:
        assert re.search(part, result.stderr), result.stderr
