"""Tables of models: what stands in them, what it adds up to, and how it is shown.

Costs are compared with what XLA and JAX report for the same models.
"""

import io
import json
import re
import subprocess
import sys
from contextlib import redirect_stdout

import goldens
import jax
import jax.numpy as jnp
import optax
import pytest
from jax.ad_checkpoint import print_saved_residuals
from zoo import MODELS

import axonlike as al

SIZES = {"lstm": {"b": 4, "t": 8}}
SUMS = (
    "params",
    "bytes",
    "trainable",
    "frozen",
    "state",
    "flops",
    "activations",
    "kept",
)
STABLE = ["path", "kind", "output", "params", "trainable", "state", "tied_to",
          "connected_to", "flops", "activations", "share"]  # fmt: skip
KEY = jax.eval_shape(lambda: jax.random.key(0))


def sizes_of(name):
    return SIZES.get(name, {"b": 4})


def table_of(name, **options):
    model, spec = MODELS[name]()
    return al.summary(model, spec, sizes=sizes_of(name), **options)


def row_of(table, path):
    (row,) = [row for row in table.rows if row["path"] == path]
    return row


def arrays_of(name):
    """The model, and the shapes of params, state and input at the sizes of the tables."""
    model, spec = MODELS[name]()
    fixed = jax.tree.map(lambda s: sized(s, sizes_of(name)), spec)
    params, state = jax.eval_shape(lambda key: model.init(key, fixed), KEY)
    return model, params, state, fixed


def sized(spec, sizes):
    dims = [sizes.get(n, n) for n in spec.dims]
    return jax.ShapeDtypeStruct(tuple(dims), spec.dtype)


# --- golden texts


@pytest.mark.parametrize("name", MODELS)
def test_the_text_of_a_model_and_its_table_stays(name, request):
    """All but what is kept, in which versions of JAX differ."""
    model, _ = MODELS[name]()
    table = table_of(name, optimizer=optax.adam(1e-3), columns=STABLE)
    lines = table.text(140).splitlines()
    text = "\n".join(line for line in lines if not line.startswith("kept "))
    record = request.config.getoption("--record")
    goldens.check(f"summary/{name}.txt", f"{model}\n\n{text}", record=record)


# --- sums


@pytest.mark.parametrize("name", MODELS)
def test_every_column_adds_up_to_its_total(name):
    table = table_of(name)
    for what in SUMS:
        assert sum(row[what] for row in table.rows) == table.total(what)
    model, params, state, _ = arrays_of(name)
    assert table.total("params") == al.count(params)
    assert table.total("bytes") == al.nbytes(params)
    assert table.total("state") == al.count(state)
    marks = jax.tree.leaves(al.trainable(model, params))
    free = sum(x.size for x, m in zip(jax.tree.leaves(params), marks, strict=True) if m)
    assert table.total("trainable") == free
    assert table.total("frozen") == al.count(params) - free


@pytest.mark.parametrize("name", ["gpt", "resnet", "experts"])
def test_a_table_that_is_cut_has_the_same_totals(name):
    whole = table_of(name)
    for depth in (1, 2):
        cut = table_of(name, depth=depth)
        assert cut.totals == whole.totals
        assert sum(row["flops"] for row in cut.rows) == whole.total("flops")
        assert max(row["depth"] for row in cut.rows) < depth
    top = [row["path"] for row in table_of(name, depth=1).rows]
    assert top == [row["path"] for row in whole.rows if row["depth"] == 0]


def block(width=8):
    attn = al.layer_norm() >> al.attention(2, name="attn")
    mlp = al.dense(4 * width) >> jax.nn.gelu >> al.dense(width)
    return al.residual(attn) >> al.residual(mlp)


def flops_of(model, spec="2 5 8"):
    return al.summary(model, al.spec(spec)).total("flops")


@pytest.mark.parametrize("stacked", [True, False])
def test_costs_are_linear_in_the_number_of_copies(stacked):
    def costs(n):
        model = al.repeat(block(), n, stacked=stacked) >> al.dense(3)
        table = al.summary(model, al.spec("2 5 8"))
        return [table.total(what) for what in ("params", "flops", "kept")]

    one, two, thirty = costs(1), costs(2), costs(30)
    each = [b - a for a, b in zip(one, two, strict=True)]
    assert thirty == [a + 29 * more for a, more in zip(one, each, strict=True)]


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (al.repeat(al.dense(4) >> jnp.tanh, 3), "repeat"),
        (al.ensemble(al.dense(4), 3), "ensemble"),
        (al.remat(al.repeat(al.dense(4), 3)), "remat"),
    ],
)
def test_a_model_that_is_copies_itself_says_how_many(model, kind):
    table = al.summary(model, al.spec("b 4"))
    assert f"({kind}) x 3" in table.text(120)
    assert re.search(rf"\| \({kind}.*\) x 3 \|", table.markdown())
    assert f"({kind}) x 3" in table.html()


def test_stacked_and_unrolled_copies_cost_the_same():
    tables = [
        al.summary(al.repeat(block(), 3, stacked=stacked), al.spec("2 5 8"))
        for stacked in (True, False)
    ]
    stacked, unrolled = ([(r["path"], r["flops"]) for r in t.rows] for t in tables)
    assert stacked == unrolled


def test_costs_of_a_recurrent_layer_are_linear_in_time():
    one, two, nine = (flops_of(al.gru(4), f"2 {t} 3") for t in (1, 2, 9))
    assert nine - one == 8 * (two - one)


def test_a_layer_that_is_called_twice_costs_twice_and_is_counted_once():
    def twice(sub, x):
        return sub.f(sub.f(x))

    table = al.summary(al.wire(twice, f=al.dense(8)), al.spec("2 8"))
    row = row_of(table, "f")
    assert (row["params"], row["flops"]) == (72, 2 * (2 * 2 * 8 * 8 + 16))
    shared = al.summary(al.shared(al.dense(8)), (al.spec("2 8"), al.spec("2 8")))
    assert (shared.total("params"), shared.total("flops")) == (72, row["flops"])


def test_of_a_choice_the_most_expensive_layer_counts():
    model = al.switch(lambda x: 0, al.dense(8), al.dense(8) >> al.dense(8))
    table = al.summary(model, al.spec("2 8"))
    assert table.total("flops") == 2 * (2 * 2 * 8 * 8 + 16)
    assert "note         of each choice the most expensive" in table.text(100)


def test_dropout_costs_in_training_only():
    model = al.dense(8) >> al.dropout(0.5)
    here, there = (al.summary(model, al.spec("2 8"), train=t) for t in (False, True))
    assert row_of(here, "dropout")["flops"] == 0
    assert row_of(there, "dropout")["flops"] > 0
    assert here.total("kept") == there.total("kept")


# --- against XLA and JAX


def flops_by_xla(model, params, state, x):
    return jax.jit(model.predict).lower(params, state, x).cost_analysis()["flops"]


@pytest.mark.parametrize("name", ["mlp", "siamese", "two_towers", "vit", "autoencoder"])
def test_flops_are_close_to_those_that_xla_counts(name):
    wanted = flops_by_xla(*arrays_of(name))
    assert table_of(name).total("flops") == pytest.approx(wanted, rel=0.05)


def test_flops_of_convolutions_are_those_that_xla_counts():
    """Without padding, which XLA leaves out."""
    model = al.conv(8, 3, padding="VALID") >> al.conv(4, 3, 2, padding="VALID")
    x = jax.ShapeDtypeStruct((2, 9, 9, 3), jnp.float32)
    params, state = jax.eval_shape(lambda key: model.init(key, x), KEY)
    wanted = flops_by_xla(model, params, state, x)
    assert al.summary(model, x).total("flops") == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize(
    ("name", "params", "products"),
    [("resnet", 25_557_032, 4.09e9), ("vit", 86_567_656, 17.56e9)],
)
def test_models_cost_what_is_published(name, params, products):
    """ResNet-50 and ViT-B/16, as torchvision's page of models has them."""
    table = al.summary(getattr(al.models, name)(), al.spec("b 224 224 3"))
    assert table.total("params") == params
    assert table.total("flops") == pytest.approx(2 * products, rel=0.01)


_BYTES = {"bool": 1, "i8": 1, "u8": 1, "bf16": 2, "f32": 4, "i32": 4, "u32": 4}


def kept_by_jax(name):
    """What JAX says is saved, but for the arguments, which are there anyway."""
    model, params, state, x = arrays_of(name)

    def run(params, state, x):
        return model.apply(params, state, x, key=jax.random.key(0), train=True)[0]

    said = io.StringIO()
    with redirect_stdout(said):
        print_saved_residuals(run, params, state, x)
    total = 0
    for line in said.getvalue().splitlines():
        found = re.match(r"(\w+)\[([\d,]*)\] (.*)", line)
        if found and not re.search("from the argument|a literal|a constant", found[3]):
            size = 1
            for n in filter(None, found[2].split(",")):
                size *= int(n)
            total += size * _BYTES[found[1]]
    return total


@pytest.mark.parametrize("name", ["mlp", "convnet", "resnet", "gpt", "vit", "unet"])
def test_what_is_kept_is_what_jax_says_is_saved(name):
    assert table_of(name).total("kept") == pytest.approx(kept_by_jax(name), rel=0.05)


def peak_of_step(name):
    """What XLA sets aside for a step's forward and backward pass."""
    model, params, state, x = arrays_of(name)

    def loss(params, state, x, key):
        y, state = model.apply(params, state, x, key=key, train=True)
        leaves = jax.tree.leaves(y)
        return sum(jnp.mean(leaf.astype(jnp.float32) ** 2) for leaf in leaves), state

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    sizes = step.lower(params, state, x, KEY).compile().memory_analysis()
    arrays = sizes.argument_size_in_bytes + sizes.output_size_in_bytes
    return arrays + sizes.temp_size_in_bytes - sizes.alias_size_in_bytes


@pytest.mark.parametrize("name", ["mlp", "convnet", "resnet", "gpt", "vit", "unet"])
def test_the_peak_is_what_xla_sets_aside_for_a_step(name):
    table = table_of(name)
    assert "peak" not in table.totals
    assert table.total("peak") == pytest.approx(peak_of_step(name), rel=0.05)
    assert "\npeak  " in str(table)


BIG = """
import sys, time
import jax
import axonlike as al
def peak():  # this process alone, which getrusage counts from its parent on
    with open("/proc/self/status") as file:
        return next(line.split()[1] for line in file if line.startswith("VmHWM"))
def block(width):
    attn = al.layer_norm() >> al.attention(16, causal=True, name="attn")
    mlp = al.dense(4 * width) >> jax.nn.gelu >> al.dense(width)
    return al.residual(attn) >> al.residual(al.layer_norm() >> mlp)
model = al.serial(
    embed=al.embedding(50257, 1536),
    blocks=al.repeat(block(1536), 36, stacked=sys.argv[1] == "stacked"),
    head=al.dense(50257),
)
start = time.process_time()
table = al.summary(model, al.spec("b 1024", int))
text = str(table)
seconds = time.process_time() - start
print(table.total("params"), seconds, peak())
"""


@pytest.mark.skipif(
    sys.platform != "linux",
    reason="Only Linux tells the peak memory of one process without its parent's.",
)
@pytest.mark.parametrize("storage", ["stacked", "unrolled"])
def test_a_model_of_a_billion_params_is_tabulated_at_once(storage):
    """In less than 2 seconds and 500 MB, all of Python included."""
    done = subprocess.run(
        [sys.executable, "-c", BIG, storage], check=True, capture_output=True, text=True
    )
    params, seconds, kilobytes = map(float, done.stdout.split())
    assert params > 1e9
    assert seconds < 2
    assert kilobytes < 500_000


# --- what other libraries' tables get wrong


def test_one_dense_layer_has_a_table_where_axon_fails():
    table = al.summary(al.dense(2), al.spec("b 3"))
    (row,) = table.rows
    assert (row["path"], row["kind"], row["output"]) == ("", "dense", "float32[b, 2]")
    assert (row["params"], table.total("params")) == (8, 8)


def test_totals_do_not_mix_in_the_optimizer_as_keras_does():
    model = al.dense(4) >> al.batch_norm() >> al.frozen(al.dense(2))
    table = al.summary(model, al.spec("b 3"), optimizer=optax.adam(1e-3))
    totals = [table.total(w) for w in ("params", "trainable", "frozen", "state")]
    assert totals == [16 + 8 + 10, 16 + 8, 10, 8]
    assert table.total("optimizer") == 2 * 4 * 24 + 4  # and a count; none for frozen
    assert table.total("bytes") == 4 * table.total("params")


def test_a_scanned_stack_costs_what_its_layers_do_where_linen_counts_one():
    """Linen's `tabulate` says 82 for such a stack of 30, XLA's analysis of one layer."""
    layer = al.residual(al.dense(8, use_bias=False) >> jnp.tanh)
    model = al.repeat(layer, 30)
    assert flops_of(model, "1 8") == 30 * (2 * 8 * 8 + 8 + 8)
    xla = []
    for n in (12, 48, 96):
        stack, x = al.repeat(layer, n), jnp.ones((1, 8))
        params, state = jax.eval_shape(stack.init, KEY, x)
        xla.append(flops_by_xla(stack, params, state, x))
    assert flops_of(al.repeat(layer, 48), "1 8") == 4 * flops_of(
        al.repeat(layer, 12), "1 8"
    )
    assert xla == pytest.approx([xla[0]] * 3, rel=0.1)  # a scan's body, once


def test_every_output_of_a_model_with_several_is_told():
    heads = row_of(table_of("two_towers"), "heads")
    assert heads["output"] == "{click: float32[b, 2], rating: float32[b, 1]}"


def test_rows_are_in_the_order_of_the_model_where_linens_are_alphabetical():
    model = al.serial(z=al.dense(2), a=al.dense(2), m=al.dense(3))
    rows = al.summary(model, al.spec("b 2")).rows
    assert [row["path"] for row in rows] == ["z", "a", "m"]


@pytest.mark.parametrize("inner", [False, True])
def test_new_state_is_no_activation(inner):
    layer = al.ensemble(al.batch_norm(), 3)
    model = al.serial(a=layer) if inner else layer
    table = al.summary(model, al.spec("4 5"), train=True)
    assert table.total("activations") == 3 * 4 * 5 * 4


@pytest.mark.parametrize(
    "layer",
    [al.dense(4), al.residual(al.dense(4)), al.repeat(al.dense(4), 3),
     al.ensemble(al.dense(4), 2), al.dense(4) >> abs],
)  # fmt: skip
def test_a_model_returns_the_same_bytes_as_it_does_inside_of_another(layer):
    sums = [
        al.summary(model, al.spec("2 4")).total("activations")
        for model in (layer, al.serial(inner=layer))
    ]
    assert sums[0] == sums[1] > 0


def test_scopes_of_a_users_own_are_no_layers():
    def staged(sub, x):
        with jax.named_scope("stage"):
            return sub.b(sub.a(x)) + sub.a(x)

    model = al.wire(staged, a=al.dense(3), b=al.dense(3))
    table = al.summary(model, al.spec("1 3"))
    assert [row["flops"] for row in table.rows] == [3, 2 * 21, 21]
    assert str(table)


def test_what_is_inside_of_a_scan_has_rows_where_linen_captures_the_top_alone():
    row = row_of(table_of("gpt"), "blocks/*/attn/query")
    assert (row["output"], row["n"]) == ("float32[b, 16, 32]", 6)
    assert row["params"] == 6 * (32 * 32 + 32)


def test_shared_weights_are_counted_once_where_linen_counts_them_twice():
    pair = (al.spec("b 20"), al.spec("b 20"))
    alone = al.summary(al.dense(4) >> al.dense(2), al.spec("b 20"))
    shared = al.summary(al.shared(al.dense(4) >> al.dense(2)), pair)
    assert shared.total("params") == alone.total("params")
    assert shared.total("flops") == 2 * alone.total("flops")


def test_shapes_are_enough_where_nnx_expects_values():
    struct = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    tables = [al.summary(al.dense(2), x) for x in (struct, (2, 3), al.spec("2 3"))]
    assert {table.total("flops") for table in tables} == {2 * (2 * 3 * 2 + 2)}


def test_names_are_not_cut_where_keras_cuts_them():
    name = "a_name_that_is_longer_than_a_column_may_be_wide"
    table = al.summary(al.serial(al.dense(2, name=name), al.dense(2)), al.spec("b 2"))
    cells = [line[:40].strip() for line in table.text(60).splitlines()]
    assert name in table.text(120)
    assert name in "".join(cell.split("  ")[0] for cell in cells)


def test_a_model_that_was_not_built_has_a_table_where_keras_says_unbuilt():
    model, spec = MODELS["mlp"]()
    fresh = al.serial(*model.children.values())
    assert al.summary(fresh, spec).total("params") == 101770


# --- what stands in the rows


def test_a_wrapper_of_copies_shows_what_it_wraps():
    model = al.serial(a=al.ensemble(al.dense(2), 3), b=al.ensemble(al.residual(abs), 2))
    assert str(model).splitlines()[1:] == [
        "  a: ensemble(n=3, dense(features=2))",
        "  b: ensemble(n=2, residual(abs))",
    ]


def test_named_dims_stay_named():
    table = al.summary(al.flatten() >> al.dense(2), al.spec("batch 3 4"))
    assert [r["output"] for r in table.rows] == [
        "float32[batch, 12]",
        "float32[batch, 2]",
    ]
    assert table.rows[1]["spec"].dtype == jnp.float32
    assert "note         flops and bytes of layers are for batch = 1." in table.text(
        100
    )


def test_costs_are_for_the_sizes_that_are_given():
    one = al.summary(al.dense(2), al.spec("b t 3"))
    many = al.summary(al.dense(2), al.spec("b t 3"), sizes={"b": 4, "t": 5})
    assert many.total("flops") == 20 * one.total("flops")
    assert many.rows[0]["output"] == "float32[b, t, 2]"


def test_sizes_at_which_the_model_does_not_run_leave_out_its_costs_and_say_so():
    model = al.conv(2, 3, padding="VALID") >> al.max_pool(2)
    spec = al.spec("b h w 1", constraints=("h>=4", "w>=4"))
    table = al.summary(model, spec)
    assert table.total("params") == 20
    text = table.text(400)
    assert "No costs at b = 1, h = 1, w = 1" in text
    assert "Give sizes={'b': ..., 'h': ..., 'w': ...}." in text
    for what in ("flops", "peak"):
        with pytest.raises(al.PathError, match="No costs at b = 1"):
            table.total(what)
    assert al.summary(model, spec, sizes={"h": 8, "w": 8}).total("flops") > 0


def test_a_model_without_a_derivative_has_its_other_costs():
    def called_back(x):
        return jax.pure_callback(lambda x: x, jax.typeof(x), x)

    table = al.summary(al.dense(3) >> called_back, al.spec("2 3"))
    assert table.total("flops") == 2 * (2 * 9 + 3)
    assert "Nothing is known of what is kept: Pure callbacks do" in table.text(200)
    with pytest.raises(al.PathError, match="Nothing is known of what is kept"):
        table.total("kept")


def test_tied_weights_are_counted_once_and_named():
    table = table_of("autoencoder")
    row = row_of(table, "expand")
    assert (row["params"], row["tied_to"]) == (0, ["code/kernel"])
    assert row["flops"] > 0


def test_every_tied_array_is_named_once_for_all_copies():
    pairs = {"b/kernel": "a/kernel", "b/bias": "a/bias"}
    block = al.tie(al.serial(a=al.dense(3), b=al.dense(3)), pairs)
    for model, start in ((block, ""), (al.repeat(block, 2, stacked=False), "0/")):
        rows = al.summary(model, al.spec("b 3")).rows
        (found,) = (row["tied_to"] for row in rows if row["tied_to"])
        assert sorted(found) == [f"{start}a/bias", f"{start}a/kernel"]


def test_frozen_params_are_told_from_others():
    table = table_of("autoencoder")
    row = row_of(table, "encoder/dense")
    assert (row["trainable"], row["frozen"]) == (0, 336)
    line = next(line for line in table.text(140).splitlines() if " dense  " in line)
    assert " no " in line


def test_inputs_that_come_from_elsewhere_are_named():
    rows = table_of("unet").rows
    sources = {row["path"]: row["connected_to"] for row in rows}
    assert sources["merge2"] == ["up2", "down2"]
    assert sources["merge1"] == ["up1", "down1"]
    assert sources["down1/relu"] == []  # the row before
    assert {r["path"]: r["connected_to"] for r in table_of("siamese").rows}[
        "encoder"
    ] == ["input/0", "input/1"]


def again(sub, x):
    return sub.f(sub.g(sub.f(x)))


@pytest.mark.parametrize("stacked", [None, True, False])
def test_a_layer_that_is_called_twice_is_connected_to_what_both_read(stacked):
    model, start = al.wire(again, f=al.dense(3), g=jnp.tanh), ""
    if stacked is not None:  # the first copy's inputs stand for those of all
        model, start = al.repeat(model, 2, stacked=stacked), "*/"
    rows = {
        r["path"]: r["connected_to"] for r in al.summary(model, al.spec("b 3")).rows
    }
    assert rows[f"{start}f"] == ["input", f"{start}g"]
    assert rows[f"{start}g"] == []


def test_layers_in_a_shared_one_are_connected_to_what_every_use_reads():
    rows = {row["path"]: row["connected_to"] for row in table_of("siamese").rows}
    assert rows["encoder/dense"] == ["input/0", "input/1"]


def test_wrappers_without_a_level_are_in_the_kind():
    model = al.serial(
        a=al.frozen(al.dense(4)),
        b=al.repeat(al.residual(al.dense(4)), 2),
        c=al.repeat(
            al.residual(al.dense(4)) >> al.residual(al.dense(4) >> jnp.tanh), 2
        ),
    )
    kinds = {r["path"]: r["kind"] for r in al.summary(model, al.spec("b 4")).rows}
    assert (kinds["a"], kinds["b"], kinds["c"]) == (
        "frozen(dense)",
        "repeat(residual(dense))",
        "repeat",
    )


def test_residuals_are_seen_by_what_follows():
    model = al.dense(4) >> al.residual(al.dense(4) >> jnp.tanh) >> al.dense(2)
    table = al.summary(model, al.spec("b 4"))
    assert row_of(table, "dense_2")["connected_to"] == ["dense", "tanh"]


def test_given_params_are_counted_as_they_are():
    model, params, _, x = arrays_of("mlp")
    half = jax.tree.map(lambda p: p.update(dtype=jnp.bfloat16), params)
    table = al.summary(model, x, half)
    assert table.total("bytes") == 2 * 101770
    with pytest.raises(
        al.PathError, match="init's params: nothing is called 'dense/bias'"
    ):
        al.summary(model, x, {**params, "dense": {"kernel": params["dense"]["kernel"]}})
    with pytest.raises(al.PathError, match="nothing is called 'extra/bias'"):
        al.summary(model, x, {**params, "extra": params["dense_1"]})


def test_nothing_is_allocated():
    model = al.dense(2**20) >> al.dense(2**20)  # 4 TiB of weights
    assert al.summary(model, al.spec(f"b {2**20}")).total("bytes") > 2**42


# --- folding


def test_equal_siblings_are_one_row():
    model = al.serial(
        *[al.residual(al.dense(8) >> jnp.tanh, name=f"b{i}") for i in range(5)]
    )
    table = al.summary(model, al.spec("2 8"))
    first, *inner = table.rows
    assert first["siblings"] == [f"b{i}" for i in range(5)]
    assert (first["n"], first["label"]) == (5, "b0 .. b4 x 5")
    assert [row["label"] for row in inner] == ["dense", "tanh"]
    assert inner[0]["params"] == 5 * 72 == table.total("params")


def test_siblings_with_a_tie_or_a_frozen_layer_in_them_are_rows_of_their_own():
    block = al.serial(al.dense(3), al.dense(3), al.dense(3))
    model = al.serial(a=block, b=block, c=block)
    tied = al.tie(model, {"b/dense_1/kernel": "a/dense_1/kernel"})
    rows = {row["path"]: row for row in al.summary(tied, al.spec("b 3")).rows}
    assert rows["b/dense_1"]["tied_to"] == ["a/dense_1/kernel"]
    assert [rows[name]["n"] for name in ("a/dense", "b/dense", "c/dense")] == [3, 1, 3]
    still = al.summary(al.freeze(model, "b/dense_1"), al.spec("b 3"))
    frozen = {row["path"]: row["frozen"] for row in still.rows if row["frozen"]}
    assert frozen == {"b/dense_1": 12}


def test_siblings_of_other_shapes_are_rows_of_their_own():
    model = al.serial(*[al.conv(2, 3, padding="VALID")] * 3)
    assert len(al.summary(model, al.spec("1 9 9 2")).rows) == 3


# --- renderings


@pytest.mark.parametrize("name", MODELS)
def test_the_text_fits_the_terminal(name):
    table = table_of(name)
    for width in (80, 100, 160):
        assert max(map(len, table.text(width).splitlines())) <= width


def test_indents_stay_where_names_are_wrapped():
    inner = al.serial(
        **{"a_long_name_of_an_inner_layer": al.dense(2), "b": al.dense(2)}
    )
    columns = ["path", "output", "params", "flops", "kept"]
    table = al.summary(al.serial(f=inner), al.spec("b 2"), columns=columns)
    lines = [line[:14].rstrip() for line in table.text(50, totals=False).splitlines()]
    assert lines[2:] == ["f", "  a_long_name_", "    of_an_inne", "    r_layer", "  b"]


def test_the_width_is_that_of_the_terminal(monkeypatch):
    table = table_of("unet")
    for width in (90, 150):
        monkeypatch.setenv("COLUMNS", str(width))
        assert str(table) == table.text(width)


def test_what_does_not_fit_is_said():
    table = table_of("unet")
    narrow, wide = table.text(80), table.text(200)
    assert "Too wide to show: share, kind" in narrow
    assert "Too wide" not in wide
    assert "share" in wide.splitlines()[0]


def test_columns_are_chosen():
    table = table_of("mlp", columns=["path", "flops"])
    assert table.text(80, totals=False).splitlines()[:3] == [
        "path      flops",
        "-------  ------",
        "flatten",
    ]


def test_markdown_is_a_table_with_full_paths():
    table = al.summary(
        al.serial(a_b=al.repeat(al.dense(3), 2)),
        al.spec("b 3"),
        columns=["path", "params"],
    )
    assert table.markdown().splitlines()[:3] == [
        "| path | params |",
        "| :--- | ---: |",
        "| a\\_b x 2 | 24 |",
    ]
    assert "- params: 24 (96 B)" in table.markdown()


def test_html_is_escaped_and_complete():
    table = table_of("gpt")
    html = table._repr_html_()
    assert html.count("<tr>") == len(table.rows) + 1 + len(table._total_items())
    assert "linear-gradient" in html
    odd = al.summary(al.lift(lambda x: x, name="<b>"), al.spec("b 3"))
    assert "<b>" not in odd.html()


def test_rich_prints_the_table():
    from rich.console import Console

    table = table_of("gpt")
    console = Console(width=200, file=io.StringIO())
    console.print(table)
    text = console.file.getvalue()
    assert all(row["label"] in text for row in table.rows)
    assert "83,200" in text
    narrow = Console(width=90, file=io.StringIO())
    narrow.print(table)
    assert "Too wide to show: share, kind" in narrow.file.getvalue()


def test_the_dict_is_json():
    table = table_of("autoencoder")
    found = json.loads(json.dumps(table.as_dict()))
    assert found["totals"] == table.totals
    assert [row["path"] for row in found["rows"]] == [row["path"] for row in table.rows]


# --- mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"columns": ["parms"]},
            "summary: columns: nothing is called 'parms'. Nearest",
        ),
        (
            {"share": "flop"},
            "summary: share: nothing is called 'flop'. Nearest: 'flops'",
        ),
        ({"sizes": {"c": 2}}, "summary: sizes: nothing is called 'c'"),
        ({"sizes": {"b": 0}}, "summary: the size of 'b' must be a positive int, got 0"),
        ({"sizes": {"b": True}}, "summary: the size of 'b' must be a positive int"),
        ({"sizes": ["b"]}, "summary: sizes: expected {name: size}, got ["),
        ({"depth": 0}, "summary: depth must be a positive int, got 0"),
        ({"depth": True}, "summary: depth must be a positive int, got True"),
        ({"train": "yes"}, "train: expected a Python bool, got str. Write train=True."),
        ({"columns": "path"}, "expected a list, got 'path'. Write ['path', ...]."),
        ({"columns": 3}, "summary: columns: expected a list, got 3."),
        (
            {"columns": [["path"]]},
            "columns: nothing is called ['path']. Nearest: 'path'",
        ),
        ({"share": 3}, "summary: share: nothing is called 3. Known: 'params', "),
        ({"sizes": {3: 4}}, "summary: sizes: nothing is called 3. Known: 'b'."),
        ({"optimizer": al.dense(2)}, "expected an optimizer of optax, got Layer."),
        ({"columns": []}, "summary: columns: expected at least one name, got none."),
        ({"optimizer": "adam"}, "summary: expected an optimizer of optax, got str."),
        (
            {"params": {"bias": jnp.ones(3), "kernel": jnp.ones((3, 2))}},
            "summary: params: bias: expected "
            "float32[2], got float32[3]. Pass params of this model and spec.",
        ),
        (
            {"params": {"bias": 1.0, "kernel": 1.0}},
            "bias: expected float32[2], got float.",
        ),
    ],
)
def test_mistakes_are_told_at_once(options, message):
    with pytest.raises((al.PathError, TypeError, ValueError), match=re.escape(message)):
        al.summary(al.dense(2), al.spec("b 3"), **options)


def test_a_model_may_be_a_function_and_nothing_else():
    assert al.summary(jnp.sin, al.spec("b 3")).total("flops") == 3
    assert "jax.numpy.sin on float32[b, 3]" in al.explain(jnp.sin, al.spec("b 3"))
    for door in (al.summary, al.explain):
        with pytest.raises(TypeError, match="expected a layer or a function, got int"):
            door(3, al.spec("b 3"))
    with pytest.raises(TypeError, match="explain: expected a path, got int"):
        al.explain(jnp.sin, al.spec("b 3"), 3)


def test_a_width_is_a_positive_number():
    table = al.summary(al.dense(2), al.spec("b 3"))
    with pytest.raises(ValueError, match="text: width must be a positive int, got 0"):
        table.text(0)


def test_an_optimizer_keeps_what_a_training_step_keeps():
    model, optimizer = al.frozen(al.dense(8)) >> al.dense(2), optax.adam(1e-3)
    table = al.summary(model, al.spec("b 4"), optimizer=optimizer)
    step = al.train_step(model, lambda y, batch: jnp.mean(y**2), optimizer)
    ts = step.start(*model.init(jax.random.key(0), al.spec("b 4")))
    assert table.total("optimizer") == al.nbytes(ts.opt_state)


@pytest.mark.parametrize("model", [al.frozen(al.dense(2)), al.lift(jnp.sin)])
def test_an_optimizer_keeps_nothing_of_a_model_that_has_nothing_to_train(model):
    table = al.summary(model, al.spec("b 3"), optimizer=optax.sgd(0.1, momentum=0.9))
    assert table.total("optimizer") == 0


STAGES = al.serial(a=al.dense(2), x=al.serial(b=al.dense(3), c=al.dense(4)))


@pytest.mark.parametrize(
    ("a", "b", "width", "params", "flops"),
    [
        ("a", "x/b", 2, 9, 2 * (2 * 2 * 3 + 3)),
        ("x/b", "output", 3, 16, 2 * (2 * 3 * 4 + 4)),
        ("x/b", "x/c", 3, 16, 2 * (2 * 3 * 4 + 4)),
    ],
)
def test_a_stretch_of_a_model_is_looked_at_as_one_layer(a, b, width, params, flops):
    model, x = al.between(STAGES, a, b), jnp.ones((2, width))
    table = al.summary(model, x)
    assert (table.total("params"), table.total("flops")) == (params, flops)
    (box,) = [n for n in al.diagram(al.serial(m=model), x).nodes if n.path == "m"]
    assert box.detail == f"between(a={a!r}, b={b!r}, ...)"
    whole, _ = STAGES.init(jax.random.key(0), (None, 3))
    spoilt = {"m": jax.tree.map(lambda w: w * jnp.nan, whole)}
    report = al.locate_nonfinite(al.serial(m=model), spoilt, {}, x)
    assert report.forward.path == "m"


def test_a_total_that_there_is_not_is_told():
    table = al.summary(al.dense(2), al.spec("b 3"))
    with pytest.raises(
        al.PathError, match=r"total: nothing is called 'param'\. Nearest"
    ):
        table.total("param")
    for wrong in (3, None, ["flops"]):
        said = re.escape(f"total: nothing is called {wrong!r}. ")
        with pytest.raises(al.PathError, match=said):
            table.total(wrong)


def test_shapes_that_do_not_fit_are_told_as_by_init():
    with pytest.raises(al.ShapeError) as raised:
        al.summary(al.dense(4) >> al.conv(2, (3, 3)), al.spec("b 3"))
    assert "trail: input float32[b, 3] -> dense float32[b, 4] -> conv" in str(
        raised.value.__notes__
    )
