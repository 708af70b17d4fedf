# SPDX-License-Identifier: Apache-2.0
"""YAML 1.2 (core schema) into a tree that remembers where everything stood.

The scanner and parser are PyYAML's, of which only the event stream is used: it is quick to import, present nearly
everywhere, and its C parser, where built, reads large files without Python frames. Everything that gives an event a
meaning is here, because YAML 1.1 reads `on` as true and `0o17` as a string, keeps the last of two equal keys without a
word, and lets a page of aliases grow to gigabytes.

PyYAML is imported by the first call and not before, so that commands which read no file do not pay for it.

Owns: text to tree, and the tree's limits. Must not know: what a topology is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["MAX_BYTES", "Fault", "Mapping", "Scalar", "Sequence", "Tree", "decode", "from_python", "parse"]

#: Largest accepted document, in bytes. 4,096 nodes with a link each take below 1 MiB.
MAX_BYTES: Final = 4 * 2**20
#: Largest number of values, aliases counted as often as they are used.
MAX_VALUES: Final = 1_000_000
#: Deepest nesting; a topology needs six levels.
MAX_DEPTH: Final = 64


@dataclass(frozen=True)
class Fault:
    """One thing wrong with the text. `line` and `column` count from 1; None when the text has no such place."""

    message: str
    line: int | None = None
    column: int | None = None


@dataclass(frozen=True)
class Scalar:
    """A leaf: its resolved value, and its text as written (exact where the value is a float)."""

    value: str | int | float | bool | None
    text: str
    line: int | None = None
    column: int | None = None


@dataclass(frozen=True)
class Mapping:
    """Key and value pairs in file order. Keys are unique strings; repetitions have been reported and left out."""

    entries: tuple[tuple[Scalar, Tree], ...]
    line: int | None = None
    column: int | None = None


@dataclass(frozen=True)
class Sequence:
    """Items in file order."""

    items: tuple[Tree, ...]
    line: int | None = None
    column: int | None = None


Tree = Scalar | Mapping | Sequence

_INTEGER: Final = re.compile(r"[-+]?[0-9]+\Z", re.ASCII)
_OCTAL: Final = re.compile(r"0o[0-7]+\Z", re.ASCII)
_HEXADECIMAL: Final = re.compile(r"0x[0-9a-fA-F]+\Z", re.ASCII)
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z", re.ASCII)
_SPECIAL: Final = re.compile(r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z", re.ASCII)
_CONSTANTS: Final[dict[str, bool | None]] = {
    "": None,
    "~": None,
    "null": None,
    "Null": None,
    "NULL": None,
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
}
_TAG: Final = "tag:yaml.org,2002:"
_MAX_NUMBER_CHARACTERS: Final = 400


def resolve(text: str) -> str | int | float | bool | None:
    """The value of a plain scalar by the core schema of YAML 1.2."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if len(text) > _MAX_NUMBER_CHARACTERS:
        return text
    if _INTEGER.match(text):
        return int(text)
    if _OCTAL.match(text):
        return int(text[2:], 8)
    if _HEXADECIMAL.match(text):
        return int(text[2:], 16)
    if _FLOAT.match(text):
        return float(text)
    if _SPECIAL.match(text):
        return float(text.replace(".", "").lower())
    return text


def decode(data: bytes) -> tuple[str | None, Fault | None]:
    """Text of a file's bytes, or the one reason why it cannot be read."""
    if len(data) > MAX_BYTES:
        return None, Fault(f"the file is too large: {len(data)} bytes; at most {MAX_BYTES} (4 MiB)")
    try:
        return data.decode("utf-8-sig"), None
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line = before.count(b"\n") + 1
        column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8", "replace")) + 1
        return None, Fault(f"the file is not UTF-8: byte 0x{data[error.start]:02x} cannot stand here", line, column)


def parse(text: str) -> tuple[Tree | None, list[Fault]]:
    """The tree of the one document in `text`, and what is wrong with it.

    Returns:
        The tree, or None when the text cannot be read as one document; and every fault found. Duplicate keys are
        faults that leave a usable tree.
    """
    if len(text) > MAX_BYTES or len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        return None, [Fault(f"the document is too large: at most {MAX_BYTES} bytes (4 MiB)")]
    if text.startswith("\ufeff"):
        text = text[1:]
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    composer = _Composer()
    try:
        tree = composer.compose(yaml.parse(text, Loader=loader))
    except _Refused as refused:
        return None, [*composer.faults, refused.fault]
    except yaml.reader.ReaderError as error:
        position = max(0, min(error.position, len(text)))
        line = text.count("\n", 0, position) + 1
        column = position - (text.rfind("\n", 0, position) + 1) + 1
        return None, [*composer.faults, Fault("the character here is not allowed in YAML", line, column)]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = ", ".join(part for part in (error.context, error.problem) if part) or "the text is not YAML"
        place = (mark.line + 1, mark.column + 1) if mark else (None, None)
        return None, [*composer.faults, Fault(f"not YAML: {message}", *place)]
    except (yaml.YAMLError, UnicodeError, ValueError) as error:
        return None, [*composer.faults, Fault(f"not YAML: {error}")]
    return tree, composer.faults


def from_python(value: object) -> tuple[Tree | None, list[Fault]]:
    """The same kind of tree, without places, from dicts, lists, strings, numbers, booleans and None."""
    faults: list[Fault] = []
    budget = [MAX_VALUES]

    def convert(item: object, depth: int) -> Tree:
        budget[0] -= 1
        if depth > MAX_DEPTH:
            raise _Refused(Fault(f"nested deeper than {MAX_DEPTH} levels"))
        if budget[0] < 0:
            raise _Refused(Fault(f"more than {MAX_VALUES} values"))
        if item is None or isinstance(item, (str, bool, int, float)):
            return Scalar(item, item if isinstance(item, str) else _spell(item))
        if hasattr(item, "items"):
            entries: list[tuple[Scalar, Tree]] = []
            for key, inner in item.items():
                if not isinstance(key, str):
                    faults.append(Fault(f"the key {key!r} is not a string"))
                    continue
                entries.append((Scalar(key, key), convert(inner, depth + 1)))
            return Mapping(tuple(entries))
        if isinstance(item, (list, tuple)):
            return Sequence(tuple(convert(inner, depth + 1) for inner in item))
        numerator, denominator = getattr(item, "numerator", None), getattr(item, "denominator", None)
        if isinstance(numerator, int) and isinstance(denominator, int):  # Fraction and other exact numbers
            if denominator == 1:
                return Scalar(numerator, str(numerator))
            return Scalar(f"{numerator}/{denominator}", f"{numerator}/{denominator}")
        raise _Refused(Fault(f"a value of type {type(item).__name__} cannot stand in a topology"))

    try:
        return convert(value, 0), faults
    except _Refused as refused:
        return None, [*faults, refused.fault]


def _spell(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


class _Refused(Exception):
    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


@dataclass
class _Open:
    """A mapping or sequence whose end has not been seen."""

    is_mapping: bool
    line: int
    column: int
    anchor: str | None
    values: list[Tree] = field(default_factory=list)
    weight: int = 1


class _Composer:
    """Events to tree, iteratively: nesting never becomes Python recursion."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.total = 0

    def compose(self, events: Any) -> Tree:
        stack: list[_Open] = []
        # An anchor's tree and its weight (number of values with aliases expanded); None while it is still open.
        anchors: dict[str, tuple[Tree, int] | None] = {}
        root: Tree | None = None
        documents = 0
        for event in events:
            kind = type(event).__name__
            line, column = event.start_mark.line + 1, event.start_mark.column + 1
            finished: tuple[Tree, int] | None = None
            if kind == "DocumentStartEvent":
                documents += 1
                if documents > 1:
                    raise _Refused(Fault("a second document begins here; a topology file holds one", line, column))
            elif kind == "ScalarEvent":
                finished = (self._scalar(event, line, column), 1)
                if event.anchor:
                    anchors[event.anchor] = finished
            elif kind == "AliasEvent":
                if event.anchor not in anchors:
                    raise _Refused(Fault(f"the alias *{event.anchor} has no anchor before it", line, column))
                finished = anchors[event.anchor]
                if finished is None:
                    raise _Refused(Fault(f"the alias *{event.anchor} stands inside its own anchor", line, column))
            elif kind in ("MappingStartEvent", "SequenceStartEvent"):
                self._check_tag(event, "map" if kind.startswith("M") else "seq", line, column)
                if len(stack) >= MAX_DEPTH:
                    raise _Refused(Fault(f"nested deeper than {MAX_DEPTH} levels", line, column))
                stack.append(_Open(kind.startswith("M"), line, column, event.anchor))
                if event.anchor:
                    anchors[event.anchor] = None
            elif kind in ("MappingEndEvent", "SequenceEndEvent"):
                done = stack.pop()
                finished = (self._close(done), done.weight)
                if done.anchor:
                    anchors[done.anchor] = finished
            if finished is None:
                continue
            tree, weight = finished
            # A closing collection's members have been counted; its own value, and all of an alias, have not.
            self.total += 1 if kind != "AliasEvent" else weight
            if self.total > MAX_VALUES:
                raise _Refused(Fault(f"more than {MAX_VALUES} values, aliases included", line, column))
            if stack:
                stack[-1].values.append(tree)
                stack[-1].weight += weight
            else:
                root = tree
        if documents == 0 or root is None:
            raise _Refused(Fault("the file is empty", 1, 1))
        return root

    def _scalar(self, event: Any, line: int, column: int) -> Scalar:
        text: str = event.value
        if event.tag is None or event.tag == "!":
            plain = event.tag is None and event.implicit[0]
            return Scalar(resolve(text) if plain else text, text, line, column)
        name = event.tag[len(_TAG) :] if event.tag.startswith(_TAG) else ""
        if name == "str":
            return Scalar(text, text, line, column)
        value = resolve(text)
        kinds: dict[str, tuple[type, ...]] = {
            "int": (int,),
            "float": (float, int),
            "bool": (bool,),
            "null": (type(None),),
        }
        if name not in kinds:
            raise _Refused(Fault(f"the tag {event.tag!r} is not one of the core schema", line, column))
        if not isinstance(value, kinds[name]) or (isinstance(value, bool) and name != "bool"):
            self.faults.append(Fault(f"{text!r} is not a !!{name}", line, column))
        return Scalar(value, text, line, column)

    @staticmethod
    def _check_tag(event: Any, expected: str, line: int, column: int) -> None:
        if event.tag not in (None, "!", _TAG + expected):
            raise _Refused(Fault(f"the tag {event.tag!r} is not one of the core schema", line, column))

    def _close(self, done: _Open) -> Tree:
        if not done.is_mapping:
            return Sequence(tuple(done.values), done.line, done.column)
        entries: list[tuple[Scalar, Tree]] = []
        first: dict[str, Scalar] = {}
        for key, value in zip(done.values[::2], done.values[1::2], strict=True):
            if not isinstance(key, Scalar):
                self.faults.append(Fault("a key must be a string, not a collection", key.line, key.column))
                continue
            if key.text == "<<" and key.value == "<<":
                self.faults.append(Fault("merge keys (<<) are not part of YAML 1.2", key.line, key.column))
                continue
            if key.text in first:
                earlier = first[key.text]
                message = f"the key {key.text!r} stands twice; first on line {earlier.line}"
                self.faults.append(Fault(message, key.line, key.column))
                continue
            first[key.text] = key
            entries.append((Scalar(key.text, key.text, key.line, key.column), value))
        return Mapping(tuple(entries), done.line, done.column)
