"""Trails of shapes: to a layer, and to where a model fails, with what may be meant."""

import re

import goldens
import jax
import jax.numpy as jnp
import pytest
from zoo import MODELS

import axonlike as al

# For each model a layer to be explained, and an input that does not fit.
CASES = {
    "mlp": ("dense_1", al.spec("")),
    "convnet": ("max_pool", al.spec("b 16 16 3", int)),
    "resnet": ("block2/shortcut", al.spec("b 256")),
    "siamese": ("encoder/dense_1", (al.spec("b 20"), al.spec("b 21"))),
    "two_towers": ("heads/click/softmax", (al.spec("b 12"), al.spec("b", int))),
    "gpt": ("blocks/3/attn/query", al.spec("b 17", int)),
    "vit": ("blocks/1/mlp/gelu", al.spec("b 15 16 3")),
    "unet": ("merge2/conv_1", al.spec("b 18 18 1")),
    "lstm": ("encoder/backward", al.spec("b t")),
    "ensemble": ("members/4/tanh", al.spec("b 4", int)),
    "autoencoder": ("expand", al.spec("b 20 2 2", int)),
    "experts": ("choice/serial/gelu", al.spec("16")),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_trails_of_a_model_and_of_its_failure_stay(name, request):
    model, spec = MODELS[name]()
    path, wrong = CASES[name]
    with pytest.raises((IndexError, TypeError, ValueError)) as raised:
        model.output_spec(wrong)
    parts = [
        al.explain(model, spec, path),
        al.explain(model, wrong, path),
        "\n".join([str(raised.value), *ours(raised.value)]),
    ]
    text = re.sub(r" +\((\w+)\.py:\d+\)", r"  (\1.py)", "\n\n".join(parts))
    record = request.config.getoption("--record")
    goldens.check(f"explain/{name}.txt", text, record=record)


def ours(error):
    return [note for note in error.__notes__ if note.startswith("  in ")]


# --- the trail to a layer


def lines_of(*args):
    return [re.sub(r" +\(\S+\)$", "", line) for line in al.explain(*args).splitlines()]


def test_a_layer_at_the_top_has_one_trail():
    model = al.serial(body=al.dense(8), act=jax.nn.relu, head=al.dense(2))
    assert lines_of(model, al.spec("b 4"), "act") == [
        "  in act: jax.nn.relu on float32[b, 8]",
        "  trail: input float32[b, 4] -> body float32[b, 8] -> act float32[b, 8]",
    ]


def test_without_a_path_the_whole_model_is_explained():
    model = al.dense(8) >> al.dense(2)
    assert lines_of(model, al.spec("b 4")) == [
        "  in the model: serial(...) on float32[b, 4]",
        "  trail: input float32[b, 4] -> dense float32[b, 8] -> dense_1 float32[b, 2]",
    ]


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("path", ["blocks/*/dense_1", "blocks/0/dense_1"])
def test_copies_are_found_however_they_are_stored(stacked, path):
    body = al.dense(3) >> al.dense(4)
    model = al.serial(blocks=al.repeat(body, 3, stacked=stacked))
    step = "*" if stacked else "0"
    assert lines_of(model, al.spec("b 4"), path) == [
        f"  in blocks/{step}/dense_1: dense(features=4) on float32[b, 3]",
        "  trail: input float32[b, 4] -> blocks",
        f"  trail in blocks/{step}: input float32[b, 4] -> dense float32[b, 3] "
        "-> dense_1 float32[b, 4]",
    ]


@pytest.mark.parametrize("make", [al.repeat, al.ensemble])
def test_a_copy_that_there_is_not_is_told(make):
    model = al.serial(blocks=make(al.serial(body=al.dense(4)), 3))
    spec = al.spec("b 4")
    assert al.explain(model, spec, "blocks/2/body")
    with pytest.raises(
        al.PathError, match=r"'blocks/7'\. Nearest.* There are 3 copies"
    ):
        al.explain(model, spec, "blocks/7/body")


def test_the_copy_that_is_asked_for_is_explained():
    model = al.serial(blocks=al.repeat(al.dense(4) >> jnp.tanh, 3, stacked=False))
    assert lines_of(model, al.spec("b 4"), "blocks/2/tanh")[0].startswith(
        "  in blocks/2/tanh:"
    )


def test_a_second_use_can_be_asked_for():
    def twice(sub, x):
        return sub.f(sub.g(sub.f(x)))

    model = al.wire(twice, f=al.dense(4), g=jnp.tanh)
    first = lines_of(model, al.spec("b 4"), "f")
    second = lines_of(model, al.spec("b 4"), "f#1")
    assert first[1] == "  trail: input float32[b, 4] -> f float32[b, 4]"
    assert second[1].endswith(
        "-> f float32[b, 4] -> g float32[b, 4] -> f#1 float32[b, 4]"
    )


def test_layers_inside_of_a_composite_are_explained():
    model = al.serial(attn=al.attention(2))
    text = lines_of(model, al.spec("b t 8"), "attn/out")
    assert text[0].startswith("  in attn/out: projection() on (float32[b, t, 8],")
    assert text[2].startswith(
        "  trail in attn: input float32[b, t, 8] -> query float32"
    )


def test_a_path_that_there_is_not_is_told_with_the_nearest():
    with pytest.raises(
        al.PathError, match=r"explain: nothing is called 'bdy'\. Nearest"
    ):
        al.explain(al.serial(body=al.dense(8)), al.spec("b 4"), "bdy")


# --- models that fail


def test_a_failure_after_the_layer_does_not_matter():
    model = al.serial(a=al.dense(8), b=al.residual(al.dense(3)))
    assert lines_of(model, al.spec("b 4"), "a")[0] == (
        "  in a: dense(features=8) on float32[b, 4]"
    )


def test_a_failure_in_a_nested_layer_is_trailed_from_the_input():
    model = al.serial(
        stem=al.dense(8), body=al.serial(up=al.dense(6), block=al.residual(al.dense(3)))
    )
    assert lines_of(model, al.spec("b 4"), "body/block") == [
        "ShapeError: residual: expected float32[b, 6] from f, as from the shortcut, got "
        "float32[b, 3]. Give it a shortcut that projects: residual(f, "
        "shortcut=dense(...)).",
        "  in body/block: residual(...) on float32[b, 6]",
        "  trail: input float32[b, 4] -> stem float32[b, 8] -> body",
        "  trail in body: input float32[b, 8] -> up float32[b, 6] -> block ✗",
        "  Perhaps a projection on the shortcut: residual(f, "
        "shortcut=dense(features=3)).",
    ]


def product(sub, x):
    return sub.f(x) @ jnp.ones((784, 3))


def shortcut(sub, x):
    return sub.f(x) + x


SUGGESTIONS = {
    "flatten": (al.input("b 784") >> al.dense(10), "b 28 28 1", "flatten() before it."),
    "transpose": (
        al.input("b 28 28 1") >> al.conv(3, 3),
        "b 1 28 28",
        "transpose(2, 3, 1) before it.",
    ),
    "time first": (
        al.input("b t 8", float),
        "b 8 t",
        "transpose(2, 1) before it.",
    ),
    "pixels": (al.conv(3, (3, 3)), "b 784", "reshape(28, 28, 1) before it."),
    "colours": (al.conv(3, (3, 3)), "b 768", "reshape(16, 16, 3) before it."),
    "shape": (al.input("b 4 4"), "b 16", "reshape(4, 4) before it."),
    "shortcut": (
        al.residual(al.dense(16) >> jax.nn.relu),
        "b 8",
        "a projection on the shortcut: residual(f, shortcut=dense(features=16)).",
    ),
    "strided shortcut": (
        al.residual(al.conv(16, 3, strides=2)),
        "b 16 16 8",
        "a projection on the shortcut: residual(f, shortcut=conv(features=16, "
        "kernel_size=(1, 1), strides=2)).",
    ),
    "sum": (al.dense(3) + al.dense(4), "b 4", "dense(features=3) after dense_1."),
    "sum in plain code": (
        al.wire(shortcut, f=al.dense(8)),
        "b 4",
        "dense(features=8) for what is (b, 4).",
    ),
    "channels": (al.conv(8, (3, 3)), "b 28 28", "reshape(28, 28, 1) before it."),
    "axes with names": (
        al.input("b 3 h w") >> al.flatten(),
        "b 32 30 3",
        "transpose(3, 1, 2) before it.",
    ),
    "stem": (al.repeat(al.dense(8), 3), "b 4", "dense(features=8) before it."),
    "width in copies": (
        al.serial(stem=al.dense(8), blocks=al.repeat(al.residual(al.dense(32)), 4)),
        "b 4",
        "dense(features=8) at the end of f.",
    ),
    "product": (
        al.wire(product, f=al.identity),
        "b 28 28",
        "flatten() before the product.",
    ),
}


@pytest.mark.parametrize("name", SUGGESTIONS)
def test_what_would_fit_is_suggested(name):
    model, spec, wanted = SUGGESTIONS[name]
    lines = al.explain(model, al.spec(spec)).splitlines()
    assert lines[-1] == f"  Perhaps {wanted}"


@pytest.mark.parametrize(
    ("model", "spec"),
    [
        (al.input("b 100") >> al.dense(10), "b 28 28"),
        (al.input("b h h 3") >> al.flatten(), "b 3 30 32"),
        (al.wire(shortcut, f=al.max_pool(2)), "b 8 8 3"),
        (al.repeat(al.max_pool(2), 2), "b 8 8 3"),
    ],
)
def test_what_would_not_fit_is_not_suggested(model, spec):
    text = al.explain(model, al.spec(spec))
    assert "Error: " in text
    assert "Perhaps" not in text


def test_an_operation_that_fails_has_a_path_where_flax_and_equinox_tell_shapes_alone():
    """Linen, NNX, Equinox and stax pass on what `dot_general` says, and no layer."""
    model = al.serial(stem=al.dense(8), body=al.serial(up=al.dense(6), bad=narrow))
    with pytest.raises(TypeError, match="contracting dimensions") as raised:
        model.output_spec(al.spec("b 4"))
    found = "\n".join(raised.value.__notes__)
    assert re.search(
        r"in body/bad: test_explain.narrow on float32\[b, 6\] +\(test_explain.py:",
        found,
    )
    assert "  trail: input float32[b, 8] -> up float32[b, 6] -> bad ✗" in found
    assert al.explain(model, al.spec("b 4")).splitlines()[2:] == [
        "  trail: input float32[b, 4] -> stem float32[b, 8] -> body",
        "  trail in body: input float32[b, 8] -> up float32[b, 6] -> bad ✗",
    ]


def narrow(x):
    return x @ jnp.ones((5, 8))


def test_no_values_stand_in_a_failure_where_keras_prints_the_weights():
    def bad(x):
        return x + jnp.full((3,), 1234.5)

    model = al.dense(4) >> bad
    text = al.explain(model, jnp.full((2, 4), 987.5))
    assert "float32[2, 4]" in text
    assert "1234" not in text
    assert "987" not in text
