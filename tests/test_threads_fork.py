# SPDX-License-Identifier: Apache-2.0
"""Threads, fork, signals and the end of handles: errors or results, never a crash and never a hang."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Child, eventually, persistent, run, topology

import fabrex

pytest_plugins = ["helpers"]

Start = Callable[..., Child]


def test_two_threads_on_one_handle_count_exactly(place: Path) -> None:
    for timing in (False, True):
        with fabrex.Fabric.create(topology(), "lab", timing=timing) as fabric, fabric.attach("host0") as node:
            gva, count, wrong = fabric.gva("host1"), 2000, []

            def work(number: int, node: fabrex.Node = node, gva: int = gva, count: int = count, wrong: list[str] = wrong) -> None:
                try:
                    for i in range(count):
                        node.fetch_add(gva, 1)
                        node.fetch_add(gva + 8, 2, size=4)
                        while (old := node.load(gva + 64)) != node.compare_swap(gva + 64, old, old + 1):
                            pass
                        if i % 100 == 0:
                            mine = gva + 4096 * (number + 1)
                            node.write(mine, bytes([number]) * 1000)
                            if node.read(mine, 1000) != bytes([number]) * 1000:
                                wrong.append("torn")
                except BaseException as error:
                    wrong.append(repr(error))
                    raise

            threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
            assert not wrong
            assert node.load(gva) == 2 * count and node.load(gva + 64) == 2 * count
            assert node.load(gva + 8, size=4) == 4 * count


def test_a_node_works_in_a_thread_that_did_not_attach_it(place: Path) -> None:
    with fabrex.Fabric.create(topology(), "lab", timing=False) as fabric:
        nodes: list[fabrex.Node] = []
        thread = threading.Thread(target=lambda: nodes.append(fabric.attach("host0")))
        thread.start()
        thread.join(10)
        (node,) = nodes
        node.store(fabric.gva("host1"), 5)
        assert node.load(fabric.gva("host1")) == 5
        node.ntb.windows[1].clear_translation()  # the thread whose handle it was is gone
        node.ntb.windows[1].set_translation("host1", 0, 16 << 20)
        assert node.load(fabric.gva("host1")) == 5
        node.close()


def test_many_short_threads(place: Path) -> None:
    with fabrex.Fabric.create(topology(), "lab", timing=False) as fabric, fabric.attach("host0") as node:
        for _ in range(30):
            threads = [threading.Thread(target=node.fetch_add, args=(fabric.gva("host1"), 1)) for _ in range(10)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(10)
        assert node.load(fabric.gva("host1")) == 300


def test_closing_under_a_thread_that_waits(place: Path) -> None:
    for what in ("node", "fabric"):
        fabric = fabrex.Fabric.create(topology(delay="500ms"), "lab", timing=True)
        node = fabric.attach("host0")
        outcomes: list[object] = []

        def wait(node: fabrex.Node = node, gva: int = fabric.gva("host1"), outcomes: list[object] = outcomes) -> None:
            try:
                outcomes.append(node.load(gva))
            except fabrex.FabricError as error:
                outcomes.append(type(error))

        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.05)
        (node if what == "node" else fabric).close()
        thread.join(10)
        assert not thread.is_alive() and outcomes == [fabrex.ClosedHandle]
        fabric.close()


# ---- fork ----------------------------------------------------------------------------------------------------------

FORKED = """
    import gc
    fabric = fabrex.Fabric.open("lab")
    node = fabric.attach("host0")
    gva = fabric.gva("host1")
    node.store(gva, 5)
    buffer = node.alloc(4096, "box")
    view = buffer.memory
    operation = node.begin("load", gva)
    stop = threading.Event()
    def work():
        while not stop.is_set():
            node.fetch_add(gva + 64, 1)
    thread = threading.Thread(target=work)
    if arguments[0] == "threads":
        thread.start()
    for turn in range(5):
        child = os.fork()
        if not child:
            outcomes = []
            for attempt in (lambda: node.load(gva), lambda: node.store(gva, 9), lambda: node.read(gva, 8),
                            lambda: node.write(gva, b"x"), lambda: node.fetch_add(gva, 1), lambda: node.flush(),
                            lambda: node.begin("load", gva),
                            lambda: operation.wait(), lambda: fabric.put("k", b""), lambda: fabric.get("k"),
                            lambda: fabric.attach("host1"), lambda: buffer.free(), lambda: node.alloc(64), lambda: fabric.info(),
                            lambda: node.barrier("b"), lambda: next(iter(fabric.links.values())).down(),
                            lambda: node.ntb.windows[1].clear_translation(), lambda: node.wait_until(gva, "==", 5)):
                try:
                    attempt()
                    outcomes.append("worked")
                except fabrex.ClosedHandle:
                    pass
                except BaseException as error:
                    outcomes.append(repr(error))
            again = fabrex.Fabric.open("lab")
            with again.attach("host0") as client:
                outcomes += [] if client.load(gva) == 5 and not client.owner else ["the child's own handle does not work"]
            again.close()
            view[0] = turn
            del view, buffer, operation
            node.close()
            fabric.close()
            del node, fabric
            gc.collect()
            if outcomes:
                sys.stderr.write(repr(outcomes))
            os._exit(1 if outcomes else 0)
        _, status = os.waitpid(child, 0)
        assert status == 0, f"the child ended with {status}"
    stop.set()
    if thread.ident:
        thread.join()
    assert node.load(gva) == 5 and view[0] == 4 and node.owner
    say("parent unharmed")
    hear()
"""


@pytest.mark.parametrize("how", ["alone", "threads"])
def test_fork(place: Path, children: Start, how: str) -> None:
    with persistent(topology(), timing=False) as fabric:
        child = children(FORKED, how)
        child.expect("parent unharmed")
        assert fabric.info()["processes"] == 2
        assert fabric.node_info("host0")["owner_pid"] == child.pid and fabric.node_info("host0")["state"] == "powered"


def test_the_death_of_a_parent_is_noticed_though_its_child_lives(place: Path, children: Start) -> None:
    with persistent(topology(), timing=False) as fabric:
        node = fabric.attach("host1")
        parent = children(
            """
            fabric = fabrex.Fabric.open("lab")
            node = fabric.attach("host0")
            child = os.fork()
            if not child:
                os.close(1); os.close(2)
                time.sleep(20)
                os._exit(0)
            say(child)
            time.sleep(100)
            """
        )
        grandchild = parent.hear()
        try:
            parent.kill()

            def lost() -> bool:
                return bool(fabric.node_info("host0")["state"] == "lost")

            assert eventually(lost, 2)
            os.kill(grandchild, 0)
            with pytest.raises(fabrex.PeerLost):
                node.load(fabric.gva("host0"))
        finally:
            os.kill(grandchild, signal.SIGKILL)


def test_subprocesses_do_not_keep_a_session_alive(place: Path, children: Start) -> None:
    with persistent(topology(), timing=False) as fabric:
        parent = children(
            """
            import subprocess
            fabric = fabrex.Fabric.open("lab")
            node = fabric.attach("host0")
            child = subprocess.Popen(["sleep", "20"], close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            say(child.pid)
            time.sleep(100)
            """
        )
        sleeper = parent.hear()
        parent.kill()
        assert eventually(lambda: fabric.node_info("host0")["state"] == "lost", 2)
        os.kill(sleeper, signal.SIGKILL)


# ---- signals -------------------------------------------------------------------------------------------------------

# Each waits for what never comes, or for a link of four seconds and more; Ctrl-C ends it, and everything works afterwards.
INTERRUPTED = """
    fabric = fabrex.Fabric.open("lab")
    node = fabric.attach("host0")
    near, far = fabric.gva("host0"), fabric.gva("host1")
    waits = {
        "wait_until": lambda: node.wait_until(near, "==", 1),
        "wait_until timeout": lambda: node.wait_until(near, "==", 1, timeout=100),
        "barrier": lambda: node.barrier("b"),
        "get": lambda: fabric.get("never", timeout=None),
        "buffer": lambda: fabric.buffer("never", timeout=100),
        "operation": lambda: node.begin("load", far).wait(),
        "load": lambda: node.load(far),
        "fetch_add": lambda: node.fetch_add(far, 1),
        "wide load": lambda: node.load(far, size=64),
        "read": lambda: node.read(far, 100000),
        "remote wait_until": lambda: node.wait_until(far, "==", 1),
        "flush": lambda: (node.store(far, 1), node.flush()),
        "gather": lambda: node.gather([far] * 10, bytearray(80)),
        "full queue": lambda: [node.store(far, i) for i in range(1100)],
        "open": lambda: fabrex.Fabric.open("nobody", timeout=100),
    }
    wait = waits[arguments[0]]
    say("waits")
    try:
        wait()
        say("came back by itself")
    except KeyboardInterrupt:
        say("interrupted")
    node.store(near + 64, 5)
    assert node.load(near + 64) == 5
    fabric.put("key", b"value")
    assert fabric.get("key") == b"value"
    node.alloc(64).free()
    say("usable")
"""


WAITS = [
    "wait_until", "wait_until timeout", "barrier", "get", "buffer", "operation", "load", "fetch_add", "wide load", "read", "open",
    "remote wait_until",
    "flush",
    "gather",
    "full queue",
]  # fmt: skip


@pytest.mark.parametrize("name", WAITS)
def test_ctrl_c(place: Path, children: Start, name: str) -> None:
    with persistent(topology(delay="1s", dilation=5), timing=True):
        child = children(INTERRUPTED, name)
        child.expect("waits")
        time.sleep(0.15)
        start = time.monotonic()
        child.signal(signal.SIGINT)
        child.expect("interrupted", timeout=3)
        took = time.monotonic() - start
        child.expect("usable")
        assert took < 1, f"it took {took:.3f} s to notice"


def test_a_barrier_can_be_tried_again_after_ctrl_c(place: Path, children: Start) -> None:
    with fabrex.Fabric.create(topology(), "lab") as fabric:
        child = children(
            """
            fabric = fabrex.Fabric.open("lab")
            node = fabric.attach("host0")
            say("waits")
            try:
                node.barrier("b")
            except KeyboardInterrupt:
                say("interrupted")
            node.barrier("b", timeout=10)
            say("through")
            """
        )
        child.expect("waits")
        time.sleep(0.1)
        child.signal(signal.SIGINT)
        child.expect("interrupted")
        fabric.attach("host1").barrier("b", timeout=10)
        child.expect("through", timeout=5)


def test_a_signal_handler_may_use_the_fabric(place: Path, children: Start) -> None:
    with fabrex.Fabric.create(topology(), "lab", timing=True) as fabric:
        node = fabric.attach("host1")
        child = children(
            """
            fabric = fabrex.Fabric.open("lab")
            node = fabric.attach("host0")
            count = 0
            def handler(*_):
                global count
                count += 1
                node.fetch_add(fabric.gva("host1"), 1)
                node.store(fabric.gva("host0"), count)
            signal.signal(signal.SIGUSR1, handler)
            say("waits")
            node.wait_until(fabric.gva("host0"), ">=", 20)
            say(count)
            """
        )
        child.expect("waits")
        for i in range(20):
            child.signal(signal.SIGUSR1)
            assert eventually(lambda want=i + 1: node.load(fabric.gva("host1")) >= want)
        child.expect(20)


# ---- the end of handles --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timing", [False, True], ids=["untimed", "timed"])
def test_everything_after_close_is_a_closed_handle(place: Path, timing: bool) -> None:
    fabric = fabrex.Fabric.create(topology(), "lab", timing=timing)
    node, other = fabric.attach("host0"), fabric.attach("host1")
    gva = fabric.gva("host1")
    buffer, operation, window = node.alloc(64), node.begin("load", gva), node.ntb.windows[0]
    node.close()
    node.close()
    assert node.closed and "closed" in repr(node)
    of_node = [
        lambda: node.load(gva), lambda: node.load(gva, size=64), lambda: node.store(gva, 1), lambda: node.fetch_add(gva, 1),
        lambda: node.swap(gva, 1), lambda: node.compare_swap(gva, 1, 1), lambda: node.read(gva, 8), lambda: node.write(gva, b"x"),
        lambda: node.gather([gva], bytearray(8)), lambda: node.scatter([gva], bytes(8)), lambda: node.flush(),
        lambda: node.fence(), lambda: node.drain(), lambda: node.alloc(64), lambda: node.view(gva, 8), lambda: node.progress(),
        lambda: node.barrier("b"), lambda: node.wait_until(gva, "==", 0), lambda: node.begin("load", gva),
        lambda: node.estimate("load", gva),
    ]  # fmt: skip
    for attempt in of_node:
        with pytest.raises(fabrex.ClosedHandle):
            attempt()
    if timing:
        with pytest.raises(fabrex.ClosedHandle):
            operation.wait()
    assert other.load(gva) == 0
    fabric.close()
    fabric.close()
    assert fabric.closed and other.closed
    of_fabric = [
        lambda: other.load(gva), lambda: fabric.attach("host0"), lambda: fabric.put("k", b""), lambda: fabric.get("k"),
        lambda: fabric.buffer("b"), lambda: fabric.buffers(), lambda: fabric.info(), lambda: fabric.nodes(),
        lambda: fabric.now_ps, lambda: fabric.gva("host0"), lambda: fabric.fidelity(), lambda: fabric.reap(),
        lambda: buffer.memory, lambda: buffer.free(), lambda: window.size, lambda: window.clear_translation(),
        lambda: next(iter(fabric.links.values())).info(), lambda: next(iter(fabric.links.values())).down(),
        lambda: other.ntb.windows[0],
    ]  # fmt: skip
    for attempt in [*of_node, *of_fabric]:
        with pytest.raises(fabrex.ClosedHandle):
            attempt()
    repr(fabric), repr(node), repr(buffer), buffer.handle()


def test_a_handle_after_close_is_not_called_garbage(place: Path) -> None:
    fabric = fabrex.Fabric.create(topology(), "lab")
    handle = fabric.attach("host0").alloc(64).handle()
    fabric.close()
    with pytest.raises(fabrex.ClosedHandle):
        fabric.from_handle(handle)


def test_close_in_any_order_and_from_any_thread(place: Path) -> None:
    fabric = fabrex.Fabric.create(topology(4), "lab", timing=True)
    nodes = [fabric.attach(f"host{i}") for i in range(4)]
    threads = [threading.Thread(target=handle.close) for handle in (*nodes, fabric, *nodes, fabric)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads) and fabric.closed


def test_a_node_that_nobody_attached(place: Path) -> None:
    empty = fabrex.Node.__new__(fabrex.Node)
    with pytest.raises(fabrex.ClosedHandle):
        fabrex.Node.__mro__[1].load(empty, 0)


def test_a_node_cannot_be_pickled(place: Path) -> None:
    import pickle

    with fabrex.Fabric.create(topology(), "lab") as fabric, pytest.raises(TypeError, match="fabric"):
        pickle.dumps(fabric.attach("host0"))


def test_handles_at_interpreter_exit(place: Path) -> None:
    """In globals, in cycles, in threads that still run: the interpreter ends cleanly."""
    said = run(
        """
        import atexit
        fabric = fabrex.Fabric.create("fabrex-pair", "lab")
        node = fabric.attach("host0")
        view = node.view(fabric.gva("host1"), 64)
        cycle = [fabric, node, view]
        cycle.append(cycle)
        operation = node.begin("load", fabric.gva("host1"))
        def work():
            while True:
                try:
                    node.fetch_add(fabric.gva("host1"), 1)
                except fabrex.FabricError:
                    pass
        threading.Thread(target=work, daemon=True).start()
        atexit.register(lambda: node.load(fabric.gva("host1")))
        say("exits")
        """
    )
    assert said == "exits"
    for path in place.iterdir():  # a daemon thread's references may keep the handles to the end
        path.unlink()
