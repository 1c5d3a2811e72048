"""One comparison for many layers: a definition in PyTorch, on the same nested params."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from parity import close, drawn, normal, reference

LEADS = ((), (5,), (1,), (0,), (2, 3), (1, 4), (2, 1, 3))
COUNT = 20
"""How many configurations of a layer are drawn."""


def drawn_options(seed: int, **choices: Any) -> Any:
    """One of each list of choices."""
    rng = np.random.default_rng(seed)
    return {name: each[rng.integers(len(each))] for name, each in choices.items()}


def agrees(name: str, layer: Any, xs: Any, define: Callable[..., Any]) -> None:
    """Output and all gradients are those of `define(params, *xs)` in PyTorch."""
    inputs = xs if len(xs) > 1 else xs[0]
    shapes, _ = jax.eval_shape(layer.init, jax.random.key(0), inputs)
    params = drawn(shapes, seed=7)
    weight = normal(8, *layer.output_spec(inputs).shape)
    mine = _ours(layer, params, xs, weight)
    theirs = reference(name, lambda: _theirs(define, params, xs, weight))
    assert mine.keys() == theirs.keys()
    for key, value in mine.items():
        close(value, theirs[key])


def _ours(layer: Any, params: Any, xs: Any, weight: Any) -> dict[str, Any]:
    floats = [i for i, x in enumerate(xs) if x.dtype == np.float32]

    def loss(params: Any, moving: Any) -> Any:
        full = list(xs)
        for i, x in zip(floats, moving, strict=True):
            full[i] = x
        y = layer.predict(params, {}, tuple(full) if len(full) > 1 else full[0])
        return jnp.sum(y * weight), y

    step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, y), (for_params, for_xs) = step(params, [xs[i] for i in floats])
    found = {f"input {i}": g for i, g in zip(floats, for_xs, strict=True)}
    return {"y": y, **found, **_flat(for_params)}


def _theirs(define: Any, params: Any, xs: Any, weight: Any) -> dict[str, Any]:
    import torch

    def tensor(x: Any) -> Any:
        return torch.tensor(x, requires_grad=x.dtype == np.float32)

    mine, inputs = jax.tree.map(tensor, params), [tensor(x) for x in xs]
    y = define(mine, *inputs)
    (y * torch.tensor(weight)).sum().backward()
    found = {f"input {i}": x for i, x in enumerate(inputs) if x.requires_grad}
    leaves = {**found, **_flat(mine)}
    none = {k: torch.zeros_like(v) for k, v in leaves.items()}
    return {
        "y": y,
        **{k: none[k] if v.grad is None else v.grad for k, v in leaves.items()},
    }


def _flat(tree: Any) -> dict[str, Any]:
    pairs = jax.tree.flatten_with_path(tree)[0]
    return {"/".join(str(step.key) for step in path): leaf for path, leaf in pairs}
