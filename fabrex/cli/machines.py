# SPDX-License-Identifier: Apache-2.0
"""Commands for fabrics on several machines: `up` with a machine, and `join`. Both serve their machine until they are ended, or
until the programs that they were told to run have ended."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any

from . import output
from .common import check_name, topology_of
from .output import CommandError, count, document, emit, note, usage


def up(arguments: Any) -> int:
    """`up TOPOLOGY --machine M`: make a fabric on several machines, and serve this one."""
    from ..errors import FabricExists
    from ..net import host

    topology = topology_of(arguments)
    if not topology.machines:
        usage(f"{topology.name} has no `machines:`", "say in the topology which nodes are on which machine, or leave --machine out")
    name = check_name(arguments.name if arguments.name is not None else topology.name)
    try:
        fabric = host(
            topology, name, machine=arguments.machine, listen=arguments.listen or "127.0.0.1:0", token_file=arguments.token_file
        )
    except FabricExists as error:
        hint = f"end it with `fabricctl down {name} --force`, or choose another --name"
        raise CommandError(error.message, hint, output.EXISTS) from None
    return _serve(arguments, fabric, "up")


def join(arguments: Any) -> int:
    """`join HOST:PORT --machine M`: be one of a fabric's machines."""
    from ..net import join as join_fabric

    fabric = join_fabric(
        arguments.coordinator,
        arguments.machine,
        listen=arguments.listen,
        advertise=arguments.advertise,
        token_file=arguments.token_file,
        timeout=arguments.wait,
    )
    return _serve(arguments, fabric, "join")


class _Ended(Exception):
    """A signal asked us to end."""


def _on_signal(number: int, frame: FrameType | None) -> None:
    raise _Ended(number)


def _serve(arguments: Any, fabric: Any, command: str) -> int:
    address = fabric.agent.where
    handlers = {number: signal.signal(number, _on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    code = output.OK
    try:
        with fabric:
            if arguments.json:
                document(command, fabric=fabric.name, machine=fabric.machine, address=address, machines=fabric.machines())
            else:
                emit(f"{fabric.name}: machine {fabric.machine} of {count(len(fabric.topology.machines), 'machine')}, at {address}")
                if fabric.agent.coordinates:
                    for other in fabric.agent.machines[1:]:
                        emit(f"  on another: fabricctl join {address} --machine {other} --token-file F")
            sys.stdout.flush()
            if arguments.commands:
                code = _run(arguments, fabric)
            else:
                while not fabric.agent.wait_gone() and fabric.info()["alive"]:
                    pass
                if not fabric.agent.coordinates:
                    note(f"fabricctl: the coordinator of {fabric.name} is gone")
    except _Ended as ended:
        code = output.OK if not arguments.commands else 128 + int(ended.args[0])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return code


def _run(arguments: Any, fabric: Any) -> int:
    """Start the commands of this machine's nodes, once all machines are there; a rank counts over all machines."""
    from ..launcher import Launcher, Output, Task, find_command
    from .launch import _tasks

    everywhere = _tasks(fabric.topology, arguments)
    here = set(fabric.topology.machines[fabric.machine]["nodes"])
    tasks = [
        Task(task.node, task.command, task.label, rank=rank, size=len(everywhere))
        for rank, task in enumerate(everywhere)
        if task.node in here
    ]
    if not tasks:
        usage(f"no process is for machine {fabric.machine}", "choose nodes with --kind or --on")
    for task in tasks:
        find_command(task.command[0])
    fabric.agent.wait_for(timeout=arguments.wait)
    launcher = Launcher(
        fabric.name,
        fabric.directory,
        tasks,
        stdout=Output(sys.stdout.buffer, colour=output.tty(sys.stdout)),
        stderr=Output(sys.stderr.buffer, colour=output.tty(sys.stderr)),
        say=lambda line: note(f"fabricctl: {line}"),
        reclaim=False,
    )
    code = launcher.run()
    # Whoever is still at work on another machine needs this one's memory.
    fabric.put(f"done.{fabric.machine}", b"")
    try:
        for machine in fabric.agent.machines:
            while fabric.agent.is_member(machine):
                try:
                    fabric.get(f"done.{machine}", timeout=0.5)
                    break
                except (TimeoutError, LookupError, OSError):
                    continue
    finally:
        if fabric.agent.coordinates:
            # The others read the last of it here.
            fabric.agent.wait_alone(5.0)
    return code
