"""What the comparisons with other libraries share.

Outputs and the gradients of one weighting of them, ours and theirs. Theirs is computed
where the library is installed, and otherwise read from `tests/recorded/`, which
`pytest --record tests/test_conv.py` writes anew where it is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

RECORDED = Path(__file__).parent / "recorded"
FRESH: dict[str, dict[str, Any]] = {}
"""What was computed in this run, by file and by name: `--record` writes it."""
FOLDERS: dict[str, Path] = {}
"""Checkpoints that another library wrote in this run, by name."""


def reference(name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What another library computes: arrays by name.

    `name` is the file and the case, `conv/2d strided`; `compute` imports the library.
    """
    file, case = name.split("/", 1)
    try:
        answer = {key: numpy(value) for key, value in compute().items()}
    except ModuleNotFoundError:
        return _recorded(file)[case]
    FRESH.setdefault(file, {})[case] = answer
    return answer


def checkpoint(name: str, write: Callable[[Path], None], place: Path) -> Path:
    """A folder that another library writes into `place`; the recorded one without it."""
    if name in FOLDERS:
        return FOLDERS[name]
    try:
        write(place)
    except ModuleNotFoundError:
        return RECORDED / "checkpoints" / name
    FOLDERS[name] = place
    return place


@cache
def _recorded(file: str) -> dict[str, dict[str, Any]]:
    """The recorded cases of a file."""
    cases: dict[str, dict[str, Any]] = {}
    with np.load(RECORDED / f"{file}.npz") as stored:
        for name in stored.files:
            case, key = name.rsplit("|", 1)
            cases.setdefault(case, {})[key] = stored[name]
    return cases


def record() -> None:
    """Writes what this run computed: whole files, so that no case outlives its test."""
    for file, cases in FRESH.items():
        flat = {f"{c}|{k}": a for c, arrays in cases.items() for k, a in arrays.items()}
        np.savez_compressed(RECORDED / f"{file}.npz", **flat)
    for name, folder in FOLDERS.items():
        for file in ("config.json", "model.safetensors"):
            target = RECORDED / "checkpoints" / name / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((folder / file).read_bytes())


def normal(seed: int, *shape: int) -> Any:
    """Standard normal numbers, the same for both libraries."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def drawn(tree: Any, seed: int = 0, scale: float = 0.5) -> Any:
    """Normal numbers in place of every param: the same under every version of JAX."""
    leaves, structure = jax.tree.flatten(tree)
    filled = [scale * normal(seed + i, *leaf.shape) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, filled)


def ours(
    model: Any, params: Any, x: Any, weight: Any, state: Any = None, **options: Any
) -> tuple[Any, Any, Any, Any]:
    """Output, gradients for params and input, new state."""

    def loss(params: Any, x: Any) -> Any:
        y, after = model.apply(params, state or {}, x, **options)
        return jnp.sum(y * weight), (y, after)

    step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, (y, after)), (for_params, for_x) = step(params, x)
    return y, for_params, for_x, after


def run(model: Any, params: Any, x: Any, state: Any = None, **options: Any) -> Any:
    """The output, compiled as a whole: quicker than operation by operation."""
    names = [name for name in options if name == "train"]
    apply = jax.jit(model.apply, static_argnames=names)
    return apply(params, state or {}, x, **options)[0]


def close(actual: Any, desired: Any, rtol: float = 1e-5) -> None:
    """Equal to `rtol` of the largest number: sums of many terms round there."""
    actual, desired = np.asarray(actual), np.asarray(desired)
    assert actual.shape == desired.shape
    scale = max(float(np.max(np.abs(desired), initial=0.0)), 1e-6)
    np.testing.assert_allclose(actual, desired, rtol=rtol, atol=rtol * scale)


def channels_first(x: Any) -> Any:
    """`(batch, channels, *spatial)`."""
    return np.moveaxis(np.asarray(x), -1, 1)


def channels_last(x: Any) -> Any:
    """`(batch, *spatial, channels)`, of a tensor or array."""
    return np.moveaxis(numpy(x), 1, -1)


def numpy(x: Any) -> Any:
    """An array, of a tensor or array."""
    return x.detach().numpy() if hasattr(x, "detach") else np.asarray(x)


def same_pads(size: int, window: int, stride: int) -> tuple[int, int]:
    """Padding of one axis for "SAME", by its definition."""
    total = max((-(-size // stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2
