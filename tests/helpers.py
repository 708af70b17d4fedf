# SPDX-License-Identifier: Apache-2.0
"""What the tests of the core share: a place of their own for segments, small topologies, and processes to talk to.

A test module takes the fixtures with ``pytest_plugins = ["helpers"]``.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import queue
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fabrex

DEADLINE = 30.0  # seconds after which a process that says nothing is taken to hang


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of the test's own for segments; the test must leave nothing there."""
    path = Path(tempfile.mkdtemp(prefix="fabrex-test-", dir=os.environ["FABREX_DIRECTORY"]))
    monkeypatch.setenv("FABREX_DIRECTORY", str(path))
    yield path
    gc.collect()
    left = sorted(entry.name for entry in path.iterdir())
    shutil.rmtree(path)
    assert not left, f"left behind: {left}"


@pytest.fixture
def children() -> Iterator[Callable[..., Child]]:
    """Start processes that do not outlive the test."""
    started: list[Child] = []

    def start(code: str, *arguments: Any, **options: Any) -> Child:
        child = Child(code, *arguments, **options)
        started.append(child)
        return child

    yield start
    for child in started:
        child.end()


def topology(
    hosts: int = 2,
    *,
    size: str = "16MiB",
    delay: str = "5ns",
    ntb: str | None = None,
    sizes: dict[str, str] | None = None,
    latency: str = "0ns",
    **settings: Any,
) -> fabrex.Topology:
    """Hosts on one switch, or two on one link."""
    nodes: dict[str, Any] = {}
    for i in range(hosts):
        memory = {"size": (sizes or {}).get(f"host{i}", size), "latency": latency}
        nodes[f"host{i}"] = {"kind": "host", "memory": {"dram": memory}} | ({"ntb": ntb} if ntb else {})
    pcie = {"gen": 4, "lanes": 16}
    if hosts == 2:
        links = [{"endpoints": ["host0:ntb0", "host1:ntb0"], "pcie": pcie, "delay": delay}]
    else:
        nodes["sw0"] = {"kind": "switch", "delay": "105ns"}
        links = [{"endpoints": [f"host{i}:ntb0", f"sw0:p{i}"], "pcie": pcie, "delay": delay} for i in range(hosts)]
    return fabrex.Topology.from_dict({"fabrex": 1, "name": "test", "nodes": nodes, "links": links, **settings})


@contextlib.contextmanager
def persistent(described: Any, name: str = "lab", **options: Any) -> Iterator[fabrex.Fabric]:
    """A persistent fabric that ends with the block, whoever died in it."""
    fabric = fabrex.Fabric.create(described, name, persistent=True, **options)
    try:
        yield fabric
    finally:
        fabric.close()
        with contextlib.suppress(fabrex.FabricNotFound):
            fabrex.Fabric.destroy(name, force=True)


PRELUDE = """
import json, os, sys, time, signal, threading
import fabrex
def say(*values):
    sys.stdout.write(json.dumps(values) + "\\n")
    sys.stdout.flush()
def hear():
    line = sys.stdin.readline()
    if not line:
        os._exit(0)
    return json.loads(line)
fabrex.Fabric, fabrex.Node
arguments = json.loads(sys.argv[1])
"""


class Child:
    """A Python process that says JSON lines: `say(...)` and `hear()` there, `expect` and `tell` here."""

    def __init__(self, code: str, *arguments: Any, environment: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + textwrap.dedent(code), json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self.pid = self.process.pid
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._errors: list[str] = []
        self._readers = [threading.Thread(target=f, daemon=True) for f in (self._read, self._read_errors)]
        for reader in self._readers:
            reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _read_errors(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self._errors.append(line)

    def hear(self, timeout: float = DEADLINE) -> Any:
        """Return the next thing it says: a value, or a list of several."""
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise AssertionError(f"process {self.pid} says nothing for {timeout} s; {self.errors()}") from None
        if line is None:
            self.process.wait(DEADLINE)
            raise AssertionError(f"process {self.pid} ended with {self.process.returncode}: {self.errors()}")
        values = json.loads(line)
        return values[0] if len(values) == 1 else values

    def expect(self, *values: Any, timeout: float = DEADLINE) -> None:
        """The next thing it says must be this."""
        said = self.hear(timeout)
        assert said == (values[0] if len(values) == 1 else list(values))

    def tell(self, *values: Any) -> None:
        """Send it a value (several: as a list)."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps(values[0] if len(values) == 1 else values) + "\n")
        self.process.stdin.flush()

    def errors(self) -> str:
        """Return what it wrote to standard error so far."""
        return "".join(self._errors)

    def kill(self) -> None:
        """End it at whatever instruction it is."""
        self.process.kill()
        self.process.wait(DEADLINE)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def finish(self, timeout: float = DEADLINE) -> None:
        """It ends by itself and without an error."""
        assert self.process.wait(timeout) == 0, self.errors()

    def end(self) -> None:
        """Whatever it does, it is over now."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait(DEADLINE)
        for reader in self._readers:
            reader.join(DEADLINE)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()


def run(code: str, *arguments: Any, environment: dict[str, str] | None = None) -> Any:
    """Run a program that says one thing; return it. A death by signal is an assertion with the signal's name."""
    child = Child(code, *arguments, environment=environment)
    try:
        said = child.hear()
        child.process.wait(DEADLINE)
        code_ = child.process.returncode
        name = signal.Signals(-code_).name if code_ < 0 else str(code_)
        assert code_ == 0, f"said {said!r}, then ended with {name}: {child.errors()}"
        return said
    finally:
        child.end()


def eventually(condition: Callable[[], Any], timeout: float = 5.0) -> Any:
    """Wait until `condition()` is true and return it; False after the deadline."""
    end = time.monotonic() + timeout
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.002)
    return found


# ---- the control segment, for those who damage it -------------------------------------------------------------------


def control_path(name: str = "lab") -> Path:
    """Path of a fabric's control segment."""
    return Path(os.environ["FABREX_DIRECTORY"]) / f"fabrex@{os.getuid()}@{name}"


# struct fbxl_header of csrc/layout.h, as far as tests need it.
HEADER = {"magic": (0, "Q"), "version": (8, "I"), "layout_hash": (16, "Q"), "page_bytes": (24, "I"), "instance": (32, "Q")}
BOOT_ID = 64
TABLES = {"nodes": 0, "regions": 1, "links": 2, "directions": 3, "sessions": 4, "requesters": 5, "lanes": 6, "buffers": 7,
          "names": 8, "buckets": 9}  # fmt: skip
TABLE_AT = 256  # header.table[0]: offset u64, stride u32, capacity u32, high u32, pad u32
TABLE_BYTES = 24


def patch(path: Path, offset: int, data: bytes) -> bytes:
    """Overwrite bytes of a file in place; return what was there."""
    with path.open("r+b") as file:
        file.seek(offset)
        before = file.read(len(data))
        file.seek(offset)
        file.write(data)
    return before


def head(path: Path) -> bytes:
    """Return the start of a control segment: its header and the tables that are written once."""
    with path.open("rb") as file:
        return file.read(1 << 16)


def patch_word(path: Path, field: str, value: int) -> None:
    """Overwrite one field of the header."""
    offset, kind = HEADER[field]
    patch(path, offset, struct.pack("<" + kind, value))


def table(path: Path, name: str) -> tuple[int, int, int, int]:
    """Return offset, stride, capacity and high mark of a table of the control segment."""
    with path.open("rb") as file:
        file.seek(TABLE_AT + TABLES[name] * TABLE_BYTES)
        offset, stride, capacity, high = struct.unpack("<QIII", file.read(20))
    return offset, stride, capacity, high


def descriptors() -> int:
    """How many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


def mapped(text: str) -> list[str]:
    """Lines of this process's memory map that contain `text`."""
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if re.search(text, line)]
