# SPDX-License-Identifier: Apache-2.0
"""Ways between two nodes, for the conformance suite (test_transports.py): one class each.

A transport joins the suite by a class here with `start` and an entry in `TRANSPORTS`. `start` makes host0 and host1 of a
topology and returns host0's handle and a peer that acts as host1, wherever that is: `peer.node.load(gva)` is a call of host1's
handle, with its result or its exception.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fabrex

MACHINES = {"m0": {"nodes": ["host0", "sw0"]}, "m1": {"nodes": ["host1"]}}


def topology(**settings: Any) -> fabrex.Topology:
    """Two hosts on a switch."""
    nodes: dict[str, Any] = {f"host{i}": {"kind": "host", "memory": {"dram": "32MiB"}} for i in range(2)}
    nodes["sw0"] = {"kind": "switch", "delay": "105ns"}
    links = [{"endpoints": [f"host{i}:ntb0", f"sw0:p{i}"], "pcie": {"gen": 4, "lanes": 16}, "delay": "5ns"} for i in range(2)]
    return fabrex.Topology("two", nodes, links, **settings)


class Peer:
    """Acts as host1 in this process."""

    def __init__(self, fabric: fabrex.Fabric, node: fabrex.Node) -> None:
        self.fabric, self.node = fabric, node

    def call(self, path: str, *arguments: Any, **named: Any) -> Any:
        """Return what `path` (as in "node.load") gives."""
        return run(self.fabric, self.node, path, arguments, named)

    def send(self, path: str, *arguments: Any, **named: Any) -> None:
        """Do it at once; `result` has what came of it."""
        self._result = self.call(path, *arguments, **named)

    def result(self) -> Any:
        """Return what was asked."""
        return self._result


def run(fabric: fabrex.Fabric, node: fabrex.Node, path: str, arguments: Any, named: Any) -> Any:
    """One call on behalf of a peer; as `stores`, stores one right behind the other; as `program`, what `work` of a text does."""
    if path == "program":
        names: dict[str, Any] = {}
        exec(arguments[0], names)
        return names["work"](fabric, node, *arguments[1:])
    if path == "stores":
        for gva, value, how in arguments:
            node.store(gva, value, **how)
        return None
    target: Any = {"fabric": fabric, "node": node}[path.split(".")[0]]
    for name in path.split(".")[1:]:
        target = getattr(target, name)
    result = target(*arguments, **named)
    if isinstance(result, fabrex.Buffer):
        return result.handle()
    return result


SERVER = textwrap.dedent(
    """
    import pickle, struct, sys
    sys.path.insert(0, sys.argv[1])
    import fabrex, transports
    def answer(value):
        data = pickle.dumps(value)
        out.write(struct.pack("<I", len(data)) + data)
        out.flush()
    out, sys.stdout = sys.stdout.buffer, sys.stderr
    how, arguments = pickle.loads(bytes.fromhex(sys.argv[2]))
    name = arguments[1].pop("node", "host1")
    with getattr(fabrex.Fabric, how)(*arguments[0], **arguments[1]) as fabric, fabric.attach(name, role="owner") as node:
        answer(None)
        while head := sys.stdin.buffer.read(4):
            path, given, named = pickle.loads(sys.stdin.buffer.read(struct.unpack("<I", head)[0]))
            try:
                answer((True, transports.run(fabric, node, path, given, named)))
            except Exception as error:
                answer((False, error))
    """
)


class Remote:
    """Acts as host1 (or as `node`) in a process of its own."""

    def __init__(self, how: str, *arguments: Any, **named: Any) -> None:
        given = pickle.dumps((how, (arguments, named))).hex()
        command = [sys.executable, "-c", SERVER, str(Path(__file__).parent), given]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        head = self._process.stdout.read(4)
        assert head, "the peer's process ended"
        [size], data = struct.unpack("<I", head), b""
        while len(data) < size:
            data += self._process.stdout.read(size - len(data))
        return pickle.loads(data)

    def send(self, path: str, *arguments: Any, **named: Any) -> None:
        """Ask; `result` waits."""
        assert self._process.stdin is not None
        data = pickle.dumps((path, arguments, named))
        self._process.stdin.write(struct.pack("<I", len(data)) + data)

    def result(self) -> Any:
        """Return what was asked."""
        good, value = self._read()
        if not good:
            raise value
        return value

    def call(self, path: str, *arguments: Any, **named: Any) -> Any:
        """Return what `path` gives there."""
        self.send(path, *arguments, **named)
        return self.result()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()


class Loop:
    """Both nodes in one process."""

    @staticmethod
    @contextmanager
    def start(**settings: Any) -> Iterator[tuple[fabrex.Fabric, fabrex.Node, Any]]:
        """Make both nodes."""
        behaviour = {key: settings.pop(key) for key in ("windows",) if key in settings}
        with (
            fabrex.Fabric.create(topology(**behaviour), **settings) as fabric,
            fabric.attach("host0", role="owner") as near,
            fabric.attach("host1", role="owner") as far,
        ):
            yield fabric, near, Peer(fabric, far)


class Shm:
    """Two processes of one machine."""

    @staticmethod
    @contextmanager
    def start(**settings: Any) -> Iterator[tuple[fabrex.Fabric, fabrex.Node, Any]]:
        """Make both nodes."""
        behaviour = {key: settings.pop(key) for key in ("windows",) if key in settings}
        with fabrex.Fabric.create(topology(**behaviour), **settings) as fabric, fabric.attach("host0", role="owner") as near:
            peer = Remote("open", fabric.name, fabric.directory)
            try:
                yield fabric, near, peer
            finally:
                peer.close()


class Socket:
    """Two machines: processes with a directory each, connected over loopback TCP."""

    @staticmethod
    @contextmanager
    def start(**settings: Any) -> Iterator[tuple[fabrex.Fabric, fabrex.Node, Any]]:
        """Make both nodes."""
        behaviour = {key: settings.pop(key) for key in ("windows",) if key in settings}
        described = topology(machines=MACHINES, **behaviour)
        there = tempfile.mkdtemp(prefix="machine-", dir=os.environ["FABREX_DIRECTORY"])
        try:
            with fabrex.Fabric.host(described, **settings) as fabric, fabric.attach("host0", role="owner") as near:
                address = f"127.0.0.1:{fabric.agent.address[1]}"
                peer = Remote("join", address, "m1", directory=there)
                try:
                    fabric.agent.wait_for(timeout=20)
                    yield fabric, near, peer
                finally:
                    peer.close()
        finally:
            with contextlib.suppress(OSError):
                os.rmdir(there)
            assert not os.path.exists(there), os.listdir(there)


TRANSPORTS: dict[str, Any] = {"loop": Loop, "shm": Shm, "socket": Socket}
