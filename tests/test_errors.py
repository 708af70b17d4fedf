# SPDX-License-Identifier: Apache-2.0
"""Errors: one table of codes, one tree of classes, total both ways; what an exception carries and how it travels."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import topology

import fabrex
from fabrex import errors
from fabrex._handle import ffi, lib, raise_code, text

pytest_plugins = ["helpers"]

CODES = {code: text(name) for code in range(-300, 300) if (name := lib.fbx_error_name(code)) != ffi.NULL}
CLASSES = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, errors.FabricError)]


def test_the_cores_table_and_the_classes_are_total_both_ways() -> None:
    named = {name: code for code, name in CODES.items() if code < 0}
    assert set(named) == set(errors.BY_CODE)
    assert set(errors.BY_CODE.values()) == set(CLASSES) - {errors.FabricError}
    assert min(named.values()) == -len(named), "codes are without gaps"
    for name, code in named.items():
        assert getattr(lib, f"FBX_E_{name}") == code


@pytest.mark.parametrize("code", sorted(CODES))
def test_every_code_raises_its_class_with_a_hint(code: int) -> None:
    if code == 0:
        raise_code_zero = CODES[0]
        assert raise_code_zero in ("OK", "NO_ERROR", "")
        return
    with pytest.raises(errors.FabricError) as caught:
        raise_code(code)
    error = caught.value
    assert type(error) is errors.BY_CODE[CODES[code]]
    assert error.code == CODES[code]
    assert len(error.hint) > 8 and str(error)


def test_what_is_no_code_is_still_an_error() -> None:
    with pytest.raises(errors.FabricError, match="-9999"):
        raise_code(-9999)


@pytest.mark.parametrize("kind", CLASSES)
def test_exceptions_pickle_and_copy_with_all_they_carry(kind: type[errors.FabricError]) -> None:
    error = kind("what happened", op="load", node="host0", gva=1 << 63, hint="do this", injected=True)
    error.code = "SOME"
    error.extra = [1, 2]
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is kind and str(again) == "what happened (do this)"
        assert (again.op, again.node, again.gva, again.hint, again.injected) == ("load", "host0", 1 << 63, "do this", True)
        assert again.code == "SOME" and again.extra == [1, 2] and again.args == error.args


@pytest.mark.parametrize("kind", CLASSES)
def test_the_drawn_tree_is_the_tree(kind: type[errors.FabricError]) -> None:
    drawn = {}
    stack: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^( {4}[│├└─ ]*)([A-Z]\w+)(?:\((\w+)\))?", line)
        if not match:
            continue
        depth = len(match[1])
        while stack and stack[-1][0] >= depth:
            stack.pop()
        drawn[match[2]] = (stack[-1][1] if stack else None, match[3])
        stack.append((depth, match[2]))
    assert set(drawn) == {c.__name__ for c in CLASSES}
    parent, builtin = drawn[kind.__name__]
    if parent:
        assert kind.__mro__[1].__name__ == parent
    if builtin:
        assert issubclass(kind, __builtins__[builtin] if isinstance(__builtins__, dict) else getattr(__builtins__, builtin))
    assert kind.__doc__ and kind.__name__ in errors.__all__ and getattr(fabrex, kind.__name__) is kind


CASES: list[tuple[str, type[errors.FabricError], Callable[[fabrex.Fabric, fabrex.Node], object]]] = [
    ("ADDRESS", fabrex.AddressError, lambda f, n: n.load(0)),
    ("ADDRESS", fabrex.AddressError, lambda f, n: n.load((1 << 64) - 8)),
    ("ALIGNMENT", fabrex.AlignmentError, lambda f, n: n.load(f.gva("host1") + 1)),
    ("ALIGNMENT", fabrex.AlignmentError, lambda f, n: n.load(f.gva("host1"), size=3)),
    ("ALIGNMENT", fabrex.AlignmentError, lambda f, n: n.fetch_add(f.gva("host1"), 1, size=2)),
    ("NOT_FOUND", fabrex.FabricNotFound, lambda f, n: f.attach("nobody")),
    ("NOT_FOUND", fabrex.FabricNotFound, lambda f, n: n.flush("nobody")),
    ("EXISTS", fabrex.FabricExists, lambda f, n: f.attach("host0", "owner")),
    ("NO_MEMORY", fabrex.OutOfFabricMemory, lambda f, n: n.alloc(1 << 30)),
    ("NO_WINDOW", fabrex.NoWindow, lambda f, n: n.load(n.ntb.windows[5].address)),
    ("WINDOW", fabrex.WindowError, lambda f, n: n.ntb.windows[5].set_translation("host1", 1, 4096)),
    ("INVALID", fabrex.InvalidArgument, lambda f, n: n.alloc(0)),
]


@pytest.mark.parametrize(("code", "kind", "attempt"), CASES)
def test_mistakes_raise_their_class_and_say_whose_they_are(
    place: Path, code: str, kind: type[errors.FabricError], attempt: Callable[[fabrex.Fabric, fabrex.Node], object]
) -> None:
    with fabrex.Fabric.create(topology(), "lab", timing=True) as fabric, fabric.attach("host0") as node:
        with pytest.raises(kind) as caught:
            attempt(fabric, node)
        assert type(caught.value) is kind and str(caught.value) and not caught.value.injected
        node.store(fabric.gva("host1"), 1)
        assert node.load(fabric.gva("host1")) == 1, "a mistake costs nothing but itself"


def test_a_failed_operation_says_node_address_and_kind(place: Path) -> None:
    with fabrex.Fabric.create(topology(), "lab", timing=True) as fabric, fabric.attach("host0") as node:
        next(iter(fabric.links.values())).down()
        for op, attempt in (
            ("load", lambda: node.load(fabric.gva("host1", 64))),
            ("fetch_add", lambda: node.fetch_add(fabric.gva("host1", 64), 1)),
            ("read", lambda: node.read(fabric.gva("host1", 64), 100)),
            ("compare_swap", lambda: node.compare_swap(fabric.gva("host1", 64), 1, 2, size=16)),
        ):
            with pytest.raises(fabrex.LinkDown) as caught:
                attempt()
            error = caught.value
            assert (error.op, error.node, error.gva, error.code) == (op, "host0", fabric.gva("host1", 64), "LINK_DOWN")


def test_each_operations_error_is_its_own(place: Path) -> None:
    with fabrex.Fabric.create(topology(), "lab", timing=True) as fabric, fabric.attach("host0") as node:
        first, second = node.begin("load", 0x10), node.begin("load", 0x20)
        for operation, gva in ((first, 0x10), (second, 0x20)):
            with pytest.raises(fabrex.AddressError) as caught:
                operation.result()
            assert caught.value.gva == gva
