"""ONNX files of layers and models: what stands in them, and what they compute."""

import importlib
import subprocess
import sys
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax import lax
from test_laws import TABLE
from test_random_models import SPEC, models
from zoo import FAMILIES, MODELS, drawn, writer

import axonlike as al
from axonlike.io.onnx import nodes, write
from axonlike.io.onnx.check import difference, runner
from axonlike.io.onnx.table import TABLE as PRIMITIVES

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SOME = ["conv", "dense", "embedding", "ensemble", "kv_cache", "resize", "switch"]
# The first rows of a few layers in every run, all of them nightly.
ROWS = [
    pytest.param(
        *row[:2],
        id=f"{name}-{i}",
        marks=[] if name in SOME and not i else [pytest.mark.slow],
    )
    for name, rows in TABLE.items()
    for i, row in enumerate(rows)
]
ZOO = [
    pytest.param(
        *build(), id=name, marks=[] if name == "convnet" else [pytest.mark.slow]
    )
    for name, build in MODELS.items()
]


def exported(model, spec, path, **how):
    params, state = drawn(model, spec)
    al.export_onnx(model, params, state, spec, path, **how)
    return params, state


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def unrolled(tree):
    """Params with every copy of a repeat by itself."""
    while starred := [name for name, _ in al.paths(tree) if "*" in name.split("/")]:
        tree = al.unstack(tree, starred[0].partition("/*")[0])
    return tree


def graph_of(path):
    return onnx.load(path).graph


def ops(path):
    return Counter(node.op_type for node in graph_of(path).node)


def weights(path):
    found = graph_of(path).initializer
    names = {a.name: onnx.numpy_helper.to_array(a) for a in found}
    return {k: a for k, a in names.items() if not k.startswith("constant")}


def agrees(model, trees, path, x, tolerance=1e-5):
    arrays, _ = jax.tree.flatten(x)
    names = [item.name for item in graph_of(path).input]
    made = runner(path)(dict(zip(names, arrays, strict=True)))
    wanted = jax.tree.leaves(jax.jit(model.predict)(*trees, x))
    assert len(wanted) == len(made)
    for ours, theirs in zip(wanted, made.values(), strict=True):
        assert ours.shape == theirs.shape
        assert difference(ours, theirs) <= tolerance
    return made


# --- layers and models


@pytest.mark.parametrize(("layer", "spec"), ROWS)
def test_every_layer_is_exported_and_agrees_for_two_sizes(layer, spec, tmp_path):
    exported(layer, spec, tmp_path / "layer.onnx")  # compares, and raises


@pytest.mark.parametrize(("model", "spec"), ZOO)
def test_models_agree_for_two_sizes(model, spec, tmp_path):
    exported(model, spec, tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_families_of_models_agree_for_two_sizes(name, tmp_path):
    exported(*FAMILIES[name](), tmp_path / "model.onnx")


# --- nodes for layers


@pytest.mark.parametrize(
    ("layer", "shape", "op"),
    [
        (al.batch_norm(), (3, 5, 4), "BatchNormalization"),
        (al.batch_norm(use_scale=False, epsilon=1e-3), (3, 4), "BatchNormalization"),
        (al.layer_norm(), (3, 4), "LayerNormalization"),
        (al.layer_norm(use_bias=False, epsilon=0.1), (2, 3, 4), "LayerNormalization"),
        (al.max_pool(3, 2, "SAME"), (2, 7, 8, 3), "MaxPool"),
        (al.max_pool(2, 1, window_dilation=2), (2, 9, 3), "MaxPool"),
        (al.max_pool((3, 2), 2, ceil_mode=True), (2, 6, 7, 3), "MaxPool"),
        (al.avg_pool((2, 3), (1, 2)), (2, 7, 8, 3), "AveragePool"),
        (al.lstm(3), (2, 5, 4), "LSTM"),
        (al.lstm(3, reverse=True, return_carry=True), (2, 5, 4), "LSTM"),
        (al.lstm(3, use_bias=False, return_sequence=False), (2, 5, 4), "LSTM"),
        (al.lstm(3, use_recurrent_bias=True), (2, 5, 4), "LSTM"),
        (al.gru(3), (2, 5, 4), "GRU"),
        (al.gru(3, reset_after=False, reverse=True), (2, 5, 4), "GRU"),
        (al.gru(3, use_recurrent_bias=True, return_carry=True), (2, 5, 4), "GRU"),
        (al.gru(3, use_bias=False, return_sequence=False), (2, 5, 4), "GRU"),
        (al.rnn(3, return_carry=True), (2, 5, 4), "RNN"),
        (al.attention(2), (2, 5, 4), "Attention"),
        (al.attention(2, causal=True, use_bias=False), (2, 5, 4), "Attention"),
        (
            al.attention(4, num_kv_heads=2, head_dim=3, value_dim=5, soft_cap=2.0),
            (2, 5, 4),
            "Attention",
        ),
        (al.attention(2, scale=0.3, out_features=3), (2, 5, 4), "Attention"),
        (
            al.attention(4, num_kv_heads=2, causal=True, rotary=al.rotary()),
            (2, 5, 8),
            "Attention",
        ),
        (
            al.attention(2, normalize_qk=True, rotary=al.rotary(), use_bias=False),
            (2, 5, 4),
            "Attention",
        ),
        (
            al.attention(2, normalize_qk=al.rms_norm(), value_dim=3),
            (2, 5, 4),
            "Attention",
        ),
    ],
)
def test_a_layer_is_a_node(layer, shape, op, tmp_path):
    path = tmp_path / "layer.onnx"
    spec = al.spec(" ".join(["b", *map(str, shape[1:])]))
    trees = exported(layer, spec, path, check=False)
    assert ops(path)[op] == 1
    agrees(layer, trees, path, normal(*shape))


@pytest.mark.parametrize(
    ("layer", "spec"),
    [
        (al.batch_norm(use_running_average=False), "b 4"),
        (al.layer_norm(reduction_axes=(1, 2), feature_axes=(1, 2)), "b 3 4"),
        (al.avg_pool(3, 1, "SAME"), "b 5 4 2"),
        (al.lstm(3, peephole=True), "b t 2"),
        (al.gru(3, gate_fn=jax.nn.hard_sigmoid), "b t 2"),
        (al.attention(2, sliding_window=2), "b t 4"),
        (al.attention(2, causal=True, alibi=True), "b t 4"),
        (al.vmap(al.layer_norm(), in_axes=1), "b 3 4"),
    ],
)
def test_a_layer_that_a_node_cannot_do_is_written_out(layer, spec, tmp_path):
    path = tmp_path / "layer.onnx"
    exported(layer, spec, path)
    found = ops(path)
    named = {"BatchNormalization", "LayerNormalization", "AveragePool", "LSTM", "GRU"}
    assert not found.keys() & {*named, "Attention"}


def test_cross_attention_is_a_node_unless_it_is_causal(tmp_path):
    path, spec = tmp_path / "layer.onnx", (al.spec("b t 4"), al.spec("b s 6"))
    x = normal(2, 3, 4), normal(2, 5, 6)
    for causal in (False, True):
        layer = al.attention(2, causal=causal)
        trees = exported(layer, spec, path, check=False)
        assert ops(path)["Attention"] == (not causal)
        agrees(layer, trees, path, x)


def test_a_cache_that_is_not_used_is_no_hindrance(tmp_path):
    layer, path = al.attention(2, causal=True, cache_length=5), tmp_path / "layer.onnx"
    trees = exported(layer, "2 3 4", path, check=False)
    assert ops(path)["Attention"] == 1
    agrees(layer, trees, path, normal(2, 3, 4))


@al.layer
def times():
    """A layer with an option that attention has as an argument; it may take positions."""

    def init(key, x, positions=None):
        return {}

    def apply(params, x, positions=None, *, scale=1.0):
        return x * scale

    return init, apply


@pytest.mark.parametrize(
    ("model", "options", "nodes"),
    [
        (times() >> al.attention(2), {"scale": 3.0}, 1),
        (al.attention(2, normalize_qk=times()), {}, 1),
        (al.attention(2, normalize_qk=times()), {"scale": 3.0}, 0),
        (al.attention(2, rotary=times()), {}, 0),
    ],
)
def test_options_are_those_of_the_layer_that_declares_them(
    model, options, nodes, tmp_path
):
    params, state = drawn(model, (2, 3, 4))
    path, how = tmp_path / "model.onnx", {"options": options}
    al.export_onnx(model, params, state, (2, 3, 4), path, check=False, **how)
    assert ops(path)["Attention"] == nodes
    x = normal(2, 3, 4)
    (y,) = runner(path)({"input": x}).values()
    assert difference(model.apply(params, state, x, **how)[0], y) <= 1e-5


def test_older_opsets_have_no_attention(tmp_path):
    path = tmp_path / "layer.onnx"
    exported(al.attention(2, causal=True), "b t 4", path, opset=18)
    assert ops(path)["Attention"] == 0
    assert onnx.load(path).opset_import[0].version == 18


def test_a_layer_of_another_factory_is_not_taken_for_one_by_its_name(tmp_path):
    @al.layer
    def layer_norm():
        return None, lambda params, x: x * 2

    path = tmp_path / "layer.onnx"
    exported(layer_norm(), "b 4", path)
    assert ops(path) == {"Mul": 1, "Identity": 1}


def test_convolutions_follow_one_another_without_axes_being_turned(tmp_path):
    model = al.conv(4, 3, use_bias=False) >> al.batch_norm() >> al.max_pool(2)
    path = tmp_path / "model.onnx"
    exported(model, "b 8 8 2", path, check=False)
    order = [n.op_type for n in graph_of(path).node if n.op_type != "Transpose"]
    assert order == ["Conv", "BatchNormalization", "MaxPool", "Identity"]
    assert ops(path)["Transpose"] == 3  # of the input, the kernel and the output


def test_the_nodes_are_of_layers_that_there_are():
    assert all(hasattr(al, factory.__name__) for factory in nodes.NODES)


# --- names


def test_initializers_are_the_params_and_statistics_by_path(tmp_path):
    model = al.serial(body=al.dense(3) >> al.batch_norm(), head=al.dense(2))
    path = tmp_path / "model.onnx"
    params, state = exported(model, "b 4", path, check=False)
    found = weights(path)
    ours = dict(al.paths(params)) | dict(al.paths(state))
    assert found.keys() == ours.keys()
    assert all(np.array_equal(found[name], ours[name]) for name in found)


@pytest.mark.parametrize("stacked", [True, False])
def test_copies_of_a_repeat_stand_under_their_own_paths(stacked, tmp_path):
    block = al.residual(al.layer_norm() >> al.dense(4))
    inner = al.repeat(block, 2, stacked=stacked)
    model = al.serial(blocks=al.repeat(al.serial(inner=inner), 2, stacked=stacked))
    path = tmp_path / "model.onnx"
    trees = exported(model, "b 4", path, check=False)
    ours = {name for name, _ in al.paths(unrolled(trees[0]))}
    assert weights(path).keys() == ours
    assert "blocks/1/inner/0/dense/kernel" in ours
    agrees(model, trees, path, normal(3, 4))


def test_copies_that_run_together_stay_together(tmp_path):
    path = tmp_path / "model.onnx"
    exported(al.serial(members=al.ensemble(al.dense(3), 2)), "b 4", path, check=False)
    assert weights(path)["members/*/kernel"].shape == (2, 4, 3)


def test_a_tied_weight_stands_once(tmp_path):
    pipe = al.serial(p=al.dense(5, use_bias=False), q=al.dense(4, use_bias=False))
    model = al.tie(pipe, {"q/kernel": "p/kernel"}, transpose=True)
    path = tmp_path / "model.onnx"
    trees = exported(model, "b 4", path, check=False)
    assert list(weights(path)) == ["p/kernel"]
    agrees(model, trees, path, normal(3, 4))


def test_nodes_are_called_by_the_layer_that_they_are_of(tmp_path):
    model = al.serial(blocks=al.repeat(al.serial(mlp=al.dense(4)), 2))
    path = tmp_path / "model.onnx"
    exported(model, "b 4", path, check=False)
    names = {n.name for n in graph_of(path).node if n.op_type == "MatMul"}
    assert names == {"blocks/0/mlp/MatMul", "blocks/1/mlp/MatMul"}


def test_inputs_and_outputs_are_called_by_their_place(tmp_path):
    @al.lift
    def mixed(x):
        return {"sum": x["a"] + x["b"][0], "rest": (x["b"][1], x["a"] * 2)}

    spec = {"a": al.spec("b 3"), "b": (al.spec("b 3"), al.spec("t", int))}
    path = tmp_path / "model.onnx"
    exported(mixed, spec, path)
    graph = graph_of(path)
    assert [i.name for i in graph.input] == ["input/a", "input/b/0", "input/b/1"]
    assert [o.name for o in graph.output] == [
        "output/rest/0",
        "output/rest/1",
        "output/sum",
    ]


def test_named_sizes_are_the_dimensions_of_the_file(tmp_path):
    path = tmp_path / "model.onnx"
    exported(al.pixel_unshuffle(2), "b 2*h w*2+2 3", path, check=False)
    sizes = [
        [d.dim_param or d.dim_value for d in item.type.tensor_type.shape.dim]
        for item in (*graph_of(path).input, *graph_of(path).output)
    ]
    assert sizes == [["b", "2*h", "2*w + 2", 3], ["b", "h", "w + 1", 12]]


def test_constants_of_a_function_have_a_name_of_their_own(tmp_path):
    table = jnp.asarray(normal(80, 80))
    model = al.lift(lambda x: x @ table)
    path = tmp_path / "model.onnx"
    trees = exported(model, "b 80", path, check=False)
    assert "constants/0" in [a.name for a in graph_of(path).initializer]
    agrees(model, trees, path, normal(2, 80))


# --- sizes, dtypes, loops


@pytest.mark.parametrize(
    "layer",
    [
        al.conv(2, 3, 2),
        al.max_pool(3, 2, "SAME"),
        al.avg_pool(3, 2, "SAME"),
        al.lp_pool(2),
    ],
)
def test_images_of_any_size(layer, tmp_path):
    path, spec = tmp_path / "layer.onnx", al.spec("b h w 2", float, ("h>=4", "w>=4"))
    trees = exported(layer, spec, path, check=False)
    for shape in ((2, 5, 8, 2), (1, 6, 4, 2)):
        agrees(layer, trees, path, normal(*shape))


@settings(max_examples=5 if settings().max_examples <= 100 else 100)
@given(models())
def test_random_models_agree(tmp_path_factory, model):
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    trees = exported(model, SPEC, path, check=False)
    for b in (1, 3):
        x = normal(b, *SPEC.dims[1:])
        wanted = model.predict(*trees, x)
        assert difference(wanted, runner(path)({"input": x})["output"]) <= 1e-5


def test_one_file_is_for_all_sizes(tmp_path):
    block = al.residual(al.layer_norm() >> al.attention(2, causal=True))
    model = al.serial(
        emb=al.embedding(11, 8), blocks=al.repeat(block, 2), head=al.dense(11)
    )
    spec, path = al.spec("b t", int), tmp_path / "model.onnx"
    trees = exported(model, spec, path, check=False)
    run = runner(path)
    for b, t in ((1, 1), (3, 7), (2, 20)):
        ids = np.random.default_rng(t).integers(0, 11, (b, t)).astype(np.int32)
        wanted = model.predict(*trees, ids)
        assert difference(wanted, run({"input": ids})["output"]) <= 1e-5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits(dtype, tmp_path):
    model = al.dense(8) >> jax.nn.gelu >> al.layer_norm() >> al.dense(3)
    model = al.precision(model, params=dtype, compute=dtype, output=dtype)
    path, spec = tmp_path / "model.onnx", al.spec("b 4", dtype)
    exported(model, spec, path)
    kinds = {item.type.tensor_type.elem_type for item in graph_of(path).input}
    tensor = onnx.TensorProto
    assert kinds == {tensor.FLOAT if dtype == "bfloat16" else tensor.FLOAT16}
    stored = next(a for a in graph_of(path).initializer if a.name == "dense/kernel")
    assert stored.data_type == getattr(tensor, dtype.upper())


def test_numbers_are_rounded_to_bfloat16_as_the_model_does(tmp_path):
    model = al.lift(lambda x: (x * 3 + 1) / 7)
    path, spec = tmp_path / "model.onnx", al.spec("b", "bfloat16")
    exported(model, spec, path, check=False)
    x = jnp.asarray(normal(200), jnp.bfloat16)
    with jax.disable_jit():
        wanted = np.asarray(model.predict({}, {}, x).astype(jnp.float32))
    made = runner(path)({"input": np.asarray(x)})["output"]
    assert np.array_equal(wanted, made)


def test_a_scan_over_time_with_lengths(tmp_path):
    model = al.scan(al.gru_cell(3), return_sequence=False)
    spec = {"x": al.spec("b t 2"), "lengths": al.spec("b", int)}
    path = tmp_path / "model.onnx"
    trees = exported(model, spec, path, check=False)
    assert ops(path)["Scan"] == 1
    x = {"lengths": np.array([5, 2, 0], np.int32), "x": normal(3, 5, 2)}
    agrees(model, trees, path, x)


def test_calls_that_jax_makes_leave_no_trace(tmp_path):
    model = al.remat(al.lift(jax.jit(jax.nn.relu)) >> jax.nn.silu)
    path = tmp_path / "model.onnx"
    exported(model, "b 4", path, check=False)
    assert set(ops(path)) == {"Max", "Sigmoid", "Mul", "Identity"}


def test_what_has_no_outputs_that_are_needed_is_left_out(tmp_path):
    model = al.wire(
        lambda sub, x: (sub.a(x), sub.b(x))[0], a=al.dense(2), b=al.dense(3)
    )
    path = tmp_path / "model.onnx"
    exported(model, "b 4", path, check=False)
    assert weights(path).keys() == {"a/kernel", "a/bias"}


def test_state_that_is_carried_goes_from_call_to_call(tmp_path):
    (model, spec), path = writer(), tmp_path / "model.onnx"
    params, state = drawn(model, al.spec("2 3", int))
    how = {"options": {"decode": True}, "carry_state": True}
    al.export_onnx(model, params, state, spec, path, **how)
    ours = {name for name, _ in al.paths(unrolled(params))}
    assert weights(path).keys() == ours
    names = [name for name, _ in al.paths(state)]
    graph = graph_of(path)
    assert [i.name for i in graph.input] == ["input", *(f"state/{k}" for k in names)]
    made = [o.name for o in graph.output]
    assert made == ["output", *(f"new_state/{k}" for k in names)]
    tokens = np.array([[1, 2, 3, 4], [4, 5, 6, 0]], np.int32)
    wanted, last = model.apply(params, state, tokens, options={"decode": True})
    run, kept = runner(path), {f"state/{k}": a for k, a in al.paths(state)}
    ys = []
    for part in (tokens[:, :2], tokens[:, 2:3], tokens[:, 3:]):
        y, *new = run({"input": part, **kept}).values()
        kept = dict(zip(kept, new, strict=True))
        ys.append(y)
    assert difference(wanted, np.concatenate(ys, 1)) <= 1e-5
    for ours, theirs in zip(jax.tree.leaves(last), kept.values(), strict=True):
        assert difference(ours, theirs) <= 1e-5


def test_every_call_starts_from_the_state_in_the_file(tmp_path):
    model, how = al.attention(2, causal=True, cache_length=4), {"decode": True}
    params, empty = drawn(model, al.spec("1 3 4"))
    _, state = model.apply(params, empty, normal(1, 2, 4), options=how)
    path, x = tmp_path / "model.onnx", normal(1, 1, 4)
    al.export_onnx(model, params, state, "1 1 4", path, options=how, check=False)
    run = runner(path)
    wanted, _ = model.apply(params, state, x, options=how)
    for _ in range(2):
        assert difference(wanted, run({"input": x})["output"]) <= 1e-5
    assert difference(model.apply(params, empty, x, options=how)[0], wanted) > 1e-3


# --- files


def test_arrays_beside_the_file(tmp_path):
    model = al.dense(64) >> al.dense(2)
    path = tmp_path / "model.onnx"
    params, state = exported(model, "b 32", path, external_data=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "model.onnx",
        "model.onnx.data",
    ]
    assert path.stat().st_size < 4096
    found = weights(path)
    assert np.array_equal(found["dense/kernel"], params["dense"]["kernel"])
    agrees(model, (params, state), path, normal(3, 32))


def test_large_arrays_go_beside_by_themselves(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "_MOST_INSIDE", 1000)
    exported(al.dense(64), "b 32", tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx.data").stat().st_size == 32 * 64 * 4


def test_a_file_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    def wrong(g, eqn, a, b):
        return a._replace(name=g.node("Add", g.node("Add", a, b), np.float32(1e-3)))

    entry = PRIMITIVES["add"]
    monkeypatch.setitem(PRIMITIVES, "add", entry._replace(rule=wrong))
    path = tmp_path / "model.onnx"
    path.write_text("before")
    with pytest.raises(ValueError, match="output: onnxruntime differs by"):
        exported(al.lift(lambda x: x + x), "b 4", path)
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    exported(al.lift(lambda x: x + x), "b 4", path, check=False)
    exported(al.lift(lambda x: x + x), "b 4", path, tolerance=1e-2)


def test_a_file_replaces_the_one_before(tmp_path):
    path = tmp_path / "below" / "model.onnx"
    exported(al.dense(2), "b 4", path, check=False)
    exported(al.dense(3), "b 4", path, check=False)
    assert weights(path)["kernel"].shape == (4, 3)


def test_the_file_runs_without_jax(tmp_path):
    model = al.dense(3) >> jax.nn.relu
    path = tmp_path / "model.onnx"
    params, state = exported(model, "b 4", path, check=False)
    code = (
        "import sys, numpy, onnxruntime\n"
        f"session = onnxruntime.InferenceSession({str(path)!r})\n"
        "x = numpy.ones((2, 4), numpy.float32)\n"
        "print(session.run(None, {'input': x})[0].tolist(), 'jax' in sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    wanted = model.predict(params, state, jnp.ones((2, 4))).tolist()
    assert out.strip().endswith("False")
    assert np.allclose(eval(out.strip().removesuffix("False")), wanted, atol=1e-6)


# --- errors


def message(model, spec, path, **how):
    with pytest.raises((ValueError, TypeError, ImportError)) as caught:
        exported(model, spec, path, **how)
    return f"{type(caught.value).__name__}: {caught.value}"


def test_a_primitive_without_counterpart_names_itself_and_its_path(tmp_path):
    model = al.serial(body=al.serial(head=al.dense(3), odd=al.lift(lax.digamma)))
    assert message(model, "b 4", tmp_path / "model.onnx") == (
        "ValueError: export_onnx: primitive 'digamma' in body/odd, of "
        "float32[b, 3], cannot be written as ONNX: it is not in the table. Write the "
        "layer without it, or use al.export."
    )
    assert not list(tmp_path.iterdir())


def test_in_a_copy_too(tmp_path):
    model = al.serial(
        blocks=al.repeat(al.serial(odd=al.lift(lax.digamma)) >> al.dense(4), 2)
    )
    found = message(model, "b 4", tmp_path / "model.onnx")
    assert "'digamma' in blocks/0/odd, of float32[b, 4]" in found


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lax.erf_inv, "primitive 'erf_inv' in the model"),
        (lambda x: x.astype(jnp.complex64).real, "runtimes compute with no complex64"),
        (
            lambda x: lax.sort((x, x), num_keys=2)[0],
            "it is by 2 arrays, where ONNX sorts by one",
        ),
        (
            lambda x: lax.reduce_precision(x, 4, 3),
            "its 4 and 3 bits are not those of bfloat16 or float16",
        ),
    ],
)
def test_what_else_has_no_counterpart(function, reason, tmp_path):
    assert reason in message(al.lift(function), "b 4", tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        *(
            (
                {"opset": n},
                f"ValueError: export_onnx: opset must be from 18 to 25, got {n!r}.",
            )
            for n in (17, 99, True, "23")
        ),
        (
            {"tolerance": -1},
            "ValueError: export_onnx: tolerance must be a number from 0 on, got -1.",
        ),
        (
            {"external_data": "x"},
            "TypeError: export_onnx: external_data must be True or False, got 'x'.",
        ),
        (
            {"model": None},
            "TypeError: export_onnx: expected a layer, the model, got None.",
        ),
        (
            {"params": 3},
            "TypeError: export_onnx: params: expected a dict, got int. Pass the params and "
            "state that init or apply returned.",
        ),
        (
            {"state": {"x": "y"}},
            "TypeError: export_onnx: 'x' is str, not an array. Pass the params and state "
            "that init or apply returned.",
        ),
        (
            {"path": "."},
            "IsADirectoryError: export_onnx: . is a folder. Name a file in it.",
        ),
    ],
)
def test_arguments_are_checked(wrong, what):
    given = {"model": al.identity, "params": {}, "state": {}, "spec": "b 4"}
    with pytest.raises((ValueError, TypeError, IsADirectoryError)) as caught:
        al.export_onnx(**{**given, "path": "model.onnx", **wrong})
    assert f"{type(caught.value).__name__}: {caught.value}" == what


def test_an_input_that_onnx_has_no_numbers_of(tmp_path):
    spec = jax.ShapeDtypeStruct((2,), jnp.complex64)
    assert message(al.identity, spec, tmp_path / "model.onnx") == (
        "TypeError: export_onnx: input: ONNX runtimes compute with no complex64. Pass "
        "real numbers."
    )


def test_an_opset_that_the_library_or_the_runtime_does_not_know(tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    runtime = importlib.import_module("onnxruntime")
    monkeypatch.setattr(runtime, "InferenceSession", refusing)
    assert message(al.identity, "b 4", path) == (
        f"ValueError: export_onnx: onnxruntime {runtime.__version__} does not load the "
        "file: no opset 23. Pass an older opset=, or check=False to look at the file."
    )
    monkeypatch.setattr(onnx.defs, "onnx_opset_version", lambda: 22)
    assert message(al.identity, "b 4", path) == (
        "ValueError: export_onnx: opset must be from 18 to 22, got 23."
    )


def refusing(*args, **kwargs):
    raise RuntimeError("no opset 23.")


def test_a_size_that_stands_in_no_input(tmp_path):
    model = al.lift(lambda x: jnp.ones((x.shape[0] // x.shape[0],)) * x.shape[0])
    spec = al.spec("b*c")
    assert message(model, spec, tmp_path / "model.onnx").startswith(
        "ValueError: export_onnx: size 'b' stands in no input by itself. "
    )


def test_sizes_for_which_no_constraint_holds(tmp_path):
    spec = al.spec("b 4", float, "b>=500")
    found = message(al.dense(2), spec, tmp_path / "model.onnx")
    assert found == (
        "ValueError: export_onnx: found no sizes below 100 for which b>=500. "
        "Pass check=False."
    )


def test_without_onnxruntime_nothing_is_compared(tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    exported(al.dense(2), "b 4", path)
    path.unlink()
    assert message(al.dense(2), "b 4", path, check=True) == (
        "ImportError: export_onnx: check=True compares with onnxruntime, which is not "
        "installed. Install it with: pip install onnxruntime."
    )


def test_without_onnx_the_extra_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    found = message(al.dense(2), "b 4", tmp_path / "model.onnx")
    assert "pip install 'axonlike[onnx]'" in found
