# SPDX-License-Identifier: Apache-2.0
"""Presets beside the measurements that they stand for: what was fitted, what is predicted, and how far off that is.

    python tools/bench/fits.py                 a table
    python tools/bench/fits.py --markdown      the tables of docs/reference/fits.md
    python tools/bench/fits.py --json

Nothing is timed: the figures are the model's, the same on every machine. Status 1 if a prediction is off by more than 10 % and is
not excused by name.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]

import common  # noqa: E402

LIMIT = 0.10
MIB = 1 << 20
SISCI = "kritjo/sisci-perf, charts/6peer.log"
NFP = "pcie-bench/data, nfp6000, lat_dma_sizes"
FLUSH_NS = 302  # measured beside the ping-pong: what a write costs its sender until it has left


@dataclass
class Fit:
    """One published figure and the model's.

    Attributes:
        role: "fitted" (a constant of the preset was chosen for it), "predicted", or "beyond" (measured, and not within what the
            preset means to model; `remark` says why).
    """

    preset: str
    source: str
    what: str
    unit: str
    measured: float
    model: float
    role: str
    remark: str = ""

    @property
    def error(self) -> float:
        """The model's relative distance."""
        return self.model / self.measured - 1


@contextmanager
def _node(preset: str, name: str, changes: tuple[str, ...] = ()) -> Iterator[Any]:
    import fabrex

    topology = fabrex.Topology.preset(preset)
    with common.fabric(topology.override(changes) if changes else topology) as made, made.attach(name) as node:
        yield node


def _sisci() -> Iterator[Fit]:
    with _node("ntb-measured", "host0") as node:
        far = node.fabric.gva("host1", 0)

        def ns(kind: str, size: int, until: str = "completes_ps") -> float:
            return float(node.estimate(kind, far, size)[until]) / 1e3

        def row(what: str, unit: str, measured: float, model: float, role: str, remark: str = "") -> Fit:
            return Fit("ntb-measured", SISCI, what, unit, measured, model, role, remark)

        def rate(kind: str, size: int) -> float:
            return size / ns(kind, size)

        def count(runs: int, size: int) -> float:  # of the log, in 2 s
            return runs * size / 2e9

        # The issue of a byte's DMA and the like is counted in operations within two seconds: 2e9 / operations ns each.
        yield row("PIO read of 8 B", "ns", 2e9 / 1122126, ns("load", 8), "fitted", "delays, pio.read")
        yield row("DMA write of 1 B", "ns", 2e9 / 224457, ns("dma_write", 1), "fitted", "dma.setup_write")
        yield row("DMA read of 1 B", "ns", 2e9 / 80099, ns("dma_read", 1), "fitted", "dma.setup_read")
        yield row(
            "DMA write of 16 MiB", "GB/s", count(1239, 16 * MIB), rate("dma_write", 16 * MIB), "fitted", "lanes, a whole number"
        )
        yield row("DMA read of 16 MiB", "GB/s", count(597, 16 * MIB), rate("dma_read", 16 * MIB), "fitted", "dma.tags")
        yield row("PIO read of 128 B", "ns", 2e9 / 136701, ns("read", 128), "fitted", "pio.access_bytes")
        yield row("PIO write of 2 MiB", "GB/s", count(7383, 2 * MIB), rate("write", 2 * MIB), "predicted")
        yield row("PIO write of 64 KiB", "GB/s", count(234566, 65536), rate("write", 65536), "predicted")
        for size, runs in ((512, 32753), (4096, 4342), (65536, 273)):
            yield row(f"PIO read of {common.size(size)}", "MB/s", count(runs, size) * 1e3, rate("read", size) * 1e3, "predicted")
        yield row("PIO read of 4 MiB", "MB/s", count(4, 4 * MIB) * 1e3, rate("read", 4 * MIB) * 1e3, "predicted",
                  "four in two seconds, so known to a quarter")  # fmt: skip
        yield row("ping-pong, there and back", "ns", 2e9 / 925040, 2 * (ns("store", 8, "arrives_ps") + FLUSH_NS), "predicted",
                  f"two ways, and twice the {FLUSH_NS} ns that the log gives for a write and its flush")  # fmt: skip
        for size, runs in ((16384, 183944), (65536, 133692), (131072, 97454)):
            yield row(f"DMA write of {common.size(size)}", "us", 2e6 / runs, ns("dma_write", size) / 1e3, "predicted")
        for size, runs in ((4 * MIB, 4477), (8 * MIB, 2369)):
            yield row(f"DMA write of {common.size(size)}", "GB/s", count(runs, size), rate("dma_write", size), "predicted")
        for size, runs in ((4 * MIB, 2285), (8 * MIB, 1173)):
            yield row(f"DMA read of {common.size(size)}", "GB/s", count(runs, size), rate("dma_read", size), "predicted")
        yield row("DMA write of 4 KiB", "us", 2e6 / 183067, ns("dma_write", 4096) / 1e3, "beyond",
                  "from 1 KiB on the driver takes another 2 us, whatever the size")  # fmt: skip
        yield row("DMA write of 256 KiB", "us", 2e6 / 32518, ns("dma_write", 262144) / 1e3, "beyond",
                  "above 128 KiB the driver sleeps until an interrupt: 36 us more, whatever the size")  # fmt: skip


# Median ns of one DMA read at a time, by bytes.
_BROADWELL = {4: 546, 8: 546, 16: 546, 24: 546, 32: 560, 48: 560, 64: 560, 128: 586, 256: 626, 512: 706, 768: 773, 1024: 853,
              1280: 920, 1520: 986, 2048: 1133}  # fmt: skip


def _nfp() -> Iterator[Fit]:
    def medians(sizes: list[int], changes: tuple[str, ...] = ()) -> Iterator[float]:
        with _node("pcie-bench", "nfp0", changes) as node:
            far, near = node.alloc(8192, on="host0"), node.alloc(8192)
            for size in sizes:
                # The plan of a transfer on an idle fabric; what it took here is the machine's affair.
                done = node.dma.copy(near.gva, far.gva, size)
                done.wait()
                yield (done.completes_ps - done.issued_ps) / 1e3

    fitted = {64: "delay of the link", 2048: "rate of the card's memory"}
    for (size, measured), model in zip(_BROADWELL.items(), medians(list(_BROADWELL)), strict=True):
        role = "fitted" if size in fitted else "predicted"
        yield Fit("pcie-bench", NFP, f"Broadwell, DMA read of {size} B", "ns", measured, model, role, fitted.get(size, ""))
    slower = ("nodes.host0.memory.dram.latency=150ns",)
    for size, measured, model in zip((64, 2048), (600, 1173), medians([64, 2048], slower), strict=True):
        role, remark = ("fitted", "40 ns more in the host") if size == 64 else ("predicted", "")
        yield Fit("pcie-bench", NFP, f"Haswell, DMA read of {size} B", "ns", measured, model, role, remark)


PRESETS: dict[str, Callable[[], Iterator[Fit]]] = {"ntb-measured": _sisci, "pcie-bench": _nfp}


def fits() -> list[Fit]:
    """All of them."""
    return [fit for make in PRESETS.values() for fit in make()]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _cells(fit: Fit) -> list[str]:
    return [
        fit.what,
        f"{_number(fit.measured)} {fit.unit}",
        f"{_number(fit.model)} {fit.unit}",
        f"{fit.error:+.1%}",
        fit.role,
        fit.remark,
    ]


def markdown(rows: list[Fit]) -> str:
    """A table for each preset."""
    parts = []
    for preset in PRESETS:
        lines = ["| figure | measured | model | off by | | |", "|---|--:|--:|--:|---|---|"]
        lines += ["| " + " | ".join(_cells(fit)) + " |" for fit in rows if fit.preset == preset]
        parts.append("\n".join(line.replace("|  |", "| |") for line in lines))
    return "\n\n".join(parts)


def main(arguments: list[str] | None = None) -> int:
    """Compute and print."""
    parser = argparse.ArgumentParser(description="presets beside the measurements that they stand for")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="one JSON document on standard output")
    how.add_argument("--markdown", action="store_true", help="tables as in docs/reference/fits.md")
    given = parser.parse_args(arguments)
    rows = fits()
    worst = max((abs(fit.error) for fit in rows if fit.role == "predicted"), default=0.0)
    if given.json:
        said = [{**asdict(fit), "error": fit.error} for fit in rows]
        json.dump({"schema_version": 1, "tool": "fits", "worst": worst, "rows": said}, sys.stdout, indent=1)
        print()
    elif given.markdown:
        print(markdown(rows))
    else:
        for preset in PRESETS:
            chosen = [fit for fit in rows if fit.preset == preset]
            print(f"{preset}: {chosen[0].source}")
            cells = [_cells(fit) for fit in chosen]
            width = max(len(cell[5]) for cell in cells)
            print(common.table(["FIGURE", "MEASURED", "MODEL", "OFF BY", "", ""], [[*c[:5], c[5].ljust(width)] for c in cells]))
            print()
        print(f"the prediction that is farthest off is {worst:.1%} off")
    return 0 if worst <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
