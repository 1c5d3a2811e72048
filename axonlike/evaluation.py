"""Running a model: `apply` on arrays, and the abstract pass on shapes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from axonlike.blame import hide, located
from axonlike.errors import PathError
from axonlike.frame import Frame, Run, check_state
from axonlike.initialize import Recorder, param_path, remember, run_abstract
from axonlike.names import walk
from axonlike.spec import as_spec, show
from axonlike.taps import Stop, Taps
from axonlike.types import Key, Params, PyTree, State


class Apply:
    """A layer's `apply`; equal to that of an equal layer, so `jax.jit` traces it once."""

    __slots__ = ("__weakref__", "layer")
    __name__ = "apply"

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def __call__(
        self,
        params: Params,
        state: State,
        x: PyTree,
        *,
        key: Key | None = None,
        train: bool = False,
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> tuple[PyTree, State]:
        """Runs the layer.

        Args:
            params: as `init` made them.
            state: as `init` or `apply` returned it.
            x: the input, a pytree of arrays.
            key: for layers that draw random numbers in training.
            train: whether this is a training step; a Python bool.
            options: static options by name, for the layers that declare them.

        Returns:
            `(y, state)`: the output, and the state with the structure it came with.
        """
        remember(self.layer)
        run = Run(check_key(key, optional=True), check_train(train), options)
        return evaluate(self.layer, params, state, x, run)[:2]

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self.layer == other.layer

    def __hash__(self) -> int:
        return self.layer.hash

    def __repr__(self) -> str:
        return f"{self.layer!r}.{self.__name__}"


class Predict(Apply):
    """A layer's `predict`: `apply` in inference, the output alone."""

    __slots__ = ()
    __name__ = "predict"

    def __call__(self, params: Params, state: State, x: PyTree) -> PyTree:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Runs the layer in inference.

        Args:
            params: as `init` made them.
            state: as `init` or `apply` returned it.
            x: the input, a pytree of arrays.

        Returns:
            The output.
        """
        return super().__call__(params, state, x)[0]


def evaluate(
    layer: Any,
    params: Params,
    state: State,
    x: PyTree,
    run: Run,
    taken: dict[str, Any] | None = None,
) -> tuple[PyTree, State, dict[str, Any]]:
    """Output, new state and what `run.taps` read: the one way in which a model is run.

    What is read goes into `taken` when it is there, if that is given.
    """
    for what, tree in (("params", params), ("state", state)):
        if not isinstance(tree, dict):
            raise TypeError(
                f"{what}: expected a dict, got {type(tree).__name__}. "
                "Pass the trees that init returned: apply(params, state, x)."
            )
    unknown = [name for name in check_options(run.options) if name not in layer.options]
    if unknown:
        hint = "Options are keyword-only parameters of a layer's apply."
        raise PathError("options", unknown[0], sorted(layer.options), hint)
    frame = Frame(layer, run, params, state, layer.places, taken=taken)
    try:
        x = jax.tree.map(_canonical, x)
        y = frame.evaluate((_ends(frame, "input", x),))
        y = _ends(frame, "output", y)
        if frame.state is not state:
            check_state(state, frame.state, layer.kind)
    except Stop:
        return None, frame.state, frame.taken
    except Exception as error:
        raise hide(error) from error.__cause__
    return y, frame.state, frame.taken


def _ends(frame: Frame, site: str, value: PyTree) -> PyTree:
    """The model's input or output as a site, unless a layer has that name."""
    taps = frame.run.taps
    if taps is None or site in (frame.layer.names or ()):
        return value
    return taps.visit(site, value, frame)


def sites(layer: Any, x: PyTree) -> dict[str, Any]:
    """The spec of every activation by site, of a run on shapes alone."""
    specs = as_spec(x)
    root = jax.eval_shape(lambda: jax.random.key(0))

    def run(key: Key, x: PyTree) -> dict[str, Any]:
        params, state = layer.init(key, specs)
        return evaluate(layer, params, state, x, Run(taps=Taps(every=True)))[2]

    try:
        return jax.eval_shape(run, root, specs)
    except Exception as error:
        raise hide(error) from error.__cause__


def _canonical(x: Any) -> Any:
    """NumPy's float64 as what JAX makes of it: as under jit, and as init saw it."""
    return jnp.asarray(x) if isinstance(x, (np.ndarray, np.generic)) else x


def recorded(layer: Any, specs: PyTree) -> tuple[PyTree, Recorder]:
    """The abstract pass; every child has to be reached in it."""
    run = Run(recorder=Recorder())
    y, recorder = run_abstract(layer, run, specs)
    every = [("", layer), *walk(layer, layer.places, "")]
    partial = [path for path, child in every if child.partial]
    for path, child in every[1:]:
        spared = any(
            f"{path}/".startswith(f"{home}/" if home else "") for home in partial
        )
        if param_path(path) not in recorder.reached and not spared:
            raise located(
                ValueError(
                    f"{child.kind}: never called, so init cannot know its input. "
                    "Call it, or take it out."
                ),
                path,
                child,
            )
    return y, recorder


def check_key(key: Any, *, optional: bool = False) -> Any:
    """One key of JAX, typed or not, as it is; anything else is an error."""
    if optional and key is None:
        return None
    shape: Any = getattr(key, "shape", None)
    dtype: Any = getattr(key, "dtype", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if (typed and shape == ()) or (dtype == np.uint32 and shape in ((2,), (4,))):
        return key
    got = f"{dtype}{list(shape)}" if shape is not None else type(key).__name__
    raise TypeError(f"key: expected one jax.random.key(seed), got {got}.")


def check_options(options: Any) -> Mapping[str, Any]:
    """Static options by name."""
    if isinstance(options, Mapping):
        return cast("Mapping[str, Any]", options)
    raise TypeError(f"options: expected {{name: value}}, got {show(options)}.")


def check_train(train: Any) -> bool:
    """What says whether to run as in training, known before it is traced."""
    if train is True or train is False or type(train) is np.bool_:
        return bool(train)
    if isinstance(train, jax.core.Tracer):
        raise TypeError(
            "train: expected a Python bool, got a traced value. "
            "Write jax.jit(model.apply, static_argnames='train')."
        )
    raise TypeError(
        f"train: expected a Python bool, got {show(train)}. Write train=True."
    )
