"""A table of a model as text, Markdown, HTML and for rich."""

from __future__ import annotations

import html
import posixpath
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from axonlike.extras import optional

Entry = Mapping[str, Any]
"""One row: what stands in each column; `depth`, `label`, and `home`, the path around it."""


class Column(NamedTuple):
    """One column: its heading, and a row's text in it, "" for nothing."""

    title: str
    text: Callable[[Entry], str]
    right: bool = True


def number(n: int) -> str:
    """A count, with thousands apart: `1,234`."""
    return f"{n:,}" if n else ""


def scaled(n: float) -> str:
    """A number to three digits: `1.23 G`."""
    return _scaled(n, 1000, ("", "k", "M", "G", "T", "P")) if n else ""


def size(n: float) -> str:
    """Bytes to three digits: `4.77 MiB`."""
    return _scaled(n, 1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB")) if n else ""


def _scaled(n: float, base: int, units: Sequence[str]) -> str:
    power = 0
    while n >= base - 0.5 and power < len(units) - 1:
        n, power = n / base, power + 1
    digits = f"{n:.0f}" if not power or n >= 99.95 else f"{n:#.3g}"
    return f"{digits} {units[power]}".rstrip()


def bar(share: float, width: int = 8) -> str:
    """A share of 1 as a bar, at least a sliver of one; "" for nothing."""
    eighths = round(share * width * 8) or (1 if share else 0)
    whole, part = divmod(eighths, 8)
    return "█" * whole + " ▏▎▍▌▋▊▉"[part].strip()


def _path(entry: Entry) -> str:
    """Its path; of a model that is copies itself, what it is."""
    return entry["path"] or (f"({entry['kind']})" if entry["n"] > 1 else "")


def _share(entry: Entry) -> str:
    share = entry["share"]
    return f"{share:>4.0%} {bar(share)}" if share else ""


def _trainable(entry: Entry) -> str:
    if not entry["params"]:
        return ""
    free = entry["trainable"]
    return {entry["params"]: "yes", 0: "no"}.get(free, number(free))


def _connected(entry: Entry) -> str:
    """Paths as seen from the layer around the row's own, where that is shorter."""
    home = entry["home"] or "."
    both = ((posixpath.relpath(path, home), path) for path in entry["connected_to"])
    return ", ".join(min(pair, key=len) for pair in both)


def _column(title: str, key: str, write: Callable[[Any], str], right: bool) -> Column:
    def text(entry: Entry) -> str:
        return write(entry[key])

    return Column(title, text, right)


COLUMNS: dict[str, Column] = {
    "path": Column("path", _path, False),
    "kind": _column("kind", "kind", str, False),
    "output": _column("output", "output", str, False),
    "params": _column("params", "params", number, True),
    "bytes": _column("bytes", "bytes", size, True),
    "trainable": Column("trainable", _trainable, False),
    "state": _column("state", "state", number, True),
    "tied_to": _column("tied to", "tied_to", ", ".join, False),
    "connected_to": Column("connected to", _connected, False),
    "flops": _column("flops", "flops", scaled, True),
    "activations": _column("activations", "activations", size, True),
    "kept": _column("kept", "kept", size, True),
    "share": Column("share", _share, False),
}
_LEAST = ("share", "kind", "activations", "bytes", "trainable", "kept", "connected_to")
"""What a narrow terminal does without, first to last."""


def chosen(entries: Sequence[Entry], columns: Sequence[str] | None) -> list[str]:
    """The columns to show: those that were asked for, or in which something stands."""
    if columns is not None:
        return list(columns)
    plain = all(_trainable(entry) in ("", "yes") for entry in entries)
    filled = [k for k, c in COLUMNS.items() if any(map(c.text, entries))]
    return [k for k in filled if not (k == "trainable" and plain)]


# --- text


def as_text(
    entries: Sequence[Entry], totals: Sequence[str], columns: Sequence[str] | None,
    width: int,
) -> str:  # fmt: skip
    """The table in at most so many characters a line, if that can be."""
    keys, left_out = _fitting(entries, columns, width)
    lines = _lines(entries, keys, _fitted(entries, keys, width))
    if left_out and totals:
        totals = [*totals, *textwrap.wrap(left_out, width)]
    return "\n".join([*lines, *([""] if totals else []), *totals])


def _fitting(
    entries: Sequence[Entry], columns: Sequence[str] | None, width: int
) -> tuple[list[str], str]:
    """The columns that there is room for, and what to say about the others."""
    keys, left_out = chosen(entries, columns), list[str]()
    for key in _LEAST if columns is None else ():
        if key in keys and _least_width(entries, keys) > width:
            keys.remove(key)
            left_out.append(key)
    return keys, f"Too wide to show: {', '.join(left_out)}." if left_out else ""


def _cells(entry: Entry, keys: Sequence[str]) -> list[str]:
    return [_label(entry) if k == "path" else COLUMNS[k].text(entry) for k in keys]


def _label(entry: Entry) -> str:
    return "  " * entry["depth"] + entry["label"]


def _widths(entries: Sequence[Entry], keys: Sequence[str]) -> list[int]:
    rows = [[COLUMNS[key].title for key in keys], *(_cells(e, keys) for e in entries)]
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


_WRAPPED = {"tied_to": 14, "connected_to": 17, "output": 24}
"""How narrow a column of words may get before others are left out."""


def _least_width(entries: Sequence[Entry], keys: Sequence[str]) -> int:
    both = zip(keys, _widths(entries, keys), strict=True)
    return sum(min(n, _WRAPPED.get(key, n)) + 2 for key, n in both) - 2


def _fitted(entries: Sequence[Entry], keys: Sequence[str], width: int) -> list[int]:
    """Widths at which columns of words are wrapped; those of names only if need be."""
    widths = _widths(entries, keys)
    wraps = [_WRAPPED.get(key, n) for key, n in zip(keys, widths, strict=True)]
    words = [n if COLUMNS[k].right else 14 for k, n in zip(keys, widths, strict=True)]
    for least in (wraps, words):
        while sum(widths) + 2 * len(keys) - 2 > width:
            over = [n - m for n, m in zip(widths, least, strict=True)]
            if max(over) <= 0:
                break
            widths[over.index(max(over))] -= 1
    return widths


def _lines(
    entries: Sequence[Entry], keys: Sequence[str], widths: Sequence[int]
) -> list[str]:
    titles = [COLUMNS[key].title for key in keys]
    right = [COLUMNS[key].right for key in keys]
    lines = [_line(titles, right, widths), "  ".join("-" * n for n in widths)]
    for entry in entries:
        cells = [
            wrapped(c, n, len(c) - len(c.lstrip()) + 2)
            for c, n in zip(_cells(entry, keys), widths, strict=True)
        ]
        for at in range(max(map(len, cells))):
            parts = [cell[at] if at < len(cell) else "" for cell in cells]
            lines.append(_line(parts, right, widths))
    return lines


def wrapped(text: str, width: int, indent: int) -> list[str]:
    """A text in lines of at most so many characters, those after the first indented."""
    if len(text) <= width:
        return [text]
    first, rest = text[: len(text) - len(text.lstrip())], " " * indent
    return textwrap.wrap(
        text.strip(), width, initial_indent=first, subsequent_indent=rest
    )


def _line(parts: Sequence[str], right: Sequence[bool], widths: Sequence[int]) -> str:
    put = [
        part.rjust(n) if r else part.ljust(n)
        for part, r, n in zip(parts, right, widths, strict=True)
    ]
    return "  ".join(put).rstrip()


# --- other renderings


def as_markdown(
    entries: Sequence[Entry], totals: Sequence[tuple[str, str]],
    columns: Sequence[str] | None,
) -> str:  # fmt: skip
    """The table with full paths, and the totals as a list."""
    keys = chosen(entries, columns)
    rule = ["---:" if COLUMNS[key].right else ":---" for key in keys]
    rows = [[COLUMNS[key].title for key in keys], rule]
    rows += [[_escaped(_full(e, key)) for key in keys] for e in entries]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", *(f"- {name}: {value}" for name, value in totals)])


def _full(entry: Entry, key: str) -> str:
    text = COLUMNS[key].text(entry).strip()
    if key != "path":
        return text
    return text + (f" x {entry['n']}" if entry["n"] > 1 else "")


def _escaped(text: str) -> str:
    for mark in "\\`*_|":
        text = text.replace(mark, f"\\{mark}")
    return text


_CELL = "padding:2px 10px;white-space:nowrap;text-align:"


def as_html(
    entries: Sequence[Entry], totals: Sequence[tuple[str, str]],
    columns: Sequence[str] | None,
) -> str:  # fmt: skip
    """The table and its totals, in a form that needs no style sheet."""
    keys = chosen(entries, columns)
    head = "".join(
        f'<th style="{_CELL}{_side(key)}">{COLUMNS[key].title}</th>' for key in keys
    )
    body = "".join(
        f"<tr>{''.join(_html_cell(entry, key) for key in keys)}</tr>"
        for entry in entries
    )
    sums = "".join(
        f'<tr><th style="{_CELL}left">{html.escape(name)}</th>'
        f'<td style="{_CELL}left">{html.escape(value)}</td></tr>'
        for name, value in totals
    )
    return (
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        f"<table><tbody>{sums}</tbody></table>"
    )


def _side(key: str) -> str:
    return "right" if COLUMNS[key].right else "left"


def _html_cell(entry: Entry, key: str) -> str:
    text, style, title = html.escape(COLUMNS[key].text(entry)), _CELL + _side(key), ""
    if key == "path":
        text = html.escape(entry["label"])
        title = f' title="{html.escape(entry["path"])}"'
        style += f";padding-left:{10 + 16 * entry['depth']}px"
    elif key == "share" and entry["share"]:
        filled = round(100 * entry["share"], 1)
        style += ";min-width:80px"
        style += f";background:linear-gradient(90deg,#5b9bd566 {filled}%,transparent 0)"
        text = f"{entry['share']:.0%}"
    return f'<td{title} style="{style}">{text}</td>'


def as_rich(
    entries: Sequence[Entry], totals: Sequence[str], columns: Sequence[str] | None,
    width: int,
) -> Any:  # fmt: skip
    """The table for rich, in at most so many characters a line."""
    tables, text = (optional(f"rich.{name}", "summary") for name in ("table", "text"))
    keys, left_out = _fitting(entries, columns, width)
    below = text.Text("\n".join([*totals, *([left_out] if left_out else [])]))
    made = tables.Table(
        box=None,
        pad_edge=False,
        caption=below,
        caption_justify="left",
        caption_style="",
    )
    for key in keys:
        side = "right" if COLUMNS[key].right else "left"
        whole = key == "path" or COLUMNS[key].right
        made.add_column(COLUMNS[key].title, justify=side, no_wrap=whole)
    for entry in entries:
        made.add_row(*map(text.Text, _cells(entry, keys)))
    return made
