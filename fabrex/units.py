# SPDX-License-Identifier: Apache-2.0
"""Sizes, times and rates as text with a unit, and as integers.

Inside the package a size is bytes, a time is picoseconds and a rate is bits per second, always an `int`. Text is what
people write in a topology file or on a command line. The arithmetic is exact: no binary floating point is involved, so
`0.1us` is 100,000 ps, and a value that is not a whole number of base units is refused instead of rounded.

Owns: the unit tables, parsing, formatting. Must not know: topologies, files, clocks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

__all__ = [
    "RATE_UNITS",
    "SIZE_UNITS",
    "TIME_UNITS",
    "UnitError",
    "format_rate",
    "format_size",
    "format_time",
    "parse_rate",
    "parse_size",
    "parse_time",
]

#: Bytes in one unit. Decimal prefixes are powers of 1000 (IEC 80000-13), binary prefixes powers of 1024.
SIZE_UNITS: Final[Mapping[str, int]] = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}

#: Picoseconds in one unit. The micro sign (U+00B5) and the Greek letter mu (U+03BC) are both accepted.
TIME_UNITS: Final[Mapping[str, int]] = {
    "ps": 1,
    "ns": 10**3,
    "us": 10**6,
    "µs": 10**6,
    "μs": 10**6,
    "ms": 10**9,
    "s": 10**12,
}

#: Bits per second in one unit. A small b is bits, a capital B is bytes.
RATE_UNITS: Final[Mapping[str, int]] = {
    "b/s": 1,
    "kb/s": 10**3,
    "Mb/s": 10**6,
    "Gb/s": 10**9,
    "Tb/s": 10**12,
    "B/s": 8,
    "KB/s": 8 * 10**3,
    "MB/s": 8 * 10**6,
    "GB/s": 8 * 10**9,
    "TB/s": 8 * 10**12,
}

#: Everything has to fit an unsigned 64-bit word of the shared layout.
MAX_VALUE: Final = 2**64 - 1

_QUANTITY: Final = re.compile(r"([0-9]{1,40})(?:\.([0-9]{1,40}))?[ \t]*([^0-9.\s][^\s]{0,15})?\Z", re.ASCII)


class UnitError(ValueError):
    """The text is not a quantity of the wanted kind; the message says what is allowed."""


def parse_size(text: str) -> int:
    """Bytes in `text`, such as `"1GiB"`, `"256 GB"` or `"1.5MiB"`.

    Raises:
        UnitError: no number, no unit, an unknown unit, part of a byte, or above 2**64 - 1.
    """
    return _parse(text, SIZE_UNITS, "a size", "bytes", "1GiB")


def parse_time(text: str) -> int:
    """Picoseconds in `text`, such as `"105ns"` or `"1.78us"`.

    Raises:
        UnitError: no number, no unit, an unknown unit, part of a picosecond, or above 2**64 - 1 ps (213 days).
    """
    return _parse(text, TIME_UNITS, "a time", "picoseconds", "105ns")


def parse_rate(text: str) -> int:
    """Bits per second in `text`, such as `"400Gb/s"` (bits) or `"150TB/s"` (bytes).

    Raises:
        UnitError: no number, no unit, an unknown unit, part of a bit per second, or above 2**64 - 1.
    """
    return _parse(text, RATE_UNITS, "a rate", "bits per second", "400Gb/s")


def format_size(value: int) -> str:
    """`value` bytes in the shortest exact form: `1GiB`, `256GB`, `1.5MiB`. `parse_size` gives `value` back."""
    return _format(value, SIZE_UNITS, "0B")


def format_time(value: int) -> str:
    """`value` picoseconds in the shortest exact form: `105ns`, `1.78us`. `parse_time` gives `value` back."""
    return _format(value, {unit: scale for unit, scale in TIME_UNITS.items() if unit.isascii()}, "0ns")


def format_rate(value: int, *, in_bytes: bool = False) -> str:
    """`value` bits per second in the shortest exact form; `parse_rate` gives `value` back.

    Args:
        value: bits per second.
        in_bytes: write bytes per second (`400GB/s`) where that is a whole number of bytes, instead of bits (`3.2Tb/s`).
    """
    in_bytes = in_bytes and value % 8 == 0
    units = {unit: scale for unit, scale in RATE_UNITS.items() if ("B" in unit) is in_bytes}
    return _format(value, units, "0B/s" if in_bytes else "0b/s")


def _parse(text: str, units: Mapping[str, int], what: str, base: str, example: str) -> int:
    if not isinstance(text, str):
        raise UnitError(f"{text!r} is not {what}: write it with its unit, such as {example}")
    stripped = text.strip()
    match = _QUANTITY.match(stripped)
    if match is None:
        raise UnitError(f"{_shown(text)} is not {what}: write a number and a unit, such as {example}")
    whole, fraction, unit = match.group(1), match.group(2) or "", match.group(3)
    if unit is None:
        raise UnitError(f"{_shown(text)} has no unit; allowed: {_allowed(units)}")
    scale = units.get(unit)
    if scale is None:
        raise UnitError(f"{_shown(text)} has the unknown unit {unit!r}{_suggest(unit, units)}; allowed: {_allowed(units)}")
    value, remainder = divmod(int(whole + fraction) * scale, int("1" + "0" * len(fraction)))
    if remainder:
        raise UnitError(f"{_shown(text)} is not a whole number of {base}")
    if value > MAX_VALUE:
        raise UnitError(f"{_shown(text)} is too large: at most {MAX_VALUE} {base}")
    return value


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _allowed(units: Mapping[str, int]) -> str:
    return ", ".join(unit for unit in units if unit != "μs")


def _suggest(unit: str, units: Mapping[str, int]) -> str:
    """What the writer may have meant: the same letters in another case, or a usual other spelling."""
    spelling = unit.replace("bps", "b/s").replace("Bps", "B/s")
    if units is TIME_UNITS:
        spelling = {"sec": "s", "second": "s", "seconds": "s", "usec": "us", "msec": "ms", "nsec": "ns"}.get(unit, unit)
    near = [known for known in units if known == spelling] or [known for known in units if known.lower() == spelling.lower()]
    if not near and spelling and units is SIZE_UNITS:
        near = [known for known in units if known.lower() in (spelling.lower() + "b", spelling.lower() + "ib")]
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def _format(value: int, units: Mapping[str, int], zero: str) -> str:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"expected an int, not {type(value).__name__}")
    if value < 0:
        raise ValueError(f"{value} is negative")
    if value == 0:
        return zero
    best = ""
    for unit, scale in sorted(units.items(), key=lambda item: -item[1]):
        if value < scale:
            continue
        thousandths, remainder = divmod(value * 1000, scale)
        if remainder:
            continue
        whole, fraction = divmod(thousandths, 1000)
        text = f"{whole}.{fraction:03d}".rstrip("0") if fraction else str(whole)
        if not best or len(text) + len(unit) < len(best):
            best = text + unit
    return best
