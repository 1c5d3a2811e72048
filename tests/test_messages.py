"""Mistakes that users make: what they are told, when, and at what cost.

Every case is a function that makes the mistake when `go.wrong` is set and is right
otherwise. Its message stands above it, word for word, `{here}` being the file and line
that ends in `# here`. A first line of `...` is JAX's own, of which only the type is held.
"""
# ruff: noqa: E501 (a message stands on one line, as it is printed)

import contextlib
import functools
import inspect
import re
import sys
import time
import traceback
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import axonlike as al

FILE = Path(__file__).name
KEY = jax.random.key(0)
CASES = {}


class Go:
    """How a case runs: with the mistake or without; only traced, or for real."""

    def __init__(self, *, wrong, trace_only=False):
        self.wrong, self.trace_only = wrong, trace_only or not wrong
        self.seconds = None

    def jit(self, function, *args):
        """What a user writes, up to compiling where it would come to that."""

        @functools.wraps(function)
        def fresh(*args):
            return function(*args)

        jitted = jax.jit(fresh)
        return self._timed(jitted.trace if self.trace_only else jitted, *args)

    def init(self, model, x):
        def init(key):
            return model.init(key, x)

        if self.trace_only:
            return self._timed(jax.eval_shape, init, KEY)
        return self._timed(init, KEY)

    def output_spec(self, model, x):
        return self._timed(model.output_spec, x)

    def _timed(self, function, *args):
        start = time.thread_time()
        try:
            return function(*args)
        finally:
            self.seconds = time.thread_time() - start


def mistake(text):
    def enter(case):
        CASES[case.__name__] = case, text.strip("\n")
        return case

    return enter


def zeros(model, x):
    """Params and state of zeros, for whose making nothing is compiled."""
    specs = jax.eval_shape(lambda key: model.init(key, x), KEY)
    return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), specs)


def array(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


# --- while a model is put together


@mistake(
    """
ValueError: dense: features must be a positive int, got -3.
"""
)
def negative_features(go):
    al.dense(-3 if go.wrong else 3)  # here


@mistake(
    """
ValueError: dense: features must be a positive int, got 10.0.
"""
)
def features_of_the_wrong_type(go):
    al.dense(10.0 if go.wrong else 10)  # here


@mistake(
    """
TypeError: dense: missing a required argument: 'features'.
"""
)
def no_features(go):
    al.dense(*([] if go.wrong else [3]))  # here


@mistake(
    """
TypeError: dense: got an unexpected keyword argument 'use_bais'. Nearest: 'use_bias'.
"""
)
def unknown_keyword(go):
    al.dense(3, **({"use_bais": False} if go.wrong else {"use_bias": False}))  # here


@mistake(
    """
ValueError: dropout: rate must be in [0, 1), got 1.5.
"""
)
def rate_out_of_range(go):
    al.dropout(1.5 if go.wrong else 0.5)  # here


@mistake(
    """
ValueError: conv: padding must be one of SAME, SAME_LOWER, VALID, CAUSAL, CIRCULAR, REFLECT, REPLICATE, an int from 0 on, or for each spatial axis such an int or a pair (low, high), got 'SAM'.
"""
)
def unknown_padding(go):
    al.conv(3, 3, padding="SAM" if go.wrong else "SAME")  # here


@mistake(
    """
ValueError: name: two layers are called 'head': dense(features=3), dense(features=3). Rename one, or write shared(...) or wire(...) to share its weights.
"""
)
def two_layers_of_one_name(go):
    other = "head" if go.wrong else "tail"
    al.dense(3, name="head") >> jax.nn.relu >> al.dense(3, name=other)  # here


@mistake(
    """
ValueError: name: 'block/dense' holds '/', which paths need. Choose another name.
"""
)
def name_with_a_slash(go):
    al.dense(3, name="block/dense" if go.wrong else "dense")  # here


@mistake(
    """
ValueError: name: '0' is all digits, which means an index. Add a letter.
"""
)
def name_of_digits(go):
    al.dense(3).named("0" if go.wrong else "zero")  # here


@mistake(
    """
TypeError: concatenate: axis must be an int, got al.dense(features=3).
"""
)
def name_that_is_a_keyword(go):
    name = "axis" if go.wrong else "left"
    al.concatenate(**{name: al.dense(3), "right": al.dense(3)})  # here


@mistake(
    """
TypeError: name: expected a non-empty str, got 0.
"""
)
def name_that_is_no_text(go):
    al.dense(3, name=0 if go.wrong else "zero")  # here


@mistake(
    """
TypeError: >>: got the factory flatten, not a layer. Call it: write flatten().
"""
)
def uncalled_factory(go):
    al.dense(3) >> (al.flatten if go.wrong else al.flatten()) >> al.dense(3)  # here


@mistake(
    """
TypeError: >>: expected a layer or a function, got int. Call a factory such as dense(10), or pass a function such as jax.nn.relu.
"""
)
def number_in_a_pipe(go):
    al.dense(3) >> (10 if go.wrong else al.dense(10))  # here


@mistake(
    """
TypeError: serial(...): a layer is not called like a function. Use predict(params, state, x) or apply(params, state, x).
"""
)
def layer_called_like_a_function(go):
    model = al.dense(3) >> jax.nn.relu
    model(array(2, 3)) if go.wrong else model.output_spec(array(2, 3))  # here


@mistake(
    """
TypeError: branch: children are named by keyword or not at all, got 1 without a name and ['head']. Name them all, or use name=.
"""
)
def named_and_positional_children(go):
    one = {} if go.wrong else {"body": al.dense(3)}
    rest = [al.dense(3)] if go.wrong else []
    al.branch(*rest, **one, head=al.dense(3))  # here


@mistake(
    """
TypeError: scan: dense(features=3) is not a cell: it has no initial_carry. Use a cell such as lstm_cell(64), or return al.Cell(...) from your factory.
"""
)
def scan_of_what_is_no_cell(go):
    al.scan(al.dense(3) if go.wrong else al.lstm_cell(3))  # here


@mistake(
    """
ValueError: repeat: n must be an int from 0 on, got -1.
"""
)
def repeat_of_a_negative_number(go):
    al.dense(3) ** (-1 if go.wrong else 2)  # here


@mistake(
    """
ValueError: ensemble: n must be a positive int, got 0.
"""
)
def ensemble_of_none(go):
    al.ensemble(al.dense(3), 0 if go.wrong else 2)  # here


@mistake(
    """
TypeError: switch: expected at least one layer, got none. Write switch(index, dense(8), dense(8)).
"""
)
def switch_without_choices(go):
    al.switch(jnp.argmax, *([] if go.wrong else [al.dense(3), al.dense(3)]))  # here


@mistake(
    """
TypeError: mixed: expected a floating-point dtype, got int8. Write jnp.bfloat16, or leave it out.
"""
)
def mixed_in_integers(go):
    al.mixed(al.dense(3), jnp.int8 if go.wrong else jnp.bfloat16)  # here


@mistake(
    """
PathError: part: nothing is called 'decodr'. Nearest: 'decoder', 'encoder'.
"""
)
def part_of_an_unknown_path(go):
    model = al.serial(encoder=al.dense(3) >> jax.nn.relu, decoder=al.dense(5))
    model.part("decodr" if go.wrong else "decoder")  # here


@mistake(
    """
TypeError: wire: fn asks for state, but a wire has none of its own. Keep it in a child: a layer whose apply takes state.
"""
)
def wire_that_asks_for_state(go):
    def with_state(sub, x, *, state):
        return sub.f(x)

    def without(sub, x, *, train):
        return sub.f(x)

    al.wire(with_state if go.wrong else without, f=al.dense(3))  # here


@mistake(
    """
TypeError: double: expected the factory to return (init, apply) or a layer, got {apply: function}. End it with 'return init, apply'.
"""
)
def factory_that_returns_no_pair(go):
    @al.layer
    def double():
        def apply(params, x):
            return x + x

        return {"apply": apply} if go.wrong else (None, apply)

    double()  # here


@mistake(
    """
PathError: activation: nothing is called 'dens'. Nearest: 'dense'. model.sites(spec) lists them.
"""
)
def activation_by_a_wrong_name(go):
    model = al.dense(3) >> jax.nn.relu
    model["dens" if go.wrong else "dense"]  # here


@mistake(
    """
ValueError: spec: 'b, 28, 28' is not sizes and names between blanks, such as 'b 28 1'.
"""
)
def spec_that_cannot_be_read(go):
    al.spec("b, 28, 28" if go.wrong else "b 28 28")  # here


# --- in output_spec and init


@mistake(
    """
ShapeError: conv: expected (batch, n, n, channels), got float32[b, 28, 28]. Option (3, 3) is for 2 spatial axes.
  in stem/conv: conv(features=8, kernel_size=(3, 3)) on float32[b, 28, 28]  ({here})
  trail: input float32[b, 28, 28] -> conv ✗
"""
)
def images_of_the_wrong_rank(go):
    stem = al.conv(8, (3, 3)) >> jax.nn.relu  # here
    model = al.serial(stem=stem, head=al.global_avg_pool() >> al.dense(3))
    go.output_spec(model, al.spec("b 28 28" if go.wrong else "b 28 28 1"))


@mistake(
    """
ShapeError: dense: expected a floating-point (..., n), got int32[b, 784]. Convert it with x.astype(jnp.float32), or embed ids with embedding().
  in dense: dense(features=3) on int32[b, 784]                        ({here})
  trail: input int32[b, 28, 28] -> flatten int32[b, 784] -> dense ✗
"""
)
def integers_into_a_dense(go):
    model = al.flatten() >> al.dense(3)  # here
    go.output_spec(model, al.spec("b 28 28", int if go.wrong else float))


@mistake(
    """
ShapeError: embedding: expected an array of integer ids, got float32[b, t]. Convert it with x.astype(jnp.int32), or use dense() for vectors.
  in embedding: embedding(num_embeddings=100, features=8) on float32[b, t]  ({here})
  trail: input float32[b, t] -> embedding ✗
"""
)
def floats_into_an_embedding(go):
    model = al.embedding(100, 8) >> al.dense(3)  # here
    go.init(model, al.spec("b t", float if go.wrong else int))


@mistake(
    """
ShapeError: residual: expected float32[b, 8] from f, as from the shortcut, got float32[b, 7]. Give it a shortcut that projects: residual(f, shortcut=dense(...)).
  in block: residual(...) on float32[b, 8]                            ({here})
  trail: input float32[b, 5] -> dense float32[b, 8] -> block ✗
"""
)
def residual_of_another_width(go):
    body = al.dense(7 if go.wrong else 8) >> jax.nn.relu
    block = al.residual(body)  # here
    model = al.dense(8) >> block.named("block") >> al.dense(3)
    go.init(model, al.spec("b 5"))


@mistake(
    """
ShapeError: add: expected outputs of one shape and dtype, got dense float32[b, 8], dense_1 float32[b, 7]. Project the branches to equal widths.
  in add: add(...) on float32[b, 4]                                   ({here})
  trail: input float32[b, 5] -> dense float32[b, 4] -> add ✗
"""
)
def sum_of_branches_that_differ(go):
    width = 7 if go.wrong else 8
    both = al.dense(8) + al.dense(width)  # here
    go.output_spec(al.dense(4) >> both >> jax.nn.relu, al.spec("b 5"))


@mistake(
    """
ShapeError: concatenate: expected shapes and dtypes equal but at axis -1, got identity float32[b, 28, 28, 8], conv float32[b, 14, 14, 8]. Reshape or project the branches first.
  in concatenate: concatenate(...) on float32[b, 28, 28, 8]           ({here})
  trail: input float32[b, 28, 28, 1] -> conv float32[b, 28, 28, 8] -> concatenate ✗
"""
)
def concatenation_of_branches_that_differ(go):
    towers = al.identity | al.conv(8, 3, strides=2 if go.wrong else 1)  # here
    go.output_spec(al.conv(8, 3) >> towers, al.spec("b 28 28 1"))


@mistake(
    """
ShapeError: parallel: expected a tuple of 3 inputs, got 2 inputs. Give each child its input, or use branch for one input to all.
  in parallel: parallel(...) on (float32[b, 5], float32[b, 6])        ({here})
  trail: input (float32[b, 5], float32[b, 6]) -> parallel ✗
"""
)
def too_few_inputs_for_parallel(go):
    towers = al.dense(8) @ al.dense(8) @ al.dense(8)  # here
    x = (al.spec("b 5"), al.spec("b 6"), al.spec("b 7"))
    go.init(towers >> al.concatenate(), x[:2] if go.wrong else x)


@mistake(
    """
ShapeError: parallel: expected a dict with ['image', 'text'], got ['image', 'txt']. Give each named child its input.
  in parallel: parallel(...) on {image: float32[b, 5], txt: float32[b, 7]}  ({here})
  trail: input {image: float32[b, 5], txt: float32[b, 7]} -> parallel ✗
"""
)
def another_key_for_parallel(go):
    towers = al.parallel(image=al.dense(8), text=al.dense(8))  # here
    x = {"image": al.spec("b 5"), "txt" if go.wrong else "text": al.spec("b 7")}
    go.init(towers >> al.concatenate(), x)


@mistake(
    """
TypeError: distance: expected 2 inputs (a, b), got 3 inputs. Pass one value for each input.
  in distance: <distance {there}> on (float32[b, 8], float32[b, 8], float32[b, 8])  ({here})
  trail: input (float32[b, 5], float32[b, 5], float32[b, 5]) -> dense (float32[b, 8], float32[b, 8], float32[b, 8]) -> distance ✗
"""
)
def too_many_inputs_for_a_function(go):
    def distance(a, b):  # there
        return jnp.sum(jnp.square(a - b), -1)

    model = al.shared(al.dense(8)) >> distance  # here
    go.init(model, (al.spec("b 5"),) * (3 if go.wrong else 2))


@mistake(
    """
TypeError: distance: expected 2 inputs (a, b), got 1 input. Pass b as well.
  in distance: <distance {there}> on float32[b, 4]       ({here})
  trail: input float32[b, 5] -> dense float32[b, 4] -> distance ✗
"""
)
def one_input_for_a_function_of_two(go):
    def distance(a, b):  # there
        return jnp.sum(jnp.square(a - b), -1)

    both = al.dense(4) if go.wrong else al.dense(4) & al.dense(4)
    go.output_spec(both >> distance, al.spec("b 5"))  # here


@mistake(
    """
TypeError: key: expected one jax.random.key(seed), got int.
"""
)
def number_instead_of_a_key(go):
    model = al.dense(8) >> al.dense(3)
    model.init(0, (None, 5)) if go.wrong else go.init(model, (None, 5))  # here


@mistake(
    """
TypeError: key: expected one jax.random.key(seed), got float32[2, 5].
"""
)
def key_and_input_swapped(go):
    model = al.dense(8) >> al.dense(3)
    if go.wrong:
        model.init(array(2, 5), KEY)  # here
    go.init(model, (None, 5))


@mistake(
    """
ShapeError: input: expected [b, 784], got float32[b, 28, 28]. Reshape it, or declare what comes in.
  in input: input(spec='b 784') on float32[b, 28, 28]                 ({here})
  trail: input float32[b, 28, 28] -> input ✗
"""
)
def declared_size_violated(go):
    model = al.input("b 784") >> al.dense(3)  # here
    go.init(model, al.spec("b 28 28" if go.wrong else "b 784"))


@mistake(
    """
ShapeError: dense: expected known sizes where init reads them, got float32[b, 8*t]. Params cannot depend on an unknown dim: declare its size in the spec.
  in head: dense(features=3) on float32[b, 8*t]                       ({here})
  trail: input float32[b, t, 5] -> body float32[b, 8*t] -> head ✗
"""
)
def params_of_an_unknown_size(go):
    model = al.dense(8) >> al.flatten()
    model = al.serial(body=model, head=al.dense(3) if go.wrong else jax.nn.relu)  # here
    go.init(model, al.spec("b t 5"))


@mistake(
    """
ShapeError: repeat: expected float32[b, 7] out, as it came in, got float32[b, 8]. What is run again on its own output must keep its shape and dtype.
  in repeat: repeat(n=3, ...) on float32[b, 7]                        ({here})
  trail: input float32[b, 5] -> dense float32[b, 7] -> repeat ✗
"""
)
def repeat_that_changes_the_width(go):
    block = al.dense(8) >> jax.nn.relu
    model = al.dense(7 if go.wrong else 8) >> al.repeat(block, 3)  # here
    go.init(model, al.spec("b 5"))


@mistake(
    """
ShapeError: cond: expected choices that return one spec, got dense float32[4, 8], dense_1 float32[4, 7]. Project them to one width.
  in cond: cond(...) on float32[4, 5]                                 ({here})
  trail: input float32[4, 5] -> dense float32[4, 5] -> cond ✗
"""
)
def cond_whose_choices_differ(go):
    def positive(x):
        return jnp.sum(x) > 0

    choice = al.cond(positive, al.dense(8), al.dense(7 if go.wrong else 8))  # here
    go.output_spec(al.dense(5) >> choice, (4, 5))


@mistake(
    """
ShapeError: cond: expected a scalar from predicate, got bool[4, 5]. Reduce it.
  in cond: cond(...) on float32[4, 5]                                 ({here})
  trail: input float32[4, 5] -> dense float32[4, 5] -> cond ✗
"""
)
def cond_of_many_bools(go):
    def positive(x):
        return x > 0 if go.wrong else jnp.any(x > 0)

    model = al.dense(5) >> al.cond(positive, al.dense(8), al.dense(8))  # here
    go.output_spec(model, (4, 5))


@mistake(
    """
AttributeError: wire: no child is called 'oot'. Nearest: 'out'.
  in wire: wire(fn=<f {there}>, ...) on float32[b, 4]    ({here})
  trail: input float32[b, 5] -> dense float32[b, 4] -> wire ✗
"""
)
def child_that_wire_does_not_have(go):
    def f(sub, x):  # there
        return sub.oot(sub.hidden(x)) if go.wrong else sub.out(sub.hidden(x))

    model = al.dense(4) >> al.wire(f, hidden=al.dense(8), out=al.dense(3))  # here
    go.init(model, al.spec("b 5"))


@mistake(
    """
ValueError: dense: never called, so init cannot know its input. Call it, or take it out.
  in wire/out: dense(features=3)                                      ({here})
"""
)
def child_that_is_never_called(go):
    def f(sub, x):  # there
        return sub.hidden(x) if go.wrong else sub.out(sub.hidden(x))

    model = al.dense(4) >> al.wire(f, hidden=al.dense(8), out=al.dense(3))  # here
    go.init(model, al.spec("b 5"))


@mistake(
    """
ShapeError: dense: expected the params of its first use, {bias: float32[3], kernel: float32[5, 3]}, got {bias: float32[3], kernel: float32[3, 3]}. A layer called twice has one set of weights: give it equal widths.
  in out#1: dense(features=3) on float32[b, 3]                        ({here})
  trail: input float32[b, 5] -> out float32[b, 3] -> out ✗
"""
)
def child_called_with_two_widths(go):
    def f(sub, x):  # there
        return sub.out(sub.out(x))

    model = al.wire(f, out=al.dense(3))  # here
    go.init(model, al.spec("b 5" if go.wrong else "b 3"))


@mistake(
    """
TypeError: dense: expected 1 input (x), got 2 inputs. Pass one value for each input.
  in wire/out: dense(features=3) on (float32[b, 4], float32[b, 4])    ({here})
  trail: input float32[b, 4] -> out ✗
"""
)
def child_called_with_too_many_inputs(go):
    def f(sub, x):  # there
        return sub.out(x, x) if go.wrong else sub.out(x)

    model = al.dense(4) >> al.wire(f, out=al.dense(3))  # here
    go.init(model, al.spec("b 5"))


@mistake(
    """
ValueError: params of 'emb' were read before it was called, so their shapes are not known. Call it first.
  in the model: wire(fn=<f {there}>, ...) on int32[b, t]  ({here})
"""
)
def weights_read_before_they_exist(go):
    def f(sub, x):  # there
        y = sub.emb(x) if not go.wrong else jnp.zeros((*x.shape, 4))
        return y @ sub.emb.params["embedding"].T

    model = al.wire(f, emb=al.embedding(9, 4))  # here
    go.init(model, al.spec("b t", int))


@mistake(
    """
ShapeError: reshape: expected (batch, ...) with 49 elements an example, for sizes (7, 7, 1), got float32[b, 50]. The product of the sizes must be that of the input's.
  in reshape: reshape(7, 7, 1) on float32[b, 50]              ({here})
  trail: input float32[b, 5] -> dense float32[b, 50] -> reshape ✗
"""
)
def reshape_to_another_size(go):
    model = al.dense(50 if go.wrong else 49) >> al.reshape(7, 7, 1)  # here
    go.output_spec(model, al.spec("b 5"))


@mistake(
    """
ShapeError: attention: expected (batch, time, features) with features a multiple of num_heads 3, got float32[b, t, 8]. Or give qkv_features=.
  in blocks/*/attention: attention(num_heads=3) on float32[b, t, 8]   ({here})
  trail: input float32[b, t, 8] -> layer_norm float32[b, t, 8] -> attention ✗
"""
)
def heads_that_do_not_divide_the_width(go):
    block = al.residual(al.layer_norm() >> al.attention(3 if go.wrong else 4))  # here
    model = al.serial(embed=al.embedding(9, 8), blocks=al.repeat(block, 2))
    go.init(model, al.spec("b t", int))


@mistake(
    """
ShapeError: pick: expected a tuple with item 2, got (float32[b, 3], float32[b, 4]). Check what comes in.
  in pick: pick(i=2) on (float32[b, 3], float32[b, 4])                ({here})
  trail: input float32[b, 5] -> branch (float32[b, 3], float32[b, 4]) -> pick ✗
"""
)
def item_that_is_not_there(go):
    model = (al.dense(3) & al.dense(4)) >> al.pick(2 if go.wrong else 1)  # here
    go.output_spec(model, al.spec("b 5"))


@mistake(
    """
TypeError: input: expected an array, al.spec(...), jax.ShapeDtypeStruct or a shape, got set. Write al.spec('b 784') for an unknown batch.
"""
)
def spec_of_no_array(go):
    model = al.dense(3)
    go.output_spec(model, {"x"} if go.wrong else (None, 5))  # here


@mistake(
    """
TypeError: ...
  in head: <project {there}> on float32[b, 8]            ({here})
  trail: input float32[b, 5] -> body float32[b, 8] -> head ✗
"""
)
def jax_error_in_a_function(go):
    def project(x):  # there
        return jnp.dot(x, jnp.zeros((9 if go.wrong else 8, 3)))

    model = al.serial(body=al.dense(8) >> jax.nn.relu, head=project)  # here
    go.init(model, al.spec("b 5"))


@mistake(
    """
TypeError: ...
  in blocks/*/projection: projection(features=8) on float32[b, 8]     ({here})
  trail: input float32[b, 8] -> dense float32[b, 8] -> relu float32[b, 8] -> projection ✗
"""
)
def jax_error_in_a_layer(go):
    @al.layer
    def projection(features):
        def init(key, x):
            wide = x.shape[-1] + 1 if go.wrong else x.shape[-1]
            return {"kernel": jnp.zeros((wide, features))}

        def apply(params, x):
            return x @ params["kernel"]

        return init, apply

    block = al.residual(al.dense(8) >> jax.nn.relu >> projection(8))  # here
    model = al.serial(stem=al.dense(8), blocks=al.repeat(block, 4))
    go.init(model, al.spec("b 5"))


@mistake(
    """
TypeError: scaled: init must return a dict of params, got float32[8].
  in scaled: scaled() on float32[b, 8]                                ({here})
  trail: input float32[b, 5] -> dense float32[b, 8] -> scaled ✗
"""
)
def init_that_returns_no_dict(go):
    @al.layer
    def scaled():
        def init(key, x):
            scale = jnp.ones(x.shape[-1])
            return scale if go.wrong else {"scale": scale}

        def apply(params, x):
            return x * jnp.broadcast_to(params["scale"], x.shape)

        return init, apply

    model = al.dense(8) >> scaled()  # here
    go.init(model, al.spec("b 5"))


@mistake(
    """
ShapeError: counted: expected new state {count: int32[]}, got {count: float32[]}. Return the state with the structure, shapes and dtypes it came with.
  in counted: counted() on float32[b, 8]                              ({here})
  trail: input float32[b, 5] -> dense float32[b, 8] -> counted ✗
"""
)
def state_that_changes_its_dtype(go):
    @al.layer
    def counted():
        def init(key, x):
            return {}, {"count": jnp.zeros((), jnp.int32)}

        def apply(params, x, *, state):
            dtype = jnp.float32 if go.wrong else jnp.int32
            return x, {"count": (state["count"] + 1).astype(dtype)}

        return init, apply

    model = al.dense(8) >> counted() >> al.dense(2)  # here
    go.init(model, al.spec("b 5"))


@mistake(
    """
TypeError: counted: apply takes state, so it must return (y, new_state), got float32[b, 8].
  in counted: counted() on float32[b, 8]                              ({here})
  trail: input float32[b, 5] -> dense float32[b, 8] -> counted ✗
"""
)
def state_that_is_not_returned(go):
    @al.layer
    def counted():
        def init(key, x):
            return {}, {"count": jnp.zeros((), jnp.int32)}

        def apply(params, x, *, state):
            return x if go.wrong else (x, state)

        return init, apply

    model = al.dense(8) >> counted() >> al.dense(2)  # here
    go.init(model, al.spec("b 5"))


# --- while apply is traced under jit


@mistake(
    """
TypeError: ...
  in hidden/dense: dense(features=8) on float32[2, 6]                 ({here})
  trail: input float32[2, 6] -> dense ✗
  kernel: float32[5, 8], where init makes float32[6, 8]
"""
)
def other_width_than_in_init(go):
    model = al.serial(hidden=al.dense(8) >> jax.nn.relu, head=al.dense(3))  # here
    params, state = zeros(model, (None, 5))
    go.jit(model.apply, params, state, array(2, 6 if go.wrong else 5))


@mistake(
    """
ShapeError: dense: expected bias float32[8], kernel float32[5, 8], got bias float32[9], kernel float32[5, 9]. Pass the params that init made for such an input.
  in dense: dense(features=8) on float32[2, 5]                        ({here})
  trail: input float32[2, 5] -> dense ✗
"""
)
def weights_of_another_model(go):
    model = al.dense(8) >> jax.nn.relu >> al.dense(3)  # here
    params, state = zeros(al.dense(9 if go.wrong else 8) >> al.dense(3), (None, 5))
    other = zeros(model, (None, 5))[0]
    params = {**other, "dense": params["dense"]}
    go.jit(model.apply, params, state, array(2, 5))


@mistake(
    """
ShapeError: conv: expected (..., 2), got float32[2, 8, 8, 1]. The params were made for that width.
  in conv: conv(features=4, kernel_size=3) on float32[2, 8, 8, 1]     ({here})
  trail: input float32[2, 8, 8, 1] -> conv ✗
  kernel: float32[3, 3, 2, 4], where init makes float32[3, 3, 1, 4]
"""
)
def images_without_channels(go):
    model = al.conv(4, 3) >> al.global_avg_pool() >> al.dense(3)  # here
    params, state = zeros(model, (None, 8, 8, 2))
    go.jit(model.apply, params, state, array(2, 8, 8, 1 if go.wrong else 2))


@mistake(
    """
ValueError: dropout: expected a key in training, got None. Pass apply(..., key=jax.random.key(seed), train=True).
  in body/dropout: dropout(rate=0.5) on float32[2, 8]                 ({here})
  trail: input float32[2, 5] -> dense float32[2, 8] -> relu float32[2, 8] -> dropout ✗
"""
)
def no_key_in_training(go):
    body = al.dense(8) >> jax.nn.relu >> al.dropout(0.5)  # here
    model = al.serial(body=body, head=al.dense(3))
    params, state = zeros(model, (None, 5))

    def step(params, state, x, key):
        key = None if go.wrong else key
        return model.apply(params, state, x, key=key, train=True)

    go.jit(step, params, state, array(2, 5), KEY)


@mistake(
    """
TypeError: key: expected one jax.random.key(seed), got int.
"""
)
def number_as_the_key(go):
    model = al.dense(8) >> al.dropout(0.5)
    params, state = zeros(model, (None, 5))

    def step(params, state, x, key):
        return model.apply(params, state, x, key=0 if go.wrong else key)  # here

    go.jit(step, params, state, array(2, 5), KEY)


@mistake(
    """
PathError: state of batch_norm: nothing is called 'mean'. There are no names here. Pass the params and state that init returned.
  in stem/batch_norm: batch_norm() on float32[2, 8]                   ({here})
  trail: input float32[2, 5] -> dense float32[2, 8] -> batch_norm ✗
"""
)
def no_state_in_training(go):
    stem = al.dense(8) >> al.batch_norm() >> jax.nn.relu  # here
    model = al.serial(stem=stem, head=al.dense(3))
    params, state = zeros(model, (None, 5))

    def step(params, state, x):
        return model.apply(params, {} if go.wrong else state, x, train=True)

    go.jit(step, params, state, array(2, 5))


@mistake(
    """
TypeError: train: expected a Python bool, got a traced value. Write jax.jit(model.apply, static_argnames='train').
"""
)
def traced_train(go):
    model = al.dense(8) >> al.dropout(0.5)
    params, state = zeros(model, (None, 5))

    def step(params, state, x, key, train):
        train = train if go.wrong else True
        return model.apply(params, state, x, key=key, train=train)  # here

    go.jit(step, params, state, array(2, 5), KEY, True)


@mistake(
    """
TypeError: train: expected a Python bool, got str. Write train=True.
"""
)
def train_that_is_no_bool(go):
    model = al.dense(8) >> jax.nn.relu
    params, state = zeros(model, (None, 5))

    def step(params, state, x):
        train = "yes" if go.wrong else True
        return model.apply(params, state, x, train=train)  # here

    go.jit(step, params, state, array(2, 5))


@mistake(
    """
PathError: params of dense: nothing is called 'bias'. There are no names here. It is among the state: write apply(params, state, x).
  in hidden: dense(features=8) on float32[2, 5]                       ({here})
  trail: input float32[2, 5] -> hidden ✗
"""
)
def params_and_state_swapped(go):
    hidden = al.dense(8)  # here
    model = al.serial(hidden=hidden, norm=al.batch_norm(), head=al.dense(3))
    params, state = zeros(model, (None, 5))
    trees = (state, params) if go.wrong else (params, state)
    go.jit(model.apply, *trees, array(2, 5))


@mistake(
    """
TypeError: params: expected a dict, got tuple. Pass the trees that init returned: apply(params, state, x).
"""
)
def both_trees_as_params(go):
    model = al.dense(8) >> jax.nn.relu
    params, state = zeros(model, (None, 5))
    trees = ((params, state) if go.wrong else params, state)
    go.jit(model.predict, *trees, array(2, 5))  # here


@mistake(
    """
ValueError: params: no layer is called 'haed'. Nearest: 'head'. Take it out, or pass the params that init returned.
  in the model: serial(...) on float32[2, 5]                          ({here})
"""
)
def params_that_nobody_asked_for(go):
    model = al.serial(hidden=al.dense(8), head=al.dense(3))  # here
    params, state = zeros(model, (None, 5))
    extra = {"haed": params["head"]} if go.wrong else {}
    go.jit(model.apply, {**params, **extra}, state, array(2, 5))


@mistake(
    """
PathError: params of dense: nothing is called 'bias'. There are no names here. Pass the params and state that init returned.
  in blocks/1/dense_1: dense(features=8) on float32[2, 8]             ({here})
  trail: input float32[2, 8] -> dense float32[2, 8] -> relu float32[2, 8] -> dense_1 ✗
"""
)
def params_that_are_missing(go):
    block = al.residual(al.dense(8) >> jax.nn.relu >> al.dense(8))  # here
    model = al.serial(stem=al.dense(8), blocks=al.repeat(block, 3, stacked=False))
    params, state = zeros(model, (None, 5))
    if go.wrong:
        del params["blocks"]["1"]["dense_1"]
    go.jit(model.apply, params, state, array(2, 5))


@mistake(
    """
TypeError: params or state: expected a dict at 'head', got float32[8, 3]. Pass the trees that init returned.
  in the model: serial(...) on float32[2, 5]                          ({here})
  trail: input float32[2, 5] -> hidden float32[2, 8] ✗
"""
)
def array_where_a_dict_belongs(go):
    model = al.serial(hidden=al.dense(8), head=al.dense(3))  # here
    params, state = zeros(model, (None, 5))
    if go.wrong:
        params["head"] = params["head"]["kernel"]
    go.jit(model.apply, params, state, array(2, 5))


@mistake(
    """
ShapeError: stacked params: expected a leading axis of 4, got float32[3, 8]. Pass the trees that init returned.
  in repeat: repeat(n=4, ...) on float32[2, 8]                        ({here})
  trail: input float32[2, 5] -> dense float32[2, 8] -> repeat ✗
"""
)
def stack_of_another_depth(go):
    block = al.residual(al.dense(8) >> jax.nn.relu)
    model = al.dense(8) >> al.repeat(block, 4)  # here
    params, state = zeros(model, (None, 5))
    if go.wrong:
        params = {**params, **zeros(al.dense(8) >> block**3, (None, 5))[0]}
    go.jit(model.apply, params, state, array(2, 5))


@mistake(
    """
PathError: options: nothing is called 'decode'. There are no names here. Options are keyword-only parameters of a layer's apply.
"""
)
def option_that_nobody_declares(go):
    model = al.dense(8) >> jax.nn.relu
    params, state = zeros(model, (None, 5))
    options = {"decode": True} if go.wrong else {}
    apply = functools.partial(model.apply, options=options)
    go.jit(apply, params, state, array(2, 5))  # here


@mistake(
    """
TypeError: cut: option 'steps' was not given. Pass options={'steps': ...} to apply.
  in cut: cut() on float32[2, 8]                                      ({here})
  trail: input float32[2, 5] -> dense float32[2, 8] -> cut ✗
"""
)
def option_that_is_not_given(go):
    @al.layer
    def cut():
        def apply(params, x, *, steps):
            return x[:, :steps]

        return None, apply

    model = al.dense(8) >> cut()  # here
    params, state = zeros(al.serial(al.dense(8)), (None, 5))
    options = {} if go.wrong else {"steps": 2}
    go.jit(functools.partial(model.apply, options=options), params, state, array(2, 5))


@mistake(
    """
ValueError: vmap: the layer's state changes, and would differ along the mapped axis. Use ensemble for a state each, or a layer that takes the extra axis.
  in frames: vmap(...) on float32[4, 2, 5]                            ({here})
  trail: input float32[4, 2, 5] -> frames ✗
"""
)
def vmap_over_a_changing_state(go):
    @al.layer
    def counted():
        def init(key, x):
            return {}, {"count": jnp.zeros((), jnp.int32)}

        def apply(params, x, *, state):
            count = state["count"]
            return x, {"count": count + 1 if go.wrong else count}

        return init, apply

    frames = al.vmap(al.dense(8) >> counted())  # here
    model = al.serial(frames=frames, head=al.dense(3))
    params, state = zeros(model, (4, None, 5))
    go.jit(model.apply, params, state, array(4, 2, 5))


@mistake(
    """
ShapeError: scan: expected the carry float32[2, 8] out, as it came in, got float32[2, 16]. What is run again on its own output must keep its shape and dtype.
  in growing: scan(...) on float32[2, 4, 8]                           ({here})
  trail: input float32[2, 4, 5] -> dense float32[2, 4, 8] -> growing ✗
"""
)
def carry_that_changes_its_width(go):
    @al.layer
    def growing():
        def apply(params, carry, x):
            return (jnp.concatenate([carry, x], -1) if go.wrong else carry), x

        return al.Cell(None, apply, lambda x: jnp.zeros(x.shape, x.dtype))

    model = al.dense(8) >> al.scan(growing())  # here
    params, state = zeros(al.serial(al.dense(8)), (None, 4, 5))
    go.jit(model.apply, params, state, array(2, 4, 5))


# --- what holds for all of them


def made(name, **how):
    """The exception that a mistake raises."""
    case, _ = CASES[name]
    with pytest.raises(Exception) as caught:  # noqa: PT011 (the text is held below)
        case(Go(wrong=True, **how))
    return caught.value


def told(error):
    """Type, message and our notes, as Python prints them, but for their alignment."""
    notes = [n for n in getattr(error, "__notes__", []) if not n.startswith("---")]
    text = "\n".join([f"{type(error).__name__}: {error}", *notes])
    return re.sub(rf" +\({FILE}", f" ({FILE}", text)


def marked(case, mark):
    """The number of the line that ends in a mark."""
    lines, start = inspect.getsourcelines(case)
    found = [i for i, line in enumerate(lines) if line.rstrip().endswith(f"# {mark}")]
    return start + found[0] if found else 0


def expected(name):
    case, text = CASES[name]
    for mark in ("here", "there"):
        text = text.replace(f"{{{mark}}}", f"{FILE}:{marked(case, mark)}")
    return re.sub(rf" +\({FILE}", f" ({FILE}", text)


@pytest.mark.parametrize("name", CASES)
def test_the_message_is_this_word_for_word(name):
    got, want = told(made(name)).splitlines(), expected(name).splitlines()
    if want[0].endswith(": ..."):
        got[0] = got[0].split(": ")[0] + ": ..."
    assert got == want


def test_the_note_stands_in_columns():
    block = al.serial(mlp=al.dense(8) >> jax.nn.relu >> al.dense(2))
    model = al.serial(blocks=block)
    params, state = zeros(model, (None, 5))
    params["blocks"]["mlp"]["dense_1"]["kernel"] = array(9, 2)
    with pytest.raises(TypeError) as caught:
        jax.eval_shape(model.apply, params, state, array(3, 5))
    line = inspect.currentframe().f_lineno - 6
    assert caught.value.__notes__[0].splitlines() == [
        "  in blocks/mlp/dense_1: dense(features=2) on float32[3, 8]           "
        f"({FILE}:{line})",
        "  trail: input float32[3, 5] -> dense float32[3, 8] -> relu float32[3, 8] "
        "-> dense_1 ✗",
    ]


@pytest.mark.parametrize("name", CASES)
def test_the_users_line_is_told(name):
    """In the note, or where there is none (no layer ran) at the end of the traceback."""
    case, text = CASES[name]
    error, line = made(name), marked(case, "here")
    trace = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in trace if frame.filename == __file__]
    assert line > 0
    assert "{here}" in text or line in [frame.lineno for frame in own]
    package = str(Path(al.__file__).parent)
    after = trace[trace.index(own[-1]) + 1 :]
    assert len([frame for frame in after if frame.filename.startswith(package)]) <= 3


@pytest.fixture(scope="module")
def compiled():
    """The functions that were compiled, as JAX reports them from here on."""
    seen = []

    def listen(event, duration, **how):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return seen


@pytest.mark.parametrize("name", CASES)
def test_nothing_was_compiled(name, compiled):
    made(name)
    compiled.clear()
    made(name)
    assert not compiled


def test_what_is_compiled_would_be_seen(compiled):
    compiled.clear()
    model = al.dense(8) >> jax.nn.relu
    params, state = zeros(model, (None, 5))
    assert not compiled
    Go(wrong=True).jit(model.apply, params, state, array(2, 5))
    assert len(compiled) == 1


def seconds(case, *, wrong):
    """How long tracing takes (or the whole case, where nothing is traced)."""
    go = Go(wrong=wrong, trace_only=True)
    start = time.thread_time()
    with contextlib.suppress(Exception):
        case(go)
    return go.seconds or time.thread_time() - start


def quickest(case, count):
    """With the mistake and without: what the machine did besides is in neither."""
    with jax.check_tracer_leaks(False):  # which collects garbage after each trace
        pairs = [[seconds(case, wrong=w) for w in (True, False)] for _ in range(count)]
    return map(min, zip(*pairs, strict=True))


def bare(go):
    """What JAX itself takes to bring an exception out of a traced function."""

    def function(x):
        if go.wrong:
            raise ValueError
        return x

    go.jit(function, array(2))


unhurried = pytest.mark.skipif(
    "coverage" in sys.modules,
    reason="Coverage slows our lines and not JAX's own, so that no ratio of times says "
    "anything; without it the test runs in CI.",
)


@unhurried
@pytest.mark.parametrize("name", CASES)
def test_a_mistake_costs_no_more_than_what_is_right(name):
    """But for JAX's own time to raise, which is that of a whole trace of so few layers."""
    case, _ = CASES[name]
    quickest(case, 2)
    for count in (5, 15, 45):  # again, and longer, before noise is called slow
        wrong, right = quickest(case, count)
        raising, tracing = quickest(bare, count)
        if wrong <= 1.2 * right + 2 * (raising - tracing) + 5e-4:
            return
    pytest.fail(f"{wrong * 1e3:.2f} ms with the mistake, {right * 1e3:.2f} without")


def transformer(**last):
    block = al.residual(al.layer_norm() >> al.attention(2, causal=True))
    block = block >> al.residual(al.dense(16) >> jax.nn.gelu >> al.dense(8))
    blocks = al.repeat(block, 12, stacked=False)
    return al.serial(embed=al.embedding(9, 8), blocks=blocks, **last)


def last_of_many_layers(go):
    model = transformer(drop=al.dropout(0.5), head=al.dense(3))
    params, state = zeros(model, al.spec("b 6", int))
    wide = 9 if go.wrong else 8
    params["head"]["kernel"] = array(wide, 3)
    x = array(2, 6, dtype=np.int32)
    go.jit(lambda *args: model.apply(*args, train=False), params, state, x)


def last_key_of_many_layers(go):
    model = transformer(head=al.dense(3), drop=al.dropout(0.5))
    params, state = zeros(model, al.spec("b 6", int))
    key = None if go.wrong else KEY
    x = array(2, 6, dtype=np.int32)
    go.jit(lambda *args: model.apply(*args, key=key, train=True), params, state, x)


def last_shape_of_many_layers(go):
    sizes = (7, 7) if go.wrong else (7, 8)
    layers = [al.dense(8 + i) for i in range(200)]
    model = al.serial(*layers, al.dense(56), al.reshape(*sizes))
    go.output_spec(model, al.spec("b 6"))


@unhurried
@pytest.mark.parametrize(
    "case", [last_of_many_layers, last_key_of_many_layers, last_shape_of_many_layers]
)
def test_after_many_layers_a_mistake_costs_nothing(case):
    quickest(case, 1)
    for count in (3, 5, 11):
        wrong, right = quickest(case, count)
        if wrong <= 1.2 * right:
            return
    pytest.fail(f"{wrong * 1e3:.2f} ms with the mistake, {right * 1e3:.2f} without")
