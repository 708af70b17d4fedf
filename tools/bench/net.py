# SPDX-License-Identifier: Apache-2.0
"""Operations between two machines over loopback TCP, beside a bare TCP connection of the same run.

    python tools/bench/net.py                 a minute or so
    python tools/bench/net.py --repeat 9 --json

Without injected time: what is measured is what the transport adds to the network. It reports and never fails: the status is 0
whatever was reached. Figures are medians over rounds; a round measures each in turn.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import common  # noqa: E402

BULK = 64 << 20


def rows(samples: common.Samples) -> list[dict[str, Any]]:
    """Return what was reached against what is aimed at."""
    ping, stream = samples.get("pingpong_bare"), samples.get("stream_bare", BULK)
    made: list[dict[str, Any]] = []

    def add(claim: str, reached: float, target: float, at_least: bool, unit: str) -> None:
        passed = reached >= target if at_least else reached <= target
        made.append(
            {"claim": claim, "reached": round(reached, 3), "target": target, "at_least": at_least, "unit": unit, "pass": passed}
        )

    add(
        "8-byte load against a bare ping-pong",
        statistics.median(samples.get("load")) / statistics.median(ping),
        1.3,
        False,
        "times",
    )
    add("8-byte fetch_add against it", statistics.median(samples.get("fetch_add")) / statistics.median(ping), 1.3, False, "times")
    if samples.get("ucp_get_tcp"):
        ratio = statistics.median(samples.get("load")) / statistics.median(samples.get("ucp_get_tcp"))
        add("8-byte load against ucp_get over TCP", ratio, 1.0, False, "times")
    rate = 1e9 / statistics.median(samples.get("load_64_outstanding"))
    add("loads with 64 outstanding", rate, 400_000, True, "1/s")
    for op in ("write", "read"):
        ratio = statistics.median(stream) / statistics.median(samples.get(op, BULK))
        add(f"bulk {op} of 64 MiB against a bare stream", ratio, 0.8, True, "times")
    return made


def _ucx() -> Path | None:
    """Return the program that measures UCX, where that is installed."""
    try:
        return common.build(common.PEERS / "ucx.c", "ucx", "-lucp", "-lucs")
    except common.Missing as missing:
        common.note(f"UCX: {missing} (apt-get install libucx-dev)")
        return None


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5, help="rounds (5)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--only", help="only these, by comma: net")
    given = parser.parse_args()
    common.chosen(given.only, ["net"], parser.error)
    library = common.ROOT / "build" / "lib" / "libfabrex.so.1"
    samples = common.Samples()
    try:
        common.ops()  # builds the library too
        link = [f"-I{common.ROOT / 'csrc'}", f"-L{library.parent}", "-lfabrex", f"-Wl,-rpath,{library.parent}", "-pthread"]
        program = common.build(common.PEERS / "net.c", "net", *link, needs=[library, common.ROOT / "csrc" / "fabrex.h"])
        ucx = _ucx()
        for _ in common.rounds(given.repeat):
            samples.add(common.said([program, "1", "4000", str(BULK)]))
            if ucx:
                samples.add(common.said([ucx, "1", "tcp"]))
    except common.Missing as missing:
        common.note(f"net: {missing}")
        return 0
    found = rows(samples)
    if given.json:
        import fabrex
        from fabrex.cli import machine

        with fabrex.Fabric.create("fabrex-pair") as made:
            common.document("net", machine.facts(made), found)
        return 0
    scalars: tuple[str, ...] = ("pingpong_bare", "load", "fetch_add", "load_64_outstanding", "store_flushed_at_the_end")
    scalars += ("ucp_get_tcp",) if samples.get("ucp_get_tcp") else ()
    for name, size in [*((name, 8) for name in scalars), *((name, BULK) for name in ("stream_bare", "write", "read"))]:
        values = samples.get(name, size)
        middle, low, high = common.ns(statistics.median(values)), common.ns(min(values)), common.ns(max(values))
        print(f"{name:26} {common.size(size):>8}  {middle:>10}  ({low} … {high})")
    print()
    for row in found:
        sign, verdict = "≥" if row["at_least"] else "≤", "holds" if row["pass"] else "missed"
        print(f"{row['claim']:48} {row['reached']:>12,.2f} {row['unit']:6} {sign} {row['target']:,}  {verdict}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
