# SPDX-License-Identifier: Apache-2.0
"""Loggers below `nixl`, with the level that NIXL_LOG_LEVEL says."""

from __future__ import annotations

import logging
import os

_LEVELS = {
    "TRACE": logging.DEBUG,
    "DEBUG": logging.DEBUG,
    "INFO": logging.INFO,
    "WARN": logging.WARNING,
    "ERROR": logging.ERROR,
    "FATAL": logging.CRITICAL,
}


def get_logger(name: str) -> logging.Logger:
    """Return the logger `nixl.NAME`."""
    logging.getLogger("nixl").setLevel(_LEVELS.get(os.environ.get("NIXL_LOG_LEVEL", "").upper(), logging.WARNING))
    return logging.getLogger(f"nixl.{name.rpartition('.')[2].lstrip('_')}")
