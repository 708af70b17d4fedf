# SPDX-License-Identifier: Apache-2.0
"""The accuracy card: per operation, what was asked for and what came of it, on this machine, today.

Where less was asked for than the machine needs anyway there is no accuracy to speak of: the card says so, and at which time
dilation there would be.

Owns: how the card looks, in a terminal and as a picture. Must not know: how the figures come about.
"""

from __future__ import annotations

import math
import sys
import time
from typing import Any

from . import output
from .canvas import Canvas
from .figures import TOLERANCE, title

__all__ = ["disturbance_words", "machine_words", "picture", "text", "when"]

_GOOD, _POOR, _FAINT, _INK, _SOFT = "#00805c", "#c2410c", "#9aa5b1", "#1f2933", "#52606d"
_STEPS = ((0.005, 5), (0.01, 4), (0.02, 3), (0.05, 2), (0.1, 1))  # how many of five marks an error leaves


def _timed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["claim"]]


def _marks(row: dict[str, Any]) -> int:
    if row["claim"] == "kept" and abs(row["error"]) > _STEPS[2][0]:
        return 3  # one step of the clock
    return next((marks for most, marks in _STEPS if abs(row["error"]) <= most), 0)


def _signed(error: float) -> str:
    shown = f"{100 * error:+.1f}" if abs(error) < 0.995 else f"{100 * error:+.0f}"
    return f"{'0.0' if float(shown) == 0 else shown} %" if abs(error) < 10 else f"×{1 + error:.3g}"


def _late(share: float | None) -> str:
    if share is None or share == 0 or share >= 0.0995:
        return output.percent(share)
    return "<0.1 %" if share < 0.0005 else f"{100 * share:.1f} %"


def _summary(rows: list[dict[str, Any]]) -> str:
    kept = sum(row["claim"] == "kept" for row in rows)
    below = sum(row["claim"] == "below floor" for row in rows)
    missed = len(rows) - kept - below
    return f"{kept} kept, {missed} missed, {below} below this machine's floor"


def disturbance_words(disturbance: dict[str, Any]) -> str:
    """What kept the processor from the run."""
    away = disturbance["descheduled"]
    return (
        f"{100 * disturbance['stolen_fraction']:.2g} % of the time stolen by the hypervisor, "
        f"processor taken away {away} time{'s' * (away != 1)} in {disturbance['seconds']:g} s, load {disturbance['load_average']:g}"
    )


def machine_words(facts: dict[str, Any]) -> str:
    """The machine in half a line."""
    return (
        f"{facts['processor']}, {facts['cores']} cores, Linux {facts['kernel']}, fabrex {facts['fabrex']}, "
        f"clock step {output.nanoseconds(facts['clock_step_ns'])}"
    )


def when(facts: dict[str, Any]) -> str:
    """When it was measured."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(facts["measured_unix"]))


# -- in a terminal ----------------------------------------------------------------------------------------------------


def text(rows: list[dict[str, Any]], facts: dict[str, Any], disturbance: dict[str, Any]) -> str:
    """The card for a terminal of 80 columns."""
    colour = output.tty(sys.stdout)

    def paint(words: str, code: str) -> str:
        return f"\x1b[{code}m{words}\x1b[0m" if colour else words

    rows = _timed(rows)
    lines = []
    for word in dict.fromkeys(row["topology"] for row in rows):
        chosen = [row for row in rows if row["topology"] == word]
        head = f"ACCURACY CARD  {output.cut_to(word, 30)}, {chosen[0]['ordering']}"
        lines += [paint(head.ljust(60), "1") + when(facts).rjust(20), ""]
        lines.append(paint(f"{'OPERATION':<19}{'API':<7}{'ASKED':>8}{'GIVEN':>9}{'OFF BY':>9}  {'':5}{'P99':>9}{'LATE':>7}", "2"))
        previous = ""
        for row in chosen:
            name = title(row) if title(row) != previous else ""
            previous = title(row)
            start = f"{name:<19}{row['api']:<7}{output.nanoseconds(row['requested_ns']):>8}"
            if row["claim"] == "below floor":
                why = f"{'no claim: takes ' + output.nanoseconds(row['floor_ns']):>26}  {'dilate ×' + str(row['dilation']):>14}"
                lines.append(start + paint(f" {why}", "2"))
                continue
            marks = _marks(row)
            end = f"{output.nanoseconds(row['p99_ns']):>9}{_late(row['late']):>7}"
            dots = paint("●" * marks, "32" if marks > 2 else "33") + paint("○" * (5 - marks), "2")
            lines.append(f"{start}{output.nanoseconds(row['p50_ns']):>9}{_signed(row['error']):>9}  {dots}{end}")
        lines += ["", f"{output.cut_to(word, 30)}: {_summary(chosen)}", ""]
    if not rows:
        lines += ["nothing was asked for that takes time", ""]
    legend = (
        f"ASKED: what the model says. GIVEN: the median here. ●●●●● within 0.5 %, ●●●● 1 %, ●●● {100 * TOLERANCE:g} % or one step "
        "of the clock (kept), ●● 5 %, ● 10 %. No claim: the machine needs longer than that with nothing to wait for. LATE: "
        "operations after their deadline, by however little."
    )
    lines += [output.wrapped(machine_words(facts)), output.wrapped(disturbance_words(disturbance)), "", output.wrapped(legend)]
    return "\n".join(line.rstrip() for line in lines)


# -- as a picture -----------------------------------------------------------------------------------------------------

_WIDTH, _LEFT, _RIGHT, _ROW = 980, 210, 700, 24
_COLUMNS = {"asked": 772, "given": 846, "off": 908, "late": 960}


def picture(rows: list[dict[str, Any]], facts: dict[str, Any], disturbance: dict[str, Any]) -> Canvas:
    """The card as a picture: a line per operation on a logarithmic axis of time."""
    rows = _timed(rows)
    groups = [[row for row in rows if row["topology"] == word] for word in dict.fromkeys(row["topology"] for row in rows)]
    height = 150 + sum(66 + _ROW * len(group) for group in groups)
    canvas = Canvas(_WIDTH, height, f"Accuracy card: {_summary(rows)}")
    canvas.text(24, 38, "Accuracy card", size=22, bold=True)
    canvas.text(_WIDTH - 20, 38, when(facts), size=12, colour=_SOFT, anchor="end")
    canvas.text(24, 60, machine_words(facts), size=12, colour=_SOFT)
    canvas.text(24, 78, disturbance_words(disturbance), size=12, colour=_SOFT)
    y = 100.0
    for group in groups:
        y = _panel(canvas, group, y)
    _legend(canvas, height - 24)
    return canvas


def _decades(rows: list[dict[str, Any]]) -> tuple[int, int]:
    values = [row[word] for row in rows for word in ("requested_ns", "p50_ns", "floor_ns", "p99_ns") if row[word]]
    low = math.floor(math.log10(min(values)))
    high = math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _panel(canvas: Canvas, rows: list[dict[str, Any]], top: float) -> float:
    low, high = _decades(rows)

    def place(ns: float) -> float:
        share = (math.log10(max(ns, 10.0**low)) - low) / (high - low)
        return _LEFT + (_RIGHT - _LEFT) * min(max(share, 0.0), 1.0)

    first, bottom = top + 44, top + 44 + _ROW * len(rows)
    canvas.text(24, top + 16, f"{rows[0]['topology']}, {rows[0]['ordering']}", size=14, bold=True)
    canvas.text(_WIDTH - 20, top + 16, _summary(rows), size=12, colour=_SOFT, anchor="end")
    for decade in range(low, high + 1):
        x = place(10.0**decade)
        canvas.line(x, first - 4, x, bottom, "#e4e7eb")
        canvas.text(x, first - 10, output.nanoseconds(10.0**decade), size=10, colour=_SOFT, anchor="middle")
    for name, x in _COLUMNS.items():
        words = {"asked": "asked", "given": "given", "off": "off by", "late": "late"}[name]
        canvas.text(x, first - 10, words, size=10, colour=_SOFT, anchor="end")
    previous = ""
    for number, row in enumerate(rows):
        y = first + _ROW * number
        middle = y + _ROW / 2
        if title(row) != previous:
            canvas.line(24, y, _WIDTH - 20, y, "#e4e7eb")
            canvas.text(24, middle + 4, title(row), size=12)
        previous = title(row)
        canvas.text(_LEFT - 14, middle + 4, {"c": "C", "python": "Python"}[row["api"]], size=11, colour=_SOFT, anchor="end")
        refused = row["claim"] == "below floor"
        good = row["claim"] == "kept"
        colour = _FAINT if refused else _GOOD if good else _POOR
        if row["floor_ns"]:
            canvas.rect(_LEFT, middle - 7, place(row["floor_ns"]) - _LEFT, 14, "#eef0f3")
        canvas.line(
            place(row["requested_ns"]), middle - 8, place(row["requested_ns"]), middle + 8, _FAINT if refused else _INK, width=2
        )
        canvas.text(_COLUMNS["asked"], middle + 4, output.nanoseconds(row["requested_ns"]), size=11, anchor="end")
        if refused:
            words = f"no claim; dilate ×{row['dilation']}"
            canvas.text(_COLUMNS["late"], middle + 4, words, size=11, colour=_SOFT, anchor="end")
            continue
        canvas.line(place(row["p50_ns"]), middle, place(row["p99_ns"]), middle, colour, width=2)
        canvas.line(place(row["p99_ns"]), middle - 3, place(row["p99_ns"]), middle + 3, colour, width=2)
        canvas.circle(place(row["p50_ns"]), middle, 4.5, colour)
        canvas.text(_COLUMNS["given"], middle + 4, output.nanoseconds(row["p50_ns"]), size=11, anchor="end")
        canvas.text(_COLUMNS["off"], middle + 4, _signed(row["error"]), size=11, colour=colour, anchor="end", bold=True)
        canvas.text(_COLUMNS["late"], middle + 4, _late(row["late"]), size=11, colour=_SOFT, anchor="end")
    canvas.line(24, bottom, _WIDTH - 20, bottom, "#e4e7eb")
    return bottom + 22


def _legend(canvas: Canvas, y: float) -> None:
    x = 24.0
    canvas.rect(x, y - 11, 30, 14, "#eef0f3")
    canvas.text(x + 38, y, "what the machine needs with nothing to wait for", size=11, colour=_SOFT)
    x += 330
    canvas.line(x, y - 12, x, y + 4, _INK, width=2)
    canvas.text(x + 8, y, "asked", size=11, colour=_SOFT)
    x += 64
    canvas.circle(x, y - 4, 4.5, _GOOD)
    canvas.line(x, y - 4, x + 26, y - 4, _GOOD, width=2)
    canvas.line(x + 26, y - 7, x + 26, y - 1, _GOOD, width=2)
    canvas.text(x + 34, y, f"median to p99; kept: within {100 * TOLERANCE:g} % or one step of the clock", size=11, colour=_SOFT)
    x += 440
    canvas.circle(x, y - 4, 4.5, _POOR)
    canvas.text(x + 10, y, "missed", size=11, colour=_SOFT)
