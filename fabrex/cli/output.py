# SPDX-License-Identifier: Apache-2.0
"""What the commands say: one JSON document, or text that fits the terminal.

Data goes to standard output, everything else to standard error.

Owns: exit codes, tables, quantities for people. Must not know: fabrics.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import IO, Any, NoReturn

SCHEMA_VERSION = 1

OK = 0
FAILURE = 1
USAGE = 2
NOT_FOUND = 3
EXISTS = 4
BUSY = 5
TOPOLOGY = 6
NO_MEMORY = 7
TIMEOUT = 124
NOT_EXECUTABLE = 126
NO_COMMAND = 127
INTERRUPTED = 130
CLOSED_PIPE = 141


class CommandError(Exception):
    """A mistake of the user's: one line, a hint, an exit code."""

    def __init__(self, message: str, hint: str = "", code: int = FAILURE) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code


def usage(message: str, hint: str = "") -> NoReturn:
    """Refuse what was typed."""
    raise CommandError(message, hint, USAGE)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that was probably meant."""
    import difflib

    found = difflib.get_close_matches(word.lower(), list(known)[:5000], n=1, cutoff=0.6)
    return found[0] if found else None


def unknown(what: str, word: str, known: Iterable[str], code: int = NOT_FOUND) -> CommandError:
    """Return the error for a name that is not there, with what was probably meant, or what there is."""
    listed = list(known)
    near = nearest(word, listed)
    if near:
        hint = f"did you mean {near!r}?"
    elif listed:
        hint = "there are " + ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "")
    else:
        hint = "there are none"
    return CommandError(f"no {what} {word!r}", hint, code)


# -- where it goes ----------------------------------------------------------------------------------------------------


def emit(text: str) -> None:
    """Write data for people."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")


def note(text: str) -> None:
    """Write what is no data: progress, hints."""
    sys.stdout.flush()
    print(text, file=sys.stderr, flush=True)


def document(command: str, **facts: Any) -> None:
    """Write the command's one JSON document."""
    print(json.dumps({"schema_version": SCHEMA_VERSION, "command": command, **facts}, indent=2, ensure_ascii=False))


def address(value: int) -> str:
    """Return a 64-bit address as JSON carries it."""
    return f"0x{value:016x}"


def tty(stream: IO[Any]) -> bool:
    """Return whether a person is looking, and wants colour."""
    try:
        return stream.isatty() and os.environ.get("TERM") != "dumb" and "NO_COLOR" not in os.environ
    except ValueError:
        return False


def width() -> int | None:
    """Return the columns to keep to; None where nobody looks and COLUMNS does not say."""
    if os.environ.get("COLUMNS", "").isdigit() or sys.stdout.isatty():
        return max(shutil.get_terminal_size().columns, 20)
    return None


def writable(path: str) -> None:
    """Refuse a file that cannot be written before the work that it is for.

    Raises:
        CommandError: its directory is not there or may not be written to, or it is a directory itself.
    """
    folder = os.path.dirname(path) or "."
    if os.path.isdir(path):
        usage(f"{path} is a directory; name a file in it")
    if not os.path.isdir(folder):
        raise CommandError(f"no directory {folder!r}", "make it first", NOT_FOUND)
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise CommandError(f"{path} cannot be written", "", FAILURE)


# -- tables -----------------------------------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Iterable[str] = (), indent: int = 0) -> str:
    """Return a table; columns named in `right` are aligned to the right. Where it is too wide the widest text is cut."""
    cells = [[str(cell) for cell in row] for row in rows]
    grid = [list(header), *cells]
    widths = [max(len(row[i]) for row in grid) for i in range(len(header))]
    room = width()
    rightward = {i for i, name in enumerate(header) if name in set(right)}
    if room is not None:
        excess = sum(widths) + 2 * (len(widths) - 1) + indent - room
        while excess > 0:
            candidates = [i for i in range(len(widths)) if i not in rightward and widths[i] > 8]
            if not candidates:
                break
            widest = max(candidates, key=lambda i: widths[i])
            second = max([widths[i] for i in candidates if i != widest], default=8)
            cut = min(excess, max(widths[widest] - max(second, 8), 1))
            widths[widest] -= cut
            excess -= cut
    lines = []
    for row in grid:
        parts = [
            cut_to(cell, widths[i]).rjust(widths[i]) if i in rightward else cut_to(cell, widths[i]).ljust(widths[i])
            for i, cell in enumerate(row)
        ]
        lines.append((" " * indent + "  ".join(parts)).rstrip())
    if room is not None:
        lines = [line[:room] for line in lines]
    return "\n".join(lines)


def cut_to(text: str, columns: int) -> str:
    """Shorten in the middle: beginnings and endings of names tell them apart."""
    if len(text) <= columns:
        return text
    if columns < 5:
        return text[:columns]
    head = (columns - 1) // 2
    return text[:head] + "…" + text[len(text) - (columns - 1 - head) :]


def fit(line: str) -> str:
    """Shorten a line to the terminal's width."""
    room = width()
    return line if room is None or len(line) <= room else line[: room - 1] + "…"


def wrapped(text: str, indent: str = "") -> str:
    """Break a paragraph at the terminal's width, or at 100 columns."""
    import textwrap

    return textwrap.fill(text, min(width() or 100, 100), initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


# -- quantities for people -----------------------------------------------------------------------------------------------


def _scaled(value: float, units: Sequence[tuple[float, str]]) -> str:
    for scale, unit in units:
        if abs(value) >= scale:
            number = value / scale
            digits = 0 if abs(number) >= 100 else 1 if abs(number) >= 10 else 2
            text = f"{number:.{digits}f}"
            return f"{text.rstrip('0').rstrip('.') if '.' in text else text} {unit}"
    scale, unit = units[-1]
    return f"{value / scale:g} {unit}"


def size(value: float) -> str:
    """`1 GiB`."""
    return _scaled(value, [(2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B")])


def nanoseconds(value: float | None) -> str:
    """`312 ns`, `1.2 µs`; a dash for None."""
    return "-" if value is None else _scaled(value, [(1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1, "ns")])


def rate(value: float | None) -> str:
    """Bytes per second: `13.2 GB/s`."""
    return "-" if value is None else _scaled(value, [(1e12, "TB/s"), (1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s"), (1, "B/s")])


def bits(value: float) -> str:
    """Bits per second: `252 Gb/s`."""
    return _scaled(value, [(1e12, "Tb/s"), (1e9, "Gb/s"), (1e6, "Mb/s"), (1e3, "kb/s"), (1, "b/s")])


def age(seconds: float) -> str:
    """`3m`, `2h`, `5d`."""
    for length, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return f"{max(int(seconds), 0)}s"


def count(number: int, noun: str, plural: str = "") -> str:
    """`1 node`, `2 nodes`."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def percent(fraction: float | None) -> str:
    """`2.5 %`; a dash for None."""
    if fraction is None:
        return "-"
    return "0" if fraction == 0 else f"{100 * fraction:.2g} %" if fraction < 0.995 else "100 %"
