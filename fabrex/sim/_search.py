# SPDX-License-Identifier: Apache-2.0
"""Looking for seeds that fail, and making a failing run as small as it can be.

A run follows from its decisions: which write is late, which passes which, which program runs first. Each has a name that
does not depend on the others, and a harmless answer. So a failing run is made small by taking decisions away, half of them at
a time, as long as what is left still fails the same way; then each that remains is made as mild as it can be.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ._run import Result, run

__all__ = ["Case", "Failure", "Minimal", "minimise", "search"]

Decision = tuple[int, int, int]
"""kind, key, value."""


class CheckFailed(AssertionError):
    """A check of the result returned something false."""


@dataclass
class Case:
    """Programs, where they run, and what must hold afterwards.

    Attributes:
        topology, programs: as for `run`.
        check: called with the Result of a run in which no program raised; a failure if it raises or returns False.
        ordering: "adversarial" unless told otherwise.
        options: further arguments of `run`.
        script: the file that they came from, for the command that replays a run.
    """

    topology: Any
    programs: Mapping[str, Any]
    check: Callable[[Result], Any] | None = None
    ordering: str = "adversarial"
    options: dict[str, Any] = field(default_factory=dict)
    script: str | None = None

    def attempt(self, seed: int, decisions: list[Decision] | None = None, *, log: bool = False) -> Result:
        """Run once; what failed is the result's error."""
        result = run(
            self.topology,
            self.programs,
            ordering=self.ordering,
            seed=seed,
            decisions=decisions,
            log=log,
            raises=False,
            **self.options,
        )
        if result.error is None and self.check is not None:
            try:
                if self.check(result) is False:
                    raise CheckFailed("the check of the result said no")
            except Exception as error:
                result.error, result.failed = error, None
        if result.error is not None and not isinstance(result.error, Exception):
            raise result.error
        return result


@dataclass
class Failure:
    """A seed that fails.

    Attributes:
        seed: of the run.
        node: whose program raised; None: the check of the result.
        kind, message: type and text of the exception.
    """

    seed: int
    node: str | None
    kind: str
    message: str

    @classmethod
    def of(cls, result: Result) -> Failure:
        """Return what a failed run amounts to."""
        error = result.error
        lines = str(error).strip().splitlines()
        return cls(result.seed, result.failed, type(error).__name__, lines[0] if lines else "")


def search(
    topology: Any,
    programs: Mapping[str, Any],
    *,
    seeds: int | Iterable[int] = 1000,
    most: int = 1,
    check: Callable[[Result], Any] | None = None,
    ordering: str = "adversarial",
    **options: Any,
) -> list[Failure]:
    """Run programs with one seed after the other; returns the first `most` that fail.

    Args:
        topology, programs, ordering, options: as for `run`.
        seeds: how many, from 0, or which.
        check: see Case.
    """
    case = Case(topology, programs, check, ordering, options)
    found: list[Failure] = []
    for seed in range(seeds) if isinstance(seeds, int) else seeds:
        result = case.attempt(seed)
        if result.error is not None:
            found.append(Failure.of(result))
            if len(found) >= most:
                break
    return found


@dataclass
class Minimal:
    """A failing run with as few decisions as it needs.

    Attributes:
        result: of the last run of it; its trace tells the story.
        decisions: what had to be decided: (kind, key, value), in the order in which it happened.
        whole: how many decisions the seed had made. runs: how many runs it took to find out.
        needs_adversary: False if it fails without any decision: it is no matter of ordering.
    """

    result: Result
    decisions: list[Decision]
    whole: int
    runs: int

    @property
    def needs_adversary(self) -> bool:
        """Whether any decision is left."""
        return bool(self.decisions)


def _like(a: Result, b: Result) -> bool:
    return b.error is not None and type(a.error) is type(b.error) and a.failed == b.failed


def minimise(case: Case, seed: int, *, most_runs: int = 3000) -> Minimal | None:
    """Make the failing run of a seed small; None if the seed does not fail."""
    original = case.attempt(seed, log=True)
    if original.error is None:
        return None
    runs = 1
    seen: dict[tuple[int, int], tuple[Decision, int]] = {}
    for kind, key, value, _, at_ps in original.decisions:
        seen.setdefault((kind, key), ((kind, key, value), at_ps))
    whole = [decision for decision, _ in seen.values()]
    order = {(d[0], d[1]): i for i, d in enumerate(whole)}

    def fails(decisions: list[Decision]) -> bool:
        nonlocal runs
        runs += 1
        return _like(original, case.attempt(seed, decisions))

    left = whole
    if not fails(left):
        # Programs that ask for more than the seed decides: tell it as it was.
        return Minimal(original, whole, len(whole), runs)
    if fails([]):
        left = []
    # Which kinds matter at all: a class at a time, the ones that explain least first.
    for kinds in ((1,), (2,), (5,), (6,), (7,), (8,), (3,), (4,)):
        without = [d for d in left if d[0] not in kinds]
        if len(without) < len(left) and fails(without):
            left = without
    # Halves, quarters, … down to single ones (delta debugging).
    size = max(len(left) // 2, 1)
    while left and runs < most_runs:
        shorter = False
        at = 0
        while at < len(left) and runs < most_runs:
            without = left[:at] + left[at + size :]
            if fails(without):
                left, shorter = without, True
            else:
                at += size
        if size == 1 and not shorter:
            break
        size = max(size // 2, 1)
    # As mild as possible.
    for i in range(len(left)):
        kind, key, value = left[i]
        for milder in range(1, value):
            if runs >= most_runs:
                break
            if fails([*left[:i], (kind, key, milder), *left[i + 1 :]]):
                left[i] = (kind, key, milder)
                break
    left.sort(key=lambda d: order[d[0], d[1]])
    result = case.attempt(seed, left, log=True)
    return Minimal(result, left, len(whole), runs + 1)


def replay_command(case: Case, seed: int) -> str:
    """Return the one line that runs a seed again and tells what happens."""
    if case.script is not None:
        ordering = "" if case.ordering == "adversarial" else f" --ordering {case.ordering}"
        path = min(case.script, os.path.relpath(case.script), key=len)
        return f"fabricctl explore {shlex.quote(path)} --seed {seed}{ordering}"
    topology = repr(case.topology) if isinstance(case.topology, str) else "topology"
    return f"fabrex.sim.run({topology}, programs, ordering={case.ordering!r}, seed={seed})"
