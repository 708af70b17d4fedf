# SPDX-License-Identifier: Apache-2.0
"""Finding what the words mean: topologies, fabrics, nodes, links, addresses.

Every name that is not there is answered with what was probably meant.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from . import output
from .output import CommandError, unknown, usage

if TYPE_CHECKING:
    from ..errors import FabricNotFound
    from ..fabric import Fabric
    from ..topology import Topology


def looks_like_path(word: str) -> bool:
    """Return whether a topology argument can only be a file."""
    return os.sep in word or word.endswith((".yaml", ".yml"))


def load_topology(word: str, changes: list[str] | None = None, **settings: Any) -> Topology:
    """Return the topology of a preset, a file or `-`, with `--set` and the like applied."""
    from .. import presets
    from ..topology import Topology

    if word == "-":
        import sys

        topology = Topology.loads(sys.stdin.read(), "<stdin>")
    else:
        if not looks_like_path(word) and word not in presets.names() and not os.path.isfile(word):
            error = unknown("preset or file", word, presets.names())
            error.hint += "" if error.hint.startswith("there") else "; `fabricctl presets` lists them"
            raise error
        if looks_like_path(word) and not os.path.exists(word):
            raise CommandError(f"no file {word!r}", "", output.NOT_FOUND)
        try:
            topology = Topology.resolve(word)
        except UnicodeDecodeError:
            raise CommandError(f"{word} is no text file", "", output.TOPOLOGY) from None
        except IsADirectoryError:
            raise CommandError(f"{word} is a directory, not a topology file", "", output.TOPOLOGY) from None
    given = {key: value for key, value in settings.items() if value is not None}
    return topology.override(changes or (), **given) if changes or given else topology


def topology_of(arguments: Any) -> Topology:
    """Return the topology that `up` and `run` were given, with its options applied."""
    timing = {"on": True, "off": False, None: None}[arguments.timing]
    return load_topology(arguments.topology, arguments.changes, timing=timing, ordering=arguments.ordering, seed=arguments.seed)


def fabric_names() -> list[str]:
    """Names of the fabrics in the directory."""
    from ..listing import fabrics

    return [found["name"] for found in fabrics()]


def check_name(name: str) -> str:
    """Return a name that a fabric can have."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}", name):
        usage(f"{name!r} cannot be a fabric's name", "1 to 63 of the characters A-Z a-z 0-9 _ . - not beginning with . or -")
    return name


def open_fabric(name: str) -> Fabric:
    """Open a fabric by name."""
    from ..errors import FabricNotFound
    from ..fabric import Fabric

    check_name(name)
    try:
        return Fabric.open(name)
    except FabricNotFound as error:
        raise no_fabric(name, error) from None


def no_fabric(name: str, error: FabricNotFound) -> CommandError:
    """Return the error for a fabric that is not there any more, or never was."""
    from ..listing import default_directory, fabrics

    there = fabrics()
    if any(found["name"] == name for found in there):
        return CommandError(error.message, "`fabricctl prune` removes what is left of it", output.NOT_FOUND)
    missing = unknown("fabric", name, [found["name"] for found in there if found["alive"]])
    missing.message += f" in {default_directory()}"
    return missing


def find_node(fabric: Fabric, name: str, *, attachable: bool = False) -> str:
    """Return a node's name."""
    names = list(fabric.topology.nodes)
    if name not in names:
        raise unknown("node", name, names)
    if attachable and fabric.topology.nodes[name].kind == "switch":
        usage(f"{name} is a switch, and no process can be one")
    return name


def find_link(fabric: Fabric, name: str) -> str:
    """Return a link's name."""
    if name not in fabric.links:
        raise unknown("link", name, fabric.links)
    return name


_PLACE = re.compile(
    r"(?P<gva>0[xX][0-9a-fA-F]+|[0-9]+)|"
    r"@(?P<buffer>[A-Za-z0-9_.-]+)(?:\+(?P<boffset>\w+))?|"
    r"(?P<node>[a-z][a-z0-9_.-]*)(?::(?P<tier>[A-Za-z0-9_.-]+))?(?:\+(?P<offset>\w+))?"
)


class Place:
    """An address of the command line: `host1:dram+0x40`, `@inbox+8`, `0x20000000040`."""

    def __init__(self, fabric: Fabric, text: str) -> None:
        match = _PLACE.fullmatch(text)
        if not match:
            usage(f"{text!r} is no address", "write host1:dram+0x40, host1+0x40, @BUFFER+8 or a global address")
        self.text = text
        self.node = ""
        self.bus: int | None = None
        if match["gva"]:
            self.gva = int(match["gva"], 0) if match["gva"][:2].lower() == "0x" else int(match["gva"])
            for info in fabric.nodes():
                for region in info["regions"]:
                    if region["gva"] <= self.gva < region["gva"] + region["bytes"]:
                        self._at(info["name"], region, self.gva - region["gva"])
            if not self.node:
                raise CommandError(f"{self.gva:#x} is in no region of {fabric.name}",
                                   f"`fabricctl inspect {fabric.name}` shows them", output.NOT_FOUND)  # fmt: skip
        elif match["buffer"]:
            offset = _offset(match["boffset"])
            buffers = {buffer.name: buffer for buffer in fabric.buffers() if buffer.name}
            if match["buffer"] not in buffers:
                raise unknown("buffer", match["buffer"], buffers)
            buffer = buffers[match["buffer"]]
            if offset >= buffer.size:
                usage(f"offset {offset} lies outside buffer {buffer.name!r} of {buffer.size} bytes")
            self.gva, self.node = buffer.gva + offset, buffer.node
        else:
            name = find_node(fabric, match["node"])
            regions = fabric.node_info(name)["regions"]
            tiers = [region["tier"] for region in regions]
            if not tiers:
                usage(f"{name} has no memory")
            tier = match["tier"] or tiers[0]
            if tier not in tiers:
                raise unknown(f"tier of {name}", tier, tiers)
            region = regions[tiers.index(tier)]
            offset = _offset(match["offset"])
            if offset >= region["bytes"]:
                usage(f"offset {offset:#x} lies outside {name}:{tier} of {region['bytes']:#x} bytes")
            self._at(name, region, offset)

    def _at(self, node: str, region: dict[str, Any], offset: int) -> None:
        self.node = node
        self.gva = region["gva"] + offset
        self.bus = region["bus"] + offset


def _offset(text: str | None) -> int:
    if not text:
        return 0
    from .parser import size

    try:
        return size(text)
    except Exception:
        usage(f"{text!r} is no offset", "write 64, 0x40 or 4KiB")
