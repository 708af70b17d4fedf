# SPDX-License-Identifier: Apache-2.0
"""Commands about fabrics' lives: up, down, list, inspect, prune."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import output
from .common import check_name, open_fabric, topology_of
from .output import CommandError, address, count, document, emit, note, table, unknown, usage


def up(arguments: Any) -> int:
    """`up TOPOLOGY`: a persistent fabric."""
    from ..errors import FabricExists
    from ..fabric import Fabric

    if arguments.machine:
        from .machines import up as up_machine

        return up_machine(arguments)
    if arguments.listen or arguments.token_file:
        usage("--listen and --token-file belong to --machine")
    topology = topology_of(arguments)
    name = check_name(arguments.name if arguments.name is not None else topology.name)
    if topology.machines:
        first, *others = topology.machines
        note(f"fabricctl: all nodes are placed here; with `--machine {first}` {', '.join(others)} can join")
    try:
        fabric = Fabric.create(topology, name, persistent=True)
    except FabricExists as error:
        hint = f"end it with `fabricctl down {name}`, or choose another --name"
        raise CommandError(error.message, hint, output.EXISTS) from None
    with fabric:
        info = fabric.info()
        if arguments.json:
            document("up", fabric=_fabric(info), topology=fabric.topology.name)
        else:
            emit(f"{name}: {topology.name}, {count(info['nodes'], 'node')}, {count(info['links'], 'link')}, "
                 f"timing {'on' if info['timing'] else 'off'}, ordering {info['ordering']}")  # fmt: skip
    return output.OK


def down(arguments: Any) -> int:
    """`down NAME...|--all`: end fabrics."""
    from ..errors import Busy, FabricError, FabricNotFound
    from ..fabric import Fabric, fabrics

    if bool(arguments.names) == arguments.all:
        usage("name the fabrics to end, or give --all" if not arguments.names else "give names or --all, not both")
    there = [found["name"] for found in fabrics()]
    names = there if arguments.all else list(dict.fromkeys(arguments.names))
    ended: list[str] = []
    failures: list[tuple[str, CommandError]] = []
    for name in names:
        try:
            Fabric.destroy(check_name(name), force=arguments.force)
            ended.append(name)
        except FabricNotFound:
            if not arguments.all:  # with --all, it ended while we looked
                failures.append((name, unknown("fabric", name, there)))
        except Busy as error:
            hint = "end them first, or give --force"
            failures.append((name, CommandError(error.message, hint, output.BUSY)))
        except FabricError as error:
            if _reclaim(name) == 1:
                ended.append(name)
                continue
            failures.append((name, CommandError(error.message, error.hint, output.FAILURE)))
    if arguments.json:
        document("down", ended=ended, failed=[{"name": name, "error": error.message} for name, error in failures])
    else:
        for name in ended:
            emit(f"{name}: ended")
        if not names:
            note("there are no fabrics")
    for _, failure in failures[:-1]:
        note(f"fabricctl: {failure.message} ({failure.hint})")
    if failures:
        raise failures[-1][1]
    return output.OK


def _reclaim(name: str) -> int:
    from .._handle import lib
    from ..listing import default_directory

    return int(lib.fbx_fabric_reclaim(os.fsencode(default_directory()), name.encode()))


_INSIDE = ("tick_hz", "tick_cost_ps", "now_ps", "strict_errors", "fabric_id")  # what JSON does not say about a fabric


def _fabric(info: dict[str, Any]) -> dict[str, Any]:
    """What JSON says about a fabric; the same keys in `list`, `inspect`, `up`."""
    if "error" in info:
        return {"name": info["name"], "directory": info["directory"], "alive": False, "error": info["error"]}
    kept = {key: value for key, value in info.items() if key not in _INSIDE}
    return {**kept, "timing": "on" if info["timing"] else "off", "error": None}


def list_fabrics(arguments: Any) -> int:
    """`list`: this user's fabrics in the directory."""
    from ..listing import default_directory, fabrics

    found = fabrics()
    if arguments.json:
        document("list", directory=default_directory(), fabrics=[_fabric(info) for info in found])
        return output.OK
    if not found:
        note(f"no fabrics in {default_directory()}; `fabricctl up fabrex-pair` makes one")
        return output.OK
    rows = []
    for info in found:
        if "error" in info:
            rows.append((info["name"], "damaged", "-", "-", "-", "-", "-", "-", "-", "-"))
            continue
        rows.append((
            info["name"],
            "up" if info["alive"] else "dead",
            "persistent" if info["persistent"] else "owned",
            info["nodes"],
            f"{info['links']} ({info['links_changed']} changed)" if info["links_changed"] else info["links"],
            info["attached"],
            "on" if info["timing"] else "off",
            info["ordering"],
            output.size(info["committed_bytes"]),
            output.age(time.time() - info["created_unix_ns"] / 1e9),
        ))  # fmt: skip
    header = ("NAME", "STATE", "LIFE", "NODES", "LINKS", "ATTACHED", "TIMING", "ORDERING", "MEMORY", "AGE")
    emit(table(header, rows, right=("NODES", "LINKS", "ATTACHED", "MEMORY", "AGE")))
    if any(row[1] != "up" for row in rows):
        note("`fabricctl prune` removes dead and damaged ones")
    return output.OK


def inspect(arguments: Any) -> int:
    """`inspect NAME`: everything about one fabric."""
    with open_fabric(arguments.name) as fabric:
        info = fabric.info()
        nodes = fabric.nodes()
        links = [link.info() for link in fabric.links.values()]
        buffers = fabric.buffers()
        fidelity = fabric.fidelity()
        machines = fabric.machines()
        topology = fabric.topology
        regions = {region["gva"]: (node["name"], region["tier"]) for node in nodes for region in node["regions"]}
    info["processes"] -= 1  # not this one
    starts = sorted(regions)

    def tier_of(gva: int) -> str:
        below = [start for start in starts if start <= gva]
        return regions[below[-1]][1] if below else ""

    if arguments.json:
        for node in nodes:
            node["regions"] = [
                {**region, "gva": address(region["gva"]), "bus": address(region["bus"])} for region in node["regions"]
            ]
            for region in node["regions"]:
                del region["node"]
        document(
            "inspect",
            fabric=_fabric(info),
            topology=topology.to_dict(),
            nodes=nodes,
            links=links,
            buffers=[
                {"name": b.name, "node": b.node, "tier": tier_of(b.gva), "gva": address(b.gva), "bytes": b.size} for b in buffers
            ],
            machines=machines,
            fidelity={
                op: {**facts, "histogram": {str(k): v for k, v in facts["histogram"].items()}} for op, facts in fidelity.items()
            },
        )
        return output.OK
    life = "persistent" if info["persistent"] else f"owned by process {info['creator_pid']}"
    emit(output.fit(f"{info['name']}: {topology.name}, {life}, in {info['directory']}"))
    emit(output.fit(f"timing {'on' if info['timing'] else 'off'}, ordering {info['ordering']}, windows {info['windows']}, "
                    f"seed {info['seed']}, {count(info['processes'], 'process', 'processes')}, "
                    f"up {output.age(info['now_ps'] / 1e12)}"))  # fmt: skip
    rows = []
    for node in nodes:
        memory = ", ".join(f"{r['tier']} {output.size(r['bytes'])}" for r in node["regions"]) or "-"
        used = sum(r["allocated"] for r in node["regions"])
        owner = str(node["owner_pid"]) if node["owner_pid"] else "-"
        base = f"{node['regions'][0]['gva']:#x}" if node["regions"] else "-"
        rows.append((node["name"], node["kind"], node["state"], owner, node["clients"], memory, base, output.size(used),
                     node["posted_dropped"]))  # fmt: skip
    emit("")
    header = ("NODE", "KIND", "STATE", "OWNER", "CLIENTS", "MEMORY", "FIRST GVA", "USED", "DROPPED")
    emit(table(header, rows, right=("OWNER", "CLIENTS", "FIRST GVA", "USED", "DROPPED")))
    emit("")
    emit(link_table(links))
    if machines:
        emit("")
        emit(table(("MACHINE", "STATE", "EPOCH", "NODES", "ANSWERS", "LATE", "GIVEN UP", "CLOCK AHEAD BY", "WITHIN", "DRIFT"), [
            (m["name"] + (" (here)" if m["here"] else ""), m["state"], m["epoch"], len(m["nodes"]), m["answers"],
             m["late"], m["gave_up"],
             *((output.nanoseconds(m["clock_offset_ps"] / 1e3), output.nanoseconds(m["clock_bound_ns"]),
                f"{m['clock_drift_ppb'] / 1e3:.1f} ppm") if m["clock_bound_ns"] else ("-", "-", "-")))
            for m in machines
        ], right=("EPOCH", "NODES", "ANSWERS", "LATE", "GIVEN UP", "CLOCK AHEAD BY", "WITHIN", "DRIFT")))  # fmt: skip
    if buffers:
        emit("")
        emit(table(("BUFFER", "NODE", "TIER", "GVA", "SIZE"),
                   [(b.name or "-", b.node, tier_of(b.gva), f"{b.gva:#x}", output.size(b.size)) for b in buffers],
                   right=("GVA", "SIZE")))  # fmt: skip
    if fidelity:
        emit("")
        emit(table(("OPERATION", "COUNT", "LATE", "BY PROCESSOR", "BY NETWORK", "LATE BY (MEAN)", "LATE BY (MAX)", "FAILED"), [
            (op, facts["count"], output.percent(facts["late_fraction"]),
             *(output.percent(facts[why] / facts["late"]) if facts["late"] else "-" for why in ("preempted", "network")),
             output.nanoseconds(facts["late_ps_mean"] / 1e3) if facts["late"] else "-",
             output.nanoseconds(facts["late_ps_max"] / 1e3) if facts["late"] else "-", facts["failed"])
            for op, facts in fidelity.items()
        ], right=("COUNT", "LATE", "BY PROCESSOR", "BY NETWORK", "LATE BY (MEAN)", "LATE BY (MAX)", "FAILED")))  # fmt: skip
    usual = ("control_epoch", "sessions_reaped")
    trouble = {name: value for name, value in info["counters"].items() if value and name not in usual}
    if trouble:
        emit("")
        emit("repaired: " + ", ".join(f"{name} {value}" for name, value in trouble.items()))
    return output.OK


def link_table(links: list[dict[str, Any]]) -> str:
    """Return the table of links, which `link show` prints too."""
    rows = [
        (
            link["name"],
            "up" if link["up"] else "down",
            link["kind"],
            output.bits(link["rate_bps"]),
            output.nanoseconds(link["delay_ps"] / 1e3),
            ", ".join(key.removesuffix("_ps").removesuffix("_bps") for key in link["changed"]) or "-",
            f"{output.size(link['bytes'][0])} / {output.size(link['bytes'][1])}",
            sum(link["dropped"]),
        )
        for link in links
    ]
    header = ("LINK", "STATE", "KIND", "RATE", "DELAY", "CHANGED", "BYTES THERE / BACK", "DROPPED")
    return table(header, rows, right=("RATE", "DELAY", "BYTES THERE / BACK", "DROPPED"))


def setting(link: dict[str, Any]) -> str:
    """Return what a link is set to, in one line; what differs from the topology's value is followed by that."""
    words = []
    for key, value in link.items():
        if key in ("name", "up", "kind", "changed", "bytes", "tlps", "dropped") or (key == "rate_bps" and link["kind"] == "pcie"):
            continue
        text = _value(key, value)
        if key in link["changed"]:
            text += f" (described as {_value(key, link['changed'][key])})"
        elif "credits" in key:
            continue
        words.append(f"{key.removesuffix('_ps').removesuffix('_bps')} {text}")
    return ", ".join(words)


def _value(key: str, value: int) -> str:
    return output.nanoseconds(value / 1e3) if key == "delay_ps" else output.bits(value) if key == "rate_bps" else str(value)


# -- what the dead leave ----------------------------------------------------------------------------------------------

_SEGMENT = re.compile(r"fabrex@(?P<uid>\d+)@(?P<name>[A-Za-z0-9_.-]+)(?:@(?P<instance>[0-9a-f]{16})@(?P<part>r\d+|r-agent|new))?")
_SETTLED_S = 10.0


def _fields(directory: str) -> Iterator[tuple[str, re.Match[str]]]:
    with contextlib.suppress(FileNotFoundError):
        for entry in sorted(os.listdir(directory)):
            match = _SEGMENT.fullmatch(entry)
            if match and int(match["uid"]) == os.getuid():
                yield entry, match


def _instance(directory: str, name: str) -> str:
    from .._handle import ffi, lib

    out = ffi.new("struct fbx_fabric_info *")
    code = lib.fbx_fabric_probe(os.fsencode(directory), name.encode(), out)
    return f"{int(out.instance):016x}" if code == 0 else "?"


def _held(path: str) -> bool:
    """Whether a living process holds a session's lock on a control segment."""
    import fcntl
    import struct

    try:
        with open(path, "rb+") as file:
            asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 1 << 50, 65536, 0)
            answer = fcntl.fcntl(file, 36, asked)  # F_OFD_GETLK, which Python names only in later versions
            return bool(struct.unpack("hhqqi4x", answer)[0] != fcntl.F_UNLCK)
    except OSError:
        return True


def _orphans(directory: str) -> list[str]:
    """Segments of no fabric: half made, or left when a control segment was removed by hand."""
    entries = list(_fields(directory))
    instances = {_instance(directory, match["name"]) for _, match in entries if not match["instance"]}
    unreadable = "?" in instances
    orphans = []
    half: set[str] = set()
    for entry, match in entries:
        path = os.path.join(directory, entry)
        try:
            settled = time.time() - os.stat(path).st_mtime > _SETTLED_S
        except OSError:
            continue
        if match["part"] == "new" and (not settled or _held(path)):
            half.add(match["instance"])
    for entry, match in entries:
        if not match["instance"] or match["instance"] in instances or match["instance"] in half:
            continue
        # Of a control segment that cannot be read nobody knows the instance: its regions stay until it has gone.
        if unreadable and any(other["name"] == match["name"] and not other["instance"] for _, other in entries):
            continue
        orphans.append(entry)
    return orphans


def prune(arguments: Any) -> int:
    """`prune`: remove what dead processes left. What lives, and what is persistent, stays."""
    from ..listing import default_directory, fabrics

    directory = default_directory()
    removed: list[dict[str, Any]] = []
    kept: list[dict[str, Any]] = []
    for info in fabrics():
        if info["alive"]:
            continue
        why = info.get("error") or "its owner is gone"
        if arguments.dry_run or _reclaim(info["name"]) == 1:
            removed.append({"name": info["name"], "why": why})
        else:
            kept.append({"name": info["name"], "why": why})
    for entry in _orphans(directory):
        if not arguments.dry_run:
            with contextlib.suppress(FileNotFoundError):
                Path(directory, entry).unlink()
        removed.append({"name": entry, "why": "it belongs to no fabric"})
    if arguments.json:
        document("prune", directory=directory, dry_run=arguments.dry_run, removed=removed, kept=kept)
        return output.OK
    for item in removed:
        emit(output.fit(f"{item['name']}: {'would be removed' if arguments.dry_run else 'removed'}: {item['why']}"))
    for item in kept:
        note(f"{item['name']}: left alone: {item['why']}")
    if not removed and not kept:
        note(f"nothing to remove in {directory}")
    return output.OK
