# SPDX-License-Identifier: Apache-2.0
"""A file with programs, for `fabricctl explore`: what it names is what is run.

topology = "fabrex-pair"            # a preset, a file beside the script, or a Topology; "fabrex-pair" if left out
ordering = "adversarial"            # the default
def host0(node): ...                # programs: functions called like nodes, or a dict
programs = {"host0": producer, "host1": consumer}
def check(result): ...              # optional: raises, or returns False, if the outcome is wrong
options = {"step": 10e-9}           # optional: further arguments of fabrex.sim.run
"""

from __future__ import annotations

import os
import runpy
import sys
from typing import Any

from ..errors import InvalidArgument
from ..topology import Topology
from ._search import Case

__all__ = ["load"]


def load(path: str, ordering: str | None = None) -> Case:
    """Return the programs of a script.

    Raises:
        InvalidArgument: it names no programs. FileNotFoundError. Whatever the script raises.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no script {path!r}")
    folder = os.path.dirname(os.path.abspath(path))
    sys.path.insert(0, folder)  # as for a script that Python runs
    try:
        space = runpy.run_path(path, run_name="__fabrex__")
    finally:
        sys.path.remove(folder)
    topology: Any = space.get("topology", "fabrex-pair")
    if isinstance(topology, str) and os.path.isfile(os.path.join(folder, topology)):
        topology = os.path.join(folder, topology)
    described = Topology.resolve(topology)
    programs = space.get("programs")
    if programs is None:
        programs = {name: space[name] for name in described.nodes if callable(space.get(name))}
    if not isinstance(programs, dict) or not programs:
        raise InvalidArgument(
            f"{path} names no programs",
            hint="define `programs = {node: function}`, or functions called like nodes: " + ", ".join(list(described.nodes)[:4]),
        )
    strangers = [name for name in programs if name not in described.nodes]
    if strangers:
        raise InvalidArgument(
            f"{path} has a program for {strangers[0]!r}, which is no node of {described.name}",
            hint="there are " + ", ".join(list(described.nodes)[:8]),
        )
    return Case(
        topology,
        programs,
        space.get("check"),
        ordering or space.get("ordering", "adversarial"),
        dict(space.get("options", {})),
        path,
    )
