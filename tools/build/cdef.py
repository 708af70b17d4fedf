# SPDX-License-Identifier: Apache-2.0
"""Turn the public C headers into the declarations that cffi parses.

The headers are the only place where the C API is written down. Under `-DFBX_CDEF` they hold plain declarations (no standard
includes, no attributes, no inline functions), so what the C preprocessor makes of them is what `ffi.cdef()` takes. Macros do not survive preprocessing: those that stand for an integer are added as
`#define NAME ...`, which makes the compiler supply their values.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

HEADERS = ("fabrex.h", "pcie.h")
"""The public headers; what they include with quotes belongs to the API too."""

_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]+"([^"]+)"', re.MULTILINE)
_DEFINE = re.compile(r"^[ \t]*#[ \t]*define[ \t]+(FBX_\w+)[ \t]+(\S.*?)[ \t]*$", re.MULTILINE)
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
# Digits with an optional suffix, a C99 constant macro, another FBX_ constant, and operators between them.
_INTEGER = re.compile(
    r"(?:\b0[xX][0-9a-fA-F]+[uUlL]*\b|\b\d+[uUlL]*\b|\bU?INT(?:8|16|32|64)_C\b|\bUINT(?:8|16|32|64)_MAX\b|\bFBX_\w+\b|[-+*/|&~<>()\s])+"
)
_STATIC_ASSERT = re.compile(r"\b_?[Ss]tatic_assert\s*\((?:[^()\"]|\"[^\"]*\"|\([^()]*(?:\([^()]*\)[^()]*)*\))*\)\s*;")


def public_headers(csrc: Path) -> list[Path]:
    """Return the public headers and those that they include, directly or not, in the order met."""
    found: list[Path] = []
    todo = [csrc / name for name in HEADERS]
    while todo:
        path = todo.pop(0)
        if path in found or not path.exists():
            continue
        found.append(path)
        text = _COMMENT.sub(" ", path.read_text(encoding="utf-8"))
        todo += [csrc / name for name in _INCLUDE.findall(text)]
    return found


def constants(csrc: Path) -> list[str]:
    """Return the names of the public headers' object-like macros whose value is an integer."""
    names: list[str] = []
    for path in public_headers(csrc):
        text = _COMMENT.sub(" ", path.read_text(encoding="utf-8")).replace("\\\n", " ")
        for name, value in _DEFINE.findall(text):
            if _INTEGER.fullmatch(value) and re.search(r"\d|FBX_|_MAX", value) and name not in names:
                names.append(name)
    return names


def includes(csrc: Path) -> str:
    """Return the C text that includes the public headers."""
    return "".join(f'#include "{name}"\n' for name in HEADERS if (csrc / name).exists())


def generate(csrc: Path, cc: str | None = None) -> str:
    """Return the text for `ffi.cdef()`.

    Args:
        csrc: the directory with the headers.
        cc: the compiler's command; from `CC`, or `cc`, if left out.
    Raises:
        SystemExit: the preprocessor failed; its own words are on standard error.
    """
    command = shlex.split(cc or os.environ.get("CC", "") or "cc")
    command += ["-E", "-P", "-x", "c", "-std=gnu11", "-DFBX_CDEF", f"-I{csrc}", "-"]
    run = subprocess.run(command, input=includes(csrc), stdout=subprocess.PIPE, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {run.returncode}")
    declarations = _STATIC_ASSERT.sub("", run.stdout)
    defines = "".join(f"#define {name} ...\n" for name in constants(csrc))
    return defines + declarations


if __name__ == "__main__":
    sys.stdout.write(generate(Path(sys.argv[1] if len(sys.argv) > 1 else "csrc")))
