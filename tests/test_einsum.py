"""Einsum and bilinear: PyTorch, initial values, options and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_torch import COUNT, LEADS, agrees, drawn_options
from parity import close, drawn, normal

import axonlike as al

KEY = jax.random.key(0)
SIZES = {"b": 2, "t": 3, "n": 2, "d": 4, "h": 2, "k": 3, "e": 5}

# equation, letters that the kernel makes, letters of the bias
EQUATIONS = {
    "bd,dk->bk": ("k", "k"),
    "btd,dhk->bthk": ("hk", "hk"),
    "btd,hdk->bthk": ("hk", "hk"),
    "bthk,hkd->btd": ("d", "d"),
    "bthk,khd->dbt": ("d", "d"),
    "bnd,nde->bne": ("e", "ne"),
    "bnd,ned->ben": ("e", "en"),
    "bnd,nd->bnd": ("", "nd"),
    "bnd,nd->bn": ("", "n"),
    "btd,d->bt": ("", ""),
    "btd,dk->bk": ("k", "k"),
    "btd,dk->kb": ("k", "k"),
    "...d,dk->...k": ("k", "k"),
    "...d,dk->k...": ("k", "k"),
    "b...d,dk->bk...": ("k", "k"),
    "...,hk->...hk": ("hk", "hk"),
    "d,dk->k": ("k", "k"),
    "btd,tdk->bk": ("k", "k"),
    "btd,tkd->btk": ("k", "tk"),
    " b t d , d h k -> b h t k ": ("hk", "hk"),
    "Bd,dK->BK": ("K", "K"),
    "dbn,nd->b": ("", ""),
}


def _built(equation):
    sizes = {**SIZES, "B": 2, "K": 3}
    term = equation.replace(" ", "").split(",")[0].replace("...", "bt")
    if equation.startswith("b..."):
        term = term.replace("bbt", "bth")
    shape = [sizes[letter] for letter in term]
    own = {letter: sizes[letter] for letter in EQUATIONS[equation][0]}
    return al.einsum(equation, own or None), normal(3, *shape)


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum_agrees_with_torch(equation):
    layer, x = _built(equation)
    compact = equation.replace(" ", "")

    def define(p, x):
        import torch

        y = torch.einsum(compact, x, p["kernel"])
        term = compact.split("->")[1].replace("...", "." * (y.ndim - len(p_letters)))
        shape = [y.shape[i] if n in bias else 1 for i, n in enumerate(term)]
        return y + p["bias"].reshape(shape)

    bias = EQUATIONS[equation][1]
    p_letters = compact.split("->")[1].replace("...", "")
    agrees(f"einsum/{list(EQUATIONS).index(equation)}", layer, [x], define)


@pytest.mark.parametrize("equation", EQUATIONS)
def test_shapes_are_those_of_the_letters(equation):
    layer, x = _built(equation)
    params, _ = layer.init(KEY, x)
    kernel = equation.replace(" ", "").split(",")[1].split("->")[0]
    sizes = {**SIZES, "B": 2, "K": 3}
    assert params["kernel"].shape == tuple(sizes[n] for n in kernel)
    assert params["bias"].shape == tuple(sizes[n] for n in EQUATIONS[equation][1])


def test_without_bias_there_is_none():
    params, _ = al.einsum("bd,dk->bk", {"k": 3}, use_bias=False).init(KEY, (None, 4))
    assert set(params) == {"kernel"}


def test_einsum_is_dense_where_the_equation_says_so():
    x = normal(0, 5, 6, 4)
    dense, general = al.dense((2, 3)), al.einsum("...d,dhk->...hk", {"h": 2, "k": 3})
    params = drawn(dense.init(KEY, x)[0])
    close(general.predict(params, {}, x), dense.predict(params, {}, x))


def test_initial_variance_counts_what_is_summed_over():
    layer = al.einsum("bnd,nde->bne", {"e": 40})
    params, _ = layer.init(KEY, (None, 8, 50))
    assert abs(float(jnp.std(params["kernel"])) * 50**0.5 - 1) < 0.02
    layer = al.einsum("bthk,hkd->btd", {"d": 80})
    params, _ = layer.init(KEY, (None, None, 4, 25))
    assert abs(float(jnp.std(params["kernel"])) * 100**0.5 - 1) < 0.02


def test_each_letter_that_stays_has_a_draw_of_its_own():
    init = al.initializers.orthogonal()
    params, _ = al.einsum("bnd,nde->bne", {"e": 4}, kernel_init=init).init(
        KEY, (1, 3, 4)
    )
    for each in params["kernel"]:
        close(each @ each.T, np.eye(4), 1e-5)
    assert not np.allclose(params["kernel"][0], params["kernel"][1])


def test_unknown_sizes_stay_symbolic():
    layer = al.einsum("...d,dhk->...hk", {"h": 2, "k": 3})
    assert str(layer.output_spec(al.spec("b t 4")).shape) == "(b, t, 2, 3)"


def test_computation_follows_the_input():
    layer, x = al.einsum("bd,dk->bk", {"k": 3}), jnp.ones((2, 4), jnp.bfloat16)
    params, _ = layer.init(KEY, x)
    assert params["kernel"].dtype == jnp.float32
    assert layer.predict(params, {}, x).dtype == jnp.bfloat16


def test_another_dot_general_takes_the_place_of_lax():
    calls = []

    def counted(*args, **options):
        calls.append(args[2])
        return jax.lax.dot_general(*args, **options)

    layer = al.einsum("bnd,nde->ben", {"e": 2}, dot_general=counted)
    params, _ = layer.init(KEY, (1, 3, 4))
    layer.predict(params, {}, jnp.ones((1, 3, 4)))
    assert (((2,), (1,)), ((1,), (0,))) in calls


BAD_OPTIONS = {
    "no arrow": (
        ("bd,dk", {"k": 3}),
        "einsum: equation must be input,kernel->output with a letter for each axis, such "
        "as 'btd,dhk->bthk', got 'bd,dk'.",
    ),
    "twice": (
        ("bb,bk->bk", {"k": 3}),
        "einsum: equation must name each axis of a term once, got 'bb,bk->bk'.",
    ),
    "unused": (
        ("bd,dk->b", {"k": 3}),
        "einsum: equation must take every axis of the output from input or kernel, and "
        "use every axis of the kernel, got 'bd,dk->b'.",
    ),
    "lost dots": (
        ("...d,dk->k", {"k": 3}),
        "einsum: equation must take every axis of the output from input or kernel, and "
        "use every axis of the kernel, got '...d,dk->k'.",
    ),
    "size missing": (
        ("bd,dhk->bhk", {"k": 3}),
        "einsum: sizes must give a positive int for h, k, got {'k': 3}.",
    ),
    "size of the input": (
        ("bd,d->b", {"d": 3}),
        "einsum: sizes must give a positive int for no letter, for the input has all, "
        "got {'d': 3}.",
    ),
    "size of zero": (
        ("bd,dk->bk", {"k": 0}),
        "einsum: sizes must give a positive int for k, got {'k': 0}.",
    ),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options_word_for_word(name):
    args, message = BAD_OPTIONS[name]
    with pytest.raises(ValueError, match="einsum") as error:
        al.einsum(*args)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("equation", "x", "message"),
    [
        (
            "bd,dk->bk",
            (2, 3, 4),
            "einsum: expected an array with the axes b d, got float32[2, 3, 4]. Check the "
            "equation.",
        ),
        (
            "b...d,dk->b...k",
            (2,),
            "einsum: expected an array with the axes b * d, got float32[2]. Check the "
            "equation.",
        ),
        (
            "bd,dk->bk",
            al.spec("b d"),
            "einsum: expected sizes from 1 on where the kernel has an axis, got "
            "float32[b, d]. Params cannot depend on an unknown dim: declare its size in "
            "the spec.",
        ),
    ],
)
def test_bad_inputs_word_for_word(equation, x, message):
    with pytest.raises(al.ShapeError) as error:
        al.einsum(equation, {"k": 3}).init(KEY, x)
    assert str(error.value) == message


@pytest.mark.parametrize("seed", range(COUNT))
def test_bilinear_agrees_with_torch(seed):
    choice = drawn_options(
        seed, lead=LEADS, n=(1, 2, 5), m=(1, 3), features=(1, 4), use_bias=(True, False)
    )
    lead, n, m = (choice.pop(name) for name in ("lead", "n", "m"))

    def define(p, x, y):
        import torch

        kernel = p["kernel"].permute(2, 0, 1)
        x, y = (z.reshape(-1, z.shape[-1]) for z in (x, y))
        z = torch.nn.functional.bilinear(x, y, kernel, p.get("bias"))
        return z.reshape(*lead, choice["features"])

    xs = [normal(seed, *lead, n), normal(seed + 1, *lead, m)]
    agrees(f"einsum/bilinear {seed}", al.bilinear(**choice), xs, define)


def test_initial_variance_of_bilinear_counts_pairs():
    params, _ = al.bilinear(100).init(KEY, ((None, 20), (None, 30)))
    assert abs(float(jnp.std(params["kernel"])) * 600**0.5 - 1) < 0.02


def test_bilinear_refuses_inputs_of_other_batches_word_for_word():
    with pytest.raises(al.ShapeError) as error:
        al.bilinear(3).init(KEY, ((4, 5), (3, 5)))
    assert str(error.value) == (
        "bilinear: expected x and y that differ in the last axis only, got float32[4, 5] "
        "and float32[3, 5]. Repeat the smaller one with jnp.broadcast_to."
    )
