# SPDX-License-Identifier: Apache-2.0
"""The pytest plugin, seen as its users see it: small test projects, run by pytest, and what their reports say."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fabrex

# Projects that run inside this process share these modules with it, and do not import them again and again.
import fabrex.fabric
import fabrex.pytest_plugin._fixtures
import fabrex.pytest_plugin._run
from fabrex.pytest_plugin import NodeDied, NodeFailed, NodeTimeout, RemoteError
from fabrex.pytest_plugin._run import FabricUnderTest

ROOT = Path(__file__).resolve().parent.parent
SHARED_MEMORY = Path("/dev/shm")

COMMON = """
import os, signal, sys, time
import pytest

def consumer(node):
    print("waiting for the flag")
    return node.wait_until(node.fabric.gva("host0"), "!=", 0, timeout=20)

def producer(node, value=42):
    node.store(node.fabric.gva("host0"), value)
    return os.getpid()

def wait_for_ever(node):
    print("waiting")
    while True:
        time.sleep(1)

def kill_itself(node):
    print("last words", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inner runs choose their directory themselves, and know nothing of the workers of this one."""
    for name in ("FABREX_DIRECTORY", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_TESTRUNUID", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)


def said(result: pytest.RunResult) -> str:
    """Return all that a run printed."""
    return result.stdout.str() + result.stderr.str()


def state_of(pid: int | None) -> str:
    """Return a process's state as the kernel's letter; "X" if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def eventually(condition: Any, what: str) -> None:
    """Wait until it holds; fail after half a minute."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def records(path: Path) -> list[dict[str, Any]]:
    """Return what tests of a project wrote down."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


RECORD = """
import json
def record(**facts):
    with open(os.environ["RECORDS"], "a") as file:
        file.write(json.dumps(facts) + "\\n")
"""


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where tests of a project write facts down."""
    path = tmp_path / "records"
    monkeypatch.setenv("RECORDS", str(path))
    return path


# --- fabrics and programs ---------------------------------------------------------------------------------------------


def sees_argument(node: Any, *arguments: Any) -> tuple[str, tuple[Any, ...]]:
    return node.name, arguments


def swallow(node: Any, data: bytes) -> bytes:
    print("x" * 300_000)
    os.system("head -c 200000 /dev/zero | tr '\\0' y")
    return data[::-1]


def environment_of(node: Any) -> dict[str, str]:
    return {**os.environ, "cwd": os.getcwd(), "attached": fabrex.attach().name}


def stop_here(node: Any) -> None:
    print("stopping")
    os.kill(os.getpid(), signal.SIGSTOP)


def linger(node: Any) -> int:
    print("ready", flush=True)
    try:
        time.sleep(60)
    finally:
        print("not reached")
    return 0


def raise_link_down(node: Any) -> None:
    raise fabrex.LinkDown("the link is down", node=node.name)


class Unpicklable(Exception):
    def __init__(self, first: object, second: object) -> None:
        super().__init__(f"{first} and {second}")
        self.held = open(os.devnull)  # noqa: SIM115


def raise_unpicklable(node: Any) -> None:
    raise Unpicklable("one", "two")


def return_unpicklable(node: Any) -> Any:
    return open(os.devnull)


def exit_with(node: Any, code: Any) -> None:
    sys.exit(code)


def skip_here(node: Any) -> None:
    pytest.skip("no such device")


class Programs:
    @staticmethod
    def name_of(node: Any) -> str:
        return str(node.name)


def test_programs_get_their_arguments(fabrex_fabric: FabricUnderTest) -> None:
    results = fabrex_fabric.run({"host0": (sees_argument, 1), "host1": sees_argument, "host1/second": sees_argument}, args=("all",))
    assert results == {"host0": ("host0", (1, "all")), "host1": ("host1", ("all",)), "host1/second": ("host1", ("all",))}
    assert fabrex_fabric.run({"host1": Programs.name_of}) == {"host1": "host1"}


def test_much_data_and_much_output(fabrex_fabric: FabricUnderTest) -> None:
    data = os.urandom(3_000_000)
    run = fabrex_fabric.start({"host0": (swallow, data)})
    assert run.wait()["host0"] == data[::-1]
    assert run["host0"].output().count("x") == 300_000
    assert run["host0"].output().count("y") == 200_000


def test_a_node_has_the_environment_of_its_test(
    fabrex_fabric: FabricUnderTest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SAID_BY_THE_TEST", "yes")
    monkeypatch.chdir(tmp_path)
    found = fabrex_fabric.run({"host1": environment_of})["host1"]
    assert found["SAID_BY_THE_TEST"] == "yes"
    assert found["cwd"] == str(tmp_path)
    assert found["attached"] == "host1"
    assert (found["FABREX_FABRIC"], found["FABREX_NODE"]) == (fabrex_fabric.name, "host1")


def test_exceptions_keep_their_class(fabrex_fabric: FabricUnderTest) -> None:
    with pytest.raises(NodeFailed) as caught:
        fabrex_fabric.run({"host0": raise_link_down, "host1": raise_unpicklable})
    first, second = caught.value.exceptions["host0"], caught.value.exceptions["host1"]
    assert isinstance(first, fabrex.LinkDown)
    assert isinstance(first, ConnectionError)
    assert first.node == "host0"
    assert isinstance(second, RemoteError)
    assert "Unpicklable: one and two" in str(second)
    assert "raise fabrex.LinkDown" in str(caught.value)
    assert 'raise Unpicklable("one", "two")' in str(caught.value)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (return_unpicklable, "a TextIOWrapper, cannot be sent to the test"),
        ((exit_with, 3), "ended with status 3 without returning"),
        ((exit_with, "gone"), "ended with status 1 without returning"),
        ((sees_argument, iter), None),
    ],
)
def test_other_ends(fabrex_fabric: FabricUnderTest, program: Any, words: str | None) -> None:
    if words is None:
        assert fabrex_fabric.run({"host0": program})["host0"] == ("host0", (iter,))
        return
    with pytest.raises(NodeFailed, match=words):
        fabrex_fabric.run({"host0": program})


def test_exit_with_zero_is_success(fabrex_fabric: FabricUnderTest) -> None:
    assert fabrex_fabric.run({"host0": (exit_with, 0)}) == {"host0": None}


def test_a_skip_in_a_node_skips_the_test(fabrex_fabric: FabricUnderTest) -> None:
    with pytest.raises(pytest.skip.Exception, match="host0: no such device"):
        fabrex_fabric.run({"host0": skip_here})


def test_what_cannot_be_sent_is_said(fabrex_fabric: FabricUnderTest) -> None:
    def inner(node: Any) -> None:
        pass

    with pytest.raises(TypeError, match=r"is a lambda.*function of the module"):
        fabrex_fabric.run({"host0": lambda node: 1})
    with pytest.raises(TypeError, match="inner, is defined inside another function"):
        fabrex_fabric.run({"host0": inner})
    with (
        pytest.raises(TypeError, match="argument 2 of the program of host0, a TextIOWrapper"),
        open(os.devnull) as file,
    ):
        fabrex_fabric.run({"host0": (sees_argument, 1, file)})
    with pytest.raises(TypeError, match="give a function"):
        fabrex_fabric.run({"host0": 3})
    with pytest.raises(fabrex.FabricNotFound, match="no node 'host7'"):
        fabrex_fabric.run({"host7": sees_argument})
    with pytest.raises(NodeFailed, match="sw0: "):
        fabrex_fabric.run({"sw0": sees_argument, "host0": sees_argument})
    with pytest.raises(ValueError, match="no programs"):
        fabrex_fabric.run({})


def test_a_node_can_be_killed(fabrex_fabric: FabricUnderTest) -> None:
    run = fabrex_fabric.start({"host0": linger, "host1": linger})
    eventually(lambda: "ready" in run["host0"].output(), "host0 says nothing")
    assert run["host0"].alive
    run["host0"].kill()
    assert run["host0"].wait(10) == -signal.SIGKILL
    assert run["host0"].outcome == "killed by SIGKILL, as the test asked"
    run["host1"].kill(signal.SIGTERM)
    assert run.wait(10) == {"host0": None, "host1": None}
    with pytest.raises(NodeFailed) as caught:
        fabrex_fabric.run({"host0": _kill_itself, "host1": linger}, grace=0.1)
    died = caught.value.exceptions["host0"]
    assert isinstance(died, NodeDied)
    assert died.signal == signal.SIGKILL
    assert list(caught.value.exceptions) == ["host0"]  # host1 did nothing wrong


def _kill_itself(node: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_stopped_node_is_named_as_such(fabrex_fabric: FabricUnderTest) -> None:
    run = fabrex_fabric.start({"host0": stop_here})
    eventually(lambda: "stopping" in run["host0"].output(), "it says nothing")
    eventually(lambda: state_of(run["host0"].pid) == "T", "it does not stop")
    with pytest.raises(NodeFailed, match="The process is stopped") as caught:
        run.wait(timeout=0.1)
    assert isinstance(caught.value.exceptions["host0"], NodeTimeout)


def test_names_are_unique_and_seeds_are_kept(fabrex_factory: Any) -> None:
    made = [fabrex_factory("fabrex-pair", seed=seed) for seed in (1, 2, 3)]
    assert len({fabric.name for fabric in made}) == 3
    assert [fabric.info()["seed"] for fabric in made] == [1, 2, 3]
    assert not any(fabric.timing for fabric in made)
    assert {fabric.directory for fabric in made} == {os.environ["FABREX_DIRECTORY"]}


@pytest.mark.fabrex(topology="fabrex-pair", ordering="immediate", seed=11)
class TestMarkers:
    def test_of_the_class(self, fabrex_fabric: FabricUnderTest) -> None:
        assert (fabrex_fabric.ordering, fabrex_fabric.info()["seed"]) == ("immediate", 11)

    @pytest.mark.fabrex(seed=12, timing="on")
    def test_the_closest_wins(self, fabrex_fabric: FabricUnderTest) -> None:
        assert (fabrex_fabric.ordering, fabrex_fabric.info()["seed"], fabrex_fabric.timing) == ("immediate", 12, True)

    @pytest.mark.parametrize("fabrex_fabric", [{"seed": 13}, {"seed": 14, "ordering": "posted"}], indirect=True)
    def test_parameters_win(self, fabrex_fabric: FabricUnderTest) -> None:
        assert fabrex_fabric.info()["seed"] in (13, 14)


# --- reports ----------------------------------------------------------------------------------------------------------


def test_success_and_what_it_costs_others(pytester: pytest.Pytester, notes: Path) -> None:
    """A project's tests pass, nothing is left, and collection imports neither the core nor NumPy."""
    pytester.makepyfile(
        test_flag=COMMON
        + RECORD
        + """
@pytest.mark.fabrex(topology="fabrex-pair")
def test_flag(fabrex_fabric):
    assert fabrex_fabric.run({"host0": consumer, "host1": producer}, timeout=10)["host0"] == 42
    record(directory=fabrex_fabric.directory)

@pytest.mark.parametrize("value", [1, 2, 3])
def test_values(fabrex_fabric, value):
    assert fabrex_fabric.run({"host0": consumer, "host1": (producer, value)})["host0"] == value

@pytest.mark.fabrex(topology="mine.yaml")
def test_own_topology(fabrex_fabric):
    assert list(fabrex_fabric.topology.nodes) == ["a", "b"]

@pytest.mark.fabrex(colour="red")
def test_wrong_word(fabrex_fabric):
    pass
""",
        test_other="""
import sys
def test_first():  # runs before any fabric is made
    loaded = {"numpy", "fabrex._core", "fabrex.fabric", "fabrex.pytest_plugin._run", "yaml"} & set(sys.modules)
    assert not loaded
    assert "fabrex.pytest_plugin" in sys.modules
""",
    )
    pytester.path.joinpath("mine.yaml").write_text(
        "fabrex: 1\nname: mine\nnodes:\n  a: {kind: host, memory: {dram: 1MiB}}\n  b: {kind: host, memory: {dram: 1MiB}}\n"
        "links:\n  - {endpoints: [a:ntb0, b:ntb0], pcie: {gen: 4, lanes: 16}}\n"
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "test_other.py", "test_flag.py", "-W", "error")
    result.assert_outcomes(passed=6, errors=1)
    has = "topology, timing, ordering, seed, strict_errors, fidelity"
    result.stdout.fnmatch_lines([f"*the marker fabrex has {has}, and not colour*"])
    (fact,) = records(notes)
    assert f"fabrex-pytest-{os.getuid()}-main-" in fact["directory"]
    assert not Path(fact["directory"]).exists()


def test_a_report_says_which_node_said_what(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        COMMON
        + """
def reader(node):
    print("reading", file=sys.stderr)
    os.system("echo from a program")
    value = node.load(node.fabric.gva("host0"))
    assert value == 41, "what host1 stored"

def test_fails(fabrex_fabric):
    fabrex_fabric.run({"host0": reader, "host1": producer})

def test_hangs(fabrex_fabric):
    run = fabrex_fabric.start({"host0": wait_for_ever, "host1": producer})
    while "waiting" not in run["host0"].output() or run["host1"].alive:
        time.sleep(0.01)
    run.wait(timeout=0.1)

def test_dies(fabrex_fabric):
    fabrex_fabric.run({"host0": kill_itself, "host1": producer})
"""
    )
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(failed=3)
    text = said(result)
    fails, hangs, dies = re.split(r"\n_+ test_\w+ _+\n", text)[1:]
    for wanted in (
        "NodeFailed: host0: AssertionError: what host1 stored",
        "---- host0: raised AssertionError ----",
        'assert value == 41, "what host1 stored"',
        "== 41\n",
        "fabrex: nodes of ",
        "timing off, posted, seed 0",
        "raised AssertionError (exit status 1)",
        "host1  pid ",
        ": returned",
    ):
        assert wanted in fails, wanted
    assert re.search(r"^ +\d+\.\d{4} host0 ! reading$", fails, re.M)
    assert re.search(r"^ +\d+\.\d{4} host0 - from a program$", fails, re.M)
    assert fails.index("! reading") < fails.index("- from a program")
    for wanted in ("host0: NodeTimeout: still running after ", "stacks of its threads:", "in wait_for_ever", "host1  pid"):
        assert wanted in hangs, wanted
    assert "_reaper.py" not in hangs
    assert "NodeFailed: host0: killed by SIGKILL" in dies
    assert "host0 - last words" in dies


def test_what_a_test_leaves_is_an_error(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        COMMON
        + """
import subprocess
import fabrex

def leave_process(node):
    subprocess.Popen(["sleep", "1234"], start_new_session=True)

def fail(node):
    raise ValueError("unseen")

def test_process(fabrex_fabric):
    fabrex_fabric.run({"host0": leave_process})

def test_persistent():
    pass

def test_fabric(fabrex_fabric):
    fabrex.Fabric.create("fabrex-pair", "lab", persistent=True).close()

def test_running(fabrex_fabric):
    fabrex_fabric.start({"host0": wait_for_ever})

def test_unseen(fabrex_fabric):
    run = fabrex_fabric.start({"host0": fail})
    while run["host0"].alive:
        time.sleep(0.01)

def test_after(fabrex_fabric):
    assert fabrex.fabrics()[0]["name"] == fabrex_fabric.name
    assert len(fabrex.fabrics()) == 1
"""
    )
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=6, errors=4)
    result.stdout.fnmatch_lines(
        [
            "*a node left process * behind: sleep 1234",
            "*the test left fabric lab behind*",
            "*still running when the test ended*host0",
            "*a node failed, and the test did not wait for it:",
            "*ValueError: unseen*",
        ]
    )
    assert b"sleep\0001234\0" not in [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]


@pytest.mark.parametrize("mode", ["prepend", "importlib"])
def test_modules_that_cannot_be_imported(pytester: pytest.Pytester, mode: str) -> None:
    """Programs are found in test modules of any import mode, and so are the classes and helpers that they use."""
    pytester.makeini("[pytest]\npythonpath = src\n")
    files = {
        "src/mailbox_under_test.py": "def program(node, box):\n    return type(box).__name__, node.name\n",
        "tests/deep/test_boxes.py": """
import mailbox_under_test

class Box:
    pass

def echo(node, box):
    assert isinstance(box, Box)
    return box

def test_box(fabrex_fabric):
    assert isinstance(fabrex_fabric.run({"host0": (echo, Box())})["host0"], Box)

def test_helper(fabrex_fabric):
    assert fabrex_fabric.run({"host0": (mailbox_under_test.program, Box())})["host0"] == ("Box", "host0")

def test_assertion(fabrex_fabric):
    fabrex_fabric.run({"host0": (echo, 7)})
""",
    }
    for name, text in files.items():
        path = pytester.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", f"--import-mode={mode}", "tests")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*assert False", "*where False = isinstance(7, *Box*"])


# --- several processes of pytest, and killed ones ---------------------------------------------------------------------


@pytest.fixture
def lean(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Options of inner runs with workers: other plugins' imports cost more than the tests."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    return ("-p", "no:cacheprovider", "-p", "xdist", "-p", "fabrex.pytest_plugin", "-n", "2")


def test_workers_do_not_meet(pytester: pytest.Pytester, notes: Path, lean: tuple[str, ...]) -> None:
    """Names are unique, directories are private, and tests in real time run one at a time."""
    pytester.makepyfile(
        COMMON
        + RECORD
        + """
@pytest.mark.parametrize("number", range(4))
@pytest.mark.fabrex(timing="on")
def test_timed(fabrex_fabric, number):
    begin = time.monotonic()
    fabrex_fabric.run({"host0": consumer, "host1": producer})
    time.sleep(0.05)
    record(name=fabrex_fabric.name, directory=fabrex_fabric.directory, timing=fabrex_fabric.timing, begin=begin,
           end=time.monotonic())

@pytest.mark.parametrize("number", range(6))
def test_untimed(fabrex_factory, number):
    for fabric in (fabrex_factory(), fabrex_factory()):
        record(name=fabric.name, directory=fabric.directory, timing=fabric.timing)
    time.sleep(0.05)
"""
    )
    result = pytester.runpytest_subprocess(*lean)
    result.assert_outcomes(passed=10)
    found = records(notes)
    assert len({fact["name"] for fact in found}) == len(found) == 16
    assert len({fact["directory"] for fact in found}) == 2
    timed = sorted((fact["begin"], fact["end"]) for fact in found if fact["timing"])
    assert len(timed) == 4
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(timed))
    assert not any(Path(fact["directory"]).exists() for fact in found)


KILLED = (
    COMMON
    + RECORD
    + """
import subprocess

def with_daemon(node):
    child = subprocess.Popen(["sleep", "4321"], start_new_session=True)
    node.store(node.fabric.gva("host0"), child.pid)
    wait_for_ever(node)

def test_killed(fabrex_fabric):
    run = fabrex_fabric.start({"host0": wait_for_ever, "host1": with_daemon})
    daemon = fabrex_fabric.attach("host0").wait_until(fabrex_fabric.gva("host0"), "!=", 0, timeout=20)
    record(name=fabrex_fabric.name, directory=fabrex_fabric.directory, pids=[daemon, *(node.pid for node in run.values())],
           reaper=fabrex_fabric._session._process.pid)
    {end}

def test_other(fabrex_fabric):
    assert fabrex_fabric.run({"host0": consumer, "host1": producer})["host0"] == 42
"""
)


def nothing_left(fact: dict[str, Any]) -> None:
    """Wait until a killed run's processes and files are gone."""
    eventually(lambda: not any(state_of(pid) not in "XZ" for pid in fact["pids"]), "a node's process is left")
    eventually(lambda: state_of(fact["reaper"]) in "XZ", "the reaper is left")
    directory = Path(fact["directory"])
    assert not directory.exists() or not [path for path in directory.iterdir() if fact["name"] in path.name]


def test_a_killed_worker_leaves_nothing(pytester: pytest.Pytester, notes: Path, lean: tuple[str, ...]) -> None:
    pytester.makepyfile(KILLED.replace("{end}", "os.kill(os.getpid(), signal.SIGKILL)"))
    result = pytester.runpytest_subprocess(*lean)
    result.assert_outcomes(passed=1, failed=1)
    assert re.search(r"worker '?gw\d'? crashed", said(result))
    (fact,) = records(notes)
    nothing_left(fact)
    eventually(lambda: not Path(fact["directory"]).exists(), "the directory is left")


def test_a_killed_run_leaves_nothing_in_the_users_directory(
    pytester: pytest.Pytester, notes: Path, monkeypatch: pytest.MonkeyPatch, segments: Path
) -> None:
    """A directory that the user has set stays, and what others have there stays, too."""
    monkeypatch.setenv("FABREX_DIRECTORY", str(segments))
    pytester.makepyfile(KILLED.replace("{end}", "time.sleep(60)"))
    with fabrex.Fabric.create("fabrex-pair", "theirs", directory=str(segments)):
        process = pytester.popen(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "test_killed"], stdin=subprocess.DEVNULL
        )
        try:
            eventually(lambda: records(notes), "the test does not start")
        finally:
            process.kill()
            process.communicate()
        (fact,) = records(notes)
        assert fact["directory"] == str(segments)
        nothing_left(fact)
        assert {entry["name"] for entry in fabrex.fabrics(str(segments))} == {"theirs"}


@pytest.fixture
def segments() -> Iterator[Path]:
    """A directory of the user's choice."""
    import tempfile

    path = Path(tempfile.mkdtemp(prefix="fabrex-test-", dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None))
    yield path
    assert not list(path.iterdir())
    path.rmdir()


def test_abandoned_directories_are_removed(pytester: pytest.Pytester) -> None:
    """What a run left when even its reaper was killed is removed by the next one; a living run's is not."""
    import fcntl

    begin = SHARED_MEMORY / f"fabrex-pytest-{os.getuid()}-"
    dead, living = Path(f"{begin}gone-{os.getpid()}"), Path(f"{begin}here-{os.getpid()}")
    for path in (dead, living):
        path.mkdir()
        (path / ".lock").touch()
        (path / "fabrex@0@x").touch()
    try:
        with open(living / ".lock", "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            pytester.makepyfile("def test_one(fabrex_fabric):\n    pass\n")
            pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)
        assert not dead.exists()
        assert living.exists()
    finally:
        shutil.rmtree(living)
        shutil.rmtree(dead, ignore_errors=True)


def test_the_example_project(pytester: pytest.Pytester) -> None:
    """The template repository passes as it is."""
    shutil.copytree(ROOT / "examples" / "pytest-project", pytester.path / "project")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "2"],
        cwd=pytester.path / "project",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert run.returncode == 0, run.stdout + run.stderr
