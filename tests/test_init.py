"""Init: one pass over shapes, then each leaf by itself, compiled once for all alike."""

import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import axonlike as al
from axonlike import initialize, signature

KEY = jax.random.key(3)
TRACED = []


@pytest.fixture(scope="module")
def compiles():
    """How often something was compiled since the list was last cleared."""
    seen = []

    def listen(event, duration, **how):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return seen


def counting(function, compiles):
    compiles.clear()
    function()
    return len(compiles)


def forms(tree):
    return jax.tree.map(lambda a: (tuple(a.shape), a.dtype.name), tree)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def traced(width):
    """A layer that tells when its init or apply is traced, and for which shapes."""

    @al.layer
    def telling():
        def init(key, x):
            TRACED.append("init")
            return {"kernel": jax.random.normal(key, (x.shape[-1], width))}

        def apply(params, x):
            TRACED.append("apply")
            return x @ params["kernel"]

        return init, apply

    return telling()


# --- one abstract pass


def test_no_value_of_the_input_is_looked_at():
    model = al.conv(4, 3) >> al.batch_norm() >> al.flatten() >> al.dense(2)
    x = jnp.ones((2, 8, 8, 1))
    stands = [
        x,
        np.asarray(x),
        jnp.full_like(x, jnp.nan),
        jax.ShapeDtypeStruct(x.shape, x.dtype),
        al.spec("2 8 8 1"),
        al.spec("b 8 8 1"),
        (None, 8, 8, 1),
        (50, 8, 8, 1),
    ]
    made = [model.init(KEY, stand) for stand in stands]
    for other in made[1:]:
        same(made[0], other)


def test_nothing_of_the_size_of_the_model_is_made():
    """40 GB of activations and params, as shapes."""
    model = al.dense(100_000) >> jax.nn.relu >> al.dense(100_000)
    spec = jax.ShapeDtypeStruct((100_000, 50), jnp.float32)
    start = time.thread_time()
    assert model.output_spec(spec).shape == (100_000, 100_000)
    params, _ = jax.eval_shape(lambda key: model.init(key, spec), KEY)
    assert params["dense_1"]["kernel"].shape == (100_000, 100_000)
    assert time.thread_time() - start < 5


def test_an_equal_layer_on_an_equal_shape_is_traced_once():
    layer = traced(4)
    model = al.serial(*[al.residual(layer) for _ in range(20)])
    TRACED.clear()
    model.output_spec((None, 4))
    assert TRACED.count("init") <= 1
    assert TRACED.count("apply") == 1


def test_the_pass_is_linear_in_depth():
    def nested(depth):
        model = al.dense(4)
        for _ in range(depth):
            model = al.serial(model, jnp.tanh).named("inner")
        return al.serial(model)

    def seconds(depth):
        model, best = nested(depth), 9.0
        for _ in range(5):
            start = time.thread_time()
            model.output_spec((None, 4))
            best = min(best, time.thread_time() - start)
        return best

    with jax.check_tracer_leaks(False):  # which collects garbage after each trace
        seconds(4)
        assert seconds(64) < 10 * seconds(16)  # 4 where linear, 16 where quadratic


def test_layers_inside_others_are_found_wherever_they_are():
    block = al.residual(al.dense(4) >> al.batch_norm())
    model = al.serial(
        stack=al.repeat(block, 2),
        loop=al.repeat(block, 2, stacked=False),
        many=al.ensemble(al.dense(3), 5),
        first=lambda x: x[0],
        wires=al.wire(lambda sub, x: sub.a(sub.a(x)), a=al.dense(3)),
        choice=al.cond(jnp.any, al.dense(2), al.dense(2)),
    )
    params, state = model.init(KEY, (None, 4))
    leaves, _ = jax.tree_util.tree_flatten_with_path((params, state))
    found = [jax.tree_util.keystr(p[1:], simple=True, separator="/") for p, _ in leaves]
    assert found[: -len(jax.tree.leaves(state))] == [
        "choice/dense/bias",
        "choice/dense/kernel",
        "choice/dense_1/bias",
        "choice/dense_1/kernel",
        "loop/0/batch_norm/bias",
        "loop/0/batch_norm/scale",
        "loop/0/dense/bias",
        "loop/0/dense/kernel",
        "loop/1/batch_norm/bias",
        "loop/1/batch_norm/scale",
        "loop/1/dense/bias",
        "loop/1/dense/kernel",
        "many/*/bias",
        "many/*/kernel",
        "stack/*/batch_norm/bias",
        "stack/*/batch_norm/scale",
        "stack/*/dense/bias",
        "stack/*/dense/kernel",
        "wires/a/bias",
        "wires/a/kernel",
    ]
    assert sorted(state) == ["loop", "stack"]
    assert state["stack"]["*"]["batch_norm"]["mean"].shape == (2, 4)


def test_a_layer_without_params_leaves_no_empty_dict():
    model = al.serial(a=jnp.sin, b=al.serial(c=jnp.cos), d=al.dense(2), e=al.flatten())
    params, state = model.init(KEY, (None, 3))
    assert list(params) == ["d"]
    assert state == {}


# --- compiled once


def test_a_model_is_compiled_leaf_by_leaf_and_once(compiles):
    def model(n):
        return al.serial(*[al.dense(16) for _ in range(n)])

    first = counting(lambda: model(2).init(KEY, (None, 16)), compiles)
    assert 1 <= first <= 4
    assert counting(lambda: model(40).init(KEY, (None, 16)), compiles) == 0


def test_no_batch_size_is_compiled_anew(compiles):
    model = al.conv(5, 3) >> al.flatten() >> al.dense(7) >> al.batch_norm()
    model.init(KEY, (3, 6, 6, 2))
    again = [(4, 6, 6, 2), (None, 6, 6, 2), al.spec("b 6 6 2"), np.ones((9, 6, 6, 2))]
    for x in again:
        assert counting(lambda x=x: model.init(KEY, x), compiles) == 0
    assert counting(lambda: model.init(KEY, (3, 6, 7, 2)), compiles) == 1


def test_only_sizes_that_init_reads_matter(compiles):
    model = al.dense(6)
    model.init(KEY, al.spec("b 5"))
    assert counting(lambda: model.init(KEY, (7, 5)), compiles) == 0
    assert counting(lambda: model.init(KEY, (8, 4)), compiles) == 1

    @al.layer
    def reads(how):
        def init(key, x):
            how(x)
            return {"kernel": jax.random.normal(key, (3,))}

        return init, lambda params, x: x

    for how, times in [
        (lambda x: x.ndim, 0),
        (lambda x: x.dtype, 0),
        (lambda x: x.shape[1], 0),
        (lambda x: x.shape[-1], 0),
        (lambda x: x.shape[0], 1),
        (lambda x: x.shape[:1], 1),
        (lambda x: x.size, 1),
        (lambda x: tuple(x.shape), 1),
        (lambda x: x.shape == (2, 3), 1),
        (lambda x: [*x.shape], 1),
        (lambda x: len(x.shape), 0),
    ]:
        layer = reads(how)
        layer.init(KEY, (2, 3))
        found = counting(lambda layer=layer: layer.init(KEY, (4, 3)), compiles)
        assert found == times, how


def test_the_name_and_place_of_a_layer_do_not_matter(compiles):
    al.serial(a=al.dense(9)).init(KEY, (None, 4))
    other = al.serial(b=al.serial(c=al.dense(9, name="x")))
    assert counting(lambda: other.init(KEY, (None, 4)), compiles) == 0


def test_equal_configs_of_other_types_are_compiled_apart(compiles):
    @al.layer
    def filled(value):
        def init(key, x):
            return {"value": jnp.full((2,), value)}

        return init, lambda params, x: x

    kinds = [filled(v).init(KEY, ())[0]["value"].dtype for v in (1, 1.0, True)]
    assert kinds == [jnp.int32, jnp.float32, jnp.bool_]


def test_x64_is_compiled_apart():
    @al.layer
    def wide():
        def init(key, x):
            return {"value": jnp.zeros(2, jax.dtypes.canonicalize_dtype(jnp.float64))}

        return init, lambda params, x: x

    assert wide().init(KEY, ())[0]["value"].dtype == jnp.float32
    with jax.enable_x64(True):
        assert wide().init(KEY, ())[0]["value"].dtype == jnp.float64
    assert wide().init(KEY, ())[0]["value"].dtype == jnp.float32


# --- under JAX transforms


def model_of_all_kinds():
    block = al.residual(al.dense(4) >> al.batch_norm() >> al.dropout(0.5))
    return al.serial(
        embed=al.embedding(7, 4),
        stack=al.repeat(block, 3),
        loop=al.repeat(block, 2, stacked=False),
        lstm=al.lstm(4),
        many=al.ensemble(al.dense(3), 2),
    )


def test_eval_shape_gives_what_init_gives():
    model, spec = model_of_all_kinds(), al.spec("b t", int)
    shapes = jax.eval_shape(lambda key: model.init(key, spec), KEY)
    assert forms(shapes) == forms(model.init(KEY, spec))
    x = jnp.zeros((2, 5), jnp.int32)
    assert forms(jax.eval_shape(model.init, KEY, x)) == forms(shapes)


def test_a_shape_that_a_transform_took_apart_is_told():
    with pytest.raises(
        TypeError, match=r"input: expected al\.spec\(\.\.\.\), got \(None"
    ):
        jax.eval_shape(al.dense(3).init, KEY, (None, 5))


def test_init_under_jit_gives_the_same_numbers():
    model, spec = model_of_all_kinds(), al.spec("b t", int)
    eager, jitted = model.init(KEY, spec), jax.jit(lambda k: model.init(k, spec))(KEY)
    assert forms(eager) == forms(jitted)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # noqa: E731
    jax.tree.map(close, eager, jitted)


def test_init_under_vmap_makes_an_axis_of_models():
    model = al.dense(4) >> al.residual(al.dense(4))
    keys = jax.random.split(KEY, 3)
    many, _ = jax.vmap(lambda key: model.init(key, al.spec("b 5")))(keys)
    for i in range(3):
        one, _ = model.init(keys[i], al.spec("b 5"))
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5), many, one
        )


def test_a_billion_params_are_sized_at_once():
    block = al.residual(al.dense(16_384) >> jax.nn.relu >> al.dense(4_096))
    model = al.repeat(block, 8, stacked=False)
    took = []
    for _ in range(3):
        start = time.thread_time()
        with jax.check_tracer_leaks(False):  # which collects garbage after each trace
            params, _ = jax.eval_shape(lambda k: model.init(k, al.spec("b 4096")), KEY)
        took.append(time.thread_time() - start)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) > 1e9
    assert min(took) < 1


# --- numbers


def test_the_same_key_gives_the_same_weights_and_another_others():
    model = al.dense(4) >> al.dense(4)
    a, b = model.init(KEY, (None, 4))[0], model.init(KEY, (7, 4))[0]
    same(a, b)
    c = model.init(jax.random.key(4), (None, 4))[0]
    for name in ("dense", "dense_1"):
        assert not np.array_equal(a[name]["kernel"], c[name]["kernel"])
    assert not np.array_equal(a["dense"]["kernel"], a["dense_1"]["kernel"])


def test_stacked_unrolled_and_ensemble_start_from_the_same_bits():
    body = al.residual(al.dense(4) >> al.layer_norm())
    stacked, _ = al.serial(r=al.repeat(body, 3)).init(KEY, (None, 4))
    loop, _ = al.serial(r=al.repeat(body, 3, stacked=False)).init(KEY, (None, 4))
    many, _ = al.serial(r=al.ensemble(body, 3)).init(KEY, (None, 4))
    for i in range(3):
        same(jax.tree.map(lambda a, i=i: a[i], stacked["r"]["*"]), loop["r"][str(i)])
    same(stacked, many)


def test_params_are_float32_whatever_the_input_is():
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
        params, _ = al.dense(3).init(KEY, al.spec("b 4", dtype))
        assert params["kernel"].dtype == jnp.float32
        assert not params["kernel"].weak_type


# --- mistakes


def test_params_of_an_unknown_size_are_an_error_that_names_the_layer():
    @al.layer
    def bias():
        def init(key, x):
            return {"bias": jnp.zeros(x.shape[-1:])}

        def apply(params, x):
            return x + jnp.broadcast_to(params["bias"], x.shape)

        return init, apply

    model = al.serial(body=al.dense(4) >> al.flatten(), head=bias())
    for call in (model.output_spec, lambda x: model.init(KEY, x)):
        with pytest.raises(
            al.ShapeError, match="cannot depend on an unknown"
        ) as caught:
            call(al.spec("b t 5"))
        assert "in head: bias() on float32[b, 4*t]" in caught.value.__notes__[0]
    params, _ = model.init(KEY, al.spec("b 6 5"))
    assert params["head"]["bias"].shape == (24,)


def test_an_unknown_size_that_no_param_depends_on_is_fine():
    params, _ = (al.dense(3) >> al.layer_norm()).init(KEY, al.spec("b t h w 2"))
    assert params["dense"]["kernel"].shape == (2, 3)


def test_a_glob_of_shardings_that_means_nothing_is_an_error():
    shardings = {"dense/kernl": jax.sharding.PartitionSpec()}
    with pytest.raises(al.PathError, match=r"Nearest: 'dense/kernel'"):
        (al.dense(3) >> jnp.sin).init(KEY, (None, 2), shardings=shardings)


def test_what_was_traced_in_64_bits_does_not_serve_in_32():
    @al.layer
    def numbered():
        def init(key, x):
            return {"numbers": jnp.arange(3.0)}

        def apply(params, x):
            return x

        return init, apply

    x = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    with jax.enable_x64(True):
        wide, _ = numbered().init(KEY, x)
    narrow, _ = numbered().init(KEY, x)
    assert [wide["numbers"].dtype, narrow["numbers"].dtype] == ["float64", "float32"]
    assert al.summary(numbered(), x).total("bytes") == 12


@pytest.mark.usefixtures("leaks_unchecked")  # under it no layer is kept
def test_not_every_layer_that_there_was_is_kept(monkeypatch):
    al.dense(3).init(KEY, (None, 2))
    kept = initialize._recent
    monkeypatch.setattr(initialize, "_MOST_RECENT", len(kept))
    before = list(kept)
    new = al.dense(3, bias_init=lambda key, shape, dtype: jnp.ones(shape, dtype))
    new.init(KEY, (None, 2))
    assert list(kept) == [*before[1:], new]


def test_not_every_signature_that_there_was_is_kept(monkeypatch):
    kept = signature._known
    signature.read(lambda x: x, 0)
    monkeypatch.setattr(signature, "_MOST_KNOWN", len(kept))
    assert signature.read(lambda y: y, 0).inputs == ("y",)
    assert len(kept) == 1


@pytest.mark.parametrize(
    ("wrong", "got"),
    [("model", "str"), ({"dense": "model"}, "str for 'dense'")],
)
def test_what_is_no_sharding_is_told(wrong, got):
    wanted = "a dict, {selector: PartitionSpec or Sharding}"
    with pytest.raises(TypeError) as error:
        (al.dense(3) >> jnp.sin).init(KEY, (None, 2), shardings=wrong)
    assert str(error.value) == f"shardings: expected {wanted}, got {got}."


# --- on several devices


def in_a_process_of(devices, code):
    """Runs code where JAX sees so many CPUs."""
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        check=False,
        text=True,
        env={
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": ":".join(filter(None, sys.path)),
        },
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_shardings_are_applied_leaf_by_leaf():
    out = in_a_process_of(
        4,
        """
        import jax, numpy as np, axonlike as al
        from jax.sharding import NamedSharding, PartitionSpec as P
        mesh = jax.make_mesh((4,), ("model",))
        model = al.serial(
            a=al.dense(8) >> al.batch_norm(), b=al.repeat(al.residual(al.dense(8)), 2)
        )
        rows, every = NamedSharding(mesh, P("model")), NamedSharding(mesh, P())
        columns = NamedSharding(mesh, P(None, None, "model"))
        globs = {"a/dense/*": rows, "b/**/kernel": columns, "a/batch_norm/mean": rows,
                 "**": every}
        key = jax.random.key(0)
        params, state = model.init(key, (None, 12), shardings=globs)
        assert params["a"]["dense"]["kernel"].sharding == rows
        assert params["a"]["dense"]["kernel"].addressable_shards[0].data.shape == (3, 8)
        assert params["a"]["dense"]["bias"].sharding == rows
        assert params["b"]["*"]["kernel"].sharding == columns
        assert params["b"]["*"]["kernel"].addressable_shards[0].data.shape == (2, 8, 2)
        assert params["b"]["*"]["bias"].sharding == every
        assert state["a"]["batch_norm"]["mean"].sharding == rows
        assert state["a"]["batch_norm"]["var"].sharding == every
        plain = model.init(key, (None, 12))
        jax.tree.map(np.testing.assert_array_equal, (params, state), plain)
        with jax.set_mesh(mesh):
            specs = {"a/dense/kernel": P("model"), "b/**": P()}
            params, state = model.init(key, (None, 12), shardings=specs)
        assert params["a"]["dense"]["kernel"].sharding.spec == P("model")
        assert len(params["b"]["*"]["bias"].sharding.device_set) == 4
        print("done")
        """,
    )
    assert out.strip() == "done"
