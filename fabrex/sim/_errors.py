# SPDX-License-Identifier: Apache-2.0
"""What can go wrong with a simulation itself; what programs raise is raised as it is."""

from __future__ import annotations

__all__ = ["Deadlock", "LimitReached", "NotDeterministic"]


class Deadlock(RuntimeError):
    """Nothing can happen any more, and programs still wait.

    Attributes:
        waits: node -> what its program waits for, in words.
    """

    def __init__(self, message: str = "", waits: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.waits = waits or {}

    def __reduce__(self) -> tuple[type[Deadlock], tuple[str, dict[str, str]]]:
        return (type(self), (str(self), self.waits))


class LimitReached(RuntimeError):
    """The run went on for longer than its limit of virtual time or of events; a program may be spinning."""


class NotDeterministic(RuntimeError):
    """A program asked the machine for time, chance or a thread: the same seed would not give the same run."""
