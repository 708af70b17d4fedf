# SPDX-License-Identifier: Apache-2.0
"""`ntb show|link|db|spad|msg|mw`: NTB devices at a terminal. Events are left to the programs that wait for them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from . import output
from .common import find_node, open_fabric
from .output import CommandError, address, document, emit, table, usage


@contextlib.contextmanager
def _device(arguments: Any) -> Iterator[Any]:
    """Visit the node as a client."""
    with open_fabric(arguments.name) as fabric:
        name = find_node(fabric, arguments.node, attachable=True)
        with fabric.attach(name, role="client") as node:
            yield node


def _peer(node: Any, name: str | None) -> str | None:
    """Return a peer's name, given by name."""
    if name is None:
        return None
    find_node(node.fabric, name, attachable=True)
    if name == node.name:
        usage(f"{name} is no peer of its own", f"leave out --peer for the registers of {name} itself")
    return name


def _profile(fabric: Any, name: str) -> str:
    return fabric.topology.nodes[name].ntb or "fabrex"


def _bits(arguments: Any, what: str = "BITS") -> int:
    value = arguments.bits if hasattr(arguments, "bits") else arguments.index
    if value is None:
        usage(
            f"`{arguments.verb}` needs {what}",
            f"fabricctl {arguments.handler} {arguments.name} {arguments.node} {arguments.verb} 0x5",
        )
    return int(value)


def _surplus(arguments: Any, *names: str) -> None:
    """Refuse what a verb does not take."""
    for name in names:
        value = getattr(arguments, name, None)
        if value is not None:
            shown = f"--{name}" if name in ("peer", "wait", "timeout") else repr(value)
            usage(f"`{arguments.verb}` takes no {shown}", f"see `fabricctl {arguments.handler} --help`")


def _until(condition: Callable[[], bool], seconds: float | None, what: str) -> None:
    """Wait as registers are waited for: without taking events from anybody."""
    end = None if seconds is None else time.monotonic() + seconds
    pause = 0.0005
    while not condition():
        if end is not None and time.monotonic() >= end:
            raise CommandError(f"{what} within {seconds:g} s", "", output.TIMEOUT)
        time.sleep(pause)
        pause = min(pause * 1.5, 0.02)


def _posted(node: Any, peer: str, what: str) -> None:
    """Return when what was posted to a peer is there; a link that is down has lost it."""
    if not node.ntb.link_is_up(peer):
        raise CommandError(f"the link from {node.name} to {peer} is down: {what} was lost",
                           f"`fabricctl ntb link {node.fabric.name} {node.name}` shows it", output.FAILURE)  # fmt: skip
    node.flush(peer, check=True)


# -- devices ------------------------------------------------------------------------------------------------------------


def _facts(node: Any) -> dict[str, Any]:
    ntb = node.ntb
    windows = list(ntb.windows)
    return {
        "node": node.name,
        "profile": _profile(node.fabric, node.name),
        "port": ntb.port_number(),
        **_links(node),
        "doorbells": ntb.db_valid_mask().bit_count(),
        "vectors": ntb.db_vector_count(),
        "scratchpads": ntb.spad_count(),
        "messages": ntb.msg_count(),
        "interrupts": ntb.msi_count(),
        "requesters": ntb.rid_count(),
        "windows": {"direct": sum(not w.lut for w in windows), "lut": sum(w.lut for w in windows)},
    }


def _links(node: Any) -> dict[str, Any]:
    ntb = node.ntb
    state = ntb.link_state()
    peers = [
        {"node": name, "index": pidx, "port": ntb.peer_port_number(pidx), "up": ntb.link_is_up(pidx)}
        for pidx, name in enumerate(ntb.peers())
    ]
    return {"link": {"up": any(p["up"] for p in peers), "speed": state.speed, "width": state.width}, "peers": peers}


def _speed(link: dict[str, Any]) -> str:
    return f"gen {link['speed']} x{link['width']}" if link["speed"] else "-"


def show(arguments: Any) -> int:
    """`ntb show NAME [NODE]`."""
    devices = []
    with open_fabric(arguments.name) as fabric:
        every = [node.name for node in fabric.topology.nodes.values() if node.kind != "switch"]
        names = [find_node(fabric, arguments.node, attachable=True)] if arguments.node else every
        for name in names:
            with fabric.attach(name, role="client") as node:
                devices.append(_facts(node))
    if arguments.json:
        document("ntb", fabric=arguments.name, devices=devices)
        return output.OK
    rows = [
        (
            d["node"],
            d["profile"],
            d["port"],
            f"{sum(p['up'] for p in d['peers'])} of {len(d['peers'])}",
            _speed(d["link"]),
            d["doorbells"],
            d["scratchpads"],
            d["messages"],
            d["interrupts"],
            f"{d['windows']['direct']} + {d['windows']['lut']}" if d["windows"]["lut"] else d["windows"]["direct"],
        )
        for d in devices
    ]
    header = ("NODE", "PROFILE", "PORT", "PEERS UP", "LINK", "DOORBELLS", "SPADS", "MESSAGES", "MSI", "WINDOWS")
    emit(table(header, rows, right=("PORT", "PEERS UP", "DOORBELLS", "SPADS", "MESSAGES", "MSI", "WINDOWS")))
    return output.OK


def link(arguments: Any) -> int:
    """`ntb link NAME NODE [show|up|down]`."""
    if arguments.verb == "show":
        _surplus(arguments, "wait")
    with _device(arguments) as node:
        if arguments.verb == "up":
            node.ntb.link_enable()
        elif arguments.verb == "down":
            node.ntb.link_disable()
        if arguments.wait is not None:
            wanted = arguments.verb == "up"
            peers = range(node.ntb.peer_port_count())
            _until(lambda: all(node.ntb.link_is_up(p) == wanted for p in peers), arguments.wait,
                   f"not all links of {node.name} went {arguments.verb}")  # fmt: skip
        facts = _links(node)
    if arguments.json:
        document("ntb", fabric=arguments.name, node=arguments.node, **facts)
        return output.OK
    rows = [(p["node"], p["index"], p["port"], "up" if p["up"] else "down", _speed(facts["link"]) if p["up"] else "-")
            for p in facts["peers"]]  # fmt: skip
    emit(table(("PEER", "INDEX", "PORT", "STATE", "LINK"), rows, right=("INDEX", "PORT")))
    return output.OK


# -- registers ----------------------------------------------------------------------------------------------------------


def db(arguments: Any) -> int:
    """`ntb db NAME NODE [show|set|clear|mask|unmask|wait] [BITS] [--peer NODE]`."""
    verb = arguments.verb
    if verb == "show":
        _surplus(arguments, "bits")
    if verb != "wait":
        _surplus(arguments, "timeout")
    with _device(arguments) as node:
        ntb, peer = node.ntb, _peer(node, arguments.peer)
        change = {"set": "db_set", "clear": "db_clear", "mask": "db_set_mask", "unmask": "db_clear_mask"}
        if verb in change:
            bits = _bits(arguments)
            if peer is None:
                getattr(ntb, change[verb])(bits)
            else:
                getattr(ntb, f"peer_{change[verb]}")(peer, bits)
                _posted(node, peer, "it")
        elif verb == "wait":
            bits = _bits(arguments)
            if bits & ~ntb.db_valid_mask():
                usage(f"{arguments.node} has no doorbell bits {bits & ~ntb.db_valid_mask():#x}", f"it has {ntb.db_valid_mask():#x}")
            if peer is not None:
                usage("`wait` takes no --peer", "wait at the node whose doorbell it is")
            _until(lambda: ntb.db_read() & bits == bits, arguments.timeout, f"not all of the bits {bits:#x} were set")
        registers = _doorbell(node, peer)
    if arguments.json:
        shown = {key: None if value is None else address(value) for key, value in registers.items()}
        document("ntb", fabric=arguments.name, node=arguments.node, peer=peer, doorbell=shown)
        return output.OK
    if registers["bits"] is None:
        # The device can ring it, and nothing else.
        if verb == "show":
            raise CommandError(f"{arguments.node} cannot read the doorbell of {peer}",
                               f"fabricctl ntb db {arguments.name} {peer}", output.FAILURE)  # fmt: skip
        emit(f"doorbell of {peer}: rung")
        return output.OK
    rows = [(name, f"{value:#x}", _listed(value)) for name, value in registers.items() if value is not None]
    emit(table(("DOORBELL", "VALUE", "BITS"), rows, right=("VALUE",)))
    return output.OK


def _doorbell(node: Any, peer: str | None) -> dict[str, int | None]:
    ntb = node.ntb
    valid = ntb.db_valid_mask()
    if peer is None:
        bits, mask = ntb.db_read(), ntb.db_read_mask()
    else:
        from ..errors import InvalidArgument

        try:  # the device that reads as 0 is the one that cannot clear
            ntb.peer_db_clear(peer, 0)
        except InvalidArgument:
            return {"bits": None, "mask": None, "pending": None, "valid": valid}
        bits, mask = ntb.peer_db_read(peer), ntb.peer_db_read_mask(peer)
    return {"bits": bits, "mask": mask, "pending": bits & ~mask, "valid": valid}


def _listed(bits: int) -> str:
    """`0-3, 7`."""
    runs: list[list[int]] = []
    for bit in range(bits.bit_length()):
        if bits >> bit & 1:
            if runs and runs[-1][1] == bit - 1:
                runs[-1][1] = bit
            else:
                runs.append([bit, bit])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs) or "-"


def spad(arguments: Any) -> int:
    """`ntb spad NAME NODE [show|write] [INDEX] [VALUE] [--peer NODE]`."""
    if arguments.verb == "show":
        _surplus(arguments, "value")
    elif arguments.index is None or arguments.value is None:
        usage("`write` needs INDEX and VALUE", f"fabricctl ntb spad {arguments.name} {arguments.node} write 0 0x2a")
    with _device(arguments) as node:
        ntb, peer = node.ntb, _peer(node, arguments.peer)
        if arguments.verb == "write":
            if peer is None:
                ntb.spad_write(arguments.index, arguments.value)
            else:
                ntb.peer_spad_write(peer, arguments.index, arguments.value)
                _posted(node, peer, "it")
        count = ntb.spad_count()
        if not count:
            raise CommandError(
                f"{node.name} has no scratchpads", f"its device is {_profile(node.fabric, node.name)}", output.NOT_FOUND
            )
        if arguments.index is not None and not 0 <= arguments.index < count:
            raise CommandError(f"{node.name} has no scratchpad {arguments.index}", f"it has 0 to {count - 1}", output.NOT_FOUND)
        indices = range(count) if arguments.index is None else [arguments.index]
        values = [(idx, ntb.spad_read(idx) if peer is None else ntb.peer_spad_read(peer, idx)) for idx in indices]
    if arguments.json:
        document("ntb", fabric=arguments.name, node=arguments.node, peer=peer,
                 scratchpads=[{"index": idx, "value": value} for idx, value in values])  # fmt: skip
        return output.OK
    emit(table(("SPAD", "VALUE", "DECIMAL"), [(idx, f"0x{value:08x}", value) for idx, value in values], right=("SPAD", "DECIMAL")))
    return output.OK


def msg(arguments: Any) -> int:
    """`ntb msg NAME NODE [show|send|clear|mask|unmask] [INDEX|BITS] [VALUE] [--peer NODE]`."""
    verb = arguments.verb
    if verb == "show":
        _surplus(arguments, "index")
    if verb != "send":
        _surplus(arguments, "peer", "value")
    elif arguments.index is None or arguments.value is None or arguments.peer is None:
        usage(
            "`send` needs INDEX, VALUE and --peer", f"fabricctl ntb msg {arguments.name} {arguments.node} send 0 0x2a --peer NODE"
        )
    with _device(arguments) as node:
        ntb = node.ntb
        peer = _peer(node, arguments.peer)
        if not ntb.msg_count():
            raise CommandError(f"{node.name} has no message registers", f"its device is {_profile(node.fabric, node.name)}",
                               output.NOT_FOUND)  # fmt: skip
        if verb == "send":
            assert peer is not None
            bit = (ntb.msg_outbits() & -ntb.msg_outbits()) << max(arguments.index, 0)
            ntb.msg_clear_sts(bit & ntb.msg_outbits())
            ntb.peer_msg_write(peer, arguments.index, arguments.value)
            _posted(node, peer, "the message")
            if ntb.msg_read_sts() & bit:
                raise CommandError(f"message register {arguments.index} of {peer} still holds a message",
                                   f"fabricctl ntb msg {arguments.name} {peer} clear BITS", output.BUSY)  # fmt: skip
        elif verb != "show":
            function = {"clear": ntb.msg_clear_sts, "mask": ntb.msg_set_mask, "unmask": ntb.msg_clear_mask}[verb]
            function(_bits(arguments))
        status, inbits, outbits = ntb.msg_read_sts(), ntb.msg_inbits(), ntb.msg_outbits()
        first = inbits & -inbits
        messages = []
        for idx in range(ntb.msg_count()):
            value, source = ntb.msg_read(idx)
            full = bool(status & first << idx)
            messages.append({"index": idx, "full": full, "value": value, "source": ntb.peer_name(source) if full else None})
    if arguments.json:
        registers = {"status": address(status), "inbits": address(inbits), "outbits": address(outbits)}
        document("ntb", fabric=arguments.name, node=arguments.node, peer=peer, **registers, messages=messages)
        return output.OK
    if verb == "send":
        emit(f"message register {arguments.index} of {peer}: {arguments.value:#x} sent")
        return output.OK
    rows = [(m["index"], "full" if m["full"] else "empty", f"0x{m['value']:08x}", m["source"] or "-", f"{first << m['index']:#x}")
            for m in messages]  # fmt: skip
    emit(table(("MSG", "STATE", "VALUE", "FROM", "STATUS BIT"), rows, right=("MSG", "STATUS BIT")))
    if status & outbits:
        output.note(f"not taken by their peers (outbound status): {status & outbits:#x}")
    return output.OK


def mw(arguments: Any) -> int:
    """`ntb mw NAME NODE [--peer NODE] [--all]`."""
    with _device(arguments) as node:
        peer = _peer(node, arguments.peer)
        if peer is not None:
            node.ntb.mw_count(peer)
        windows = [
            {
                "index": w.index,
                "lut": w.lut,
                "bus": address(w.address & (1 << 63) - 1),
                "peer": w.peer,
                "translation": address(w.translation) if w.programmed else None,
                "bytes": w.size,
                "max_bytes": w.max_size,
                "address_align": w.address_align,
                "size_align": w.size_align,
            }
            for w in node.ntb.windows
            if (arguments.all and (peer is None or w.peer in (None, peer))) or (w.programmed and w.peer == (peer or w.peer))
        ]
    if arguments.json:
        document("ntb", fabric=arguments.name, node=arguments.node, peer=peer, windows=windows)
        return output.OK
    if not windows:
        output.note("no window is programmed; --all shows those that lead nowhere")
        return output.OK
    rows = [
        (
            w["index"],
            "LUT" if w["lut"] else "direct",
            f"{w['peer']} {int(w['translation'], 16):#x}" if w["peer"] else "-",
            output.size(w["bytes"]) if w["peer"] else "-",
            output.size(w["max_bytes"]),
            output.size(w["address_align"]),
            output.size(w["size_align"]),
        )
        for w in windows
    ]
    header = ("WINDOW", "TYPE", "SHOWS", "SIZE", "LARGEST", "ADDRESS ALIGN", "SIZE ALIGN")
    emit(table(header, rows, right=("WINDOW", "SIZE", "LARGEST", "ADDRESS ALIGN", "SIZE ALIGN")))
    return output.OK


__all__ = ["db", "link", "msg", "mw", "show", "spad"]
