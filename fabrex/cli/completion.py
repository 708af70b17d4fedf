# SPDX-License-Identifier: Apache-2.0
"""`fabricctl completion bash|zsh`, and the answers that the scripts ask for.

The scripts hold no list of commands: they call `fabricctl __complete WORDS...`, so that they are right for every version.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from . import output
from .output import emit
from .parser import build, options_of

_BASH = """\
# Completion of fabricctl for bash. Load it with: source <(fabricctl completion bash)
_fabricctl() {
    local line
    COMPREPLY=()
    # Colons and equals signs divide words for readline; names of links hold colons.
    local cur words cword
    if declare -F _get_comp_words_by_ref >/dev/null; then
        _get_comp_words_by_ref -n := cur words cword
    else
        cur=${COMP_WORDS[COMP_CWORD]} words=("${COMP_WORDS[@]}") cword=$COMP_CWORD
    fi
    while IFS= read -r line; do
        COMPREPLY+=("$line")
    done < <("${words[0]}" __complete "${words[@]:1:cword}" 2>/dev/null)
    if declare -F __ltrim_colon_completions >/dev/null; then __ltrim_colon_completions "$cur"; fi
}
complete -o default -F _fabricctl fabricctl
"""

_ZSH = """\
#compdef fabricctl
# Completion of fabricctl for zsh. Load it with: source <(fabricctl completion zsh)
_fabricctl() {
    local -a found
    found=("${(@f)$("${words[1]}" __complete "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    found=(${found:#})
    if (( $#found )); then compadd -- "${found[@]}"; else _files; fi
}
compdef _fabricctl fabricctl
"""


def completion(arguments: Any) -> int:
    """`completion SHELL`: print its script."""
    emit(_BASH if arguments.shell == "bash" else _ZSH)
    return output.OK


def complete(words: list[str]) -> int:
    """Print what the last of `words` may become, one per line. Never fails: a shell is waiting."""
    try:
        for candidate in candidates(words):
            print(candidate)
    except Exception:
        return output.FAILURE
    return output.OK


def candidates(words: list[str]) -> list[str]:
    """Return what the last word may become."""
    *before, last = words or [""]
    if "--" in before:
        return []
    parser: argparse.ArgumentParser = build()
    named = ""
    values: list[str] = []
    wanted: argparse.Action | None = None
    for word in before:
        wanted_now, wanted = wanted, None
        if wanted_now is not None:
            continue
        if word.startswith("-"):
            action = next((a for a in options_of(parser) if word in a.option_strings), None)
            wanted = action if action is not None and action.nargs is None and "=" not in word else None
            continue
        sub = next((a for a in options_of(parser) if isinstance(a, argparse._SubParsersAction)), None)
        if sub is not None:
            if word not in sub.choices:
                return []
            parser, named = sub.choices[word], f"{named} {word}".strip()
        else:
            values.append(word)
    if wanted is not None:
        return _starting(last, _values(wanted, named, values))
    if last.startswith("-"):
        return _starting(last, [s for a in options_of(parser) for s in a.option_strings if s.startswith("--")])
    sub = next((a for a in options_of(parser) if isinstance(a, argparse._SubParsersAction)), None)
    if sub is not None:
        return _starting(last, sub.choices)
    positionals = [a for a in options_of(parser) if not a.option_strings]
    if not positionals:
        return []
    action = positionals[min(len(values), len(positionals) - 1)]
    if len(values) >= len(positionals) and action.nargs not in ("*", "+"):
        return []
    return _starting(last, _values(action, named, values))


def _starting(prefix: str, words: Iterable[str]) -> list[str]:
    return sorted({word for word in words if word.startswith(prefix)})


def _values(action: argparse.Action, command: str, values: list[str]) -> list[str]:
    if action.choices is not None:
        return [str(choice) for choice in action.choices]
    from .. import presets

    what = action.metavar if isinstance(action.metavar, str) else ""
    if what in ("TOPOLOGY", "T") or (command in ("presets", "validate") and what in ("NAME", "FILE")):
        return list(presets.names())
    from .common import fabric_names

    if what == "NAME|TOPOLOGY":
        return [*fabric_names(), *presets.names()]
    if what == "NAME":
        return fabric_names()
    if what == "KIND":
        return ["host", "accelerator", "memory"]
    if what == "KEY=VALUE" and command == "link set" and len(values) >= 2:
        from ..link import Link
        from .common import open_fabric

        with open_fabric(values[0]) as fabric:
            return [f"{key}=" for key in Link(fabric, values[1], 0).keys]
    if what == "EVENT":
        from ..event import KINDS

        return list(KINDS)
    if what == "OP":
        return ["load", "store", "write", "read", "fetch_add", "gather", "scatter", "pingpong", "empty"]
    if what in ("NODE", "N", "LINK", "ADDRESS") and values:
        from .common import load_topology, open_fabric

        if command == "run":
            topology = load_topology(values[0])
        else:
            with open_fabric(values[0]) as fabric:
                topology = fabric.topology
        if what == "LINK":
            return list(topology.links)
        names = [node.name for node in topology.nodes.values() if node.kind != "switch"]
        if what == "ADDRESS":
            return [f"{name}:{tier}" for name in names for tier in topology.nodes[name].memory]
        return names
    return []
