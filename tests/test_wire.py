"""Wires: ordinary Python over named children."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import axonlike as al

KEY = jax.random.key(0)


def spec_paths(params):
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]


def noisy():
    """Adds numbers of its own in training: what it adds shows its key."""

    @al.layer
    def noise():
        def apply(params, x, *, key, train):
            return x + jax.random.normal(key, x.shape) if train else x

        return None, apply

    return noise()


def counter():
    """Adds one to its state with every use, and the state to its input."""

    @al.layer
    def count():
        def init(key, x):
            return {}, {"uses": jnp.zeros(())}

        def apply(params, x, *, state):
            uses = state["uses"] + 1
            return x + uses, {"uses": uses}

        return init, apply

    return count()


def test_a_wire_computes_what_its_function_says():
    def gated(sub, x):
        return sub.value(x) * jax.nn.sigmoid(sub.gate(x))

    model = al.wire(gated, value=al.dense(3), gate=al.dense(3, use_bias=False))
    x = jnp.arange(8.0).reshape(2, 4)
    params, state = model.init(KEY, x)
    assert spec_paths(params) == ["gate/kernel", "value/bias", "value/kernel"]
    value = al.dense(3).predict(params["value"], {}, x)
    gate = al.dense(3, use_bias=False).predict(params["gate"], {}, x)
    y = model.predict(params, state, x)
    np.testing.assert_array_equal(y, value * jax.nn.sigmoid(gate))


def test_children_may_be_called_in_any_order_and_under_python():
    def zigzag(sub, x):
        for name in ("b", "a", "b"):
            x = getattr(sub, name)(x) if x.shape[-1] == 4 else x
        return x

    model = al.wire(zigzag, a=al.dense(4), b=al.dense(4))
    params, _ = model.init(KEY, (None, 4))
    assert sorted(params) == ["a", "b"]


def test_a_child_called_twice_shares_weights_and_not_randomness():
    def twice(sub, x):
        return sub.f(x), sub.f(x)

    model = al.wire(twice, f=al.dense(3) >> noisy())
    x = jnp.ones((2, 4))
    params, state = model.init(KEY, x)
    assert spec_paths(params) == ["f/dense/bias", "f/dense/kernel"]
    a, b = model.predict(params, state, x)
    np.testing.assert_array_equal(a, b)
    (a, b), _ = model.apply(params, state, x, key=KEY, train=True)
    assert np.all(a != b)
    (c, d), _ = model.apply(params, state, x, key=KEY, train=True)
    np.testing.assert_array_equal((a, b), (c, d))


def test_the_state_of_a_child_flows_from_use_to_use():
    def thrice(sub, x):
        return sub.f(sub.f(sub.f(x)))

    model = al.wire(lambda sub, x: sub.g(x), g=al.wire(thrice, f=counter()))
    params, state = model.init(KEY, al.spec(""))
    y, state = model.apply(params, state, jnp.array(0.0))
    assert y == 1 + 2 + 3
    assert state == {"g": {"f": {"uses": 3}}}
    y, state = model.apply(params, state, jnp.array(0.0))
    assert y == 4 + 5 + 6


def test_a_child_not_called_keeps_its_state():
    def some(sub, x, *, train):
        return sub.a(x) if train else sub.b(sub.a(x))

    model = al.wire(some, a=counter(), b=counter())
    params, state = model.init(KEY, jnp.array(0.0))
    _, after = model.apply(params, state, jnp.array(0.0), train=True)
    assert after == {"a": {"uses": 1}, "b": {"uses": 0}}
    assert after["b"]["uses"] is state["b"]["uses"]
    _, after = model.apply(params, after, jnp.array(0.0))
    assert after == {"a": {"uses": 2}, "b": {"uses": 1}}


def test_weights_of_a_child_can_be_read():
    def tied(sub, x):
        return sub.emb(x) @ sub.emb.params["embedding"].T

    model = al.wire(tied, emb=al.embedding(7, 4))
    x = jnp.array([[1, 2, 6]])
    params, state = model.init(KEY, x)
    table = params["emb"]["embedding"]
    assert spec_paths(params) == ["emb/embedding"]
    assert model.output_spec(al.spec("b t", int)).shape[2] == 7
    y = model.predict(params, state, x)
    np.testing.assert_allclose(y, table[x] @ table.T, rtol=1e-5)
    grads = jax.grad(lambda p: model.predict(p, state, x).sum())(params)
    by_hand = jax.grad(lambda t: (t[x] @ t.T).sum())(table)
    np.testing.assert_allclose(grads["emb"]["embedding"], by_hand, rtol=1e-5)


def test_weights_below_a_child_can_be_read():
    def tied(sub, x):
        y = sub.tower(x)
        return y @ sub.tower.params["first"]["dense"]["kernel"].T

    tower = al.serial(first=al.dense(3) >> jnp.sin, second=al.dense(3))
    model = al.wire(tied, tower=tower)
    params, state = model.init(KEY, (None, 5))
    assert model.predict(params, state, jnp.ones((2, 5))).shape == (2, 5)


def test_a_parameter_is_a_child_without_inputs():
    def shifted(sub, x):
        return x + jnp.broadcast_to(sub.shift(), x.shape)

    ones = al.initializers.ones()
    model = al.wire(shifted, shift=al.parameter((3,), ones))
    params, state = model.init(KEY, (None, 3))
    np.testing.assert_array_equal(params["shift"]["value"], [1, 1, 1])
    np.testing.assert_array_equal(
        model.predict(params, state, jnp.ones((2, 3))), np.full((2, 3), 2.0)
    )


def test_children_in_a_list():
    def chain(sub, x):
        assert len(sub.convs) == 3
        for layer in sub.convs:
            x = layer(x)
        return sub.convs[0](x) + sub.convs[-1](x)

    model = al.wire(chain, convs=[al.dense(4) for _ in range(3)])
    params, state = model.init(KEY, (None, 4))
    assert sorted(params["convs"]) == ["0", "1", "2"]
    assert list(model.children) == ["convs/0", "convs/1", "convs/2"]
    paths = [path for path, _ in al.layers(model)]
    assert paths == ["convs/0", "convs/1", "convs/2"]
    kernels = [params["convs"][i]["kernel"] for i in "012"]
    assert not np.array_equal(kernels[0], kernels[1])
    assert model.predict(params, state, jnp.ones((2, 4))).shape == (2, 4)


def test_children_in_a_dict():
    def heads(sub, x):
        return {key: sub.heads[key](x) for key in ("mean", "scale")}

    model = al.wire(heads, heads={"mean": al.dense(2), "scale": jnp.exp})
    params, state = model.init(KEY, (None, 3))
    assert spec_paths(params) == ["heads/mean/bias", "heads/mean/kernel"]
    y = model.predict(params, state, jnp.ones((1, 3)))
    assert {key: value.shape for key, value in y.items()} == {
        "mean": (1, 2),
        "scale": (1, 3),
    }

    def wrong(sub, x):
        return sub.heads["mode"](x)

    message = r"wire: heads: nothing is called 'mode'\. Known: 'mean'\."
    with pytest.raises(al.PathError, match=message):
        al.wire(wrong, heads={"mean": al.dense(2)}).output_spec((None, 3))


def test_several_inputs_and_keyword_inputs():
    def attend(sub, q, k, scale=1.0, *, train):
        y = sub.mix(q, k)
        return y * scale if not train else -y

    @al.layer
    def mix():
        return None, lambda params, a, b: a + 2 * b

    model = al.wire(attend, mix=mix())
    x = (jnp.array(1.0), jnp.array(3.0))
    assert model.predict({}, {}, x) == 7
    assert model.predict({}, {}, {"k": x[1], "q": x[0], "scale": 2.0}) == 14
    assert model.apply({}, {}, x, train=True)[0] == -7

    outer = al.wire(lambda sub, x: sub.inner(x, scale=3.0, k=x), inner=model)
    assert outer.predict({}, {}, jnp.array(1.0)) == 9
    with pytest.raises(TypeError, match=r"unknown input 'sale'\. Nearest: 'scale'"):
        al.wire(lambda sub, x: sub.inner(x, x, sale=3.0), inner=model).output_spec(1.0)


def test_a_wire_gets_key_train_and_options():
    def drop(sub, x, *, key, train, rate=0.5):
        if not train:
            return sub.f(x)
        return jnp.where(jax.random.bernoulli(key, rate, x.shape), sub.f(x), 0.0)

    model = al.wire(drop, f=jnp.sin)
    x = jnp.ones(64)
    assert model.predict({}, {}, x).all()
    y, _ = model.apply({}, {}, x, key=KEY, train=True)
    assert 10 < jnp.count_nonzero(y) < 54
    y, _ = model.apply({}, {}, x, key=KEY, train=True, options={"rate": 0.0})
    assert not y.any()


def test_a_wire_has_no_level_for_its_function():
    inner = al.wire(lambda sub, x: sub.a(x), a=al.dense(3))
    outer = al.wire(lambda sub, x: sub.b(sub.inner(x)), inner=inner, b=al.dense(2))
    params, _ = (outer >> jnp.sin).init(KEY, (None, 4))
    assert spec_paths(params) == [
        "wire/b/bias",
        "wire/b/kernel",
        "wire/inner/a/bias",
        "wire/inner/a/kernel",
    ]


def test_names_given_to_children_give_way_to_those_of_the_wire():
    def run(sub, x):
        return sub.a(x)

    assert al.wire(run, a=al.dense(3, name="b")) == al.wire(run, a=al.dense(3))
    assert al.wire(run, a=[al.dense(3, name="b")]) == al.wire(run, a=[al.dense(3)])


@pytest.mark.parametrize("name", ["a/b", "a*", "a#1", "{a}", "12", "fn", "name"])
def test_names_that_paths_need_are_refused(name):
    with pytest.raises((ValueError, TypeError), match=r"name|fn"):
        al.wire(lambda sub, x: x, **{name: al.dense(3)})


def test_wires_under_jit_grad_and_vmap():
    def twice(sub, x):
        return sub.f(jnp.tanh(sub.f(x)))

    model = al.wire(twice, f=al.dense(4) >> al.dropout(0.5))
    x = jnp.ones((3, 4))
    params, state = model.init(KEY, x)

    def loss(params, x):
        return model.apply(params, state, x, key=KEY, train=True)[0].sum()

    eager, jitted = jax.grad(loss)(params, x), jax.jit(jax.grad(loss))(params, x)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), eager, jitted
    )
    each = jax.vmap(lambda x: model.predict(params, state, x))(x)
    np.testing.assert_allclose(each, model.predict(params, state, x), rtol=1e-6)
