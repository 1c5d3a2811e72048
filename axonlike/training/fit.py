"""`fit`: training from start to end, or from where it stopped."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from axonlike.spec import show
from axonlike.training.checkpoint import Saved, filled, found
from axonlike.training.events import Callback, bound
from axonlike.training.feed import Feed
from axonlike.training.history import History
from axonlike.training.loop import Loop, Plan, Step
from axonlike.training.options import check_data, whole_or_none
from axonlike.training.watch import Mode
from axonlike.types import PyTree


class Fitted(NamedTuple):
    """What training came to: the last state, all numbers by name, and how it ended.

    `halted` is the reason that a handler gave for ending it early, or None.
    """

    state: Any
    history: History
    halted: str | None = None


def fit(
    step: Step,
    state: PyTree,
    data: Iterable[Any],
    *,
    epochs: int | None = None,
    steps: int | None = None,
    validate: Callable[[Any], Mapping[str, Any]] | Iterable[Any] | None = None,
    validate_every: int | None = None,
    monitor: str | None = None,
    mode: Mode = "min",
    callbacks: Sequence[Callback] = (),
    resume: str | os.PathLike[str] | None = None,
    verbose: int | None = None,
) -> Fitted:
    """Trains: a step for each batch, with validation, events and progress.

    Nothing waits for a step: what it returns is fetched later, several steps at once.

    Args:
        step: `step(state, batch) -> (state, logs)`, logs being numbers by name: one of
            `train_step`, or any function.
        state: what the step takes. Its arrays are the step's to give away; use those of
            the result.
        data: an iterable of batches, iterated anew for each epoch: `al.batches`, a list,
            a loader of grain or PyTorch. NumPy's arrays are copied.
        epochs: how often to go through the data; None: as often as `steps` takes.
        steps: how many steps to take in all; None: as many as the epochs have.
        validate: batches to evaluate the model on, or a function of the state that
            returns numbers by name. They are called `validation_loss` and so on.
        validate_every: in steps; None: at the end of every epoch. It is done once more
            at the end of training.
        monitor: the metric that makes an `improved`; None: `validation_loss`, without
            validation `loss`.
        mode: whether it should be `"min"` or `"max"`.
        callbacks: of `al.callbacks`, or made by `al.when`.
        resume: a folder in which `al.callbacks.checkpoint` writes: training goes on from
            the newest checkpoint there, as if it had never stopped; from the start where
            there is none. Or one checkpoint in it. `epochs` and `steps` count from the
            very start.
        verbose: 0 nothing, 1 a bar in a terminal and nothing elsewhere, 2 a line for each
            epoch; None: 1 where rich is installed.

    Shapes:
        batch: as the step takes them.

    Returns:
        `(state, history, halted)`: the last state, `history[name]` all values of a
        metric, and the reason for an early end or None.

    Raises:
        ValueError: neither `epochs` nor `steps` says how long, there are no batches, or
            `resume` has nothing to go on from.
        TypeError: something is not what it should be.
        PathError: there is no metric of the name to monitor.

    Example:
        >>> import jax, jax.numpy as jnp, optax, axonlike as al
        >>> model = al.dense(1)
        >>> x = jnp.linspace(0.0, 1.0, 8)[:, None]
        >>> step = al.train_step(model, lambda y, b: (y - b[1]) ** 2, optax.sgd(0.5))
        >>> ts = step.start(*model.init(jax.random.key(0), x))
        >>> r = al.fit(step, ts, al.batches((x, 2 * x), 4, key=0), epochs=20)
        >>> int(r.state.step), len(r.history["loss"]), bool(r.history["loss"][-1] < 0.01)
        (40, 40, True)
    """
    if not callable(step):
        raise TypeError(
            f"fit: expected a step (state, batch) -> (state, logs), got {show(step)}. "
            "Make one with al.train_step(model, loss, optimizer)."
        )
    epochs, steps = (
        whole_or_none("fit", name, value)
        for name, value in (("epochs", epochs), ("steps", steps))
    )
    if epochs is None and steps is None:
        raise ValueError("fit: how long? Pass epochs=, or steps=, or both.")
    validate_every = whole_or_none("fit", "validate_every", validate_every)
    check_data("fit", data)
    if validate is None and validate_every is not None:
        raise ValueError("fit: validate_every says when, and validate= is not given.")
    validation = None if validate is None else _validation(step, validate)
    plan = Plan(epochs, steps, validation, validate_every, monitor, mode, verbose)
    loop = Loop(step, state, Feed(data), plan)
    loop.attach(bound(callbacks, loop))
    saved = None if resume is None else _resumed(Path(resume))
    if saved is not None:
        loop.set_state(filled(saved, state), saved.tree)
    loop.run()
    return Fitted(loop.state, loop.history, loop.halted)


def _resumed(path: Path) -> Saved | None:
    """The checkpoint to go on from; None where there is none."""
    if path.exists() and not path.is_dir():
        raise ValueError(
            f"fit: expected resume to be a folder of checkpoints, got the file {path}."
        )
    saved = found(path)
    if saved is not None and "loop" not in saved.tree:
        raise ValueError(
            f"fit: {saved.path} has a state, and not where training was. Write it by "
            "al.callbacks.checkpoint, or pass al.load_checkpoint(folder, state) to fit."
        )
    return saved


def _validation(step: Any, validate: Any) -> Callable[[Any], Mapping[str, Any]]:
    """A function of the state."""
    if callable(validate):
        return cast("Callable[[Any], Mapping[str, Any]]", validate)
    if not hasattr(validate, "__iter__"):
        raise TypeError(
            f"fit: expected validate to be batches, or a function of the state, got "
            f"{show(validate)}. Pass al.batches(arrays, batch_size)."
        )
    check_data("fit: validate", validate)
    if not hasattr(step, "evaluate"):
        raise TypeError(
            "fit: only a step of al.train_step knows how to evaluate batches. "
            "Pass validate=function, which takes the state and returns numbers by name."
        )
    return lambda state: step.evaluate(state, validate)
