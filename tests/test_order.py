# SPDX-License-Identifier: Apache-2.0
"""The coordinator's order of changes, without machines: what is answered, and to whom."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fabrex.net.control import Outcome, State
from fabrex.net.order import Order


class Line:
    """Remembers what is put."""

    def __init__(self) -> None:
        self.said: list[dict[str, Any]] = []
        self.sock = None

    def put(self, message: dict[str, Any]) -> None:
        self.said.append(message)

    def close(self, wait: float = 0.0, last: Any = None) -> None:
        if last is not None:
            self.put(last)


class Coordinator:
    """An order of changes, which are texts; each is made at once."""

    def __init__(self) -> None:
        self.state = State()
        self.changes: list[Any] = []
        self.told: list[int] = []
        self.order = Order("m0", self.state, self._make, self.told.append)

    def _make(self, change: Mapping[str, Any], epoch: int) -> Outcome:
        self.state.epoch = epoch
        self.changes.append(change["what"])
        return Outcome(home=change.get("home", ""))

    def join(self, name: str) -> Line:
        line = Line()
        self.order.join(name, {"what": f"{name} comes"}, line)  # type: ignore[arg-type]
        self.order.made(name, self.state.epoch, Outcome())
        return line


def test_a_change_whose_only_maker_is_lost_was_not_made() -> None:
    coordinator = Coordinator()
    coordinator.join("m1")
    other = coordinator.join("m2")
    coordinator.order.made("m1", coordinator.state.epoch, Outcome())
    answers: list[int] = []
    for home in ("m1", "m2", ""):
        coordinator.order.change({"what": "set", "home": home}, lambda outcome, epoch: answers.append(outcome.status))
    coordinator.order.leave("m1")
    for epoch in range(coordinator.state.epoch - 3, coordinator.state.epoch + 1):
        coordinator.order.made("m2", epoch, Outcome())
    assert answers[0] and answers[1:] == [0, 0]
    assert other.said[-1] == {"everywhere": coordinator.state.epoch}


def test_what_a_lost_machine_asked_for_is_not_what_the_next_of_its_name_asks_for() -> None:
    coordinator = Coordinator()
    coordinator.join("m1")
    coordinator.order.leave("m1")
    coordinator.order.ask("m1", 1, {"what": "too late"})
    assert "too late" not in coordinator.changes
    line = coordinator.join("m1")
    coordinator.order.ask("m1", 1, {"what": "in time"})
    coordinator.order.made("m1", coordinator.state.epoch, Outcome())
    assert [said["answer"] for said in line.said if "answer" in said] == [1]
    assert coordinator.changes[-1] == "in time"


def test_a_machine_that_comes_has_not_made_the_change_by_which_it_came() -> None:
    coordinator = Coordinator()
    make = coordinator._make

    def made_while_another_looks(change: Mapping[str, Any], epoch: int) -> Outcome:
        outcome = make(change, epoch)
        coordinator.order._settle()  # as whoever has just asked for the change before may do
        return outcome

    coordinator.order._make = made_while_another_looks
    coordinator.order.join("m1", {"what": "m1 comes"}, Line())  # type: ignore[arg-type]
    assert max(coordinator.told) < coordinator.state.epoch
