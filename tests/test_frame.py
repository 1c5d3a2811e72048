"""The door: keys by path, names in profiles, taps and edits, state on its way."""

import gc
import hashlib
import re
import threading
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import axonlike as al
from axonlike.evaluation import evaluate
from axonlike.frame import Frame, Run, Taps, fold_path

KEY = jax.random.key(7)


@al.layer
def drawn():
    """Returns its key's bits in training, so that the key itself can be looked at."""

    def init(key, x):
        return {"bits": jax.random.key_data(key)}

    def apply(params, x, *, key, train):
        return jax.random.key_data(key) if train else params["bits"]

    return init, apply


def bits_at(purpose, path, *indices):
    """The documented rule, by hand: root, 64 bits of a hash, indices outermost first."""
    data = hashlib.blake2b(f"{purpose}:{path}".encode(), digest_size=8).digest()
    key = KEY
    for word in (data[:4], data[4:]):
        key = jax.random.fold_in(key, int.from_bytes(word, "big"))
    for index in indices:
        key = jax.random.fold_in(key, index)
    return np.asarray(jax.random.key_data(key))


def ran(model, x):
    params, state = model.init(KEY, x)
    return model.apply(params, state, x, key=KEY, train=True)[0]


X = jnp.ones(2)


# --- keys


def test_a_key_is_the_root_folded_with_a_hash_of_purpose_and_path():
    np.testing.assert_array_equal(
        jax.random.key_data(fold_path(KEY, "apply", "a/b")), bits_at("apply", "a/b")
    )
    model = al.serial(a=al.branch(b=drawn(), c=drawn()))
    params, _ = model.init(KEY, X)
    y = ran(model, X)
    for name in "bc":
        path = f"a/{name}"
        np.testing.assert_array_equal(params["a"][name]["bits"], bits_at("init", path))
        np.testing.assert_array_equal(y[name], bits_at("apply", path))


def test_a_second_use_has_a_key_of_its_own():
    model = al.wire(
        lambda sub, x: (sub.f(x), sub.f(x), sub.f(x)), f=al.serial(a=drawn())
    )
    first, second, third = ran(model, X)
    np.testing.assert_array_equal(first, bits_at("apply", "f/a"))
    np.testing.assert_array_equal(second, bits_at("apply", "f#1/a"))
    np.testing.assert_array_equal(third, bits_at("apply", "f#2/a"))


@al.layer
def added():
    """Adds a number drawn with its key: several in a row show all of their keys."""

    def init(key, x):
        return {"start": jax.random.normal(key)}

    def apply(params, x, *, key, train):
        return x + jax.random.normal(key) if train else x

    return init, apply


def number_at(purpose, path, *indices):
    key = jax.random.wrap_key_data(bits_at(purpose, path, *indices))
    return jax.random.normal(key)


@pytest.mark.parametrize("stacked", [True, False])
def test_a_repeat_folds_its_index(stacked):
    model = al.serial(r=al.repeat(al.repeat(added(), 3), 2, stacked=stacked))
    params, _ = model.init(KEY, jnp.array(0.0))
    y = ran(model, jnp.array(0.0))
    pairs = [(i, j) for i in range(2) for j in range(3)]
    by_hand = sum(number_at("apply", "r", *pair) for pair in pairs)
    np.testing.assert_allclose(y, by_hand, rtol=1e-5)
    starts = np.asarray([number_at("init", "r", *pair) for pair in pairs])
    leaves = [np.ravel(leaf) for leaf in jax.tree.leaves(params)]
    np.testing.assert_array_equal(np.concatenate(leaves), starts)


def test_an_ensemble_and_a_scan_fold_their_index():
    ensemble = ran(al.serial(e=al.ensemble(drawn(), 3)), X)
    for i in range(3):
        np.testing.assert_array_equal(ensemble[i], bits_at("apply", "e", i))
    frames = ran(al.serial(v=al.vmap(drawn())), jnp.ones((3, 2)))
    for i in range(3):
        np.testing.assert_array_equal(frames[i], bits_at("apply", "v", i))


def test_wrappers_change_no_key():
    plain = ran(al.serial(d=drawn()), X)
    for wrapper in (al.remat, al.frozen, lambda f: al.mixed(f, jnp.float32)):
        np.testing.assert_array_equal(ran(al.serial(d=wrapper(drawn())), X), plain)


def test_siblings_change_no_weights_and_no_dropout():
    def model(*before):
        drop = al.dropout(0.5, name="drop")
        return al.serial(*before, al.dense(4, name="last"), drop)

    x = jnp.ones((3, 4))
    small, large = model(), model(al.dense(4), jnp.sin, al.dropout(0.5))
    ours, state = small.init(KEY, x)
    theirs, _ = large.init(KEY, x)
    jax.tree.map(np.testing.assert_array_equal, ours["last"], theirs["last"])
    zero = jax.tree.map(jnp.zeros_like, theirs) | {
        "last": {"kernel": jnp.zeros((4, 4)), "bias": jnp.ones(4)}
    }
    y, _ = large.apply(zero, state, x, key=KEY, train=True)
    z, _ = small.apply({"last": zero["last"]}, state, x, key=KEY, train=True)
    np.testing.assert_array_equal(y, z)
    assert {0.0, 2.0} == set(np.unique(y).tolist())


def test_without_a_key_a_layer_gets_none():
    @al.layer
    def lacking():
        return None, lambda params, x, *, key: jnp.array(key is None)

    assert lacking().predict({}, {}, X)
    assert not lacking().apply({}, {}, X, key=KEY)[0]


def test_older_keys_serve_too():
    old = jax.random.PRNGKey(7)
    x = jnp.ones((1, 3))
    model = al.dense(2) >> al.dropout(0.5)
    params, state = model.init(old, x)
    same, _ = model.init(jax.random.wrap_key_data(old), x)
    jax.tree.map(np.testing.assert_array_equal, params, same)
    y, _ = model.apply(params, state, x, key=old, train=True)
    z, _ = model.apply(params, state, x, key=jax.random.wrap_key_data(old), train=True)
    np.testing.assert_array_equal(y, z)


# --- names in profiles


def scopes(model, x):
    params, state = model.init(KEY, x)
    lowered = jax.jit(model.apply).lower(params, state, x)
    text = lowered.as_text(debug_info=True)
    return set(re.findall(r'loc\("jit\(apply\)/([^"]*)"', text))


def test_operations_carry_the_path_of_their_layer():
    model = al.serial(
        stem=al.dense(4),
        body=al.residual(al.dense(4) >> jnp.tanh),
        head=al.wire(lambda sub, x: sub.out(sub.out(x)), out=al.dense(4)),
    )
    found = scopes(model, jnp.ones((2, 4)))
    assert "stem/dot_general" in found
    assert "body/dense/dot_general" in found
    assert "body/tanh/tanh" in found
    assert "head/out/dot_general" in found


def test_compiled_operations_carry_the_path():
    model = al.serial(
        a=al.dense(4), b=al.repeat(al.residual(jnp.sin >> al.dense(4)), 2)
    )
    x = jnp.ones((2, 4))
    params, state = model.init(KEY, x)
    text = jax.jit(model.apply).lower(params, state, x).compile().as_text()
    names = re.findall(r'op_name="([^"]*)"', text)
    assert any("/a/dot_general" in name for name in names)
    assert any(re.search(r"/b/.*dense.*/dot_general", name) for name in names)


# --- taps


def model_with_sites():
    mlp = al.serial(hidden=al.dense(4), act=jnp.tanh)
    twice = al.wire(lambda sub, x: sub.f(sub.f(x)), f=al.dense(4))
    return al.serial(mlp=mlp, twice=twice, head=al.dense(2))


def tapped(model, x, taps, **how):
    params, state = model.init(KEY, x)
    y, _, taken = evaluate(model, params, state, x, Run(**how, taps=taps))
    return y, taken


def test_a_site_is_read_by_its_path():
    model, x = model_with_sites(), jnp.ones((3, 5))
    params, state = model.init(KEY, x)
    sites = {"mlp/hidden", "mlp/act", "mlp", "twice/f", "twice/f#1", "twice", "head"}
    y, taken = tapped(model, x, Taps(reads=frozenset(sites)))
    assert set(taken) == sites
    hidden = al.dense(4).predict(params["mlp"]["hidden"], {}, x)
    np.testing.assert_array_equal(taken["mlp/hidden"], hidden)
    np.testing.assert_array_equal(taken["mlp"], jnp.tanh(hidden))
    f = al.dense(4)
    first = f.predict(params["twice"]["f"], {}, taken["mlp"])
    np.testing.assert_array_equal(taken["twice/f"], first)
    np.testing.assert_array_equal(
        taken["twice/f#1"], f.predict(params["twice"]["f"], {}, first)
    )
    np.testing.assert_array_equal(taken["head"], y)
    np.testing.assert_array_equal(y, model.predict(params, state, x))


def test_an_edit_changes_what_follows_and_what_is_read():
    model, x = model_with_sites(), jnp.ones((3, 5))
    params, _ = model.init(KEY, x)
    edits = {"twice/f": lambda y: y * 0}
    y, taken = tapped(model, x, Taps(frozenset({"twice/f", "mlp"}), edits))
    assert not taken["twice/f"].any()
    assert taken["mlp"].any()
    bias = params["twice"]["f"]["bias"]
    by_hand = al.dense(2).predict(params["head"], {}, jnp.broadcast_to(bias, (3, 4)))
    np.testing.assert_allclose(y, by_hand, rtol=1e-6)


@pytest.mark.parametrize(
    "wrap",
    [
        al.remat,
        al.frozen,
        lambda f: al.mixed(f, jnp.float32),
        al.residual,
    ],
    ids=["remat", "frozen", "mixed", "residual"],
)
def test_sites_inside_wrappers_are_read(wrap):
    body = al.serial(a=al.dense(4), b=jnp.tanh)
    x = jnp.ones((3, 4))
    _, plain = tapped(al.serial(w=body), x, Taps(frozenset({"w/a"})))
    _, taken = tapped(al.serial(w=wrap(body)), x, Taps(frozenset({"w/a"})))
    np.testing.assert_array_equal(taken["w/a"], plain["w/a"])


def test_sites_inside_a_stacked_repeat_are_read_as_one():
    x = jnp.ones((3, 4))
    model = al.serial(r=al.repeat(al.residual(jnp.sin >> al.dense(4)), 2))
    y, taken = tapped(model, x, Taps(frozenset({"r/*/dense"})))
    both = taken["r/*/dense"]
    assert both.shape == (2, 3, 4)
    np.testing.assert_allclose(x + both[0] + both[1], y, rtol=1e-6)


def test_emit_is_a_site_that_is_computed_only_when_read():
    @al.layer
    def routed():
        def apply(params, x, *, emit):
            emit("entropy", jnp.sum(x * jnp.log(x)))
            return x

        return None, apply

    model, x = al.serial(a=al.serial(b=routed())), jnp.full(3, 2.0)
    _, taken = tapped(model, x, Taps(frozenset({"a/b/entropy"})))
    np.testing.assert_allclose(taken["a/b/entropy"], 6 * np.log(2), rtol=1e-6)
    assert "log" not in jax.jit(model.apply).lower({}, {}, x).as_text()


def test_taps_work_under_jit_and_grad():
    model, x = model_with_sites(), jnp.ones((3, 5))
    params, state = model.init(KEY, x)
    taps = Taps(frozenset({"mlp"}))

    def penalty(params):
        _, _, taken = evaluate(model, params, state, x, Run(taps=taps))
        return jnp.sum(taken["mlp"] ** 2)

    grads = jax.jit(jax.grad(penalty))(params)
    assert jnp.any(grads["mlp"]["hidden"]["kernel"] != 0)
    assert not jnp.any(grads["head"]["kernel"])


@pytest.mark.parametrize("taps", [None, Taps(), Taps(frozenset({"nothing/here"}))])
def test_taps_that_nobody_uses_cost_nothing(taps):
    block = al.residual(al.dense(4) >> jnp.tanh >> al.dropout(0.5))
    model = al.serial(
        stem=al.dense(4),
        stack=al.repeat(block, 3),
        loop=al.repeat(block, 2, stacked=False),
        norm=al.remat(al.batch_norm()),
    )
    x = jnp.ones((3, 5))
    params, state = model.init(KEY, x)

    def lowered(function):
        text = jax.jit(function).lower(params, state, x, KEY).as_text()
        return re.sub(r"^module @\w+", "module @m", text)

    def seam(params, state, x, key):
        return evaluate(model, params, state, x, Run(key, True, taps=taps))[:2]

    def plain(params, state, x, key):
        return model.apply(params, state, x, key=key, train=True)

    assert lowered(seam) == lowered(plain)


# --- state


def test_new_state_comes_back_in_the_form_it_came_in():
    norm = al.batch_norm(momentum=0.5)
    model = al.serial(
        a=al.residual(al.dense(3) >> norm),
        b=al.repeat(al.residual(al.dense(3)) >> norm >> jnp.exp, 2),
        c=al.remat(norm),
        d=al.ensemble(al.dense(3) >> norm, 2),
    )
    x = jnp.arange(12.0).reshape(4, 3)
    params, state = model.init(KEY, x)
    _, after = jax.jit(lambda s: model.apply(params, s, x, train=True))(state)
    form = lambda tree: jax.tree.map(lambda a: (a.shape, str(a.dtype)), tree)  # noqa: E731
    assert form(after) == form(state)
    changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), state, after)
    assert all(jax.tree.leaves(changed))
    _, same = model.apply(params, after, x)
    jax.tree.map(np.testing.assert_array_equal, same, after)


def test_a_layer_without_state_may_be_given_none_at_all():
    model = al.dense(3) >> jnp.sin
    params, state = model.init(KEY, (None, 3))
    assert state == {}
    _, after = model.apply(params, {}, jnp.ones((1, 3)))
    assert after == {}


def frames():
    gc.collect()
    return [item for item in gc.get_objects() if type(item) is Frame]


def test_no_frame_outlives_its_call():
    before = len(frames())  # which the traceback of a failed test may hold
    block = al.residual(al.dense(3) >> al.batch_norm())
    model = al.serial(
        a=al.repeat(block, 2), b=al.wire(lambda sub, x: sub.f(x), f=block)
    )
    x = jnp.ones((2, 3))
    params, state = model.init(KEY, x)
    jax.jit(model.apply)(params, state, x)
    with pytest.raises(TypeError):
        model.predict(params, state, jnp.ones((2, 4)))
    assert len(frames()) == before


def test_what_a_function_holds_is_let_go_with_it():
    class Data:
        pass

    def model():
        data = Data()
        kept.append(weakref.ref(data))
        return al.wire(lambda sub, x: (data, sub.f(x))[1], f=lambda x: (data, x)[1])

    kept = []
    model()
    gc.collect()
    assert kept[0]() is None


@pytest.mark.usefixtures("leaks_unchecked")
def test_threads_build_and_run_models_at_once():
    found, errors = {}, []

    def work(i):
        try:
            block = al.residual(al.dense(8) >> jnp.tanh >> al.dropout(0.5))
            model = al.dense(8) >> block >> block >> al.dense(i % 3 + 1)
            x = jnp.ones((2, 5))
            params, state = model.init(KEY, x)
            found[i] = model.apply(params, state, x, key=KEY, train=True)[0]
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    together = dict(found)
    for i in range(10):
        work(i)
        np.testing.assert_array_equal(together[i], found[i])
