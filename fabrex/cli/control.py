# SPDX-License-Identifier: Apache-2.0
"""Commands that look into a running fabric and change it: link, window, mem."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from ..errors import PeerLost
from . import output
from .common import Place, find_link, find_node, open_fabric
from .life import link_table, setting
from .output import address, document, emit, note, table, usage


def link_show(arguments: Any) -> int:
    """`link show NAME [LINK]`."""
    with open_fabric(arguments.name) as fabric:
        names = [find_link(fabric, arguments.link)] if arguments.link else list(fabric.links)
        links = [fabric.links[name].info() for name in names]
    if arguments.json:
        document("link", fabric=arguments.name, links=links)
    else:
        emit(link_table(links))
    return output.OK


def _link_change(arguments: Any, up: bool) -> int:
    with open_fabric(arguments.name) as fabric:
        link = fabric.links[find_link(fabric, arguments.link)]
        link.up() if up else link.down()
        info = link.info()
    if arguments.json:
        document("link", fabric=arguments.name, links=[info])
    else:
        emit(f"{link.name}: {'up' if info['up'] else 'down'}")
    return output.OK


def link_down(arguments: Any) -> int:
    """`link down NAME LINK`."""
    return _link_change(arguments, False)


def link_up(arguments: Any) -> int:
    """`link up NAME LINK`."""
    return _link_change(arguments, True)


def _link_values(arguments: Any, change: Callable[[Any], None]) -> int:
    with open_fabric(arguments.name) as fabric:
        link = fabric.links[find_link(fabric, arguments.link)]
        change(link)
        info = link.info()
    if arguments.json:
        document("link", fabric=arguments.name, links=[info])
    else:
        emit(f"{link.name}: {setting(info)}")
    return output.OK


def link_set(arguments: Any) -> int:
    """`link set NAME LINK KEY=VALUE...`."""
    values: dict[str, str] = {}
    for word in arguments.values:
        key, equals, value = word.partition("=")
        if not equals or not key:
            usage(f"{word!r} is no KEY=VALUE", "write delay=500ns")
        if key in values:
            usage(f"{key} is given twice")
        values[key] = value
    return _link_values(arguments, lambda link: link.set(**values))


def link_reset(arguments: Any) -> int:
    """`link reset NAME LINK`: back to what the topology says."""
    return _link_values(arguments, lambda link: link.reset())


# -- windows ----------------------------------------------------------------------------------------------------------

_PERMISSIONS = ("none", "r", "w", "rw")
_MAPPINGS = ("uc", "wc", "managed")


def _window(fabric: Any, node: str, index: int) -> dict[str, Any]:
    from .._handle import check, ffi, lib

    out = ffi.new("struct fbx_window_info *")
    check(lib.fbx_mw_info(fabric._live(), fabric._node_index(node), index, out))
    on = bool(out.programmed)
    return {
        "node": node,
        "index": index,
        "lut": bool(out.lut),
        "programmed": on,
        "peer": fabric._node_name(out.peer) if on else None,
        "translation": address(int(out.translation)) if on else None,
        "bytes": int(out.bytes) if on else 0,
        "bus": address(int(out.bus)),
        "max_bytes": int(out.max_bytes),
        "permission": _PERMISSIONS[out.perm & 3],
        "mapping": _MAPPINGS[min(out.mapping, 2)],
    }


def _windows(fabric: Any, node: str, everything: bool) -> list[dict[str, Any]]:
    from .._handle import check, lib

    number = check(lib.fbx_mw_count(fabric._live(), fabric._node_index(node)))
    found = (_window(fabric, node, index) for index in range(number))
    return [window for window in found if everything or window["programmed"]]


def _window_table(windows: list[dict[str, Any]]) -> str:
    rows = [
        (
            w["node"],
            w["index"],
            "LUT" if w["lut"] else "direct",
            w["bus"],
            f"{w['peer']} {int(w['translation'], 16):#x}" if w["programmed"] else "-",
            output.size(w["bytes"]) if w["programmed"] else f"(up to {output.size(w['max_bytes'])})",
            w["permission"] if w["programmed"] else "-",
            w["mapping"] if w["programmed"] else "-",
        )
        for w in windows
    ]
    return table(("NODE", "WINDOW", "TYPE", "BUS ADDRESS", "SHOWS", "SIZE", "PERM", "MAPPING"), rows, right=("WINDOW", "SIZE"))


def window_list(arguments: Any) -> int:
    """`window list NAME [NODE]`."""
    with open_fabric(arguments.name) as fabric:
        nodes = [find_node(fabric, arguments.node)] if arguments.node else list(fabric.topology.nodes)
        windows = []
        for node in nodes:
            try:
                windows += _windows(fabric, node, arguments.all)
            except PeerLost as error:
                if arguments.node:
                    raise
                note(f"{node}: {error.message}, and its windows with it")
    if arguments.json:
        document("window", fabric=arguments.name, windows=windows)
    elif windows:
        emit(_window_table(windows))
    else:
        output.note("no window is programmed; --all shows those that lead nowhere")
    return output.OK


def _index(fabric: Any, node: str, index: int) -> int:
    from .._handle import check, lib

    number = check(lib.fbx_mw_count(fabric._live(), fabric._node_index(node)))
    if not 0 <= index < number:
        there = f"it has windows 0 to {number - 1}" if number else "it has none"
        raise output.CommandError(f"{node} has no window {index}", there, output.NOT_FOUND)
    return index


def window_set(arguments: Any) -> int:
    """`window set NAME NODE INDEX ADDRESS SIZE`."""
    from .._handle import check, lib

    with open_fabric(arguments.name) as fabric:
        node = find_node(fabric, arguments.node, attachable=True)
        index = _index(fabric, node, arguments.index)
        place = Place(fabric, arguments.address)
        if place.bus is None:
            usage("a window shows a part of a node's memory", "write host1:dram+0x100000")
        check(
            lib.fbx_mw_set_trans(
                fabric._live(),
                fabric._node_index(node),
                index,
                fabric._node_index(place.node),
                place.bus,
                arguments.size,
                _PERMISSIONS.index(arguments.perm),
                _MAPPINGS.index(arguments.mapping),
            )
        )
        window = _window(fabric, node, index)
    if arguments.json:
        document("window", fabric=arguments.name, windows=[window])
    else:
        emit(_window_table([window]))
    return output.OK


def window_clear(arguments: Any) -> int:
    """`window clear NAME NODE INDEX`."""
    from .._handle import check, lib

    with open_fabric(arguments.name) as fabric:
        node = find_node(fabric, arguments.node, attachable=True)
        index = _index(fabric, node, arguments.index)
        check(lib.fbx_mw_clear_trans(fabric._live(), fabric._node_index(node), index))
        window = _window(fabric, node, index)
    if arguments.json:
        document("window", fabric=arguments.name, windows=[window])
    else:
        emit(f"window {index} of {node}: leads nowhere")
    return output.OK


# -- memory -----------------------------------------------------------------------------------------------------------

_MOST_BYTES = 1 << 26


def _visit(fabric: Any, arguments: Any, place: Place) -> Any:
    source = arguments.source or place.node
    find_node(fabric, source, attachable=True)
    return fabric.attach(source, role="client")


def mem_read(arguments: Any) -> int:
    """`mem read NAME ADDRESS`: as the node given by --from sees it."""
    if not 1 <= arguments.size <= _MOST_BYTES:
        usage(f"--size is 1 to {_MOST_BYTES} bytes")
    with open_fabric(arguments.name) as fabric:
        place = Place(fabric, arguments.address)
        with _visit(fabric, arguments, place) as node:
            data = node.read(place.gva, arguments.size)
            source = node.name
    if arguments.raw:
        if arguments.json:
            usage("--raw and --json exclude each other")
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    elif arguments.json:
        document("mem", fabric=arguments.name, node=place.node, source=source, gva=address(place.gva), bytes=len(data),
                 data=data.hex())  # fmt: skip
    else:
        emit(_dump(place.gva, data))
    return output.OK


def _dump(start: int, data: bytes) -> str:
    room = output.width()
    per_line = 16 if room is None or room >= 78 else 8 if room >= 45 else 4
    lines = []
    previous = b""
    skipping = False
    for offset in range(0, len(data), per_line):
        piece = data[offset : offset + per_line]
        if piece == previous and offset + per_line < len(data):
            if not skipping:
                lines.append("*")
            skipping = True
            continue
        skipping, previous = False, piece
        shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in piece)
        lines.append(f"{start + offset:#014x}  {piece.hex(' '):<{3 * per_line - 1}}  {shown}")
    return "\n".join(lines)


def mem_write(arguments: Any) -> int:
    """`mem write NAME ADDRESS VALUE`: returns when it is visible there."""
    given = [arguments.value, arguments.hex, arguments.text]
    if sum(value is not None for value in given) != 1:
        usage("give one of VALUE, --hex and --text")
    if arguments.hex is not None:
        try:
            data = bytes.fromhex(arguments.hex.removeprefix("0x"))
        except ValueError:
            usage(f"{arguments.hex!r} is no sequence of hex bytes", "write --hex '00 ff 12' or --hex 00ff12")
    elif arguments.text is not None:
        data = arguments.text.encode()
    elif arguments.value == "-":
        data = sys.stdin.buffer.read()
    else:
        from .parser import number

        try:
            value = number(arguments.value)
            data = value.to_bytes(arguments.size, "little")
        except OverflowError:
            usage(f"{arguments.value} does not fit {arguments.size} unsigned bytes")
        except Exception:
            usage(f"{arguments.value!r} is no whole number", "write 42 or 0x2a; --hex and --text take bytes")
    if not data:
        usage("there is nothing to write")
    with open_fabric(arguments.name) as fabric:
        place = Place(fabric, arguments.address)
        with _visit(fabric, arguments, place) as node:
            if arguments.value not in (None, "-") and place.gva % len(data) == 0:
                node.store(place.gva, int.from_bytes(data, "little"), size=len(data))
            else:
                node.write(place.gva, data)
            node.flush(place.node, check=True)
            source = node.name
    if arguments.json:
        document("mem", fabric=arguments.name, node=place.node, source=source, gva=address(place.gva), bytes=len(data),
                 data=data.hex() if len(data) <= 4096 else None)  # fmt: skip
    else:
        emit(f"{output.count(len(data), 'byte')} written at {place.gva:#x} ({place.node})")
    return output.OK


__all__ = [
    "link_down",
    "link_reset",
    "link_set",
    "link_show",
    "link_up",
    "mem_read",
    "mem_write",
    "window_clear",
    "window_list",
    "window_set",
]
