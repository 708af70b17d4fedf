# SPDX-License-Identifier: Apache-2.0
"""`python -m fabrex.cli` is fabricctl."""

from __future__ import annotations

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
