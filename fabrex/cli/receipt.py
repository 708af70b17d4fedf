# SPDX-License-Identifier: Apache-2.0
"""`fabricctl receipt`: what a measurement left behind, checked, shown and compared.

A receipt is one JSON document, written in one way only: keys in order, no blanks, one row a line. Its `digest` is the SHA-256 of
all the rest, so a file with one byte changed is no receipt any more. That tells an edit from an accident of reading, and is no
signature: who makes the digest anew can claim anything. So figures are checked too: each is derived again from the samples that
the receipt carries, by the code that derived it first.

Owns: the format, and what `show`, `verify` and `compare` do. Must not know: how anything is measured.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import sys
from typing import Any

from . import card, output
from .canvas import Canvas
from .figures import figures, key_of, title
from .histogram import CONFIDENCE, Histogram, interval, ratio_interval
from .output import CommandError, document, emit, note, table

__all__ = ["FORMAT", "compare", "read", "show", "verify", "write"]

FORMAT = 1
NOTICEABLE = 0.02
"""A change of a median by less than this is not called one, however sure it is."""

_FIELDS: dict[str, Any] = {"op": str, "api": str, "size": int, "topology": str, "timing": str, "ordering": str,
                           "requested_ps": int, "count": int,
           "late": (int, type(None)), "preempted": (int, type(None)), "counted": int, "rounds": list, "floor": (list, type(None)),
           "figures": dict}  # fmt: skip


# -- the file ---------------------------------------------------------------------------------------------------------


def _plain(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _body(found: dict[str, Any]) -> str:
    """Everything but the digest, as it is written and as the digest is made of."""
    head = _plain({key: value for key, value in found.items() if key not in ("rows", "digest")})
    rows = ",\n".join(_plain(row) for row in found["rows"])
    return f'{head[:-1]},"rows":[\n{rows}\n]'


def serialized(found: dict[str, Any]) -> str:
    """The only way in which a receipt is written."""
    body = _body(found)
    return f'{body},"digest":"sha256:{hashlib.sha256(body.encode()).hexdigest()}"}}\n'


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "libc": " ".join(platform.libc_ver()).strip()}
    for name in ("fabrex", "cffi", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write(
    path: str,
    rows: list[dict[str, Any]],
    facts: dict[str, Any],
    disturbance: dict[str, Any],
    topologies: dict[str, Any],
    arguments: Any,
) -> None:
    """Write a receipt of measured rows."""
    step = facts["clock_step_ns"]
    found = {
        "fabrex_receipt": FORMAT,
        "machine": facts,
        "versions": _versions(),
        "disturbance": disturbance,
        "seconds": arguments.seconds,
        "quick": bool(arguments.quick),
        "seed": {word: topology.seed for word, topology in topologies.items()},
        "topologies": {word: topology.to_yaml() for word, topology in topologies.items()},
        "rows": [{**row, "figures": figures(row, step)} for row in rows],
    }
    with open(path, "w", encoding="ascii") as file:
        file.write(serialized(found))


def read(path: str) -> tuple[dict[str, Any], list[str]]:
    """Return a receipt and what is wrong with it.

    Raises:
        CommandError: it cannot be read as a receipt at all.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        found = json.loads(text)
    except FileNotFoundError:
        raise CommandError(f"no file {path!r}", "`fabricctl bench --receipt FILE` makes one", output.NOT_FOUND) from None
    except IsADirectoryError:
        raise CommandError(f"{path} is a directory, not a receipt") from None
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise CommandError(f"{path} is no receipt: it is not JSON ({error})", "it was edited or cut short") from None
    if not isinstance(found, dict) or "fabrex_receipt" not in found:
        raise CommandError(f"{path} is no receipt", "`fabricctl bench --receipt FILE` makes one")
    if found["fabrex_receipt"] != FORMAT:
        raise CommandError(f"{path} is a receipt of format {found['fabrex_receipt']!r}, and this fabrex knows {FORMAT}")
    faults = _shape(found)
    if faults:
        raise CommandError(f"{path} is damaged: {faults[0]}", "it was edited or cut short")
    if serialized(found) != text:
        body = f"sha256:{hashlib.sha256(_body(found).encode()).hexdigest()}"
        faults.append(
            "the digest is another file's: the file was edited" if found.get("digest") != body
            else "it is not written as receipts are: the file was edited"
        )  # fmt: skip
    step = found["machine"]["clock_step_ns"]
    for row in found["rows"]:
        derived = figures(row, step)
        for word in sorted(derived.keys() | row["figures"].keys()):
            said, right = row["figures"].get(word), derived.get(word)
            if said != right or type(said) is not type(right):
                faults.append(f"{title(row)} ({row['api']}, timing {row['timing']}): says {word} {said}, its samples say {right}")
    return found, faults


def _shape(found: dict[str, Any]) -> list[str]:
    """What keeps a document from being looked at as a receipt."""
    if not isinstance(found.get("rows"), list) or not isinstance(found.get("machine"), dict):
        return ["it has no rows or no machine"]
    machine = found["machine"]
    for word, kind in (("clock_step_ns", (int, float)), ("measured_unix", int), ("processor", str), ("kernel", str),
                       ("fabrex", str), ("cores", int)):  # fmt: skip
        if not isinstance(machine.get(word), kind):
            return [f"its machine has no {word}"]
    disturbance = found.get("disturbance")
    if not isinstance(disturbance, dict) or not all(
        isinstance(disturbance.get(word), (int, float)) for word in ("stolen_fraction", "descheduled", "load_average", "seconds")
    ):
        return ["it does not say how disturbed the run was"]
    for number, row in enumerate(found["rows"]):
        if not isinstance(row, dict) or any(not isinstance(row.get(word, ...), kind) for word, kind in _FIELDS.items()):
            return [f"row {number} lacks something"]
        if min(row["size"], row["requested_ps"], row["count"], row["counted"], row["late"] or 0, row["preempted"] or 0) < 0:
            return [f"row {number} has a negative count"]
        try:
            parts = [Histogram.from_json(part) for part in [*row["rounds"], *(row["floor"] or [])]]
        except ValueError as error:
            return [f"row {number}: {error}"]
        if not row["rounds"] or any(not len(part) for part in parts):
            return [f"row {number} has no samples"]
    return []


def _rounds(row: dict[str, Any]) -> list[Histogram]:
    return [Histogram.from_json(part) for part in row["rounds"]]


def _shown(found: dict[str, Any]) -> list[dict[str, Any]]:
    step = found["machine"]["clock_step_ns"]
    rows = []
    for row in found["rows"]:
        kept = {word: row[word] for word in ("op", "api", "size", "topology", "timing", "ordering")}
        around = interval(_rounds(row), _plain(key_of(row)))
        rows.append({**kept, **figures(row, step), "interval_ns": list(around) if around else None})
    return rows


# -- show and verify --------------------------------------------------------------------------------------------------


def show(arguments: Any) -> int:
    """`receipt show`: the figures, derived anew; exit code 1 if the file was edited."""
    if arguments.plot:
        _plottable(arguments.plot)
    found, faults = read(arguments.file)
    rows = _shown(found)
    if arguments.plot:
        card.picture(rows, found["machine"], found["disturbance"]).save(arguments.plot)
    if arguments.json:
        document("receipt", action="show", intact=not faults, faults=faults, machine=found["machine"], rows=rows)
        return output.FAILURE if faults else output.OK
    emit(output.wrapped(f"{arguments.file}: {card.machine_words(found['machine'])}, {card.when(found['machine'])}"))
    emit(output.wrapped(card.disturbance_words(found["disturbance"])))
    for word, state in dict.fromkeys((row["topology"], row["timing"]) for row in rows):
        emit("")
        emit(f"{word}, timing {state}, seed {found['seed'].get(word)}")
        emit(_table([row for row in rows if (row["topology"], row["timing"]) == (word, state)]))
    emit("")
    emit(output.wrapped(f"±: half of the interval in which {100 * CONFIDENCE:g} % of the medians of resampled rounds lie."))
    if arguments.plot:
        note(f"the card is in {arguments.plot}")
    return _verdict(arguments.file, found, faults)


def _table(rows: list[dict[str, Any]]) -> str:
    cells = []
    for row in rows:
        around = row["interval_ns"]
        spread = f"{100 * (around[1] - around[0]) / 2 / row['p50_ns']:.2g} %" if around and row["p50_ns"] else "-"
        asked = output.nanoseconds(row["requested_ns"]) if row["requested_ns"] else "-"
        times = [output.nanoseconds(row[word]) for word in ("p50_ns", "p99_ns")]
        cells.append([title(row), row["api"], asked, times[0], spread, times[1], row["claim"] or "-"])
    return table(["OPERATION", "API", "ASKED", "P50", "±", "P99", "CLAIM"], cells, right=["ASKED", "P50", "±", "P99"])


def verify(arguments: Any) -> int:
    """`receipt verify`: exit code 0 if it is as it was written and its figures follow from its samples, 1 otherwise."""
    found, faults = read(arguments.file)
    if arguments.json:
        document(
            "receipt", action="verify", intact=not faults, faults=faults, rows=len(found["rows"]), digest=str(found.get("digest"))
        )
        return output.FAILURE if faults else output.OK
    return _verdict(arguments.file, found, faults)


def _verdict(path: str, found: dict[str, Any], faults: list[str]) -> int:
    if faults:
        for fault in faults[:10]:
            print(f"fabricctl: {path}: {fault}", file=sys.stderr)
        if len(faults) > 10:
            print(f"fabricctl: and {len(faults) - 10} more", file=sys.stderr)
        return output.FAILURE
    samples = sum(len(part) for row in found["rows"] for part in _rounds(row))
    emit(f"{path}: intact; {output.count(len(found['rows']), 'row')} follow from {samples:,} samples")
    return output.OK


# -- compare ----------------------------------------------------------------------------------------------------------


def _change(first: dict[str, Any], second: dict[str, Any], step_ns: float) -> dict[str, Any]:
    """One row of two receipts. `verdict`: same, slower, faster, or unsure; medians one step of a clock apart are the same."""
    a, b = _rounds(first), _rounds(second)
    before, after = (Histogram.merged(rounds).percentile_ns(0.5) for rounds in (a, b))
    around = ratio_interval(a, b, _plain(key_of(first)))
    ratio = after / before if before > 0 else math.nan
    verdict = "unsure"
    if abs(after - before) <= step_ns and first["timing"] == "on":
        verdict = "same"
    elif around:
        if around[0] > 1 + NOTICEABLE:
            verdict = "slower"
        elif around[1] < 1 - NOTICEABLE:
            verdict = "faster"
        elif around[0] >= 1 - 2 * NOTICEABLE and around[1] <= 1 + 2 * NOTICEABLE:
            verdict = "same"
    kept = {word: first[word] for word in ("op", "api", "size", "topology", "timing", "ordering")}
    return {
        **kept,
        "requested_ns": [first["requested_ps"] / 1e3, second["requested_ps"] / 1e3],
        "p50_ns": [before, after],
        "ratio": None if math.isnan(ratio) else round(ratio, 6),
        "interval": [round(edge, 6) for edge in around] if around else None,
        "verdict": verdict,
    }


def compare(arguments: Any) -> int:
    """`receipt compare`: medians of the second beside those of the first."""
    if arguments.plot:
        _plottable(arguments.plot)
    receipts = []
    for path in (arguments.first, arguments.second):
        found, faults = read(path)
        if faults:
            raise CommandError(f"{path}: {faults[0]}", "`fabricctl receipt verify` says all")
        receipts.append(found)
    rows = [{key_of(row): row for row in found["rows"]} for found in receipts]
    step = max(found["machine"]["clock_step_ns"] for found in receipts)
    changes = [_change(row, rows[1][key], step) for key, row in rows[0].items() if key in rows[1]]
    alone = [len(rows[0].keys() - rows[1].keys()), len(rows[1].keys() - rows[0].keys())]
    if not changes:
        raise CommandError("the receipts have no row in common", "measure the same operations, sizes and topologies")
    machines = [found["machine"] for found in receipts]
    others = [
        word for word in ("processor", "cores", "kernel", "python", "fabrex") if machines[0].get(word) != machines[1].get(word)
    ]
    models = [
        word
        for word in receipts[0]["topologies"]
        if receipts[1]["topologies"].get(word) not in (None, receipts[0]["topologies"][word])
    ]
    if arguments.plot:
        _picture(changes, machines).save(arguments.plot)
    if arguments.json:
        document(
            "receipt", action="compare", machines=machines, differ=others, topologies_differ=models, only_in=alone, rows=changes
        )
        return output.OK
    for name, found in zip((arguments.first, arguments.second), receipts, strict=True):
        emit(output.wrapped(f"{name}: {card.when(found['machine'])}, {card.disturbance_words(found['disturbance'])}"))
    if others:
        emit(
            output.wrapped(
                "different " + ", ".join(f"{word} ({machines[0].get(word)}, {machines[1].get(word)})" for word in others)
            )
        )
    if models:
        emit(output.wrapped(f"not the same model under the same name: {', '.join(models)}"))
    emit("")
    told = [row for row in changes if arguments.all or row["verdict"] in ("slower", "faster")]
    cells = []
    for row in told:
        span = f"{row['interval'][0]:.3f} to {row['interval'][1]:.3f}" if row["interval"] else "-"
        cells.append([title(row), row["api"], row["timing"], *(output.nanoseconds(value) for value in row["p50_ns"]),
                      f"{row['ratio']:.3f}" if row["ratio"] is not None else "-", span, row["verdict"]])  # fmt: skip
    if cells:
        emit(table(["OPERATION", "API", "TIMING", "FIRST", "SECOND", "RATIO", f"{100 * CONFIDENCE:g} %", "VERDICT"], cells,
                   right=["FIRST", "SECOND", "RATIO"]))  # fmt: skip
        emit("")
    counts = {verdict: sum(row["verdict"] == verdict for row in changes) for verdict in ("faster", "slower", "same", "unsure")}
    summed = ", ".join(f"{number} {verdict}" for verdict, number in counts.items())
    more = f"; {sum(alone)} are in one of them only" if any(alone) else ""
    emit(output.wrapped(f"{summed} of {output.count(len(changes), 'row')}{more}"))
    emit(output.wrapped(f"slower or faster: the interval of resampled rounds lies beyond {100 * NOTICEABLE:g} %. Two runs on one "
                        "machine differ by its state as well: a change that matters shows in several pairs of runs."))  # fmt: skip
    if arguments.plot:
        note(f"the picture is in {arguments.plot}")
    return output.OK


def _plottable(path: str) -> None:
    output.writable(path)
    if not path.endswith((".svg", ".png")):
        output.usage(f"--plot {path}: a picture's name ends in .svg or .png")


_COLOURS = {"slower": "#c2410c", "faster": "#00805c", "same": "#52606d", "unsure": "#9aa5b1"}


def _picture(changes: list[dict[str, Any]], machines: list[dict[str, Any]]) -> Canvas:
    """Each row's ratio with its interval, on a logarithmic axis with 1 in the middle."""
    left, right, row_height, top = 320, 800, 20, 118
    height = top + row_height * len(changes) + 54
    canvas = Canvas(960, height, "Two receipts compared: the second's medians divided by the first's")
    canvas.text(24, 38, "Second run against the first", size=22, bold=True)
    for level, number in ((60, 0), (78, 1)):
        canvas.text(24, level, f"{('first', 'second')[number]}: {card.machine_words(machines[number])}, "
                    f"{card.when(machines[number])}", size=12, colour="#52606d")  # fmt: skip
    edges = [edge for row in changes for edge in (row["interval"] or [row["ratio"] or 1.0])]
    reach = max(*(abs(math.log(max(edge, 1e-3))) for edge in edges), math.log(1.1)) * 1.05

    def place(ratio: float) -> float:
        return (left + right) / 2 + (right - left) / 2 * math.log(max(ratio, 1e-3)) / reach

    bottom = top + row_height * len(changes)
    canvas.rect(place(1 - NOTICEABLE), top, place(1 + NOTICEABLE) - place(1 - NOTICEABLE), bottom - top, "#eef0f3")
    taken = -100.0
    for ratio in (0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2, 4):
        x = place(ratio)
        if not left <= x <= right or (x < taken + 44 and ratio != 1):
            continue
        canvas.line(x, top, x, bottom, "#1f2933" if ratio == 1 else "#e4e7eb")
        canvas.text(x, top - 8, f"{ratio:g}", size=10, colour="#52606d", anchor="middle")
        taken = x
    for number, row in enumerate(changes):
        y = top + row_height * number + row_height / 2
        colour = _COLOURS[row["verdict"]]
        canvas.text(24, y + 4, title(row), size=11)
        canvas.text(left - 128, y + 4, {"c": "C", "python": "Python"}[row["api"]], size=11, colour="#52606d")
        canvas.text(left - 14, y + 4, f"timing {row['timing']}", size=10, colour="#9aa5b1", anchor="end")
        if row["interval"]:
            canvas.line(place(row["interval"][0]), y, place(row["interval"][1]), y, colour, width=3)
        if row["ratio"]:
            canvas.circle(place(row["ratio"]), y, 4, colour)
            canvas.text(936, y + 4, f"{row['ratio']:.3f}  {row['verdict']}", size=11, colour=colour, anchor="end")
    canvas.text(24, height - 20, f"dot: ratio of the medians; bar: {100 * CONFIDENCE:g} % of resampled rounds; grey: within "
                f"{100 * NOTICEABLE:g} %; right of 1 is slower", size=11, colour="#52606d")  # fmt: skip
    return canvas
