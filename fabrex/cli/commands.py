# SPDX-License-Identifier: Apache-2.0
"""From words to a command, and from whatever went wrong to one line and an exit code.

A command's module is imported when the command is run: `fabricctl list` loads nothing that only `bench` needs.

Owns: dispatch, error lines, exit codes. Must not know: what the commands do.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from types import FrameType

from . import output
from .parser import Namespace, build, split_command

_HANDLERS = {
    "presets": ("describe", "presets"),
    "validate": ("describe", "validate"),
    "graph": ("describe", "graph"),
    "up": ("life", "up"),
    "join": ("machines", "join"),
    "down": ("life", "down"),
    "list": ("life", "list_fabrics"),
    "inspect": ("life", "inspect"),
    "prune": ("life", "prune"),
    "events": ("events", "events"),
    "run": ("launch", "run"),
    "exec": ("launch", "execute"),
    "explore": ("explore", "explore"),
    "link show": ("control", "link_show"),
    "link down": ("control", "link_down"),
    "link up": ("control", "link_up"),
    "link set": ("control", "link_set"),
    "link reset": ("control", "link_reset"),
    "window list": ("control", "window_list"),
    "window set": ("control", "window_set"),
    "window clear": ("control", "window_clear"),
    "mem read": ("control", "mem_read"),
    "mem write": ("control", "mem_write"),
    "ntb show": ("ntb", "show"),
    "ntb link": ("ntb", "link"),
    "ntb db": ("ntb", "db"),
    "ntb spad": ("ntb", "spad"),
    "ntb msg": ("ntb", "msg"),
    "ntb mw": ("ntb", "mw"),
    "ntb-tool": ("ntb_files", "mount"),
    "bench": ("bench", "bench"),
    "receipt show": ("receipt", "show"),
    "receipt verify": ("receipt", "verify"),
    "receipt compare": ("receipt", "compare"),
    "doctor": ("doctor", "doctor"),
    "demo": ("demonstrate", "demo"),
    "completion": ("completion", "completion"),
}


def run(words: list[str]) -> int:
    """Run `fabricctl WORDS`; returns the exit code. Nothing but a bug ends in a traceback."""
    try:
        try:
            code = _dispatch(words)
            sys.stdout.flush()
            return code
        except SystemExit as leaving:  # argparse, after --help
            sys.stdout.flush()
            return leaving.code if isinstance(leaving.code, int) else output.FAILURE
    except BrokenPipeError:
        # Whoever read our output has gone: no traceback at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return output.CLOSED_PIPE
    except KeyboardInterrupt:
        if os.environ.get("FABREX_DEBUG") == "1":
            raise
        print("fabricctl: interrupted", file=sys.stderr)
        return output.INTERRUPTED
    except Exception as error:
        if os.environ.get("FABREX_DEBUG") == "1":
            raise
        message, hint, code = explain(error)
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        text = message if not hint else f"{message}\n  {hint}" if "\n" in message else f"{message} ({hint})"
        print(f"fabricctl: {text}", file=sys.stderr)
        return code


def _dispatch(words: list[str]) -> int:
    if words and words[0] == "__complete":
        from .completion import complete

        return complete(words[1:])
    words, command = split_command(words)
    arguments: Namespace = build().parse_args(words, Namespace())
    arguments.commands = command
    if command is not None and arguments.handler not in ("run", "exec", "join") and not getattr(arguments, "machine", None):
        output.usage(f"{arguments.handler} takes no command after --")
    directory = getattr(arguments, "directory", None)
    if directory:
        # Processes that the command starts, and the library, look in the same place.
        os.environ["FABREX_DIRECTORY"] = os.path.abspath(directory)
    module, function = _HANDLERS[arguments.handler]
    if arguments.handler in ("bench", "demo", "doctor"):
        signal.signal(signal.SIGTERM, _leave)  # so that fabrics are closed on the way out
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _leave)
    code: int = getattr(importlib.import_module(f".{module}", __package__), function)(arguments)
    return code


def _leave(number: int, frame: FrameType | None) -> None:
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)  # asked twice: what is made is being removed already
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


def explain(error: BaseException) -> tuple[str, str, int]:
    """Return message, hint and exit code for an exception."""
    if isinstance(error, output.CommandError):
        return error.message, error.hint, error.code
    from .. import errors

    if isinstance(error, errors.FabricError):
        codes: tuple[tuple[type[BaseException], int], ...] = (
            (errors.FabricNotFound, output.NOT_FOUND),
            (errors.FabricExists, output.EXISTS),
            (errors.Busy, output.BUSY),
            (errors.TopologyError, output.TOPOLOGY),
            (errors.OutOfFabricMemory, output.NO_MEMORY),
            (errors.WaitTimeout, output.TIMEOUT),
            (errors.CompletionTimeout, output.TIMEOUT),
            (errors.ValueRangeError, output.USAGE),
            (errors.InvalidArgument, output.USAGE),
            (errors.AddressError, output.USAGE),
            (errors.WindowError, output.USAGE),
        )
        code = next((code for kind, code in codes if isinstance(error, kind)), output.FAILURE)
        if error.code in ("NO_COMMAND", "NOT_EXECUTABLE"):
            code = output.NO_COMMAND if error.code == "NO_COMMAND" else output.NOT_EXECUTABLE
        return error.message or type(error).__name__, error.hint, code
    if isinstance(error, FileNotFoundError):
        return f"no file {error.filename!r}" if error.filename else str(error), "", output.NOT_FOUND
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", "", output.FAILURE
    if isinstance(error, MemoryError):
        return "this machine has too little memory", "", output.NO_MEMORY
    if isinstance(error, ImportError):
        return f"a part is missing: {error}", "install fabrex anew: pip install --force-reinstall fabrex", output.FAILURE
    from ..units import UnitError

    if isinstance(error, (UnitError, OverflowError, UnicodeError)):
        return str(error), "", output.USAGE
    name = type(error).__name__
    return f"internal error: {name}: {error}", "FABREX_DEBUG=1 shows where; please report it", output.FAILURE
