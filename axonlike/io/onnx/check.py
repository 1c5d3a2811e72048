"""The file against the model: by ONNX's own checker, and run by onnxruntime."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from axonlike.extras import optional
from axonlike.io.onnx.graph import stored
from axonlike.spec import is_unknown, names_of, size_of

_MOST_TRIED = 100


class Case(NamedTuple):
    """What a file has to compute: a function of weights and an input."""

    function: Any
    weights: tuple[Any, Any]
    specs: Any
    facts: Sequence[str]
    """Constraints on the open sizes."""
    carried: Mapping[str, Any]
    """The state, where it is an input, by name."""


def is_to_run(check: bool | None) -> bool:
    """Whether to compare with onnxruntime: as asked, or else if it is installed."""
    installed = importlib.util.find_spec("onnxruntime") is not None
    if check and not installed:
        raise ImportError(
            "export_onnx: check=True compares with onnxruntime, which is not installed. "
            "Install it with: pip install onnxruntime."
        )
    return installed if check is None else check


def check_file(path: Path) -> None:
    """Raises ONNX's own error where the file is not as ONNX demands."""
    checker = optional("onnx", "export_onnx").checker
    checker.check_model(str(path), full_check=True)


def compare(
    path: Path, names: Sequence[str], case: Case, tolerance: float | None = None
) -> None:
    """Runs the file for two choices of open sizes, and refuses other results."""
    run, function = runner(path), cast(Any, jax.jit(case.function))
    leaves, tree = cast(Any, jax.tree.flatten(case.specs))
    for seed, sizes in enumerate(_choices(leaves, case.facts)):
        arrays = [_sample(spec, sizes, seed) for spec in leaves]
        with jax.default_matmul_precision("highest"):
            wanted = function(*case.weights, jax.tree.unflatten(tree, arrays))
        made = run({**case.carried, **dict(zip(names, arrays, strict=True))})
        pairs = zip(made.items(), jax.tree.leaves(wanted), strict=True)
        for (name, theirs), ours in pairs:
            _check(name, np.asarray(ours), theirs, tolerance, sizes)


def runner(path: Path) -> Any:
    """`run(arrays by name) -> outputs by name`, by onnxruntime on a CPU."""
    ort: Any = importlib.import_module("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    try:
        session = ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # its errors have no base class of their own
        raise ValueError(
            f"export_onnx: onnxruntime {ort.__version__} does not load the file: {error} "
            "Pass an older opset=, or check=False to look at the file."
        ) from error

    def run(arrays: Mapping[str, Any]) -> dict[str, Any]:
        feeds = {name: _held(array) for name, array in arrays.items()}
        names = [item.name for item in session.get_outputs()]
        return dict(zip(names, session.run(names, feeds), strict=True))

    return run


def _held(array: Any) -> np.ndarray[Any, Any]:
    """The numbers in the dtype in which the file takes them."""
    return np.asarray(array).astype(stored(array.dtype), copy=False)


# --- sizes and numbers


def _choices(specs: Sequence[Any], facts: Sequence[str]) -> Iterator[dict[str, int]]:
    """Two choices of the open sizes, for which all facts about them hold; or the one."""
    open_ = [str(n) for spec in specs for n in spec.shape if is_unknown(n)]
    names = list(dict.fromkeys(name for dim in open_ for name in names_of(dim)))
    apart = [
        {name: n + i for i, name in enumerate(names)} for n in range(2, _MOST_TRIED)
    ]
    equal = [dict.fromkeys(names, n) for n in range(1, _MOST_TRIED)]
    found = [each for each in (*apart, *equal) if _is_possible(each, open_, facts)]
    if not found:
        raise ValueError(
            f"export_onnx: found no sizes below {_MOST_TRIED} for which "
            f"{', '.join(facts)}. Pass check=False."
        )
    yield from found[: 2 if names else 1]


def _is_possible(
    sizes: Mapping[str, int], open_: Sequence[str], facts: Sequence[str]
) -> bool:
    if any(size_of(dim, sizes) < 1 for dim in open_):
        return False
    return all(bool(size_of(fact, sizes)) for fact in facts)


def _sample(spec: Any, sizes: Mapping[str, int], seed: int) -> Any:
    """Numbers for an input: normal ones; of integers 0 and 1."""
    shape = tuple(size_of(str(n), sizes) if is_unknown(n) else n for n in spec.shape)
    draw = np.random.default_rng(seed)
    if spec.dtype == bool:
        return draw.random(shape) < 0.7
    if jnp.issubdtype(spec.dtype, jnp.integer):
        return draw.integers(0, 2, shape).astype(spec.dtype)
    return np.asarray(draw.standard_normal(shape)).astype(spec.dtype)


# --- results


def _check(
    name: str, ours: Any, theirs: Any, tolerance: float | None, sizes: Mapping[str, int]
) -> None:
    at = f" for {', '.join(f'{k}={n}' for k, n in sizes.items())}" if sizes else ""
    if ours.shape != theirs.shape or stored(ours.dtype) != theirs.dtype:
        raise ValueError(
            f"export_onnx: {name}: expected {ours.dtype}{list(ours.shape)}, onnxruntime "
            f"made {theirs.dtype}{list(theirs.shape)}{at}. Pass check=False to look at "
            "the file."
        )
    allowed, found = _allowed(ours.dtype, tolerance), difference(ours, theirs)
    if not found <= allowed:
        raise ValueError(
            f"export_onnx: {name}: onnxruntime differs by {found:.1e}, expected at most "
            f"{allowed:.1e}{at}. Pass tolerance=, or check=False to look at the file."
        )


def _allowed(dtype: Any, tolerance: float | None) -> float:
    if tolerance is not None:
        return tolerance
    floats = jnp.issubdtype(dtype, jnp.floating)
    return 64 * float(cast(Any, jnp.finfo(dtype)).eps) if floats else 0.0


def difference(ours: Any, theirs: Any) -> float:
    """The largest difference, as a fraction of the largest number where that is above 1."""
    a, b = (np.asarray(each).astype(np.float64) for each in (ours, theirs))
    equal = (a == b) | (np.isnan(a) & np.isnan(b))
    largest = np.max(np.abs(a), initial=1.0, where=np.isfinite(a))
    with np.errstate(invalid="ignore"):
        apart = np.where(equal, 0.0, np.abs(a - b) / largest)
    return float(np.max(apart, initial=0.0))
