"""How `"blocks/2/attn"` is spelled, and which paths a pattern means."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

_FORBIDDEN = "/*{}#"


def check_name(name: object, reserved: Iterable[str] = ()) -> str:
    """A name that can be a step of a path, or an error that says why it cannot."""
    if not isinstance(name, str) or not name:
        raise TypeError(f"name: expected a non-empty str, got {name!r}.")
    bad = [c for c in _FORBIDDEN if c in name]
    if bad:
        raise ValueError(
            f"name: {name!r} holds {bad[0]!r}, which paths need. Choose another name."
        )
    if name.isdigit():
        raise ValueError(
            f"name: {name!r} is all digits, which means an index. Add a letter."
        )
    if name in reserved:
        raise ValueError(
            f"name: {name!r} is a keyword of the constructor. Choose another name."
        )
    return name


def join(*steps: str) -> str:
    """The path through the given steps, leaving out empty ones."""
    return "/".join(step for step in steps if step)


@lru_cache(maxsize=1024)
def pattern(glob: str) -> re.Pattern[str]:
    """The regular expression for a glob: `*` one step, `**` any depth, `{a,b}` either."""
    out: list[str] = []
    for token in re.findall(r"\*\*/?|/\*\*$|\*|\{[^{}]*\}|[^*{}]+|.", glob):
        if token == "**/":
            out.append("(?:[^/]+/)*")
        elif token == "**":
            out.append(".*")
        elif token == "*":
            out.append("[^/]*")
        elif token.startswith("{") and token.endswith("}"):
            parts = [re.escape(part) for part in token[1:-1].split(",")]
            out.append(f"(?:{'|'.join(parts)})")
        else:
            out.append(re.escape(token))
    return re.compile("".join(out))
