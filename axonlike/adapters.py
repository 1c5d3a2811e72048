"""Low-rank adapters (LoRA): a small trained branch beside weights that stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from axonlike.combinators.basic import serial, wrapper
from axonlike.combinators.lifted import frozen
from axonlike.combinators.tying import ties
from axonlike.combinators.wire import wire
from axonlike.errors import PathError
from axonlike.frame import Frame
from axonlike.initializers import normal, zeros
from axonlike.layer import Layer, as_layer, layer
from axonlike.layers.attention import projection
from axonlike.layers.checks import positive
from axonlike.layers.conv import conv
from axonlike.layers.embed import embedding
from axonlike.layers.linear import dense
from axonlike.params import merge, paths
from axonlike.paths import join
from axonlike.selector import Selector, Where
from axonlike.selector import where as where_
from axonlike.spots import spots
from axonlike.surgery import chosen_spots, innermost, rewritten
from axonlike.types import Params, PyTree


@layer
def adapter(
    f: Any, rank: int, *, alpha: float | None = None, name: str | None = None
) -> Any:
    """A layer plus a low-rank branch, `f(x) + alpha / rank * up(down(x))`.

    `down` is a layer like `f` with `rank` features, `up` a map from those to `f`'s
    features that starts at zero, so that at first the adapter changes nothing.

    Args:
        f: a dense, projection, embedding or conv layer.
        rank: features between `down` and `up`.
        alpha: scale of the branch; None: `rank`, so that its factor is 1.

    Shapes:
        As `f`'s; params `lora/down/...` and `lora/up/...` stand beside `f`'s.

    Raises:
        ValueError: the rank is not a positive int, or there is no such branch for `f`.

    Example:
        >>> import jax, axonlike as al
        >>> params, state = al.adapter(al.dense(8), 2).init(jax.random.key(0), (None, 4))
        >>> sorted(path for path, array in al.paths(params))
        ['bias', 'kernel', 'lora/down/kernel', 'lora/up/kernel']

    References:
        Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022.
    """
    positive("adapter", rank=rank)
    if not isinstance(f, Layer):
        return adapter(as_layer(f, "adapter"), rank, alpha=alpha)
    factor = (rank if alpha is None else alpha) / rank
    branch = _branch(f, rank)

    def run(frame: Frame, args: Any, kwargs: Any, method: str) -> PyTree:
        y = frame.call("f", args, kwargs, method)
        if any(kwargs.values()):  # such as an embedding's attend: the other way round
            raise ValueError(
                f"adapter: {f.kind} is called with {sorted(kwargs)} here, for which there "
                "is no low-rank branch. Adapt another layer."
            )
        low = frame.call("lora", args, kwargs)
        return y + low * factor if factor != 1 else y + low

    return wrapper(f, run, {"lora": branch})


def _branch(f: Layer, rank: int) -> Layer:
    """The low-rank branch for a layer, by its kind."""
    make = _BRANCHES.get(f.factory)
    plain = f.config.get("feature_group_count", 1) == 1 and f.config.get("mask") is None
    if make is None or not plain:
        kinds = ", ".join(factory.__name__ for factory in _BRANCHES)
        raise ValueError(
            f"adapter: there is no low-rank branch for {f.headline}. "
            f"Choose layers of the kinds {kinds} (conv in one group, without a mask)."
        )
    return make(f.config, rank)


_SHARED = ("param_dtype", "precision", "dot_general")


def _like(config: Any, *names: str) -> dict[str, Any]:
    """Those of a layer's options that its branch has too."""
    return {name: config[name] for name in (*_SHARED, *names) if name in config}


def _up(config: Any) -> Layer:
    """From rank to features, zero at first."""
    return dense(
        config["features"], use_bias=False, kernel_init=zeros(), **_like(config)
    )


def _dense(config: Any, rank: int) -> Layer:
    down = dense(rank, use_bias=False, **_like(config, "axis"))
    return serial(down=down, up=_up(config))


def _projection(config: Any, rank: int) -> Layer:
    same = _like(config)
    up = projection(config["features"], use_bias=False, kernel_init=zeros(), **same)
    return wire(_through, down=dense(rank, use_bias=False, **same), up=up)


def _through(sub: Any, x: Any, like: Any) -> Any:
    return sub.up(sub.down(x), like)


def _embedding(config: Any, rank: int) -> Layer:
    same = _like(config)
    down = embedding(config["num_embeddings"], rank, embedding_init=normal(1.0), **same)
    return serial(down=down, up=_up(config))


def _conv(config: Any, rank: int) -> Layer:
    size = ("kernel_size", "strides", "padding", "kernel_dilation", "input_dilation")
    same = {k: v for k, v in _like(config, *size).items() if k != "dot_general"}
    return serial(down=conv(rank, use_bias=False, **same), up=_up(config))


_BRANCHES: dict[Any, Callable[[Any, int], Layer]] = {
    dense: _dense, projection: _projection, embedding: _embedding, conv: _conv
}  # fmt: skip


def lora(
    model: Layer,
    where: Where,
    *,
    rank: int,
    alpha: float | None = None,
    but: Where = None,
) -> Layer:
    """The model with an `adapter` around what a selector means, and all else frozen.

    Weights of the old model become those of the new one by `migrate`, and adapters go
    into the weights again by `merge_lora`.

    Args:
        model: any layer.
        where: a selector of layers: dense, projection, embedding or conv.
        rank: of the adapters.
        alpha: of the adapters.
        but: a selector of other params that stay trainable; None for no others.

    Shapes:
        As the model's; params with `.../lora/down` and `.../lora/up` besides.

    Raises:
        PathError: the selector means nothing.
        ValueError: it means a layer of another kind, or one that is tied.

    Example:
        >>> import jax, axonlike as al
        >>> model = al.serial(body=al.dense(8), head=al.dense(2))
        >>> params, state = model.init(jax.random.key(0), (None, 4))
        >>> tuned = al.lora(model, "body", rank=2)
        >>> params, state, report = al.migrate(
        ...     model, tuned, params, state, key=jax.random.key(1))
        >>> report.initialized
        ['body/lora/down/kernel', 'body/lora/up/kernel']

    References:
        Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022.
    """
    chosen = innermost(chosen_spots("lora", model, where))
    lent = {end.rpartition("/")[0] for pair in ties(model) for end in pair}
    changes: dict[Any, Layer] = {}
    for spot in chosen:
        if lent.intersection(spot.paths):
            raise ValueError(
                f"lora: {spot.paths[0]!r} is tied, so its weights are another layer's "
                "too. Choose layers of their own, or untie them."
            )
        made = adapter(spot.layer.named(None), rank, alpha=alpha)
        changes[spot.chain] = made.named(spot.layer.name)
    new = rewritten(model, changes)
    free = _LORA if but is None else where_(_LORA, but)
    return frozen(new.named(None), but=free).named(new.name)


_LORA = "**/lora"


def merge_lora(model: Layer, params: Params) -> tuple[Layer, Params]:
    """The model without adapters, what they learned being added to the weights.

    Args:
        model: as `lora` made it.
        params: of that model.

    Shapes:
        Those of the model before `lora`.

    Raises:
        ValueError: there is no adapter.

    Example:
        >>> import jax, axonlike as al
        >>> tuned = al.lora(al.dense(8) >> al.dense(2), "dense", rank=2)
        >>> params, state = tuned.init(jax.random.key(0), (None, 4))
        >>> model, params = al.merge_lora(tuned, params)
        >>> model == al.dense(8) >> al.dense(2)
        True
    """
    found = [spot for spot in spots(model) if spot.layer.factory is adapter]
    if not found:
        raise ValueError(
            f"merge_lora: there is no adapter in {model.headline}. "
            "Pass the model that lora(...) returned."
        )
    arrays = dict(paths(params))
    for spot in found:
        for path in spot.paths:
            _add(arrays, path, spot.layer)
    plain = _without(model, adapter)
    while any(_is_for_lora(spot.layer) for spot in spots(plain)):
        plain = _without(plain, frozen)
    return plain, merge(*(_nested(path, array) for path, array in arrays.items()))


def _without(model: Layer, wrapped: Any) -> Layer:
    """The model without wrappers that `lora` put there."""
    changes: dict[Any, Layer] = {}
    for spot in spots(model):
        ours = spot.layer.factory is wrapped is adapter or (
            wrapped is frozen and _is_for_lora(spot.layer)
        )
        if ours and not any(spot.chain[:n] in changes for n in range(len(spot.chain))):
            changes[spot.chain] = spot.layer.children["f"].named(spot.layer.name)
    return rewritten(model, changes)


def _is_for_lora(layer: Layer) -> bool:
    if layer.factory is not frozen:
        return False
    but = layer.config["but"]
    return but == _LORA or (isinstance(but, Selector) and but.parts[0] == _LORA)


def _add(arrays: dict[str, Any], path: str, layer: Layer) -> None:
    """Adds an adapter's product to the weights of its layer, by path."""
    config = layer.config
    alpha = config["rank"] if config["alpha"] is None else config["alpha"]
    start = join(path, "lora/down/")
    down = next((p for p in arrays if p.startswith(start)), None)
    if down is None:
        raise PathError("merge_lora", start + "kernel", list(arrays), "Migrate first.")
    low, up = arrays.pop(down), arrays.pop(join(path, "lora/up/kernel"))
    home = join(
        path, "embedding" if layer.children["f"].kind == "embedding" else "kernel"
    )
    product = partial(jnp.tensordot, axes=1)
    for _ in range(path.split("/").count("*")):
        product = jax.vmap(product)
    delta = product(low, up) * (alpha / config["rank"])
    arrays[home] = arrays[home] + delta.astype(arrays[home].dtype)


def _nested(path: str, array: Any) -> Params:
    """A tree of one array."""
    for step in reversed(path.split("/")):
        array = {step: array}
    return array
