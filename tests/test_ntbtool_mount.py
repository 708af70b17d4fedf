# SPDX-License-Identifier: Apache-2.0
"""The drivers' files as a mount: through the kernel, and with the kernel's own script.

The script (tools/testing/selftests/ntb/ntb_test.sh of Linux) has a licence of its own and is not part of this project:
FABREX_NTB_TEST_SH names one version of it, or several with colons between them.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers import eventually, persistent, topology
from ntbtool_steps import Mounted, Pair

import fabrex
from fabrex.ntbtool.mount import is_mounted, missing

pytest_plugins = ["helpers"]

LACK = missing()
needs_fuse = pytest.mark.skipif(bool(LACK), reason=LACK)
SCRIPTS = [path for path in os.environ.get("FABREX_NTB_TEST_SH", "").split(":") if path]
NEAR, FAR = "0000:03:00.0", "0001:03:00.0"


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


@dataclass
class Mount:
    """A mount, and the process that serves it."""

    place: Path
    process: subprocess.Popen[str]
    document: dict[str, Any]

    @property
    def files(self) -> Mounted:
        return Mounted(self.place)

    def end(self) -> None:
        """End it; it must end well."""
        if self.process.poll() is None:
            self.process.terminate()
        _out, err = self.process.communicate(timeout=30)
        assert self.process.returncode == 0, err
        assert eventually(lambda: not is_mounted(str(self.place)))


@contextmanager
def mounted(command: list[str]) -> Iterator[Mount]:
    """Run a command that mounts at the place that ends its words."""
    with tempfile.TemporaryDirectory(prefix="fabrex-ntb-") as place:
        process = subprocess.Popen(
            [word.replace("PLACE", place) for word in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_die_with_parent,
        )
        try:
            assert process.stdout is not None
            text = ""
            while not text.endswith(("\n}\n", "mounted\n")):
                line = process.stdout.readline()
                assert line, process.communicate()[1]
                text += line
            assert is_mounted(place)
            yield Mount(Path(place), process, json.loads(text) if text.startswith("{") else {})
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()
            assert eventually(lambda: not is_mounted(place))


def tool(*options: str) -> list[str]:
    return [sys.executable, "-m", "fabrex.cli", "ntb-tool", "PLACE", "--fabric", "lab", "--json", "--delay-ms", "20", *options]


@contextmanager
def lab(profile: str = "fabrex", hosts: int = 2, *options: str, timing: bool = True, size: str = "16MiB") -> Iterator[Mount]:
    with persistent(topology(hosts, ntb=profile, windows="manual", size=size), timing=timing), mounted(tool(*options)) as mount:
        yield mount


# ---- through the kernel -----------------------------------------------------------------------------------------------


@needs_fuse
@pytest.mark.parametrize("profile", ["fabrex", "idt", "xeon-gen3"])
def test_the_steps_through_a_mount(place: Path, profile: str) -> None:
    with lab(profile, 2, "--windows", "8") as mount:
        assert [(d["device"], d["node"], d["port"], d["peers"]) for d in mount.document["devices"]] == [
            (NEAR, "host0", 0, ["host1"]),
            (FAR, "host1", 1, ["host0"]),
        ]
        assert Pair(mount.files, NEAR, FAR).run() == list(Pair.STEPS)
        assert Pair(mount.files, FAR, NEAR).run() == list(Pair.STEPS)
        mount.end()


@needs_fuse
def test_what_shells_and_tools_do(place: Path) -> None:
    with lab("fabrex", 2, "--windows", "2") as mount:
        tree = mount.place / "ntb_tool" / NEAR

        def sh(line: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(["bash", "-c", line], cwd=tree, capture_output=True, text=True, timeout=60, check=False)

        assert sh("cat port peer0/port").stdout == "0\n1\n"
        assert sh("echo 0x2a > peer0/spad3 && cat peer0/spad3").stdout == "0x2a\n"
        assert "Invalid argument" in sh("echo x > db").stderr
        assert "Numerical result out of range" in sh("echo 0x100000000 > spad0").stderr
        assert "Permission denied" in sh("echo x > new").stderr and "No such file" in sh("cat new").stderr
        assert sh("rm port").returncode and sh("mkdir d").returncode and sh("mv port b").returncode and (tree / "port").exists()
        assert sh("echo 4096 > peer0/mw_trans1; dd if=/dev/urandom of=peer0/mw1; stat -c %s peer0/mw1").stdout == "4096\n"
        assert sh("head -c 16 peer0/mw1 | wc -c; tail -c +4090 peer0/mw1 | wc -c").stdout.split() == ["16", "7"]
        first = (tree / "peer0" / "mw1").read_bytes()
        assert len(first) == 4096 and first != bytes(4096)
        assert sh("head -c 1 port").stdout == "0" and sh("cat link_event").returncode
        assert mount.document["fabric"] == "lab"
        mount.end()


@needs_fuse
def test_a_blocked_write_ends_with_its_writer(place: Path) -> None:
    """A signal ends it, as it does in the kernel; a killed writer is gone at once; CPU is not used meanwhile."""
    with lab() as mount:
        path = mount.place / "ntb_tool" / NEAR / "db_event"
        for number, code in ((signal.SIGINT, -signal.SIGINT), (signal.SIGKILL, -signal.SIGKILL)):
            writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path), "7"], stdout=subprocess.PIPE, text=True)
            assert writer.stdout is not None and writer.stdout.readline() == "writes\n"
            time.sleep(0.1)
            before = _cpu(mount.process.pid)
            time.sleep(0.4)
            assert _cpu(mount.process.pid) - before < 0.2 and writer.poll() is None
            writer.send_signal(number)
            assert writer.wait(10) == code
            writer.stdout.close()
        # Many at once do not keep others out.
        crowd = [subprocess.Popen(["sh", "-c", f"echo 0x5 > '{path}'"], stderr=subprocess.DEVNULL) for _ in range(40)]
        time.sleep(0.2)
        mount.files.write(f"ntb_tool/{FAR}/peer_db", "s 5\n")
        assert [writer.wait(20) for writer in crowd] == [0] * 40
        mount.end()


WRITER = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
file = os.open(sys.argv[1], os.O_WRONLY)
print("writes", flush=True)
os.write(file, sys.argv[2].encode())
"""


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@needs_fuse
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_mount_ends_with_its_process(place: Path, number: signal.Signals) -> None:
    """Also while somebody waits in it."""
    with lab() as mount:
        path = mount.place / "ntb_tool" / NEAR / "db_event"
        waiting = subprocess.Popen(["bash", "-c", f"echo 7 > '{path}'"], stderr=subprocess.PIPE, text=True)
        time.sleep(0.2)
        mount.process.send_signal(number)
        mount.process.wait(30)
        _out, err = waiting.communicate(timeout=30)
        assert waiting.returncode and re.search("Interrupted|not connected|aborted|abort|No such device", err), err
        assert eventually(lambda: not is_mounted(str(mount.place))) and os.listdir(mount.place) == []
        assert number == signal.SIGKILL or mount.process.returncode == 0


@needs_fuse
def test_unmounting_ends_the_process_and_gives_everything_back(place: Path) -> None:
    with persistent(topology(), timing=False) as fabric, mounted(tool()) as mount:
        mount.files.write(f"ntb_tool/{NEAR}/peer0/mw_trans1", "65536")
        assert len(fabric.buffers()) == 1
        subprocess.run(["fusermount3", "-u", str(mount.place)], check=True)
        assert mount.process.wait(30) == 0 and fabric.buffers() == []
        assert [node["owner_pid"] for node in fabric.nodes()] == [None, None]


@needs_fuse
def test_a_mount_whose_fabric_goes_down(place: Path) -> None:
    with lab() as mount:
        path = mount.place / "ntb_tool" / NEAR / "db_event"
        waiting = subprocess.Popen(["bash", "-c", f"echo 7 > '{path}'"], stderr=subprocess.PIPE, text=True)
        opened = os.open(mount.place / "ntb_tool" / NEAR / "port", os.O_RDONLY)
        time.sleep(0.1)
        with pytest.raises(fabrex.Busy):
            fabrex.Fabric.destroy("lab", str(place))
        fabrex.Fabric.destroy("lab", str(place), force=True)
        assert "No such device" in waiting.communicate(timeout=20)[1]
        for call in (
            lambda: os.read(opened, 10),
            lambda: mount.files.read(f"ntb_tool/{NEAR}/port"),
            lambda: mount.files.write(f"ntb_tool/{NEAR}/db", "c 1"),
            lambda: os.listdir(mount.place / "ntb_perf"),
        ):
            with pytest.raises(OSError) as caught:
                call()
            assert caught.value.errno == errno.ENODEV
        os.close(opened)
        mount.end()


@needs_fuse
def test_in_the_background(place: Path, tmp_path: Path) -> None:
    with persistent(topology(), timing=False):
        command = [sys.executable, "-m", "fabrex.cli", "ntb-tool", str(tmp_path), "--fabric", "lab", "--background"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # its output ends with it
        try:
            assert done.returncode == 0 and [line.split() for line in done.stdout.splitlines()][1:] == [
                [NEAR, "host0", "0", "host1"],
                [FAR, "host1", "1", "host0"],
            ], done.stderr
            assert (tmp_path / "ntb_tool" / NEAR / "port").read_text() == "0\n"
            again = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            assert again.returncode == 2 and "not empty" in again.stderr
        finally:
            subprocess.run(["fusermount3", "-u", str(tmp_path)], check=False)
        assert eventually(lambda: not is_mounted(str(tmp_path)))
        assert eventually(lambda: fabrex.Fabric.open("lab").node_info("host0")["owner_pid"] is None)


@needs_fuse
def test_the_modprobe_of_the_how_to(place: Path, tmp_path: Path) -> None:
    """Parameters that a script gives to a module arrive."""
    page = (Path(__file__).parent.parent / "docs" / "how-to" / "kernel-scripts.md").read_text(encoding="utf-8")
    shim = tmp_path / "modprobe"
    shim.write_text(re.findall(r"```sh\n(#!/bin/sh\n# modprobe.*?)```", page, re.S)[0])
    shim.chmod(0o755)
    with lab() as mount:
        for words in ("ntb_tool", "ntb_perf total_order=20 max_mw_size=0 use_dma=1", "-r ntb_perf", "ntb_pingpong delay_ms=7"):
            subprocess.run([shim, *words.split()], env=os.environ | {"DEBUGFS": str(mount.place)}, check=True)
        read = mount.files.read
        assert (read(f"ntb_perf/{NEAR}/total_order"), read(f"ntb_perf/{NEAR}/use_dma")) == ("20\n", "Y\n")
        assert read("module/ntb_pingpong/parameters/delay_ms") == "7\n"
        mount.files.write(f"ntb_perf/{NEAR}/run", "0\n")
        assert "copied 1048576 bytes" in read(f"ntb_perf/{NEAR}/run")
        mount.end()


def test_what_is_refused(place: Path, tmp_path: Path) -> None:
    def refused(code: int, *words: str, env: dict[str, str] | None = None) -> str:
        command = [sys.executable, "-m", "fabrex.cli", "ntb-tool", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=os.environ | (env or {}))
        assert done.returncode == code and done.stdout == "", done
        assert done.stderr.startswith("fabricctl: ") and done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    assert "--fabric" in refused(2, str(tmp_path))
    assert "--total-order" in refused(2, str(tmp_path), "--fabric", "lab", "--total-order", "41")
    assert "--windows" in refused(2, str(tmp_path), "--fabric", "lab", "--windows", "0")
    assert "fuse3" in refused(1, str(tmp_path), "--fabric", "lab", env={"PATH": "/nowhere"}) or LACK
    if not LACK:
        assert "no fabric" in refused(3, str(tmp_path), "--fabric", "lab")
        with persistent(topology(), timing=False):
            assert "mkdir" in refused(2, str(tmp_path / "none"), "--fabric", "lab")
            (tmp_path / "file").touch()
            assert "not empty" in refused(2, str(tmp_path), "--fabric", "lab", "--background")
            assert "no directory" in refused(2, str(tmp_path / "file"), "--fabric", "lab")


# ---- the kernel's script ----------------------------------------------------------------------------------------------


@pytest.fixture(params=SCRIPTS or [None], ids=[Path(path).name for path in SCRIPTS] or ["none"])
def script(request: pytest.FixtureRequest) -> Path:
    if request.param is None:
        pytest.skip("FABREX_NTB_TEST_SH names no ntb_test.sh of Linux; see docs/how-to/kernel-scripts.md")
    if LACK:
        pytest.skip(LACK)
    if os.geteuid():
        pytest.skip("the script must be run as root")
    return Path(request.param)


@dataclass
class Outcome:
    """What the script said."""

    code: int
    passed: int
    unsupported: int
    text: str


def play(
    script: Path, mount: Mount, tmp_path: Path, near: str = NEAR, far: str = FAR, *options: str, patience: float = 170
) -> Outcome:
    """Run the script as it is. Nothing loads modules here; and it sleeps less, as the doorbells are answered sooner."""
    for name, text in (("modprobe", "exit 0"), ("sleep", "exec /bin/sleep 0.8")):
        shim = tmp_path / name
        shim.write_text(f"#!/bin/sh\n{text}\n")
        shim.chmod(0o755)
    environment = os.environ | {"DEBUGFS": str(mount.place), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    process = subprocess.Popen(
        ["bash", str(script), near, far, *options],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        text, _ = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        text, _ = process.communicate()
    passed, unsupported = (len(re.findall(rf"^  {word}$", text, re.M)) for word in ("Passed", "Unsupported"))
    return Outcome(process.returncode, passed, unsupported, text)


def wanted(script: Path, has: dict[str, int], windows: int, dma: bool = False) -> tuple[int, int]:
    """How often the script must say Passed and Unsupported: of each test in both directions, of windows each."""
    text = script.read_text()
    passed = 2 + 2 + 1 + (4 if dma else 2)  # links, doorbells, ping-pong, performance
    passed += "port_test()" in text
    if "message_test()" not in text:  # the older driver: scratchpads always, six windows at most
        return passed + 2 + 2 * min(windows, 6), 0
    passed += 2 * windows + (3 if "msi_test()" in text else 0)
    passed += 2 * bool(has["spads"]) + 2 * bool(has["messages"])
    return passed, 4 - 2 * bool(has["spads"]) - 2 * bool(has["messages"])


def fits(script: Path, profile: str) -> str:
    """Why this version of the script cannot pass on this device, nor on silicon; nothing if it can."""
    text = script.read_text()
    if "message_test()" in text:
        return ""
    if profile == "idt":
        return "the older driver needs scratchpads"
    if '"c 0xFFFFFFFF"' in text and profile not in ("fabrex", "xeon-gen3", "xeon-gen4"):
        return "it clears 32 doorbell bits whether they are there or not"
    return ""


@pytest.mark.parametrize("profile", ["fabrex", "xeon-gen3", "xeon-gen4", "amd", "idt", "switchtec", "epf"])
def test_the_kernels_script(place: Path, tmp_path: Path, script: Path, profile: str) -> None:
    if why := fits(script, profile):
        pytest.skip(why)
    limit = 8
    with lab(profile, 2, "--windows", str(limit), "--total-order", "24", size="32MiB") as mount:
        with fabrex.Fabric.open("lab") as fabric, fabric.attach("host0", "client") as node:
            has = {"spads": node.ntb.spad_count(), "messages": node.ntb.msg_count()}
            windows = min(limit, len(node.ntb.windows))
        found = play(script, mount, tmp_path, NEAR, FAR, "-d")
        assert found.code == 0, found.text
        assert (found.passed, found.unsupported) == wanted(script, has, windows, dma=True), found.text
        mount.end()


def test_the_kernels_script_for_pairs_of_four_hosts(place: Path, tmp_path: Path, script: Path) -> None:
    """Devices with several peers; the older versions know one only, which is the first."""
    new = "message_test()" in script.read_text()
    with lab("fabrex", 4, "--windows", "2", "--total-order", "20") as mount:
        devices = [d["device"] for d in mount.document["devices"]]
        pairs = [(2, 1), (0, 3), (3, 2)] if new else [(0, 1), (1, 0)]
        for near, far in pairs:
            found = play(script, mount, tmp_path, devices[near], devices[far])
            assert found.code == 0, found.text
            assert (found.passed, found.unsupported) == wanted(script, {"spads": 1, "messages": 1}, 2), found.text
        mount.end()


# What the newest script can see of each file: "read" and "write" as it compares, "error" where it only uses it.
SEEN: list[tuple[str, str]] = [
    ("ntb_tool/DEVICE/port", "error"),
    ("ntb_tool/DEVICE/peerN/port", "read"),
    ("ntb_tool/DEVICE/peerN/link", "read"),
    ("ntb_tool/DEVICE/peerN/link_event", "error"),
    ("ntb_tool/DEVICE/link", "write"),
    ("ntb_tool/DEVICE/db", "read"),
    ("ntb_tool/DEVICE/db_valid_mask", "error"),
    ("ntb_tool/DEVICE/db_mask", "error"),
    ("ntb_tool/DEVICE/db_event", "error"),
    ("ntb_tool/DEVICE/peer_db", "write"),
    ("ntb_tool/DEVICE/spadN", "read"),
    ("ntb_tool/DEVICE/peerN/spadN", "write"),
    ("ntb_tool/DEVICE/msgN", "read"),
    ("ntb_tool/DEVICE/peerN/msgN", "write"),
    ("ntb_tool/DEVICE/msg_inbits", "error"),
    ("ntb_tool/DEVICE/msg_sts", "error"),
    ("ntb_tool/DEVICE/peerN/mw_transN", "read"),
    ("ntb_tool/DEVICE/peerN/mw_transN", "write"),
    ("ntb_tool/DEVICE/peerN/peer_mw_transN", "write"),
    ("ntb_tool/DEVICE/peerN/mwN", "read"),
    ("ntb_tool/DEVICE/peerN/peer_mwN", "read"),
    ("ntb_pingpong/DEVICE/count", "read"),
    ("ntb_msi_test/DEVICE/port", "error"),
    ("ntb_msi_test/DEVICE/peerN/ready", "error"),
    ("ntb_msi_test/DEVICE/peerN/count", "read"),
    ("ntb_msi_test/DEVICE/peerN/trigger", "write"),
    ("ntb_msi_test/DEVICE/irqN_occurrences", "read"),
    ("ntb_perf/DEVICE/run", "error"),
]


@pytest.mark.parametrize(("kind", "how"), SEEN, ids=[f"{kind}-{how}".replace("/", "_") for kind, how in SEEN])
def test_the_kernels_script_fails_where_a_file_is_broken(place: Path, tmp_path: Path, script: Path, kind: str, how: str) -> None:
    if "message_test()" not in script.read_text():
        pytest.skip("the newest version says it")
    broken = [sys.executable, str(Path(__file__).parent / "ntbtool_broken.py"), "lab", "PLACE", kind, how]
    with persistent(topology(windows="manual"), timing=False), mounted(broken) as mount:
        # A device that never goes down keeps the script waiting for it, as hardware would.
        waits = (kind, how) == ("ntb_tool/DEVICE/link", "write")
        found = play(script, mount, tmp_path, patience=20 if waits else 170)
        assert (found.code == -signal.SIGKILL) == waits, found.text
        complete = wanted(script, {"spads": 1, "messages": 1}, 1)
        assert found.code != 0 or (found.passed, found.unsupported) != complete, found.text
