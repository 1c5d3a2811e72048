"""What `export` writes runs in a process that has JAX and no axonlike."""

import importlib
import json
import subprocess
import sys
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from test_laws import ROWS
from zoo import FAMILIES, MODELS, SMALL, TEXT, drawn, writer

import axonlike as al
from axonlike.spec import as_spec
from axonlike.testing import _sized, _sizes, _values

# A process without axonlike: it runs every file on inputs of three sizes, and writes the
# largest difference, as a part of the largest number, of each.
ALONE = """
import json, pathlib, sys
import jax, numpy as np
from jax import export

folder, differences = pathlib.Path(sys.argv[1]), {}
for file in sorted(folder.glob("*.stablehlo")):
    exported = export.deserialize(bytearray(file.read_bytes()))
    for case in sorted(folder.glob(file.stem + ".*.npz")):
        arrays = np.load(case)
        x = [arrays[f"x{i}"] for i in range(len(arrays)) if f"x{i}" in arrays]
        args, kwargs = jax.tree.unflatten(exported.in_tree, x)
        for i, y in enumerate(jax.tree.leaves(exported.call(*args))):
            wanted = arrays[f"y{i}"]
            assert (y.shape, str(y.dtype)) == (wanted.shape, arrays[f"dtype{i}"]), case
            with np.errstate(invalid="ignore"):  # equal infinities
                off = np.abs(np.asarray(y).astype(float) - wanted)
            scale = 1 + np.max(np.abs(wanted), where=np.isfinite(wanted), initial=0)
            differences[case.stem] = float(np.nanmax(off, initial=0) / scale)
assert "axonlike" not in sys.modules
print(json.dumps(differences))
"""


def sizes_of(specs, options):
    """Three choices for the sizes that a spec leaves open."""
    known = options.get("sizes", _sizes(specs))
    first = {name: size + 2 for name, size in known[-1].items()}
    return [*known, first] if first else known


def write(folder, name, layer, spec, options):
    """A file, and inputs with outputs of three sizes beside it."""
    specs = as_spec(spec)
    params, state = drawn(layer, specs)
    al.export(layer, params, state, spec, folder / f"{name}.stablehlo", check=False)
    for case, sizes in enumerate(sizes_of(specs, options)):
        x = _values(np.random.default_rng(case), _sized(specs, sizes))
        y = jax.jit(layer.predict)(params, state, x)
        arrays = {f"x{i}": leaf for i, leaf in enumerate(jax.tree.leaves(x))}
        for i, leaf in enumerate(jax.tree.leaves(y)):
            half = leaf.dtype == jnp.bfloat16  # which NumPy does not store
            arrays[f"y{i}"] = leaf.astype(jnp.float32) if half else leaf
            arrays[f"dtype{i}"] = str(leaf.dtype)
        np.savez(folder / f"{name}.{case}.npz", **arrays)


def run_alone(folder):
    """What a process that cannot import axonlike finds."""
    command = [sys.executable, "-I", "-c", ALONE, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# Whose state has a batch of its own, which no file leaves open.
FIXED = {"attention-4", "kv_cache"}
SAMPLE = ("batch_norm", "conv", "embedding", "gru", "wire")


def rows(names=None):
    chosen = [row for row in ROWS if names is None or row.id in names]
    return [(row.id, *row.values) for row in chosen]


def check_rows(folder, chosen):
    for name, layer, spec, options in chosen:
        write(folder, name, layer, spec, options)
    found = run_alone(folder)
    counts = Counter(case.rpartition(".")[0] for case in found)
    assert counts.keys() == {row[0] for row in chosen}
    assert {name for name, count in counts.items() if count < 3} <= FIXED
    assert {case: off for case, off in found.items() if not off <= 1e-6} == {}


def test_files_run_without_axonlike_for_any_size(tmp_path):
    check_rows(tmp_path, rows(SAMPLE))


SEQUENCES = {
    *("attention", "bidirectional", "gru", "learned_positions", "lstm", "mgu", "rnn"),
    *("rotary", "scan", "sinusoidal_positions"),
}


def test_the_batch_is_open_in_every_row_and_the_length_for_sequences():
    names = {row[0]: set(_sizes(as_spec(row[2]))[0]) for row in rows()}
    assert {name for name, sizes in names.items() if not sizes} == FIXED
    assert {name for name, sizes in names.items() if "t" in sizes} >= SEQUENCES


@pytest.mark.slow
def test_every_layer_is_exported_and_runs_without_axonlike(tmp_path):
    check_rows(tmp_path, rows())


# --- sizes that a file leaves open


@pytest.mark.parametrize(
    "layer",
    [
        al.embedding(7, 4) >> al.attention(2, causal=True, rotary=al.rotary()),
        pytest.param(
            al.embedding(7, 4) >> al.bidirectional(al.gru(3)) >> al.dense(2),
            marks=pytest.mark.slow,
        ),
        al.embedding(7, 4) >> al.learned_positions(9) >> al.layer_norm(),
    ],
    ids=["attention", "gru", "positions"],
)
def test_sequences_may_have_any_length(tmp_path, layer):
    spec = al.spec("b t", int, ("t<=9",))
    params, state = drawn(layer, spec)
    file = al.export(layer, params, state, spec, tmp_path / "m.stablehlo")
    run = jax.export.deserialize(bytearray(file.read_bytes())).call
    for shape in ((1, 2), (3, 9)):
        x = jnp.arange(np.prod(shape)).reshape(shape) % 7
        wanted = jax.jit(layer.predict)(params, state, x)
        np.testing.assert_allclose(run(x), wanted, rtol=1e-6, atol=1e-6)


def test_images_may_have_any_size(tmp_path):
    model = al.conv(3, (3, 3)) >> al.max_pool(2) >> al.global_avg_pool() >> al.dense(2)
    spec = al.spec("b 2*h 2*w 1")
    params, state = drawn(model, spec)
    file = al.export(model, params, state, spec, tmp_path / "m.stablehlo")
    run = jax.export.deserialize(bytearray(file.read_bytes())).call
    x = jnp.ones((2, 8, 6, 1))
    np.testing.assert_allclose(run(x), model.predict(params, state, x), rtol=1e-6)


# --- what is in a file


def test_inputs_are_the_pytree_that_predict_takes(tmp_path):
    model = al.on_item("x", al.dense(2)) >> al.lift(
        lambda d: (d["x"], d["y"]), name="f"
    )
    spec = {"x": al.spec("b 3"), "y": al.spec("b", int)}
    params, state = drawn(model, spec)
    file = al.export(model, params, state, spec, tmp_path / "m.stablehlo")
    run = jax.export.deserialize(bytearray(file.read_bytes())).call
    first, second = run({"x": jnp.ones((4, 3)), "y": jnp.ones(4, int)})
    assert (first.shape, second.shape) == ((4, 2), (4,))


def test_weights_beside_are_a_file_that_any_reader_opens(tmp_path):
    blocks = al.repeat(al.residual(al.dense(4)), 3)
    model = al.serial(blocks=blocks, norm=al.batch_norm(), head=al.dense(2))
    spec = al.spec("b 4")
    params, state = drawn(model, spec)
    file = al.export(
        model, params, state, spec, tmp_path / "m.stablehlo", weights="beside"
    )
    weights = load_file(tmp_path / "m.safetensors")
    assert "blocks/2/kernel" in weights
    exported = jax.export.deserialize(bytearray(file.read_bytes()))
    x = jnp.ones((5, 4))
    wanted = model.predict(params, state, x)
    np.testing.assert_allclose(exported.call(weights, x), wanted, rtol=1e-6)
    other = {name: 0 * array for name, array in weights.items()}
    assert not np.allclose(exported.call(other, x), wanted)  # it is they that are used
    loaded = al.load(tmp_path / "m.safetensors", model, spec)
    np.testing.assert_array_equal(model.predict(*loaded, x), wanted)


@pytest.mark.parametrize(
    "weights", [pytest.param("inside", marks=pytest.mark.slow), "beside"]
)
def test_state_that_is_carried_goes_from_call_to_call(tmp_path, weights):
    (model, spec), path = writer(), tmp_path / "m.stablehlo"
    params, state = drawn(model, al.spec("2 3", int))
    how = {"options": {"decode": True}, "carry_state": True, "weights": weights}
    al.export(model, params, state, spec, path, **how)
    run = jax.export.deserialize(bytearray(path.read_bytes())).call
    first = (
        () if weights == "inside" else (load_file(path.with_suffix(".safetensors")),)
    )
    tokens = jnp.array([[1, 2, 3, 4], [4, 5, 6, 0]])
    wanted, last = model.apply(params, state, tokens, options={"decode": True})
    made, kept = [], state
    for part in (tokens[:, :2], tokens[:, 2:3], tokens[:, 3:]):
        y, kept = run(*first, kept, part)
        made.append(y)
    np.testing.assert_allclose(np.concatenate(made, 1), wanted, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), kept, last)


@al.layer
def noise():
    """A layer whose state is a typed PRNG key, another one after each call."""

    def init(key, x):
        return {}, {"key": key}

    def apply(params, x, *, state):
        now, later = jax.random.split(state["key"])
        return x + jax.random.normal(now, (1, 3)), {"key": later}

    return init, apply


def test_state_that_is_carried_may_be_keys(tmp_path):
    model, path = noise(), tmp_path / "m.stablehlo"
    params, kept = model.init(jax.random.key(1), al.spec("b 3"))
    al.export(model, params, kept, al.spec("b 3"), path, carry_state=True)
    run = jax.export.deserialize(bytearray(path.read_bytes())).call
    state, x = kept, jnp.zeros((3, 3))
    for _ in range(2):
        wanted, state = model.apply(params, state, x)
        y, kept = run(kept, x)
        np.testing.assert_allclose(y, wanted, atol=1e-6)
        assert (kept["key"] == state["key"]).all()


@pytest.mark.parametrize("weights", ["inside", "beside"])
def test_a_tied_weight_is_stored_once(tmp_path, weights):
    model = al.models.llama(
        vocab_size=4000, hidden_features=8, num_kv_heads=1, tied=True, **SMALL
    )
    params, state = drawn(model, TEXT)
    path = tmp_path / "m.stablehlo"
    al.export(model, params, state, TEXT, path, weights=weights, check=False)
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    once = sum(array.nbytes for array in jax.tree.leaves(params))
    assert once <= size < once + 60_000


def test_dtypes_that_others_do_not_read_stay_inside(tmp_path):
    layer = al.dense(3, param_dtype=jnp.float8_e4m3fn)
    params, state = drawn(layer, al.spec("b 4"))
    with pytest.raises(ValueError, match=r"export: 'bias' is float8_e4m3fn.*'inside'"):
        al.export(
            layer, params, state, al.spec("b 4"), tmp_path / "m", weights="beside"
        )
    al.export(layer, params, state, al.spec("b 4"), tmp_path / "m.stablehlo")


def test_a_file_is_for_the_platforms_that_were_asked_for(tmp_path):
    layer = al.dense(2)
    params, state = drawn(layer, al.spec("b 3"))
    args = (layer, params, state, al.spec("b 3"))
    for platforms in (("cpu", "cuda", "tpu"), ("tpu",)):
        file = al.export(*args, tmp_path / "m.stablehlo", platforms=platforms)
        exported = jax.export.deserialize(bytearray(file.read_bytes()))
        assert exported.platforms == platforms


# --- what cannot be exported, and a file that is wrong


def printed(x):
    jax.debug.print("sum {}", x.sum())
    return x


def spectrum(x):
    return jnp.real(jnp.fft.fft(x, axis=1))


def halves(x):
    return sum(jnp.split(x, 2, axis=1))


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (
            printed,
            "export: body/odd: debug_print cannot be exported for cpu, cuda, tpu",
        ),
        (
            spectrum,
            "export: body/odd: fft cannot be exported for cpu, cuda, tpu and inputs",
        ),
    ],
)
def test_what_cannot_be_exported_says_which_layer_and_why(tmp_path, function, what):
    spec = al.spec("b t 3")
    inner = al.serial(al.dense(3), al.lift(function, name="odd"))
    for body in (inner, inner**2):
        model = al.serial(first=al.dense(3), body=body, last=al.dense(2))
        params, state = drawn(model, spec)
        with pytest.raises(ValueError, match=what) as caught:
            al.export(model, params, state, spec, tmp_path / "m.stablehlo")
        assert "float32[b, t, 3]" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_traced_for_open_sizes_says_which_layer(tmp_path):
    model = al.serial(body=al.lift(halves))
    params, state = drawn(model, al.spec("b 4 3"))
    with pytest.raises(ValueError, match="equal division") as caught:
        al.export(model, params, state, al.spec("b t 3"), tmp_path / "m.stablehlo")
    assert any("in body: " in note for note in caught.value.__notes__)
    al.export(model, params, state, al.spec("b 4 3"), tmp_path / "m.stablehlo")


def test_a_file_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    layer = al.dense(2)
    params, state = drawn(layer, al.spec("b 3"))
    stablehlo = importlib.import_module("axonlike.io.stablehlo")
    plain = stablehlo._plain
    monkeypatch.setattr(stablehlo, "_plain", lambda run: plain(lambda x: run(x) + 0.1))
    args = (layer, params, state, al.spec("b 3"), tmp_path / "m.stablehlo")
    with pytest.raises(ValueError, match="not the model's output, float32") as caught:
        al.export(*args)
    assert "Pass check=False" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    al.export(*args, check=False)


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"weights": "out"}, "export: weights is 'inside' or 'beside', got 'out'"),
        ({"platforms": "cpu"}, "export: platforms are some of cpu, cuda, rocm, tpu"),
        ({"platforms": ("gpu",)}, "platforms are some of .*, got .'gpu',.\\."),
        ({"platforms": ()}, "export: platforms are some of cpu, cuda, rocm, tpu"),
        ({"platforms": None}, "export: platforms are some of .* got None"),
        ({"path": "m.safetensors", "weights": "beside"}, "go .* Call the file .stable"),
        ({"path": "."}, "export: . is a folder. Name a file in it"),
        ({"path": None}, "export: expected a path, got None"),
        ({"model": "x"}, "export: expected a layer, the model, got str"),
        ({"params": None}, "export: params: expected a dict, got NoneType. Pass the"),
        ({"params": {"kernel": 2}}, "export: 'kernel' is int, not an array. Pass the"),
        ({"state": []}, "export: state: expected a dict, got list. Pass the"),
        ({"spec": object()}, "input: expected an array, al.spec"),
        ({"options": ["decode"]}, "export: options: expected a dict, {'decode': True}"),
        (
            {"carry_state": "all"},
            "export: carry_state must be True or False, got 'all'",
        ),
        ({"check": "no"}, "export: check must be True or False, got 'no'"),
    ],
)
def test_arguments_are_checked(wrong, what):
    layer, spec = al.dense(2), al.spec("b 3")
    params, state = drawn(layer, spec)
    given = {"model": layer, "params": params, "state": state, "spec": spec}
    with pytest.raises((ValueError, TypeError, IsADirectoryError), match=what):
        al.export(**{**given, "path": "m", **wrong})


# --- the models that there are to start from


def test_every_model_of_the_package_is_among_those_that_are_exported():
    functions = {"from_config", "generate", "mapping_of", "pretrained"}
    assert set(al.models.__all__) - functions == set(FAMILIES)


@pytest.mark.slow
@pytest.mark.parametrize("models", [FAMILIES, MODELS], ids=["families", "zoo"])
def test_models_run_without_axonlike(tmp_path, models):
    check_rows(tmp_path, [(name, *build(), {}) for name, build in models.items()])
