"""What tables are made of: a model's jaxpr with its layers, and the specs of outputs."""

import html.parser

import jax
import jax.numpy as jnp
import pytest
from zoo import MODELS

import axonlike as al
from axonlike.evaluation import recorded
from axonlike.inspect.costs import forward_costs, inner, is_layer, kept_costs
from axonlike.inspect.trace import Call
from axonlike.spec import as_spec, show

KEY = jax.eval_shape(lambda: jax.random.key(0))


def call_of(model, x, **options):
    params, state = jax.eval_shape(lambda key: model.init(key, x), KEY)
    return Call(model, params, state, x, **options)


def counting(seen):
    @al.layer
    def counted(features):
        def apply(params, x):
            seen.append(x.shape)
            return x * 2.0

        return None, apply

    return counted


def test_equal_layers_on_equal_inputs_are_traced_once():
    seen = []
    counted = counting(seen)
    model = al.serial(*[counted(1)] * 9, al.lift(lambda x: x[:, :2]), counted(1))
    call = call_of(model, jax.ShapeDtypeStruct((2, 3), jnp.float32))
    seen.clear()
    call.forward()
    assert seen == [(2, 3), (2, 2)]


def test_layers_stand_in_the_jaxpr_as_calls():
    model = al.dense(3) >> al.residual(al.dense(3, name="inner") >> jnp.tanh)
    jaxpr = call_of(model, jax.ShapeDtypeStruct((2, 3), jnp.float32)).forward().jaxpr
    calls = [equation for equation in jaxpr.eqns if is_layer(equation)]
    assert len(calls) == 3
    assert all(inner(equation) for equation in calls)


@pytest.mark.parametrize("name", ["convnet", "vit", "experts", "lstm", "ensemble"])
def test_what_is_put_around_layers_changes_no_cost(name):
    """The same sums as those of the jaxpr that `apply` has by itself."""
    model, spec = MODELS[name]()
    x = jax.tree.map(lambda s: jax.ShapeDtypeStruct(fixed(s), s.dtype), spec)
    call = call_of(model, x)
    plain = jax.make_jaxpr(model.apply)(call.params, call.state, x)
    both = [total(forward_costs(jaxpr), "flops") for jaxpr in (call.forward(), plain)]
    assert both[0] == both[1] > 0


def test_a_kernel_costs_what_it_does_at_every_place_of_its_grid():
    from jax.experimental import pallas as pl

    def kernel(x, y):
        y[...] = x[...] * 2.0 + 1.0

    def run(x):
        block = pl.BlockSpec((2, 8), lambda i: (i, 0))
        return pl.pallas_call(
            kernel,
            jax.typeof(x),
            grid=(4,),
            in_specs=[block],
            out_specs=block,
            interpret=True,
        )(x)

    table = al.summary(al.identity >> al.lift(run), al.spec("8 8"))
    assert table.total("flops") == 2 * 8 * 8
    assert table.total("activations") == 4 * 8 * 8


def test_a_loop_of_unknown_length_counts_once():
    def loop(x):
        def body(carry):
            n, y, total = carry
            return n + 1, jnp.sin(y), total + jnp.sum(y)

        return jax.lax.while_loop(lambda c: c[2] < 3.0, body, (0, x, 0.0))[1]

    table = al.summary(al.dense(4) >> loop, al.spec("2 4"))
    (_, row) = table.rows
    assert row["flops"] == 8 + 7 + 1
    assert row["activations"] == 4 * 2 * 4


def fixed(spec):
    return tuple(n if isinstance(n, int) else 4 for n in spec.dims)


def total(costs, what):
    return sum(cost for (kind, _), cost in costs.items() if kind == what)


def test_state_changes_inside_of_calls_as_it_does_without():
    model = al.repeat(al.dense(3) >> al.batch_norm(), 2, stacked=False)
    call = call_of(model, jax.ShapeDtypeStruct((4, 3), jnp.float32), train=True)
    y, state = call.forward().out_avals[0], call.forward().out_avals[1:]
    assert y.shape == (4, 3)
    before = jax.tree.leaves(call.state)
    assert [(s.shape, s.dtype) for s in state] == [(s.shape, s.dtype) for s in before]
    jaxpr = call.forward().jaxpr
    assert not set(jaxpr.outvars) & set(jaxpr.invars)  # all of it is new


def test_arguments_are_not_kept():
    def product(sub, x):
        return sub.w() * x  # its derivative needs x, which is there

    model = al.wire(product, w=al.parameter((3,)))
    call = call_of(model, jax.ShapeDtypeStruct((3,), jnp.float32))
    assert total(kept_costs(call.linear()), "kept") == 0


@pytest.mark.parametrize("name", MODELS)
def test_the_abstract_pass_knows_what_every_layer_returns(name):
    model, spec = MODELS[name]()
    y, recorder = recorded(model, as_spec(spec))
    sites = model.sites(spec)
    for path, found in recorder.outputs.items():
        if path and path in sites and "*" not in path:
            assert show(found) == show(sites[path])
    assert show(recorder.outputs[""]) == show(y)
    known = {path for path, _ in al.layers(model)}
    assert known - {""} <= set(recorder.outputs)


# --- a model in a notebook


class Balanced(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.text, self.deepest = [], [], 0

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.deepest = max(self.deepest, self.open.count("details"))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.parametrize("name", MODELS)
def test_the_html_of_a_model_has_the_lines_of_its_text(name):
    model, _ = MODELS[name]()
    page = Balanced()
    page.feed(model._repr_html_())
    assert page.open == []
    lines = str(model).splitlines()
    assert page.text == [line.strip() for line in lines]
    depths = [(len(line) - len(line.lstrip())) // 2 for line in lines]
    assert page.deepest == max(depths)


def test_the_html_of_a_model_is_escaped():
    model = al.lift(lambda x: x) >> al.wire(lambda sub, x: x, f=al.dense(2))
    assert "<lambda" not in model._repr_html_()


def test_of_a_layer_with_several_uses_the_first_output_is_known():
    def twice(sub, x):
        return sub.f(sub.f(x)[:, :2])

    model = al.serial(
        a=al.wire(twice, f=al.lift(jnp.tanh)), b=al.wire(twice, f=jnp.tanh)
    )
    outputs = recorded(model, as_spec(al.spec("b 2 3")))[1].outputs
    assert (show(outputs["a/f"]), show(outputs["a"])) == (
        "float32[b, 2, 3]",
        "float32[b, 2, 3]",
    )
    assert outputs["a/f"] == outputs["b/f"]
