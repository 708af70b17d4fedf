# SPDX-License-Identifier: Apache-2.0
"""Which fabrics there are. Apart from the rest, so that `fabricctl list` loads little.

Owns: where segments are, what the core says about a fabric as a whole. Must not know: topologies, nodes.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from ._handle import ffi, lib, text

__all__ = ["ORDERINGS", "default_directory", "fabrics", "info_dict"]

ORDERINGS = {"posted": 0, "immediate": 1, "adversarial": 2}
_SEGMENT = re.compile(r"fabrex@(\d+)@([A-Za-z0-9_.-]+)(@.*)?")


def default_directory() -> str:
    """Return where segments live: FABREX_DIRECTORY, or /dev/shm."""
    return os.environ.get("FABREX_DIRECTORY") or "/dev/shm"


def info_dict(out: Any) -> dict[str, Any]:
    """Return what the core says about a fabric as a whole."""
    return {
        "name": text(out.name),
        "directory": text(out.directory),
        "persistent": bool(out.flags & lib.FBX_PERSISTENT),
        "timing": bool(out.flags & lib.FBX_TIMING),
        "windows": "auto" if out.flags & lib.FBX_AUTO_WINDOWS else "manual",
        "ordering": {v: k for k, v in ORDERINGS.items()}.get(out.ordering, "damaged"),
        "nodes": int(out.node_count),
        "links": int(out.link_count),
        "links_changed": int(out.links_changed),
        "processes": int(out.session_count),
        "attached": int(out.requester_count),
        "memory_bytes": int(out.memory_bytes),
        "committed_bytes": int(out.committed_bytes),
        "control_bytes": int(out.control_bytes),
        "creator_pid": int(out.creator_pid),
        "created_unix_ns": int(out.created_unix_ns),
        "seed": int(out.seed),
        "alive": bool(not out.closed and (out.owner_alive or out.flags & lib.FBX_PERSISTENT)),
        "now_ps": int(out.now_ps),
        "tick_hz": int(out.tick_hz),
        "tick_cost_ps": int(out.tick_cost_ps),
        "counters": {
            name: int(getattr(out, name))
            for name in ("corrupt_resets", "takeovers", "reservations_clamped", "sessions_reaped", "control_epoch")
        },
    }


def fabrics(directory: str | None = None) -> list[dict[str, Any]]:
    """Return this user's fabrics in `directory`, the damaged and the dead included (`alive` and `error` say which)."""
    place = directory or default_directory()
    found: list[dict[str, Any]] = []
    try:
        names = sorted(entry.name for entry in Path(place).iterdir())
    except FileNotFoundError:
        return found
    for entry in names:
        match = _SEGMENT.fullmatch(entry)
        if not match or int(match[1]) != os.getuid() or match[3]:
            continue
        out = ffi.new("struct fbx_fabric_info *")
        code = lib.fbx_fabric_probe(os.fsencode(place), match[2].encode(), out)
        if code == 0:
            found.append(info_dict(out))
        elif code != lib.FBX_E_NOT_FOUND:
            error = text(lib.fbx_last_error().text)
            found.append({"name": match[2], "directory": place, "alive": False, "error": error})
    return found
