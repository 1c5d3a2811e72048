"""Surgery: freezing, replacing, inserting, removing, taking out, migrating, comparing."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import axonlike as al

KEY, OTHER = jax.random.key(0), jax.random.key(1)
TOKENS = al.spec("b t", int)
X = jnp.ones((2, 4))


def pipe():
    return al.dense(8) >> jax.nn.relu >> al.dense(8) >> jax.nn.relu >> al.dense(2)


def gpt(**how):
    block = al.residual(al.layer_norm() >> al.attention(2, causal=True)) >> al.residual(
        al.layer_norm() >> al.dense(16) >> jax.nn.gelu >> al.dense(8)
    )
    return al.serial(
        emb=al.embedding(11, 8), blocks=al.repeat(block, 3, **how), head=al.dense(11)
    )


def same(a, b):
    """The very same arrays at the same paths."""
    ours, theirs = dict(al.paths(a)), dict(al.paths(b))
    return ours.keys() == theirs.keys() and all(ours[p] is theirs[p] for p in ours)


def source(model):
    return eval(repr(model), {"al": al, "jax": jax}) == model


# --- other children


def test_children_that_a_factory_made_can_be_replaced():
    plain = al.attention(2)
    model = plain.with_children({"out": al.frozen(plain.children["out"])})
    assert model != plain
    assert source(model)
    assert source(al.dense(4) >> model)
    assert pickle.loads(pickle.dumps(model)) == model
    assert model == plain.with_children({"out": al.frozen(plain.children["out"])})
    params, state = model.init(KEY, (None, 3, 4))
    theirs, _ = plain.init(KEY, (None, 3, 4))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, params, theirs))
    x = jnp.ones((1, 3, 4))
    grads = jax.grad(lambda p: model.predict(p, state, x).sum())(params)
    assert not jnp.any(grads["out"]["kernel"])
    assert jnp.any(grads["value"]["kernel"])


def test_children_that_are_arguments_stay_arguments():
    model = al.residual(al.dense(4)).with_children({"f": al.dense(4, use_bias=False)})
    assert model == al.residual(al.dense(4, use_bias=False))
    with pytest.raises(al.PathError, match="Nearest: 'query'"):
        al.attention(2).with_children({"qery": al.identity})


# --- finding and freezing


def test_find():
    assert al.find(gpt(), "blocks/*/attention/query").kind == "projection"
    assert al.find(pipe(), al.where(al.kind("dense")) - "dense" - "dense_1").config[
        "features"
    ] == 2  # fmt: skip
    with pytest.raises(ValueError, match="means 3 layers, 'dense' and 'dense_1' among"):
        al.find(pipe(), "dense*")
    with pytest.raises(al.PathError, match=r"'hed'. Nearest: 'head'"):
        al.find(gpt(), "hed")


def test_freezing_changes_no_path_and_adds_up():
    model = pipe()
    one = al.freeze(model, "dense")
    two = al.freeze(one, "dense_1")
    assert two == al.freeze(model, ["dense", "dense_1"])
    assert al.freeze(two, "dense") == two
    assert source(two)
    params, state = model.init(KEY, X)
    again, _ = two.init(KEY, X)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, params, again))
    grads = jax.grad(lambda p: two.predict(p, state, X).sum())(params)
    assert not jnp.any(grads["dense"]["kernel"])
    assert not jnp.any(grads["dense_1"]["kernel"])
    assert jnp.any(grads["dense_2"]["kernel"])
    assert al.trainable(two, params) == {
        "dense": {"kernel": False, "bias": False},
        "dense_1": {"kernel": False, "bias": False},
        "dense_2": {"kernel": True, "bias": True},
    }


def test_freezing_inside_of_copies_and_composites():
    model = al.freeze(gpt(), "blocks/*/attention/{query,key}")
    params, _ = model.init(KEY, TOKENS)
    mask = al.trainable(model, params)
    still = [free for free in jax.tree.leaves(mask) if not free]
    assert len(still) == 4
    assert source(model)
    unrolled = al.freeze(gpt(stacked=False), "blocks/*/dense")
    params, _ = unrolled.init(KEY, TOKENS)
    masks = al.trainable(unrolled, params)["blocks"]
    assert [masks[i]["dense"]["kernel"] for i in "012"] == [False] * 3
    with pytest.raises(ValueError, match=r"means some copies of .*Choose all of them"):
        al.freeze(gpt(stacked=False), "blocks/1/dense")


@pytest.mark.parametrize("stacked", [True, False])
def test_frozen_weights_do_not_move_in_100_steps_of_adamw(stacked):
    model = al.freeze(gpt(stacked=stacked), ["emb", "blocks/*/attention"])
    tokens = jnp.arange(6).reshape(2, 3)
    params, state = model.init(KEY, tokens)
    mask = al.trainable(model, params)
    optimizer = optax.partition(
        {True: optax.adamw(1e-2, weight_decay=0.1), False: optax.set_to_zero()}, mask
    )

    @jax.jit
    def step(params, opt_state):
        grads = jax.grad(lambda p: (model.predict(p, state, tokens) ** 2).mean())(
            params
        )
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    with jax.numpy_dtype_promotion("standard"):
        after, opt_state = params, optimizer.init(params)
        for _ in range(100):
            after, opt_state = step(after, opt_state)
    moved = jax.tree.map(lambda a, b: not jnp.array_equal(a, b), after, params)
    still = jax.tree.map(lambda free, move: free or not move, mask, moved)
    assert jax.tree.all(still)
    assert moved["head"]["kernel"]


@al.layer
def frozen_body(features):
    return al.frozen(al.serial(body=al.dense(features)))


def test_a_composite_that_is_frozen_is_not_trainable():
    model = al.serial(backbone=frozen_body(3), head=al.dense(2))
    params, _ = model.init(jax.random.key(0), (None, 4))
    mask = al.trainable(model, params)
    assert mask["backbone"]["body"] == {"kernel": False, "bias": False}
    assert mask["head"] == {"kernel": True, "bias": True}


def test_a_tied_array_is_trainable_while_one_of_its_uses_is():
    tied = al.tie(
        al.serial(emb=al.embedding(11, 4), head=al.dense(11, use_bias=False)),
        {"head/kernel": "emb/embedding"},
        transpose=True,
    )
    params, _ = tied.init(KEY, TOKENS)
    assert al.trainable(al.freeze(tied, "emb"), params) == {"emb": {"embedding": True}}
    both = al.freeze(tied, ["emb", "head"])
    assert al.trainable(both, params) == {"emb": {"embedding": False}}


# --- replacing


def test_a_new_head_keeps_the_rest():
    model = al.serial(body=al.dense(8) >> al.batch_norm(), head=al.dense(2))
    params, state = model.init(KEY, X)
    new, more, kept = al.replace(model, params, state, "head", al.dense(5), key=OTHER)
    assert same(more["body"], params["body"])
    assert same(kept, state)
    assert new.predict(more, kept, X).shape == (2, 5)
    assert source(new)
    fresh, _ = new.init(OTHER, X)
    assert jnp.array_equal(more["head"]["kernel"], fresh["head"]["kernel"])
    assert same(params, model.init(KEY, X)[0]) is False  # init makes new arrays


def test_the_same_layer_gets_new_weights():
    model = al.serial(body=al.dense(8), head=al.dense(2))
    params, state = model.init(KEY, X)
    _, more, _ = al.replace(model, params, state, "head", al.dense(2), key=OTHER)
    assert not jnp.array_equal(more["head"]["kernel"], params["head"]["kernel"])


def test_lstm_becomes_gru_in_one_line():
    model = al.embedding(11, 4) >> al.lstm(6) >> al.dense(11)
    params, state = model.init(KEY, TOKENS)
    new, more, kept = al.replace(
        model, params, state, al.kind("lstm"), al.gru(6), key=OTHER
    )
    assert list(new.children) == list(model.children)
    assert more["lstm"]["kernel"].shape == (4, 18)
    assert same(more["embedding"], params["embedding"])
    assert new.predict(more, kept, jnp.zeros((1, 3), int)).shape == (1, 3, 11)


def test_all_of_a_kind_inside_of_a_stack():
    model = gpt()
    params, state = model.init(KEY, TOKENS)
    where = al.kind("layer_norm")
    new, more, _ = al.replace(model, params, state, where, al.rms_norm(), key=OTHER)
    assert not any(layer.kind == "layer_norm" for _, layer in al.layers(new))
    assert set(dict(al.paths(params))) - set(dict(al.paths(more))) == {
        "blocks/*/layer_norm/bias", "blocks/*/layer_norm_1/bias"
    }  # fmt: skip
    assert more["blocks"]["*"]["layer_norm"]["scale"].shape == (3, 8)
    assert same(more["blocks"]["*"]["attention"], params["blocks"]["*"]["attention"])
    assert source(new)


def test_a_function_needs_neither_key_nor_spec():
    params, state = pipe().init(KEY, X)
    new, more, _ = al.replace(pipe(), params, state, "relu", jax.nn.gelu)
    assert same(more, params)
    assert new.children["relu"].function is jax.nn.gelu


def test_what_new_weights_need():
    model = al.serial(a=al.dense(3), b=al.dense(7))
    params = {"a": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)},
              "b": {"kernel": jnp.ones((3, 7)), "bias": jnp.ones(7)}}  # fmt: skip
    with pytest.raises(ValueError, match="Pass key="):
        al.replace(model, params, {}, "b", al.dense(5))
    with pytest.raises(ValueError, match="Pass spec="):
        al.replace(model, params, {}, "b", al.dense(5), key=KEY)
    with pytest.raises(al.ShapeError, match=r"'a/kernel' as for the input"):
        al.replace(model, params, {}, "b", al.dense(5), key=KEY, spec=(None, 9))
    new, more, _ = al.replace(
        model, params, {}, "b", al.dense(5), key=KEY, spec=(None, 4)
    )
    assert more["b"]["kernel"].shape == (3, 5)
    again = al.replace(new, more, {}, "b", al.dense(6), key=KEY)[1]
    assert again["b"]["kernel"].shape == (3, 6)
    extra = {**params, "c": {"kernel": jnp.ones(2)}}
    with pytest.raises(ValueError, match="no place for 'c/kernel'"):
        al.replace(model, extra, {}, "b", al.dense(5), key=KEY, spec=(None, 4))


# --- inserting, removing


def test_insert_and_remove_are_inverse():
    model = pipe()
    params, state = model.init(KEY, X)
    longer, more, state = al.insert_after(
        model, params, state, "relu", al.dense(8), key=OTHER
    )
    assert list(longer.children) == [
        "dense", "relu", "dense_3", "dense_1", "relu_1", "dense_2"
    ]  # fmt: skip
    assert same({k: more[k] for k in params}, params)
    assert longer.predict(more, state, X).shape == (2, 2)
    shorter, less, _ = al.remove(longer, more, state, "dense_3")
    assert same(less, params)
    assert jnp.array_equal(shorter.predict(less, {}, X), model.predict(params, {}, X))
    assert source(longer)


def test_insert_into_each_copy():
    model = gpt()
    params, state = model.init(KEY, TOKENS)
    new, more, _ = al.insert_after(
        model, params, state, "blocks/*/gelu", al.dense(16, name="more"), key=OTHER
    )
    assert more["blocks"]["*"]["more"]["kernel"].shape == (3, 16, 16)
    assert same(more["blocks"]["*"]["attention"], params["blocks"]["*"]["attention"])
    assert new.predict(more, state, jnp.zeros((1, 2), int)).shape == (1, 2, 11)


def test_outside_of_a_pipe_nothing_is_inserted():
    model = al.branch(a=al.dense(3), b=al.dense(4))
    params, state = model.init(KEY, X)
    with pytest.raises(ValueError, match="'a' does not stand in a pipe, but in branch"):
        al.insert_after(model, params, state, "a", jax.nn.relu)
    with pytest.raises(ValueError, match="'a' does not stand in a pipe"):
        al.remove(model, params, state, "a")


def test_a_source_of_a_tie_is_not_removed_alone():
    tied = al.tie(al.serial(a=al.dense(4), b=al.dense(4)), {"b/kernel": "a/kernel"})
    params, state = tied.init(KEY, X)
    with pytest.raises(ValueError, match="'b/kernel' is tied to 'a/kernel' and stays"):
        al.remove(tied, params, state, "a")


def test_ties_survive_surgery():
    tied = al.tie(
        al.serial(emb=al.embedding(11, 4), mid=al.dense(4), head=al.dense(11)),
        {"head/kernel": "emb/embedding"},
        transpose=True,
    )
    params, state = tied.init(KEY, TOKENS)
    new, more, state = al.replace(tied, params, state, "mid", al.lstm(4), key=OTHER)
    assert "kernel" not in more["head"]
    assert more["emb"]["embedding"] is params["emb"]["embedding"]
    assert new.predict(more, state, jnp.zeros((1, 2), int)).shape == (1, 2, 11)


# --- taking out


@pytest.mark.parametrize("stacked", [True, False])
def test_submodel(stacked):
    model = gpt(stacked=stacked)
    tokens = jnp.arange(6).reshape(2, 3)
    params, state = model.init(KEY, tokens)
    x = tokens
    y, p, s = al.submodel(model, params, state, "emb")
    x = y.predict(p, s, x)
    for i in range(3):
        block, p, s = al.submodel(model, params, state, f"blocks/{i}")
        x = block.predict(p, s, x)
    head, p, s = al.submodel(model, params, state, "head")
    x = head.predict(p, s, x)
    np.testing.assert_allclose(x, model.predict(params, state, tokens), atol=1e-5)
    query, p, _ = al.submodel(model, params, state, "blocks/1/attention/query")
    assert query.kind == "projection"
    assert p["kernel"].shape == (8, 8)
    with pytest.raises(al.PathError, match="Nearest: 'emb'"):
        al.submodel(model, params, state, "em")
    with pytest.raises(al.PathError, match="has no copies"):
        al.submodel(model, params, state, "head/0")


def test_submodel_takes_its_state():
    model = al.serial(a=al.dense(3) >> al.batch_norm(), b=al.dense(2))
    params, state = model.init(KEY, X)
    a, p, s = al.submodel(model, params, state, "a")
    assert list(s) == ["batch_norm"]
    assert a.predict(p, s, X).shape == (2, 3)
    assert al.submodel(model, params, state, "b")[2] == {}


# --- comparing and migrating


def test_diff_lists_exactly_the_edited_paths():
    before = gpt()
    params, state = before.init(KEY, TOKENS)
    assert al.diff(before, gpt()) == []
    after = al.replace(before, params, state, "head", al.dense(12), key=OTHER)[0]
    assert [change.path for change in al.diff(before, after)] == ["head"]
    frozen = al.freeze(before, "blocks/*/attention/query")
    assert {change.path for change in al.diff(before, frozen)} == {
        "blocks/*/attention/query"
    }
    longer = al.dense(8) >> al.dense(2)
    assert [str(c) for c in al.diff(al.dense(8) >> jax.nn.relu, longer)] == [
        "relu: jax.nn.relu -> nothing", "dense_1: nothing -> dense(features=2)"
    ]  # fmt: skip


def test_migrate_keeps_renames_initializes_and_drops():
    before = al.serial(body=al.dense(8), norm=al.batch_norm(), head=al.dense(2))
    params, state = before.init(KEY, X)
    after = al.serial(trunk=al.dense(8), norm=al.batch_norm(), top=al.dense(3))
    made, kept, report = al.migrate(before, after, params, state, key=OTHER)
    assert report.suggested == {"trunk": "body"}
    assert sorted(report.kept) == ["norm/bias", "norm/mean", "norm/scale", "norm/var"]
    made, kept, report = al.migrate(
        before, after, params, state, key=OTHER, renames={"trunk": "body"}
    )
    assert same(made["trunk"], params["body"])
    assert same(kept, state)
    assert sorted(report.initialized) == ["top/bias", "top/kernel"]
    assert sorted(report.dropped) == ["head/bias", "head/kernel"]
    assert "renamed body/kernel -> trunk/kernel" in str(report)
    fresh, _ = after.init(OTHER, X)
    assert jnp.array_equal(made["top"]["kernel"], fresh["top"]["kernel"])
    assert after.predict(made, kept, X).shape == (2, 3)
    with pytest.raises(al.PathError, match="Nearest: 'body'"):
        al.migrate(before, after, params, state, key=OTHER, renames={"trunk": "bdy"})


def test_migrate_between_equal_models_keeps_everything():
    model = gpt()
    params, state = model.init(KEY, TOKENS)
    made, kept, report = al.migrate(model, gpt(), params, state, key=OTHER)
    assert same(made, params)
    assert (kept, report.initialized, report.dropped) == (state, [], [])


# --- what review found


def spliced():
    """A wrapper without a name in a pipe: its children stand beside its neighbours."""
    return al.dense(4) >> al.residual(al.dense(4) >> jax.nn.relu) >> al.dense(2)


def test_a_wrapper_without_a_level_owns_only_its_own():
    model = spliced()
    params, state = model.init(KEY, X)
    where = al.kind("residual")
    shorter, less, _ = al.remove(model, params, state, where)
    assert set(less) == {"dense", "dense_2"}
    assert same(less, {name: params[name] for name in less})
    assert shorter.predict(less, state, X).shape == (2, 2)
    new, more, _ = al.replace(model, params, state, where, al.dense(4), key=OTHER)
    assert same({n: more[n] for n in ("dense", "dense_2")}, {
        n: params[n] for n in ("dense", "dense_2")})  # fmt: skip
    assert new.predict(more, state, X).shape == (2, 2)
    grown, more, _ = al.insert_after(
        model, params, state, "dense_1", al.dense(4), key=OTHER
    )
    assert same({name: more[name] for name in params}, params)
    assert grown.predict(more, state, X).shape == (2, 2)


def test_trainable_beside_what_is_frozen():
    for model, free in [
        (al.dense(4) >> al.frozen(al.dense(4) >> al.dense(4)), {"dense"}),
        (al.serial(al.frozen(al.dense(4, name="f")), al.dense(2, name="g")), {"g"}),
        (al.residual(al.frozen(al.dense(4)), al.dense(4)), {"shortcut"}),
        (
            al.dense(4) >> al.frozen(al.dense(4) >> al.dense(4), but="dense_1"),
            {"dense", "dense_2"},
        ),
    ]:  # fmt: skip
        params, state = model.init(KEY, X)
        mask = al.trainable(model, params)

        def loss(params, model=model, state=state):
            return (model.predict(params, state, X) ** 2).sum()

        grads = jax.grad(loss)(params)
        moving = {path.split("/")[0] for path, g in al.paths(grads) if jnp.any(g)}
        marked = {p[0].key for p, m in jax.tree_util.tree_leaves_with_path(mask) if m}
        assert moving == marked == free


def test_a_kind_does_not_mean_what_stands_beside():
    model = al.serial(a=al.residual(al.layer_norm(), al.dense(4)))
    params, state = model.init(KEY, X)
    assert set(al.select(params, al.kind("layer_norm"), model)) == {"a/scale", "a/bias"}
    new, more, _ = al.replace(
        model, params, state, al.kind("layer_norm"), al.rms_norm(), key=OTHER
    )
    assert same(more["a"]["shortcut"], params["a"]["shortcut"])
    assert new.predict(more, state, X).shape == X.shape


def test_a_star_is_one_step_and_not_the_root():
    model = al.serial(a=al.dense(3), b=al.dense(2))
    frozen = al.freeze(model, "*")
    assert [layer.kind for layer in frozen.children.values()] == ["frozen", "frozen"]
    assert al.find(model, "") == model
    params, _ = model.init(KEY, X)
    assert al.count(params, "") == al.count(params)


def test_copies_of_a_stack_are_one_layer():
    model = gpt()
    for verb in (al.layers, al.find, al.freeze):
        with pytest.raises(ValueError, match=r"is one of several copies"):
            verb(model, "blocks/1/dense")


def test_replacing_a_composite_takes_all_of_it():
    model = al.serial(b=al.gru(3))
    params, state = model.init(KEY, (1, 5, 4))
    new, more, _ = al.replace(model, params, state, "b", al.lstm(3), key=OTHER)
    assert new.children["b"].kind == "lstm"
    assert more["b"]["kernel"].shape == (4, 12)


def test_a_slice_stays_one():
    model = al.dense(3) >> jax.nn.relu >> al.dense(2)
    params, state = model.init(KEY, X)
    half = al.freeze(model[:2], "dense")
    assert half.predict(params, state, X).shape == (2, 3)


def test_a_remembered_spec_has_to_make_such_params():
    model = al.serial(a=al.dense(8), b=al.dense(2))
    params, state = model.init(KEY, (None, 4))
    al.serial(a=al.dense(8), b=al.dense(2)).init(KEY, (None, 7))  # an equal model
    with pytest.raises(al.ShapeError, match="Pass the spec= of the input"):
        al.replace(model, params, state, "a", al.dense(8), key=OTHER)
    _, more, _ = al.replace(
        model, params, state, "a", al.dense(8), key=OTHER, spec=(None, 4)
    )
    assert more["a"]["kernel"].shape == (4, 8)


def test_params_that_lack_a_layer_are_not_filled_up():
    model = al.serial(a=al.dense(8), b=al.dense(2))
    params, state = model.init(KEY, X)
    with pytest.raises(al.PathError, match=r"'a/(kernel|bias)'"):
        al.replace(model, {"b": params["b"]}, state, "b", al.dense(3), key=OTHER)


def test_only_copies_that_are_there_are_taken():
    for how in ({}, {"stacked": False}):
        model = al.serial(b=al.repeat(al.dense(3, name="d"), 3, **how))
        params, state = model.init(KEY, (None, 3))
        with pytest.raises(al.PathError, match="There are 3 copies"):
            al.submodel(model, params, state, "b/7")
        one, own, _ = al.submodel(model, params, state, "b/1")
        assert one.predict(own, {}, jnp.ones((1, 3))).shape == (1, 3)
        leaf, own, _ = al.submodel(model, params, state, "b/1/d")
        assert leaf.predict(own, {}, jnp.ones((1, 3))).shape == (1, 3)
        with pytest.raises(al.PathError, match="take one, by number"):
            al.submodel(model, params, state, "b/*/d")


def test_both_ends_of_a_tie_can_go_and_the_target_alone():
    tied = al.tie(
        al.serial(a=al.dense(4), b=al.dense(4), c=al.dense(2)), {"b/kernel": "a/kernel"}
    )
    params, state = tied.init(KEY, X)
    both, less, _ = al.remove(tied, params, state, ["a", "b"])
    assert both.predict(less, state, X).shape == (2, 2)
    one, less, _ = al.remove(tied, params, state, "b")
    assert one.init(KEY, X)[0].keys() == less.keys()
    with pytest.raises(ValueError, match="is tied to another layer's array"):
        al.submodel(tied, params, state, "b")


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (al.serial(x=al.dense(3), y=al.dense(3)), al.serial(y=al.dense(3), x=al.dense(3))),
        (al.lift(lambda x: x), al.lift(lambda x: x)),
        (al.parameter((2,), al.initializers.constant(np.zeros(2000))),
         al.parameter((2,), al.initializers.constant(np.eye(2000)[7]))),
    ],
)  # fmt: skip
def test_unequal_models_differ_somewhere(a, b):
    assert a != b
    assert al.diff(a, b)


def test_migrate_takes_each_array_once_and_the_longest_rename():
    before = al.serial(a=al.dense(3), x=al.dense(3))
    params, state = before.init(KEY, (None, 3))
    after = al.serial(a=al.dense(3), c=al.dense(3))
    with pytest.raises(ValueError, match="would serve twice"):
        al.migrate(before, after, params, state, key=OTHER, renames={"c": "a"})
    swapped = {"c": "x", "c/bias": "a/bias", "a/bias": "x/bias"}
    made, _, _ = al.migrate(before, after, params, state, key=OTHER, renames=swapped)
    assert made["c"]["bias"] is params["a"]["bias"]
    assert made["c"]["kernel"] is params["x"]["kernel"]
    root = al.dense(3)
    made, _, report = al.migrate(
        al.serial(a=root), root, *al.serial(a=root).init(KEY, (None, 3)), key=OTHER,
        renames={"": "a"},
    )  # fmt: skip
    assert not report.initialized


def test_children_given_twice_are_told_apart():
    @al.layer
    def two(f):
        return al.wire(lambda sub, x: sub.a(x) + sub.b(x), a=f, b=f)

    model = two(al.dense(4)).with_children({"a": al.dense(4, use_bias=False)})
    params, _ = model.init(KEY, X)
    assert set(params["a"]) == {"kernel"}
    assert set(params["b"]) == {"kernel", "bias"}
    pipe_ = al.serial(a=al.dense(3), b=al.dense(2)).with_children({"a": al.gru_cell(3)})
    assert list(pipe_.children) == ["a", "b"]


@al.layer
def unit():
    return al.dense(4) >> al.residual(al.dense(4) >> al.dense(4))


def test_composites_with_names_side_by_side():
    model = al.serial(b=unit(), h=al.dense(2))
    frozen = al.freeze(model, "b/dense_1")
    assert set(frozen.init(KEY, X)[0]["b"]) == {"dense", "dense_1", "dense_2"}
    plain = unit()
    inner = plain.children["residual"]
    other = plain.with_children({"residual": al.frozen(inner)})
    assert set(other.init(KEY, X)[0]) == {"dense", "dense_1", "dense_2"}
    back = other.with_children({"residual": inner})
    assert (back == plain) <= (
        back.init(KEY, X)[0].keys() == plain.init(KEY, X)[0].keys()
    )


def test_weights_that_are_read_are_those_that_the_wrapper_gives():
    def head(sub, tokens):
        h = sub.emb(tokens)
        table = sub.emb.params["embedding"]
        assert table.dtype == h.dtype
        return h @ table.T

    tokens = jnp.arange(6).reshape(2, 3)
    model = al.wire(head, emb=al.embedding(11, 4))
    params, state = model.init(KEY, tokens)
    frozen = al.freeze(model, "emb")
    grads = jax.grad(lambda p: frozen.predict(p, state, tokens).sum())(params)
    assert not jnp.any(grads["emb"]["embedding"])
    mixed = al.precision(model, compute=jnp.bfloat16, where="emb")
    assert mixed.init(KEY, tokens)[0]["emb"]["embedding"].dtype == jnp.float32
    assert mixed.predict(params, state, tokens).dtype == jnp.bfloat16

    def reads(sub, x):
        return sub.t(x) + sub.t.params["b"]["kernel"].sum()

    body = al.serial(a=al.dense(4), b=al.dense(4))
    tied = al.wire(reads, t=al.tie(body, {"b/kernel": "a/kernel"}))
    params, state = tied.init(KEY, X[:, :4])
    assert tied.predict(params, state, X).shape == X.shape
