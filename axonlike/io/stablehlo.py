"""A model as a StableHLO file, which any process with JAX runs and others compile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from axonlike.blame import hide
from axonlike.extras import optional
from axonlike.io import safetensors, shards
from axonlike.io.arrays import DTYPES, STATE, as_keys, is_key, items
from axonlike.io.atomic import replacing
from axonlike.io.given import check_flags
from axonlike.io.inference import check_given, inference, shape_of
from axonlike.io.unsupported import blamed
from axonlike.layer import Layer
from axonlike.params import mapped
from axonlike.selector import at
from axonlike.spec import as_spec, is_unknown, names_of, show, size_of
from axonlike.types import FilePath, Params, PyTree, State

Weights = Literal["inside", "beside"]
_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export(
    model: Layer,
    params: Params,
    state: State,
    spec: PyTree,
    path: FilePath,
    *,
    options: Mapping[str, Any] = MappingProxyType({}),
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    weights: Weights = "inside",
    carry_state: bool = False,
    check: bool = True,
) -> Path:
    """Writes what `predict` computes as a StableHLO file.

    To run it, a process needs JAX and flatbuffers, and nothing else:

        from pathlib import Path
        from jax import export
        run = export.deserialize(bytearray(Path("model.stablehlo").read_bytes())).call
        y = run(x)

    With weights beside, `run(load_file("model.safetensors"), x)`, where `load_file` is that
    of `safetensors.numpy`. With the state carried, for a loop that goes on from call to
    call, `y, state = run(state, x)`; both come in the order weights, state, x.
    `jax.export` promises to read the file for six months, in newer versions of JAX.

    Args:
        model: any layer.
        params: of the model.
        state: of the model.
        spec: of its input, as for `init`; sizes that are names may be anything later.
        path: of the file.
        options: static options for the layers that declare them, `{"decode": True}`.
        platforms: that it shall run on, whichever this machine has.
        weights: "inside" of the file, or "beside" it in a safetensors file of its name.
        carry_state: whether state goes in and comes out, as the keys and values of a
            model that writes text do; or else it is part of the file, and every call
            starts from it.
        check: whether to run the file here and to compare it with the model; nothing is
            compared where this process computes on a GPU, or on what the file is not for.

    Shapes:
        Any.

    Returns:
        The path of the file.

    Raises:
        ValueError: a layer cannot be exported for such sizes or platforms; the message
            has its path. Or the file computes something else than the model.
        TypeError: params or state are not dicts of arrays, or this is no layer.
        ImportError: flatbuffers is not installed.

    Example:
        >>> import tempfile, jax, jax.numpy as jnp, axonlike as al
        >>> model = al.dense(8) >> jax.nn.relu >> al.dense(2)
        >>> params, state = model.init(jax.random.key(0), al.spec("b 3"))
        >>> file = al.export(
        ...     model, params, state, al.spec("b 3"), f"{tempfile.mkdtemp()}/m.stablehlo")
        >>> run = jax.export.deserialize(bytearray(file.read_bytes())).call
        >>> run(jnp.ones((5, 3))).shape
        (5, 2)

    References:
        https://docs.jax.dev/en/latest/export; https://openxla.org/stablehlo.
    """
    optional("flatbuffers", "export")
    trees = {"params": params, "state": state}
    target, specs = check_given("export", model, trees, options, path), as_spec(spec)
    check_flags("export", carry_state=carry_state, check=check)
    _check_platforms(platforms)
    _check_weights(weights, target)
    function = inference(model, options, carry_state=carry_state)
    fixed, carried = ((params,), (state,)) if carry_state else ((params, state), ())
    outside = _Outside(*fixed) if weights == "beside" else None
    run = partial(function, *fixed) if outside is None else outside.runs(function)
    first = () if outside is None else (outside.specs,)
    inputs = *first, *jax.tree.map(shape_of, carried), specs
    data = _serialized(run, inputs, tuple(platforms))
    if check and jax.default_backend() in platforms:
        given = carried if outside is None else (outside.arrays(), *carried)
        _check(partial(function, params, state), specs, data, given)
    if outside is not None:
        shards.write(target.with_suffix(".safetensors"), outside.items, {}, None)
    with replacing(target) as file:
        file.write(data)
    return target


def _check_weights(weights: Any, target: Path) -> None:
    if weights not in ("inside", "beside"):
        raise ValueError(f"export: weights is 'inside' or 'beside', got {weights!r}.")
    if weights == "beside" and target.suffix == ".safetensors":
        raise ValueError(
            f"export: {target.name} is where the weights go that stand beside the file. "
            "Call the file .stablehlo."
        )


def _check_platforms(platforms: Any) -> None:
    names = cast(
        "Sequence[Any]", platforms if isinstance(platforms, (tuple, list)) else ()
    )
    if not names or any(name not in _PLATFORMS for name in names):
        raise ValueError(
            f"export: platforms are some of {', '.join(_PLATFORMS)}, in a tuple, got "
            f"{platforms!r}."
        )


def _serialized(
    run: Callable[..., Any], args: tuple[Any, ...], platforms: tuple[str, ...]
) -> bytes:
    """The bytes of the file, or an error that says which layer it is about."""
    try:
        exported = jax_export.export(jax.jit(_plain(run)), platforms=platforms)(*args)
        return bytes(exported.serialize())
    except Exception as error:
        if getattr(error, "__notes__", None):  # the door has said where
            raise hide(error) from error.__cause__
        raise blamed(run, args, platforms, error) from error


def _plain(run: Callable[..., Any]) -> Callable[..., Any]:
    """A function with a name of its own, which the file keeps."""

    def predict(*args: Any) -> Any:
        return run(*args)

    return predict


class _Outside:
    """Weights that are not in the file: flat, by the paths that they have beside it."""

    def __init__(self, *trees: PyTree) -> None:
        self.trees: dict[str, PyTree] = dict(zip(("", STATE), trees, strict=False))
        self.items = list(items(self.trees, safetensors.NATIVE))
        odd = [item for item in self.items if item.stored == "uint8" != item.dtype]
        odd += [item for item in self.items if item.stored.startswith("float8")]
        if odd:
            raise ValueError(
                f"export: {odd[0].path!r} is {odd[0].dtype}, which not every reader of "
                "safetensors reads. Pass weights='inside'."
            )

    @property
    def specs(self) -> dict[str, Any]:
        """What stands for the arrays."""
        return {
            item.path: jax.ShapeDtypeStruct(item.shape, DTYPES[item.stored])
            for item in self.items
        }

    def arrays(self) -> dict[str, Any]:
        """The arrays."""
        return {item.path: item.read() for item in self.items}

    def runs(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function of flat weights in place of its trees."""

        def run(flat: Mapping[str, Any], *rest: Any) -> PyTree:
            seen: set[str] = set()
            trees = (
                mapped(partial(_gathered, flat, seen), tree)
                for tree in self.trees.values()
            )
            return function(*trees, *rest)

        return run


def _gathered(flat: Mapping[str, Any], seen: set[str], path: str, like: Any) -> Any:
    """One array of a tree, out of those that are beside."""
    lead = like.shape[: path.split("/").count("*")]
    names = [at(path, index) for index in np.ndindex(*lead)]
    names = [name + STATE if name in seen else name for name in names]
    seen.update(names)
    parts = [flat[name] for name in names]
    array = jnp.stack(parts).reshape(*lead, *parts[0].shape) if lead else parts[0]
    return as_keys(array, str(like.dtype)) if is_key(str(like.dtype)) else array


# --- the file is run before it is written


def _check(
    predict: Callable[..., Any], specs: PyTree, data: bytes, given: tuple[Any, ...]
) -> None:
    """Runs the file on random inputs of some size, and compares with the model.

    `given` is what comes before the input: weights, state.
    """
    run = cast(Any, jax_export.deserialize(bytearray(data))).call
    x = _inputs(run, specs, given)
    wanted, got = cast(Any, jax.jit(predict))(x), run(*given, x)
    trees = [cast(Any, jax.tree.structure(y)) for y in (wanted, got)]
    pairs = zip(jax.tree.leaves(wanted), jax.tree.leaves(got), strict=False)
    if trees[0] != trees[1] or not all(_near(a, b) for a, b in pairs):
        raise ValueError(
            f"export: for an input {show(x)} the file returns {show(got)} that is not "
            f"the model's output, {show(wanted)}. Pass check=False to write it anyway."
        )


def _near(a: Any, b: Any) -> bool:
    """Whether two arrays are the same but for rounding."""
    if show(a) != show(b):
        return False
    if is_key(str(a.dtype)):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    if not jnp.issubdtype(a.dtype, jnp.inexact):
        return bool(np.array_equal(np.asarray(a), np.asarray(b)))
    tolerance = 1e-5 if a.dtype.itemsize >= 4 else 1e-2
    wide = np.complex128 if a.dtype.kind == "c" else np.float64
    a, b = (np.asarray(v).astype(wide) for v in (a, b))
    size = np.max(np.abs(a), where=np.isfinite(a), initial=0.0)
    return bool(np.allclose(a, b, rtol=0, atol=tolerance * (1 + size), equal_nan=True))


def _inputs(run: Callable[..., Any], specs: PyTree, given: tuple[Any, ...]) -> PyTree:
    """Random inputs of the smallest sizes that the file takes."""
    dims = [d for spec in jax.tree.leaves(specs) for d in spec.shape if is_unknown(d)]
    names = sorted({name for dim in dims for name in names_of(str(dim))})
    for size in range(2, 65):
        sizes = {name: size + i for i, name in enumerate(names)}
        x = jax.tree.map(partial(_values, np.random.default_rng(0), sizes), specs)
        try:
            jax.eval_shape(run, *given, x)
        except ValueError:  # a size that a constraint excludes
            continue
        return x
    raise ValueError(f"export: found no sizes for {show(specs)}. Pass check=False.")


def _values(rng: np.random.Generator, sizes: Mapping[str, int], spec: Any) -> Any:
    shape = tuple(max(_size(dim, sizes), 0) for dim in spec.shape)
    if is_key(str(spec.dtype)):
        return jax.random.split(jax.random.key(0), shape)
    if jnp.issubdtype(spec.dtype, jnp.inexact):
        return jnp.asarray(rng.normal(size=shape).astype(np.float32)).astype(spec.dtype)
    return jnp.asarray(rng.integers(0, 2, shape)).astype(spec.dtype)


def _size(dim: Any, sizes: Mapping[str, int]) -> int:
    return size_of(str(dim), sizes) if is_unknown(dim) else int(dim)
