# SPDX-License-Identifier: Apache-2.0
"""Commands for fabrics on several machines: `up` with a machine, and `join`. Both serve their machine until they are ended, or
until the programs that they were told to run have ended."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from ..errors import FabricError, PeerLost
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

    def make() -> Any:
        try:
            return host(
                topology, name, machine=arguments.machine, listen=arguments.listen or "127.0.0.1:0", token_file=arguments.token_file
            )
        except FabricExists as error:
            hint = f"end it with `fabricctl down {name} --force`, or choose another --name"
            raise CommandError(error.message, hint, output.EXISTS) from None

    return _serve(arguments, make, "up")


def join(arguments: Any) -> int:
    """`join HOST:PORT --machine M`: be one of a fabric's machines."""
    from ..net import join as join_fabric

    def make() -> Any:
        return join_fabric(
            arguments.coordinator,
            arguments.machine,
            listen=arguments.listen,
            advertise=arguments.advertise,
            token_file=arguments.token_file,
            timeout=arguments.wait,
        )

    return _serve(arguments, make, "join")


class _Ended(Exception):
    """A signal asked us to end."""


_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def _on_signal(number: int, frame: FrameType | None) -> None:
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)  # asked twice: leaving is under way, and half of it leaves files behind
    raise _Ended(number)


def _serve(arguments: Any, make: Callable[[], Any], command: str) -> int:
    handlers = {number: signal.signal(number, _on_signal) for number in _SIGNALS}
    code = output.OK
    serving = False
    try:
        with make() as fabric:
            serving = True
            address = fabric.agent.where
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
                code = _wait(fabric)
    except _Ended as ended:
        code = output.OK if serving and not arguments.commands else 128 + int(ended.args[0])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return code


def _wait(fabric: Any) -> int:
    """Serve until there is nothing to serve any more, or somebody ends it."""
    agent, told = fabric.agent, False
    with contextlib.suppress(FabricError):
        fabric.put(f"done.{fabric.machine}", b"")  # no program here that others would have to wait for
    while not (why := agent.wait_over()):
        if not fabric.info()["alive"]:
            why = "it was taken down"
            break
        if not told and (alone := agent.alone):
            note(f"fabricctl: {fabric.name}: {alone}")
            told = True
    note(f"fabricctl: {fabric.name}: {why}")
    return output.FAILURE if agent.cut_off else output.OK


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
    if launcher.interrupted is not None:
        return code
    # Whoever is still at work on another machine needs this one's memory; without the coordinator nobody can say so.
    agent = fabric.agent
    try:
        if not agent.alone:
            fabric.put(f"done.{fabric.machine}", b"")
        for machine in agent.machines:
            while agent.is_member(machine) and not agent.alone:
                try:
                    fabric.get(f"done.{machine}", timeout=0.5)
                    break
                except (TimeoutError, LookupError, OSError):
                    continue
    except PeerLost:
        pass
    finally:
        if agent.coordinates:
            # The others read the last of it here.
            agent.wait_alone(5.0)
    if agent.alone:
        note(f"fabricctl: {fabric.name}: {agent.alone}; not waiting for the programs of other machines")
    return code
