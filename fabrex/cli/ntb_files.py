# SPDX-License-Identifier: Apache-2.0
"""`ntb-tool MOUNTPOINT --fabric NAME`: the files of the kernel's NTB test drivers."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from . import output
from .common import open_fabric
from .output import CommandError, document, emit, note, table, usage


def mount(arguments: Any) -> int:
    """Serve the tree until it is unmounted or this process is ended."""
    from ..ntbtool import Debugfs, Settings
    from ..ntbtool.mount import missing, serve
    from ..ntbtool.perf import Parameters

    for name, low, high in (("delay_ms", 0, 3_600_000), ("total_order", 0, 40), ("chunk_order", 0, 20), ("windows", 1, 1 << 20)):
        value = getattr(arguments, name)
        if value is not None and not low <= value <= high:
            usage(f"--{name.replace('_', '-')} is {low} to {high}")
    if lack := missing():
        why, _, what = lack.partition(": ")
        raise CommandError(why, what or "see docs/how-to/kernel-scripts.md", output.FAILURE)
    if arguments.background:
        return _in_background()
    perf = Parameters(chunk_order=arguments.chunk_order, total_order=arguments.total_order, use_dma=arguments.use_dma)
    with open_fabric(arguments.name) as fabric:
        debugfs = Debugfs(fabric, Settings(pingpong_delay_ms=arguments.delay_ms, windows=arguments.windows, perf=perf))
        try:
            serve(debugfs, arguments.mountpoint, lambda: _ready(arguments, debugfs), everybody=arguments.allow_other)
        finally:
            debugfs.close()
    return output.OK


def _ready(arguments: Any, debugfs: Any) -> None:
    devices = [
        {"device": device.name, "node": device.node_name, "port": device.port, "peers": device.peers()}
        for device in debugfs.devices
    ]
    if arguments.json:
        document("ntb-tool", fabric=arguments.name, mountpoint=os.path.abspath(arguments.mountpoint), devices=devices)
    else:
        rows = [(d["device"], d["node"], d["port"], ", ".join(d["peers"])) for d in devices]
        emit(table(("DEVICE", "NODE", "PORT", "PEERS"), rows, right=("PORT",)))
    sys.stdout.flush()
    if arguments.ready_fd is not None:
        # Nobody who waits for the end of our output may have to wait for the end of the mount.
        with open(os.devnull, "r+b") as nothing:
            for number in (0, 1, 2):
                os.dup2(nothing.fileno(), number)
        os.write(arguments.ready_fd, b"r")
        os.close(arguments.ready_fd)
    elif not arguments.json:
        note("mounted; ends with Ctrl-C or fusermount3 -u")


def _in_background() -> int:
    """Start this command anew, in a session of its own, and wait until it has mounted or failed."""
    told, tells = os.pipe()
    words = [word for word in sys.argv[1:] if word != "--background"]
    command = [sys.executable, "-m", "fabrex.cli", *words, "--ready-fd", str(tells)]
    process = subprocess.Popen(command, pass_fds=[tells], stdin=subprocess.DEVNULL, start_new_session=True)
    os.close(tells)
    with open(told, "rb") as pipe:
        if pipe.read(1) == b"r":
            return output.OK
    return process.wait()


__all__ = ["mount"]
