"""Whole models in folders: every model comes back equal, and a folder runs nothing."""

import enum
import functools
import json
import operator
import os
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_laws
from hypothesis import given, settings
from test_laws import ROWS
from test_random_models import SPEC, X, middle, mix, models

import axonlike as al

KEY = jax.random.key(0)
FUNCTIONS = [
    test_laws.gated, test_laws.positive_first, test_laws.shifted, test_laws.tied_head,
    test_laws.two, test_laws.which, middle, mix,
]  # fmt: skip


def there_and_back(folder, model, spec, **known):
    params, state = model.init(KEY, spec)
    al.save_model(folder, model, params, state)
    again, *trees = al.load_model(folder, **known)
    assert again == model
    assert repr(again) == repr(model)
    assert jax.tree.structure(tuple(trees)) == jax.tree.structure((params, state))
    assert [path for path, _ in al.paths(trees[0])] == [p for p, _ in al.paths(params)]
    for a, b in zip(
        jax.tree.leaves(trees), jax.tree.leaves((params, state)), strict=True
    ):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    return again, *trees


def specs(spec):
    """What stands for the input in the table of layers: text is a spec."""
    return jax.tree.map(lambda s: al.spec(s) if isinstance(s, str) else s, spec)


SAMPLE = [
    row for row in ROWS if row.id in ("attention", "conv", "lstm", "repeat", "tie")
]


@pytest.mark.parametrize(("layer", "spec", "options"), SAMPLE)
def test_layers_come_back(tmp_path, layer, spec, options):
    there_and_back(tmp_path, layer, specs(spec), functions=FUNCTIONS)


@pytest.mark.slow
@pytest.mark.parametrize(("layer", "spec", "options"), ROWS)
def test_every_layer_comes_back(tmp_path, layer, spec, options):
    there_and_back(tmp_path, layer, specs(spec), functions=FUNCTIONS)


@settings(max_examples=25)
@given(models())
def test_random_models_come_back(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("model")
    again, params, state = there_and_back(folder, model, SPEC, functions=FUNCTIONS)
    np.testing.assert_array_equal(
        again.predict(params, state, X), model.predict(params, state, X)
    )
    al.save(folder / "weights.npz", params, state)
    trees = tuple(al.load(folder / "weights.npz", model, SPEC))
    jax.tree.map(np.testing.assert_array_equal, trees, (params, state))


class Way(enum.Enum):
    UP = 1
    DOWN = 2


class Pair(NamedTuple):
    first: int
    second: object


@al.layer
def holding(value, *more, flag=True, **named):
    """A layer whose config is anything."""
    return None, lambda params, x: x


def half(x):
    return x / 2


VALUES = [
    None, True, 7, -(10**30), 0.1, float("inf"), float("-inf"), 1e-300, 2 + 3j, "text",
    b"\0bytes", ..., (1, (2.0, [3])), {"a": (1,), "b": None}, {1: "x", (2,): 3}, {1, 2},
    frozenset("ab"), slice(1, None, 2), range(3, 9, 2), np.dtype("float32"),
    jnp.dtype("bfloat16"), jnp.bfloat16, np.int8, int, jax.nn.gelu, jnp.tanh,
    jax.lax.Precision.HIGHEST, jax.checkpoint_policies.dots_saveable,
    functools.partial(jax.nn.leaky_relu, negative_slope=0.3), np.float64(0.5),
    np.arange(6).reshape(2, 3), jnp.ones((2, 2), jnp.bfloat16), al.initializers.normal(0.3),
    al.initializers.constant(np.array([1.0, 2.0])), al.spec("b 4*h 3", int, "h<=9"),
    al.spec((None, 3)), al.where("a", "b/*") - al.kind("dense"), Way.DOWN, Pair(1, (2,)),
    {"$": "layer"}, "$", half, operator.neg, al.dense(3), [al.dense(3), {"x": al.gru(2)}],
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_every_value_of_a_config_comes_back(tmp_path, value):
    model = al.serial(f=holding(value, value, flag=False, other=value))
    known = {"kinds": [holding], "functions": [Way, Pair, half, operator.neg]}
    again, *_ = there_and_back(tmp_path, model, SPEC, **known)
    config = again.children["f"].config
    assert type(config["value"]) is type(value)


def test_nan_comes_back(tmp_path):
    model = holding(float("nan"))
    al.save_model(tmp_path, model, {}, {})
    again, *_ = al.load_model(tmp_path, kinds=[holding])
    assert np.isnan(again.config["value"])


def test_slices_parts_names_and_replaced_children(tmp_path):
    whole = al.serial(a=al.dense(4), b=al.layer_norm(), c=al.dense(4), name="pipe")
    there_and_back(tmp_path, whole[1:], SPEC)
    al.save_model(tmp_path, whole.part("b"), *whole.init(KEY, SPEC))
    again, params, state = al.load_model(tmp_path)
    assert again == whole.part("b")
    assert again.predict(params, state, X).shape == X.shape
    attention = al.attention(2).with_children({"out": al.projection(use_bias=False)})
    again, *_ = there_and_back(tmp_path, attention >> jnp.tanh, al.spec("b t 4"))
    assert again.children["attention"].replaced == {"out"}
    there_and_back(tmp_path, al.lora(whole, "a", rank=2), SPEC)
    there_and_back(tmp_path, al.freeze(whole, al.kind("dense") - "c"), SPEC)


def test_parts_of_our_composites_come_back(tmp_path):
    """Their functions are axonlike's own, which no user names."""
    model = al.serial(inner=al.attention(2), bert=al.models.bert(**TINY))
    parts = [part for _, part in al.layers(model)]
    assert "wire" in {part.kind for part in parts}
    for part in parts:
        al.save_model(tmp_path, part, {}, {})
        assert al.load_model(tmp_path)[0] == part


TINY = {
    "vocab_size": 11, "max_length": 9, "features": 16, "hidden_features": 24,
    "num_layers": 2, "num_heads": 2,
}  # fmt: skip


def test_a_folder_holds_the_last_model_and_no_other_weights(tmp_path):
    for width in (3, 5):
        model = al.dense(width)
        al.save_model(tmp_path, model, *model.init(KEY, SPEC))
        assert al.load_model(tmp_path)[0] == model
        assert len(os.listdir(tmp_path)) == 2
    al.save_model(tmp_path, model, *model.init(KEY, SPEC), max_shard_bytes=30)
    assert al.load_model(tmp_path)[1]["kernel"].shape == (4, 5)
    al.save_model(tmp_path, model, *model.init(KEY, SPEC))
    assert len(os.listdir(tmp_path)) == 2


# --- what cannot be saved


def test_what_has_no_name_is_refused_with_its_path(tmp_path):
    model = al.serial(body=al.serial(f=al.dense(2), g=al.lift(lambda x: x)))
    with pytest.raises(
        ValueError, match=r"^save_model: body/g: function: <lambda test_"
    ):
        al.save_model(tmp_path / "m", model, {}, {})

    @al.layer
    def local():
        return None, lambda params, x: x

    with pytest.raises(
        ValueError, match="save_model: f: the kind 'local' is defined in"
    ):
        al.save_model(tmp_path / "m", al.serial(f=local()), {}, {})
    with pytest.raises(
        ValueError, match="save_model: f: value: object is nothing that"
    ):
        al.save_model(tmp_path / "m", al.serial(f=holding(object())), {}, {})
    assert not (tmp_path / "m").exists()


# --- what is in a folder is not trusted


def edited(folder, change):
    """Changes model.json, and its checksum with it."""
    file = folder / "model.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    del content["checksum"]
    content = change(content) or content
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    content["checksum"] = f"{zlib.crc32(text.encode()):08x}"
    file.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    model = al.dense(3) >> jax.nn.relu >> al.repeat(al.dense(3), 2)
    al.save_model(tmp_path, model, *model.init(KEY, SPEC))
    return tmp_path


def function(name):
    return {"$": "function", "name": name}


def layer(kind="axonlike.lift", **config):
    return {"$": "layer", "kind": kind, "config": config}


def partial(name, *args, **keywords):
    return {
        "$": "partial",
        "function": function(name),
        "args": args,
        "keywords": keywords,
    }


def deep(n):
    json = 1
    for _ in range(n):
        json = [json]
    return json


RELU = layer(function=function("jax.nn.relu"))
HOSTILE = [
    layer(function=function("os.system")),
    layer(function=function("builtins.eval")),
    layer(function=function("builtins.exec")),
    layer(function=function("builtins.__import__")),
    layer(function=function("builtins.open")),
    layer(function=function("jax.numpy.load")),
    layer(function=function("jax.numpy.save")),
    layer(function=function("jax.numpy.fromfile")),
    layer(function=function("jax.numpy.os.system")),
    layer(function=function("jax.pure_callback")),
    layer(function=function("jax.debug.callback")),
    layer(function=function("jax.nn.__builtins__")),
    layer(function=function("jax.nn.relu.__globals__")),
    layer(function=function("jax.nn")),
    layer(function=function("")),
    layer(function=function("axonlike.io.atomic.write_text")),
    layer(function=function("axonlike.values.imported")),
    layer(function=function("axonlike.layers.linear.jax")),
    layer(function=function("axonlike.layers.linear.cast")),
    layer(function=function("axonlike.models.families.pretrained")),
    layer(function=function("numpy.load")),
    layer(function=partial("os.system", "true")),
    layer(function=partial("jax.numpy.load", "x", allow_pickle=True)),
    layer(function=partial("functools.partial", "true")),
    layer(function={"$": "function", "name": ["os.system"]}),
    layer(function={"$": "enum", "class": "os", "name": "system"}),
    layer(function={"$": "enum", "class": "jax.lax.Precision", "name": "__class__"}),
    layer(function={"$": "record", "class": "subprocess.Popen", "fields": {}}),
    layer(function={"$": "initializer", "name": "__builtins__", "arguments": {}}),
    layer(function={"$": "initializer", "name": "Initializer", "arguments": {}}),
    layer(function={"$": "selector", "operation": "__class__", "parts": []}),
    layer(function={"$": "spec", "dims": ["__import__('os')"], "dtype": "float32",
                    "constraints": []}),
    layer(function={"$": "array", "home": "numpy", "dtype": "object", "shape": [1],
                    "base64": ""}),
    layer(function={"$": "array", "home": "numpy", "dtype": "int8", "shape": [2**62],
                    "base64": ""}),
    layer(function={"$": "dtype", "name": "O"}),
    layer(function={"$": "__reduce__"}),
    layer(function={"$": {"$": "layer"}}),
    layer(function={"$": "range", "items": ["a"]}),
    layer(function=5),
    layer("os.system", command="true"),
    layer("builtins.exec", source="1"),
    layer("axonlike.layer", function=function("jax.nn.relu")),
    layer("axonlike.Layer"),
    layer("axonlike.__class__"),
    layer("axonlike.values.imported", name="os.system"),
    layer("axonlike.values.sys.exit"),
    layer("axonlike.io.models.save_model"),
    layer("axonlike.nothing.at.all"),
    layer("axonlike"),
    layer("test_saved_models.holding", value=1),
    layer("axonlike.dense", features=3, __class__=1),
    layer("axonlike.dense", features=3, name="x"),
    layer("axonlike.dense"),
    layer("axonlike.dense", features={"$": "dict", "items": [[[], 1]]}),
    layer("axonlike.repeat", f=RELU, n=10**12, stacked=False),
    layer("axonlike.models.stacked_lstm", features=8, num_layers=10**12),
    layer("axonlike.models.resnet", widths=[8], depths=[10**12]),
    layer("axonlike.transpose", axes={"$": "range", "items": [0, 10**12, 1]}),
    {"$": "layer", "kind": "axonlike.dense", "config": []},
    {"$": "layer", "kind": "axonlike.dense", "config": {"features": 3}, "name": 5},
    {"$": "layer", "kind": "axonlike.dense", "config": {"features": 3},
     "children": {"f": layer(function=function("jax.nn.relu"))}},
    "axonlike.dense(3)",
    None,
    [],
    deep(800),
]  # fmt: skip


@pytest.mark.parametrize("model", HOSTILE, ids=lambda model: str(model)[:60])
def test_a_model_that_names_what_it_may_not_is_refused(folder, model):
    edited(folder, lambda content: {**content, "model": model})
    with pytest.raises(ValueError, match=r"^load_model: .*model.json: model"):
        al.load_model(folder)


def test_the_error_says_where_and_what_to_do(folder):
    model = layer("axonlike.serial", layers=[layer("mine.block"), 5])
    edited(folder, lambda content: {**content, "model": model})
    with pytest.raises(ValueError, match=r"mine\.block") as caught:
        al.load_model(folder, kinds={"mine.blok": al.dense})
    assert str(caught.value) == (
        f"load_model: {folder / 'model.json'}: model/config/layers/0: the kind "
        "'mine.block' is not known. Nearest: 'mine.blok'. "
        "If it is yours, pass kinds=[its factory]."
    )
    model = layer(function=function("mine.half"))
    edited(folder, lambda content: {**content, "model": model})
    with pytest.raises(ValueError, match="half") as caught:
        al.load_model(folder)
    assert str(caught.value) == (
        f"load_model: {folder / 'model.json'}: model/config/function: the function "
        "'mine.half' is not among those that a file may name. "
        "If you trust it, pass functions=[it]."
    )
    assert al.load_model(folder, functions={"mine.half": half})[0] == al.lift(half)


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "../weights.safetensors"},
        {"weights": "/etc/passwd"},
        {"weights": 5},
        {"format": "other"},
        {"version": 2},
        {"params": {"a": "float32[10]"}},
        {"params": {"a": "object[1]"}},
        {"params": {"a": 5}},
        {"params": None},
        {"state": {"#list": []}},
        {"params": {"a": "float32[" + "1" * 99}},
        {"params": {"a": "float32[" + "1" * 9999 + "]"}},
        {"params": {"*": {"a": "float32[]"}}},
        {"params": {"*": {"a": "float32[999999999999]"}}},
        {"params": deep(800)},
        {"state": {"a": {"#tuple": ["float32[2]"]}}},
    ],
    ids=str,
)
def test_what_does_not_fit_the_weights_is_refused(folder, change):
    edited(folder, lambda content: {**content, **change})
    with pytest.raises(ValueError, match="load"):
        al.load_model(folder)


def test_nothing_of_others_is_replaced_or_cleared_away(folder):
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "model.json").write_text("{}", encoding="utf-8")
    with pytest.raises(FileExistsError, match="no model of axonlike"):
        al.save_model(elsewhere, al.dense(1), {}, {})
    assert (elsewhere / "model.json").read_text(encoding="utf-8") == "{}"
    other = folder / "thesis.safetensors"
    other.touch()
    edited(folder, lambda content: {**content, "weights": other.name})
    al.save_model(folder, al.dense(1), {}, {})
    assert other.exists()


def test_what_a_file_may_name_is_a_list(folder):
    for one in (half, "half"):
        with pytest.raises(TypeError, match=r"expected a list .* got .*half"):
            al.load_model(folder, functions=one)


def test_trees_come_back_as_they_were_or_are_refused(tmp_path):
    class Pair(NamedTuple):
        x: Any

    model, state = al.dense(1), {"a": None, "b": (), "c": [jnp.ones(2)]}
    al.save_model(tmp_path / "m", model, {}, state)
    _, _, again = al.load_model(tmp_path / "m")
    assert again["a"] is None
    assert (again["b"], type(again["c"])) == ((), list)
    for odd in ({"a": Pair(jnp.ones(1))}, {"a": {0: jnp.ones(1)}}, {"a": 1.0}):
        with pytest.raises(TypeError, match=r"save_model: a is .* does not come back"):
            al.save_model(tmp_path / "x", model, {}, odd)
    assert not (tmp_path / "x").exists()


def test_a_folder_without_a_model_or_with_a_changed_one(folder, tmp_path):
    with pytest.raises(
        FileNotFoundError, match="Pass the folder that save_model wrote"
    ):
        al.load_model(tmp_path / "none")
    file = folder / "model.json"
    file.write_text(
        file.read_text(encoding="utf-8").replace("3", "4", 1), encoding="utf-8"
    )
    with pytest.raises(ValueError, match=r"model.json: it is not what was written"):
        al.load_model(folder)
    file.write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(ValueError, match=r"model.json: it is not readable"):
        al.load_model(folder)


def test_weights_that_are_gone(folder):
    weights = next(folder.glob("*.safetensors"))
    weights.unlink()
    with pytest.raises(FileNotFoundError):
        al.load_model(folder)
