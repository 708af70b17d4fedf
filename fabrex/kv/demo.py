# SPDX-License-Identifier: Apache-2.0
"""Two engines that share the work over a fabric: one prefills, the other decodes, and the cache goes from one to the other.

Owns: which settings are run, the figures, and the picture. Must not know: how an engine works (engine.py does).
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from ..fabric import Fabric
from ..launcher import environment
from ..topology import Topology
from .layout import KVLayout

PRESETS = ("local", "fabrex-claimed", "ntb-measured", "jetstream-pair")
WAYS = ("push", "pull")
SHAPE = {"layers": 8, "heads": 4, "head_size": 64}
VLLM_SHAPE = {"layers": 4, "heads": 2, "head_size": 64}
VLLM_BLOCK = 32
FIRST_PORT = 5600


class EngineError(RuntimeError):
    """An engine ended with an error; the message ends with what it said last."""


@dataclass
class Setting:
    """One topology, and what of it was changed."""

    label: str
    topology: Topology


@dataclass
class Row:
    """What was measured in one setting, one way. Times are in ps, medians over the prompts unless it says otherwise."""

    label: str
    way: str
    ttft_ps: float = 0.0
    handover_ps: float = 0.0  # of the largest prompt
    modelled_ps: float = 0.0  # of the largest prompt
    bytes: int = 0  # over all prompts
    expected_bytes: int = 0
    same: int = 0
    prompts: int = 0
    late: int = 0
    operations: int = 0
    timing: bool = True
    details: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ratio(self) -> float | None:
        """Measured over modelled: the median of the hand-overs of 1 MB and more (of the largest, if there is none)."""
        if not self.timing or not self.modelled_ps:
            return None
        large = [row for row in self.details if row["bytes"] >= 1_000_000] or self.details[-1:]
        return statistics.median(row["handover_ps"] / row["modelled_ps"] for row in large) if large else None


def settings(presets: Iterable[str], sweeps: Iterable[str] = (), **common: Any) -> list[Setting]:
    """Return every preset with every combination of sweeps, each "KEY=VALUE,VALUE..." with keys as in `Topology.override`."""
    found = []
    for preset in presets:
        base = Topology.resolve(preset)
        made: list[tuple[list[str], list[str]]] = [([], [])]
        for sweep in sweeps:
            key, separator, values = sweep.partition("=")
            if not separator:
                raise ValueError(f"{sweep!r} has no value; write KEY=VALUE, or KEY=VALUE,VALUE to try several")
            made = [
                ([*changes, f"{key}={value}"], [*words, f"{key.rpartition('.')[2]}={value}"])
                for changes, words in made
                for value in values.split(",")
            ]
        for changes, words in made:
            topology = base.override(changes, **common) if changes or common else base
            found.append(Setting(" ".join([base.name, *words]), topology))
    return found


class _Pair:
    """Two engines, and what they say."""

    def __init__(self, roles: dict[str, tuple[str, dict[str, str]]], plan: dict[str, Any]) -> None:
        self._logs = {role: tempfile.TemporaryFile("w+") for role in roles}  # noqa: SIM115 - closed by end()
        self._outs = {role: tempfile.TemporaryFile("w+") for role in roles}  # noqa: SIM115
        self._processes = {
            role: subprocess.Popen(
                [sys.executable, "-m", "fabrex.kv.engine", role, json.dumps(plan)],
                env={**os.environ, **given},
                stdin=subprocess.PIPE,  # its end is ours: an engine without a parent ends
                stdout=self._outs[role],
                stderr=self._logs[role],
                start_new_session=True,
            )
            for role, (_, given) in roles.items()
        }

    def wait(self, timeout: float) -> list[dict[str, Any]]:
        """Wait for all; returns what they printed, in JSON."""
        deadline = time.monotonic() + timeout
        try:
            left = dict(self._processes)
            while left:
                for role, process in list(left.items()):
                    code = process.poll()
                    if code is None:
                        continue
                    del left[role]
                    if code:
                        raise EngineError(f"the {role} engine ended with code {code}:\n{self._said(role)}")
                if left and time.monotonic() > deadline:
                    role = next(iter(left))
                    raise EngineError(f"the {role} engine did not end within {timeout:.0f} s:\n{self._said(role)}")
                time.sleep(0.05)
            rows = []
            for out in self._outs.values():
                out.seek(0)
                rows += [json.loads(line) for line in out if line.startswith("{")]
            return rows
        finally:
            self.end()

    def _said(self, role: str) -> str:
        log = self._logs[role]
        log.seek(0)
        return "".join(log.readlines()[-20:])

    def end(self) -> None:
        """Leave nothing behind."""
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
        for stream in (*self._logs.values(), *self._outs.values()):
            stream.close()


def _collect(setting: Setting, way: str, rows: list[dict[str, Any]]) -> Row:
    rows.sort(key=lambda row: int(row["prompt"]))
    out = Row(setting.label, way, timing=setting.topology.timing, prompts=len(rows), details=rows)
    largest = rows[-1]
    out.ttft_ps = statistics.median(row["ttft_ps"] for row in rows)
    out.handover_ps, out.modelled_ps = largest["handover_ps"], largest["modelled_ps"]
    out.bytes, out.expected_bytes = sum(row["dma_bytes"] for row in rows), sum(row["bytes"] for row in rows)
    out.same = sum(row["tokens"] == row["expected"] for row in rows)
    out.late, out.operations = sum(row["dma_late"] for row in rows), sum(row["dma_count"] for row in rows)
    return out


def run_transformers(
    chosen: list[Setting],
    ways: Iterable[str] = WAYS,
    *,
    prompts: int = 8,
    tokens: int = 8,
    shape: dict[str, int] | None = None,
    damage: bool = False,
    timeout: float = 600.0,
) -> list[Row]:
    """Run two transformers engines over all settings, in one pair of processes."""
    chosen_ways = list(ways)
    with contextlib.ExitStack() as stack:
        fabrics = [stack.enter_context(Fabric.create(setting.topology)) for setting in chosen]
        plan = {
            "engine": "transformers",
            "fabrics": [fabric.name for fabric in fabrics],
            "directory": fabrics[0].directory,
            "ways": chosen_ways,
            "prompts": prompts,
            "tokens": tokens,
            "shape": shape or SHAPE,
            "damage": damage,
        }
        rows = _Pair({"prefill": ("host0", {}), "decode": ("host1", {})}, plan).wait(timeout)
        by = {fabric.name: setting for fabric, setting in zip(fabrics, chosen, strict=True)}
        return [
            _collect(setting, way, [row for row in rows if row["fabric"] == name and row["way"] == way])
            for name, setting in by.items()
            for way in chosen_ways
        ]


def run_vllm(
    chosen: list[Setting],
    ways: Iterable[str] = ("pull",),
    *,
    prompts: int = 8,
    tokens: int = 8,
    damage: bool = False,
    timeout: float = 900.0,
    say: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Run two unmodified vLLM engines with NIXL's connector, one pair of processes for each setting."""
    from .. import nixl
    from . import engine
    from . import model as small

    out: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="fabrex-kv-") as place:
        where = str(Path(place) / "model")
        small.build(**VLLM_SHAPE).save_pretrained(where)
        plan: dict[str, Any] = {
            "engine": "vllm",
            "model": where,
            "prompts": prompts,
            "tokens": tokens,
            "damage": damage,
            "ways": ["pull"],
        }
        say("vLLM alone, for the tokens to compare with ...")
        alone = _Pair({"alone": ("", engine.vllm_environment(FIRST_PORT))}, plan).wait(timeout)
        expected = {row["prompt"]: row["tokens"] for row in alone}
        layout = KVLayout(VLLM_SHAPE["layers"], VLLM_SHAPE["heads"], VLLM_SHAPE["head_size"], 1024, VLLM_BLOCK)
        for setting in chosen:
            for way in ways:
                say(f"{setting.label}, {way} ...")
                log = Path(place) / f"transfers-{len(out)}"
                with Fabric.create(setting.topology) as fabric:
                    roles = {}
                    for rank, role in enumerate(("prefill", "decode")):
                        given = environment(fabric.name, fabric.directory, f"host{rank}", rank, 2)
                        path = os.pathsep.join(p for p in (nixl.SHIM_PATH, os.environ.get("PYTHONPATH")) if p)
                        given |= {"PYTHONPATH": path, "FABREX_NIXL_LOG": str(log)}
                        roles[role] = (f"host{rank}", engine.vllm_environment(FIRST_PORT + 10 * rank) | given)
                    rows = _Pair(roles, {**plan, "fabrics": [fabric.name], "directory": fabric.directory, "ways": [way]}).wait(
                        timeout
                    )
                transfers = sorted(
                    (json.loads(line) for line in log.read_text().splitlines()), key=lambda row: int(row["posted_ps"])
                )
                transfers = [row for row in transfers if row["measured_ps"] is not None and row["bytes"]]
                for row, transfer in zip(rows, transfers, strict=True):
                    row["expected"] = expected[row["prompt"]]
                    row["bytes"] = layout.bytes_for(row["prompt"])
                    row["handover_ps"], row["modelled_ps"] = transfer["measured_ps"], transfer["estimated_ps"]
                out.append(_collect(setting, way, rows))
    return out


# -- the picture ------------------------------------------------------------------------------------------------------


def picture(rows: list[Row], engine: str) -> str:
    """Return an SVG: hand-over of the largest prompt, modelled beside measured, on a logarithmic axis."""
    import math

    left, right, top, line = 250, 90, 64, 46
    width, height = 860, top + line * len(rows) + 44
    values = [value for row in rows for value in (row.handover_ps, row.modelled_ps) if value > 0]
    low, high = math.floor(math.log10(min(values, default=1e6))), math.ceil(math.log10(max(values, default=1e9)))
    high = max(high, low + 1)

    def x(value: float) -> float:
        return left + (width - left - right) * (max(math.log10(max(value, 10**low)), low) - low) / (high - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="20" y="26" font-size="16" font-weight="600" fill="#1c2733">Hand-over of the KV cache, {escape(engine)}</text>',
        '<rect x="20" y="38" width="12" height="12" fill="#9db4c8"/><text x="38" y="49" fill="#44525f">modelled</text>',
        '<rect x="112" y="38" width="12" height="12" fill="#1f6f8b"/><text x="130" y="49" fill="#44525f">measured</text>',
    ]
    for power in range(low, high + 1):
        at = x(10.0**power)
        parts.append(f'<line x1="{at:.1f}" y1="{top}" x2="{at:.1f}" y2="{height - 36}" stroke="#dde4ea"/>')
        parts.append(f'<text x="{at:.1f}" y="{height - 18}" text-anchor="middle" fill="#6a7885">{_time(10.0**power)}</text>')
    for i, row in enumerate(rows):
        y = top + line * i + 6
        moved = row.details[-1]["bytes"] if row.details else 0
        parts.append(f'<text x="{left - 12}" y="{y + 13}" text-anchor="end" fill="#1c2733">{escape(row.label)}</text>')
        parts.append(f'<text x="{left - 12}" y="{y + 29}" text-anchor="end" fill="#6a7885">{row.way}, {moved / 1e6:.1f} MB</text>')
        for value, colour, offset in ((row.modelled_ps if row.timing else 0, "#9db4c8", 0), (row.handover_ps, "#1f6f8b", 17)):
            if value > 0:
                parts.append(
                    f'<rect x="{left}" y="{y + offset}" width="{max(x(value) - left, 1):.1f}" height="14" fill="{colour}"/>'
                )
                parts.append(f'<text x="{x(value) + 6:.1f}" y="{y + offset + 12}" fill="#1c2733">{_time(value)}</text>')
            elif not offset:
                parts.append(f'<text x="{left + 6}" y="{y + 12}" fill="#6a7885">no time is injected</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _time(ps: float) -> str:
    for scale, unit in ((1e12, "s"), (1e9, "ms"), (1e6, "us"), (1e3, "ns")):
        if ps >= scale:
            return f"{ps / scale:.3g} {unit}".replace("us", "µs")
    return f"{ps:.0f} ps"
