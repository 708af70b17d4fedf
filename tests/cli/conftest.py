# SPDX-License-Identifier: Apache-2.0
"""A private directory for each test's fabrics, and fabricctl as a process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Result:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """Standard output as the one JSON document that it must be, checked against the schema."""
        import jsonschema

        import fabrex

        found: dict[str, Any] = json.loads(self.out)
        schema = Path(fabrex.__path__[0], "schema", "cli.schema.json").read_text(encoding="utf-8")
        jsonschema.Draft202012Validator(json.loads(schema)).validate(found)
        return found


class Cli:
    """Runs fabricctl with a directory of its own."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "FABREX_DEBUG", "NO_COLOR")}
        self.env |= {"FABREX_DIRECTORY": directory, "PYTHONDONTWRITEBYTECODE": "1"}

    def start(self, *words: str, **settings: Any) -> subprocess.Popen[Any]:
        """Start it and return the process."""
        env = {**self.env, **settings.pop("env", {})}
        return subprocess.Popen([sys.executable, "-m", "fabrex.cli", *words], env=env, **settings)

    def __call__(self, *words: str, input: str | None = None, env: dict[str, str] | None = None, cwd: Any = None) -> Result:
        """Run it to its end."""
        process = self.start(
            *words,
            stdin=subprocess.PIPE if input is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env or {},
            cwd=cwd,
        )
        out, err = process.communicate(input, timeout=90)
        assert "Traceback" not in err, err
        return Result(process.returncode, out, err)

    def good(self, *words: str, **settings: Any) -> Result:
        """Run it; it must succeed."""
        result = self(*words, **settings)
        assert result.code == 0, result.err
        return result

    def bad(self, code: int, *words: str, **settings: Any) -> str:
        """Run it; it must fail with this code and one line, which is returned."""
        result = self(*words, **settings)
        assert result.code == code, (result.code, result.out, result.err)
        lines = result.err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("fabricctl: "), result.err
        return lines[0]

    def here(self, code: int, *words: str) -> str:
        """As `bad`, but in this process, which is quicker."""
        import contextlib
        import io
        from unittest import mock

        from fabrex.cli import main

        out, err = io.StringIO(), io.StringIO()
        with mock.patch.dict(os.environ, {"FABREX_DIRECTORY": self.directory}):
            os.environ.pop("FABREX_DEBUG", None)
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                found = main(words)
        assert found == code, (found, out.getvalue(), err.getvalue())
        lines = err.getvalue().strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("fabricctl: "), err.getvalue()
        return lines[0]

    def segments(self) -> list[str]:
        """What is left in the directory."""
        return sorted(os.listdir(self.directory))


@pytest.fixture
def cli() -> Iterator[Cli]:
    directory = tempfile.mkdtemp(prefix="fabrex-test-", dir=os.environ["FABREX_DIRECTORY"])
    try:
        made = Cli(directory)
        yield made
        if made.segments():
            made("down", "--all", "--force")
        assert made.segments() == []
    finally:
        shutil.rmtree(directory, ignore_errors=True)
