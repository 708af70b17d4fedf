# SPDX-License-Identifier: Apache-2.0
"""The helpers of the tests beside this directory, here too."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
