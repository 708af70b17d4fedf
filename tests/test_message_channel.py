# SPDX-License-Identifier: Apache-2.0
"""The example of a message channel: order, flow control, several clients and peers, link flaps, restarts; and that its own
precautions are needed."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import topology

import fabrex

pytest_plugins = ["helpers"]

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "python" / "message_channel.py"


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("message_channel", EXAMPLE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["message_channel"] = module
    spec.loader.exec_module(module)
    return module


example = _load()


class Threads:
    """Threads whose exceptions are the test's."""

    def __init__(self) -> None:
        self._started: list[threading.Thread] = []
        self._failed: list[BaseException] = []

    def start(self, function: Callable[..., Any], *arguments: Any) -> None:
        def run() -> None:
            try:
                function(*arguments)
            except BaseException as error:
                self._failed.append(error)

        self._started.append(threading.Thread(target=run))
        self._started[-1].start()

    def join(self) -> None:
        for thread in self._started:
            thread.join(60)
        if self._failed:
            raise self._failed[0]

    @property
    def alive(self) -> bool:
        return any(thread.is_alive() for thread in self._started)


def connected(fabric: fabrex.Fabric, *names: str) -> dict[str, Any]:
    """Give each named host a transport with connected channels to all others."""
    transports = {name: example.Transport(fabric.attach(name)) for name in names}
    channels = {name: [transport.open(peer) for peer in names if peer != name] for name, transport in transports.items()}
    threads = Threads()
    for name in names:
        threads.start(lambda name=name: [channel.connect(20) for channel in channels[name]])
    threads.join()
    return transports


@pytest.fixture(params=["fabrex", "switchtec"])
def ends(place: Path, request: pytest.FixtureRequest) -> Iterator[tuple[fabrex.Fabric, Any, Any]]:
    with fabrex.Fabric.create(topology(ntb=request.param, windows="manual"), "lab") as fabric:
        transports = connected(fabric, "host0", "host1")
        yield fabric, transports["host0"].channels["host1"], transports["host1"].channels["host0"]


def serving(channel: Any, end: threading.Event) -> None:
    with channel.transport.changed:
        channel.transport.drive(end.is_set, 60, "the end")


def test_messages_arrive_in_order_on_each_queue(ends: tuple[fabrex.Fabric, Any, Any]) -> None:
    _fabric, near, far = ends
    threads, got = Threads(), [[] for _ in near.queues]  # type: ignore[var-annotated]
    sizes = [0, 1, 7, 8, 100, example.PAYLOAD]
    messages = [[bytes([q, i % 256]) * (sizes[i % len(sizes)] // 2) for i in range(120)] for q in range(example.QUEUES)]
    end = threading.Event()
    for q, queue in enumerate(near.queues):
        threads.start(lambda q=q, queue=queue: ([queue.send(m, 20) for m in messages[q]], queue.drain(20)))
        threads.start(lambda q=q: got[q].extend(far.queues[q].receive(20) for _ in messages[q]))
    threads.join()
    end.set()
    assert got == messages
    far.queues[0].send(b"and back", 5)
    assert near.queues[0].receive(5) == b"and back"
    with pytest.raises(ValueError, match="at most"):
        near.queues[0].send(bytes(example.PAYLOAD + 1))


def test_a_sender_is_held_back_and_loses_nothing(ends: tuple[fabrex.Fabric, Any, Any]) -> None:
    """With nobody who receives, what fits is taken and no more; a second client's queue goes on meanwhile."""
    _fabric, near, far = ends
    threads, end = Threads(), threading.Event()
    threads.start(serving, far, end)
    taken = 0
    with pytest.raises(TimeoutError):
        while True:
            near.queues[0].send(b"%d" % taken, 0.3)
            taken += 1
    threads.start(serving, near, end)  # credits come when the other side receives
    assert 2 * example.SLOTS <= taken <= 4 * example.SLOTS  # slots, and what either side keeps for its clients
    near.queues[1].send(b"other", 5)
    assert far.queues[1].receive(5) == b"other"
    assert [far.queues[0].receive(5) for _ in range(taken)] == [b"%d" % i for i in range(taken)]
    near.queues[0].drain(5)
    end.set()
    threads.join()


def transfer(fabric: fabrex.Fabric, near: Any, far: Any, folder: Path, flaps: int, seed: int, timeout: float = 30) -> str:
    """Move a file and numbers while the link flaps; returns the digest of what arrived, after comparing it."""
    chance, source = random.Random(seed), folder / "source.bin"
    source.write_bytes(chance.randbytes(200_000))
    (folder / "there").mkdir(exist_ok=True)
    threads, end, result = Threads(), threading.Event(), {}
    numbers = 150

    def receive() -> None:
        result["received"] = example.receive_file(far.queues[0], folder / "there", timeout)[1]

    def count() -> None:
        result["numbers"] = [int(far.queues[1].receive(timeout)) for _ in range(numbers)]

    threads.start(lambda: result.update(sent=example.send_file(near.queues[0], source, timeout)))
    threads.start(lambda: ([near.queues[1].send(b"%d" % i, timeout) for i in range(numbers)], near.queues[1].drain(timeout)))
    threads.start(receive)
    threads.start(count)
    server = Threads()
    server.start(serving, far, end)
    link = next(iter(fabric.links.values()))
    for i in range(flaps):
        time.sleep(chance.uniform(0, 0.01))
        cut, mend = [(link.down, link.up), (near.ntb.link_disable, near.ntb.link_enable),
                     (far.ntb.link_disable, far.ntb.link_enable)][i % 3]  # fmt: skip
        cut()
        time.sleep(chance.choice([0, 0, 0.003]))
        mend()
    try:
        threads.join()
    finally:
        end.set()
        server.join()
    assert result["numbers"] == list(range(numbers))
    assert result["received"] == result["sent"]
    return str(result["sent"])


def test_a_file_arrives_intact_through_flaps(ends: tuple[fabrex.Fabric, Any, Any], tmp_path: Path) -> None:
    fabric, near, far = ends
    repeated = 0
    for seed in range(4):
        transfer(fabric, near, far, tmp_path, 9, seed)
        repeated += near.repeated
    assert near.renegotiations and far.renegotiations
    assert fabric.node_info("host1")["posted_dropped"] and repeated  # the flaps did harm that was mended


def test_without_repeating_it_would_fail(ends: tuple[fabrex.Fabric, Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: a channel that agrees anew and repeats nothing stops."""
    fabric, near, far = ends
    monkeypatch.setattr(example.Channel, "resume", lambda self: None)
    link = next(iter(fabric.links.values()))
    threads, end = Threads(), threading.Event()
    threads.start(serving, far, end)
    link.down()
    for i in range(4):
        near.queues[0].send(b"%d" % i, 5)
    link.up()
    with pytest.raises(TimeoutError):
        near.queues[0].drain(1)
    end.set()
    threads.join()


def test_three_hosts_do_not_meet_in_each_others_registers(place: Path) -> None:
    with fabrex.Fabric.create(topology(3), "lab", timing=False) as fabric:
        names = ["host0", "host1", "host2"]
        transports = connected(fabric, *names)
        threads, got = Threads(), {}  # type: ignore[var-annotated]
        end = threading.Event()
        for name in names:
            for peer in names:
                if peer == name:
                    continue
                out, back = transports[name].channels[peer].queues[0], transports[peer].channels[name].queues[0]
                pair = f"{name}>{peer}"
                threads.start(lambda out=out, pair=pair: ([out.send(f"{pair} {i}".encode(), 20) for i in range(60)], out.drain(20)))
                threads.start(lambda back=back, pair=pair: got.update({pair: [back.receive(20).decode() for _ in range(60)]}))
        server = Threads()
        for transport in transports.values():
            server.start(serving, next(iter(transport.channels.values())), end)
        try:
            threads.join()
        finally:
            end.set()
            server.join()
        assert got == {pair: [f"{pair} {i}" for i in range(60)] for pair in got} and len(got) == 6


def test_a_restarted_peer_is_told(ends: tuple[fabrex.Fabric, Any, Any]) -> None:
    _fabric, near, far = ends
    near.queues[0].send(b"1", 5)
    again = example.Channel(far.transport, "host0")  # what a new process would make
    far.transport.channels["host0"] = again
    again.say_hello()
    with pytest.raises(example.PeerRestarted):
        near.queues[0].receive(5)
    with pytest.raises(example.PeerRestarted):
        near.queues[0].send(b"2", 5)


def test_a_device_with_too_little_is_refused(place: Path) -> None:
    for profile, hosts in (("idt", 2), ("amd", 4), ("xeon-gen3", 2)):
        with fabrex.Fabric.create(topology(hosts, ntb=profile, windows="manual"), "lab", timing=False) as fabric:
            transport = example.Transport(fabric.attach("host0"))
            with pytest.raises((ValueError, MemoryError)):
                transport.open(f"host{hosts - 1}")


def test_the_program_itself(place: Path) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLE, "--bytes", "600000", "--flaps", "3"], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "arrived intact" in done.stdout
