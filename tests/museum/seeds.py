# SPDX-License-Identifier: Apache-2.0
"""The museum under the virtual clock: one run for each seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from fabrex import sim
from fabrex.topology import Topology

from .exhibits import Exhibit, Programs, Runner, complaints


def late(program: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return the program with something harmless before it, so that the adversary can let it begin late."""

    def run(node: Any) -> Any:
        node.load(node.fabric.gva(node.name, 8192))
        return program(node)

    return run


def runner(ordering: str, seeds: Iterable[int]) -> Runner:
    """Return a runner: the exhibits' programs with these seeds. Caches are an adversary's; other orderings have none."""

    def run(topology: Any, programs: Programs, stale: tuple[str, ...]) -> Iterator[Mapping[str, Any]]:
        described = Topology.resolve(topology)
        ready = {name: late(program) for name, program in programs.items()}
        caching = stale if ordering == "adversarial" else ()
        for seed in seeds:
            yield sim.run(described, ready, ordering=ordering, seed=seed, stale=caching, lines=False).returned

    return run


def first_failure(exhibit: Exhibit, programs: Programs, seeds: range) -> int | None:
    """Return how many seeds it took until the adversary made them fail."""
    for tried, complaint in enumerate(complaints(exhibit, programs, runner("adversarial", seeds)), 1):
        if complaint:
            return tried
    return None
