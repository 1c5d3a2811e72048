"""Reading and changing activations, side by side: what each library does with one task.

Writes `docs/activations-compared.rst`. Every library's own, documented means are used; what
comes out is checked against NumPy and told in the same words.
"""

from __future__ import annotations

import datetime
import importlib
import re
import sys
import textwrap
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PAGE = Path(__file__).parents[2] / "docs" / "activations-compared.rst"
BLOCKS, WIDTH = 6, 4
KEY = jax.random.key(0)
SHORT = jax.random.normal(jax.random.key(1), (2, 8, WIDTH))
LONG = jax.random.normal(jax.random.key(2), (2, 16, WIDTH))
X = SHORT[:, 0]

TASKS = {
    "size": (
        "Read an early layer, at another size",
        "``c1`` of ``c1, c2, flatten, head``, for inputs of 16 steps; the head is for 8.",
    ),
    "one": (
        "Read one block of a scan",
        "``mlp`` of block 3 of 6, without running what comes after it.",
    ),
    "all": ("Read all blocks of a scan", "``mlp`` of all 6 blocks."),
    "nothing": ("Read what is not there", "A name, or a kind, that nothing has."),
    "patch": (
        "Patch from another run",
        "``c1`` as it was for another input; the output has to be the other's.",
    ),
    "block": ("Change one block of a scan", "``mlp`` of block 3 alone is zero."),
    "gradients": (
        "Differentiate",
        "Gradients for ``mlp`` of all 6 blocks of a scan, in one backward pass.",
    ),
}


class Task:
    """What a library gives for one task, and what would be right."""

    def __init__(self, value: Any, wanted: Any, note: str = "") -> None:
        self.value, self.wanted, self.note = value, wanted, note


def outcome(run: Callable[[], Task]) -> str:
    """The right value, another one, or the error, in a few words."""
    try:
        task = run()
    except Exception as error:  # whatever a library raises is its answer
        return said_by(error)
    right = same(task.value, task.wanted)
    said = "right" if right else f"no: {shown(task.value)}"
    return f"{said}; {task.note}" if task.note else said


def said_by(error: Exception) -> str:
    """An error in a few words."""
    text = " ".join(str(error).split())
    text = re.sub(r"[^ -~]|`|\*|https?://\S+", "", text)
    short = text if len(text) < 120 else f"{text[:115].rstrip()} ..."
    return f"``{type(error).__name__}``: {short}"


def same(value: Any, wanted: Any) -> bool:
    """Whether a value is an array like the wanted one."""
    shape = getattr(value, "shape", None)
    return shape == np.shape(wanted) and bool(np.allclose(value, wanted, atol=1e-5))


def shown(value: Any) -> str:
    """A value in few words: arrays by their shapes."""
    if hasattr(value, "shape"):
        return f"an array of {tuple(value.shape)}"
    return f"``{value!r}``"


def by_hand(kernels: Any, biases: Any, x: Any, at: int | None = None) -> Any:
    """What each block's `mlp` gives, and the last output; block `at` gives zeros."""
    mlps = []
    for i in range(BLOCKS):
        y = np.asarray(x) @ np.asarray(kernels[i]) + np.asarray(biases[i])
        mlps.append(np.zeros_like(y) if i == at else y)
        x = np.asarray(x) + mlps[-1]
    return np.stack(mlps), x


def slopes(kernels: Any) -> Any:
    """The gradient of the sum of the output for every block's `mlp`."""
    later, found = np.ones(WIDTH), []
    for kernel in reversed(np.asarray(kernels)):
        found.append(later)
        later = later + kernel @ later
    return np.broadcast_to(np.stack(found[::-1])[:, None], (BLOCKS, 2, WIDTH))


def ours() -> dict[str, Callable[[], Task]]:
    """The tasks in axonlike."""
    import axonlike as al

    flat = al.serial(
        c1=al.dense(WIDTH), c2=al.dense(WIDTH), flat=al.flatten(), head=al.dense(2)
    )
    params, state = flat.init(KEY, SHORT)
    block = al.residual(al.dense(WIDTH).named("mlp"))
    deep = al.serial(blocks=al.repeat(block, BLOCKS))
    stacked, _ = deep.init(KEY, X)
    weights = stacked["blocks"]["*"]["mlp"]
    hand = by_hand(weights["kernel"], weights["bias"], X)
    c1, mlp = flat["c1"], deep["blocks/3/mlp"]

    def size() -> Task:
        wanted = LONG @ params["c1"]["kernel"] + params["c1"]["bias"]
        return Task(al.compile(c1)(params, state, LONG), wanted)

    def one() -> Task:
        read = al.compile(mlp)
        lengths = re.findall(r"length=(\d+)", str(jax.make_jaxpr(read)(stacked, {}, X)))
        note = f"scans of {' and '.join(lengths)} blocks run before it"
        return Task(read(stacked, {}, X), hand[0][3], note)

    def every() -> Task:
        return Task(al.compile(deep["blocks/*/mlp"])(stacked, {}, X), hand[0])

    def nothing() -> Task:
        return Task(al.compile(flat["c9"])(params, state, SHORT), None)

    def patch() -> Task:
        patched = al.compile(flat["output"], edits=[c1.set(al.on("other", c1))])
        found = patched(params, state, SHORT, other=-SHORT)
        return Task(found, flat.predict(params, state, -SHORT))

    def in_block() -> Task:
        found = al.compile(deep["output"], edits=[mlp.set(0.0)])(stacked, {}, X)
        return Task(found, by_hand(weights["kernel"], weights["bias"], X, 3)[1])

    def gradients() -> Task:
        slope = al.value_and_grads(deep["output"].sum(), wrt=deep["blocks/*/mlp"])
        return Task(slope(stacked, {}, X)[1], slopes(weights["kernel"]))

    return dict(
        zip(TASKS, (size, one, every, nothing, patch, in_block, gradients), strict=True)
    )


def linen() -> dict[str, Callable[[], Task]]:
    """The tasks in Flax Linen: `capture_intermediates`, `intercept_methods`, `perturb`."""
    from flax import linen as nn

    class Flat(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(WIDTH, name="c2")(nn.Dense(WIDTH, name="c1")(x))
            return nn.Dense(2, name="head")(x.reshape(x.shape[0], -1))

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return x + self.perturb("out", nn.Dense(WIDTH, name="mlp")(x)), None

    def deep(**axes):
        axes = {"params": 0, "perturbations": 0, **axes}
        return nn.scan(
            Block, variable_axes=axes, split_rngs={"params": True}, length=BLOCKS
        )()

    flat, blocks = Flat(), deep()
    variables = flat.init(KEY, SHORT)
    made = blocks.init(KEY, X, None)
    params = {"params": made["params"]}
    weights = made["params"]["mlp"]
    hand = by_hand(weights["kernel"], weights["bias"], X)

    def captured(model, name, *args):
        def wanted(module, _):
            return module.name == name

        return model.apply(
            *args, capture_intermediates=wanted, mutable=["intermediates"]
        )[1]

    def size() -> Task:
        found = captured(flat, "c1", variables, LONG)
        return Task(found["intermediates"]["c1"]["__call__"][0], None)

    def in_scan(model) -> Any:
        found = captured(model, "mlp", params, X, None).get("intermediates", {})
        return found.get("mlp", {}).get("__call__", (found,))[0]

    def one() -> Task:
        found = in_scan(deep(intermediates=0))
        return Task(found[3], hand[0][3], "of all blocks' values, the whole net runs")

    def every() -> Task:
        value = in_scan(blocks)
        if same(value, hand[0]):
            return Task(value, hand[0])
        told = f"{shown(value)} until the scan's ``variable_axes`` have 'intermediates'"
        return Task(in_scan(deep(intermediates=0)), hand[0], told)

    def nothing() -> Task:
        return Task(captured(flat, "c9", variables, SHORT), None, "no error")

    def patch() -> Task:
        clean = captured(flat, "c1", variables, -SHORT)
        value = clean["intermediates"]["c1"]["__call__"][0]

        def replace(next_fun, args, kwargs, context):
            y = next_fun(*args, **kwargs)
            return value if context.module.name == "c1" else y

        with nn.intercept_methods(replace):
            found = flat.apply(variables, SHORT)
        return Task(found, flat.apply(variables, -SHORT), "by an interceptor")

    def in_block() -> Task:
        def replace(next_fun, args, kwargs, context):
            y = next_fun(*args, **kwargs)
            return jnp.zeros_like(y) if context.module.name == "mlp" else y

        with nn.intercept_methods(replace):
            found, _ = blocks.apply(params, X, None)
        wanted = by_hand(weights["kernel"], weights["bias"], X, 3)[1]
        return Task(
            found, wanted, "an interceptor sees one block, which stands for all"
        )

    def gradients() -> Task:
        def loss(perturbations):
            return blocks.apply({**params, "perturbations": perturbations}, X, None)[
                0
            ].sum()

        found = jax.grad(loss)(made["perturbations"])["out"]
        return Task(
            found, slopes(weights["kernel"]), "as the block's code has ``perturb``"
        )

    return dict(
        zip(TASKS, (size, one, every, nothing, patch, in_block, gradients), strict=True)
    )


def nnx() -> dict[str, Callable[[], Task]]:
    """The tasks in Flax NNX: `sow`, `perturb` and `capture`; layers are attributes."""
    from flax import nnx as nn

    class Flat(nn.Module):
        def __init__(self, rngs):
            self.c1 = nn.Linear(WIDTH, WIDTH, rngs=rngs)
            self.c2 = nn.Linear(WIDTH, WIDTH, rngs=rngs)
            self.head = nn.Linear(8 * WIDTH, 2, rngs=rngs)

        def __call__(self, x):
            x = self.c1(x)
            self.sow(nn.Intermediate, "c1_out", x)
            return self.head(self.c2(x).reshape(x.shape[0], -1))

    class Block(nn.Module):
        def __init__(self, rngs):
            self.mlp = nn.Linear(WIDTH, WIDTH, rngs=rngs)

        def __call__(self, x):
            y = self.perturb("nudge", self.mlp(x))
            self.sow(nn.Intermediate, "mlp_out", y)
            return x + y

    class Deep(nn.Module):
        def __init__(self, rngs):
            @nn.split_rngs(splits=BLOCKS)
            @nn.vmap
            def make(rngs):
                return Block(rngs)

            self.blocks = make(rngs)

        def __call__(self, x):
            @nn.scan(in_axes=(nn.Carry, 0), out_axes=nn.Carry)
            def run(x, block):
                return block(x)

            return run(x, self.blocks)

    flat, deep = Flat(nn.Rngs(0)), Deep(nn.Rngs(0))
    mlp = deep.blocks.mlp
    kernels, biases = mlp.kernel[...], mlp.bias[...]
    hand = by_hand(kernels, biases, X)

    def sown(model, x, *path):
        found = nn.capture(model, nn.Intermediate)(x)[1]
        for step in path:
            found = found[step]
        return found[0]

    def size() -> Task:
        return Task(sown(flat, LONG, "c1_out"), None)

    def one() -> Task:
        found = sown(deep, X, "blocks", "mlp_out")
        return Task(found[3], hand[0][3], "of all blocks' values, the whole net runs")

    def every() -> Task:
        return Task(
            sown(deep, X, "blocks", "mlp_out"), hand[0], "as its code has ``sow``"
        )

    def nothing() -> Task:
        class Unused(nn.Intermediate):
            pass

        found = nn.capture(flat, Unused)(SHORT)[1]
        return Task(dict(found), None, "no error, for a kind that nothing sows")

    def patch() -> Task:
        class Constant(nn.Module):
            def __init__(self, value):
                self.value = nn.Variable(value)

            def __call__(self, x):
                return self.value[...]

        copy = nn.clone(flat)
        copy.c1 = Constant(flat.c1(-SHORT))
        return Task(copy(SHORT), flat(-SHORT), "a module of one's own in its place")

    def in_block() -> Task:
        class Scaled(nn.Module):
            def __init__(self, inner, scale):
                self.inner, self.scale = inner, nn.Variable(scale)

            def __call__(self, x):
                return self.inner(x) * self.scale[...]

        copy = nn.clone(deep)
        copy.blocks.mlp = Scaled(copy.blocks.mlp, jnp.ones(BLOCKS).at[3].set(0))
        wanted = by_hand(kernels, biases, X, 3)[1]
        note = "a module of one's own in its place, with a number for each block"
        return Task(copy(X), wanted, note)

    def gradients() -> Task:
        def run(model, x):
            return model(x).sum()

        _, nudges = nn.capture(run, nn.Perturbation)(deep, X)

        def loss(model, nudges):
            return nn.capture(run, nn.Intermediate, init=nudges)(model, X)[0]

        found = jax.tree.leaves(nn.grad(loss, argnums=1)(deep, nudges))[0]
        return Task(found, slopes(kernels), "as the block's code has ``perturb``")

    return dict(
        zip(TASKS, (size, one, every, nothing, patch, in_block, gradients), strict=True)
    )


def haiku() -> dict[str, Callable[[], Task]]:
    """The tasks in Haiku: `intercept_methods`."""
    import haiku as hk

    def flat_net(x):
        x = hk.Linear(WIDTH, name="c2")(hk.Linear(WIDTH, name="c1")(x))
        return hk.Linear(2, name="head")(x.reshape(x.shape[0], -1))

    def deep_net(x):
        def block(x):
            return x + hk.Linear(WIDTH, name="mlp")(x)

        return hk.experimental.layer_stack(BLOCKS)(block)(x)

    flat = hk.without_apply_rng(hk.transform(flat_net))
    deep = hk.without_apply_rng(hk.transform(deep_net))
    params, stacked = flat.init(KEY, SHORT), deep.init(KEY, X)
    (weights,) = stacked.values()
    hand = by_hand(weights["w"], weights["b"], X)

    def captured(model, name, params, x):
        found = {}

        def keep(next_f, args, kwargs, context):
            y = next_f(*args, **kwargs)
            if context.module.name.endswith(name) and context.method_name == "__call__":
                found[name] = y
            return y

        with hk.intercept_methods(keep):
            model.apply(params, x)
        return found

    def changed(model, name, params, x, change):
        def put(next_f, args, kwargs, context):
            y = next_f(*args, **kwargs)
            here = context.module.name.endswith(name)
            return change(y) if here and context.method_name == "__call__" else y

        with hk.intercept_methods(put):
            return model.apply(params, x)

    def size() -> Task:
        return Task(captured(flat, "c1", params, LONG)["c1"], None)

    def one() -> Task:
        return Task(captured(deep, "mlp", stacked, X)["mlp"] + 0, hand[0][3])

    def every() -> Task:
        return Task(captured(deep, "mlp", stacked, X)["mlp"] + 0, hand[0])

    def nothing() -> Task:
        return Task(captured(flat, "c9", params, SHORT), None, "no error")

    def patch() -> Task:
        value = captured(flat, "c1", params, -SHORT)["c1"]
        found = changed(flat, "c1", params, SHORT, lambda y: value)
        return Task(found, flat.apply(params, -SHORT), "by an interceptor")

    def in_block() -> Task:
        found = changed(deep, "mlp", stacked, X, jnp.zeros_like)
        wanted = by_hand(weights["w"], weights["b"], X, 3)[1]
        return Task(
            found, wanted, "an interceptor sees one block, which stands for all"
        )

    def gradients() -> Task:
        def loss(nudge):
            return changed(deep, "mlp", stacked, X, lambda y: y + nudge).sum()

        found = jax.grad(loss)(jnp.zeros_like(X))
        return Task(found, slopes(weights["w"]), "one nudge stands for all blocks")

    return dict(
        zip(TASKS, (size, one, every, nothing, patch, in_block, gradients), strict=True)
    )


def penzai() -> dict[str, Callable[[], Task]]:
    """The tasks in penzai: selectors, `SaveIntermediate`, layers put in others' places."""
    from penzai import pz
    from penzai.toolshed.save_intermediates import SaveIntermediate

    def linear(name, inputs, outputs):
        return pz.nn.Affine.from_config(name, KEY, inputs, outputs)

    wide = {"features": WIDTH}
    flat = pz.nn.Sequential([
        linear("c1", wide, wide), linear("c2", wide, wide),
        linear("head", {"time": 8, **wide}, {"out": 2}),
    ])  # fmt: skip

    def block(init_base_rng):
        mlp = pz.nn.Affine.from_config("mlp", init_base_rng, wide, wide)
        return pz.nn.Residual(mlp)

    deep = pz.nn.LayerStack.from_sublayer_builder(block, "blocks", BLOCKS, KEY, {})
    names = ("batch", "time", "features")
    short, long, x = (
        pz.nx.wrap(SHORT).tag(*names), pz.nx.wrap(LONG).tag(*names),
        pz.nx.wrap(X).tag("batch", "features"),
    )  # fmt: skip

    def arrays(value):
        order = [n for n in ("blocks", *names, "out") if n in value.named_shape]
        return value.untag(*order).unwrap()

    def then(model, more):
        return model.apply(lambda layer: pz.nn.Sequential([layer, more]))

    def saved(chosen, x):
        model = then(chosen, SaveIntermediate())
        model(x)
        (found,) = pz.select(model).at_instances_of(SaveIntermediate).get_sequence()
        return arrays(found.saved.value)

    def weights():
        found = pz.select(deep).at_instances_of(pz.Parameter).get_sequence()
        sizes = {len(each.value.named_shape): each.value for each in found}
        kernel = sizes[3].untag("blocks", "features", "features_out")
        return kernel.unwrap(), sizes[2].untag("blocks", "features").unwrap()

    def size() -> Task:
        return Task(saved(pz.select(flat).at(first), long), None)

    def first(model):
        return model.sublayers[0]

    def mlps():
        return pz.select(deep).at_instances_of(pz.nn.Affine)

    def one() -> Task:
        return Task(saved(mlps(), x)[3], by_hand(*weights(), X)[0][3])

    def every() -> Task:
        return Task(saved(mlps(), x), by_hand(*weights(), X)[0])

    def nothing() -> Task:
        chosen = pz.select(flat).at_instances_of(pz.nn.Softmax)
        return Task(chosen.get_sequence(), None, "no error unless ``assert_count_is``")

    @pz.pytree_dataclass
    class Constant(pz.nn.Layer):
        value: Any

        def __call__(self, x, **_):
            return self.value

    def patch() -> Task:
        value = flat.sublayers[0](-short)
        patched = pz.select(flat).at(first).set(Constant(value))
        return Task(
            arrays(patched(short)),
            arrays(flat(-short)),
            "another model, to be compiled anew",
        )

    @pz.pytree_dataclass
    class Scale(pz.nn.Layer):
        value: Any

        def __call__(self, x, **_):
            return x * self.value

    @pz.pytree_dataclass
    class Nudge(pz.nn.Layer):
        value: Any

        def __call__(self, x, **_):
            return x + self.value

    def in_block() -> Task:
        scale = pz.nx.wrap(jnp.ones(BLOCKS).at[3].set(0)).tag("blocks")
        found = arrays(then(mlps(), Scale(scale))(x))
        note = "a layer of one's own after it, with a number for each block"
        return Task(found, by_hand(*weights(), X, 3)[1], note)

    def gradients() -> Task:
        def loss(nudge):
            return arrays(then(mlps(), Nudge(nudge))(x)).sum()

        zeros = pz.nx.zeros({"blocks": BLOCKS, "batch": 2, "features": WIDTH})
        found = arrays(jax.grad(loss)(zeros))
        note = "by a layer of one's own after it, which adds zeros"
        return Task(found, slopes(weights()[0]), note)

    return dict(
        zip(TASKS, (size, one, every, nothing, patch, in_block, gradients), strict=True)
    )


LIBRARIES = {
    "axonlike": ours, "Flax Linen": linen, "Flax NNX": nnx, "Haiku": haiku,
    "penzai": penzai,
}  # fmt: skip


def why_not_oryx() -> str:
    """What becomes of importing oryx, whose `sow` and `reap` are made for these tasks."""
    versions = " with ".join(
        f"{name} {version(name)}" for name in ("oryx", "tensorflow-probability")
    )
    try:
        importlib.import_module("oryx")
    except Exception as error:  # whatever it raises is its answer
        return (
            f"oryx is not among them: {versions}, the newest releases of both, cannot be "
            f"imported beside this jax. {said_by(error)}"
        )
    raise RuntimeError(f"{versions} can be imported: add its tasks.")


def page(found: dict[str, dict[str, str]]) -> str:
    """The page: a section for each task, a line for each library."""
    names = ("flax", "dm-haiku", "penzai")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    lines = [
        "Activations, side by side", "=========================", "",
        *wrapped(
            "What five libraries do with seven tasks. Each library's own, documented means "
            "are used; the code is in ``tests/benchmarks/inside.py``, which writes this "
            "page (``nox -s rivals``). Right means: equal to what NumPy computes."
        ), "",
        *wrapped(f"On {datetime.date.today()}, jax {jax.__version__}, {versions}."), "",
        *wrapped(why_not_oryx()), "",
        *wrapped(
            "In the first task all but axonlike run the whole model. Where layers are "
            "attributes, as in NNX and penzai, one can call those before ``c1`` by hand."
        ), "",
    ]  # fmt: skip
    for task, (title, text) in TASKS.items():
        lines += [title, "-" * len(title), "", *wrapped(text), ""]
        for library, answers in found.items():
            lines += wrapped(f"- **{library}**: {answers[task]}", "  ")
        lines += [""]
    return "\n".join(lines).rstrip() + "\n"


def wrapped(text: str, indent: str = "") -> list[str]:
    """Lines of a paragraph."""
    return textwrap.wrap(
        text,
        88,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def main() -> None:
    """Runs every task in every library, prints and writes what came of it."""
    found = {}
    for library, tasks in LIBRARIES.items():
        found[library] = {name: outcome(run) for name, run in tasks().items()}
        for name, text in found[library].items():
            print(f"{library:11} {name:10} {text}", file=sys.stderr)
    PAGE.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
