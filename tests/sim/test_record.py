# SPDX-License-Identifier: Apache-2.0
"""What a real-time run asked of the fabric, asked again under the virtual clock: the same modelled times, to the picosecond."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest

import fabrex
import fabrex.sim


def traffic(node: Any, peer: str, rounds: int) -> None:
    """Scalars, bulk and flushes, as fast as they go."""
    gva = node.fabric.gva(peer)
    for i in range(rounds):
        node.store(gva + 8 * (i % 64), i)
        node.load(gva + 8 * (i % 64))
        node.fetch_add(gva, 1)
        node.compare_swap(gva + 8, i, i + 1)
        if i % 40 == 0:
            node.write(gva + 4096, bytes(20000))
            node.flush(peer)
            node.read(gva + 4096, 300)


@pytest.mark.parametrize("ordering", ["posted", "immediate", "adversarial"])
def test_replay_is_exact(ordering: str) -> None:
    """Two nodes at once, each in a thread, over links that they share."""
    with fabrex.Fabric.create("fabrex-pair", ordering=ordering, seed=5) as fabric:
        nodes = fabric.attach("host0"), fabric.attach("host1")
        with fabrex.sim.record(fabric) as recording:
            rounds = 30 if ordering == "adversarial" else 120  # whose delays are real here
            threads = [
                threading.Thread(target=traffic, args=(node, peer, rounds))
                for node, peer in zip(nodes, ("host1", "host0"), strict=True)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert len(recording.operations) >= 2 * 4 * rounds and not recording.incomplete
    assert len({operation.completes_ps - operation.issued_ps for operation in recording.operations if operation.kind == "load"}) > 1
    replay = fabrex.sim.replay(recording)
    assert replay.exact, "\n".join(replay.differences[:10])
    assert replay.replayed == [operation.times for operation in recording.operations]


def test_a_replay_that_differs_says_so() -> None:
    with fabrex.Fabric.create("fabrex-pair") as fabric:
        node = fabric.attach("host0")
        with fabrex.sim.record(fabric) as recording:
            traffic(node, "host1", 5)
    recording.topology["links"][0]["delay"] = "70ns"
    replay = fabrex.sim.replay(recording)
    assert not replay.exact and "recorded" in replay.differences[0]


CHILD = """
    import sys
    import fabrex, fabrex.sim
    sys.path.insert(0, {here!r})
    from test_record import traffic
    fabric = fabrex.Fabric.open({name!r}, directory={directory!r}, timeout=20)
    node = fabric.attach("host{rank}")
    node.barrier("ready", size=2)
    with fabrex.sim.record(fabric) as recording:
        node.barrier("go", size=2)
        traffic(node, "host{other}", 120)
        node.barrier("done", size=2)
    recording.save({path!r})
"""


def test_two_processes(tmp_path: Path) -> None:
    with fabrex.Fabric.create("fabrex-pair") as fabric:
        children = []
        for rank in (0, 1):
            program = textwrap.dedent(CHILD).format(
                here=str(Path(__file__).parent),
                name=fabric.name,
                directory=fabric.directory,
                rank=rank,
                other=1 - rank,
                path=str(tmp_path / f"{rank}"),
            )
            children.append(subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True))
        for child in children:
            _, errors = child.communicate(timeout=100)
            assert child.returncode == 0, errors
    recording = fabrex.sim.Recording.merge(*(fabrex.sim.Recording.load(tmp_path / str(rank)) for rank in (0, 1)))
    assert len(recording.operations) >= 2 * 4 * 120
    assert [event[0] for event in recording.events] == sorted(event[0] for event in recording.events)
    replay = fabrex.sim.replay(recording)
    assert replay.exact, "\n".join(replay.differences[:10])


def test_recordings_are_files(tmp_path: Path) -> None:
    with fabrex.Fabric.create("fabrex-pair") as fabric, fabric.attach("host0") as node:
        with fabrex.sim.record(fabric) as recording:
            node.store(fabric.gva("host1"), 1, ro=True)
            node.flush("host1")
        node.load(fabric.gva("host1"))  # not recorded
    recording.save(tmp_path / "recording")
    assert fabrex.sim.Recording.load(tmp_path / "recording") == recording
    assert [operation.kind for operation in recording.operations] == ["store", "flush"]
    assert recording.operations[0].attributes == 1
    (tmp_path / "other").write_bytes(b"\x93\x01\x02\x03")
    with pytest.raises(fabrex.InvalidArgument, match="no recording"):
        fabrex.sim.Recording.load(tmp_path / "other")
    with pytest.raises(fabrex.InvalidArgument, match="nothing"):
        fabrex.sim.replay(fabrex.sim.Recording())
    with pytest.raises(fabrex.InvalidArgument):
        fabrex.sim.Recording.merge(recording, fabrex.sim.Recording(instance=3))


def test_what_cannot_be_recorded() -> None:
    with fabrex.Fabric.create("fabrex-pair", timing=False) as fabric, pytest.raises(fabrex.InvalidArgument, match="timing"):
        fabrex.sim.record(fabric)
    with fabrex.Fabric.create("fabrex-pair") as fabric, fabric.attach("host0") as node:
        buffer = node.alloc(4096)
        with fabrex.sim.record(fabric) as recording:
            node.dma.copy(fabric.gva("host1"), buffer.gva, 4096).wait()
        assert recording.incomplete
