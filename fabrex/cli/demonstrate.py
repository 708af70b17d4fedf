# SPDX-License-Identifier: Apache-2.0
"""`fabricctl demo`: shows what `fabrex.demo` does."""

from __future__ import annotations

import dataclasses
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

from . import output
from .output import document, emit, note, table, usage


class _Bar:
    """A progress bar on a terminal; one line per stage elsewhere."""

    def __init__(self) -> None:
        self._drawn = output.tty(sys.stderr)
        self._what = ""

    def __call__(self, what: str, done: float) -> None:
        if not self._drawn:
            if what != self._what:
                note(f"{what} ...")
            self._what = what
            return
        if self._what and what != self._what:
            self._draw(self._what, 1.0)
            sys.stderr.write("\n")
        self._what = what
        self._draw(what, done)

    def _draw(self, what: str, done: float) -> None:
        import shutil

        columns = shutil.get_terminal_size().columns
        length = max(min(columns - 44, 40), 5)
        full = int(length * min(max(done, 0.0), 1.0))
        line = f"{output.cut_to(what, 36):<36} {'█' * full}{'░' * (length - full)} {int(100 * min(done, 1.0)):3d}%"
        sys.stderr.write("\r" + line[: columns - 1])
        sys.stderr.flush()

    def end(self) -> None:
        """Finish the last line."""
        if self._drawn and self._what:
            self._draw(self._what, 1.0)
            sys.stderr.write("\n")
            sys.stderr.flush()


def demo(arguments: Any) -> int:
    """`demo`: exits nonzero if the data differ."""
    from .. import demo as demonstration

    if arguments.machines:
        return _machines(arguments)
    for given, option in ((arguments.loopback, "--loopback"), (arguments.dilation, "--dilation")):
        if given:
            usage(f"{option} goes with --machines")
    arguments.size = 64 << 20 if arguments.size is None else arguments.size
    if arguments.size < 1 << 20:
        usage("--size is at least 1MiB")
    if not arguments.json:
        emit(output.fit("A SuperNODE of 32 accelerators, four hosts and a memory box, in real time."))
        sys.stdout.flush()
    bar = _Bar()
    try:
        result = demonstration.run(size=arguments.size, quick=arguments.quick, output_dir=arguments.output_dir, progress=bar)
    except demonstration.Failed as error:
        raise output.CommandError(str(error), "the lines above say why", output.FAILURE) from None
    bar.end()
    if arguments.json:
        facts = dataclasses.asdict(result)
        facts["histogram"] = {str(bound): count for bound, count in result.histogram.items()}
        document("demo", **facts, same=result.same)
        return output.OK if result.same else output.FAILURE
    quantity = demonstration.quantity
    rows = []
    for f in result.figures:
        rows.append((
            f.what,
            quantity(f.modelled, f.unit),
            quantity(f.measured, f.unit),
            "" if f.p99 is None else quantity(f.p99, f.unit),
            "" if f.p999 is None else quantity(f.p999, f.unit),
            demonstration.lateness(f),
        ))  # fmt: skip
    emit("")
    header = ("", "MODELLED", "MEASURED", "P99", "P99.9", "LATE")
    emit(table(header, rows, right=header[1:]))
    emit("")
    emit(output.wrapped("Measured times are medians. They hold what the model asks for and what this machine adds to it: Python, "
                        "and processes that wake one another."))  # fmt: skip
    if any(f.behind or (f.unit == "ns" and (f.late or 0) > 0.05) for f in result.figures):
        emit(output.wrapped("late: what this machine finished after its modelled time. Rates above what its "
                            "processors can copy come out lower than modelled; `fabricctl doctor` shows its limits, and a "
                            "topology's `dilation` stretches time to fit them."))  # fmt: skip
    emit("")
    if result.same:
        amount = output.size(result.file_bytes)
        emit(output.fit(f"SHA-256 {result.sha256_received[:16]}… of {amount}: sent and received are the same."))
    else:
        emit(f"SHA-256 sent {result.sha256_sent}, received {result.sha256_received}: THE DATA DIFFER.")
    emit(f"Wrote {result.picture}. Took {result.seconds:.0f} s.")
    return output.OK if result.same else output.FAILURE


def _machines(arguments: Any) -> int:
    """`demo --machines N`."""
    from ..fabric import Fabric
    from ..fidelity import Disturbance
    from ..net import demo as rack
    from . import card
    from .bench import shown
    from .histogram import Histogram
    from .machine import facts as facts_of

    size = 4 << 20 if arguments.size is None else arguments.size
    if not 1 <= size <= 1 << 30:
        usage("--size is at least 1 and at most 1GiB with --machines")
    if not 2 <= arguments.machines <= rack.SERVERS:
        usage(f"--machines is 2 to {rack.SERVERS}: the rack has {rack.SERVERS} servers, and none is divided")
    dilation = _dilation(arguments.dilation or "1")
    bar = _Bar()
    with Disturbance() as disturbance:
        try:
            result = rack.run(
                machines=arguments.machines,
                dilation=dilation,
                size=size,
                rounds=200 if arguments.quick else 1000,
                loopback=arguments.loopback,
                progress=bar,
            )
        except rack.Unavailable as why:
            raise output.CommandError(str(why), "be root, or say --loopback", output.FAILURE) from None
        except rack.Failed as error:
            raise output.CommandError(f"the machines failed: {error}", "", output.FAILURE) from None
    bar.end()
    with Fabric.create("fabrex-pair") as fabric:
        facts = facts_of(fabric)
    rows = []
    where = "squadrack" if result.dilation == "1" else f"×{result.dilation}"
    for found in result.measured:
        row = {
            "topology": f"{where}, {rack.TIERS[found.tier]}", "ordering": "posted", "timing": "on", "op": found.op,
            "size": found.size, "api": "python", "requested_ps": found.modelled_ps, "count": len(found.samples_ns),
            "rounds": [Histogram.of(found.samples_ns).to_json()], "late": found.late, "counted": found.counted,
            "preempted": None, "floor": [Histogram.of(found.floor_ns).to_json()] if found.floor_ns else None,
        }  # fmt: skip
        rows.append(shown(row, facts["clock_step_ns"]))
    picture = Path(arguments.output_dir) / "fabrex-demo-card.svg"
    disturbed = disturbance.facts()
    card.picture(rows, facts, disturbed).save(str(picture))
    if arguments.json:
        words = ("beds", "machines", "dilation", "sent", "received", "moved_bytes", "moved_seconds")
        kept = {word: getattr(result, word) for word in words}
        document("demo", **kept, rows=rows, picture=str(picture), seconds=result.seconds, same=result.same)
        return output.OK if result.same else output.FAILURE
    _show_machines(result, rows)
    emit(card.text(rows, facts, disturbed))
    emit("")
    if result.same:
        emit(output.fit(f"SHA-256 of {output.count(len(result.sent), 'block')}: sent and received are the same."))
    else:
        wrong = [key for key, digest in result.sent.items() if result.received.get(key) != digest]
        emit(f"THE DATA DIFFER: {', '.join(wrong)}")
    emit(f"Wrote {picture}. Took {result.seconds:.0f} s.")
    if any(row["claim"] == "below floor" for row in rows) and arguments.dilation != "auto":
        emit(output.wrapped("`--dilation auto` stretches modelled time by as little as lets it hold what a network takes here."))
    return output.OK if result.same else output.FAILURE


def _dilation(text: str) -> Fraction | str:
    if text == "auto":
        return text
    try:
        factor = Fraction(text)
    except (ValueError, ZeroDivisionError):
        factor = Fraction(0)
    if not 1 <= factor <= 1_000_000:
        usage(f"--dilation {text}", "a factor of at least 1, such as 20 or 2.5, or auto")
    return factor


def _show_machines(result: Any, rows: list[dict[str, Any]]) -> None:
    """Where the accelerators are, and modelled beside measured."""
    from ..net.demo import TIERS

    count = output.count(len(result.machines), "machine")
    emit(output.fit(f"squadrack: 16 accelerators on {count} ({result.beds})"))
    for name, cards in result.machines.items():
        emit(f"  {name}: {' '.join(cards)}")
    if result.dilation != "1":
        emit(output.fit(f"modelled time stretched by {result.dilation}; all times are the fabric's"))
    emit("")
    header = ("", "MODELLED", "MEASURED", "P99", "NO TIME INJECTED")
    for tier, words in TIERS.items():
        lines = []
        for row in rows:
            if row["topology"].endswith(words):
                times = [output.nanoseconds(row[key]) for key in ("requested_ns", "p50_ns", "p99_ns")]
                floor = "-" if row["floor_ns"] is None else output.nanoseconds(row["floor_ns"])
                lines.append((f"{row['op']} {output.size(row['size'])}", *times, floor))
        emit(words)
        emit(table(header, lines, right=header[1:]))
        amount, seconds = result.moved_bytes[tier], result.moved_seconds[tier]
        rate = amount / seconds / 1e9
        emit(output.fit(f"all 16 at once: {output.size(amount)} in {output.nanoseconds(seconds * 1e9)}, {rate:.2f} GB/s"))
        emit("")
