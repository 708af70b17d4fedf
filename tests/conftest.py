# SPDX-License-Identifier: Apache-2.0
"""For all tests: a place of this run's own for segments, and the check that nothing is left there when it ends.

`FABREX_DIRECTORY` is a fresh directory (each worker of pytest-xdist has one inside it), so what tests create by default never
meets what else is on the machine. Whatever is still there at the end fails the run, by name.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

ROOT = pytest.StashKey[Path]()
GIVEN = pytest.StashKey[str]()
LEFT = pytest.StashKey[list[str]]()


def roomy_directory() -> str:
    """Where the tests' segments go: /dev/shm, or a directory on disk where that is too small for a thousand nodes."""
    try:
        found = os.statvfs("/dev/shm")
        if os.access("/dev/shm", os.W_OK) and found.f_bavail * found.f_frsize >= 512 << 20:
            return "/dev/shm"
    except FileNotFoundError:
        pass
    return tempfile.gettempdir()


def pytest_configure(config: pytest.Config) -> None:
    # A shell's job in the background ignores interrupts, and its children would; the tests that send some would wait for ever.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    worker = getattr(config, "workerinput", {}).get("workerid")
    if worker is not None:
        own = Path(os.environ["FABREX_DIRECTORY"]) / worker
        own.mkdir()
        os.environ["FABREX_DIRECTORY"] = str(own)
        return
    config.stash[GIVEN] = os.environ.get("FABREX_DIRECTORY", "")
    above = config.stash[GIVEN] or roomy_directory()
    config.stash[ROOT] = Path(tempfile.mkdtemp(prefix="fabrex-tests-", dir=above))
    os.environ["FABREX_DIRECTORY"] = str(config.stash[ROOT])


def _left(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    root = session.config.stash.get(ROOT, None)
    if root is None:
        return
    # Processes that were killed last may be cleaned up after a moment later.
    deadline = time.monotonic() + 2.0
    while (left := _left(root)) and time.monotonic() < deadline:
        time.sleep(0.02)
    session.config.stash[LEFT] = left
    if left and not session.exitstatus:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    left = config.stash.get(LEFT, [])
    if left:
        terminalreporter.section("left behind in FABREX_DIRECTORY", red=True, bold=True)
        terminalreporter.write_line("\n".join(left))


def pytest_unconfigure(config: pytest.Config) -> None:
    root = config.stash.get(ROOT, None)
    if root is not None:
        with contextlib.suppress(OSError):
            shutil.rmtree(root)
        os.environ.pop("FABREX_DIRECTORY", None)
        if config.stash[GIVEN]:
            os.environ["FABREX_DIRECTORY"] = config.stash[GIVEN]
