"""Params by path: listing, choosing, parting, labelling, stacking, tying."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import axonlike as al

KEY = jax.random.key(0)
TREE = {
    "body": {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}},
    "head": {"kernel": jnp.ones((3, 4)), "bias": jnp.zeros(4)},
}
STACKED = {"blocks": {"*": {"dense": {"kernel": jnp.arange(24.0).reshape(4, 3, 2)}}}}


def gpt(vocab=11, width=8, blocks=3, **how):
    block = al.residual(al.layer_norm() >> al.attention(2, causal=True))
    return al.serial(
        emb=al.embedding(vocab, width),
        blocks=al.repeat(block, blocks, **how),
        norm=al.layer_norm(),
        head=al.dense(vocab, use_bias=False),
    )


# --- listing


def test_paths_of_nested_dicts():
    names = [path for path, _ in al.paths(TREE)]
    assert names == ["body/dense/kernel", "body/dense/bias", "head/kernel", "head/bias"]


def test_paths_below_something_that_is_no_dict():
    tree = {"a": (jnp.ones(1), {"b": jnp.ones(2)}), "c": [jnp.ones(3)]}
    assert [path for path, _ in al.paths(tree)] == ["a/0", "a/1/b", "c/0"]


def test_paths_in_model_order_whatever_order_the_dicts_have():
    model = al.serial(z=al.dense(2), a=al.layer_norm())
    params, _ = jax.jit(model.init, static_argnums=1)(KEY, (None, 3))
    assert next(path for path, _ in al.paths(params)) == "a/bias"
    names = [path for path, _ in al.paths(params, model)]
    assert names == ["z/kernel", "z/bias", "a/scale", "a/bias"]


def test_200_arrays_are_listed_in_a_fifth_of_a_millisecond():
    tree = {
        f"layer_{i}": {"kernel": np.ones(1), "bias": np.ones(1)} for i in range(100)
    }
    assert len(al.paths(tree)) == 200
    times = []
    for _ in range(50):
        start = time.thread_time()
        al.paths(tree)
        times.append(time.thread_time() - start)
    assert min(times) < 0.2e-3


def test_a_tree_is_a_dict():
    with pytest.raises(TypeError, match="expected a dict of arrays, got list"):
        al.paths([jnp.ones(2)])


# --- selectors


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("head", ["head/kernel", "head/bias"]),
        ("head/bias", ["head/bias"]),
        ("*/kernel", ["head/kernel"]),
        ("**/kernel", ["body/dense/kernel", "head/kernel"]),
        ("**", ["body/dense/kernel", "body/dense/bias", "head/kernel", "head/bias"]),
        ("{body/dense,head}/bias", ["body/dense/bias", "head/bias"]),
        (["head/bias", "body"], ["body/dense/kernel", "body/dense/bias", "head/bias"]),
        (lambda path, leaf: leaf.ndim == 2, ["body/dense/kernel", "head/kernel"]),
        (al.where("**/kernel") - "head", ["body/dense/kernel"]),
        (al.where("**/kernel") & "head", ["head/kernel"]),
        ("head/bias" | al.where("body/dense/bias"), ["body/dense/bias", "head/bias"]),
        ("**/bias" - al.where("head"), ["body/dense/bias"]),
    ],
)
def test_select(where, names):
    assert list(al.select(TREE, where)) == names


@pytest.mark.parametrize(
    "where",
    ["had", "*/nothing", ["head", "bdy"], al.where("head") - "bias", lambda *_: False],
)
def test_a_selector_that_means_nothing_is_an_error(where):
    verbs = [
        lambda w: al.select(TREE, w),
        lambda w: al.partition(TREE, w),
        lambda w: al.count(TREE, w),
        lambda w: al.nbytes(TREE, w),
        lambda w: al.labels(TREE, {w: "a"} if not isinstance(w, list) else {w[1]: "a"}),
    ]
    for verb in verbs:
        with pytest.raises(al.PathError):
            verb(where)


def test_the_error_names_the_nearest_path():
    with pytest.raises(al.PathError, match=r"'hed/bias'. Nearest: 'head/bias'"):
        al.select(TREE, "hed/bias")


def test_what_is_no_selector():
    with pytest.raises(TypeError, match="expected a path, a glob, a predicate"):
        al.select(TREE, 3)
    with pytest.raises(TypeError, match="expected a path, a glob, a predicate"):
        al.select(TREE, [])


def test_kinds_need_a_model():
    model = al.serial(body=al.dense(3) >> jax.nn.relu, head=al.dense(4))
    params, _ = model.init(KEY, (None, 2))
    assert set(al.select(params, al.kind("dense"), model)) == {
        "body/dense/kernel", "body/dense/bias", "head/kernel", "head/bias"
    }  # fmt: skip
    chosen = al.kind("dense") - "head"
    assert al.count(params, chosen, model) == 9
    with pytest.raises(TypeError, match="only a model knows kinds"):
        al.select(params, al.kind("dense"))
    with pytest.raises(al.PathError, match=r"'dens'. Nearest: 'dense'"):
        al.select(params, al.kind("dens"), model)


def test_a_kind_of_the_root_means_everything():
    model = al.dense(3)
    params, _ = model.init(KEY, (None, 2))
    assert al.count(params, al.kind("dense"), model) == 9


def test_layers_are_selected_by_the_same_selectors():
    model = gpt()
    names = [path for path, _ in al.layers(model, al.kind("layer_norm") - "blocks/**")]
    assert names == ["norm"]
    assert al.layers(model, "blocks/*/attention/{query,key}")[0][0].endswith("query")


def test_one_copy_of_a_stack_is_a_slice():
    chosen = al.select(STACKED, "blocks/2/dense")
    assert list(chosen) == ["blocks/2/dense/kernel"]
    np.testing.assert_array_equal(
        chosen["blocks/2/dense/kernel"], STACKED["blocks"]["*"]["dense"]["kernel"][2]
    )
    assert list(al.select(STACKED, "blocks/{0,3}")) == [
        "blocks/0/dense/kernel", "blocks/3/dense/kernel"
    ]  # fmt: skip
    whole = al.select(STACKED, "blocks/{0,1,2,3}")
    assert list(whole) == ["blocks/*/dense/kernel"]
    assert al.count(STACKED, "blocks/1") == 6
    with pytest.raises(al.PathError):
        al.select(STACKED, "blocks/4")


@pytest.mark.parametrize(
    "verb",
    [
        lambda tree: al.partition(tree, "blocks/1"),
        lambda tree: al.labels(tree, {"blocks/1": "a"}),
    ],
)
def test_a_slice_is_no_array_to_part_or_label(verb):
    with pytest.raises(ValueError, match=r"Write unstack\(params, 'blocks'\) first"):
        verb(STACKED)


# --- counting


def test_count_and_nbytes():
    assert al.count(TREE) == 9 + 16
    assert al.nbytes({"a": jnp.ones((3, 2), jnp.bfloat16), "b": jnp.ones(2)}) == 20
    specs = jax.eval_shape(lambda: TREE)
    assert al.count(specs, "head") == 16
    assert al.nbytes(specs, "head") == 64


# --- parting


def test_partition_and_merge_are_inverse():
    chosen, rest = al.partition(TREE, "**/bias")
    assert [p for p, _ in al.paths(chosen)] == ["body/dense/bias", "head/bias"]
    assert [p for p, _ in al.paths(rest)] == ["body/dense/kernel", "head/kernel"]
    assert dict(al.paths(al.merge(chosen, rest))) == dict(al.paths(TREE))
    head, body = al.partition(TREE, "head")
    assert list(head) == ["head"]
    assert list(body) == ["body"]


def test_merge_refuses_two_arrays_at_one_place():
    with pytest.raises(ValueError, match=r"merge: 'head/bias' is an array"):
        al.merge(TREE, {"head": {"bias": jnp.ones(4)}})


def test_a_tuple_is_not_parted():
    tree = {"a": (jnp.ones(1), jnp.ones(2)), "b": jnp.ones(3)}
    with pytest.raises(ValueError, match="'a' is one tuple or list, chosen in part"):
        al.partition(tree, "a/0")
    assert list(al.partition(tree, "a")[0]) == ["a"]


def test_the_frozen_half_costs_no_gradient():
    model = al.serial(body=al.dense(64) >> jax.nn.relu, head=al.dense(2))
    params, state = model.init(KEY, (None, 32))
    head, body = al.partition(params, "head")
    x = jnp.ones((4, 32))

    def loss(head):
        return model.predict(al.merge(head, body), state, x).sum()

    def whole(params):
        return model.predict(params, state, x).sum()

    def products(function, at):
        return str(jax.make_jaxpr(jax.grad(function))(at)).count("dot_general")

    assert products(loss, head) < products(whole, params)
    assert jax.tree.structure(jax.grad(loss)(head)) == jax.tree.structure(head)
    assert al.nbytes(optax.adam(1e-3).init(head)[0].mu) == al.nbytes(head)


def test_partition_adds_nothing_to_a_step():
    model = al.serial(body=al.dense(3), head=al.dense(2))
    params, state = model.init(KEY, (None, 4))
    x = jnp.ones((5, 4))

    def parted(params):
        return model.predict(al.merge(*al.partition(params, "head")), state, x)

    def plain(params):
        return model.predict(params, state, x)

    ours, raw = (str(jax.make_jaxpr(f)(params)) for f in (parted, plain))
    assert ours == raw


# --- labels


def test_labels_take_the_first_rule():
    found = al.labels(TREE, {"**/bias": "none", "head": "fast"}, default="slow")
    assert found == {
        "body": {"dense": {"kernel": "slow", "bias": "none"}},
        "head": {"kernel": "fast", "bias": "none"},
    }


def test_labels_without_a_rule_are_an_error():
    with pytest.raises(
        ValueError, match="no rule means 'body/dense/kernel' and 1 more"
    ):
        al.labels(TREE, {"head": "fast"})


def test_frozen_arrays_do_not_move_in_100_steps_of_adamw():
    model = al.serial(body=al.dense(8) >> jax.nn.relu, head=al.dense(2))
    params, state = model.init(KEY, (None, 4))
    rules = al.labels(params, {"body": "frozen", "head": "trained"})
    rates = {
        "frozen": optax.set_to_zero(),
        "trained": optax.adamw(1e-2, weight_decay=0.1),
    }
    optimizer = optax.multi_transform(rates, rules)
    x = jax.random.normal(KEY, (16, 4))

    @jax.jit
    def step(params, opt_state):
        grads = jax.grad(lambda p: (model.predict(p, state, x) ** 2).mean())(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    with jax.numpy_dtype_promotion("standard"):
        after, opt_state = params, optimizer.init(params)
        for _ in range(100):
            after, opt_state = step(after, opt_state)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, after["body"], params["body"]))
    assert not jnp.array_equal(after["head"]["kernel"], params["head"]["kernel"])


@pytest.mark.parametrize("where", ["p/kernel", "q/kernel"])
def test_a_tied_array_is_chosen_by_any_of_its_paths(where):
    two = [al.dense(n, use_bias=False, name=name) for n, name in ((5, "p"), (4, "q"))]
    model = al.tie(al.serial(*two), {"q/kernel": "p/kernel"}, transpose=True)
    params, _ = model.init(KEY, (None, 4))
    chosen, rest = al.partition(params, where, model)
    assert [path for path, _ in al.paths(chosen)] == ["p/kernel"]
    assert rest == {}


# --- stacks


def test_stack_and_unstack_are_what_the_two_kinds_of_repeat_take():
    tokens = jnp.arange(6).reshape(2, 3)
    stacked, unrolled = gpt(), gpt(stacked=False)
    params, state = stacked.init(KEY, tokens)
    apart = al.unstack(params, "blocks")
    assert sorted(apart["blocks"]) == ["0", "1", "2"]
    y = stacked.predict(params, state, tokens)
    np.testing.assert_allclose(
        unrolled.predict(apart, state, tokens), y, rtol=1e-5, atol=1e-6
    )
    again = al.stack(apart, "blocks")
    assert jax.tree.all(jax.tree.map(jnp.array_equal, again, params))


def test_copies_are_stacked_by_number():
    copies = {str(i): {"a": jnp.full(1, i)} for i in reversed(range(11))}
    np.testing.assert_array_equal(al.stack(copies, "")["*"]["a"][:, 0], range(11))


def test_stack_says_what_is_wrong():
    with pytest.raises(al.PathError, match="'bloks'"):
        al.stack(TREE, "bloks")
    with pytest.raises(ValueError, match=r"expected copies '0', '1', ... at 'head'"):
        al.stack(TREE, "head")
    with pytest.raises(ValueError, match=r"expected one stack '\*' at 'head'"):
        al.unstack(TREE, "head")
    uneven = {"0": {"a": jnp.ones(1)}, "1": {"a": jnp.ones(2)}}
    with pytest.raises(al.ShapeError, match="copy 1 of '' like copy 0"):
        al.stack(uneven, "")


# --- tying


def tied(**how):
    return al.tie(gpt(**how), {"head/kernel": "emb/embedding"}, transpose=True)


def test_a_tied_param_is_one_array_counted_once_and_listed_twice():
    model, tokens = tied(), jnp.arange(6).reshape(2, 3)
    params, state = model.init(KEY, tokens)
    plain, _ = gpt().init(KEY, tokens)
    assert "head" not in params
    assert al.count(params) == al.count(plain) - 11 * 8
    assert jnp.array_equal(params["emb"]["embedding"], plain["emb"]["embedding"])
    listed = dict(al.paths(params, model))
    assert listed["head/kernel"] is listed["emb/embedding"]
    plain["head"] = {"kernel": params["emb"]["embedding"].T}
    y = model.predict(params, state, tokens)
    assert jnp.array_equal(y, gpt().predict(plain, state, tokens))
    head = al.partition(params, "head", model)[0]
    assert [p for p, _ in al.paths(head)] == ["emb/embedding"]


def test_its_gradient_is_the_sum_over_its_uses():
    model, tokens = tied(), jnp.arange(6).reshape(2, 3)
    params, state = model.init(KEY, tokens)
    apart = {**params, "head": {"kernel": params["emb"]["embedding"].T}}

    def loss(model, params):
        return (model.predict(params, state, tokens) ** 2).sum()

    one = jax.grad(lambda p: loss(model, p))(params)["emb"]["embedding"]
    two = jax.grad(lambda p: loss(gpt(), p))(apart)
    total = two["emb"]["embedding"] + two["head"]["kernel"].T
    np.testing.assert_allclose(one, total, rtol=1e-4, atol=1e-4)


def test_it_stays_tied_through_100_steps():
    model, tokens = tied(), jnp.arange(6).reshape(2, 3)
    params, state = model.init(KEY, tokens)
    optimizer = optax.sgd(1e-2)
    state_of_sgd = optimizer.init(params)

    @jax.jit
    def step(params):
        grads = jax.grad(lambda p: (model.predict(p, state, tokens) ** 2).mean())(
            params
        )
        return optax.apply_updates(params, optimizer.update(grads, state_of_sgd)[0])

    after = params
    for _ in range(100):
        after = step(after)
    assert jax.tree.structure(after) == jax.tree.structure(params)
    assert not jnp.array_equal(after["emb"]["embedding"], params["emb"]["embedding"])


def test_a_tie_inside_of_a_repeat_is_one_for_each_copy():
    block = al.tie(
        al.serial(up=al.dense(6, use_bias=False), down=al.dense(4, use_bias=False)),
        {"down/kernel": "up/kernel"},
        transpose=["down/kernel"],
    )
    for how in ({}, {"stacked": False}):
        model = al.repeat(block, 3, **how)
        params, state = model.init(KEY, (None, 4))
        assert al.count(params) == 3 * 24
        assert model.predict(params, state, jnp.ones((2, 4))).shape == (2, 4)
    stacked, _ = al.repeat(block, 3).init(KEY, (None, 4))
    assert [p for p, _ in al.paths(stacked, al.repeat(block, 3))] == [
        "*/up/kernel", "*/down/kernel"
    ]  # fmt: skip
    around = al.tie(
        al.repeat(block.children["f"], 3),
        {"*/down/kernel": "*/up/kernel"},
        transpose=True,
    )
    params, state = around.init(KEY, (None, 4))
    x = jnp.ones((2, 4))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, params, stacked))
    y = al.repeat(block, 3).predict(params, state, x)
    assert jnp.array_equal(around.predict(params, state, x), y)


@al.layer
def tied_language_model(vocab):
    model = al.serial(emb=al.embedding(vocab, 4), head=al.dense(vocab, use_bias=False))
    return al.tie(model, {"head/kernel": "emb/embedding"}, transpose=True)


@pytest.mark.parametrize("stacked", [True, False])
def test_a_composite_that_is_a_tie_is_tied(stacked):
    one = tied_language_model(5)
    params, state = one.init(KEY, al.spec("b t", int))
    assert list(params) == ["emb"]
    assert [path for path, _ in al.paths(params, one)] == [
        "emb/embedding",
        "head/kernel",
    ]
    ids = np.array([[1, 2]])
    y = one.predict(params, state, ids)
    np.testing.assert_allclose(
        y, params["emb"]["embedding"][ids] @ params["emb"]["embedding"].T, rtol=1e-6
    )
    inner = al.repeat(al.serial(lm=one, back=argmax), 2, stacked=stacked)
    params, _ = inner.init(KEY, al.spec("b t", int))
    step = "*" if stacked else "0"
    assert list(params[step]["lm"]) == ["emb"]


def argmax(x):
    return jnp.argmax(x, -1).astype(jnp.int32)


def test_tie_is_a_value():
    model = tied()
    assert model == tied()
    assert hash(model) == hash(tied())
    assert eval(repr(model), {"al": al, "jax": jax}) == model
    assert model.output_spec(al.spec("b t", int)).shape[-1] == 11


TOKENS = al.spec("b t", int)


@pytest.mark.parametrize(
    ("error", "text", "pairs", "transpose"),
    [
        (TypeError, "expected {target path: source path}", ["a"], False),
        (ValueError, "is a target and a source", {"a": "b", "b": "c"}, False),
        (al.PathError, "nothing is called 'x'", {"a": "b"}, "x"),
        (
            al.PathError,
            "Nearest: 'emb/embedding'",
            {"head/kernel": "emb/embeding"},
            True,
        ),
        (al.ShapeError, "or transpose=True", {"head/kernel": "emb/embedding"}, False),
    ],
)
def test_ties_that_cannot_be(error, text, pairs, transpose):
    with pytest.raises(error, match=text):
        al.tie(gpt(), pairs, transpose=transpose).init(KEY, TOKENS)


def test_params_from_before_the_tie_are_refused():
    tokens = jnp.arange(6).reshape(2, 3)
    params, state = gpt().init(KEY, tokens)
    with pytest.raises(ValueError, match="is tied and has no array of its own"):
        tied().predict(params, state, tokens)


# --- one selector for all


def test_one_selector_in_ten_verbs():
    model, tokens = gpt(), jnp.arange(6).reshape(2, 3)
    params, state = model.init(KEY, tokens)
    where = al.where("blocks/*/attention") | "head"
    arrays = al.select(params, where)
    assert al.count(params, where) == sum(a.size for a in arrays.values())
    assert al.nbytes(params, where) == 4 * al.count(params, where)
    assert dict(al.paths(al.partition(params, where)[0])).keys() == arrays.keys()
    marked = al.labels(params, {where: "a"}, default="b")
    labelled = al.paths(jax.tree.map(np.array, marked))
    assert {path for path, label in labelled if label == "a"} == set(arrays)
    frozen = al.freeze(model, where)
    mask = al.trainable(frozen, params)
    assert {p for p, x in al.paths(jax.tree.map(np.array, mask)) if not x} == set(
        arrays
    )
    assert {p for p, _ in al.layers(model, where)} == {"blocks/*/attention", "head"}
    lower = al.precision(model, compute=jnp.bfloat16, where=where)
    assert len([x for _, x in al.layers(lower) if x.kind == "mixed"]) == 2
    new, more, _ = al.replace(model, params, state, where, al.dense(8), key=KEY)
    assert more["head"]["kernel"].shape == (8, 8)
    assert al.remove(new, more, state, "head")[0].output_spec(tokens).shape == (2, 3, 8)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    placed, _ = model.init(KEY, tokens, shardings={where: here})
    assert placed["head"]["kernel"].sharding == here


def test_a_tied_array_survives_a_file_and_a_change_of_dtype(tmp_path):
    from safetensors.numpy import load_file, save_file

    model, tokens = tied(), jnp.arange(6).reshape(2, 3)
    params, state = model.init(KEY, tokens)
    flat = {path: np.asarray(array) for path, array in al.paths(params)}
    save_file(flat, tmp_path / "params.safetensors")
    stored = load_file(tmp_path / "params.safetensors")
    again = al.merge(*(_nested(path, array) for path, array in stored.items()))
    y = model.predict(params, state, tokens)
    assert jnp.array_equal(model.predict(again, state, tokens), y)
    lower = al.precision(model, params=jnp.bfloat16)
    half, _ = lower.init(KEY, tokens)
    assert [p for p, _ in al.paths(half)] == [p for p, _ in al.paths(params)]
    assert half["emb"]["embedding"].dtype == jnp.bfloat16
    assert lower.predict(half, state, tokens).shape == y.shape


def _nested(path, array):
    for step in reversed(path.split("/")):
        array = {step: array}
    return array


def test_a_siamese_net_is_tied_by_composition():
    model = al.shared(al.dense(3))
    params, state = model.init(KEY, (al.spec("b 4"), al.spec("b 4")))
    assert al.count(params) == 15
    x = jnp.ones((2, 4)), 2 * jnp.ones((2, 4))

    def loss(params):
        return sum(y.sum() for y in model.predict(params, state, x))

    np.testing.assert_allclose(jax.grad(loss)(params)["kernel"], 6 * np.ones((4, 3)))


def test_a_layer_of_another_dtype_is_found_by_its_path():
    def widen(x):
        return x + jnp.ones(x.shape, jnp.float16)

    model = al.serial(body=al.dense(3), leak=al.lift(widen))
    with pytest.raises(
        Exception, match="no available implicit dtype promotion"
    ) as caught:
        model.init(KEY, (None, 4))
    assert any("in leak" in note for note in caught.value.__notes__)


def test_every_layer_with_its_params_and_state():
    model = al.serial(a=al.dense(3) >> al.batch_norm(), b=al.dense(2))
    params, state = model.init(KEY, (None, 4))
    rows = {
        path: al.submodel(model, params, state, path)[1:]
        for path, _ in al.layers(model)
    }
    assert set(rows) == {"a", "a/dense", "a/batch_norm", "b"}
    assert list(rows["a/batch_norm"][1]) == list(state["a"]["batch_norm"])
    assert rows["b"][0]["kernel"] is params["b"]["kernel"]


# --- what review found


def test_a_tie_in_a_pipe_ties_what_it_says():
    body = al.tie(al.dense(4) >> al.dense(4), {"dense_1/kernel": "dense/kernel"})
    model = al.dense(4) >> body
    params, state = model.init(KEY, (None, 4))
    assert "kernel" in params["dense"]
    assert "kernel" in params["dense_1"]
    assert "kernel" not in params["dense_2"]
    assert model.predict(params, state, jnp.ones((1, 4))).shape == (1, 4)
    listed = dict(al.paths(params, model))
    assert listed["dense_2/kernel"] is listed["dense_1/kernel"]


@pytest.mark.parametrize(
    ("inner", "outer"),
    [({"b": "a"}, {"c": "b"}), ({"b": "a"}, {"a": "c"}), ({"b": "a"}, {"b": "c"})],
)
def test_ties_make_no_chains(inner, outer):
    def kernels(pairs):
        return {f"{t}/kernel": f"{s}/kernel" for t, s in pairs.items()}

    layers = {name: al.dense(4) for name in "abc"}
    model = al.tie(al.tie(al.serial(**layers), kernels(inner)), kernels(outer))
    with pytest.raises(ValueError, match="is part of another tie"):
        model.init(KEY, (None, 4))


def test_a_tied_model_lists_other_trees_and_counts_once():
    model, tokens = tied(), jnp.arange(6).reshape(2, 3)
    params, state = model.init(KEY, tokens)
    assert al.paths(state, model) == []
    assert [p for p, _ in al.paths({"blocks": params["blocks"]}, model)]
    assert al.count(params, "**", model) == al.count(params)


def test_a_kind_without_arrays_means_none():
    model = al.serial(a=al.dense(3), r=al.lift(jax.nn.relu))
    params, _ = model.init(KEY, (None, 2))
    with pytest.raises(al.PathError):
        al.select(params, al.kind("relu"), model)
    root = al.frozen(al.dense(2))
    params, _ = root.init(KEY, (None, 2))
    assert al.count(params, al.kind("dense"), root) == 6


def test_masks_and_odd_selectors():
    mask = {"blocks": {"*": {"dense": {"kernel": True}}}}
    with pytest.raises(al.PathError):
        al.select(mask, "blocks/1")
    with pytest.raises(TypeError, match="expected selectors, got none"):
        al.where()
    for wrong in (al.dense(2), al.dense, b"head"):
        with pytest.raises(TypeError, match="select: expected a path"):
            al.select(TREE, wrong)
    root = (al.dense(3) ** 2).init(KEY, (None, 3))[0]
    with pytest.raises(ValueError, match=r"unstack\(params, ''\)"):
        al.partition(root, "1")
    assert (
        eval(repr(al.kind("dense") - "head"), {"al": al})
        == al.where(al.kind("dense")) - al.where("head")
        or repr(al.kind("dense")) == "al.kind('dense')"
    )


def test_200_arrays_with_their_model_in_a_fifth_of_a_millisecond():
    model = al.serial(*[al.dense(1, name=f"layer_{i}") for i in range(100)])
    tree = {
        f"layer_{i}": {"kernel": np.ones(1), "bias": np.ones(1)} for i in range(100)
    }
    assert len(al.paths(tree, model)) == 200
    times = []
    for _ in range(50):
        start = time.thread_time()
        al.paths(tree, model)
        times.append(time.thread_time() - start)
    assert min(times) < 0.2e-3
