# SPDX-License-Identifier: Apache-2.0
"""Machines to try things with, on one computer: network namespaces with a cable each, or loopback where there is no privilege.

Owns: namespaces, their cables, and the processes started in them. Must not know: what those do.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from .admission import make_token

__all__ = ["Lan", "Loopback", "why_not"]


def _run(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, check=check, timeout=30)


def why_not(*tools: str) -> str:
    """Say why no namespaces can be made here; empty if they can. `tools` are programs that are needed besides `ip`."""
    for tool in ("ip", *tools):
        if not shutil.which(tool):
            return f"{tool} is not installed (iproute2)"
    probe = f"fbxp{os.getpid() % 100000}"
    made = _run("ip", "netns", "add", probe, check=False)
    if made.returncode:
        return f"no privilege to make network namespaces: {made.stderr.strip()}"
    veth = _run("ip", "-n", probe, "link", "add", "va0", "type", "veth", "peer", "name", "vb0", check=False)
    _run("ip", "netns", "del", probe, check=False)
    return f"no virtual Ethernet here: {veth.stderr.strip()}" if veth.returncode else ""


class Loopback:
    """Machines that are only directories: their processes meet on loopback. `place` receives what they need."""

    def __init__(self, count: int, place: Path) -> None:
        self.count = count
        self.place = place
        self.token = place / "token"
        make_token(self.token)
        self.directories = [tempfile.mkdtemp(prefix="machine-", dir=place) for _ in range(count)]
        self.processes: list[subprocess.Popen[str]] = []

    def address(self, i: int) -> str:
        """Where machine i listens; a port of 0 for any."""
        return "127.0.0.1:0"

    def start(self, i: int, *words: str, **settings: Any) -> subprocess.Popen[str]:
        """Start a program on machine i."""
        env = {**os.environ, "FABREX_DIRECTORY": self.directories[i]}
        given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **settings}
        self.processes.append(subprocess.Popen(self._command(i, words), text=True, env=env, **given))
        return self.processes[-1]

    def _command(self, i: int, words: tuple[str, ...]) -> list[str]:
        return list(words)

    def close(self) -> None:
        """End what runs, and remove what was made, except the directories themselves."""
        from ..fabric import Fabric

        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate()
        for directory in self.directories:
            Fabric.prune(directory)
        self.token.unlink(missing_ok=True)


class Lan(Loopback):
    """Namespaces m0, m1, … around one that routes between them; their addresses are 10.77.0.1, 10.77.1.1, …"""

    def __init__(self, count: int, place: Path) -> None:
        super().__init__(count, place)
        self.tag = f"fbx{os.getpid() % 100000}"
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        hub = f"{self.tag}h"
        _run("ip", "netns", "add", hub)
        _run("ip", "netns", "exec", hub, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        for i in range(self.count):
            name = self.name(i)
            _run("ip", "netns", "add", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
            _run("ip", "-n", hub, "link", "add", f"v{i}", "type", "veth", "peer", "name", "eth0", "netns", name)
            _run("ip", "-n", hub, "addr", "add", f"10.77.{i}.254/24", "dev", f"v{i}")
            _run("ip", "-n", hub, "link", "set", f"v{i}", "up")
            _run("ip", "-n", name, "addr", "add", f"10.77.{i}.1/24", "dev", "eth0")
            _run("ip", "-n", name, "link", "set", "eth0", "up")
            _run("ip", "-n", name, "route", "add", "default", "via", f"10.77.{i}.254")

    def name(self, i: int) -> str:
        """The namespace of machine i."""
        return f"{self.tag}m{i}"

    def address(self, i: int) -> str:
        """Where machine i listens."""
        return f"10.77.{i}.1:4711"

    def netem(self, i: int, *words: str) -> str:
        """Delay or lose what machine i sends; "" or why that cannot be."""
        return self._queue(i, "netem", *words)

    def narrow(self, i: int, *words: str) -> str:
        """Limit what machine i sends in a second, by tbf, which more kernels have than netem; "" or why that cannot be."""
        return self._queue(i, "tbf", *words)

    def _queue(self, i: int, *words: str) -> str:
        done = _run("tc", "-n", self.name(i), "qdisc", "replace", "dev", "eth0", "root", *words, check=False)
        return done.stderr if done.returncode else ""

    def cut(self, apart: bool) -> None:
        """Let nothing through between machines, or everything again; nobody gets a reset."""
        word = f"echo {0 if apart else 1} > /proc/sys/net/ipv4/ip_forward"
        _run("ip", "netns", "exec", f"{self.tag}h", "sh", "-c", word)

    def _command(self, i: int, words: tuple[str, ...]) -> list[str]:
        return ["ip", "netns", "exec", self.name(i), *words]

    def close(self) -> None:
        """End what runs, and remove what was made."""
        super().close()
        for name in [f"{self.tag}h", *map(self.name, range(self.count))]:
            _run("ip", "netns", "del", name, check=False)
