# SPDX-License-Identifier: Apache-2.0
"""What the measuring tools share: building the programs, running them, statistics, tables, JSON, plots.

Owns: how a figure is summed up and shown. Must not know: what is measured, or what would be good.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
PEERS = Path(__file__).resolve().parent / "peers"
BUILT = ROOT / "build" / "bench"
SCHEMA_VERSION = 1


class Missing(Exception):
    """Something that a measurement needs is not there. The text says how to get it."""


def note(text: str) -> None:
    """Say something that is no result."""
    print(text, file=sys.stderr, flush=True)


# -- programs ---------------------------------------------------------------------------------------------------------


def build(source: Path, name: str, *flags: str, compiler: str = "cc", needs: Iterable[Path] = ()) -> Path:
    """Compile a C program if it is older than what it is made of.

    Raises:
        Missing: there is no compiler, or it fails: its last line says why.
    """
    target = BUILT / name
    sources = [source, PEERS / "measure.h", *needs]
    if target.exists() and target.stat().st_mtime >= max(path.stat().st_mtime for path in sources):
        return target
    if shutil.which(compiler) is None:
        raise Missing(f"{compiler} is not installed")
    BUILT.mkdir(parents=True, exist_ok=True)
    made = target.with_suffix(f".{os.getpid()}")  # two runs at once do not meet
    command = [compiler, "-std=gnu11", "-O2", "-Wall", "-Wextra", str(source), "-o", str(made), *flags]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        lines = [line for line in run.stderr.splitlines() if "error" in line] or run.stderr.splitlines() or ["no reason given"]
        raise Missing(f"{source.name} does not compile: {lines[0].strip()}")
    made.replace(target)
    return target


def ops() -> Path:
    """Build the program that measures fabrex from C, and the library that it uses."""
    library = ROOT / "build" / "lib" / "libfabrex.so.1"
    run = subprocess.run(["make", "--no-print-directory", "-s", "lib"], cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        raise Missing(f"libfabrex does not build: {(run.stderr.strip().splitlines() or ['make lib fails'])[-1]}")
    return build(
        PEERS / "ops.c", "ops", f"-I{ROOT / 'csrc'}", f"-L{library.parent}", "-lfabrex", f"-Wl,-rpath,{library.parent}", "-pthread",
        needs=[library, ROOT / "csrc" / "fabrex.h"],
    )  # fmt: skip


def lines(text: str) -> Iterator[tuple[str, int, float]]:
    """Yield the (operation, bytes, ns) lines of a program's output."""
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[1].isdigit():
            try:
                yield words[0], int(words[1]), float(words[2])
            except ValueError:
                continue


def said(command: Sequence[str | Path], timeout: float = 120.0) -> list[tuple[str, int, float]]:
    """Run a program and return what it measured.

    Raises:
        Missing: it said nothing; the reason is its first complaint.
    """
    try:
        run = subprocess.run(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        raise Missing(f"{Path(command[0]).name} does not end within {timeout:.0f} s") from None
    found = list(lines(run.stdout))
    if not found:
        complaints = (line.strip() for line in run.stderr.splitlines() if any(char.isalpha() for char in line))
        complaint = next(complaints, "it says nothing")
        raise Missing(f"{Path(command[0]).name} fails: {complaint[:160]}")
    return found


CPUS = sorted(os.sched_getaffinity(0))


def start(command: Sequence[str], cpu: int | None = None) -> subprocess.Popen[str]:
    """Start a program whose output is read later; on one processor (0: the first, -1: the last), or wherever it likes.

    Two processes that watch each other and begin on one processor would wait for the scheduler to move one of them.
    """
    process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    if cpu is not None:
        with suppress(OSError):
            os.sched_setaffinity(process.pid, {CPUS[cpu]})
    return process


# -- statistics -------------------------------------------------------------------------------------------------------


def percentile(values: Sequence[float], fraction: float) -> float:
    """The value below which `fraction` of the values lies."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * fraction), len(ordered) - 1)] if ordered else float("nan")


def summary(samples: Sequence[float]) -> dict[str, float | int | list[float]]:
    """Median, quartiles, extremes, and the relative distance of the quartiles (`spread`)."""
    middle = statistics.median(samples)
    low, high = percentile(samples, 0.25), percentile(samples, 0.75)
    return {
        "median": round(middle, 4),
        "p25": round(low, 4),
        "p75": round(high, 4),
        "min": round(min(samples), 4),
        "max": round(max(samples), 4),
        "spread": round((high - low) / middle, 4) if middle else 0.0,
        "samples": [round(value, 4) for value in samples],
    }


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the ratios of what was measured in the same repetition."""
    pairs = [a / b for a, b in zip(ours, theirs, strict=False) if b]
    return statistics.median(pairs) if pairs else float("nan")


@dataclass
class Samples:
    """What was measured: per key one value for each repetition."""

    values: dict[tuple[str, int], list[float]] = field(default_factory=dict)

    def add(self, measured: Iterable[tuple[str, int, float]]) -> None:
        """Add one repetition: the median of what each operation gave in it."""
        once: dict[tuple[str, int], list[float]] = {}
        for name, size, value in measured:
            once.setdefault((name, size), []).append(value)
        for key, values in once.items():
            self.values.setdefault(key, []).append(statistics.median(values))

    def get(self, name: str, size: int = 8) -> list[float]:
        """The repetitions of one operation."""
        return self.values.get((name, size), [])


# -- disturbance ------------------------------------------------------------------------------------------------------


SETTLE = 0.0
"""Seconds that `rounds` waits at most, before each repetition, for others to be done."""


def runnable() -> int:
    """How many threads want a processor, besides this one."""
    try:
        return int(Path("/proc/loadavg").read_text().split()[3].split("/")[0]) - 1
    except (OSError, ValueError, IndexError):
        return 0


def rounds(count: int) -> Iterator[int]:
    """Count repetitions, each from a moment at which nobody else ran for a tenth of a second, if there is one."""
    for number in range(count):
        end, quiet = time.monotonic() + SETTLE, 0
        while quiet < 10 and time.monotonic() < end:
            quiet = quiet + 1 if runnable() <= 0 else 0
            time.sleep(0.01)
        yield number


def stolen_ticks() -> tuple[int, int]:
    """Clock ticks that the machine's processors had in all, and those that the hypervisor gave to others."""
    try:
        words = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    except (OSError, ValueError, IndexError):
        return 0, 0
    return sum(words), words[7] if len(words) > 7 else 0


@dataclass
class Watch:
    """How disturbed a run was."""

    total: int = 0
    stolen: int = 0
    load: float = 0.0

    def __enter__(self) -> Watch:
        self.total, self.stolen = stolen_ticks()
        return self

    def __exit__(self, *_: object) -> None:
        total, stolen = stolen_ticks()
        self.total, self.stolen = total - self.total, stolen - self.stolen
        self.load = os.getloadavg()[0]

    def facts(self) -> dict[str, float]:
        """For JSON."""
        return {"stolen_fraction": round(self.stolen / self.total, 4) if self.total else 0.0, "load_average": round(self.load, 2)}

    def line(self) -> str:
        """For people."""
        facts = self.facts()
        share, cores = facts["stolen_fraction"], len(os.sched_getaffinity(0))
        quiet = share < 0.01 and facts["load_average"] <= cores
        return f"during the run: load {facts['load_average']}, {share:.1%} stolen by the hypervisor" + (
            "" if quiet else "; figures of a disturbed machine, tails above all"
        )


# -- output -----------------------------------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """Columns, the first `left` of them to the left."""
    everything = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[i]) for row in everything) for i in range(len(header))]

    def line(row: list[str]) -> str:
        cells = enumerate(zip(row, widths, strict=True))
        return "  ".join(cell.ljust(width) if i < left else cell.rjust(width) for i, (cell, width) in cells).rstrip()

    return "\n".join(line(row) for row in everything)


def ns(value: float | None) -> str:
    """Nanoseconds with three significant digits or so."""
    if value is None or value != value:
        return "-"
    if value >= 1e6:
        return f"{value / 1e6:.2f} ms"
    if value >= 10_000:
        return f"{value / 1e3:.1f} us"
    return f"{value:.1f} ns" if value < 1000 else f"{value:.0f} ns"


def size(value: int) -> str:
    """Bytes in words."""
    for unit, power in (("MiB", 20), ("KiB", 10)):
        if value >= 1 << power and value % (1 << power) == 0:
            return f"{value >> power} {unit}"
    return f"{value} B"


def document(tool: str, machine: dict[str, Any], rows: list[dict[str, Any]], **more: Any) -> None:
    """Print one JSON document."""
    json.dump({"schema_version": SCHEMA_VERSION, "tool": tool, "machine": machine, "rows": rows, **more}, sys.stdout, indent=1)
    print()


Bar = tuple[str, float, float, float]


def bars(path: str, title: str, rows: Sequence[Bar], unit: str, marks: Sequence[float | None] = ()) -> None:
    """Draw horizontal bars (name, value, low, high) on a logarithmic scale; `marks` are targets.

    Raises:
        Missing: no matplotlib.
    """
    try:
        import matplotlib
    except ImportError:
        raise Missing("a plot needs matplotlib: pip install 'fabrex[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 1.2 + 0.3 * len(rows)))
    names = [row[0] for row in rows][::-1]
    values = [row[1] for row in rows][::-1]
    errors = [[max(row[1] - row[2], 0) for row in rows][::-1], [max(row[3] - row[1], 0) for row in rows][::-1]]
    colours = ["#2b6cb0" if name.startswith("fabrex") else "#a0aec0" for name in names]
    axes.barh(names, values, xerr=errors, color=colours, capsize=2, log=True)
    for place, mark in enumerate(list(marks)[::-1]):
        if mark is not None:
            axes.plot([mark, mark], [place - 0.45, place + 0.45], color="#c53030")
    axes.set_xlabel(unit)
    axes.set_title(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def curves(path: str, title: str, series: dict[str, list[tuple[int, float, float, float]]]) -> None:
    """Draw GB/s over bytes (size, median, low, high) of each series.

    Raises:
        Missing: no matplotlib.
    """
    try:
        import matplotlib
    except ImportError:
        raise Missing("a plot needs matplotlib: pip install 'fabrex[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    greys = iter(("#4a5568", "#dd6b20", "#805ad5", "#718096", "#a0aec0"))
    blues = iter(("#63b3ed", "#2b6cb0"))
    for name, points in series.items():
        ours = name.startswith("fabrex")
        colour = next(blues if ours else greys, "#a0aec0")
        sizes = [point[0] for point in points]
        axes.plot(sizes, [point[1] for point in points], color=colour, marker="o", ms=4, lw=2.5 if ours else 1.2, label=name)
        axes.fill_between(sizes, [point[2] for point in points], [point[3] for point in points], color=colour, alpha=0.15, lw=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({point[0] for points in series.values() for point in points}))
    axes.xaxis.set_major_formatter(lambda value, _: size(int(value)))
    axes.tick_params(axis="x", labelsize=8)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("GB/s, median and quartiles")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


# -- fabrics ----------------------------------------------------------------------------------------------------------


@contextmanager
def fabric(topology: Any, **options: Any) -> Iterator[Any]:
    """A fabric in a directory of its own, which goes whatever happens."""
    import fabrex

    place = tempfile.mkdtemp(prefix="fabrex-bench-", dir=os.environ.get("FABREX_DIRECTORY") or "/dev/shm")
    made = None
    try:
        made = fabrex.Fabric.create(topology, name="bench", directory=place, **options)
        yield made
    finally:
        if made is not None:
            made.close()
        shutil.rmtree(place, ignore_errors=True)


def words(program: Path, command: str, made: Any, node: str, gva: int, *arguments: object) -> list[str]:
    """The command line of one of the `ops` program's commands."""
    return [str(program), command, made.directory, made.name, node, hex(gva), *map(str, arguments)]


def machine_facts(made: Any) -> dict[str, Any]:
    """What this machine is."""
    from fabrex.cli import machine

    return machine.facts(made)


def machine_line(facts: dict[str, Any]) -> str:
    """The machine in one line."""
    from fabrex.cli import machine

    return machine.line(facts)


def chosen(only: str | None, known: Sequence[str], fail: Callable[[str], Any]) -> list[str]:
    """The names that `--only` asks for."""
    wanted = [word.strip() for word in (only or "").split(",") if word.strip()] or list(known)
    for word in wanted:
        if word not in known:
            fail(f"no {word!r}; there are {', '.join(known)}")
    return wanted
