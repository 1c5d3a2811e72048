"""How a shape comes about: the trail to a layer, or to where a model fails."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

from axonlike.blame import place, steps
from axonlike.errors import PathError
from axonlike.frame import Frame, Run
from axonlike.initialize import Recorder, param_path, run_abstract
from axonlike.inspect.suggest import suggestions
from axonlike.layer import Layer, as_layer
from axonlike.names import walk
from axonlike.paths import join
from axonlike.spec import as_spec, show
from axonlike.types import PyTree


def explain(model: Any, spec: PyTree, path: str | None = None) -> str:
    """How the shape at a layer comes about: the trail of specs that leads there.

    Written as errors write it, one line for each layer around. A model that fails before
    is explained up to where it fails, with what may be meant instead.

    Args:
        model: any layer, or a function.
        spec: what stands for the input, as for `init`.
        path: of a layer in the model, `f#1` for a second use; one copy of a stacked repeat
            stands for all. None: all of the model.

    Shapes:
        Any. Nothing is computed.

    Returns:
        The text, to be printed.

    Raises:
        PathError: there is no such layer.
        TypeError: the model is no layer, or the path no text.

    Example:
        >>> import jax, axonlike as al
        >>> model = al.serial(body=al.dense(8) >> jax.nn.relu, head=al.dense(2))
        >>> print(al.explain(model, al.spec("b 4"), "body/relu"))  # doctest: +ELLIPSIS
          in body/relu: jax.nn.relu on float32[b, 8] ...
          trail: input float32[b, 4] -> body
          trail in body: input float32[b, 4] -> dense float32[b, 8] -> relu float32[b, 8]
    """
    model, specs = as_layer(model, "explain"), as_spec(spec)
    if path is not None and not isinstance(cast(Any, path), str):
        raise TypeError(f"explain: expected a path, got {show(path)}.")
    known = ["", *(below for below, _ in walk(model, model.places, "", every=True))]
    wanted = path or ""
    if not any(_means(param_path(wanted), site) for site in known):
        raise PathError("explain", wanted, known[1:])
    _check_copies(model, wanted)
    watch = _Watch(wanted)
    try:
        run_abstract(model, Run(recorder=watch), specs)
    except Exception as error:
        if watch.failed is None:
            raise
        if watch.found is None:
            return _of_failure(error, watch.failed)
    if watch.found is None:
        raise PathError("explain", wanted, known[1:], "Nothing calls it.")
    return "\n".join(watch.found)


def _check_copies(model: Layer, wanted: str) -> None:
    """Refuses the number of a copy that there is not: stacked ones have no paths."""
    steps = wanted.split("/")
    for home, layer in [("", model), *walk(model, model.places, "", every=True)]:
        at = len(home.split("/")) if home else 0
        number = "".join(steps[at : at + 1])
        above = "/".join(steps[:at])
        if layer.indexed and number.isdigit() and _means(above, home):
            n = layer.plain.config["n"]
            if int(number) >= n:
                copies = [join(above, str(i)) for i in range(n)]
                hint = f"There are {n} copies."
                raise PathError("explain", join(above, number), copies, hint)


def _of_failure(error: Exception, stack: list[Any]) -> str:
    message = str(error).splitlines()[0]
    lines = [f"{type(error).__name__}: {message}", *_lines(stack, " ✗")]
    lines += [f"  Perhaps {hint}" for hint in suggestions(error, stack[-1])]
    return "\n".join(lines)


class _Watch(Recorder):
    """Init's pass over shapes, all copies of it run, with the frames that are open."""

    def __init__(self, wanted: str) -> None:
        super().__init__()
        self.wanted = wanted
        self.found: list[str] | None = None
        self.failed: list[Any] | None = None
        self._open: list[Frame] = []

    def visit(self, frame: Frame, args: Any, kwargs: Any, method: str) -> PyTree:
        """Runs a layer; notes the trail where it is the one that is wanted."""
        self.forget()
        around = list(self._open)
        self._open.append(frame)
        try:
            y = super().visit(frame, args, kwargs, method)
        except Exception:
            self.failed = self.failed or list(self._open)
            raise
        finally:
            self._open.pop()
        first = self.found is None and all(each.site != frame.site for each in around)
        if first and method == "apply" and _means(self.wanted, frame.site):
            end = f" {show(y)}" if around else ""
            self.found = _lines([*around, frame], end)
        return y


def _means(wanted: str, site: str) -> bool:
    """Whether a path means a site: one copy stands for all, the first for any."""
    if "#" not in wanted:
        site = param_path(site)
    ours, theirs = wanted.split("/"), site.split("/")
    pairs = zip(ours, theirs, strict=False)
    return len(ours) == len(theirs) and all(a == b or _copy(a, b) for a, b in pairs)


def _copy(step: str, other: str) -> bool:
    return "*" in (step, other) and (step + other).strip("*").isdigit()


def _lines(stack: list[Frame], end: str) -> list[str]:
    """Where the last of several frames is, and how each of them led to it.

    The last one that leads there ends with `end`.
    """
    last = stack[-1]
    lines = [place(last.site, last.layer, last.given)]
    for frame, inner in pairwise(stack):
        name = inner.site.removeprefix(f"{frame.site}/" if frame.site else "")
        if frame.site == inner.site or name == "*" or name.isdigit():
            continue  # a layer that adds no level: what is in it says more
        mark = end if inner.site == last.site else ""
        lines.append(_trail(frame, [*steps(frame), name + mark]))
    if len(steps(last)) > 1:
        mark = end if end == " ✗" else ""
        lines.append(_trail(last, [*steps(last)[:-1], steps(last)[-1] + mark]))
    return lines


def _trail(frame: Frame, found: list[str]) -> str:
    where = f" in {frame.site}" if frame.site else ""
    return f"  trail{where}: {' -> '.join(found)}"
