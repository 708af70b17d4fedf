# SPDX-License-Identifier: Apache-2.0
"""Simulation: node programs without hardware, processes or waiting.

Needs the extra `sim` (greenlet), which is imported when first used.
"""

from ._explore import Exploration, NotRepeatable, Raised, Stuck, Witness, explore

__all__ = ["Exploration", "NotRepeatable", "Raised", "Stuck", "Witness", "explore"]
