"""Weights of other libraries: conventions, rules, strictness, memory."""

import json
import os
import re
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from by_transformers import of_torch
from hypothesis import given
from hypothesis import strategies as st
from parity import channels_first, channels_last, normal, reference
from safetensors.numpy import load_file, save_file

import axonlike as al
from axonlike.io.axes import axes
from axonlike.io.links import Link, Slot

X = al.spec("b 3")


def two_layers(**options):
    return al.serial(body=al.dense(4, **options), head=al.dense(2))


def tensors(**changes):
    """A state dict for two layers."""
    found = {
        "fc1.weight": normal(0, 4, 3),
        "fc1.bias": normal(1, 4),
        "fc2.weight": normal(2, 2, 4),
        "fc2.bias": normal(3, 2),
    }
    found |= {name.replace("__", "."): value for name, value in changes.items()}
    return {name: value for name, value in found.items() if value is not None}


NAMES = al.mapping({"fc1": "body", "fc2": "head"})


def refused(message, function, *args, **options):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        function(*args, **options)


# --- conventions, held to PyTorch

KINDS = {
    "dense": (lambda: al.dense(4), lambda nn: nn.Linear(3, 4), (2, 3)),
    "dense in heads": (lambda: al.dense((2, 3)), lambda nn: nn.Linear(4, 6), (2, 4)),
    "dense of heads": (
        lambda: al.serial(al.reshape(2, 3), al.dense(4, axis=(-2, -1))),
        lambda nn: nn.Linear(6, 4),
        (2, 6),
    ),
    "conv of 1": (
        lambda: al.conv(4, (3,), padding="VALID"),
        lambda nn: nn.Conv1d(3, 4, 3),
        (2, 7, 3),
    ),
    "conv of 2 in groups": (
        lambda: al.conv(6, (3, 2), padding="VALID", feature_group_count=2),
        lambda nn: nn.Conv2d(4, 6, (3, 2), groups=2),
        (2, 6, 5, 4),
    ),
    "conv of 3": (
        lambda: al.conv(2, (2, 2, 2), padding="VALID", use_bias=False),
        lambda nn: nn.Conv3d(3, 2, 2, bias=False),
        (1, 3, 4, 3, 3),
    ),
    "depthwise": (
        lambda: al.depthwise_conv((3, 3), 2, padding="VALID"),
        lambda nn: nn.Conv2d(3, 6, 3, groups=3),
        (2, 5, 5, 3),
    ),
    "conv_transpose": (
        lambda: al.conv_transpose(4, (3, 2), (2, 2), padding="VALID"),
        lambda nn: nn.ConvTranspose2d(3, 4, (3, 2), (2, 2)),
        (2, 4, 3, 3),
    ),
    "conv_transpose of a kernel turned": (
        lambda: al.conv_transpose(
            4, (3,), (2,), padding="VALID", transpose_kernel=True
        ),
        lambda nn: nn.ConvTranspose1d(3, 4, 3, 2),
        (2, 4, 3),
    ),
    "conv_transpose in groups": (
        lambda: al.conv_transpose(
            4,
            (3, 3),
            (2, 2),
            padding="VALID",
            transpose_kernel=True,
            feature_group_count=2,
        ),
        lambda nn: nn.ConvTranspose2d(6, 4, 3, 2, groups=2),
        (2, 4, 3, 6),
    ),
    "batch_norm": (al.batch_norm, lambda nn: nn.BatchNorm2d(3), (2, 4, 4, 3)),
    "group_norm": (
        lambda: al.group_norm(2, epsilon=1e-5),
        lambda nn: nn.GroupNorm(2, 4),
        (2, 3, 3, 4),
    ),
    "instance_norm": (
        lambda: al.instance_norm(epsilon=1e-5),
        lambda nn: nn.InstanceNorm2d(3, affine=True),
        (2, 4, 4, 3),
    ),
    "layer_norm": (
        lambda: al.layer_norm(epsilon=1e-5),
        lambda nn: nn.LayerNorm(4),
        (2, 4),
    ),
    "rms_norm": (
        lambda: al.rms_norm(epsilon=1e-6),
        lambda nn: nn.RMSNorm(4, eps=1e-6),
        (2, 4),
    ),
    "prelu": (al.prelu, lambda nn: nn.PReLU(), (2, 3)),
    "prelu of channels": (lambda: al.prelu(-1), lambda nn: nn.PReLU(3), (2, 3)),
    "glu": (
        lambda: al.glu(4),
        lambda nn: nn.Sequential(nn.Linear(3, 8), nn.GLU()),
        (2, 3),
    ),
    "lstm": (
        lambda: al.lstm(4),
        lambda nn: nn.LSTM(3, 4, batch_first=True),
        (2, 5, 3),
    ),
    "gru": (lambda: al.gru(4), lambda nn: nn.GRU(3, 4, batch_first=True), (2, 5, 3)),
    "rnn": (lambda: al.rnn(4), lambda nn: nn.RNN(3, 4, batch_first=True), (2, 5, 3)),
    "bilinear": (
        lambda: al.bilinear(4),
        lambda nn: nn.Bilinear(3, 2, 4),
        (2, 3),
    ),
    "patch_embedding": (
        lambda: al.patch_embedding(4, 2, flatten=False),
        lambda nn: nn.Conv2d(3, 4, 2, 2),
        (2, 4, 6, 3),
    ),
}
OF_TWO = {"glu": "0", "lstm": "*_l0", "gru": "*_l0", "rnn": "*_l0"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_has_the_weights_of_its_module(kind, tmp_path):
    build, make, shape = KINDS[kind]
    x = normal(0, *shape)
    if kind == "bilinear":
        x = (normal(0, 2, 3), normal(1, 2, 2))
    image = len(shape) > 3 or kind.startswith("conv")
    given = channels_first(x) if image else x
    answer = dict(reference(f"mapping/{kind}", partial(of_torch, make, given)))
    y = answer.pop("y")
    wanted = channels_last(y) if image else y
    theirs = {name[2:]: value for name, value in answer.items()}
    model = al.serial(layer=build())
    path = "layer/dense" if kind == "dense of heads" else "layer"
    names = al.mapping({OF_TWO.get(kind, ""): path})
    params, state = names.load(theirs, model, x)
    found = jax.jit(model.predict)(params, state, x)
    np.testing.assert_allclose(
        found.reshape(wanted.shape), wanted, rtol=2e-6, atol=2e-6
    )
    names.save(tmp_path / "out.safetensors", model, params, state)
    saved = load_file(tmp_path / "out.safetensors")
    assert {k: v.shape for k, v in saved.items()} == {
        k: v.shape for k, v in theirs.items()
    }
    merged = [k for k in theirs if kind in ("lstm", "gru", "rnn") and "bias" in k]
    assert all(
        saved[k].tobytes() == theirs[k].tobytes() for k in theirs.keys() - merged
    )
    again = names.load(saved, model, x)[0]
    jax.tree.map(np.testing.assert_array_equal, again, params)
    names.save(tmp_path / "out.safetensors", model, params, state, like=theirs)
    saved = load_file(tmp_path / "out.safetensors")
    assert all(saved[k].tobytes() == theirs[k].tobytes() for k in theirs)


def test_changed_biases_are_not_taken_from_the_file_they_were_in():
    model = al.serial(layer=al.lstm(2))
    names = al.mapping({"*_l0": "layer"})
    sizes = {"weight_ih_l0": (8, 3), "weight_hh_l0": (8, 2)}
    sizes |= {"bias_ih_l0": (8,), "bias_hh_l0": (8,)}
    theirs = {name: normal(i, *s) for i, (name, s) in enumerate(sizes.items())}
    params, state = names.load(theirs, model, al.spec("b t 3"))
    params["layer"]["bias"] = params["layer"]["bias"] + 1
    items = {}

    def keep(path, arrays, shared, metadata):
        items.update({item.path: item.read() for item in arrays})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("axonlike.io.safetensors.write", keep)
        names.save("any.safetensors", model, params, state, like=theirs)
    np.testing.assert_array_equal(items["bias_ih_l0"], params["layer"]["bias"])
    assert not items["bias_hh_l0"].any()


def test_a_gru_without_a_reset_after_has_no_counterpart():
    model = al.serial(layer=al.gru(2, reset_after=False))
    message = (
        "mapping: gru_cell(features=2, reset_after=False) has no counterpart in PyTorch, "
        "because of reset_after=False. Build it with reset_after=True."
    )
    refused(message, al.mapping({"*": "layer"}).load, {}, model, al.spec("b t 3"))


def test_groups_transposed_need_the_kernel_stored_as_theirs():
    model = al.serial(layer=al.conv_transpose(4, 3, feature_group_count=2))
    with pytest.raises(ValueError, match="Build it with transpose_kernel=True"):
        al.mapping({"a": "layer"}).load({}, model, al.spec("b 8 4"))


def test_conventions_can_be_changed_and_added():
    @al.layer
    def scaled():
        def init(key, x):
            return {"gain": jnp.ones((x.shape[-1], 2))}

        def apply(params, x):
            return x @ params["gain"]

        return init, apply

    gain = normal(0, 2, 1, 3)
    names = al.mapping(
        {"s": "scaled", "d": "dense"},
        conventions={
            "scaled": {"g": ("gain", "out 1 in -> in out")},
            "dense": {"w": "kernel", "b": "bias"},
        },
    )
    theirs = {"s.g": gain, "d.w": normal(1, 2, 4), "d.b": normal(2, 4)}
    params, _ = names.load(theirs, scaled() >> al.dense(4), X)
    np.testing.assert_array_equal(params["scaled"]["gain"], gain[:, 0].T)
    np.testing.assert_array_equal(params["dense"]["kernel"], theirs["d.w"])


# --- axes and parts


@given(st.permutations(["a", "b", "..."]), st.permutations(["a", "b", "..."]))
def test_axes_go_there_and_back(theirs, ours):
    how = axes(" ".join([*theirs[:1], "1", *theirs[1:]]) + " -> " + " ".join(ours))
    sizes = {"a": 2, "b": 3, "...": (4, 5)}
    shape = [n for name in ours for n in np.atleast_1d(sizes[name]).tolist()]
    x = normal(0, *shape)
    there = how.to_theirs(x)
    assert there.shape == how.shape(tuple(shape))
    back = np.empty_like(x)
    how.to_theirs(back)[...] = there
    np.testing.assert_array_equal(back, x)


@pytest.mark.parametrize(
    "text",
    ["out in", "a b -> a", "a a -> a a", "a -> a 1", "a b -> b c", "a -> b -> a"],
)
def test_axes_that_do_not_agree(text):
    with pytest.raises(ValueError, match="expected axes such as 'out in -> in out'"):
        al.mapping({}, conventions={"dense": {"w": ("kernel", text)}})


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.booleans(),
)
def test_parts_of_any_lengths_are_cut_and_joined(ours, theirs, turned):
    extra = sum(ours) - sum(theirs)
    ours, theirs = ([*ours, -extra], theirs) if extra < 0 else (ours, [*theirs, extra])
    theirs = [n for n in theirs if n]
    how = axes("a b -> b a" if turned else "a b -> a b")
    whole = normal(0, sum(ours), 2)
    shapes = [(2, n) if turned else (n, 2) for n in ours]
    kind = np.dtype("float32")
    slots = [Slot(0, str(i), (), (), s, kind, s) for i, s in enumerate(shapes)]
    names = tuple(map(str, range(len(theirs))))
    link = Link(names, tuple(slots), how, 0, tuple(theirs))
    parts = dict(zip(names, np.split(whole, np.cumsum(theirs)[:-1]), strict=True))
    assert {k: v[0] for k, v in link.expected.items()} == {
        k: v.shape for k, v in parts.items()
    }
    arrays = [np.empty(shape, np.float32) for shape in shapes]
    link.fill(arrays, parts.__getitem__)
    joined = np.concatenate([a.T if turned else a for a in arrays])
    np.testing.assert_array_equal(joined, whole)
    for name, part in parts.items():
        back = link.tensor(name, lambda slot: arrays[int(slot.stored)])
        np.testing.assert_array_equal(back, part)


def test_fused_tensors_of_unequal_sizes(tmp_path):
    model = al.serial(qkv=al.dense(8))
    names = al.mapping({al.fuse(["q", "k", "v"], axis=0, sizes=(2, 1, 1)): "qkv"})
    theirs = {f"{n}.weight": normal(i, s, 3) for i, (n, s) in enumerate(
        [("q", 4), ("k", 2), ("v", 2)])}  # fmt: skip
    theirs |= {f"{n[0]}.bias": normal(9, len(w)) for n, w in theirs.items()}
    params, state = names.load(theirs, model, X)
    whole = np.concatenate([theirs[f"{n}.weight"] for n in "qkv"])
    np.testing.assert_array_equal(params["qkv"]["kernel"], whole.T)
    names.save(tmp_path / "out.safetensors", model, params, state)
    saved = load_file(tmp_path / "out.safetensors")
    assert all(saved[k].tobytes() == v.tobytes() for k, v in theirs.items())


def test_a_split_gives_grouped_queries_keys_and_values_their_parts():
    model = al.serial(attn=al.attention(4, num_kv_heads=2, use_bias=False))
    parts = ["attn/query", "attn/key", "attn/value"]
    names = al.mapping({"qkv": al.split(parts, axis=0), "o": "attn/out"})
    theirs = {"qkv.weight": normal(0, 16, 8), "o.weight": normal(1, 8, 8)}
    params, _ = names.load(theirs, model, al.spec("b t 8"))
    np.testing.assert_array_equal(
        params["attn"]["key"]["kernel"], theirs["qkv.weight"][8:12].T
    )


# --- ties


def tied_model(**options):
    model = al.serial(
        emb=al.embedding(5, 4), body=al.dense(4), head=al.dense(5, use_bias=False)
    )
    return al.tie(model, {"head/kernel": "emb/embedding"}, transpose=True)


def tied_tensors():
    found = {"wte.weight": normal(0, 5, 4), "fc.weight": normal(1, 4, 4)}
    return {**found, "fc.bias": normal(2, 4)}


@pytest.mark.parametrize("head", ["head", al.tied("emb")])
def test_a_tied_tensor_may_be_there_or_not_and_is_not_written(head, tmp_path):
    names = al.mapping({"wte": "emb", "fc": "body", "lm_head": head})
    model, spec = tied_model(), al.spec("b t", int)
    without = tied_tensors()
    without["wte.weight"][0, 0] = np.nan  # equal to itself here
    both = {**without, "lm_head.weight": without["wte.weight"].copy()}
    for theirs in (without, both):
        params, state = names.load(theirs, model, spec)
        assert list(params) == ["emb", "body"]
        names.save(tmp_path / "out.safetensors", model, params, state)
        assert load_file(tmp_path / "out.safetensors").keys() == without.keys()
    names.save(tmp_path / "out.safetensors", model, params, state, like=both)
    assert load_file(tmp_path / "out.safetensors").keys() == both.keys()


def test_a_tied_tensor_is_written_as_it_is_now(tmp_path):
    names = al.mapping({"wte": "emb", "fc": "body", "lm_head": "head"})
    both = {**tied_tensors(), "lm_head.weight": tied_tensors()["wte.weight"]}
    params, state = names.load(both, tied_model(), al.spec("b t", int))
    params["emb"]["embedding"] = params["emb"]["embedding"] + 1
    names.save(tmp_path, tied_model(), params, state, like=both)
    saved = load_file(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(saved["lm_head.weight"], saved["wte.weight"])
    np.testing.assert_array_equal(saved["wte.weight"], params["emb"]["embedding"])


def test_a_tied_tensor_with_other_values_is_refused():
    names = al.mapping({"wte": "emb", "fc": "body", "lm_head": "head"})
    theirs = {**tied_tensors(), "lm_head.weight": normal(7, 5, 4)}
    message = (
        "mapping: load: the files and the model differ in 1 place:\n"
        "  'emb/embedding' is tied to 'lm_head.weight', which has other values. "
        "Build the model without the tie."
    )
    refused(message, names.load, theirs, tied_model(), al.spec("b t", int))


def test_a_tied_tensor_the_other_way_round():
    names = al.mapping(
        {"wte": "emb", "fc": "body", "out": al.tied("emb", transpose=True)}
    )
    theirs = tied_tensors()
    theirs["out.weight"] = np.ascontiguousarray(theirs["wte.weight"].T)
    names.load(theirs, tied_model(), al.spec("b t", int))


# --- strict


def test_every_difference_is_listed_with_nearest_names():
    theirs = tensors(
        fc1__weight=normal(0, 4, 2),
        fc1__bias=np.zeros(4, np.float16),
        fc2__bias=None,
        fc2__bais=normal(3, 2),
        extra=normal(4, 1),
    )
    message = (
        "mapping: load: the files and the model differ in 5 places:\n"
        "  'body/bias': 'fc1.bias' should be float32[4], got float16[4]. Pass "
        "dtype='float32' to convert it, or dtype='file' to keep it.\n"
        "  'body/kernel': 'fc1.weight' should be float32[4, 3], got float32[4, 2].\n"
        "  'extra', float32[1], is for nothing in the model. Known: 'fc1.bias', "
        "'fc1.weight', 'fc2.bias', 'fc2.weight'.\n"
        "  'fc2.bais', float32[2], is for nothing in the model. Nearest: 'fc2.bias', "
        "'fc1.bias'.\n"
        "  'head/bias': no tensor 'fc2.bias', float32[2]. Nearest: 'fc2.bais', "
        "'fc1.bias'."
    )
    refused(message, NAMES.load, theirs, two_layers(), X)
    refused(message, NAMES.check, theirs, two_layers(), X)
    lines = NAMES.check(theirs, two_layers(), X, strict=False)
    assert lines == [line[2:] for line in message.split("\n")[1:]]


def test_a_layer_in_no_rule_is_told():
    names = al.mapping({"fc1": "body"})
    theirs = {k: v for k, v in tensors().items() if k.startswith("fc1")}
    message = (
        "mapping: load: the files and the model differ in 2 places:\n"
        "  'head/bias', of dense(features=2), is in no rule. Map its layer.\n"
        "  'head/kernel', of dense(features=2), is in no rule. Map its layer."
    )
    refused(message, names.load, theirs, two_layers(), X)


def test_one_array_is_not_of_two_tensors():
    names = al.mapping({"a": "body", "b": "*ody", "fc1": "body"})
    message = (
        "mapping: 'body/kernel' would be of 'a.weight' and of 'fc1.weight'. Take one of "
        "the rules out, or write tied(...)."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message[:30])}") as caught:
        names.load(tensors(), two_layers(), X)
    assert str(caught.value) in (
        message,
        message.replace("kernel", "bias").replace("weight", "bias"),
    )


def test_a_rule_for_one_array_goes_before_that_of_its_layer():
    names = al.mapping({"fc1": "body", "b": "body/bias", "fc2": "head"})
    theirs = tensors(fc1__bias=None, b=normal(5, 4))
    params, _ = names.load(theirs, two_layers(), X)
    np.testing.assert_array_equal(params["body"]["bias"], theirs["b"])


def test_half_a_checkpoint_is_completed_by_init():
    theirs = tensors(fc2__weight=None, fc2__bias=None, other=normal(0, 1))
    with pytest.raises(TypeError, match="Pass key="):
        NAMES.load(theirs, two_layers(), X, strict=False)
    key = jax.random.key(3)
    params, _ = NAMES.load(theirs, two_layers(), X, strict=False, key=key)
    fresh, _ = two_layers().init(key, X)
    np.testing.assert_array_equal(params["head"]["kernel"], fresh["head"]["kernel"])
    np.testing.assert_array_equal(params["body"]["kernel"], theirs["fc1.weight"].T)
    wrong = {**theirs, "fc1.weight": normal(0, 4, 2)}
    with pytest.raises(ValueError, match="differ in 1 place"):
        NAMES.load(wrong, two_layers(), X, strict=False, key=key)


def test_some_of_the_stacked_copies_are_not_completed():
    model = al.serial(blocks=al.dense(3) ** 3)
    names = al.mapping({"l.{n}": "blocks/{n}"})
    theirs = {"l.0.weight": normal(0, 3, 3), "l.1.weight": normal(1, 3, 3)}
    message = (
        "mapping: the files have 2 of the 3 copies in 'blocks/*/kernel'. Load them into a "
        "model with stacked=False."
    )
    options = {"strict": False, "key": jax.random.key(0)}
    refused(message, names.load, theirs, model, X, **options)
    model = al.serial(blocks=al.repeat(al.dense(3), 3, stacked=False))
    params, _ = names.load(theirs, model, X, **options)
    np.testing.assert_array_equal(
        params["blocks"]["1"]["kernel"], theirs["l.1.weight"].T
    )


def test_names_that_are_ignored_and_a_prefix_that_may_lack():
    names = al.mapping(
        {"net.fc1": "body", "net.fc2": "head"}, prefix="net.", ignore="*.num_steps"
    )
    plain = {**tensors(), "fc1.num_steps": normal(0, 1)}
    prefixed = {f"net.{name}": value for name, value in plain.items()}
    a, _ = names.load(plain, two_layers(), X)
    b, _ = names.load(prefixed, two_layers(), X)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_what_is_no_mapping():
    with pytest.raises(ValueError, match="every name of a rule needs the same fields"):
        al.mapping({"h.{n}.fc": "blocks/0/fc"})
    with pytest.raises(ValueError, match="fuse and split of one rule need one axis"):
        al.mapping({al.fuse(["a", "b"], axis=0): al.split(["c", "d"], axis=1)})
    with pytest.raises(TypeError, match=r"mapping: expected a dict, .*got list"):
        al.mapping([("a", "b")])
    with pytest.raises(TypeError, match=r"expected {name of theirs: path of ours}"):
        al.mapping({"a": 3})
    with pytest.raises(TypeError, match="split: expected paths of ours, got 'ab'"):
        al.split("ab", axis=0)
    with pytest.raises(TypeError, match="fuse: axis must be an int, got None"):
        al.fuse(["a"], axis=None)
    with pytest.raises(ValueError, match="fuse: expected 2 positive sizes"):
        al.fuse(["a", "b"], axis=0, sizes=(1,))
    with pytest.raises(TypeError, match="conventions of 'dense': expected the name"):
        al.mapping({}, conventions={"dense": {"w": 3}})
    names = al.mapping({al.fuse(["a", "b", "c"], axis=0): "body", "fc2": "head"})
    with pytest.raises(ValueError, match="4 cannot be cut in proportion"):
        names.load(tensors(), two_layers(), X)
    names = al.mapping({"a": al.split(["body", "had"], axis=0)})
    with pytest.raises(ValueError, match=r"which the model has not\. Nearest: 'head'"):
        names.load(tensors(), two_layers(), X)


def test_tensors_that_nobody_knows_are_not_saved(tmp_path):
    params, state = NAMES.load(tensors(), two_layers(), X)
    path = tmp_path / "out.safetensors"
    like = {**tensors(), "fc2.scale": normal(0, 1)}
    message = (
        "mapping: save: like= and the model differ in 1 place:\n"
        "  'fc2.scale', float32[1], is for nothing in the model. Known: 'fc1.bias', "
        "'fc1.weight', 'fc2.bias', 'fc2.weight'."
    )
    refused(message, NAMES.save, path, two_layers(), params, state, like=like)
    assert not path.exists()


WRONG = {
    "mapping of prefix": (
        lambda: al.mapping({}, prefix=3),
        "mapping: prefix: expected letters that are text, got 3.",
    ),
    "mapping of ignore": (
        lambda: al.mapping({}, ignore=[3]),
        "mapping: ignore: expected globs, got [3].",
    ),
    "mapping of conventions": (
        lambda: al.mapping({}, conventions=["dense"]),
        "mapping: conventions: expected a dict, {kind of layer: {theirs: ours}}, got "
        "[str].",
    ),
    "mapping of a convention": (
        lambda: al.mapping({}, conventions={"dense": 3}),
        "mapping: conventions of 'dense': expected a dict, {theirs: ours}, got int.",
    ),
    "mapping of older": (
        lambda: al.mapping({}, older="gamma"),
        "mapping: older: expected a dict, {then: now}, got str.",
    ),
    "mapping of older names": (
        lambda: al.mapping({}, older={"gamma": 3}),
        "mapping: older: expected names that are text, got 3.",
    ),
    "split": (
        lambda: al.split(3, axis=0),
        "split: expected paths of ours, got 3.",
    ),
    "fuse": (
        lambda: al.fuse(None, axis=0),
        "fuse: expected names of theirs, got None.",
    ),
    "tied": (
        lambda: al.tied("a", transpose="yes"),
        "tied: transpose must be True or False, got 'yes'.",
    ),
    "load of files": (
        lambda: NAMES.load({1: normal(0, 1)}, two_layers(), X),
        "mapping: files: expected names that are text, got 1.",
    ),
    "load of masked arrays": (
        lambda: NAMES.load(
            tensors(fc2__bias=np.ma.masked_array(normal(0, 2), [0, 1])), two_layers(), X
        ),
        "mapping: 'fc2.bias' is MaskedArray float32, not an array of numbers.",
    ),
    "load of model": (
        lambda: NAMES.load(tensors(), None, X),
        "mapping: expected a layer, the model, got None.",
    ),
    "load of key": (
        lambda: NAMES.load(tensors(), two_layers(), X, key=3),
        "key: expected one jax.random.key(seed), got int.",
    ),
    "load of strict": (
        lambda: NAMES.load(tensors(), two_layers(), X, strict="no"),
        "mapping: strict must be True or False, got 'no'.",
    ),
    "check of strict": (
        lambda: NAMES.check(tensors(), two_layers(), X, strict=None),
        "mapping: strict must be True or False, got None.",
    ),
    "load of shardings": (
        lambda: NAMES.load(tensors(), two_layers(), X, shardings="x"),
        "shardings: expected a dict, {selector: PartitionSpec or Sharding}, got str.",
    ),
    "check of model": (
        lambda: NAMES.check(tensors(), X, two_layers()),
        "mapping: expected a layer, the model, got float32[b, 3].",
    ),
    "save of path": (
        lambda: NAMES.save(None, two_layers(), {}, {}),
        "mapping: expected a path, got None.",
    ),
    "save of model": (
        lambda: NAMES.save("x.safetensors", {}, {}, {}),
        "mapping: expected a layer, the model, got {}.",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_given_in_a_wrong_place_is_told(case):
    call, message = WRONG[case]
    with pytest.raises(TypeError) as caught:
        call()
    assert str(caught.value) == message


def test_values_that_are_wrong_are_told():
    for sizes in (3, "ab"):
        message = f"fuse: expected 2 positive sizes, one for each name, got {sizes!r}."
        refused(message, al.fuse, ["a", "b"], axis=0, sizes=sizes)
    for dtype in (3, {}, int):
        with pytest.raises(ValueError, match="or one of floating-point numbers, got"):
            NAMES.load(tensors(), two_layers(), X, dtype=dtype)
    message = "mapping: save: 'model.npz' is no folder. Call it .safetensors."
    params, state = NAMES.load(tensors(), two_layers(), X)
    refused(message, NAMES.save, "model.npz", two_layers(), params, state)


def test_what_has_no_values_is_not_saved(tmp_path):
    model = two_layers()
    shapes = jax.eval_shape(lambda key: model.init(key, X), jax.random.key(0))
    with pytest.raises(TypeError, match="has no values, only a shape"):
        NAMES.save(tmp_path / "m.safetensors", model, *shapes)


def test_params_that_are_not_the_models_are_not_saved(tmp_path):
    params, state = NAMES.load(tensors(), two_layers(), X)
    path = tmp_path / "out.safetensors"
    extra = {**params, "more": {"kernel": jnp.ones(2)}}
    message = (
        "mapping: save: the mapping and the model differ in 1 place:\n"
        "  'more/kernel', of an array of no layer, is in no rule. Map the array itself, "
        "or pass conventions=."
    )
    refused(message, NAMES.save, path, two_layers(), extra, state)
    message = (
        "mapping: save: the mapping and the model differ in 1 place:\n"
        "  'head' has no 'kernel' in params or state."
    )
    refused(message, NAMES.save, path, two_layers(), {"body": params["body"]}, state)
    model = al.serial(n=al.batch_norm())
    params, _ = model.init(jax.random.key(0), X)
    with pytest.raises(ValueError, match="'n' has no 'mean'"):
        al.mapping({"n": "n"}).save(path, model, params, {})
    assert not path.exists()


# --- dtypes


def test_weights_are_not_cut_to_ints():
    for dtype in ("int8", "bool", "junk"):
        with pytest.raises(ValueError, match=f"floating-point numbers, got '{dtype}'"):
            NAMES.load(tensors(), two_layers(), X, dtype=dtype)


def test_numbers_whose_bytes_are_in_the_other_order(tmp_path):
    wanted, _ = NAMES.load(tensors(), two_layers(), X)
    swapped = {k: v.astype(v.dtype.newbyteorder()) for k, v in tensors().items()}
    params, state = NAMES.load(swapped, two_layers(), X)
    jax.tree.map(np.testing.assert_array_equal, params, wanted)
    more = al.mapping({"fc1": "body", "fc2": "head"}, ignore="more")
    like = swapped | {"more": swapped["fc2.bias"]}
    more.save(tmp_path, two_layers(), params, state, like=like)
    again = load_file(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(again["more"], tensors()["fc2.bias"])


def test_dtypes_are_kept_or_converted_as_asked(tmp_path):
    half = {k: v.astype(ml_dtypes.bfloat16) for k, v in tensors().items()}
    with pytest.raises(ValueError, match="differ in 4 places"):
        NAMES.load(half, two_layers(), X)
    params, state = NAMES.load(half, two_layers(), X, dtype="file")
    assert {p.dtype for _, p in al.paths(params)} == {jnp.dtype("bfloat16")}
    NAMES.save(tmp_path / "out.safetensors", two_layers(), params, state)
    saved = load_file(tmp_path / "out.safetensors")
    assert all(saved[k].tobytes() == v.tobytes() for k, v in half.items())
    params, _ = NAMES.load(half, two_layers(), X, dtype="float32")
    np.testing.assert_array_equal(
        params["body"]["kernel"], half["fc1.weight"].T.astype(np.float32)
    )
    wide = {k: v.astype(np.float64) for k, v in tensors().items()}
    with pytest.raises(ValueError, match=r"Pass dtype='float32' to convert it\.$"):
        NAMES.load(wide, two_layers(), X, dtype="file")
    params, _ = NAMES.load(wide, two_layers(), X, dtype=np.float32)
    assert params["body"]["kernel"].dtype == np.float32


def test_the_file_of_a_model_in_bfloat16_is_in_bfloat16():
    model = two_layers(param_dtype=jnp.bfloat16)
    half = {
        k: v.astype(ml_dtypes.bfloat16) if "fc1" in k else v
        for k, v in tensors().items()
    }
    params, _ = NAMES.load(half, model, X)
    assert params["body"]["kernel"].dtype == jnp.bfloat16


def test_a_dtype_that_safetensors_do_not_have_is_told(tmp_path):
    params, state = NAMES.load(tensors(), two_layers(), X)
    params["head"]["bias"] = params["head"]["bias"].astype(jnp.float8_e4m3b11fnuz)
    message = (
        "mapping: save: 'fc2.bias' is float8_e4m3b11fnuz, which safetensors files do not "
        "hold. Convert it."
    )
    refused(message, NAMES.save, tmp_path, two_layers(), params, state)
    params["head"]["bias"] = params["head"]["bias"].astype(jnp.float8_e4m3fn)
    NAMES.save(tmp_path, two_layers(), params, state)
    found, _ = NAMES.load(tmp_path, two_layers(), X, dtype="file")
    assert found["head"]["bias"].dtype == jnp.float8_e4m3fn


# --- files


def test_shards_with_an_index_folders_and_lists(tmp_path):
    theirs = tensors()
    one = {k: v for k, v in theirs.items() if k.startswith("fc1")}
    two = {k: v for k, v in theirs.items() if k.startswith("fc2")}
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    save_file(one, tmp_path / files[0])
    save_file(two, tmp_path / files[1])
    table = {k: files[0] for k in one} | {k: files[1] for k in two}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": table}))
    wanted, _ = NAMES.load(theirs, two_layers(), X)
    for given_as in (tmp_path, index, [tmp_path / f for f in files]):
        found, _ = NAMES.load(given_as, two_layers(), X)
        jax.tree.map(np.testing.assert_array_equal, found, wanted)
    with pytest.raises(ValueError, match="Pass each file once"):
        NAMES.load([tmp_path / files[0]] * 2, two_layers(), X)


def test_saved_in_shards_it_loads_again(tmp_path):
    params, state = NAMES.load(tensors(), two_layers(), X)
    NAMES.save(tmp_path, two_layers(), params, state, max_shard_bytes=40)
    assert (tmp_path / "model.safetensors.index.json").exists()
    found, _ = NAMES.load(tmp_path, two_layers(), X)
    jax.tree.map(np.testing.assert_array_equal, found, params)


def never(*args):
    """What is not to be called."""
    raise ZeroDivisionError


def test_a_check_reads_headers_only(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(tensors(), path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("axonlike.io.safetensors._view", never)
        assert NAMES.check(path, two_layers(), X) == []
        with pytest.raises(ZeroDivisionError):
            NAMES.load(path, two_layers(), X)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "a.pth", "b.ckpt"])
def test_a_pickle_is_not_read(name, tmp_path):
    (tmp_path / name).write_bytes(b"\x80\x04}q\x00.")
    with pytest.raises(ValueError, match="is a pickle, which can run code"):
        NAMES.load(tmp_path / name, two_layers(), X)


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"holds neither .* nor .* Pass the file"
    ):
        NAMES.load(tmp_path, two_layers(), X)
    with pytest.raises(
        TypeError, match="expected a path, several, or a dict of arrays"
    ):
        NAMES.load(3, two_layers(), X)
    with pytest.raises(TypeError, match=r"'fc1\.weight' is str, not an array of"):
        NAMES.load({"fc1.weight": "a"}, two_layers(), X)


def test_the_tensors_of_pytorch_are_taken_as_they_are():
    torch = pytest.importorskip("torch")
    for kind in (torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2):
        theirs = {k: torch.tensor(v).to(kind) for k, v in tensors().items()}
        params, _ = NAMES.load(theirs, two_layers(), X, dtype="file")
        wanted = theirs["fc1.weight"].T.float().numpy()
        np.testing.assert_array_equal(
            np.asarray(params["body"]["kernel"], np.float32), wanted
        )
        assert str(params["body"]["kernel"].dtype) == str(kind)[6:]


def test_loaded_params_do_not_change_with_the_arrays_they_came_from():
    theirs = tensors()
    params, _ = NAMES.load(theirs, two_layers(), X)
    before = np.array(params["head"]["bias"])
    theirs["fc2.bias"][:] = 7
    np.testing.assert_array_equal(params["head"]["bias"], before)


def test_loaded_params_do_not_change_with_the_file(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(tensors(), path)
    params, _ = NAMES.load(path, two_layers(), X)
    before = jax.tree.map(np.array, params)
    data = bytearray(path.read_bytes())
    data[-200:] = bytes(200)
    path.write_bytes(data)
    jax.tree.map(np.testing.assert_array_equal, params, before)


# --- copies


def test_state_that_no_file_has_is_as_init_makes_it():
    model = al.serial(
        attn=al.attention(2, causal=True, cache_length=4), n=al.batch_norm()
    )
    names = al.mapping(
        {**{f"a.{p}": f"attn/{p}" for p in ("query", "key", "value", "out")}, "bn": "n"}
    )
    spec = al.spec("1 t 4")
    _params, state = model.init(jax.random.key(0), spec)
    theirs = {
        f"a.{p}.weight": normal(0, 4, 4) for p in ("query", "key", "value", "out")
    }
    theirs |= {f"a.{p}.bias": normal(0, 4) for p in ("query", "key", "value", "out")}
    theirs |= {"bn.weight": normal(1, 4), "bn.bias": normal(2, 4)}
    message = "no tensor 'bn.running_mean'"
    with pytest.raises(ValueError, match=message):
        names.load(theirs, model, spec)
    theirs |= {"bn.running_mean": normal(3, 4), "bn.running_var": normal(4, 4)}
    _, found = names.load(theirs, model, spec)
    jax.tree.map(np.testing.assert_array_equal, found["attn"], state["attn"])
    np.testing.assert_array_equal(found["n"]["mean"], theirs["bn.running_mean"])


@pytest.mark.parametrize(
    "wrapped",
    [al.frozen, al.remat, partial(al.mixed, compute=jnp.bfloat16), al.serial],
)
def test_wrappers_change_no_name(wrapped, tmp_path):
    model = wrapped(two_layers())
    params, state = NAMES.load(tensors(), model, X)
    wanted, _ = NAMES.load(tensors(), two_layers(), X)
    jax.tree.map(np.testing.assert_array_equal, params, wanted)
    NAMES.save(tmp_path, model, params, state)
    assert load_file(tmp_path / "model.safetensors").keys() == tensors().keys()


def test_nested_copies_and_ensembles():
    inner = al.serial(fc=al.dense(3)) ** 2
    model = al.ensemble(al.serial(stack=inner), 2)
    names = al.mapping({"m{e}.{i}": "{e}/stack/{i}/fc"})
    theirs = {}
    for e in range(2):
        for i in range(2):
            theirs[f"m{e}.{i}.weight"] = normal(10 * e + i, 3, 3)
            theirs[f"m{e}.{i}.bias"] = normal(50 + 10 * e + i, 3)
    params, _ = names.load(theirs, model, X)
    stack = params["*"]["stack"]["*"]["fc"]["kernel"]
    np.testing.assert_array_equal(stack[1, 0], theirs["m1.0.weight"].T)


def test_names_that_tensors_had_in_older_files(tmp_path):
    names = al.mapping({"n": "n"}, older={"gamma": "weight", "beta": "bias"})
    model = al.serial(n=al.layer_norm())
    new = {"n.weight": normal(0, 3), "n.bias": normal(1, 3)}
    old = {"n.gamma": new["n.weight"], "n.beta": new["n.bias"]}
    wanted, state = names.load(new, model, X)
    params, _ = names.load(old, model, X)
    jax.tree.map(np.testing.assert_array_equal, params, wanted)
    names.save(tmp_path, model, params, state, like=old)
    assert load_file(tmp_path / "model.safetensors").keys() == new.keys()
    message = "mapping: the files have 'n.weight' under two names."
    refused(message, names.load, old | new, model, X)


SHARDED = """
import jax, numpy as np, axonlike as al
from jax.sharding import AxisType, NamedSharding, PartitionSpec

names = al.mapping({"l.{n}": "blocks/{n}", "head": "head"})
model = al.serial(blocks=al.dense(8) ** 3, head=al.dense(4))
draw = np.random.default_rng(0)
files = {f"{name}.{part}": draw.normal(size=shape).astype(np.float32)
    for name, n in [("l.0", 8), ("l.1", 8), ("l.2", 8), ("head", 4)]
    for part, shape in [("weight", (n, 8)), ("bias", (n,))]}
wanted = names.load(files, model, al.spec("b 8"))[0]
rows = PartitionSpec("x", None)
for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((4,), ("x",), axis_types=(kind,))
    copies = NamedSharding(mesh, PartitionSpec(None, None, "x"))
    with jax.set_mesh(mesh):
        params, _ = names.load(files, model, al.spec("b 8"),
            shardings={"blocks/*/kernel": copies, "head/kernel": rows})
    stack = params["blocks"]["*"]["kernel"]
    assert stack.sharding == copies, stack.sharding
    assert [s.data.shape for s in stack.addressable_shards] == [(3, 8, 2)] * 4
    assert params["head"]["kernel"].sharding == NamedSharding(mesh, rows)
    jax.tree.map(np.testing.assert_array_equal, params, wanted)

del files["head.weight"]
key, rules = jax.random.key(0), {"head/kernel": NamedSharding(mesh, rows)}
params, _ = names.load(
    files, model, al.spec("b 8"), strict=False, key=key, shardings=rules)
assert params["head"]["kernel"].sharding == rules["head/kernel"]
made, _ = model.init(key, al.spec("b 8"), shardings=rules)
np.testing.assert_array_equal(params["head"]["kernel"], made["head"]["kernel"])
"""


def test_each_device_gets_its_part():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    command = [sys.executable, "-c", SHARDED]
    subprocess.run(command, check=True, env={**os.environ, **flags})


# --- memory

MEMORY = """
import sys, threading, time
import jax, numpy as np, axonlike as al

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

def run(size, file):
    model = al.serial(
        blocks=al.repeat(al.dense(size, use_bias=False), 3, stacked=STACKED),
        last=al.dense(size // 2, use_bias=False))
    names = al.mapping({
        al.fuse(["l.{n}.a", "l.{n}.b"], axis=0): "blocks/{n}", "head": "last"})
    params, state = names.load(file, model, (None, size))
    return model, names, jax.block_until_ready(params), state

run(8, sys.argv[1])
before, peak, done = resident(), [0], []
def watch():
    while not done:
        peak[0] = max(peak[0], resident())
        time.sleep(0.0005)
thread = threading.Thread(target=watch)
thread.start()
model, names, params, state = run(int(sys.argv[3]), sys.argv[2])
loaded = peak[0] - before - al.nbytes(params)
before, peak[0] = resident(), 0
names.save(sys.argv[4], model, params, state)
done.append(True)
thread.join()
print(loaded, peak[0] - before)
"""


@pytest.mark.skipif(
    sys.platform != "linux",
    reason="How much memory a process uses now is read in /proc, which only Linux has.",
)
@pytest.mark.parametrize("stacked", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_memory_beyond_the_params_is_at_most_the_largest_tensor_and_64_mib(
    stacked, tmp_path
):
    size = 3584
    for n in (8, size):
        row = np.arange(n, dtype=np.float32)
        theirs = {"head.weight": np.broadcast_to(row, (n // 2, n)).copy()}
        for i in range(3):
            for part in "ab":
                theirs[f"l.{i}.{part}.weight"] = np.broadcast_to(
                    row, (n // 2, n)
                ).copy()
        save_file(theirs, tmp_path / f"{n}.safetensors")
    code = MEMORY.replace("STACKED", str(stacked))
    paths = [str(tmp_path / f"{n}.safetensors") for n in (8, size)]
    out = str(tmp_path / "out.safetensors")
    command = [sys.executable, "-c", code, *paths, str(size), out]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    largest = size * size * 4
    loaded, saved = map(int, found.stdout.split())
    assert loaded <= largest + (64 << 20)
    assert saved <= largest + (64 << 20)
