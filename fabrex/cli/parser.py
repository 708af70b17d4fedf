# SPDX-License-Identifier: Apache-2.0
"""The commands' words and options. What is wrong is said in one line, with what was probably meant.

Owns: syntax. Must not know: fabrics.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from .output import nearest, usage

Command = list[tuple[str, list[str]]]
"""Pairs of a node pattern (empty: all) and the command for it."""


class Namespace(argparse.Namespace):
    """Parsed arguments."""

    handler: str
    commands: Command | None
    json: bool
    directory: str | None

    def __getattr__(self, name: str) -> Any:  # for type checkers: attributes come from the parser
        raise AttributeError(name)


class Parser(argparse.ArgumentParser):
    """argparse, with shorter and more helpful errors."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("allow_abbrev", False)
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**settings)

    def error(self, message: str) -> NoReturn:
        """Raise one line instead of printing the usage and leaving."""
        command = self.prog.partition(" ")[2]
        choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if choice:
            known = [word.strip(" '") for word in choice[2].split(",")]
            what = message.partition(":")[0][len("argument ") :]
            what = what.lower() if what in ("COMMAND", "ACTION") else f"value of {what}:"
            near = nearest(choice[1], known)
            usage(f"unknown {what} {choice[1]!r}", f"did you mean {near!r}?" if near else f"one of: {', '.join(known)}")
        if message.startswith("unrecognized arguments: "):
            word = message.partition(": ")[2].split()[0]
            if word.startswith("-"):
                near = nearest(word.partition("=")[0], self._option_string_actions)
                usage(f"unknown option {word}", f"did you mean {near}?" if near else f"see `{self.prog} --help`")
            usage(f"did not expect {word!r}", "a command to run comes after `--`" if command in ("run", "exec") else self._short())
        message = re.sub(r"^the following arguments are required: ", "missing: ", message)
        usage(re.sub(r"^argument (\S+): ", r"\1: ", message), self._short())

    def _short(self) -> str:
        text = " ".join(self.format_usage().split())
        return text if len(text) < 160 else f"see `{self.prog} --help`"

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Report unknown options here, where the subcommand's own options are known."""
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error("unrecognized arguments: " + " ".join(rest))
        return found, rest


def seconds(text: str) -> float:
    """A duration for people: `5`, `5s`, `200ms`, `2min`."""
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*(ms|s|min|m|h)?", text.strip())
    value = float(match[1]) * {"ms": 1e-3, "m": 60, "min": 60, "h": 3600}.get(match[2] or "s", 1) if match else math.nan
    if not match or not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; write 5, 5s, 200ms or 2min")
    return value


def since(text: str) -> int | float:
    """A duration with its unit (a float, in seconds), or the number of an event (an int)."""
    if re.fullmatch(r"[0-9]+", text):
        return int(text)
    if text[-1:].isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} has no unit; write 10s, or the number of an event")
    return seconds(text)


def number(text: str) -> int:
    """A whole number, decimal or with 0x."""
    try:
        return int(text, 0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number; write 42 or 0x2a") from None


def size(text: str) -> int:
    """A size with a unit (`64KiB`), or a number of bytes."""
    if re.fullmatch(r"[0-9]+|0[xX][0-9a-fA-F]+", text):
        return int(text, 0)
    from ..units import UnitError, parse_size

    try:
        return parse_size(text)
    except UnitError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def split_command(words: list[str]) -> tuple[list[str], Command | None]:
    """Divide `OPTIONS -- COMMAND` or `OPTIONS --on A -- COMMAND --on B -- COMMAND`.

    Returns:
        The words for the parser, and the commands; None if there was no `--`.
    """
    if "--" not in words:
        return words, None
    cut = words.index("--")
    head, tail = words[:cut], words[cut + 1 :]
    first: list[str] = []
    while len(head) >= 2 and head[-2] == "--on":
        first.insert(0, head[-1])
        head = head[:-2]
    if not first:
        return head, [("", tail)]
    commands: Command = []
    names, start, at = first, 0, 0
    while at <= len(tail):
        following: list[str] = []
        here = at
        while here + 1 < len(tail) and tail[here] == "--on":
            following.append(tail[here + 1])
            here += 2
        if at == len(tail) or (following and here < len(tail) and tail[here] == "--"):
            commands += [(name, tail[start:at]) for name in names]
            if at == len(tail):
                break
            names, start = following, here + 1
            at = start
            continue
        at += 1
    return head, commands


_TOPOLOGY = "a preset's name or a YAML file"


def build() -> Parser:
    """Return the parser of all commands."""
    top = Parser(
        prog="fabricctl",
        description="PCIe NTB memory fabrics without the hardware.",
        epilog="fabricctl COMMAND --help says more about a command.",
    )
    from .. import __version__

    top.add_argument("--version", action="version", version=f"fabrex {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)

    def command(name: str, summary: str, *, parent: Any = commands, full: str = "", **settings: Any) -> Parser:
        parser: Parser = parent.add_parser(name, help=summary, description=summary, **settings)
        parser.set_defaults(handler=(full or name))
        return parser

    def facts(parser: Parser) -> Parser:
        parser.add_argument("--json", action="store_true", help="print one JSON document")
        return parser

    def placed(parser: Parser) -> Parser:
        parser.add_argument("--directory", metavar="D", help="where the segments are (FABREX_DIRECTORY, or /dev/shm)")
        return parser

    def described(parser: Parser, *, behaviour: bool = True) -> Parser:
        parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes",
                            help="change a value, as in links.NAME.delay=500ns; may be repeated")  # fmt: skip
        if behaviour:
            parser.add_argument("--timing", choices=("on", "off"), help="inject modelled time or not")
            parser.add_argument("--ordering", choices=("posted", "immediate", "adversarial"), help="what software may rely on")
            parser.add_argument("--seed", type=number, metavar="N", help="of all that is random")
        return parser

    def on_machine(parser: Parser, summary: str, *, required: bool = False) -> None:
        parser.add_argument("--machine", metavar="M", required=required, help=summary)
        parser.add_argument("--listen", metavar="ADDRESS", help="where other machines reach this one: HOST:PORT, or unix:/path "
                            "(a free port of loopback, or beside what reaches the coordinator)")  # fmt: skip
        parser.add_argument("--token-file", metavar="F", help="a file with a secret that all machines have; needed beyond loopback")
        parser.add_argument("--wait", type=seconds, default=30.0, metavar="S", help="how long to wait for the others (30 s)")
        parser.add_argument("--kind", action="append", metavar="KIND", help="with -- COMMAND: nodes that get a process (host)")
        parser.add_argument("--on", action="append", metavar="NODE", help="with -- COMMAND: only these nodes")

    def group(name: str, summary: str) -> Any:
        parser = commands.add_parser(name, help=summary, description=summary)
        return parser.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=Parser)

    # Descriptions

    at = facts(command("presets", "list the topologies that come with fabrex, or show one"))
    at.add_argument("name", nargs="?", metavar="NAME")
    at = facts(described(command("validate", "check a topology file; every error is shown with its line"), behaviour=False))
    at.add_argument("file", metavar="FILE", help="a YAML file, `-` for standard input, or a preset's name")
    at = placed(described(command("graph", "draw a fabric or a topology"), behaviour=False))
    at.add_argument("target", metavar="NAME|TOPOLOGY", help=f"a fabric, or {_TOPOLOGY}")
    how = at.add_mutually_exclusive_group()
    how.add_argument("--svg", dest="form", action="store_const", const="svg", help="a picture with its own layout")
    how.add_argument("--dot", dest="form", action="store_const", const="dot", help="for Graphviz (the default)")
    how.add_argument("--mermaid", dest="form", action="store_const", const="mermaid", help="for Markdown")
    at.add_argument("-o", "--output", metavar="FILE", help="write there; its ending chooses the form if no option does")

    # Life

    at = placed(facts(described(command("up", "make a fabric that lasts until `down`"))))
    at.add_argument("topology", metavar="TOPOLOGY", help=_TOPOLOGY)
    at.add_argument("--name", metavar="N", help="the topology's name if left out")
    on_machine(at, "make only this machine's part (the first of `machines:`), serve it, and let the others join")
    at = placed(facts(command(
        "join",
        "be one of the machines of a fabric that `up --machine` made elsewhere, until it ends",
        usage="fabricctl join ADDRESS --machine M [OPTIONS] [-- COMMAND...]",
    )))  # fmt: skip
    at.add_argument("coordinator", metavar="ADDRESS", help="where the coordinator listens: HOST:PORT, or unix:/path")
    on_machine(at, "which of the topology's machines this is", required=True)
    at.add_argument("--advertise", metavar="ADDRESS", help="tell the others that this machine is reached there, where a port "
                    "is forwarded or a tunnel stands between")  # fmt: skip
    at = placed(facts(command("down", "end fabrics")))
    at.add_argument("names", nargs="*", metavar="NAME")
    at.add_argument("--all", action="store_true", help="all of this user's fabrics in the directory")
    at.add_argument("--force", action="store_true", help="also while processes are attached")
    placed(facts(command("list", "list fabrics")))
    at = placed(facts(command("inspect", "show a fabric's nodes, links, buffers and counters")))
    at.add_argument("name", metavar="NAME")
    at = placed(facts(command("prune", "remove what dead processes left: owned fabrics without an owner, half-made ones")))
    at.add_argument("--dry-run", action="store_true", help="only say what would be removed")

    at = placed(facts(command("events", "show what has happened to a fabric")))
    at.add_argument("name", metavar="NAME")
    at.add_argument("--follow", "-f", action="store_true", help="go on until the fabric ends")
    at.add_argument(
        "--since", type=since, default=0, metavar="S", help="only the last `10s` (or ms, min, h), or from event number 120 on"
    )
    at.add_argument("--kind", action="append", metavar="EVENT", help="only these; may be repeated")

    # Programs

    at = placed(facts(described(command(
        "run",
        "make a fabric and start a command once per node, with each line of output marked",
        usage="fabricctl run TOPOLOGY [OPTIONS] -- COMMAND...\n"
        "       fabricctl run TOPOLOGY [OPTIONS] --on NODE -- COMMAND... [--on NODE -- COMMAND...]...",
        epilog="Each process finds FABREX_FABRIC, FABREX_DIRECTORY, FABREX_NODE, FABREX_RANK and FABREX_SIZE in its\n"
        "environment; fabrex.attach() reads them. If one fails the others are ended, and its code is returned.",
    ))))  # fmt: skip
    at.add_argument("topology", metavar="TOPOLOGY", help=_TOPOLOGY)
    at.add_argument("--name", metavar="N", help="the fabric's name; a random one if left out")
    at.add_argument("--kind", action="append", metavar="KIND", help="nodes that get a process: host (default), accelerator, memory")
    at.add_argument("--on", action="append", metavar="NODE", help="only these nodes (`gpu*` matches many), before `-- COMMAND`")
    at.add_argument("--timeout", type=seconds, metavar="S", help="end everything after so long (exit code 124)")
    at.add_argument("--grace", type=seconds, default=5.0, metavar="S", help="from asking a process to end to killing it (5 s)")
    at.add_argument("--keep", action="store_true", help="leave the fabric for looking at; end it with `down`")
    at.add_argument("--nixl", action="store_true", help="`import nixl` finds fabrex.nixl: NIXL's agents then work on this fabric")
    at.add_argument("--output-dir", metavar="D", help="also write each process's output to D/NODE.out and D/NODE.err")
    at = placed(command(
        "exec",
        "run a command as a node of a fabric that exists",
        usage="fabricctl exec NAME --node N -- COMMAND...",
    ))  # fmt: skip
    at.add_argument("name", metavar="NAME")
    at.add_argument("--node", required=True, metavar="N")

    at = facts(command(
        "explore",
        "run a script's programs under the virtual clock with many seeds, and explain the first that fails",
        epilog="SCRIPT is a Python file with functions called like nodes (`def host0(node): ...`), or a dict `programs`;\n"
        "it may name `topology`, `ordering` and `check(result)`. Exit code 1: a seed fails.",
    ))  # fmt: skip
    at.add_argument("script", metavar="SCRIPT", help="a Python file with programs")
    at.add_argument("--seeds", type=number, default=1000, metavar="N", help="how many seeds to run (1000)")
    at.add_argument("--first", type=number, default=0, metavar="N", help="the first of them (0)")
    at.add_argument("--seed", type=number, metavar="N", help="run this one seed, and tell what happens")
    at.add_argument("--jobs", type=number, default=1, metavar="J", help="processes that share the seeds (1)")
    at.add_argument("--most", type=number, default=1, metavar="N", help="stop after so many failing seeds (1)")
    at.add_argument("--ordering", choices=("posted", "immediate", "adversarial"), help="the script's, or adversarial")
    at.add_argument("--trace", action="store_true", help="with --seed: print the whole trace")
    at.add_argument("--no-explain", action="store_true", help="only say which seeds fail")

    # Control

    link = group("link", "show and change links")
    for action, summary in (
        ("show", "show links, their state and their counters"),
        ("down", "take a link down; when it returns nothing crosses it any more"),
        ("up", "bring a link up"),
        ("set", "change what a link is, while traffic crosses it"),
        ("reset", "set a link back to what the topology says"),
    ):
        at = placed(facts(command(action, summary, parent=link, full=f"link {action}")))
        at.add_argument("name", metavar="NAME")
        at.add_argument("link", metavar="LINK", nargs="?" if action == "show" else None)
        if action == "set":
            at.add_argument("values", metavar="KEY=VALUE", nargs="+", help="as in the topology file: delay=500ns gen=3 lanes=8")
    window = group("window", "show and program translation windows")
    at = placed(facts(command("list", "list windows", parent=window, full="window list")))
    at.add_argument("name", metavar="NAME")
    at.add_argument("node", metavar="NODE", nargs="?")
    at.add_argument("--all", action="store_true", help="also windows that lead nowhere")
    at = placed(facts(command("set", "point a window at a peer's memory", parent=window, full="window set")))
    at.add_argument("name", metavar="NAME")
    at.add_argument("node", metavar="NODE")
    at.add_argument("index", metavar="INDEX", type=number)
    at.add_argument("address", metavar="ADDRESS", help="what it shows: host1:dram+0x100000")
    at.add_argument("size", metavar="SIZE", type=size)
    at.add_argument("--perm", choices=("r", "w", "rw", "none"), default="rw")
    at.add_argument(
        "--mapping",
        choices=("managed", "wc", "uc"),
        default="managed",
        help="how stores through it combine (default: bulk writes only)",
    )
    at = placed(facts(command("clear", "let a window lead nowhere", parent=window, full="window clear")))
    at.add_argument("name", metavar="NAME")
    at.add_argument("node", metavar="NODE")
    at.add_argument("index", metavar="INDEX", type=number)
    mem = group("mem", "read and write a fabric's memory")
    place = "host1:dram+0x40, host1+0x40 (its first tier), @BUFFER+8, or a global address"
    at = placed(facts(command("read", "read memory", parent=mem, full="mem read")))
    at.add_argument("name", metavar="NAME")
    at.add_argument("address", metavar="ADDRESS", help=place)
    at.add_argument("--size", type=size, default=64, metavar="N", help="bytes (64)")
    at.add_argument("--from", dest="source", metavar="NODE", help="the node that reads; the memory's own if left out")
    at.add_argument("--raw", action="store_true", help="the bytes themselves")
    at = placed(facts(command("write", "write memory, and wait until it is visible", parent=mem, full="mem write")))
    at.add_argument("name", metavar="NAME")
    at.add_argument("address", metavar="ADDRESS", help=place)
    at.add_argument("value", metavar="VALUE", nargs="?", help="a number, little-endian; `-` for bytes from standard input")
    at.add_argument("--size", type=number, default=8, choices=(1, 2, 4, 8), help="bytes of the number (8)")
    what = at.add_mutually_exclusive_group()
    what.add_argument("--hex", metavar="BYTES", help="bytes in hex instead of a number")
    what.add_argument("--text", metavar="TEXT", help="text in UTF-8 instead of a number")
    at.add_argument("--from", dest="source", metavar="NODE", help="the node that writes; the memory's own if left out")

    # NTB devices

    ntb = group("ntb", "show and change NTB devices: links, doorbells, scratchpads, messages, windows")

    def device(action: str, summary: str, *, verbs: Sequence[str] = (), node: str | None = None) -> Parser:
        at = placed(facts(command(action, summary, parent=ntb, full=f"ntb {action}")))
        at.add_argument("name", metavar="NAME")
        at.add_argument("node", metavar="NODE", nargs=node)
        if verbs:
            at.add_argument(
                "verb",
                choices=verbs,
                metavar="ACTION",
                nargs="?",
                default="show",
                help=f"show (the default), {', '.join(verbs[1:])}",
            )
        return at

    def peer(parser: Parser, what: str) -> Parser:
        parser.add_argument("--peer", metavar="NODE", help=f"{what} of this peer, as NODE reaches it")
        return parser

    device("show", "show devices: ports, links, and how much there is of everything", node="?")
    at = device("link", "show a device's links, open it or close it", verbs=("show", "up", "down"))
    at.add_argument("--wait", type=seconds, metavar="S", help="wait so long for the links to be as asked (exit code 124)")
    at = peer(device("db", "show, ring, set and clear doorbell bits and their mask",
                     verbs=("show", "set", "clear", "mask", "unmask", "wait")), "the doorbell")  # fmt: skip
    at.add_argument("bits", metavar="BITS", nargs="?", type=number, help="a bit mask, as 0x5")
    at.add_argument("--timeout", type=seconds, metavar="S", help="for `wait`: give up after so long (exit code 124)")
    at = peer(device("spad", "show and write scratchpads", verbs=("show", "write")), "the scratchpads")
    at.add_argument("index", metavar="INDEX", nargs="?", type=number)
    at.add_argument("value", metavar="VALUE", nargs="?", type=number)
    at = device("msg", "show, send and clear messages", verbs=("show", "send", "clear", "mask", "unmask"))
    at.add_argument("--peer", metavar="NODE", help="for `send`: to whom")
    at.add_argument("index", metavar="INDEX|BITS", nargs="?", type=number, help="a register; status bits for clear, mask, unmask")
    at.add_argument("value", metavar="VALUE", nargs="?", type=number)
    at = device("mw", "show windows and what they take; `window` programs them")
    at.add_argument("--peer", metavar="NODE", help="only windows that show this peer (with --all: that could)")
    at.add_argument("--all", action="store_true", help="also windows that lead nowhere")
    at = placed(facts(command("ntb-tool", "mount the files of the kernel's NTB test drivers for a fabric's devices")))
    at.add_argument("mountpoint", metavar="MOUNTPOINT", help="an empty directory")
    at.add_argument("--fabric", required=True, metavar="NAME", dest="name")
    at.add_argument("--background", action="store_true", help="return when it is mounted; ends with `fusermount3 -u MOUNTPOINT`")
    at.add_argument("--allow-other", action="store_true", help="other users may use it, too")
    at.add_argument("--windows", type=number, metavar="N", help="show only the first N windows of each device")
    at.add_argument("--delay-ms", type=number, default=1000, metavar="N", help="ntb_pingpong's delay (1000)")
    at.add_argument("--total-order", type=number, default=30, metavar="N", help="ntb_perf copies 2^N bytes (30)")
    at.add_argument("--chunk-order", type=number, default=19, metavar="N", help="in pieces of 2^N bytes (19)")
    at.add_argument("--use-dma", action="store_true", help="ntb_perf copies by DMA")
    at.add_argument("--ready-fd", type=number, help=argparse.SUPPRESS)

    # Seeing it work

    at = placed(facts(command("demo", "see a fabric of 42 nodes work: modelled beside measured, in under a minute")))
    at.add_argument("--output-dir", metavar="D", default=".", help="where the picture goes (the current directory)")
    at.add_argument("--size", type=size, metavar="N", help="of the file that is moved (64MiB), or what each card sends (4MiB)")
    at.add_argument("--quick", action="store_true", help="a few seconds only")
    at.add_argument("--machines", type=number, metavar="N",
                    help="instead: preset squadrack on 2 to 4 machines, which are network namespaces")  # fmt: skip
    at.add_argument("--dilation", metavar="F", help="with --machines: stretch modelled time by this; auto: by as little as lets "
                    "it hold what a network takes here")  # fmt: skip
    at.add_argument("--loopback", action="store_true", help="with --machines: no namespaces, which need a privilege, but loopback")
    at = placed(facts(command("bench", "measure operations: what the model asks beside what this machine gives")))
    at.add_argument("--quick", action="store_true", help="fewer samples")
    at.add_argument("--topology", action="append", metavar="T", help=f"{_TOPOLOGY} (fabrex-pair); may be repeated")
    at.add_argument("--op", action="append", metavar="OP", help="only these operations; may be repeated")
    at.add_argument("--size", action="append", type=size, metavar="N", help="only these sizes; may be repeated")
    at.add_argument("--timing", choices=("on", "off", "both"), default="both")
    at.add_argument("--ordering", choices=("posted", "immediate"), default="posted")
    at.add_argument("--api", default="c,python", metavar="A", help="c, python or both (c,python)")
    at.add_argument("--seconds", type=seconds, metavar="S", help="how long to measure each row")
    at.add_argument("--dilation", metavar="K", help="stretch modelled time: 4 lets a second of the fabric take four here")
    at.add_argument("--card", nargs="?", const="", metavar="FILE",
                    help="the accuracy card: requested against achieved; also drawn if a .svg or .png is named")  # fmt: skip
    at.add_argument("--receipt", metavar="FILE", help="keep what was measured, for `fabricctl receipt`")
    receipt = group("receipt", "look at what `bench --receipt` kept")
    for action, summary in (
        ("show", "figure a receipt anew from its samples"),
        ("verify", "check a receipt: exit code 1 if it was edited"),
    ):
        at = facts(command(action, summary, parent=receipt, full=f"receipt {action}"))
        at.add_argument("file", metavar="FILE")
        if action == "show":
            at.add_argument("--plot", metavar="FILE", help="draw it: the accuracy card as .svg or .png")
    at = facts(command("compare", "compare two receipts, row by row", parent=receipt, full="receipt compare"))
    at.add_argument("first", metavar="FIRST")
    at.add_argument("second", metavar="SECOND")
    at.add_argument("--all", action="store_true", help="also rows that did not change")
    at.add_argument("--plot", metavar="FILE", help="draw the ratios as .svg or .png")
    placed(facts(command("doctor", "look at this machine: what it can do for a fabric, and how to mend what is weak")))
    at = command("completion", "print a completion script: `source <(fabricctl completion bash)`")
    at.add_argument("shell", choices=("bash", "zsh"))
    return top


def options_of(parser: argparse.ArgumentParser) -> Sequence[argparse.Action]:
    """Return a parser's actions, for completion."""
    return parser._actions
