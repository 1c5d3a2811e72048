"""LSTM and GRU: formulas in NumPy, PyTorch, time in both directions, carries, "
"errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from parity import close, normal, numpy, run

import axonlike as al

KEY = jax.random.key(0)
BIASED = {"bias_init": al.initializers.normal(1.0)}


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _lstm_step(params, carry, x):
    h, c = carry
    z = x @ params["kernel"] + h @ params["recurrent_kernel"] + params.get("bias", 0)
    i, f, g, o = np.split(z, 4, -1)
    c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
    h = _sigmoid(o) * np.tanh(c)
    return (h, c), h


def _gru_step(params, h, x):
    xr, xz, xn = np.split(x @ params["kernel"] + params.get("bias", 0), 3, -1)
    hr, hz, hn = np.split(h @ params["recurrent_kernel"], 3, -1)
    r, z = _sigmoid(xr + hr), _sigmoid(xz + hz)
    n = np.tanh(xn + r * (hn + params.get("recurrent_bias", 0)))
    h = (1 - z) * n + z * h
    return h, h


def _formula(kind, params, x, features, carry=None, *, reverse=False):
    params = {k: np.asarray(p, np.float64) for k, p in params.items()}
    zeros = np.zeros((x.shape[0], features))
    if carry is None:
        carry = (zeros, zeros) if kind == "lstm" else zeros
    step = _lstm_step if kind == "lstm" else _gru_step
    out = np.zeros((*x.shape[:2], features))
    times = range(x.shape[1])
    for t in reversed(times) if reverse else times:
        carry, out[:, t] = step(params, carry, x[:, t].astype(np.float64))
    return out, carry


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_sequences_follow_the_formula(kind, use_bias, reverse):
    layer = getattr(al, kind)(
        5, use_bias=use_bias, reverse=reverse, return_carry=True, **BIASED
    )
    x = normal(0, 3, 7, 4)
    params, state = layer.init(KEY, x)
    assert state == {}
    y, carry = run(layer, params, x)
    desired, last = _formula(kind, params, x, 5, reverse=reverse)
    close(y, desired)
    jax.tree.map(close, carry, last)
    gates = {"lstm": 4, "gru": 3}[kind]
    shapes = {"kernel": (4, gates * 5), "recurrent_kernel": (5, gates * 5)}
    if use_bias:
        shapes["bias"] = (gates * 5,)
    if use_bias and kind == "gru":
        shapes["recurrent_bias"] = (5,)
    assert {k: p.shape for k, p in params.items()} == shapes


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_layer_is_its_cell_step_by_step(kind):
    layer, cell = getattr(al, kind)(5), getattr(al, f"{kind}_cell")(5)
    x = normal(0, 3, 4, 2)
    params, _ = layer.init(KEY, x)
    zeros = jnp.zeros((3, 5))
    carry = (zeros, zeros) if kind == "lstm" else zeros
    made, _ = cell.init(KEY, (carry, x[:, 0]))
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, params)
    step, outputs = jax.jit(cell.predict), []
    for t in range(4):
        carry, y = step(params, {}, (carry, x[:, t]))
        outputs.append(y)
    close(run(layer, params, x), np.stack(outputs, 1))


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_carry_continues_where_it_stopped(kind):
    layer, x = getattr(al, kind)(5, return_carry=True), normal(0, 3, 6, 2)
    params, _ = layer.init(KEY, x)
    whole, last = run(layer, params, x)
    first, carry = run(layer, params, x[:, :4])
    desired = _formula(kind, params, x[:, 4:], 5, jax.tree.map(np.asarray, carry))[0]
    close(whole[:, :4], first)
    close(whole[:, 4:], desired)

    def resume(sub, x, carry):
        return sub.rnn(x, initial_carry=carry)

    model = al.wire(resume, rnn=layer)
    second, end = run(model, {"rnn": params}, (x[:, 4:], carry))
    close(second, desired)
    jax.tree.map(close, end, last)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_bidirectional_layer_reverses(kind):
    one = getattr(al, kind)(3)
    model, x = al.bidirectional(one), normal(0, 2, 5, 4)
    params, _ = model.init(KEY, x)
    y = run(model, params, x)
    close(y[..., :3], _formula(kind, params["forward"], x, 3)[0])
    close(y[..., 3:], _formula(kind, params["backward"], x, 3, reverse=True)[0])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_gradients_equal_finite_differences(kind, reverse):
    layer = getattr(al, kind)(2, reverse=reverse, **BIASED)
    x, weight = normal(0, 2, 3, 2), normal(1, 2, 3, 2)
    params, _ = layer.init(KEY, x)
    with jax.enable_x64(True):
        args = jax.tree.map(lambda a: np.asarray(a, np.float64), (params, x))

        def loss(params, x):
            return jnp.sum(layer.predict(params, {}, x) * weight.astype(np.float64))

        check_grads(jax.jit(loss), args, order=1, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_each_gate_starts_orthogonal_and_by_itself(kind):
    params, _ = getattr(al, kind)(8).init(KEY, (None, 5, 100))
    gates = np.split(
        np.asarray(params["recurrent_kernel"]), {"lstm": 4, "gru": 3}[kind], -1
    )
    for i, gate in enumerate(gates):
        np.testing.assert_allclose(gate @ gate.T, np.eye(8), atol=1e-5)
        assert not any(np.allclose(gate, other) for other in gates[i + 1 :])
    glorot = al.initializers.glorot_uniform()
    params, _ = getattr(al, kind)(8, kernel_init=glorot).init(KEY, (None, 5, 100))
    bound = (6 / 108) ** 0.5
    assert 0.95 * bound < float(jnp.max(jnp.abs(params["kernel"]))) <= bound


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_the_input_projection_is_outside_of_the_loop(kind):
    layer, x = getattr(al, kind)(5), normal(0, 3, 7, 4)
    params, _ = layer.init(KEY, x)
    jaxpr = jax.make_jaxpr(lambda x: layer.predict(params, {}, x))(x)
    loops = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan"]
    inside = str(loops[0].params["jaxpr"]).count("dot_general")
    assert (len(loops), inside) == (1, 1)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_other_activations_are_used(kind):
    options = {"gate_fn": jax.nn.hard_sigmoid, "activation_fn": jax.nn.soft_sign}
    layer, x = getattr(al, kind)(3, **options), normal(0, 2, 3, 4)
    params, _ = layer.init(KEY, x)
    text = str(jax.make_jaxpr(lambda x: layer.predict(params, {}, x))(x))
    assert "tanh" not in text
    assert "logistic" not in text


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_bfloat16_stays_and_params_are_float32(kind):
    layer, x = (
        getattr(al, kind)(3, return_carry=True),
        jnp.ones((2, 3, 4), jnp.bfloat16),
    )
    params, _ = layer.init(KEY, x)
    assert {p.dtype for p in params.values()} == {jnp.dtype(jnp.float32)}
    assert {a.dtype for a in jax.tree.leaves(layer.predict(params, {}, x))} == {
        jnp.dtype(jnp.bfloat16)
    }


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_unknown_batch_and_time_stay_symbolic(kind):
    layer = getattr(al, kind)(8)
    assert str(layer.output_spec(al.spec("b 9 4")).shape) == "(b, 9, 8)"
    assert str(layer.output_spec(al.spec("b t 4")).shape) == "(b, t, 8)"


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_empty_batch_and_single_step(kind):
    layer = getattr(al, kind)(3)
    params, _ = layer.init(KEY, (None, 5, 4))
    assert run(layer, params, jnp.ones((0, 5, 4))).shape == (0, 5, 3)
    close(
        run(layer, params, np.ones((2, 1, 4), np.float32)),
        _formula(kind, params, np.ones((2, 1, 4)), 3)[0],
    )


@pytest.mark.parametrize("kind", ["lstm", "gru", "lstm_cell", "gru_cell"])
def test_features_must_be_a_positive_int(kind):
    with pytest.raises(ValueError, match="features must be a positive int") as error:
        getattr(al, kind)(0)
    assert str(error.value) == f"{kind}: features must be a positive int, got 0."


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_an_image_is_no_sequence_word_for_word(kind):
    with pytest.raises(al.ShapeError) as error:
        getattr(al, kind)(3).init(KEY, (None, 5, 6, 4))
    assert str(error.value) == (
        f"{kind}_cell: expected (batch, n), got float32[_0, 6, 4]. A cell takes one "
        f"time "
        "step; over sequences (batch, time, n) use lstm, gru or scan(cell)."
    )


def _torch_params(torch, kind, params, width):
    """A torch layer with our weights: it has two biases where we have one."""
    theirs = getattr(torch.nn, kind.upper())(width, 5, batch_first=True)
    arrays = {k: torch.tensor(np.array(p)) for k, p in params.items()}
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(arrays["kernel"].T)
        theirs.weight_hh_l0.copy_(arrays["recurrent_kernel"].T)
        theirs.bias_ih_l0.copy_(arrays["bias"])
        theirs.bias_hh_l0.zero_()
        if kind == "gru":
            theirs.bias_hh_l0[10:] = arrays["recurrent_bias"]
    return theirs


@pytest.mark.parametrize("shape", [(3, 7, 4), (1, 1, 2), (2, 12, 1)])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_sequences_and_gradients_agree_with_torch(kind, shape):
    torch = pytest.importorskip("torch")
    layer = getattr(al, kind)(5, return_carry=True, **BIASED)
    x, weight = normal(0, *shape), normal(1, *shape[:2], 5)
    params, _ = layer.init(KEY, x)
    theirs = _torch_params(torch, kind, params, shape[-1])
    tx = torch.tensor(x, requires_grad=True)
    ty, tlast = theirs(tx)
    last = tlast if kind == "lstm" else (tlast,)
    ((ty * torch.tensor(weight)).sum() + sum(c.sum() for c in last)).backward()

    def loss(params, x):
        y, carry = layer.predict(params, {}, x)
        total = jnp.sum(y * weight) + sum(jnp.sum(c) for c in jax.tree.leaves(carry))
        return total, (y, carry)

    step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, (y, carry)), (grads, for_x) = step(params, x)
    close(y, numpy(ty))
    for ours, tensor in zip(jax.tree.leaves(carry), last, strict=True):
        close(ours, numpy(tensor)[0])
    close(for_x, tx.grad)
    close(np.asarray(grads["kernel"]).T, theirs.weight_ih_l0.grad)
    close(np.asarray(grads["recurrent_kernel"]).T, theirs.weight_hh_l0.grad)
    close(grads["bias"], theirs.bias_ih_l0.grad)
    if kind == "gru":
        close(grads["recurrent_bias"], theirs.bias_hh_l0.grad[10:])
