# SPDX-License-Identifier: Apache-2.0
"""The catalogue under the adversary: what the core shows, seed by seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from fabrex import sim
from fabrex.topology import Topology

from .catalogue import Litmus, Outcome


def late(program: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return the program with something harmless before it, so that the adversary can let it begin late."""

    def run(node: Any) -> Any:
        node.load(node.fabric.gva(node.name, 8192))
        return program(node)

    return run


class Runs:
    """Runs of one test.

    Attributes:
        first: outcome -> the first seed that showed it. often: outcome -> how many did.
    """

    def __init__(self, test: Litmus) -> None:
        self.test = test
        self.programs = {name: late(program) for name, program in test.programs.items()}
        self.topology = Topology.resolve(test.topology)
        self.first: dict[Outcome, int] = {}
        self.often: Counter[Outcome] = Counter()

    def take(self, seeds: Iterable[int]) -> None:
        """Run these seeds."""
        for seed in seeds:
            result = sim.run(self.topology, self.programs, ordering="adversarial", seed=seed, stale=self.test.stale, lines=False)
            outcome = self.test.observed(result.returned)
            self.first.setdefault(outcome, seed)
            self.often[outcome] += 1


def shows(test: Litmus, seeds: Iterable[int]) -> dict[Outcome, int]:
    """Return each outcome that some seed shows, and the first such seed."""
    runs = Runs(test)
    runs.take(seeds)
    return runs.first
