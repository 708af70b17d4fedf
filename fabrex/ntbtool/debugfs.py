# SPDX-License-Identifier: Apache-2.0
"""The whole tree of a fabric: a directory for each driver, in it one for each device.

As in the kernel, a device belongs to one driver at a time. Nothing loads modules here, so whoever opens a driver's file loads it,
and the one before is unloaded.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from ..errors import FabricError
from ..fabric import Fabric
from .codes import translated
from .device import Device, Devices
from .msi import Msi
from .perf import Parameters, Perf
from .pingpong import Pingpong
from .text import unsigned
from .tool import Tool
from .tree import Directory, Entry, File, Waiting


@dataclass
class Settings:
    """The drivers' parameters.

    Attributes:
        pingpong_delay_ms: from a doorbell to the answer.
        windows: show so many of each device; all, if None.
        perf: of ntb_perf.
    """

    pingpong_delay_ms: int = 1000
    windows: int | None = None
    perf: Parameters = field(default_factory=Parameters)


class Debugfs:
    """The files of a fabric's NTB devices.

    Attributes:
        root: the tree.
        devices: the devices.
        settings: parameters, which the files under `module` change.
    """

    def __init__(self, fabric: Fabric, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.devices = Devices(fabric, self.settings.windows)
        lock = threading.RLock()
        self._tools = [Tool(self.devices, device, lock) for device in self.devices]
        self._perfs = [Perf(self.devices, device, self.settings.perf) for device in self.devices]
        self._pingpong = Pingpong(self.devices, lambda: self.settings.pingpong_delay_ms / 1000)
        self._msi = Msi(self.devices)
        self.root = Directory()
        self._driver("ntb_tool", [tool.directory for tool in self._tools], None, self._unload_tools)
        self._driver("ntb_pingpong", [p.directory for p in self._pingpong.players], self._pingpong.enter, self._pingpong.leave)
        self._driver("ntb_perf", [perf.directory for perf in self._perfs])
        self._driver("ntb_msi_test", self._msi.directories, self._msi.enter, self._msi.leave)
        self.root.add("module", Directory(self._modules))
        self._owners = {name: device for device in self.devices for name in (device.name,)}

    def _driver(
        self,
        name: str,
        directories: list[Directory],
        enter: Callable[[], None] | None = None,
        leave: Callable[[], None] | None = None,
    ) -> None:
        there = Directory()
        for device, directory in zip(self.devices, directories, strict=True):
            there.add(device.name, directory)
        there.touched = lambda: self.devices.bind(name, enter, leave)
        self.root.add(name, there)

    def _modules(self) -> dict[str, Entry]:
        def set_delay(text: str, waiting: Waiting) -> None:
            self.settings.pingpong_delay_ms = unsigned(text, 32)

        delay = File(0o644, lambda: f"{self.settings.pingpong_delay_ms}\n", set_delay)
        return {
            "ntb_perf": Directory(lambda: {"parameters": self.settings.perf.directory()}),
            "ntb_pingpong": Directory(lambda: {"parameters": Directory(lambda: {"delay_ms": delay})}),
        }

    def device_of(self, path: str) -> Device | None:
        """Return the device that a path belongs to."""
        parts = path.strip("/").split("/")
        return self._owners.get(parts[1]) if len(parts) > 1 else None

    def find(self, path: str) -> Entry:
        """Return what a path leads to; ENODEV once the fabric has gone."""
        with translated():
            self.devices.alive()
            return self.root.find(path)

    def open(self, path: str) -> Entry:
        """Return a file or directory to use: its driver gets the devices."""
        entry = self.find(path)
        device = None if isinstance(entry, Directory) else self.device_of(path)
        if device is not None:
            with translated():
                device.refresh()
                driver = self.root[path.strip("/").split("/")[0]]
                if driver.touched is not None:
                    driver.touched()
        return entry

    def _unload_tools(self) -> None:
        for tool in self._tools:
            with contextlib.suppress(FabricError, OSError):
                tool.close()

    def close(self) -> None:
        """Give back what the drivers borrowed, and detach."""
        self.devices.close()
