# SPDX-License-Identifier: Apache-2.0
"""The files of the kernel's NTB test drivers: the steps for every profile and direction, each file broken on purpose, bad input."""

from __future__ import annotations

import errno
import itertools
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import Child, persistent, topology
from ntbtool_broken import COUNTERS, break_file, kind_of
from ntbtool_steps import Pair, Tree, Wrong

import fabrex
from fabrex._handle import check, lib
from fabrex.ntbtool import Debugfs, Directory, File, MemoryFile, Settings, Waiting
from fabrex.ntbtool.perf import Parameters
from fabrex.ntbtool.text import command, numbers, switch, unsigned

pytest_plugins = ["helpers"]

PROFILES = ["fabrex", "xeon-gen3", "xeon-gen4", "amd", "idt", "switchtec", "epf"]


def quick() -> Settings:
    return Settings(pingpong_delay_ms=2)


@pytest.fixture(params=PROFILES)
def profile(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def open_tree(hosts: int, profile: str, *, timing: bool = False, windows: str = "manual") -> tuple[fabrex.Fabric, Debugfs]:
    fabric = fabrex.Fabric.create(topology(hosts, ntb=profile, windows=windows), "lab", timing=timing)
    return fabric, Debugfs(fabric, quick())


@pytest.fixture
def pair(place: Path) -> Iterator[Debugfs]:
    fabric, debugfs = open_tree(2, "fabrex")
    with fabric:
        yield debugfs
        debugfs.close()


# ---- the steps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timing", [False, True], ids=["untimed", "timed"])
def test_the_steps_for_every_profile_in_both_directions(place: Path, profile: str, timing: bool) -> None:
    fabric, debugfs = open_tree(2, profile, timing=timing)
    with fabric:
        for near, far in itertools.permutations([device.name for device in debugfs.devices]):
            assert Pair(Tree(debugfs), near, far).run() == list(Pair.STEPS)
        debugfs.close()


def test_the_steps_for_every_pair_of_four_hosts(place: Path, profile: str) -> None:
    fabric, debugfs = open_tree(4, profile)
    with fabric:
        for near, far in itertools.permutations([device.name for device in debugfs.devices], 2):
            steps = tuple(step for step in Pair.STEPS if step != "pingpong")
            assert Pair(Tree(debugfs), near, far, windows=2).run(steps) == list(steps)
        # One game for all.
        for near, far in itertools.pairwise([device.name for device in debugfs.devices]):
            Pair(Tree(debugfs), near, far).run(("pingpong",))
        debugfs.close()


def test_programmed_windows_come_back(place: Path) -> None:
    """What the fabric's own map needs is as it was when the drivers have gone."""
    fabric, debugfs = open_tree(2, "fabrex", windows="auto")
    with fabric:
        tree, names = Tree(debugfs), [device.name for device in debugfs.devices]

        def windows() -> list[Any]:
            return [
                (w.peer, w.translation, w.size, w._info().perm, w._info().mapping)
                for device in debugfs.devices
                for w in device.ntb.windows
                if w.programmed
            ]

        before = windows()
        assert len(before) == 2
        Pair(tree, names[0], names[1], windows=4).run(("ports", "windows"))
        assert windows() == before
        for idx in range(3):
            tree.write(f"ntb_tool/{names[0]}/peer0/mw_trans{idx}", "65536")
            tree.write(f"ntb_tool/{names[1]}/peer0/peer_mw_trans{idx}", "0x0:65536")
        assert len(windows()) == 4 and windows() != before and fabric.buffers()
        tree.read(f"ntb_perf/{names[0]}/run")  # another driver: ntb_tool is unloaded
        assert windows() == before and not fabric.buffers()
        assert not [name for name in tree.names(f"ntb_tool/{names[0]}/peer0") if re.fullmatch(r"mw\d+", name)]
        for idx in range(3):
            tree.write(f"ntb_tool/{names[0]}/peer0/mw_trans{idx}", "65536")
        node = debugfs.devices.all[0].node
        debugfs.close()
        assert node.closed and not fabric.buffers()
        with fabric.attach("host1") as node:
            assert [(w.peer, w.translation, w.size) for w in node.ntb.windows if w.programmed] == [before[1][:3]]


# ---- every file, broken on purpose ----------------------------------------------------------------------------------


def kinds(debugfs: Debugfs) -> dict[str, list[str]]:
    """Every kind of file: its path with numbers as N, and the paths."""
    found: dict[str, list[str]] = {}
    for path, entry in debugfs.root.walk():
        if not isinstance(entry, Directory):
            found.setdefault(kind_of(path), []).append(path)
    return found


# What these do is tested on its own, below.
APART = {"module/ntb_perf/parameters/max_mw_size", "module/ntb_pingpong/parameters/delay_ms"}
ALIASES = {
    "module/ntb_perf/parameters/seg_order": "the file chunk_order under another name",
    "module/ntb_perf/parameters/run_order": "the file total_order under another name",
}


@pytest.mark.parametrize("mode", ["read", "write"])
@pytest.mark.parametrize("half", [0, 1])
def test_the_steps_notice_every_file_that_is_broken(place: Path, mode: str, half: int) -> None:
    unnoticed = []
    fabric, debugfs = open_tree(2, "fabrex")
    with fabric:
        names = [device.name for device in debugfs.devices]
        tree = Tree(debugfs, patience=1.0)
        # Windows that exist only while they are set are broken where they are made.
        every = sorted(kinds(debugfs).items())
        for kind, paths in every[half::2]:
            if kind in APART or kind in ALIASES:
                continue
            saved = []
            for path in paths:
                entry = debugfs.root.find(path)
                assert isinstance(entry, (File, MemoryFile))
                saved.append((entry, entry._load, entry._store))
            broken = [break_file(entry, mode, kind in COUNTERS) for entry, _load, _store in saved]
            if not any(broken):
                continue
            try:
                Pair(tree, *names, windows=1, patience=1).run()
                unnoticed.append(kind)
            except Wrong:
                pass
            finally:
                for entry, load, store in saved:
                    entry._load, entry._store = load, store
                _restored(debugfs)
        assert not unnoticed
        assert Pair(tree, *names, windows=2).run()
        debugfs.close()


def _restored(debugfs: Debugfs) -> None:
    """Bring the devices back to where the steps begin."""
    debugfs.devices.bind("")
    vars(debugfs.settings.perf).update(vars(Parameters()))
    for device in debugfs.devices:
        device.ntb.link_enable()
        device.ntb.db_clear_mask(device.ntb.db_valid_mask())
        device.ntb.db_clear(device.ntb.db_valid_mask())
        device.ntb.msg_clear_mask(device.ntb.msg_inbits() | device.ntb.msg_outbits())
        device.ntb.msg_clear_sts(device.ntb.msg_inbits() | device.ntb.msg_outbits())


@pytest.mark.parametrize("stem", ["mw", "peer_mw"])
@pytest.mark.parametrize("mode", ["read", "write"])
def test_the_steps_notice_windows_that_are_broken(pair: Debugfs, monkeypatch: pytest.MonkeyPatch, stem: str, mode: str) -> None:
    """Files of windows are made when a window is set."""
    add = Directory.add

    def broken(self: Directory, name: str, entry: Any) -> None:
        if re.fullmatch(rf"{stem}\d+", name):
            break_file(entry, mode)
        add(self, name, entry)

    monkeypatch.setattr(Directory, "add", broken)
    with pytest.raises(Wrong):
        Pair(Tree(pair), *(device.name for device in pair.devices), windows=2).run(("ports", "windows"))


# ---- the files, one by one --------------------------------------------------------------------------------------------


def test_which_files_there_are(place: Path, profile: str) -> None:
    """A device shows what it has, and nothing that it has not."""
    fabric, debugfs = open_tree(3, profile)
    with fabric:
        ntb = debugfs.devices.all[0].ntb
        names = debugfs.root.find("ntb_tool/0000:03:00.0")
        assert isinstance(names, Directory)
        top = set(names.names())
        assert {"port", "link", "db", "db_mask", "db_event", "db_valid_mask", "peer_db", "peer_db_mask", "peer0", "peer1"} <= top
        assert sum(bool(re.fullmatch(r"spad\d+", name)) for name in top) == ntb.spad_count()
        assert sum(bool(re.fullmatch(r"msg\d+", name)) for name in top) == ntb.msg_count()
        assert ("msg_sts" in top) == bool(ntb.msg_count()) and ("spad" in top) == bool(ntb.spad_count())
        peer = names["peer1"]
        assert isinstance(peer, Directory)
        inside = peer.names()
        assert sum(name.startswith("mw_trans") for name in inside) == ntb.mw_count(1)
        assert sum(name.startswith("peer_mw_trans") for name in inside) == ntb.mw_count(1)
        assert not {"mw0", "peer_mw0"} & set(inside)
        assert debugfs.root.names() == ["module", "ntb_msi_test", "ntb_perf", "ntb_pingpong", "ntb_tool"]
        debugfs.close()


def test_one_driver_has_the_devices_at_a_time(pair: Debugfs) -> None:
    tree, name = Tree(pair), pair.devices.all[0].name
    ntb = pair.devices.all[0].ntb
    ntb.db_set_mask(0x30)
    tree.read(f"ntb_pingpong/{name}/count")
    assert any(thread.name == "ntb_pingpong" for thread in threading.enumerate()) and ntb.db_read_mask() | 1 == ntb.db_valid_mask()
    tree.read(f"ntb_tool/{name}/db")
    assert not any(thread.name == "ntb_pingpong" for thread in threading.enumerate()) and ntb.db_read_mask() == 0x30
    count = tree.debugfs.find(f"ntb_pingpong/{name}/count")
    assert isinstance(count, File)
    stopped = count.read()
    pair.devices.all[1].ntb.peer_db_set("host0", 1)
    assert count.read() == stopped


def test_a_wait_is_interrupted(pair: Debugfs) -> None:
    name = pair.devices.all[0].name
    for path, text in (("db_event", "5"), ("msg_event", "5"), ("peer0/link_event", "N"), ("link_event", "0")):
        entry = pair.open(f"ntb_tool/{name}/{path}")
        assert isinstance(entry, File)
        asked = iter([False, False])
        with pytest.raises(InterruptedError):
            entry.write(text, Waiting(lambda asked=asked: next(asked, True)))
    pair.devices.all[0].ntb.link_disable()
    run = pair.open(f"ntb_perf/{name}/run")
    assert isinstance(run, File)
    with pytest.raises(InterruptedError):
        run.write("0", Waiting(lambda: True))
    pair.devices.all[0].ntb.link_enable()
    Tree(pair).write("module/ntb_perf/parameters/total_order", "40")
    asked = iter([False] * 3)
    with pytest.raises(InterruptedError):  # in the middle of the copy: nothing stays
        run.write("0", Waiting(lambda: next(asked, True)))
    assert "error status -4" in run.read() and not pair.devices.fabric.buffers()


def test_a_fabric_that_goes_down(place: Path) -> None:
    """Every file says ENODEV, whoever waits too, and nothing hangs."""
    with persistent(topology(), timing=False) as fabric:
        debugfs = Debugfs(fabric, quick())
        name = debugfs.devices.all[0].name
        tree = Tree(debugfs)
        assert int(tree.read(f"ntb_pingpong/{name}/count")) >= 0
        entry = debugfs.open(f"ntb_tool/{name}/db_event")
        assert isinstance(entry, File)
        result: list[int | None] = []

        def wait() -> None:
            try:
                entry.write("99", Waiting())
            except OSError as error:
                result.append(error.errno)

        thread = threading.Thread(target=wait)
        thread.start()
        fabrex.Fabric.destroy("lab", str(place), force=True)
        thread.join(20)
        assert result == [errno.ENODEV]
        for path in (f"ntb_tool/{name}/port", f"ntb_perf/{name}/run", f"ntb_pingpong/{name}/count", "ntb_tool"):
            with pytest.raises(OSError) as caught:
                tree.debugfs.open(path)
            assert caught.value.errno == errno.ENODEV
        debugfs.close()


HOST = """
fabric = fabrex.Fabric.open("lab")
node = fabric.attach("host1", "owner")
say("in")
hear()
"""


def test_a_host_that_dies_and_comes_back(place: Path, children: Callable[..., Child]) -> None:
    with persistent(topology(windows="manual"), timing=False) as fabric:
        first = children(HOST)
        first.expect("in")
        debugfs = Debugfs(fabric, quick())
        tree = Tree(debugfs)
        assert tree.read("ntb_tool/0000:03:00.0/peer0/link") == "Y\n"
        first.kill()
        tree.write("ntb_tool/0000:03:00.0/peer0/link_event", "N\n")
        with pytest.raises(OSError) as caught:
            tree.write("ntb_tool/0000:03:00.0/peer0/mw_trans0", "65536")
        assert caught.value.errno == errno.ENOTCONN
        second = children(HOST)
        second.expect("in")
        tree.write("ntb_tool/0000:03:00.0/peer0/link_event", "Y\n")
        Pair(tree, "0000:03:00.0", "0001:03:00.0", windows=2).run()
        debugfs.close()


def test_parameters(pair: Debugfs) -> None:
    tree, name = Tree(pair), pair.devices.all[0].name
    for path, value, bad in (
        ("ntb_pingpong/parameters/delay_ms", "5", "x"),
        ("ntb_perf/parameters/max_mw_size", "8192", "-1"),
        ("ntb_perf/parameters/run_order", "15", "41"),
        ("ntb_perf/parameters/seg_order", "20", "21"),
    ):
        tree.write(f"module/{path}", value)
        assert tree.read(f"module/{path}") == f"{value}\n"
        with pytest.raises(OSError) as caught:
            tree.write(f"module/{path}", bad)
        assert caught.value.errno == errno.EINVAL and tree.read(f"module/{path}") == f"{value}\n"
    assert pair.settings.pingpong_delay_ms == 5
    assert tree.read(f"ntb_perf/{name}/total_order") == "15\n" and tree.read(f"ntb_perf/{name}/chunk_order") == "20\n"
    writes: list[int] = []
    node = pair.devices.all[0]
    program = node.program
    node.program = lambda widx, peer, bus, size, user: (writes.append(size), program(widx, peer, bus, size, user))  # type: ignore[method-assign]
    tree.write(f"ntb_perf/{name}/run", "0")
    assert writes == [8192] and "copied 32768 bytes" in tree.read(f"ntb_perf/{name}/run")


def test_memory_that_is_not_there(place: Path) -> None:
    """A window that cannot be made is ENOMEM, and leaves nothing."""
    fabric, debugfs = open_tree(2, "switchtec")
    with fabric:
        tree = Tree(debugfs)
        path = "ntb_tool/0000:03:00.0/peer0/mw_trans0"
        taken = [debugfs.devices.all[0].node.alloc(1 << 20) for _ in range(15)]
        with pytest.raises(OSError) as caught:
            tree.write(path, "0x200000")
        assert caught.value.errno == errno.ENOMEM and len(fabric.buffers()) == 15
        for buffer in taken:
            buffer.free()
        tree.write(path, "0x200000")
        with pytest.raises(OSError) as caught:
            tree.write(path, "0x100000000")
        assert caught.value.errno == errno.ERANGE
        debugfs.close()
    fabric, debugfs = open_tree(2, "xeon-gen3")
    with fabric:  # a translation can only lead to the beginning of the bus, of which 64 KiB are for everybody
        with pytest.raises(OSError) as caught:
            Tree(debugfs).write("ntb_tool/0000:03:00.0/peer0/mw_trans0", "65537")
        assert caught.value.errno == errno.ENOMEM
        debugfs.close()


def test_two_different_devices(place: Path) -> None:
    """What an inbound window takes is what the peer's device says; doorbells are those that both have."""
    described = topology(windows="manual").override(["nodes.host0.ntb=switchtec", "nodes.host1.ntb=amd"])
    with fabrex.Fabric.create(described, "lab", timing=False) as fabric:
        debugfs = Debugfs(fabric, quick())
        tree = Tree(debugfs)

        def windows(device: str) -> int:
            return sum(name.startswith("mw_trans") for name in tree.names(f"ntb_tool/{device}/peer0"))

        far = fabric.attach("host1", "client")
        assert (windows("0000:03:00.0"), windows("0001:03:00.0")) == (len(far.ntb.windows), 66)
        tree.write("ntb_tool/0000:03:00.0/peer_db", f"s {(1 << 28) - 1:#x}")
        assert int(tree.read("ntb_tool/0001:03:00.0/db"), 0) == 0xFFFF
        steps = ("ports", "links", "windows", "interrupts", "performance", "pingpong")
        for near, far_name in itertools.permutations(["0000:03:00.0", "0001:03:00.0"]):
            pair = Pair(tree, near, far_name)
            pair.ports()
            assert pair.run(steps[:2] + steps[3:])
        tree.write("ntb_tool/0001:03:00.0/peer0/mw_trans65", "1")  # an entry of host0's look-up table: 64 KiB
        assert "Window Size    \t0x0000000000010000[p]" in tree.read("ntb_tool/0001:03:00.0/peer0/mw_trans65")
        debugfs.close()


def test_a_register_that_reads_back_otherwise(place: Path) -> None:
    """EIO, and nothing stays."""
    fabric, debugfs = open_tree(2, "fabrex")
    with fabric:
        check(lib.fbx_mw_inject_stuck(fabric._live(), 1, 3, 0x10000))
        with pytest.raises(OSError) as caught:
            Tree(debugfs).write("ntb_tool/0000:03:00.0/peer0/mw_trans3", "65536")
        assert caught.value.errno == errno.EIO and not fabric.buffers()
        debugfs.close()


def test_memory_files_have_an_end(pair: Debugfs) -> None:
    tree = Tree(pair)
    tree.write("ntb_tool/0000:03:00.0/peer0/mw_trans2", "4096")
    file = pair.open("ntb_tool/0000:03:00.0/peer0/mw2")
    assert isinstance(file, MemoryFile) and file.size == 4096
    assert file.write_at(4000, bytes(200)) == 96 and file.read_at(4090, 100) == bytes(6) and file.read_at(4096, 1) == b""
    with pytest.raises(OSError) as caught:
        file.write_at(4096, b"x")
    assert caught.value.errno == errno.ENOSPC
    tree.write("ntb_tool/0000:03:00.0/peer0/mw_trans2", "0")
    with pytest.raises(OSError) as caught:  # opened before, and gone now
        file.read_at(0, 1)
    assert caught.value.errno == errno.ENXIO


# ---- numbers ------------------------------------------------------------------------------------------------------------


def test_numbers_are_read_as_the_kernel_reads_them() -> None:
    assert [unsigned(text, 32) for text in ("0", "10\n", "+7", "0x1F", "010", "4294967295")] == [0, 10, 7, 31, 8, 0xFFFFFFFF]
    for text in ("", "\n", " 1", "1 ", "1\n\n", "-1", "0x", "08", "1x", "٣"):
        with pytest.raises(OSError) as caught:
            unsigned(text, 32)
        assert caught.value.errno == errno.EINVAL, text
    with pytest.raises(OSError) as caught:
        unsigned("0x100000000", 32)
    assert caught.value.errno == errno.ERANGE
    assert [switch(text) for text in ("Y\n", "y", "1", "on", "Yes")] == [True] * 5
    assert [switch(text) for text in ("N\n", "n", "0", "off", "no")] == [False] * 5
    for text in ("", "x", "o", "2"):
        with pytest.raises(OSError):
            switch(text)
    assert command("s 0x10\n") == ("s", 16) and command("c 7 rest") == ("c", 7) and command("s -1") == ("s", (1 << 64) - 1)
    assert numbers("0xADD0:16384\n", ":") == [0xADD0, 16384] and numbers("1 0x2 3x") == [1, 2, 3] and numbers("x") == []
    assert os.strerror(errno.EINVAL)
