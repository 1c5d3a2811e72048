"""Recurrent layers: formulas in NumPy, PyTorch, Flax, options, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import close, drawn, normal, ours, reference, run

import axonlike as al

KEY = jax.random.key(0)
FAST_COMPILE = {"xla_backend_optimization_level": 0}
KINDS = {
    "rnn": {},
    "rnn residual": {"residual": True},
    "lstm": {},
    "lstm peephole": {"peephole": True},
    "gru": {},
    "gru before": {"reset_after": False},
    "mgu": {},
    "mgu plain": {"reset_gate": False},
}
GATES = {"rnn": 1, "lstm": 4, "gru": 3, "mgu": 2}
each_kind = pytest.mark.parametrize("kind", KINDS)


def made(kind, features, **options):
    return getattr(al, kind.split()[0])(features, **KINDS[kind], **options)


# --- formulas


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def rnn_step(p, h, x, *, residual=False):
    z = x @ p["kernel"] + h @ p["recurrent_kernel"] + p.get("bias", 0)
    h = np.tanh(z + h if residual else z)
    return h, h


def lstm_step(p, carry, x, *, peephole=False):
    h, c = carry
    z = x @ p["kernel"] + h @ p["recurrent_kernel"] + p.get("bias", 0)
    i, f, g, o = np.split(z, 4, -1)
    wi, wf, wo = p["peephole"] if peephole else (0, 0, 0)
    new = sigmoid(f + wf * c) * c + sigmoid(i + wi * c) * np.tanh(g)
    h = sigmoid(o + wo * new) * np.tanh(new)
    return (h, new), h


def gru_step(p, h, x, *, reset_after=True):
    xr, xz, xn = np.split(x @ p["kernel"] + p.get("bias", 0), 3, -1)
    kr, kz, kn = np.split(p["recurrent_kernel"], 3, -1)
    r, z = sigmoid(xr + h @ kr), sigmoid(xz + h @ kz)
    hn = r * (h @ kn + p.get("recurrent_bias", 0)) if reset_after else (r * h) @ kn
    h = (1 - z) * np.tanh(xn + hn) + z * h
    return h, h


def mgu_step(p, h, x, *, reset_gate=True):
    xf, xn = np.split(x @ p["kernel"] + p.get("bias", 0), 2, -1)
    kf, kn = np.split(p["recurrent_kernel"], 2, -1)
    f = sigmoid(xf + h @ kf)
    hn = h @ kn + p.get("recurrent_bias", 0)
    h = (1 - f) * np.tanh(xn + (f * hn if reset_gate else hn)) + f * h
    return h, h


def formula(kind, params, x, features, *, reverse=False):
    """Outputs and last carry, step by step in float64."""
    params = {k: np.asarray(p, np.float64) for k, p in params.items()}
    step, zeros = globals()[f"{kind.split()[0]}_step"], np.zeros((len(x), features))
    carry = (zeros, zeros) if kind.startswith("lstm") else zeros
    out, times = np.zeros((*x.shape[:2], features)), range(x.shape[1])
    for t in reversed(times) if reverse else times:
        carry, out[:, t] = step(params, carry, np.float64(x[:, t]), **KINDS[kind])
    return out, carry


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("use_bias", [False, True])
@each_kind
def test_sequences_follow_the_formula(kind, use_bias, reverse):
    layer = made(kind, 5, use_bias=use_bias, reverse=reverse, return_carry=True)
    x = normal(0, 3, 7, 4)
    params, state = layer.init(KEY, x)
    assert state == {}
    params = drawn(params)
    y, carry = run(layer, params, x)
    desired, last = formula(kind, params, x, 5, reverse=reverse)
    close(y, desired)
    jax.tree.map(close, carry, last)
    gates = GATES[kind.split()[0]]
    shapes = {"kernel": (4, gates * 5), "recurrent_kernel": (5, gates * 5)}
    if use_bias:
        shapes["bias"] = (gates * 5,)
    if use_bias and kind in ("gru", "mgu"):
        shapes["recurrent_bias"] = (5,)
    if kind == "lstm peephole":
        shapes["peephole"] = (3, 5)
    assert {k: p.shape for k, p in params.items()} == shapes


@each_kind
def test_a_layer_is_its_cell_step_by_step(kind):
    name = kind.split()[0]
    layer, cell = made(kind, 5), getattr(al, f"{name}_cell")(5, **KINDS[kind])
    x = normal(0, 3, 4, 2)
    params, _ = layer.init(KEY, x)
    zeros = jnp.zeros((3, 5))
    carry = (zeros, zeros) if name == "lstm" else zeros
    own, _ = cell.init(KEY, (carry, x[:, 0]))
    assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, params)
    step, outputs = jax.jit(cell.predict), []
    for t in range(4):
        carry, y = step(params, {}, (carry, x[:, t]))
        outputs.append(y)
    close(run(layer, params, x), np.stack(outputs, 1))


# --- gradients

MODES = {
    "plain": {},
    "reverse": {"reverse": True},
    "unrolled": {"unroll": 2},
    "last": {"return_sequence": False},
    "carry": {"return_carry": True},
}


def inputs_of(kind, mode, x):
    """The sequence with what else goes in, in this mode."""
    if mode not in ("lengths", "mask", "reset", "initial"):
        return x
    if mode == "lengths":
        return {"x": x, "lengths": np.array([4, 2])}
    if mode in ("mask", "reset"):
        return {"x": x, mode: np.array([[1, 1, 0, 1], [0, 1, 1, 0]], bool)}
    h = normal(5, 2, 2)
    return {"x": x, "initial_carry": (h, h) if kind.startswith("lstm") else h}


ALL_MODES = [*MODES, "lengths", "mask", "reset", "initial"]
slow = pytest.mark.slow


@pytest.mark.parametrize("mode", ALL_MODES)
def test_gradients_in_every_mode_equal_finite_differences(mode):
    every_gradient("gru", mode)


@slow
@pytest.mark.parametrize("mode", ALL_MODES)
@each_kind
def test_gradients_of_every_layer_equal_finite_differences(kind, mode):
    every_gradient(kind, mode)


def every_gradient(kind, mode):
    layer = made(kind, 2, **MODES.get(mode, {}))
    x = inputs_of(kind, mode, normal(0, 2, 4, 2))
    params, _ = layer.init(KEY, x)
    gradients_are_differences(layer, drawn(params), x)


@slow
@each_kind
def test_gradients_in_both_directions_and_of_a_stack(kind):
    layer = al.bidirectional(made(kind, 2)) >> made(kind, 2)
    x = normal(0, 2, 3, 2)
    params, _ = layer.init(KEY, x)
    gradients_are_differences(layer, drawn(params), x)


def test_gradients_of_images_over_time():
    layer, x = al.conv_lstm(2, 2), normal(0, 2, 3, 3, 1)
    params, _ = layer.init(KEY, x)
    gradients_are_differences(layer, drawn(params), x)


def gradients_are_differences(layer, params, x):
    """Reverse and forward mode, in float64."""
    with jax.enable_x64(True):

        def wide(a):
            floating = np.issubdtype(a.dtype, np.floating)
            return np.asarray(a, np.float64 if floating else a.dtype)

        leaves, tree = jax.tree.flatten(jax.tree.map(wide, (params, x)))
        smooth = [np.issubdtype(a.dtype, np.floating) for a in leaves]

        def loss(*floats):
            given = iter(floats)
            all_ = [
                next(given) if s else a for s, a in zip(smooth, leaves, strict=True)
            ]
            params, x = jax.tree.unflatten(tree, all_)
            made = jax.tree.leaves(layer.predict(params, {}, x))
            return sum(jnp.sum(jnp.sin(y + 1.0)) for y in made)

        floats = [a for s, a in zip(smooth, leaves, strict=True) if s]
        rng = np.random.default_rng(7)
        along = [rng.standard_normal(a.shape) for a in floats]
        value, both = (
            jax.jit(function, compiler_options=FAST_COMPILE)
            for function in (loss, lambda x, v: derivatives(loss, x, v))
        )
        high, low = (
            value(*(a + e * v for a, v in zip(floats, along, strict=True)))
            for e in (1e-6, -1e-6)
        )
        for slope in both(floats, along):
            np.testing.assert_allclose(slope, (high - low) / 2e-6, rtol=1e-5, atol=1e-7)


def derivatives(loss, at, along):
    """The slope along a direction, in reverse and in forward mode."""
    grads = jax.grad(loss, tuple(range(len(at))))(*at)
    reverse = sum(jnp.sum(g * v) for g, v in zip(grads, along, strict=True))
    return reverse, jax.jvp(loss, tuple(at), tuple(along))[1]


# --- other libraries


def torch_layer(torch, kind, params, *, reverse_params=None):
    """A torch layer with our weights: it has two biases where we have one."""
    width, features = params["kernel"].shape[0], params["recurrent_kernel"].shape[0]
    theirs = getattr(torch.nn, kind.upper())(
        width, features, batch_first=True, bidirectional=reverse_params is not None
    )
    with torch.no_grad():
        for suffix, p in (("", params), ("_reverse", reverse_params)):
            if p is None:
                continue
            get = lambda name: torch.tensor(np.array(p[name]))  # noqa: B023, E731
            getattr(theirs, f"weight_ih_l0{suffix}").copy_(get("kernel").T)
            getattr(theirs, f"weight_hh_l0{suffix}").copy_(get("recurrent_kernel").T)
            getattr(theirs, f"bias_ih_l0{suffix}").copy_(get("bias"))
            getattr(theirs, f"bias_hh_l0{suffix}").zero_()
            if kind == "gru":
                own = getattr(theirs, f"bias_hh_l0{suffix}")
                own[2 * features :] = get("recurrent_bias")
    return theirs


def torch_answer(kind, params, x, weight, lengths=None):
    """Outputs, last carries and gradients of `sum(y * weight) + sum(carries)`."""
    import torch

    theirs = torch_layer(torch, kind, params)
    tx = torch.tensor(x, requires_grad=True)
    rnn = torch.nn.utils.rnn
    if lengths is None:
        y, last = theirs(tx)
    else:
        packed = rnn.pack_padded_sequence(
            tx, torch.tensor(lengths), batch_first=True, enforce_sorted=False
        )
        y, last = theirs(packed)
        y, _ = rnn.pad_packed_sequence(y, batch_first=True, total_length=x.shape[1])
    last = last if kind == "lstm" else (last,)
    ((y * torch.tensor(weight)).sum() + sum(c.sum() for c in last)).backward()
    answer = {"y": y, "x": tx.grad, "kernel": theirs.weight_ih_l0.grad.T}
    answer["recurrent_kernel"] = theirs.weight_hh_l0.grad.T
    answer["bias"] = theirs.bias_ih_l0.grad
    if kind == "gru":
        answer["recurrent_bias"] = theirs.bias_hh_l0.grad[-x_width(params) :]
    return answer | {f"carry{i}": c[0] for i, c in enumerate(last)}


def x_width(params):
    return params["recurrent_kernel"].shape[0]


SIZES = [
    (batch, time, width, features)
    for batch, time in ((3, 7), (1, 1), (2, 12), (5, 4))
    for width, features in ((4, 5), (1, 3), (6, 1))
]
few = pytest.mark.parametrize(
    "size", [*SIZES[:2], *(pytest.param(size, marks=slow) for size in SIZES[2:])]
)


def compared(name, kind, layer, params, x, weight, answer):
    """Our outputs, carries and gradients against recorded or fresh ones of theirs."""
    theirs = reference(f"recurrent/{name}", answer)

    def loss(params, inputs):
        y, carry = layer.predict(params, {}, inputs)
        total = jnp.sum(y * weight) + sum(jnp.sum(c) for c in jax.tree.leaves(carry))
        return total, (y, carry)

    step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True, allow_int=True))
    (_, (y, carry)), (grads, for_x) = step(params, x)
    for_x = for_x["x"] if isinstance(for_x, dict) else for_x
    found = {"y": y, "x": for_x, **grads}
    found |= {f"carry{i}": c for i, c in enumerate(jax.tree.leaves(carry))}
    assert found.keys() == theirs.keys()
    for key, value in theirs.items():
        close(found[key], value)


@few
@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
def test_sequences_and_gradients_agree_with_torch(kind, size):
    batch, time, width, features = size
    layer = getattr(al, kind)(features, return_carry=True)
    x, weight = normal(0, batch, time, width), normal(1, batch, time, features)
    params = drawn(layer.init(KEY, x)[0])
    name = f"{kind} {'x'.join(map(str, size))}"
    compared(
        name, kind, layer, params, x, weight,
        lambda: torch_answer(kind, params, x, weight),
    )  # fmt: skip


LENGTHS = [
    [5, 3, 1, 4], [5, 5, 5, 5], [1, 2, 3, 4], [1, 1, 1, 1], [4, 1, 2, 5], [2, 2, 1, 3],
    [3, 5, 4, 1], [1, 4, 1, 4],
]  # fmt: skip


@pytest.mark.parametrize(
    "lengths",
    [*LENGTHS[:1], *(pytest.param(n, marks=slow) for n in LENGTHS[1:])],
    ids=str,
)
@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
def test_lengths_agree_with_packed_sequences_of_torch(kind, lengths):
    layer = getattr(al, kind)(3, return_carry=True)
    x, weight = normal(0, 4, 5, 2), normal(1, 4, 5, 3)
    params = drawn(layer.init(KEY, x)[0])
    inputs = {"x": x, "lengths": np.array(lengths)}
    name = f"{kind} lengths {''.join(map(str, lengths))}"
    compared(
        name, kind, layer, params, inputs, weight,
        lambda: torch_answer(kind, params, x, weight, lengths),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
def test_both_directions_with_lengths_agree_with_torch(kind):
    layer = al.bidirectional(getattr(al, kind)(3))
    x, lengths = normal(0, 4, 5, 2), [5, 2, 1, 3]
    params = drawn(layer.init(KEY, x)[0])

    def answer():
        import torch

        rnn = torch.nn.utils.rnn
        theirs = torch_layer(
            torch, kind, params["forward"], reverse_params=params["backward"]
        )
        packed = rnn.pack_padded_sequence(
            torch.tensor(x), torch.tensor(lengths), True, enforce_sorted=False
        )
        y, _ = rnn.pad_packed_sequence(theirs(packed)[0], True, total_length=5)
        return {"y": y}

    theirs = reference(f"recurrent/{kind} bidirectional lengths", answer)
    y = run(layer, params, {"x": x, "lengths": np.array(lengths)})
    close(y, theirs["y"])


@pytest.mark.parametrize("reset_gate", [True, False])
@few
def test_mgu_agrees_with_flax(size, reset_gate):
    batch, time, width, features = size
    layer = al.mgu(features, reset_gate=reset_gate)
    x, weight = normal(0, batch, time, width), normal(1, batch, time, features)
    params = drawn(layer.init(KEY, x)[0])

    def answer():
        from flax import linen as nn

        f, n = (slice(None, features), slice(features, None))
        theirs = {
            f"{side}{gate}": {"kernel": params[name][:, at]}
            for side, name in (("i", "kernel"), ("h", "recurrent_kernel"))
            for gate, at in (("f", f), ("n", n))
        }
        theirs["if"]["bias"], theirs["in"]["bias"] = (
            params["bias"][f],
            params["bias"][n],
        )
        if reset_gate:
            theirs["hn"]["bias"] = params["recurrent_bias"]
        rnn = nn.RNN(nn.MGUCell(features, reset_gate=reset_gate))

        def loss(p, x):
            y = rnn.apply({"params": {"cell": p}}, x)
            return jnp.sum(y * weight), y

        (_, y), (g, for_x) = jax.value_and_grad(loss, (0, 1), has_aux=True)(theirs, x)
        kernel = jnp.concatenate([g["if"]["kernel"], g["in"]["kernel"]], -1)
        recurrent = jnp.concatenate([g["hf"]["kernel"], g["hn"]["kernel"]], -1)
        return {"y": y, "x": for_x, "kernel": kernel, "recurrent": recurrent}

    theirs = reference(f"recurrent/mgu {size} {reset_gate}", answer)
    y, grads, for_x, _ = ours(layer, params, x, weight)
    found = {"y": y, "x": for_x, "kernel": grads["kernel"]}
    for key, value in (found | {"recurrent": grads["recurrent_kernel"]}).items():
        close(value, theirs[key])


@pytest.mark.parametrize(
    ("spatial", "window"),
    [
        ((5,), 2),
        pytest.param((4, 5), 3, marks=slow),
        pytest.param((4, 4), (1, 2), marks=slow),
        pytest.param((3, 3, 2), 2, marks=slow),
        pytest.param((6,), 1, marks=slow),
        pytest.param((1, 1), 3, marks=slow),
        *(
            pytest.param(tuple(spatial), window, marks=slow)
            for ndim in (1, 2)
            for spatial, window in zip(
                np.random.default_rng(ndim).integers(2, 6, (7, ndim)).tolist(),
                [1, 2, 3, 4, 2, 3, 1],
                strict=True,
            )
        ),
    ],
)
def test_conv_lstm_agrees_with_flax(spatial, window):
    layer = al.conv_lstm(2, window)
    x, weight = normal(0, 2, 3, *spatial, 2), normal(1, 2, 3, *spatial, 2)
    params = drawn(layer.init(KEY, x)[0])

    def answer():
        from flax import linen as nn

        def theirs_of(tree):  # gates in the order i, g, f, o, and 1 added to f
            swap = {k: reordered(p) for k, p in tree.items()}
            bias = swap["bias"].at[4:6].add(-1.0)
            ih = {"kernel": swap["kernel"], "bias": bias}
            hh = {"kernel": swap["recurrent_kernel"], "bias": jnp.zeros_like(bias)}
            return {"params": {"cell": {"ih": ih, "hh": hh}}}

        sizes = (window,) * len(spatial) if isinstance(window, int) else window
        rnn = nn.RNN(nn.ConvLSTMCell(2, sizes))

        def loss(tree, x):
            y = rnn.apply(theirs_of(tree), x)
            return jnp.sum(y * weight), y

        step = jax.value_and_grad(loss, (0, 1), has_aux=True)
        (_, y), (grads, for_x) = step(jax.tree.map(jnp.asarray, params), x)
        return {"y": y, "x": for_x, **grads}

    theirs = reference(f"recurrent/conv_lstm {spatial} {window}", answer)
    y, grads, for_x, _ = ours(layer, params, x, weight)
    for key, value in {"y": y, "x": for_x, **grads}.items():
        close(value, theirs[key])


def reordered(p):
    i, f, g, o = jnp.split(jnp.asarray(p), 4, -1)
    return jnp.concatenate([i, g, f, o], -1)


# --- options


def test_the_forget_gate_starts_open():
    params, _ = al.lstm(3).init(KEY, (None, 5, 4))
    np.testing.assert_array_equal(params["bias"], [0] * 3 + [1] * 3 + [0] * 6)
    params, _ = al.lstm(3, forget_bias=0.0).init(KEY, (None, 5, 4))
    assert not params["bias"].any()
    params, _ = al.mgu(3, forget_bias=2.0).init(KEY, (None, 5, 4))
    np.testing.assert_array_equal(params["bias"], [2] * 3 + [0] * 3)
    params, _ = al.conv_lstm(2, 1).init(KEY, (None, 5, 4, 1))
    np.testing.assert_array_equal(params["bias"], [0] * 2 + [1] * 2 + [0] * 4)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_each_gate_starts_orthogonal_and_by_itself(kind):
    params, _ = getattr(al, kind)(8).init(KEY, (None, 5, 100))
    gates = np.split(np.asarray(params["recurrent_kernel"]), GATES[kind], -1)
    for i, gate in enumerate(gates):
        np.testing.assert_allclose(gate @ gate.T, np.eye(8), atol=1e-5)
        assert not any(np.allclose(gate, other) for other in gates[i + 1 :])
    glorot = al.initializers.glorot_uniform()
    params, _ = getattr(al, kind)(8, kernel_init=glorot).init(KEY, (None, 5, 100))
    bound = (6 / 108) ** 0.5
    assert 0.95 * bound < float(jnp.max(jnp.abs(params["kernel"]))) <= bound


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru", "mgu"])
def test_the_input_projection_is_outside_of_the_loop(kind):
    layer, x = getattr(al, kind)(5), normal(0, 3, 7, 4)
    params, _ = layer.init(KEY, x)
    text = jax.jit(lambda x: layer.predict(params, {}, x)).lower(x).as_text()
    before, loop = text.split("stablehlo.while")
    assert loop.count("dot_general") == 1
    assert before.count("dot_general") == 1


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru", "mgu"])
def test_gradients_of_recurrent_weights_are_outside_of_the_loop(kind):
    layer, x = getattr(al, kind)(5), normal(0, 3, 7, 4)
    params, _ = layer.init(KEY, x)
    loss = jax.jit(jax.grad(lambda p: jnp.sum(layer.predict(p, {}, x))))
    loops = loss.lower(params).as_text().split("stablehlo.while")[1:]
    shape = f"tensor<5x{5 * GATES[kind]}xf32>"
    summed = [line for line in loops[-1].splitlines() if f": {shape}" in line]
    assert len(loops) == 2
    assert not [line for line in summed if "stablehlo.add" in line.split("while")[0]]


@pytest.mark.parametrize("kind", ["lstm", "gru", "mgu"])
def test_other_activations_are_used(kind):
    options = {"gate_fn": jax.nn.hard_sigmoid, "activation_fn": jax.nn.soft_sign}
    layer, x = getattr(al, kind)(3, **options), normal(0, 2, 3, 4)
    params, _ = layer.init(KEY, x)
    text = str(jax.make_jaxpr(lambda x: layer.predict(params, {}, x))(x))
    assert "tanh" not in text
    assert "logistic" not in text


def test_another_dot_general_makes_every_product():
    calls = []

    def counted(*args, **kwargs):
        calls.append(args[0].shape)
        return jax.lax.dot_general(*args, **kwargs)

    layer, x = al.gru(3, dot_general=counted), normal(0, 2, 4, 5)
    params = drawn(layer.init(KEY, x)[0])
    calls.clear()
    y, grads, for_x, _ = ours(layer, params, x, normal(1, 2, 4, 3))
    assert {shape[-1] for shape in calls} == {3, 5}
    plain = ours(al.gru(3), params, x, normal(1, 2, 4, 3))
    jax.tree.map(close, (y, grads, for_x), plain[:3])


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru", "mgu"])
def test_bfloat16_stays_and_params_are_float32(kind):
    layer = getattr(al, kind)(3, return_carry=True)
    x = jnp.ones((2, 3, 4), jnp.bfloat16)
    params, _ = layer.init(KEY, x)
    assert {p.dtype for p in params.values()} == {jnp.dtype(jnp.float32)}
    out = jax.tree.leaves(layer.predict(params, {}, x))
    assert {a.dtype for a in out} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru", "mgu"])
def test_unknown_batch_and_time_stay_symbolic(kind):
    layer = getattr(al, kind)(8)
    assert str(layer.output_spec(al.spec("b 9 4")).shape) == "(b, 9, 8)"
    assert str(layer.output_spec(al.spec("b t 4")).shape) == "(b, t, 8)"


def test_images_of_unknown_sizes_stay_symbolic():
    layer = al.conv_lstm(8, 3, return_sequence=False)
    assert str(layer.output_spec(al.spec("b t h w 4")).shape) == "(b, h, w, 8)"
    strided = al.conv_lstm(8, 3, strides=2, padding="VALID")
    assert strided.output_spec(al.spec("b t 9 7 4")).shape[2:] == (4, 3, 8)


@each_kind
def test_empty_batch_and_single_step(kind):
    layer = made(kind, 3)
    params, _ = layer.init(KEY, (None, 5, 4))
    assert run(layer, params, jnp.ones((0, 5, 4))).shape == (0, 5, 3)
    x = np.ones((2, 1, 4), np.float32)
    close(run(layer, params, x), formula(kind, params, x, 3)[0])


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru", "mgu", "lstm_cell", "mgu_cell"])
def test_features_must_be_a_positive_int(kind):
    with pytest.raises(ValueError, match="features must be a positive int") as error:
        getattr(al, kind)(0)
    assert str(error.value) == f"{kind}: features must be a positive int, got 0."


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru", "mgu"])
def test_an_image_is_no_sequence_word_for_word(kind):
    with pytest.raises(al.ShapeError) as error:
        getattr(al, kind)(3).init(KEY, (None, 5, 6, 4))
    assert str(error.value) == (
        f"{kind}_cell: expected (batch, n), got float32[_0, 6, 4]. A cell takes one step "
        "at a time; lstm, gru and scan(cell) take sequences, (batch, time, n)."
    )


# --- a bias of the carry's own


@pytest.mark.parametrize(("kind", "gates"), [("lstm", 4), ("gru", 3)])
def test_a_bias_of_the_carrys_own_is_added_to_the_other_one(kind, gates):
    x = normal(0, 2, 3, 4)
    both = getattr(al, kind)(5, use_recurrent_bias=True)
    params = drawn(both.init(KEY, x)[0])
    assert params["bias"].shape == params["recurrent_bias"].shape == (gates * 5,)
    one, own = getattr(al, kind)(5), params["recurrent_bias"]
    plain = {k: v for k, v in params.items() if k != "recurrent_bias"}
    if kind == "gru":  # the reset gate acts on the candidate's
        plain["recurrent_bias"], own = own[10:], np.concatenate([own[:10], np.zeros(5)])
    plain["bias"] = plain["bias"] + np.asarray(own, np.float32)
    close(run(both, params, x), run(one, plain, x))

    def loss(model, params):
        return jnp.sum(model.predict(params, {}, x) ** 2)

    here, there = (
        jax.jit(jax.grad(lambda p, m=m: loss(m, p)))(p)
        for m, p in ((both, params), (one, plain))
    )
    close(here["bias"], there["bias"])
    wanted = there["bias"]
    if kind == "gru":
        wanted = np.concatenate([wanted[:10], there["recurrent_bias"]])
    close(here["recurrent_bias"], wanted)


def test_a_gru_that_cannot_have_a_bias_of_the_carrys_own():
    with pytest.raises(ValueError, match="use_recurrent_bias needs use_bias and reset"):
        al.gru(4, use_recurrent_bias=True, reset_after=False)
