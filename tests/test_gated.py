"""Gated linear units and maxout: PyTorch, which half is the gate, ties, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_torch import COUNT, LEADS, agrees, drawn_options
from parity import close, drawn, normal

import axonlike as al

KEY = jax.random.key(0)
UNITS = {
    "glu": al.glu(3),
    "swiglu": al.swiglu(3),
    "geglu": al.geglu(3),
    "maxout": al.maxout(3),
}


def _options(seed, **more):
    choice = drawn_options(
        seed,
        lead=LEADS,
        n=(1, 2, 5),
        features=(1, 3, 4),
        use_bias=(True, False),
        **more,
    )
    return normal(seed, *choice.pop("lead"), choice.pop("n")), choice


def _product(p, x):
    y = x @ p["kernel"]
    return y + p["bias"] if "bias" in p else y


@pytest.mark.parametrize("seed", range(COUNT))
def test_glu_agrees_with_torch(seed):
    x, options = _options(seed)

    def define(p, x):
        import torch

        return torch.nn.functional.glu(_product(p, x))

    agrees(f"gated/glu {seed}", al.glu(**options), [x], define)


@pytest.mark.parametrize("seed", range(COUNT))
def test_swiglu_agrees_with_torch(seed):
    x, options = _options(seed)

    def define(p, x):
        import torch

        value, gate = _product(p, x).chunk(2, -1)
        return value * torch.nn.functional.silu(gate)

    agrees(f"gated/swiglu {seed}", al.swiglu(**options), [x], define)


@pytest.mark.parametrize("seed", range(COUNT))
def test_geglu_agrees_with_torch(seed):
    x, options = _options(seed, approximate=(True, False))
    kind = "tanh" if options["approximate"] else "none"

    def define(p, x):
        import torch

        value, gate = _product(p, x).chunk(2, -1)
        return value * torch.nn.functional.gelu(gate, approximate=kind)

    agrees(f"gated/geglu {seed}", al.geglu(**options), [x], define)


@pytest.mark.parametrize("seed", range(COUNT))
def test_maxout_agrees_with_torch(seed):
    x, options = _options(seed, pieces=(1, 2, 3, 5))
    if seed % 4 == 0:
        x = np.zeros_like(x)  # where there is no bias, all pieces are equal

    def define(p, x):
        y = _product(p, x)
        y = y.reshape(*y.shape[:-1], options["pieces"], options["features"])
        return y.max(-2).values

    agrees(f"gated/maxout {seed}", al.maxout(**options), [x], define)


def test_any_activation_can_be_the_gates():
    layer, x = al.glu(3, jnp.tanh), normal(0, 4, 2)
    params = drawn(layer.init(KEY, x)[0])
    y = x @ params["kernel"] + params["bias"]
    close(layer.predict(params, {}, x), y[:, :3] * np.tanh(y[:, 3:]))


def test_geglu_is_approximate_unless_told():
    x, params = normal(0, 4, 2), drawn(al.geglu(3).init(KEY, (None, 2))[0])
    y = x @ params["kernel"] + params["bias"]
    for options, approximate in (({}, True), ({"approximate": False}, False)):
        wanted = y[:, :3] * jax.nn.gelu(y[:, 3:], approximate)
        close(al.geglu(3, **options).predict(params, {}, x), wanted)


def test_of_equal_pieces_the_first_gets_the_gradient():
    layer, x = al.maxout(2, 3, use_bias=False), jnp.ones((1, 1))
    grads = jax.grad(lambda p: layer.predict(p, {}, x).sum())(
        {"kernel": jnp.ones((1, 6))}
    )
    np.testing.assert_array_equal(grads["kernel"], [[1, 1, 0, 0, 0, 0]])


def test_maxout_passes_nan_on():
    layer = al.maxout(1, 2, use_bias=False)
    for kernel in ([[jnp.nan, 1.0]], [[1.0, jnp.nan]]):
        y = layer.predict({"kernel": jnp.array(kernel)}, {}, jnp.ones((1, 1)))
        assert bool(jnp.isnan(y).all())


@pytest.mark.parametrize("layer", UNITS.values(), ids=UNITS)
def test_each_part_is_initialized_by_itself(layer):
    init = al.initializers.orthogonal()
    params, _ = layer.init(KEY, (None, 4))
    assert params["kernel"].shape == (4, 6)
    assert params["bias"].shape == (6,)
    made = getattr(al, layer.kind)(4, kernel_init=init).init(KEY, (None, 4))[0][
        "kernel"
    ]
    for part in (made[:, :4], made[:, 4:]):
        close(part @ part.T, np.eye(4))
    assert not np.allclose(made[:, :4], made[:, 4:])


@pytest.mark.parametrize("layer", UNITS.values(), ids=UNITS)
def test_computation_follows_the_input(layer):
    x = jnp.ones((2, 4), jnp.bfloat16)
    params, _ = layer.init(KEY, x)
    assert {p.dtype for p in params.values()} == {jnp.dtype(jnp.float32)}
    assert layer.predict(params, {}, x).dtype == jnp.bfloat16
    assert str(layer.output_spec(al.spec("b t 4")).shape) == "(b, t, 3)"


@pytest.mark.parametrize("kind", UNITS)
def test_errors_word_for_word(kind):
    make = getattr(al, kind)
    with pytest.raises(ValueError, match=kind) as error:
        make(0)
    assert str(error.value) == f"{kind}: features must be a positive int, got 0."
    with pytest.raises(al.ShapeError) as error:
        make(3).init(KEY, jnp.ones(()))
    assert str(error.value) == (
        f"{kind}: expected (..., n), got float32[]. Add an axis with x[..., None]."
    )
    with pytest.raises(al.ShapeError, match="a last axis of at least 1"):
        make(3).init(KEY, jnp.ones((2, 0)))


def test_pieces_must_be_a_positive_int():
    with pytest.raises(
        ValueError, match="maxout: pieces must be a positive int"
    ) as error:
        al.maxout(3, 0)
    assert str(error.value) == "maxout: pieces must be a positive int, got 0."


def test_the_activation_must_be_a_function():
    with pytest.raises(ValueError, match=r"^glu: activation must be a function, got 3"):
        al.glu(2, 3)
