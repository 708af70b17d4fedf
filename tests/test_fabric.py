# SPDX-License-Identifier: Apache-2.0
"""Fabrics: how they are made, found, left, ended, and what becomes of damaged and abandoned ones."""

from __future__ import annotations

import gc
import os
import pickle
import random
import resource
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import (
    BOOT_ID,
    Child,
    control_path,
    descriptors,
    eventually,
    head,
    mapped,
    patch,
    patch_word,
    persistent,
    run,
    table,
    topology,
)

import fabrex

pytest_plugins = ["helpers"]

Start = Callable[..., Child]


# ---- lives ----------------------------------------------------------------------------------------------------------


def test_an_owned_fabric_ends_with_its_creators_close(place: Path) -> None:
    fabric = fabrex.Fabric.create(topology(), "lab", timing=False)
    assert len(list(place.iterdir())) == 3  # control and two regions
    other = fabrex.Fabric.open("lab")
    node = other.attach("host0")
    fabric.close()
    assert fabric.closed and not list(place.iterdir())
    with pytest.raises(fabrex.ClosedHandle):
        node.load(other.gva("host0"))
    with pytest.raises(fabrex.ClosedHandle):
        other.put("key", b"")
    with pytest.raises(fabrex.FabricNotFound):
        fabrex.Fabric.open("lab")
    other.close()


def test_a_persistent_fabric_outlives_its_creator_and_keeps_its_memory(place: Path) -> None:
    made = run(
        """
        fabric = fabrex.Fabric.create("fabrex-pair", "lab", persistent=True, timing=False)
        node = fabric.attach("host0")
        buffer = node.alloc(4096, "kept")
        node.store(buffer.gva, 4711)
        say(buffer.gva)
        """
    )
    with fabrex.Fabric.open("lab") as fabric:
        assert fabric.info()["persistent"]
        buffer = fabric.buffer("kept")
        assert buffer.gva == made
        assert fabric.attach("host0").load(made) == 4711
    fabrex.Fabric.destroy("lab")
    assert not list(place.iterdir())


def test_exit_without_close_ends_an_owned_fabric(place: Path) -> None:
    run('fabric = fabrex.Fabric.create("fabrex-pair", "lab"); fabric.attach("host0").alloc(4096); say(1)')
    assert not list(place.iterdir())


def test_a_taken_name_is_refused_and_the_first_fabric_is_unharmed(place: Path) -> None:
    with fabrex.Fabric.create(topology(), "lab", timing=False) as fabric:
        node = fabric.attach("host0")
        node.store(fabric.gva("host0"), 7)
        before = sorted(place.iterdir())
        with pytest.raises(fabrex.FabricExists):
            fabrex.Fabric.create(topology(), "lab")
        assert sorted(place.iterdir()) == before
        assert node.load(fabric.gva("host0")) == 7


def test_destroy_refuses_while_somebody_is_attached(place: Path) -> None:
    fabric = fabrex.Fabric.create(topology(), "lab", persistent=True, timing=False)
    node = fabric.attach("host0")
    with pytest.raises(fabrex.Busy):
        fabrex.Fabric.destroy("lab")
    assert node.load(fabric.gva("host0")) == 0
    fabrex.Fabric.destroy("lab", force=True)
    assert not list(place.iterdir())
    with pytest.raises(fabrex.ClosedHandle):
        node.load(fabric.gva("host0"))
    with pytest.raises(fabrex.FabricNotFound):
        fabrex.Fabric.destroy("lab")
    fabric.close()


def test_a_new_fabric_of_the_name_survives_the_close_of_the_old_one(place: Path) -> None:
    old = fabrex.Fabric.create(topology(), "lab", persistent=True, timing=False)
    fabrex.Fabric.destroy("lab", force=True)
    with fabrex.Fabric.create(topology(), "lab", timing=False) as new:
        old.close()
        assert new.attach("host0").load(new.gva("host0")) == 0
        assert len(list(place.iterdir())) == 3


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "-x", "a b", "ä", "x" * 64, "a@b", "a\nb"])
def test_bad_names_are_refused(place: Path, name: str) -> None:
    with pytest.raises(fabrex.InvalidArgument):
        fabrex.Fabric.create(topology(), name)
    with pytest.raises(fabrex.InvalidArgument):
        fabrex.Fabric.open(name)


def test_the_longest_name_and_directory_work(place: Path) -> None:
    folder = place / ("d" * (199 - len(str(place))))
    folder.mkdir()
    with fabrex.Fabric.create(topology(), "n" * 63, directory=str(folder), timing=False) as fabric:
        node = fabric.attach("host0")
        node.store(fabric.gva("host1"), 1)
        assert fabrex.fabrics(str(folder))[0]["name"] == "n" * 63
    assert not list(folder.iterdir())
    with pytest.raises(fabrex.InvalidArgument):
        fabrex.Fabric.create(topology(), "x", directory="/dev/shm/" + "d" * 200)
    folder.rmdir()


def test_a_missing_directory_is_named(place: Path) -> None:
    with pytest.raises(fabrex.FabricError, match="nowhere"):
        fabrex.Fabric.create(topology(), "lab", directory=str(place / "nowhere"))
    with pytest.raises(fabrex.FabricNotFound):
        fabrex.Fabric.open("lab", directory=str(place / "nowhere"))
    assert fabrex.fabrics(str(place / "nowhere")) == []


def test_open_waits_for_a_fabric_to_appear(place: Path, children: Start) -> None:
    child = children('say("waits"); fabric = fabrex.Fabric.open("lab", timeout=20); say(fabric.attach("host1").name)')
    child.expect("waits")
    with fabrex.Fabric.create(topology(), "lab"):
        child.expect("host1")
        child.finish()


def test_a_fabric_pickles_to_a_reopen(place: Path) -> None:
    with fabrex.Fabric.create(topology(), "lab", timing=False) as fabric:
        with pickle.loads(pickle.dumps(fabric)) as again:
            assert again is not fabric and again.name == "lab"
            fabric.put("k", b"v")
            assert again.get("k") == b"v"
        assert fabric.get("k") == b"v"
    with pytest.raises(fabrex.FabricNotFound):
        pickle.loads(pickle.dumps(fabric))


def test_listing(place: Path, children: Start) -> None:
    (place / "unrelated").write_text("x")
    (place / f"fabrex@{os.getuid()}@damaged").write_bytes(b"x" * 100)
    (place / f"fabrex@{os.getuid() + 1}@foreign").write_bytes(b"")
    child = children('fabric = fabrex.Fabric.create("fabrex-pair", "dead"); say(1); time.sleep(100)')
    child.expect(1)
    with persistent(topology(), "alive"):
        child.kill()
        found = {entry["name"]: entry for entry in fabrex.fabrics()}
        assert sorted(found) == ["alive", "damaged", "dead"]
        assert found["alive"]["alive"] and found["alive"]["processes"] == 1
        assert not found["dead"]["alive"] and not found["damaged"]["alive"]
        assert "100 bytes" in found["damaged"]["error"]
    for name in ("dead", "damaged"):
        fabrex.Fabric.create(topology(), name).close()
    for path in list(place.iterdir()):
        assert path.name in ("unrelated", f"fabrex@{os.getuid() + 1}@foreign")
        path.unlink()


def test_nothing_of_a_fabric_stays_in_the_process(place: Path) -> None:
    fabrex.Fabric.create(topology(), "lab").close()
    before, threads = descriptors(), threading.active_count()
    kernel_threads = len(os.listdir("/proc/self/task"))
    for _ in range(20):
        with fabrex.Fabric.create(topology(), "lab") as fabric, fabric.attach("host0") as node:
            node.store(fabric.gva("host1"), 1)
            node.load(fabric.gva("host1"))
    del fabric, node
    gc.collect()
    assert descriptors() == before
    assert threading.active_count() == threads and len(os.listdir("/proc/self/task")) == kernel_threads
    assert not mapped(str(place))


# ---- damage ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def segment(place: Path) -> Iterator[Path]:
    """The control file of a persistent fabric that nobody has open; put right again and removed at the end."""
    fabrex.Fabric.create(topology(), "lab", persistent=True, timing=False).close()
    gc.collect()  # no mapping may be left of a file that is about to be cut
    path = control_path()
    whole = head(path)
    size = path.stat().st_size
    yield path
    if path.exists():
        os.truncate(path, size)
        patch(path, 0, whole)
        fabrex.Fabric.destroy("lab", force=True)


@pytest.mark.parametrize("field", ["version", "layout_hash", "page_bytes"])
def test_another_versions_fabric_is_refused_and_left_alone(segment: Path, place: Path, field: str) -> None:
    patch_word(segment, field, 77)
    with pytest.raises(fabrex.LayoutMismatch, match=r"77|4d"):
        fabrex.Fabric.open("lab")
    with pytest.raises(fabrex.FabricExists):
        fabrex.Fabric.create(topology(), "lab")
    assert len(list(place.iterdir())) == 3
    (entry,) = fabrex.fabrics()
    assert not entry["alive"] and entry["error"]


@pytest.mark.parametrize("length", [0, 1, 7, 8, 63, 64, 255, 1000, 4095, 4096, 5440, 65536, -4096, -1])
def test_truncated_segments(segment: Path, place: Path, length: int) -> None:
    os.truncate(segment, length if length >= 0 else segment.stat().st_size + length)
    with pytest.raises(fabrex.CorruptSegment, match=r"bytes long|begin|damaged"):
        fabrex.Fabric.open("lab")
    assert "error" in fabrex.fabrics()[0]
    fabrex.Fabric.create(topology(), "lab").close()  # nobody lives in it: the name is free
    for region in place.iterdir():  # a header too short to say its instance cannot say which regions were its own
        assert "@r" in region.name and 0 <= length < 40
        region.unlink()


@pytest.mark.parametrize("length", [1, 64, 1024, 4096, 70000])
@pytest.mark.parametrize("magic", [False, True])
def test_garbage_segments(place: Path, length: int, magic: bool) -> None:
    path = control_path()
    noise = random.Random(length).randbytes(length)
    path.write_bytes((b"FBREXFB1" + noise)[:length] if magic else noise)
    with pytest.raises((fabrex.CorruptSegment, fabrex.LayoutMismatch)) as caught:
        fabrex.Fabric.open("lab")
    if isinstance(caught.value, fabrex.LayoutMismatch):
        with pytest.raises(fabrex.FabricExists):
            fabrex.Fabric.create(topology(), "lab")
        path.unlink()
    else:
        fabrex.Fabric.create(topology(), "lab").close()


def test_a_segment_without_its_magic(segment: Path, place: Path) -> None:
    magic = patch(segment, 0, b"\0" * 8)
    assert magic == b"FBREXFB1"
    with pytest.raises(fabrex.CorruptSegment):
        fabrex.Fabric.open("lab")


@pytest.mark.parametrize("kind", ["directory", "link", "fifo"])
def test_a_name_that_is_no_file(place: Path, kind: str) -> None:
    path = control_path()
    if kind == "directory":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("/etc/passwd")
    else:
        os.mkfifo(path)
    with pytest.raises(fabrex.FabricError):
        fabrex.Fabric.open("lab")
    assert fabrex.fabrics()[0]["error"]
    if kind == "directory":
        path.rmdir()
    else:
        path.unlink()


@pytest.mark.parametrize("damage", ["gone", "short"])
def test_a_region_that_is_gone_or_short(place: Path, damage: str) -> None:
    with persistent(topology(), timing=False):
        (region,) = place.glob("*@r1")
        if damage == "gone":
            region.unlink()
        else:
            os.truncate(region, 65536)
        said = run(
            """
            fabric = fabrex.Fabric.open("lab")
            node = fabric.attach("host0")
            gva = fabric.gva("host1")
            outcomes = []
            for attempt in (
                lambda: node.load(gva),
                lambda: node.store(gva, 1),
                lambda: node.view(gva, 8),
                lambda: node.write(gva, b"x" * 1000),
                lambda: node.alloc(4096, on="host1"),
            ):
                try:
                    outcomes.append(repr(attempt()))
                except fabrex.FabricError as error:
                    outcomes.append(error.code)
            node.store(fabric.gva("host0"), 5)  # the other one is whole
            say(*outcomes, node.load(fabric.gva("host0")))
            """
        )
        assert said == ["CORRUPT"] * 5 + [5]


def test_a_damaged_segment_with_a_living_process_is_not_taken_over(place: Path, children: Start) -> None:
    with persistent(topology(), timing=False) as fabric:
        magic = patch(control_path(), 0, b"\0" * 8)
        with pytest.raises(fabrex.FabricExists):
            fabrex.Fabric.create(topology(), "lab")
        patch(control_path(), 0, magic)
        assert fabric.attach("host0").load(fabric.gva("host0")) == 0


def test_what_an_earlier_boot_left_is_no_fabric_and_its_name_is_free(segment: Path, place: Path) -> None:
    patch(segment, BOOT_ID, b"\x11" * 16)
    with pytest.raises(fabrex.FabricNotFound, match="last start"):
        fabrex.Fabric.open("lab")
    assert not fabrex.fabrics()[0]["alive"]
    with fabrex.Fabric.create(topology(), "lab", timing=False) as fabric:
        assert fabric.attach("host0").load(fabric.gva("host1")) == 0
    assert not list(place.iterdir())


def test_a_damaged_description_is_an_error_of_ours(segment: Path) -> None:
    at = head(segment).index(b"\xa6fabrex")
    patch(segment, at - 1, b"\xc1" * 64)
    with pytest.raises(fabrex.FabricError):
        fabrex.Fabric.open("lab")


# ---- reclaim and races ------------------------------------------------------------------------------------------------


def test_an_owned_fabric_whose_creator_was_killed(place: Path, children: Start) -> None:
    child = children('fabric = fabrex.Fabric.create("fabrex-pair", "lab"); fabric.attach("host0"); say(1); time.sleep(100)')
    child.expect(1)
    old = set(place.iterdir())
    with fabrex.Fabric.open("lab") as inside:
        inside.close()
    child.kill()
    with pytest.raises(fabrex.FabricNotFound, match="gone"):
        fabrex.Fabric.open("lab")
    with fabrex.Fabric.create(topology(), "lab", timing=False) as fabric:
        assert fabric.attach("host0").owner
        assert not {path for path in place.iterdir() if "@r" in path.name} & old


def test_peers_of_a_killed_creator_end_its_fabric(place: Path, children: Start) -> None:
    child = children('fabric = fabrex.Fabric.create("fabrex-pair", "lab"); say(1); time.sleep(100)')
    child.expect(1)
    with fabrex.Fabric.open("lab") as fabric:
        node = fabric.attach("host0")
        child.kill()
        assert eventually(lambda: not list(place.iterdir()))
        with pytest.raises(fabrex.ClosedHandle):
            node.load(fabric.gva("host0"))


RACER = """
while True:
    name = hear()
    try:
        fabric = fabrex.Fabric.create(fabrex.Topology.preset("fabrex-pair"), name, timing=False)
        say("made")
    except fabrex.FabricExists:
        fabric = None
        say("exists")
    hear()
    if fabric:
        assert fabric.attach("host0").load(fabric.gva("host1")) == 0
        again = fabrex.Fabric.open(name)
        assert again.info()["creator_pid"] == os.getpid(), "the name means another fabric"
        again.close()
        fabric.close()
    say("closed")
"""


def _race(place: Path, children: Start, rounds: int, before: Callable[[str], None]) -> None:
    racers = [children(RACER) for _ in range(2)]
    for number in range(rounds):
        name = f"race{number}"
        before(name)
        for racer in racers:
            racer.tell(name)
        assert sorted(racer.hear() for racer in racers) == ["exists", "made"], f"round {number}"
        for racer in racers:
            racer.tell("go on")
        for racer in racers:
            racer.expect("closed")


def test_two_processes_race_to_create_one_name(place: Path, children: Start) -> None:
    _race(place, children, 25, lambda name: None)


def test_two_processes_race_to_create_over_what_is_damaged(place: Path, children: Start) -> None:
    _race(place, children, 25, lambda name: control_path(name).write_bytes(b"?" * 5000) and None)


def test_two_processes_race_to_create_over_a_dead_fabric(place: Path, children: Start) -> None:
    rounds = 10
    child = children(
        """
        kept = [fabrex.Fabric.create("fabrex-pair", f"race{i}", timing=False) for i in range(arguments[0])]
        say(1)
        time.sleep(100)
        """,
        rounds,
    )
    child.expect(1)
    child.kill()
    _race(place, children, rounds, lambda name: None)


def test_processes_come_and_go_at_once(place: Path, children: Start) -> None:
    code = """
        for i in range(30):
            with fabrex.Fabric.open("lab") as fabric, fabric.attach("host0", "client") as node:
                node.fetch_add(fabric.gva("host1"), 1)
        say("done")
        """
    with persistent(topology(), timing=False) as fabric:
        for child in [children(code) for _ in range(3)]:
            child.expect("done")
            child.finish()
        node = fabric.attach("host0")
        assert node.load(fabric.gva("host1")) == 90
        info = fabric.info()
        assert info["processes"] == 1 and info["attached"] == 1
        assert not any(info["counters"][k] for k in ("corrupt_resets", "takeovers"))


def test_what_a_dead_creator_left_half_made_is_pruned(place: Path) -> None:
    with fabrex.Fabric.create(topology(), "lab"):
        alive = set(place.iterdir())
        for suffix in ("@new", "@r0", "@r1"):
            path = place / f"fabrex@{os.getuid()}@lab@00000000deadbeef{suffix}"
            path.write_bytes(b"\0" * 4096)
            os.utime(path, (1, 1))  # a file that is being made just now is let alone
        assert fabrex.Fabric.prune(str(place)) == 1
        assert set(place.iterdir()) == alive
        assert fabrex.Fabric.prune(str(place)) == 0


# ---- limits -----------------------------------------------------------------------------------------------------------


def test_a_thousand_nodes_in_one_process(place: Path) -> None:
    said = run(
        """
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
        count = 1024
        nodes = {f"n{i}": {"kind": "host", "memory": {"dram": "128KiB"}} for i in range(count)} | {"sw": {"kind": "switch"}}
        links = [{"endpoints": [f"n{i}:ntb0", f"sw:p{i}"], "pcie": {"gen": 4, "lanes": 16}} for i in range(count)]
        described = fabrex.Topology.from_dict({"fabrex": 1, "name": "many", "nodes": nodes, "links": links})
        with fabrex.Fabric.create(described, "lab", timing=False) as fabric:
            attached = [fabric.attach(f"n{i}") for i in range(count)]
            for i, node in enumerate(attached):
                node.store(fabric.gva(f"n{(i + 1) % count}"), i)
            found = [node.load(fabric.gva(f"n{i}")) for i, node in enumerate(attached)]
            assert found == [(i - 1) % count for i in range(count)], found[:5]
            say(len(os.listdir("/proc/self/fd")))
        """
    )
    assert said < 50
    assert not list(place.iterdir())


@pytest.fixture
def small_disk(place: Path) -> Iterator[Path]:
    """A shared-memory file system of 64 MiB."""
    folder = place / "small"
    folder.mkdir()
    if os.geteuid() != 0:
        folder.rmdir()
        pytest.skip("mounting a small file system needs root")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], capture_output=True, text=True)
    if mounted.returncode:
        folder.rmdir()
        pytest.skip(f"this container may not mount: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
    folder.rmdir()


def _used(folder: Path) -> int:
    found = os.statvfs(folder)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def _fill(small_disk: Path) -> None:
    described = topology(size="1GiB")
    with fabrex.Fabric.create(described, "lab", directory=str(small_disk), timing=False) as fabric:
        node = fabric.attach("host0")
        kept = node.alloc(8 << 20)
        before = _used(small_disk)
        for attempt in (
            lambda: node.alloc(512 << 20),
            lambda: node.alloc(512 << 20, "named"),
            lambda: node.view(fabric.region_gva("host1", None, 1 << 20), 600 << 20),
        ):
            with pytest.raises(fabrex.OutOfFabricMemory):
                attempt()
        assert _used(small_disk) - before < 1 << 20, "what a refused request took it must give back"
        with pytest.raises(fabrex.FabricNotFound):
            fabric.buffer("named")
        assert [buffer.gva for buffer in fabric.buffers()] == [kept.gva]
        buffers = []
        with pytest.raises(fabrex.OutOfFabricMemory):
            while True:
                buffers.append(node.alloc(1 << 20, on="host1"))
        assert 30 < len(buffers) < 60
        with pytest.raises(fabrex.OutOfFabricMemory):  # not a bus error
            for offset in range(512 << 20, 600 << 20, 65536):
                node.store(fabric.region_gva("host0", None, offset), 1)
        node.store(kept.gva, 99)
        assert node.load(kept.gva) == 99
        for buffer in buffers:
            buffer.free()
        node.alloc(1 << 20, on="host1").free()
        with pytest.raises(fabrex.OutOfFabricMemory):
            node.write(fabric.region_gva("host1", None, 100 << 20), bytearray(120 << 20))


def test_a_full_file_system_is_an_error_and_nothing_leaks(small_disk: Path) -> None:
    empty = _used(small_disk)
    _fill(small_disk)
    gc.collect()  # pages live until the last mapping of them is gone
    assert _used(small_disk) == empty


def test_too_small_a_file_system_for_a_fabric(small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(b"\0" * (64 << 20))
    with pytest.raises(fabrex.OutOfFabricMemory):
        fabrex.Fabric.create(topology(), "lab", directory=str(small_disk))
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]
    (small_disk / "ballast").unlink()


def test_a_sparse_region_of_256_gib(place: Path) -> None:
    size = 256 << 30
    with fabrex.Fabric.create(topology(sizes={"host1": "256GiB"}), "lab", timing=False) as fabric:
        (file,) = place.glob("*@r1")
        assert file.stat().st_size >= size
        node = fabric.attach("host0")
        start = fabric.region_gva("host1")
        for offset in (0, 65536, size // 2, size - 64):
            assert node.load(start + offset) == 0
            assert node.load(start + offset, size=64) == bytes(64)
        assert node.read(start + size - (1 << 20), 1 << 20) == bytes(1 << 20)
        assert file.stat().st_blocks == 0, "reading what was never written commits nothing"
        node.store(start + size - 8, 0x1234)
        node.write(start + size // 2 - 3, b"abcdef")
        assert node.load(start + size - 8) == 0x1234
        assert node.read(start + size // 2 - 65536, 131072) == bytes(65533) + b"abcdef" + bytes(65533)
        committed = file.stat().st_blocks * 512
        assert 3 * 65536 <= committed <= 3 * 65536 + 16 * 4096  # pages of the bitmap, and on disk of the extents
        info = fabric.node_info("host1")["regions"][0]
        assert info["committed"] == 3 * 65536 and info["bytes"] == size
        buffer = node.alloc(1 << 20, on="host1")
        assert bytes(buffer.memory) == bytes(1 << 20)
        with pytest.raises(fabrex.OutOfFabricMemory):
            node.alloc(size, on="host1")
        with pytest.raises(fabrex.OutOfFabricMemory):
            node.alloc(size - 131072, on="host1")  # more than this machine has, whatever the region's size
        with pytest.raises(fabrex.AddressError):
            node.load(start + size)
        with pytest.raises(fabrex.AddressError):
            node.write(start + size - 4, b"12345")
        assert node.read(start + size - 4, 4) == (0x1234).to_bytes(8, "little")[4:]
        assert file.stat().st_blocks * 512 < 8 << 20


def test_committed_never_exceeds_a_region_of_odd_size(place: Path) -> None:
    with fabrex.Fabric.create(topology(size="132KiB"), "lab", timing=False) as fabric:
        node = fabric.attach("host0")
        end = fabric.region_gva("host0", None, (132 << 10) - 8)
        node.store(end, 1)
        node.store(fabric.region_gva("host0", None, 65536), 1)
        node.store(fabric.region_gva("host0"), 1)
        info = fabric.node_info("host0")["regions"][0]
        assert info["committed"] <= info["bytes"]


def test_another_users_fabric_is_denied(place: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    place.chmod(0o777)
    path = place / "fabrex@65534@lab"
    path.write_bytes(b"")
    path.chmod(0o600)
    said = run(
        """
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        try:
            fabrex.Fabric.open("lab")
        except fabrex.FabricDenied as error:
            say(error.code, isinstance(error, PermissionError))
        """
    )
    assert said == ["DENIED", True]
    path.unlink()


def test_limits_of_descriptors_are_an_error(place: Path) -> None:
    with persistent(topology(), timing=False):
        said = run(
            """
            import resource
            described = fabrex.Topology.preset("fabrex-pair")
            fabric = fabrex.Fabric.open("lab")
            node = fabric.attach("host0")
            kept = []
            resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
            try:
                while True:
                    kept.append(open("/dev/null"))
            except OSError:
                pass
            outcomes = []
            for attempt in (lambda: fabrex.Fabric.open("lab"), lambda: fabrex.Fabric.create(described, "other"),
                            lambda: node.store(fabric.gva("host1"), 1), lambda: node.alloc(4096)):
                try:
                    attempt()
                    outcomes.append("worked")
                except fabrex.FabricError as error:
                    outcomes.append(type(error).__name__)
            kept.clear()
            node.store(fabric.gva("host1"), 1)
            outcomes.append(node.load(fabric.gva("host1")))
            say(*outcomes)
            """
        )
        assert said[:2] == ["SystemRefused", "SystemRefused"] and said[-1] == 1
        assert not set(said[2:4]) & {"worked"} and "FabricNotFound" not in said


def test_the_offsets_that_these_tests_use(place: Path) -> None:
    with fabrex.Fabric.create(topology(3), "lab", timing=False) as fabric:
        path = control_path()
        assert table(path, "nodes")[2] == 4 and table(path, "links")[2] == 3
        assert table(path, "sessions")[3] == 1
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
        assert head(path)[BOOT_ID : BOOT_ID + 16].hex() == boot
        assert fabric.info()["nodes"] == 4


def test_file_size_limits_are_an_error(place: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    said = run(
        """
        import resource
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        try:
            fabrex.Fabric.create("fabrex-pair", "lab")
        except fabrex.OutOfFabricMemory as error:
            say("refused")
        """
    )
    assert said == "refused"
