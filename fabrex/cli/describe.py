# SPDX-License-Identifier: Apache-2.0
"""Commands about descriptions: presets, validate, graph. They need no fabric."""

from __future__ import annotations

import os
from typing import Any

from . import output
from .common import load_topology
from .output import count, document, emit, table, unknown, usage


def presets(arguments: Any) -> int:
    """`presets [NAME]`: the list, or one preset's file."""
    from .. import presets as known

    if arguments.name is None:
        if arguments.json:
            document("presets", presets=[{"name": name, "summary": known.summary(name)} for name in known.names()])
        else:
            emit(table(("NAME", "WHAT IT IS"), [(name, known.summary(name)) for name in known.names()]))
        return output.OK
    if arguments.name not in known.names():
        raise unknown("preset", arguments.name, known.names())
    if arguments.json:
        topology = load_topology(arguments.name)
        document(
            "presets",
            presets=[{"name": arguments.name, "summary": known.summary(arguments.name)}],
            path=known.path(arguments.name),
            topology=topology.to_dict(),
        )
    else:
        emit(known.text(arguments.name))
    return output.OK


def _summary(topology: Any) -> dict[str, Any]:
    kinds: dict[str, int] = {}
    for node in topology.nodes.values():
        kinds[node.kind] = kinds.get(node.kind, 0) + 1
    return {
        "name": topology.name,
        "nodes": len(topology.nodes),
        "kinds": kinds,
        "links": len(topology.links),
        "memory_bytes": sum(tier.size for node in topology.nodes.values() for tier in node.memory.values()),
        "windows": topology.windows,
        "ordering": topology.ordering,
        "timing": topology.timing,
        "digest": topology.digest(),
    }


def validate(arguments: Any) -> int:
    """`validate FILE`: all problems at once, each with its line."""
    from ..errors import TopologyError

    try:
        topology = load_topology(arguments.file, arguments.changes)
    except TopologyError as error:
        if not arguments.json:
            raise
        problems = [{"message": p.message, "line": p.line, "column": p.column, "path": p.path} for p in error.errors]
        document("validate", file=arguments.file, valid=False, problems=problems, topology=None)
        return output.TOPOLOGY
    facts = _summary(topology)
    if arguments.json:
        document("validate", file=arguments.file, valid=True, problems=[], topology=facts)
    else:
        kinds = ", ".join(count(number, kind, "memory boxes" if kind == "memory" else "switches" if kind == "switch" else "")
                          for kind, number in facts["kinds"].items())  # fmt: skip
        emit(f"{arguments.file}: valid: {topology.name}: {kinds}; {count(facts['links'], 'link')}; "
             f"{output.size(facts['memory_bytes'])} of memory")  # fmt: skip
    return output.OK


_ENDINGS = {".svg": "svg", ".dot": "dot", ".gv": "dot", ".mmd": "mermaid", ".md": "mermaid"}


def graph(arguments: Any) -> int:
    """`graph NAME|TOPOLOGY`: a drawing of it."""
    from ..graph import to_dot, to_mermaid, to_svg
    from ..listing import fabrics

    if any(found["name"] == arguments.target and found["alive"] for found in fabrics()):
        from .common import open_fabric

        if arguments.changes:
            usage("--set changes a topology; this is a fabric that exists already")
        with open_fabric(arguments.target) as fabric:
            topology = fabric.topology
    else:
        topology = load_topology(arguments.target, arguments.changes)
    form = arguments.form
    if form is None:
        form = _ENDINGS.get(os.path.splitext(arguments.output or "")[1].lower(), "dot")
    text = {"svg": to_svg, "dot": to_dot, "mermaid": to_mermaid}[form](topology)
    if arguments.output and arguments.output != "-":
        with open(arguments.output, "w", encoding="utf-8") as file:
            file.write(text)
        output.note(f"wrote {arguments.output}")
    else:
        emit(text)
    return output.OK
