"""Low-rank adapters (LoRA): a small trained branch beside weights that stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from axonlike.combinators.basic import serial, wrapper
from axonlike.combinators.lifted import frozen
from axonlike.combinators.wire import wire
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
from axonlike.selector import Where
from axonlike.surgery import chosen_spots, innermost, rewritten, spots
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
        low = frame.call("lora", args, kwargs)
        return y + low * factor if factor != 1 else y + low

    return wrapper(f, run, {"lora": branch})


def _branch(f: Layer, rank: int) -> Layer:
    """The low-rank branch for a layer, by its kind."""
    make = _BRANCHES.get(f.factory)
    if make is None or f.config.get("feature_group_count", 1) != 1:
        kinds = ", ".join(factory.__name__ for factory in _BRANCHES)
        raise ValueError(
            f"adapter: there is no low-rank branch for {f.headline}. "
            f"Choose layers of the kinds {kinds} (conv in one group)."
        )
    return make(f.config, rank)


def _dense(config: Any, rank: int) -> Layer:
    same = {key: config[key] for key in config if key in ("axis", "precision")}
    up = dense(config["features"], use_bias=False, kernel_init=zeros())
    return serial(down=dense(rank, use_bias=False, **same), up=up)


def _projection(config: Any, rank: int) -> Layer:
    up = projection(config["features"], use_bias=False, kernel_init=zeros())
    return wire(_through, down=dense(rank, use_bias=False), up=up)


def _through(sub: Any, x: Any, like: Any) -> Any:
    return sub.up(sub.down(x), like)


def _embedding(config: Any, rank: int) -> Layer:
    down = embedding(config["num_embeddings"], rank, embedding_init=normal(1.0))
    up = dense(config["features"], use_bias=False, kernel_init=zeros())
    return serial(down=down, up=up)


def _conv(config: Any, rank: int) -> Layer:
    same = ("kernel_size", "strides", "padding", "kernel_dilation", "input_dilation")
    down = conv(rank, use_bias=False, **{k: config[k] for k in same if k in config})
    up = dense(config["features"], use_bias=False, kernel_init=zeros())
    return serial(down=down, up=up)


_BRANCHES: dict[Any, Callable[[Any, int], Layer]] = {
    dense: _dense, projection: _projection, embedding: _embedding, conv: _conv
}  # fmt: skip


def lora(
    model: Layer,
    where: Where,
    *,
    rank: int,
    alpha: float | None = None,
    but: Where = (),
) -> Layer:
    """The model with an `adapter` around what a selector means, and all else frozen.

    Weights of the old model become those of the new one by `migrate`, and adapters go
    into the weights again by `merge_lora`.

    Args:
        model: any layer.
        where: a selector of layers: dense, projection, embedding or conv.
        rank: of the adapters.
        alpha: of the adapters.
        but: a selector of other params that stay trainable.

    Shapes:
        As the model's; params with `.../lora/down` and `.../lora/up` besides.

    Raises:
        PathError: the selector means nothing.
        ValueError: it means a layer of another kind.

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
    changes = {
        spot.chain: adapter(spot.layer.named(None), rank, alpha=alpha).named(
            spot.layer.name
        )
        for spot in chosen
    }
    return frozen(rewritten(model, changes), but=_union(but))


def _union(but: Where) -> Where:
    more = [but] if isinstance(but, str) or callable(but) else list(but)
    return ["**/lora", *more]


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
    changes: dict[Any, Layer] = {}
    arrays = dict(paths(params))
    for spot in found:
        changes[spot.chain] = spot.layer.children["f"].named(spot.layer.name)
        for path in spot.paths:
            _add(arrays, path, spot.layer)
    plain = rewritten(model, changes)
    if plain.factory is frozen and plain.config["but"] is not None:
        plain = plain.children["f"].named(plain.name)
    return plain, merge(*(_nested(path, array) for path, array in arrays.items()))


def _add(arrays: dict[str, Any], path: str, layer: Layer) -> None:
    """Adds an adapter's product to the weights of its layer, by path."""
    config = layer.config
    alpha = config["rank"] if config["alpha"] is None else config["alpha"]
    down = arrays.pop(next(p for p in arrays if p.startswith(join(path, "lora/down/"))))
    up = arrays.pop(join(path, "lora/up/kernel"))
    home = join(
        path, "embedding" if layer.children["f"].kind == "embedding" else "kernel"
    )
    product = partial(jnp.tensordot, axes=1)
    for _ in range(path.split("/").count("*")):
        product = jax.vmap(product)
    delta = product(down, up) * (alpha / config["rank"])
    arrays[home] = arrays[home] + delta.astype(arrays[home].dtype)


def _nested(path: str, array: Any) -> Params:
    """A tree of one array."""
    for step in reversed(path.split("/")):
        array = {step: array}
    return array
