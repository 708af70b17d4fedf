# SPDX-License-Identifier: Apache-2.0
"""A failing run in words: which write became visible late, what it was passed by and by what rule, and who looked meanwhile.

What matters is found backwards from the failure. Somebody looked at memory while a write to it, issued before, was still under
way; that look, the write, and what was visible instead are told, and the decisions without which it would not have been so.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field
from typing import Any

from ._pool import OURS
from ._search import Case, Minimal, minimise, replay_command
from ._trace import RULES, TraceEvent, rule_name

__all__ = ["Explanation", "explain"]

_POSTED = {"store", "write", "dma_write", "dma_read", "register write"}
_LOOKS = {"load", "read", "fetch_add", "swap", "compare_swap"}
_CHANGES = _POSTED | {"fetch_add", "swap", "compare_swap"}
_DELAYED, _STALLED, _SCHEDULED, _PASSED, _CACHED = 3, 2, 1, 4, 7
MOST_STEPS = 12


@dataclass
class Step:
    """One line of the story."""

    at_ps: int
    text: str
    source: str = ""

    def __str__(self) -> str:
        tail = f"\n{'':18}{self.source}" if self.source else ""
        return f"{self.at_ps / 1000:12.3f} ns  {self.text}{tail}"


@dataclass
class Explanation:
    """Why a seed fails.

    Attributes:
        seed, ordering: of the run.
        failure: what failed, in one line.
        reasons: sentences: which write was passed or looked past, by what rule.
        steps: the story, at most twelve lines.
        decisions: what the adversary decided, in words; nothing else was decided.
        replay: the one line that runs it again.
        minimal: the run itself.
    """

    seed: int
    ordering: str
    failure: str
    reasons: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    decisions: list[str] = field(default_factory=list)
    replay: str = ""
    minimal: Minimal | None = None

    def __str__(self) -> str:
        lines = [f"seed {self.seed} ({self.ordering}): {self.failure}", ""]
        lines += [f"  {reason}" for reason in self.reasons]
        if self.reasons:
            lines.append("")
        lines += [str(step) for step in self.steps]
        if self.decisions:
            lines += ["", "What the seed decided (everything else took its usual course):"]
            lines += [f"  {decision}" for decision in self.decisions]
        if self.minimal is not None:
            needed, whole = len(self.minimal.decisions), self.minimal.whole
            lines += ["", f"{needed} of {whole} decisions are needed; found in {self.minimal.runs} runs."]
        lines += ["", f"Again: {self.replay}"]
        return "\n".join(lines)


def explain(
    topology: Any, programs: Any, seed: int, *, check: Any = None, ordering: str = "adversarial", **options: Any
) -> Explanation | None:
    """Say why a seed fails; None if it does not.

    Args:
        topology, programs, ordering, options: as for `run`.
        check: called with the Result; a failure if it raises or returns False.
    """
    return explain_case(Case(topology, programs, check, ordering, options), seed)


def explain_case(case: Case, seed: int) -> Explanation | None:
    """Minimise a seed's run, and tell it."""
    minimal = minimise(case, seed)
    return tell(case, minimal) if minimal is not None else None


# -- the story --------------------------------------------------------------------------------------------------------


class _Story:
    """The events of a run, arranged for questions."""

    def __init__(self, events: list[TraceEvent]) -> None:
        self.events = events
        self.issued: dict[int, TraceEvent] = {}
        self.visible: dict[int, list[TraceEvent]] = {}
        for event in events:
            if event.event == "op" and event.id:
                self.issued[event.id] = event
            elif event.event in ("visible", "dropped") and event.id:
                self.visible.setdefault(event.id, []).append(event)

    def name(self, event: TraceEvent) -> str:
        kind = {"register write": "register write", "dma_write": "DMA", "dma_read": "DMA"}.get(event.kind, event.kind)
        kind = "write" if kind == "store" else kind
        return f"{kind} {event.id}" if event.id else kind

    def looked_at(self, look: TraceEvent) -> int:
        """When an operation saw memory."""
        return look.arrives_ps or look.at_ps

    def overtaken(self, look: TraceEvent) -> list[tuple[TraceEvent, TraceEvent]]:
        """Return writes to what an operation looked at that had been issued and were not visible: (write, its arrival)."""
        when, found = self.looked_at(look), []
        for name, arrivals in self.visible.items():
            issue = self.issued.get(name)
            if issue is None or issue.issued_ps > when:
                continue
            for arrival in arrivals:
                later = arrival.at_ps > when or (arrival.at_ps == when and arrival.number > look.number)
                if _overlap(arrival, look) and later:
                    found.append((issue, arrival))
                    break
        return found

    def changes(self, gva: int, size: int, after_ps: int, until_ps: int, but: int) -> list[tuple[TraceEvent, int]]:
        """Return what changed memory in a span of time, and when: other operations than `but`."""
        found = []
        for event in self.events:
            local = event.event == "op" and event.id not in self.visible and event.kind in _CHANGES - {"dma_write", "dma_read"}
            if not (event.event == "visible" or local) or event.id == but or not event.size:
                continue
            at = event.at_ps if event.event == "visible" or event.kind in _POSTED else event.arrives_ps or event.at_ps
            if after_ps < at <= until_ps and event.gva < gva + size and gva < event.gva + event.size:
                found.append((self.issued.get(event.id, event), at))
        return found

    def flushed(self, first: TraceEvent, second: TraceEvent) -> TraceEvent | None:
        """Return a flush of the same node between two of its operations."""
        for event in self.events[: second.number]:
            if (event.event, event.kind, event.node) == ("op", "flush", first.node) and first.number < event.number < second.number:
                return event
        return None


def _overlap(a: TraceEvent, b: TraceEvent) -> bool:
    return bool(a.size and b.size) and a.gva < b.gva + b.size and b.gva < a.gva + a.size


def _source(event: TraceEvent | None) -> str:
    if event is None or event.site is None:
        return ""
    text = event.site.text
    return f"{event.site}{f': {text}' if text else ''}"


def tell(case: Case, minimal: Minimal) -> Explanation:
    """Put a minimised run into words."""
    result = minimal.result
    story = _Story(list(result.trace.events))
    out = Explanation(result.seed, result.ordering, _failure(result), replay=replay_command(case, result.seed), minimal=minimal)
    keep: dict[int, tuple[TraceEvent, str]] = {}

    def note(event: TraceEvent | None, text: str) -> None:
        if event is not None:
            keep.setdefault(event.number, (event, text))

    looks = [e for e in story.events if e.event == "op" and e.kind in _LOOKS]
    told: set[tuple[int, int]] = set()
    # The last looks are nearest to the failure.
    for look in reversed(looks):
        past = story.overtaken(look)
        if not past or len(told) >= 3:
            continue
        for issue, arrival in past[:2]:
            if (issue.id, look.gva) in told:
                continue
            told.add((issue.id, look.gva))
            note(issue, f"{issue.node} issues {_what(story, issue)}")
            note(look, f"{look.node} {_did(look)} {look.where} = {look.value:#x}: {story.name(issue)} is not there yet")
            took = (arrival.at_ps - issue.issued_ps) / 1000
            note(arrival, f"{story.name(issue)} becomes visible, {took:.0f} ns after it was issued")
            before, after = story.looked_at(look) - issue.issued_ps, arrival.at_ps - story.looked_at(look)
            out.reasons.append(
                f"{story.name(look)} ({look.where}) by {look.node} found {look.value:#x}: {story.name(issue)} by {issue.node} had "
                f"been issued {before / 1000:.0f} ns before and became visible {after / 1000:.0f} ns after."
            )
    # What passed what; those that were looked past come first.
    missed = {name for name, _ in told}
    passes = [e for e in story.events if e.event == "visible" and e.passed]
    passes.sort(key=lambda e: (e.passed not in missed, e.number))
    sentences: list[str] = []
    for event in passes[:3] if not missed else [e for e in passes if e.passed in missed][:3]:
        later, earlier = story.issued.get(event.id), story.issued.get(event.passed)
        if later is None or earlier is None:
            continue
        note(earlier, f"{earlier.node} issues {_what(story, earlier)}")
        note(later, f"{later.node} issues {_what(story, later)}")
        note(event, f"{story.name(later)} becomes visible, before {story.name(earlier)}")
        sentences.append(_passing(story, later, earlier, event))
        # Who saw the later one: that is what set the failure going.
        for look in looks:
            if _overlap(look, event) and look.value == event.value and look.number > event.number:
                note(look, f"{look.node} {_did(look)} {look.where} = {look.value:#x}, what {story.name(later)} wrote")
                break
    out.reasons = sentences + out.reasons
    if not out.reasons:
        _meanwhile(story, out, note)
    if any(kind == _CACHED for kind, _, _ in minimal.decisions):
        out.reasons.append(
            "A cache without coherence gave what it held, or kept what was stored: it sees what peers wrote after invalidate(), "
            "and they see what it wrote after writeback()."
        )
    if len(keep) < 3:
        for event in story.events[-MOST_STEPS:]:
            if event.event == "visible":
                note(event, f"{_what(story, event)} is visible")
            elif event.kind in _LOOKS:
                note(event, f"{event.node} {_did(event)} {event.where}{_found(event)}")
            else:
                note(event, f"{event.node} issues {_what(story, event)}")
        if not minimal.decisions:
            out.reasons.append("It fails without any delay or reordering: this is no matter of ordering.")
    chosen = sorted(keep.values(), key=lambda pair: (_when(pair[0]), pair[0].number))
    if len(chosen) > MOST_STEPS - 1:
        chosen = chosen[-(MOST_STEPS - 1) :]
    out.steps = [Step(_when(event), text, _source(event) if event.event == "op" else "") for event, text in chosen]
    last = Step(result.ended_ps, out.failure, _where(result))
    out.steps.insert(sum(1 for step in out.steps if step.at_ps <= last.at_ps), last)
    out.decisions = [_decision(case, story, decision) for decision in minimal.decisions]
    return out


def _meanwhile(story: _Story, out: Explanation, note: Any) -> None:
    """Nothing was looked past: perhaps something changed while one operation took its time."""
    for event in reversed(story.events):
        if event.event != "op" or len(out.reasons) >= 2:
            continue
        if event.kind in ("dma_write", "dma_read"):
            begin, end, gva, what = event.issued_ps, event.completes_ps, event.value, "takes its source"
        elif event.kind in ("read", "load"):
            begin, end, gva, what = event.issued_ps, max(event.completes_ps, event.at_ps), event.gva, "looks"
        else:
            continue
        changed = story.changes(gva, event.size, begin, end, event.id)
        if not changed:
            continue
        note(event, f"{event.node} issues {_what(story, event)}")
        names = []
        for issue, at in changed[:3]:
            note(issue, f"{issue.node} issues {_what(story, issue)}")
            names.append(f"{story.name(issue)} by {issue.node} (at {at / 1000:.0f} ns)")
        out.reasons.insert(
            0,
            f"{story.name(event)} by {event.node} {what} between {begin / 1000:.0f} and {end / 1000:.0f} ns, and meanwhile "
            f"{' and '.join(names)} changed that memory.",
        )


def _found(event: TraceEvent) -> str:
    return f" = {event.value:#x}" if event.size <= 8 else f", {event.size} bytes"


def _when(event: TraceEvent) -> int:
    if event.event != "op":
        return event.at_ps
    if event.kind in _POSTED or event.size > 8:
        return event.issued_ps
    return event.arrives_ps or event.at_ps


def _did(look: TraceEvent) -> str:
    return {"load": "loads", "read": "reads"}.get(look.kind, f"has {look.kind} of")


def _what(story: _Story, event: TraceEvent) -> str:
    attributes = f" [{', '.join(event.attributes)}]" if event.attributes else ""
    if event.kind == "store" or (event.event == "visible" and event.size <= 8):
        return f"{story.name(event)}: {event.where} = {event.value:#x}{attributes}"
    if event.kind == "flush":
        return f"{story.name(event)} of {event.target}"
    return f"{story.name(event)}: {event.size} bytes at {event.where}{attributes}"


_WHY = {
    1: "RO=1 on {later}, rule A2b",
    2: "IDO=1 on {later} and another requester, rule A2b",
    3: "{later} is of another traffic class, and classes are not ordered",
    4: "they go different ways, and ways are not ordered",
    5: "both were in write-combining buffers, which leave in any order until they are drained",
}


def _passing(story: _Story, later: TraceEvent, earlier: TraceEvent, event: TraceEvent) -> str:
    a, b = story.name(later), story.name(earlier)
    why = _WHY.get(event.rule, rule_name(event.rule) if event.rule in RULES else f"rule {event.rule}").format(later=a, earlier=b)
    flush = story.flushed(earlier, later)
    between = "no flush between them" if flush is None else f"{story.name(flush)} between them went to {flush.target}"
    return f"{a} ({later.where}) became visible before {b} ({earlier.where}): {why}; {between}."


def _failure(result: Any) -> str:
    error = result.error
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}{f': {lines[0]}' if lines else ''}"
    return f"{result.failed} failed with {text}" if result.failed else text


def _where(result: Any) -> str:
    frames = traceback.extract_tb(result.error.__traceback__)
    for frame in reversed(frames):
        if not frame.filename.startswith(OURS):
            return f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}: {frame.line}" if frame.line else ""
    return ""


def _decision(case: Case, story: _Story, decision: tuple[int, int, int]) -> str:
    kind, key, value = decision
    if kind in (_SCHEDULED, _STALLED):
        number, turn = key >> 40, key & (1 << 40) - 1
        names = [name for name, value_ in case.programs.items() for _ in ([value_] if callable(value_) else value_)]
        who = names[number] if number < len(names) else f"program {number}"
        if kind == _STALLED:
            if turn == 0:
                return f"{who} began {32 << value} ns later"
            return f"{who} was kept from the processor for {32 << value} ns after its call {turn}"
        return f"{who} ran after others that were ready at the same moment, at its call {turn}"
    if kind == _CACHED:
        return f"decision {key + 1} of the caches: a copy was used again, or a line stayed or left"
    source, target, stream, sequence = key >> 52, key >> 40 & 0xFFF, key >> 34 & 0x3F, key & (1 << 31) - 1
    about = f"request {sequence} of requester {source}"
    if stream < 32:
        about = f"write {sequence} from node {source} to node {target}"
        nodes = [e for e in story.events if e.event == "visible" and e.sequence == sequence]
        for event in nodes:
            if _index(case, event.node) == source and _index(case, event.target) == target and _class(event) == stream:
                about = story.name(story.issued.get(event.id, event))
                break
    if kind == _DELAYED:
        return f"{about} was delayed"
    if kind == _PASSED:
        return f"{about} was let pass what was before it"
    what = {5: "was torn", 6: "left its write-combining buffer late"}.get(kind, "was decided")
    return f"{about} {what}"


def _class(event: TraceEvent) -> int:
    """Return class and path as the core puts them together."""
    words = dict(word.split("=") for word in event.attributes if "=" in word)
    return int(words.get("tc", 0)) | int(words.get("path", 0)) << 3


def _index(case: Case, node: str) -> int:
    from ..topology import Topology

    names = getattr(case, "_node_names", None)
    if names is None:
        names = {name: i for i, name in enumerate(Topology.resolve(case.topology).nodes)}
        case._node_names = names  # type: ignore[attr-defined]
    return int(names.get(node, -1))
