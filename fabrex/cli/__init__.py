# SPDX-License-Identifier: Apache-2.0
"""fabricctl: fabrics from the command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    from .commands import run

    return run(list(sys.argv[1:] if arguments is None else arguments))
