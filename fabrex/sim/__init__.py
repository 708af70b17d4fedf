# SPDX-License-Identifier: Apache-2.0
"""Programs under the virtual clock: every node in one process, the same program, the same core, and a seed that decides."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._errors import Deadlock as Deadlock
    from ._errors import LimitReached as LimitReached
    from ._errors import NotDeterministic as NotDeterministic
    from ._explain import Explanation as Explanation
    from ._explain import explain as explain
    from ._explore import Exploration as Exploration
    from ._explore import NotRepeatable as NotRepeatable
    from ._explore import Raised as Raised
    from ._explore import Stuck as Stuck
    from ._explore import Witness as Witness
    from ._explore import explore as explore
    from ._record import Recording as Recording
    from ._record import Replay as Replay
    from ._record import record as record
    from ._record import replay as replay
    from ._run import Result as Result
    from ._run import run as run
    from ._search import Failure as Failure
    from ._search import search as search

# Names and the modules that they come from: loaded when first used.
_LAZY = {
    "Deadlock": "_errors",
    "LimitReached": "_errors",
    "NotDeterministic": "_errors",
    "Exploration": "_explore",
    "NotRepeatable": "_explore",
    "Raised": "_explore",
    "Stuck": "_explore",
    "Witness": "_explore",
    "explore": "_explore",
    "Explanation": "_explain",
    "Failure": "_search",
    "Recording": "_record",
    "Replay": "_record",
    "Result": "_run",
    "explain": "_explain",
    "record": "_record",
    "replay": "_record",
    "run": "_run",
    "search": "_search",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'fabrex.sim' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
