# SPDX-License-Identifier: Apache-2.0
"""`fabricctl events`: what has happened to a fabric, and what happens to it.

It looks on and takes no part: `down` needs no `--force` because of it.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from . import output
from .common import check_name, no_fabric
from .output import document, emit, note, unknown


def events(arguments: Any) -> int:
    """`events NAME [--follow] [--since S] [--kind EVENT]`."""
    from ..errors import FabricNotFound
    from ..event import KINDS, Events

    for kind in arguments.kind or ():
        if kind not in KINDS:
            raise unknown("kind of event", kind, KINDS, output.USAGE)
    check_name(arguments.name)
    first = arguments.since if isinstance(arguments.since, int) else 0
    try:
        seen = Events.observe(arguments.name, first, follow=arguments.follow)
    except FabricNotFound as error:
        raise no_fabric(arguments.name, error) from None
    with seen:
        if arguments.json and not arguments.follow:
            found = [dataclasses.asdict(event) for event in _chosen(seen, arguments)]
            document("events", fabric=arguments.name, events=found, next=seen.next, lost=seen.lost)
            return output.OK
        for event in _chosen(seen, arguments):
            if arguments.json:
                line = {"schema_version": output.SCHEMA_VERSION, "command": "events", "fabric": arguments.name,
                        "events": [dataclasses.asdict(event)], "next": event.number + 1, "lost": seen.lost}  # fmt: skip
                emit(json.dumps(line, ensure_ascii=False))
            else:
                if event.lost:
                    note(f"({output.count(event.lost, 'event')} before this one came and went too fast)")
                emit(output.fit(_line(event)))
            if arguments.follow:
                sys.stdout.flush()
    return output.OK


def _chosen(seen: Any, arguments: Any) -> Iterator[Any]:
    oldest = time.time_ns() - int(arguments.since * 1e9) if isinstance(arguments.since, float) else 0
    for event in seen:
        if event.unix_ns >= oldest and (not arguments.kind or event.kind in arguments.kind):
            yield event


def _line(event: Any) -> str:
    wall = time.strftime("%H:%M:%S", time.localtime(event.unix_ns // 10**9)) + f".{event.unix_ns // 10**6 % 1000:03}"
    details = ", ".join(_detail(key, value) for key, value in event.details.items())
    what = event.link or event.node or ""
    when = f"{event.number:>6}  {wall}  {output.nanoseconds(event.time_ps / 1e3):>8}"
    return f"{when}  {event.kind:<14}  {what}{'  ' if what and details else ''}{details}"


def _detail(key: str, value: Any) -> str:
    if key.endswith("_ps"):
        return f"{key[:-3]} {output.nanoseconds(value / 1e3)}"
    if key.endswith("_bps"):
        return f"{key[:-4]} {output.bits(value)}"
    return f"{key} {value}"


__all__ = ["events"]
