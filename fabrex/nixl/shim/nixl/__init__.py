# SPDX-License-Identifier: Apache-2.0
"""NIXL, by fabrex: what is imported as `nixl` is `fabrex.nixl`."""

import sys

import fabrex.nixl
import fabrex.nixl._api
import fabrex.nixl._bindings
import fabrex.nixl._utils
import fabrex.nixl.logging  # noqa: F401
from fabrex.nixl import *  # noqa: F403
from fabrex.nixl import _api, _bindings, _utils, logging  # noqa: F401

for _name in ("_api", "_bindings", "_utils", "logging"):
    sys.modules[f"{__name__}.{_name}"] = sys.modules[f"fabrex.nixl.{_name}"]
