"""Where an error happened: path, layer, input specs and the trail, as a note on it."""

from __future__ import annotations

import os
import types
from typing import Any

import jax

from axonlike.spec import show

_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_HIDDEN = (_HERE, os.path.dirname(os.path.abspath(jax.__file__)) + os.sep)
_MARK = "_axonlike_blamed"
_MORE = "_axonlike_more"


def blame(error: Exception, frame: Any, parent: Any, name: str) -> None:
    """Adds the note, once: at the innermost layer that the error passed through."""
    if getattr(error, _MARK, False):
        return
    setattr(error, _MARK, True)
    where = place(frame.site, frame.layer, frame.given)
    error.add_note(where + _trail(frame, parent, name))
    for line in getattr(error, _MORE, ()):
        error.add_note(f"  {line}")


def explain(error: Exception, lines: list[str]) -> None:
    """More to say below where the error happened, of what may be behind it."""
    setattr(error, _MORE, lines)


def located(error: Exception, site: str, layer: Any) -> Exception:
    """The error with a note that says where the layer stands, for one that never ran."""
    setattr(error, _MARK, True)
    error.add_note(place(site, layer))
    return error


def hide(error: Exception) -> Exception:
    """The error without our stack frames and JAX's: the user's lines stand together.

    JAX's switch for its own frames (`jax_traceback_filtering`) governs ours too. JAX
    would take out its own later, but that takes it a quarter of a millisecond a frame.
    """
    if jax.config.values.get("jax_traceback_filtering") == "off":
        return error
    kept: list[types.TracebackType] = []
    trace = error.__traceback__
    while trace is not None:
        if not trace.tb_frame.f_code.co_filename.startswith(_HIDDEN):
            kept.append(trace)
        trace = trace.tb_next
    following: types.TracebackType | None = None
    for item in reversed(kept):
        following = types.TracebackType(
            following, item.tb_frame, item.tb_lasti, item.tb_lineno
        )
    return error.with_traceback(following)


def here(depth: int) -> tuple[str, int]:
    """File and line of the nearest caller outside this package."""
    import sys

    frame: types.FrameType | None = sys._getframe(depth)  # pyright: ignore[reportPrivateUsage]
    while frame is not None and frame.f_code.co_filename.startswith(_HERE):
        frame = frame.f_back
    if frame is None:
        return ("?", 0)
    return frame.f_code.co_filename, frame.f_lineno


def place(site: str, layer: Any, given: tuple[Any, ...] = ()) -> str:
    """A layer: its path, what it is, the specs of its inputs, and the line it is from."""
    file, line = layer.source
    inputs = f" on {show(given[0] if len(given) == 1 else given)}" if given else ""
    text = f"  in {site or 'the model'}: {layer.headline}{inputs}"
    return f"{text:<68}  ({os.path.basename(file)}:{line})"


def steps(frame: Any) -> list[str]:
    """What a frame has run so far: its input and what came of each layer with a name."""
    first = [f"input {show(frame.given[0])}"] if len(frame.given) == 1 else []
    if len(frame.given) > 1:
        first = [f"inputs {show(frame.given)}"]
    return first + [f"{step} {show(y)}" for step, y in frame.trail if step]


def _trail(frame: Any, parent: Any, name: str) -> str:
    if parent is None or not name:  # its own, if what failed is what it did with those
        parent, name = frame, ""
    named = [*steps(parent), name] if name else steps(parent)
    return f"\n  trail: {' -> '.join(named)} ✗" if len(named) > 1 else ""
