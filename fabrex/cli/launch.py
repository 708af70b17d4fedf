# SPDX-License-Identifier: Apache-2.0
"""Commands that start programs: run, exec."""

from __future__ import annotations

import fnmatch
import json
import os
import sys
from pathlib import Path
from typing import Any

from . import output
from .common import check_name, find_node, open_fabric, topology_of
from .output import document, note, unknown, usage


def _tasks(topology: Any, arguments: Any) -> list[Any]:
    from ..launcher import Task
    from ..topology import KINDS

    commands = arguments.commands
    if not commands or any(not command for _, command in commands):
        usage("no command to run", "put it after `--`: fabricctl run fabrex-pair -- python program.py")
    if arguments.on:  # `--on NODE` somewhere before the last option
        if len(commands) > 1 or commands[0][0]:
            usage("put each `--on NODE` directly before its `--`")
        commands = [(pattern, commands[0][1]) for pattern in arguments.on]
    if not commands[0][0]:
        kinds = arguments.kind or ["host"]
        for kind in kinds:
            if kind not in KINDS:
                raise unknown("kind of node", kind, [k for k in KINDS if k != "switch"], output.USAGE)
            if kind == "switch":
                usage("no process can be a switch")
        names = [node.name for node in topology.nodes.values() if node.kind in kinds]
        if not names:
            there = sorted({node.kind for node in topology.nodes.values()} - {"switch"})
            usage(f"{topology.name} has no {' or '.join(kinds)}", f"it has {', '.join(there)}: choose with --kind")
        return [Task(name, commands[0][1]) for name in names]
    if arguments.kind:
        usage("--kind and --on exclude each other")
    tasks = []
    able = [node.name for node in topology.nodes.values() if node.kind != "switch"]
    for pattern, command in commands:
        if pattern in topology.nodes and pattern not in able:
            usage(f"{pattern} is a switch, and no process can be one")
        chosen = [name for name in able if name == pattern or fnmatch.fnmatchcase(name, pattern)]
        if not chosen:
            raise unknown("node", pattern, able)
        tasks += [Task(name, command) for name in chosen]
    return tasks


def run(arguments: Any) -> int:
    """`run TOPOLOGY -- COMMAND...`: a fabric, one process per node, and nothing left behind."""
    from ..errors import FabricExists
    from ..fabric import Fabric
    from ..launcher import Launcher, Output, find_command

    topology = topology_of(arguments)
    if arguments.name is not None:
        check_name(arguments.name)
    tasks = _tasks(topology, arguments)
    for task in tasks:
        find_command(task.command[0])
    try:
        fabric = Fabric.create(topology, arguments.name, persistent=arguments.keep)
    except FabricExists as error:
        hint = f"choose another --name, or end it with `fabricctl down {arguments.name}`"
        raise output.CommandError(error.message, hint, output.EXISTS) from None
    if arguments.nixl:
        from ..nixl import SHIM_PATH

        os.environ["PYTHONPATH"] = os.pathsep.join(path for path in (SHIM_PATH, os.environ.get("PYTHONPATH")) if path)
    sys.stdout.flush()
    out = sys.stderr if arguments.json else sys.stdout
    if arguments.output_dir:
        Path(arguments.output_dir).mkdir(parents=True, exist_ok=True)
    with fabric:
        launcher = Launcher(
            fabric.name,
            fabric.directory,
            tasks,
            timeout=arguments.timeout,
            grace=arguments.grace,
            stdout=Output(out.buffer, colour=output.tty(out)),
            stderr=Output(sys.stderr.buffer, colour=output.tty(sys.stderr)),
            output_dir=arguments.output_dir,
            say=lambda line: note(f"fabricctl: {line}"),
            reclaim=not arguments.keep,
        )
        code = launcher.run()
    facts = {
        "fabric": fabric.name,
        "directory": fabric.directory,
        "kept": arguments.keep,
        "exit_code": code,
        "timed_out": launcher.timed_out,
        "processes": [
            {
                "node": p.node,
                "rank": p.rank,
                "command": list(p.command),
                "exit_code": p.exit_code,
                "signal": p.signal,
                "ended_by_launcher": p.ended_by_us,
                "seconds": round(p.seconds, 3),
            }
            for p in launcher.processes
        ],
    }
    if arguments.output_dir:
        text = json.dumps({"schema_version": output.SCHEMA_VERSION, "command": "run", **facts}, indent=2)
        Path(arguments.output_dir, "run.json").write_text(text + "\n", encoding="utf-8")
    if arguments.json:
        document("run", **facts)
    if arguments.keep:
        note(f"fabricctl: fabric {fabric.name} is kept; end it with `fabricctl down {fabric.name}`")
    return code


def execute(arguments: Any) -> int:
    """`exec NAME --node N -- COMMAND...`: become the command; its exit code is ours."""
    from ..launcher import environment, find_command

    if not arguments.commands or not arguments.commands[0][1]:
        usage("no command to run", "put it after `--`: fabricctl exec lab --node host0 -- python program.py")
    [(_, command)] = arguments.commands
    with open_fabric(arguments.name) as fabric:
        node = find_node(fabric, arguments.node, attachable=True)
        for machine in fabric.machines():
            if node in machine["nodes"] and not machine["here"]:
                words = f"{node} is at home on machine {machine['name']}"
                raise output.CommandError(words, "run the command there: a node is attached where it is at home", output.NOT_FOUND)
        alike = [other.name for other in fabric.topology.of_kind(fabric.topology.nodes[node].kind)]
        env = {**os.environ, **environment(fabric.name, fabric.directory, node, alike.index(node), len(alike))}
    path = find_command(command[0])
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execve(path, command, env)
    except OSError as error:
        raise output.CommandError(f"{command[0]!r} cannot be run: {error.strerror}", "", output.NOT_EXECUTABLE) from None
