# SPDX-License-Identifier: Apache-2.0
"""What people write into the files, read as the kernel reads it: numbers of any base, switches, `s BITS` and `c BITS`.

What is wrong is an OSError: EINVAL for what is no number, ERANGE for one that does not fit.
"""

from __future__ import annotations

import errno
import re

from .codes import fail


def _number(digits: str) -> int:
    if digits[:2].lower() == "0x":
        return int(digits, 16)
    if digits.startswith("0") and len(digits) > 1:
        return int(digits, 8)
    return int(digits, 10)


_DIGITS = r"(?:0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)"
_WHOLE = re.compile(rf"\+?({_DIGITS})\n?", re.ASCII)
_INSIDE = re.compile(rf"\s*([+-]?)({_DIGITS})", re.ASCII)


def unsigned(text: str, bits: int) -> int:
    """Return a number that is all there is, but for a newline: decimal, 0x or 0 for octal."""
    match = _WHOLE.fullmatch(text)
    if not match:
        fail(errno.EINVAL)
    value = _number(match[1])
    if value >> bits:
        fail(errno.ERANGE)
    return value


def switch(text: str) -> bool:
    """Return a switch: what begins with y, 1 or on is true; n, 0 or off, false."""
    word = text[:2].lower()
    if word[:1] in ("y", "1") or word == "on":
        return True
    if word[:1] in ("n", "0") or word == "of":
        return False
    fail(errno.EINVAL)


def numbers(text: str, separator: str = "") -> list[int]:
    """Return the numbers at the beginning of a text, as 64 bits; what follows the last one is nobody's business."""
    found: list[int] = []
    at = 0
    while match := _INSIDE.match(text, at):
        value = _number(match[2])
        if value >> 64:
            fail(errno.ERANGE)
        found.append(-value & (1 << 64) - 1 if match[1] == "-" else value)
        at = match.end()
        if separator:
            if not text.startswith(separator, at):
                break
            at += len(separator)
    return found


def command(text: str) -> tuple[str, int]:
    """Return `s BITS` or `c BITS` (set, clear) as a pair."""
    found = numbers(text[1:])
    if text[:1] not in ("s", "c") or not found:
        fail(errno.EINVAL)
    return text[0], found[0]
