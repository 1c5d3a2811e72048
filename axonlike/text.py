"""Layers as text: the source that makes one, a headline, and the model as one reads it."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, cast

from axonlike import values
from axonlike.names import walk


def arguments(layer: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The call of the factory that makes this layer: positional and keyword arguments."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for name, value in layer.config.items():
        parameter = parameters(layer).get(name)
        kind = None if parameter is None else parameter.kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            args += value
        elif kind is inspect.Parameter.VAR_KEYWORD:
            kwargs |= value
        elif kind in (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
        ) and len(args) == list(layer.config).index(name):
            args.append(value)
        else:
            kwargs[name] = value
    return tuple(args), kwargs


@lru_cache(maxsize=1024)
def signature_of(factory: Any) -> inspect.Signature:
    """The signature of a factory's body, read when it is first needed."""
    return inspect.signature(getattr(factory, "__axonlike_body__", factory))


def parameters(layer: Any) -> Mapping[str, inspect.Parameter]:
    """The parameters of the factory that made a layer."""
    return signature_of(layer.factory).parameters


def is_default(layer: Any, name: str, value: Any) -> bool:
    """Whether an argument is what the factory takes without it."""
    parameter = parameters(layer).get(name)
    if parameter is None:
        return False
    if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
        return value == ()
    if parameter.kind is inspect.Parameter.VAR_KEYWORD:
        return value == {}
    return values.token(value, id) == values.token(parameter.default, id)


def source(layer: Any, *, with_name: bool) -> str:
    """The expression that makes an equal layer."""
    name = layer.name if with_name else None
    if layer.function is not None:
        return _lifted(layer.function, name)
    if layer.partial and layer.kind == "part":
        return f"{layer.config['model']!r}.part({layer.config['path']!r})"
    parts: list[str] = []
    bare = _bare(layer)
    for at, (key, value) in enumerate(layer.config.items()):
        kind = parameters(layer)[key].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            parts += map(_value, value)
        elif at < bare:
            parts.append(_value(value))
        elif is_default(layer, key, value):
            continue
        elif kind is inspect.Parameter.VAR_KEYWORD:
            parts += [f"{k}={_value(v)}" for k, v in value.items()]
        else:
            parts.append(f"{key}={_value(value)}")
    if name is not None:
        parts.append(f"name={name!r}")
    factory = values.public(values.import_name(layer.factory) or layer.kind)
    return f"{factory}({', '.join(parts)})"


def replaced(layer: Any) -> str:
    """What follows the call where a layer has other children than its factory made."""
    if not layer.replaced:
        return ""
    inner = {slot: layer.children[slot] for slot in sorted(layer.replaced)}
    return f".with_children({_value(inner)})"


def _bare(layer: Any) -> int:
    """How many arguments stand without their names: up to the last that has to."""
    count = 0
    for at, (key, value) in enumerate(layer.config.items()):
        parameter = parameters(layer)[key]
        required = parameter.default is inspect.Parameter.empty
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            count = at + 1 if value else count
        elif parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            count = at + 1
        elif parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
            count = at + 1 if required and is_layer(value) else count
    return count


def _lifted(function: Any, name: str | None) -> str:
    """A lifted function where it stands alone: as an argument it needs no `lift`."""
    text = getattr(function, "__axonlike_source__", None)
    if text is not None and name is None:
        return text
    rest = "" if name is None else f", name={name!r}"
    return f"al.lift({text or values.source(function)}{rest})"


def _value(value: Any) -> str:
    if is_layer(value):
        bare = value.function is not None and value.name is None
        if bare and not hasattr(value.function, "__axonlike_source__"):
            return values.source(value.function)
        return repr(value)
    if type(value) in (tuple, list) and holds_layers(value):
        inner = ", ".join(map(_value, value))
        return f"[{inner}]" if type(value) is list else f"({inner},)"
    if type(value) is dict and holds_layers(value):
        items = cast("dict[Any, Any]", value).items()
        return "{" + ", ".join(f"{k!r}: {_value(v)}" for k, v in items) + "}"
    return values.source(value)


def brief(value: Any) -> str:
    """Source for a headline: cut where it is long."""
    text = values.source(value)
    return text if len(text) <= 60 else text[:57] + "..."


def holds_layers(value: Any) -> bool:
    """Whether a config value is a layer, or a container with one in it."""
    if isinstance(value, dict):
        return any(map(holds_layers, cast("dict[Any, Any]", value).values()))
    if isinstance(value, (tuple, list)):
        return any(map(holds_layers, cast("list[Any]", value)))
    return is_layer(value)


def headline(layer: Any) -> str:
    """One line for errors: the kind with what was configured."""
    if layer.function is not None:
        return values.source(layer.function)
    shown = [
        _option(layer, name, value)
        for name, value in layer.config.items()
        if not is_default(layer, name, value) and not holds_layers(value)
    ]
    more = ["..."] if any(map(holds_layers, layer.config.values())) else []
    return f"{layer.kind}({', '.join([*shown, *more])})"


def _option(layer: Any, name: str, value: Any) -> str:
    """One argument of a headline; those without a name as they were passed."""
    parameter = parameters(layer).get(name)
    if parameter is not None and parameter.kind is inspect.Parameter.VAR_POSITIONAL:
        return ", ".join(map(brief, value))
    return f"{name}={brief(value)}"


Item = tuple[str, Any, Mapping[str, Any]]
"""A child as one reads it: its name, "" for none; itself, and the places below it."""


def lines(
    layer: Any, label: str = "", indent: str = "", places: Any = None
) -> Iterator[str]:
    """The model as one reads it: a line a layer, runs of equal siblings as one.

    A wrapper stands around its body on one line; what a body in several steps holds
    stands below. Names are those of paths.
    """
    head, items = _read(layer, layer.places if places is None else places)
    yield f"{indent}{label}: {head}" if label else f"{indent}{head}"
    at = 0
    while at < len(items):
        name, child, below = items[at]
        same = _run_length(items[at:])
        if same > 2 and name:
            name = f"{name} .. {items[at + same - 1][0]}"
        if same > 2:
            first, *rest = lines(child, "", indent + "  ", below)
            count = f"{name}: {same} x " if name else f"{same} x "
            yield f"{indent}  {count}{first.strip()}"
            yield from rest
            at += same
            continue
        yield from lines(child, name, indent + "  ", below)
        at += 1


def _read(layer: Any, places: Mapping[str, Any]) -> tuple[str, list[Item]]:
    """One line for a layer, and what there is to say below it."""
    if layer.function is not None:
        return layer.kind, []
    items = _items(layer, places)
    if "f" not in layer.children or places["f"].path:
        return headline(layer), items
    body = layer.children["f"]
    inner, below = _read(body, places["f"].below)
    items = [*below, *_items(layer, places, without="f")]
    if layer.kind == "repeat":
        return _repeated(layer, inner), items
    head, own = headline(layer), layer.transparent or layer.indexed
    if body.kind == "serial" or not own or not head.endswith("...)"):
        return head, items
    return head.removesuffix("...)") + f"{inner})", items


def _repeated(layer: Any, inner: str) -> str:
    """So many times the body, and how it is run where that is said."""
    options = [
        _option(layer, name, value)
        for name, value in layer.config.items()
        if name not in ("f", "n") and not is_default(layer, name, value)
    ]
    how = f" ({', '.join(options)})" if options else ""
    return f"{layer.config['n']} x {inner}{how}"


def _items(layer: Any, places: Mapping[str, Any], without: str = "") -> list[Item]:
    """The children of a layer; those that add no level have no name."""
    return [
        ("/".join(places[slot].path), child, places[slot].below)
        for slot, child in layer.children.items()
        if slot != without
    ]


def _run_length(items: list[Item]) -> int:
    """How many siblings from the first on are equal."""
    first = items[0][1].named(None)
    count = 1
    while count < len(items) and items[count][1].named(None) == first:
        count += 1
    return count


def as_html(layer: Any) -> str:
    """The same for a notebook, where what is inside of a layer folds away."""
    import html

    every = list(lines(layer))
    depths = [(len(line) - len(line.lstrip())) // 2 for line in every]
    parts: list[str] = []
    for line, depth, after in zip(every, depths, [*depths[1:], 0], strict=True):
        shown = f"<code>{html.escape(line.strip())}</code>"
        if after > depth:
            style = "margin-left:1.5em" if depth else ""
            parts.append(f'<details open style="{style}"><summary>{shown}</summary>')
        else:
            parts.append(f'<div style="margin-left:1.5em">{shown}</div>')
            parts += ["</details>"] * (depth - after)
    return "".join(parts)


def check_importable(layer: Any) -> None:
    """Refuses, with its path, what another process could not find by name."""
    for path, item in [("", layer), *walk(layer, layer.places, "")]:
        found = _first_lambda([item.factory, dict(item.config)])
        if found is not None:
            raise pickle.PicklingError(
                f"{path or item.kind}: {values.source(found)} has no name to import it by. "
                "Define it with def at the top of a module."
            )


def _first_lambda(value: Any) -> Any:
    if is_layer(value):
        return None
    if isinstance(value, dict):
        value = list(cast("dict[Any, Any]", value).values())
    if isinstance(value, (tuple, list)):
        found = (_first_lambda(v) for v in cast("list[Any]", value))
        return next((f for f in found if f is not None), None)
    return value if values.is_lambda(value) else None


def is_layer(value: Any) -> bool:
    """Whether a config value is a layer, which is written by its own source."""
    return hasattr(value, "init_function")
