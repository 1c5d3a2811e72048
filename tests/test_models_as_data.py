"""A model is a value: equal, hashed, shown, pickled and compared as one."""

import pickle
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import zoo

import axonlike as al


def doubled(x):
    return x * 2


MODELS = {name: build()[0] for name, build in zoo.MODELS.items()} | {
    "lora": al.lora(zoo.gpt()[0], "blocks/*/attn/{query,value}", rank=2),
    "frozen": al.freeze(zoo.resnet()[0], "block*"),
    "policy": al.precision(zoo.vit()[0], compute=jnp.bfloat16),
    "slice": zoo.convnet()[0][:3],
    "adapter": al.adapter(al.dense(8), 2),
    "weight_norm": al.weight_norm(al.dense(8)) >> jax.nn.relu,
    "vmapped": al.vmap(al.lstm(4), in_axes=1),
    "replaced": al.attention(2).with_children({"out": al.lift(doubled)}),
}
NAMES = {"al": al, "jax": jax, "jnp": jnp, "zoo": zoo, __name__: sys.modules[__name__]}


def test_there_are_twenty():
    assert len(MODELS) == 20


@pytest.mark.parametrize("name", MODELS)
def test_pickle_and_repr_make_an_equal_model(name):
    model = MODELS[name]
    assert pickle.loads(pickle.dumps(model)) == model
    assert eval(repr(model), NAMES) == model
    assert hash(eval(repr(model), NAMES)) == hash(model)
    assert al.diff(model, eval(repr(model), NAMES)) == []


def test_hashes_are_the_same_in_another_process():
    code = (
        "import test_models_as_data as t; "
        "print(*(hash(m) for m in t.MODELS.values()), sep=',')"
    )
    made = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert made.stdout.strip() == ",".join(str(hash(m)) for m in MODELS.values())


def test_no_two_are_equal():
    models = list(MODELS.values())
    assert len(set(models)) == len(models)
    assert len({hash(model) for model in models}) == len(models)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("mlp", "dense_1"),
        ("gpt", "blocks/*/mlp/dense"),
        ("unet", "middle/conv"),
        ("two_towers", "heads/rating"),
    ],
)
def test_diff_lists_exactly_the_edited_path(name, path):
    model, spec = zoo.MODELS[name]()
    params, state = model.init(jax.random.key(0), spec)
    (old,) = [layer for at, layer in al.layers(model, path)]
    other = al.dense if old.kind == "dense" else al.conv
    size = (old.config["features"],) + ((3,) if old.kind == "conv" else ())
    new, _, _ = al.replace(
        model, params, state, path, other(*size, use_bias=False), key=jax.random.key(1)
    )
    assert [change.path for change in al.diff(model, new)] == [path]
