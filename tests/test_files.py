"""Params and state in files: what is written comes back, and any program reads it."""

import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from safetensors import safe_open

import axonlike as al
from axonlike.io import atomic
from axonlike.io.weights import read

KEY = jax.random.key(0)
FORMATS = ["safetensors", "npz", "orbax"]
BLOCK = al.residual(al.layer_norm() >> al.dense(4))
SPEC = al.spec("b 4")


@al.layer
def holder(dtype="float32", shape=(2, 3)):
    """A layer with one array of any dtype."""

    def init(key, x):
        return {"held": jnp.arange(6).reshape(shape).astype(dtype)}

    def apply(params, x):
        return x

    return init, apply


@al.layer
def keyed():
    """A layer whose state are typed PRNG keys, and whose params are a tuple."""

    def init(key, x):
        return {"pair": (jnp.ones(2), jnp.zeros(()))}, {
            "keys": jax.random.split(key, 3)
        }

    def apply(params, x, *, state):
        return x, state

    return init, apply


def model_of(stacked):
    blocks = al.repeat(BLOCK, 3, stacked=stacked)
    return al.serial(blocks=blocks, norm=al.batch_norm(), head=al.dense(2))


def raw(tree):
    """The arrays of a tree as bytes, keys as their numbers."""

    def one(x):
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(x) if is_key else x).tobytes()

    return jax.tree.map(one, tree)


def assert_same(got, wanted):
    specs = [jax.tree.map(lambda x: (x.shape, str(x.dtype)), t) for t in (got, wanted)]
    assert specs[0] == specs[1]
    assert raw(got) == raw(wanted)


# --- there and back


@pytest.mark.parametrize("suffix", FORMATS)
def test_files_do_not_depend_on_how_copies_are_stored(tmp_path, suffix):
    stacked, unrolled = model_of(True), model_of(False)
    params, state = stacked.init(KEY, SPEC)
    file = tmp_path / f"model.{suffix}"
    al.save(file, params, state)
    assert_same(tuple(al.load(file, stacked, SPEC)), (params, state))
    apart = al.load(file, unrolled, SPEC)
    assert_same(apart.params, al.unstack(params, "blocks"))
    al.save(file, *apart)
    assert_same(tuple(al.load(file, stacked, SPEC)), (params, state))


def test_copies_within_copies(tmp_path):
    inner = al.ensemble(al.dense(4), 2) >> al.lift(jnp.mean, name="mean")
    model = al.serial(a=al.repeat(al.ensemble(al.dense(4), 2), 1), b=inner)
    model = al.serial(x=al.vmap(al.repeat(al.repeat(BLOCK, 2), 3, stacked=False)))
    params, state = model.init(KEY, al.spec("n b 4"))
    al.save(tmp_path / "model.npz", params, state)
    assert_same(tuple(al.load(tmp_path / "model.npz", model, "n b 4")), (params, state))
    names = np.load(tmp_path / "model.npz").files
    assert "x/2/1/dense/kernel" in names


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    "dtype",
    [
        "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz", "int4",
        "float16", "complex64", "bool", "uint8", "int32",
    ],
)  # fmt: skip
def test_every_dtype_comes_back(tmp_path, suffix, dtype):
    model = holder(dtype)
    params, state = model.init(KEY, SPEC)
    assert params["held"].dtype == dtype
    al.save(tmp_path / f"model.{suffix}", params, state)
    assert_same(al.load(tmp_path / f"model.{suffix}", model, SPEC).params, params)


@pytest.mark.parametrize("suffix", FORMATS)
def test_wide_dtypes_come_back(tmp_path, suffix):
    with jax.enable_x64(True):
        for dtype in ("float64", "complex128", "int64"):
            model = holder(dtype)
            params, state = model.init(KEY, SPEC)
            al.save(tmp_path / f"model.{suffix}", params, state)
            assert_same(
                al.load(tmp_path / f"model.{suffix}", model, SPEC).params, params
            )


@pytest.mark.parametrize("suffix", FORMATS)
def test_keys_tuples_and_scalars_come_back(tmp_path, suffix):
    params, state = keyed().init(KEY, SPEC)
    al.save(tmp_path / f"model.{suffix}", params, state)
    assert_same(
        tuple(al.load(tmp_path / f"model.{suffix}", keyed(), SPEC)), (params, state)
    )


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_empty_arrays_and_models_without_any(tmp_path, suffix):
    file = tmp_path / f"model.{suffix}"
    empty = {"held": jnp.zeros((0, 3))}
    al.save(file, empty, {})
    assert al.load(file, none_held(), SPEC).params["held"].shape == (0, 3)
    al.save(file, {}, {})
    assert tuple(al.load(file, al.identity, SPEC)) == ({}, {})


@al.layer
def none_held():
    return lambda key, x: {"held": jnp.zeros((0, 3))}, lambda params, x: x


def test_orbax_refuses_what_it_cannot_write(tmp_path):
    with pytest.raises(
        ValueError, match="'a' has no numbers, which orbax cannot write"
    ):
        al.save(tmp_path / "model.orbax", {"a": jnp.zeros((0, 3))}, {})
    with pytest.raises(ValueError, match="'a/b' is below an array"):
        al.save(tmp_path / "m.orbax", {"a": {"b": jnp.ones(1)}}, {"a": jnp.ones(1)})
    with pytest.raises(ValueError, match="is one name with another"):
        al.save(tmp_path / "m.orbax", {"a.b": jnp.ones(1), "a": {"b": jnp.ones(1)}}, {})


@al.layer
def twins():
    def init(key, x):
        return {"same": jnp.ones(2)}, {"same": jnp.zeros(3)}

    return init, lambda params, x, *, state: (x, state)


@pytest.mark.parametrize("suffix", FORMATS)
def test_state_that_has_the_path_of_a_param(tmp_path, suffix):
    params, state = twins().init(KEY, SPEC)
    al.save(tmp_path / f"model.{suffix}", params, state)
    assert_same(
        tuple(al.load(tmp_path / f"model.{suffix}", twins(), SPEC)), (params, state)
    )


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_array_at_two_places_is_stored_once(tmp_path, suffix):
    model = al.serial(a=al.dense(400), b=al.dense(400))
    params, _ = model.init(KEY, (None, 400))
    params = {"a": params["a"], "b": params["a"]}
    al.save(tmp_path / f"model.{suffix}", params)
    assert_same(
        al.load(tmp_path / f"model.{suffix}", model, (None, 400)).params, params
    )
    parts = [tmp_path / f"model.{suffix}", *(tmp_path / "model.orbax").rglob("*")]
    size = sum(part.stat().st_size for part in parts if part.is_file())
    assert size < 1.1 * al.nbytes(params["a"])


def test_a_tied_array_is_in_the_file_once(tmp_path):
    parts = {"emb": al.embedding(9, 4), "head": al.dense(9, use_bias=False)}
    tied = al.tie(al.serial(**parts), {"head/kernel": "emb/embedding"}, transpose=True)
    params, state = tied.init(KEY, al.spec("b", int))
    al.save(tmp_path / "model.safetensors", params, state)
    names = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert list(names) == ["emb/embedding"]
    again = al.load(tmp_path / "model.safetensors", tied, al.spec("b", int))
    assert_same(tuple(again), (params, state))


# --- other programs


def test_safetensors_reads_what_we_write(tmp_path):
    model = model_of(True)
    params, state = model.init(KEY, SPEC)
    al.save(tmp_path / "model.safetensors", params, state)
    theirs = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    ours = dict(al.paths(al.unstack(params, "blocks"))) | dict(al.paths(state))
    assert theirs.keys() == ours.keys()
    for path, array in ours.items():
        np.testing.assert_array_equal(theirs[path], array)


def test_we_read_what_safetensors_writes(tmp_path):
    model = al.serial(a=holder("bfloat16"), b=al.dense(2), c=holder("complex64"))
    params, _ = model.init(KEY, SPEC)
    flat = {path: np.asarray(array) for path, array in al.paths(params)}
    safetensors.numpy.save_file(flat, tmp_path / "model.safetensors")
    assert_same(al.load(tmp_path / "model.safetensors", model, SPEC).params, params)


def test_numpy_reads_what_we_write_and_the_other_way_round(tmp_path):
    model = model_of(False)
    params, state = model.init(KEY, SPEC)
    al.save(tmp_path / "ours.npz", params, state)
    theirs = dict(np.load(tmp_path / "ours.npz"))
    del theirs["__axonlike__"]
    for name in ("plain", "compressed"):
        write = np.savez if name == "plain" else np.savez_compressed
        write(tmp_path / f"{name}.npz", **theirs)
        again = al.load(tmp_path / f"{name}.npz", model, SPEC)
        assert_same(tuple(again), (params, state))


def test_orbax_reads_what_we_write(tmp_path):
    import orbax.checkpoint as ocp

    model = model_of(False)
    params, state = model.init(KEY, SPEC)
    al.save(tmp_path / "model.orbax", params, state)
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.restore(tmp_path / "model.orbax")
    kernel = params["blocks"]["1"]["dense"]["kernel"]
    np.testing.assert_array_equal(tree["blocks"]["1"]["dense"]["kernel"], kernel)


@pytest.mark.parametrize("suffix", FORMATS)
def test_arrays_of_numpy_in_any_order_are_written_as_they_are(tmp_path, suffix):
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    odd = {
        "turned": x.transpose(2, 0, 1),
        "strided": x[:, ::2, ::-1],
        "fortran": np.asfortranarray(x),
        "spread": np.broadcast_to(x[0, 0], (3, 4)),
        "swapped": x.astype(">f4"),
        "half": x[..., ::2].astype(ml_dtypes.bfloat16).T,
    }
    wanted = {name: np.ascontiguousarray(array) for name, array in odd.items()}
    al.save(tmp_path / f"model.{suffix}", odd)
    for name, entry in read(tmp_path / f"model.{suffix}", suffix).items():
        np.testing.assert_array_equal(entry.read(), wanted[name])


# --- how a file is written


def test_a_file_has_the_permissions_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        al.save(tmp_path / "model.npz", {"a": jnp.ones(2)})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model.npz").stat().st_mode) == 0o640


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_write_that_fails_leaves_what_was_there(tmp_path, suffix):
    file = tmp_path / f"model.{suffix}"
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    al.save(file, params)

    class Failing:
        dtype, shape = jnp.dtype("float32"), (2,)

        def __array__(self, dtype=None, copy=None):
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        al.save(file, {"a": jnp.zeros(2), "b": Failing()})
    assert os.listdir(tmp_path) == [file.name]
    both = al.serial(a=holder(), b=holder())
    loaded = al.load(file, both, SPEC, strict=False).report
    assert set(loaded.unused) == {"a", "b"}


def test_two_threads_write_one_file(tmp_path):
    file = tmp_path / "model.safetensors"
    many = [{"held": jnp.full((2, 3), float(i))} for i in range(8)]
    threads = [threading.Thread(target=al.save, args=(file, each)) for each in many]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held = al.load(file, holder(), SPEC).params["held"]
    assert float(held[0, 0]) in range(8)
    assert os.listdir(tmp_path) == [file.name]


def test_a_folder_takes_the_place_of_another_or_leaves_it(tmp_path):
    target = tmp_path / "folder"

    def fill(text):
        def write(folder):
            folder.mkdir()
            (folder / "file").write_text(text, encoding="utf-8")
            if text == "broken":
                raise OSError("the disk is full")

        return write

    atomic.replace_folder(target, fill("one"))
    atomic.replace_folder(target, fill("two"))
    with pytest.raises(OSError, match="full"):
        atomic.replace_folder(target, fill("broken"))
    assert (target / "file").read_text(encoding="utf-8") == "two"
    assert os.listdir(tmp_path) == ["folder"]


def test_a_folder_that_could_not_be_put_in_place_leaves_what_was_there(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    with pytest.raises(FileNotFoundError):
        atomic.replace_folder(target, lambda path: None)
    assert os.listdir(tmp_path) == ["model"]


def test_shards_and_back_again(tmp_path):
    model = model_of(True)
    params, state = model.init(KEY, SPEC)
    file = tmp_path / "model.safetensors"
    al.save(file, params, state)
    al.save(file, params, state, max_shard_bytes=100)
    names = sorted(os.listdir(tmp_path))
    assert len(names) > 3
    assert "model.safetensors.index.json" in names
    assert file.name not in names
    al.save(file, params, state, max_shard_bytes=100)
    assert len(os.listdir(tmp_path)) == len(names)  # the earlier ones are gone
    for path in (file, tmp_path / "model.safetensors.index.json"):
        assert_same(tuple(al.load(path, model, SPEC)), (params, state))
    al.save(file, params, state)
    assert os.listdir(tmp_path) == [file.name]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("name", ["__axonlike__", "__metadata__"])
def test_names_that_files_need_are_refused(tmp_path, suffix, name):
    for params in ({name: jnp.ones(1)}, {name: {"a": jnp.ones(1)}}):
        with pytest.raises(ValueError, match="is where a file keeps its notes"):
            al.save(tmp_path / f"m.{suffix}", params)
    assert list(tmp_path.iterdir()) == []


def test_what_was_written_is_not_cleared_away(tmp_path):
    params = {"a": jnp.ones(3), "b": jnp.ones(3)}
    file, index = tmp_path / "m.safetensors", tmp_path / "m.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "m.safetensors"}}', encoding="utf-8")
    al.save(file, params)
    assert os.listdir(tmp_path) == [file.name]
    with pytest.raises(ValueError, match="is the name of an index"):
        al.save(index, params, format="safetensors")


def test_shards_are_plain_files_whatever_the_path_is_called(tmp_path):
    model, params = holder(), {"held": jnp.ones((2, 3))}
    for name in ("m", "m.bin"):
        several = {**params, "more": jnp.ones(3)}
        al.save(tmp_path / name, several, format="safetensors", max_shard_bytes=24)
        loaded = al.load(
            tmp_path / name, model, SPEC, strict=False, format="safetensors"
        )
        assert loaded.report.loaded == ["held"]
        with pytest.raises(ValueError, match=r"'\.m.*' is no name for several files"):
            al.save(tmp_path / ".m.safetensors", several, max_shard_bytes=24)


def test_orbax_takes_the_place_of_its_own_folders_only(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis").write_text("years", encoding="utf-8")
    (tmp_path / "file.orbax").write_text("years", encoding="utf-8")
    for name in ("work", "file.orbax"):
        with pytest.raises(FileExistsError, match="is there and no orbax checkpoint"):
            al.save(tmp_path / name, {"a": jnp.ones(1)}, format="orbax")
    assert (tmp_path / "work" / "thesis").read_text(encoding="utf-8") == "years"


def test_we_read_shards_that_others_wrote(tmp_path):
    model = al.serial(a=al.dense(2), b=al.dense(2))
    params, _ = model.init(KEY, SPEC)
    table = {"metadata": {}, "weight_map": {}}
    for name in ("a", "b"):
        arrays = {f"{name}/{k}": np.asarray(v) for k, v in params[name].items()}
        shard = f"{name}.safetensors"
        safetensors.numpy.save_file(arrays, tmp_path / shard)
        table["weight_map"] |= dict.fromkeys(arrays, shard)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps(table), encoding="utf-8")
    assert_same(al.load(index, model, SPEC).params, params)


def test_an_index_of_one_file_stands_beside_it(tmp_path):
    """As programs write it that always write an index."""
    file = tmp_path / "model.safetensors"
    model = al.dense(2)
    params, state = model.init(KEY, SPEC)
    al.save(file, params, state)
    index = tmp_path / "model.safetensors.index.json"
    table = {"weight_map": dict.fromkeys(params, file.name)}
    index.write_text(json.dumps(table), encoding="utf-8")
    names = al.mapping(
        {"kernel": "dense/kernel", "bias": "dense/bias"},
        conventions={"dense": {"kernel": "kernel", "bias": "bias"}},
    )
    for path in (file, index):
        assert_same(tuple(al.load(path, model, SPEC)), (params, state))
        assert_same(names.load(path, al.serial(model), SPEC)[0], {"dense": params})
    assert_same(names.load(tmp_path, al.serial(model), SPEC)[0], {"dense": params})
    index.write_text('{"weight_map": {"a": "b.safetensors"}}', encoding="utf-8")
    with pytest.raises(ValueError, match="are both there, and may differ"):
        al.load(file, model, SPEC)


def test_metadata_is_text_that_any_reader_shows(tmp_path):
    al.save(tmp_path / "model.safetensors", {"a": jnp.ones(2)})
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        assert '"checksums"' in file.metadata()["axonlike"]


def test_only_what_a_device_needs_is_put_there(tmp_path):
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "x"))
    model = model_of(True)
    params, state = model.init(KEY, SPEC)
    al.save(tmp_path / "model.safetensors", params, state)
    loaded = al.load(
        tmp_path / "model.safetensors", model, SPEC, shardings={"**/kernel": split}
    )
    assert loaded.params["head"]["kernel"].sharding == split
    assert loaded.params["blocks"]["*"]["dense"]["kernel"].sharding == split
    assert_same(loaded.params, params)


def test_what_a_file_lacks_is_made_where_it_belongs(tmp_path):
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "x"))
    model, rules = al.serial(body=al.dense(4), head=al.dense(2)), {"**/kernel": split}
    wanted, _ = model.init(KEY, SPEC, shardings=rules)
    al.save(tmp_path / "model.safetensors", {"body": wanted["body"]})
    how = {"shardings": rules, "strict": False, "key": KEY}
    params, _ = al.load(tmp_path / "model.safetensors", model, SPEC, **how)
    assert params["head"]["kernel"].sharding == split
    assert_same(params, wanted)


def test_a_loaded_array_does_not_change_with_its_file(tmp_path):
    file = tmp_path / "model.safetensors"
    params = {"held": jnp.arange(6.0).reshape(2, 3)}
    al.save(file, params)
    loaded = al.load(file, holder(), SPEC).params
    with file.open("r+b") as handle:
        handle.seek(-8, os.SEEK_END)
        handle.write(b"\xff" * 8)
    assert_same(loaded, params)


# --- what is refused


@pytest.mark.parametrize(
    ("params", "kind", "message"),
    [
        ({"a": 1.0}, TypeError, "save: 'a' is float, not an array."),
        (
            {"a": jax.ShapeDtypeStruct((2,), jnp.float32)},
            TypeError,
            "save: 'a' has no values, only a shape.",
        ),
        ({"a": np.array(["x"])}, TypeError, "save: 'a' has dtype <U1"),
        ({"*": jnp.ones(())}, ValueError, r"save: '\*' has more steps"),
        (
            {"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}},
            ValueError,
            "save: two arrays are called 'a/b'",
        ),
    ],
)
def test_what_is_no_array_is_refused(tmp_path, params, kind, message):
    with pytest.raises(kind, match=message):
        al.save(tmp_path / "model.npz", params)
    assert os.listdir(tmp_path) == []


def test_donated_and_traced_arrays_are_refused(tmp_path):
    x = jnp.ones(4)
    x.delete()
    with pytest.raises(ValueError, match="save: 'a' is deleted"):
        al.save(tmp_path / "model.npz", {"a": x})
    with pytest.raises(TypeError, match="Call it outside of jit"):
        jax.jit(lambda a: al.save(tmp_path / "model.npz", {"a": a}))(jnp.ones(2))


def test_formats_are_told_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"'m.pt' is of no known format. Call it"):
        al.save("m.pt", {})
    with pytest.raises(ValueError, match="of no known format"):
        al.save("m.npz", {}, format="pickle")
    with pytest.raises(ValueError, match="max_shard_bytes=5 is for safetensors"):
        al.save("m.npz", {}, max_shard_bytes=5)
    for most in (0, "5"):
        with pytest.raises(ValueError, match="max_shard_bytes must be a positive int"):
            al.save(tmp_path / "m.safetensors", {}, max_shard_bytes=most)
    with pytest.raises(FileNotFoundError):
        al.load(tmp_path / "none.safetensors", holder(), SPEC)
    with pytest.raises(FileNotFoundError):
        al.load(tmp_path / "none.npz", holder(), SPEC)
    with pytest.raises(ValueError, match=r"is a folder, and no orbax checkpoint\."):
        al.load(tmp_path, holder(), SPEC)
    (tmp_path / "model.json").touch()
    with pytest.raises(ValueError, match=r"a whole model\. Read it with load_model"):
        al.load(tmp_path, holder(), SPEC)
    with pytest.raises(FileNotFoundError, match="and it is a folder"):
        al.load(tmp_path, holder(), SPEC, format="npz")
    with pytest.raises(IsADirectoryError, match="is a folder, which no file replaces"):
        al.save(tmp_path, {}, format="npz")
    al.save(tmp_path / "m.npz", {})
    with pytest.raises(ValueError, match=r"is a zip, and no safetensors file"):
        al.load(tmp_path / "m.npz", holder(), SPEC, format="safetensors")
    al.save(tmp_path / "m.bin", {"held": jnp.ones((2, 3))}, format="npz")
    al.load(tmp_path / "m.bin", holder(), SPEC, format="npz")


MODEL = al.serial(a=al.dense(2))
LOAD = {"path": "m.npz", "model": MODEL, "spec": SPEC}
SHARDINGS = "shardings: expected a dict, {selector: PartitionSpec or Sharding}, got "
RENAME = "load: rename: expected a dict, {path in the file: path in the model}, got "


@pytest.mark.parametrize(
    ("function", "given", "message"),
    [
        (
            al.save,
            {"path": 3, "params": {}},
            "save: expected a path, got int.",
        ),
        (
            al.save,
            {"path": "m.npz", "params": [1]},
            "paths: expected a dict of arrays, got list. Pass the params or the state that "
            "init returned.",
        ),
        (
            al.save,
            {"path": "m.npz", "params": {"a": np.ma.masked_array([1.0], [True])}},
            "save: 'a' is a masked array, and files hold no masks. Pass array.filled(...), "
            "and the mask as an array of its own.",
        ),
        (al.load, {"path": None}, "load: expected a path, got None."),
        (al.load, {"model": "m"}, "load: expected a layer, the model, got str."),
        (al.load, {"rename": ["a"]}, RENAME + "[str]."),
        (
            al.load,
            {"rename": {"a": 1}},
            "load: rename: expected paths that are text, got 1.",
        ),
        (al.load, {"shardings": "x"}, SHARDINGS + "str."),
        (al.load, {"shardings": {"a": "x"}}, SHARDINGS + "str for 'a'."),
        (
            al.load,
            {"key": 3},
            "key: expected one jax.random.key(seed), got int.",
        ),
        (
            al.load,
            {"cast": "bfloat16"},
            "load: cast must be True or False, got 'bfloat16'.",
        ),
        (al.load, {"strict": 1}, "load: strict must be True or False, got 1."),
        (
            al.save_model,
            {"path": "x", "model": "not a layer", "params": {}},
            "save_model: expected a layer, the model, got str.",
        ),
        (
            al.load_model,
            {"path": None},
            "load_model: expected a path, got None.",
        ),
        (
            al.load_model,
            {"path": "x", "kinds": {1: al.dense}},
            "load_model: expected names in the file that are text, got 1.",
        ),
        (
            al.save_expressions,
            {"path": None, "tree": []},
            "save_expressions: expected a path, got None.",
        ),
        (
            al.load_expressions,
            {"path": "x.json", "model": "m"},
            "load_expressions: expected a layer, the model, got str.",
        ),
        (
            al.load_expressions,
            {"path": "x.json", "functions": 3},
            "load_expressions: expected a list of what the file may name, or a dict, got "
            "3.",
        ),
    ],
)
def test_what_is_given_in_a_wrong_place_is_told(
    tmp_path, monkeypatch, function, given, message
):
    monkeypatch.chdir(tmp_path)
    al.save("m.npz", *MODEL.init(KEY, SPEC))
    al.save_model("x", MODEL, *MODEL.init(KEY, SPEC))
    before = sorted(os.listdir())
    defaults = LOAD if function is al.load else {}
    with pytest.raises(TypeError) as caught:
        function(**{**defaults, **given})
    assert str(caught.value) == message
    assert sorted(os.listdir()) == before


def test_a_sharding_of_a_mesh_that_is_not_set_is_told(tmp_path):
    al.save(tmp_path / "m.npz", *MODEL.init(KEY, SPEC))
    rules = {"a/kernel": jax.sharding.PartitionSpec("x")}
    with pytest.raises(
        ValueError, match=r"is of a mesh, and none is set\. Call it inside"
    ):
        al.load(tmp_path / "m.npz", MODEL, SPEC, shardings=rules)


# --- what differs


def saved(tmp_path, suffix="safetensors"):
    model = al.serial(body=al.dense(8), norm=al.batch_norm(), head=al.dense(2))
    params, state = model.init(KEY, SPEC)
    file = tmp_path / f"model.{suffix}"
    al.save(file, params, state)
    return file, model, params, state


@pytest.mark.parametrize("suffix", FORMATS)
def test_one_error_lists_every_difference(tmp_path, suffix):
    file, *_ = saved(tmp_path, suffix)
    other = al.serial(
        trunk=al.dense(8), norm=al.batch_norm(), head=al.dense(3), more=holder("int32")
    )
    with pytest.raises(ValueError, match="does not hold") as caught:
        al.load(file, other, SPEC)
    assert str(caught.value) == "\n".join([
        f"load: {file} does not hold what the model needs: 7 differences.",
        "  missing: trunk/bias float32[8]. Is it 'body/bias' in the file?",
        "  missing: trunk/kernel float32[4, 8]. Is it 'body/kernel' in the file?",
        "  missing: more/held int32[2, 3]",
        "  shape: head/bias: expected float32[3], the file has float32[2]",
        "  shape: head/kernel: expected float32[8, 3], the file has float32[8, 2]",
        "  not in the model: body/bias float32[8]",
        "  not in the model: body/kernel float32[4, 8]",
        "Pass rename={'body': 'trunk'}, or strict=False to load what fits, or the model "
        "that was saved.",
    ])  # fmt: skip


def test_dtypes_differ_unless_they_may_be_cast(tmp_path):
    file, _, params, _ = saved(tmp_path)
    half = al.serial(
        body=al.dense(8, param_dtype=jnp.bfloat16),
        norm=al.batch_norm(),
        head=al.dense(2),
    )
    message = r"dtype: body/bias: expected bfloat16\[8\], the file has float32\[8\]"
    with pytest.raises(ValueError, match=message):
        al.load(file, half, SPEC)
    loaded = al.load(file, half, SPEC, cast=True)
    wanted = params["body"]["kernel"].astype(jnp.bfloat16)
    assert_same(loaded.params["body"]["kernel"], wanted)
    whole = al.serial(body=holder("int32"))
    al.save(file, {"body": {"held": jnp.ones((2, 3))}})
    with pytest.raises(ValueError, match="dtype: body/held"):  # floats are no ints
        al.load(file, whole, SPEC, cast=True)


def test_swapped_shapes_are_seen(tmp_path):
    model = al.serial(a=al.dense(8), b=al.dense(4))
    params, _ = model.init(KEY, (None, 4))
    al.save(tmp_path / "m.npz", {"a": params["b"], "b": params["a"]})
    with pytest.raises(ValueError, match="Is it swapped with 'b/kernel'") as caught:
        al.load(tmp_path / "m.npz", model, (None, 4))
    assert "Is it swapped with 'a/bias'" in str(caught.value)


def test_a_rename_is_of_layers_arrays_or_steps(tmp_path):
    model = al.serial(blocks=al.repeat(BLOCK, 3), head=al.dense(2))
    params, state = model.init(KEY, SPEC)
    al.save(tmp_path / "m.npz", params, state)
    block = al.residual(al.layer_norm(name="norm") >> al.dense(4))
    other = al.serial(layer=al.repeat(block, 3), last=al.dense(2))
    rename = {
        "blocks/*/layer_norm": "layer/*/norm",
        "blocks": "layer",
        "head/kernel": "last/kernel",
        "head/bias": "last/bias",
    }
    loaded = al.load(tmp_path / "m.npz", other, SPEC, rename=rename)
    assert_same(loaded.params["last"], params["head"])
    scale = loaded.params["layer"]["*"]["norm"]["scale"]
    assert_same(scale, params["blocks"]["*"]["layer_norm"]["scale"])
    assert loaded.report.renamed["layer/2/norm/scale"] == "blocks/2/layer_norm/scale"
    assert loaded.report.missing == loaded.report.unused == []


def test_a_rename_that_means_nothing_is_an_error(tmp_path):
    file, model, *_ = saved(tmp_path)
    with pytest.raises(al.PathError, match=r"called 'bdy'\. Nearest: 'body'"):
        al.load(file, model, SPEC, rename={"bdy": "body"})
    with pytest.raises(al.PathError, match="nothing is called 'nowhere'"):
        al.load(file, model, SPEC, rename={"body": "nowhere"})
    with pytest.raises(ValueError, match="of the file would both be 'head/bias'"):
        al.load(file, model, SPEC, rename={"body": "head"})
    with pytest.raises(ValueError, match=r"have not equally many '\*'"):
        al.load(file, model, SPEC, rename={"*/bias": "bias"})


def test_all_may_be_below_a_name_on_either_side(tmp_path):
    model = al.serial(a=al.dense(2), b=al.dense(2))
    inside = al.serial(whole=model)
    params, state = inside.init(KEY, SPEC)
    al.save(tmp_path / "m.npz", params, state)
    loaded = al.load(tmp_path / "m.npz", model, SPEC, rename={"whole": ""})
    assert_same(loaded.params, params["whole"])
    al.save(tmp_path / "m.npz", params["whole"], state)
    loaded = al.load(tmp_path / "m.npz", inside, SPEC, rename={"": "whole"})
    assert_same(loaded.params, params)


def test_a_partial_load_reports_every_array(tmp_path):
    file, _, params, state = saved(tmp_path)
    other = al.serial(
        body=al.dense(8), norm=al.batch_norm(), head=al.dense(3), last=al.dense(1)
    )
    key = jax.random.key(7)
    loaded = al.load(file, other, SPEC, strict=False, key=key)
    fresh, _ = other.init(key, SPEC)
    assert_same(loaded.params["body"], params["body"])
    assert_same(loaded.state, state)
    assert_same(loaded.params["head"], fresh["head"])
    assert_same(loaded.params["last"], fresh["last"])
    assert loaded.report.missing == ["last/bias", "last/kernel"]
    assert sorted(loaded.report.mismatched) == ["head/bias", "head/kernel"]
    assert str(loaded.report) == "\n".join([
        "loaded 6 arrays",
        "missing last/bias",
        "missing last/kernel",
        "mismatched head/bias: expected float32[3], the file has float32[2]",
        "mismatched head/kernel: expected float32[8, 3], the file has float32[8, 2]",
    ])  # fmt: skip


def test_copies_that_are_missing_in_part_are_made_anew(tmp_path):
    small = al.serial(blocks=al.repeat(BLOCK, 2, stacked=False))
    big = al.serial(blocks=al.repeat(BLOCK, 3, stacked=False))
    params, state = small.init(KEY, SPEC)
    al.save(tmp_path / "m.npz", params, state)
    loaded = al.load(tmp_path / "m.npz", big, SPEC, strict=False)
    assert_same(loaded.params["blocks"]["1"], params["blocks"]["1"])
    assert len(loaded.report.missing) == 4
    with pytest.raises(ValueError, match="4 differences"):
        al.load(tmp_path / "m.npz", big, SPEC)


# --- only what is asked for


@pytest.mark.skipif(
    sys.platform != "linux",
    reason="A file of 4 TB that takes no room has holes, which only Linux always makes.",
)
def test_of_a_file_of_4_terabytes_one_array_is_read(tmp_path):
    """More than any memory: what is not asked for is not read."""
    end = 1 << 42
    header = {
        "huge": {"dtype": "F32", "shape": [end // 4], "data_offsets": [0, end]},
        "held": {"dtype": "F32", "shape": [2, 3], "data_offsets": [end, end + 24]},
    }
    text = json.dumps(header).encode()
    file = tmp_path / "model.safetensors"
    wanted = np.arange(6, dtype=np.float32).reshape(2, 3)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.seek(end, os.SEEK_CUR)
        out.write(wanted.tobytes())
    loaded = al.load(file, holder(), SPEC, strict=False)
    assert loaded.report.unused == ["huge"]
    np.testing.assert_array_equal(loaded.params["held"], wanted)


SAFE = """
import sys
for name in ("torch", "transformers"):
    sys.modules[name] = None  # importing it fails

import pathlib
import axonlike as al

def loaded(folder, model, spec):
    names = al.mapping(
        {"a": "a", "b": "b"}, conventions={"dense": {"kernel": "kernel", "bias": "bias"}})
    for suffix in ("safetensors", "npz", "orbax"):
        al.load(folder / f"model.{suffix}", model, spec)
    al.load_model(folder / "whole")
    al.load_expressions(folder / "mean.json")
    names.load(folder / "theirs.safetensors", model, spec)
    al.models.pretrained(folder / "gpt2")

def no_pickle(event, args):
    assert event != "pickle.find_class" or not watching, args

watching = []
sys.addaudithook(no_pickle)
folder = pathlib.Path(sys.argv[1])
model, spec = al.serial(a=al.dense(4), b=al.dense(4)), al.spec("b 4")
loaded(folder, model, spec)  # whatever is imported at first use is imported now
watching.append(True)
loaded(folder, model, spec)
"""


def test_loading_needs_no_torch_and_unpickles_nothing(tmp_path):
    model = al.serial(a=al.dense(4), b=al.dense(4))
    params, state = model.init(KEY, SPEC)
    for suffix in FORMATS:
        al.save(tmp_path / f"model.{suffix}", params, state)
    al.save_model(tmp_path / "whole", model, params, state)
    al.save_expressions(tmp_path / "mean.json", model["a"].mean())
    theirs = {path.replace("/", "."): np.asarray(x) for path, x in al.paths(params)}
    safetensors.numpy.save_file(theirs, tmp_path / "theirs.safetensors")
    shutil.copytree(RECORDED.parent / "checkpoints" / "gpt2", tmp_path / "gpt2")
    subprocess.run([sys.executable, "-c", SAFE, str(tmp_path)], check=True)


# --- killed while it writes

SAVING = """
import os, pathlib, sys, threading, time
import jax.numpy as jnp, numpy as np
import axonlike as al

def wait(*args, **options):
    os.write(1, b"halfway\\n")  # in one piece, whatever other threads write
    time.sleep(60)

class Waiting:
    dtype, shape, __array__ = np.dtype("float32"), (500, 600), wait

pathlib.Path.rename = wait  # by which folders are put in their place
zeros, halfway = jnp.zeros((500, 600)), {"a": jnp.zeros((500, 600)), "b": Waiting()}
folder = pathlib.Path(sys.argv[1])
for function, *args in (
    (al.save, folder / "model.safetensors", halfway),
    (al.save, folder / "model.npz", halfway),
    (al.save_model, folder / "whole", al.identity, halfway),
    (al.mapping({"a": "a/bias", "b": "b/bias"}).save, folder / "theirs.safetensors",
        al.serial(a=al.bias(), b=al.bias()),
        {name: {"bias": array} for name, array in halfway.items()}, {}),
):
    threading.Thread(target=function, args=args, daemon=True).start()
al.save(folder / "model.orbax", {"a": zeros, "b": zeros + 0})
"""


def test_a_process_that_is_killed_leaves_what_was_there(tmp_path):
    tree = {"a": jnp.ones((500, 600)), "b": jnp.ones((500, 600))}
    files = [f"model.{suffix}" for suffix in FORMATS] + ["theirs.safetensors"]
    for name in files:
        al.save(tmp_path / name, tree)
    al.save_model(tmp_path / "whole", al.identity, tree)
    command = [sys.executable, "-c", SAVING, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for _ in (*files, "whole"):
            assert process.stdout.readline() == "halfway\n"
        process.kill()
    drafts = [file for file in tmp_path.iterdir() if file.name.startswith(".")]
    assert len(drafts) == len(files)
    for name in files:
        entries = read(tmp_path / name, name.rpartition(".")[2])
        assert entries.keys() == tree.keys()
        assert all((entry.read() == 1).all() for entry in entries.values())
    _, params, _ = al.load_model(tmp_path / "whole")
    assert all((array == 1).all() for array in params.values())


AGAIN = """
import sys
import jax.numpy as jnp
import axonlike as al
for i in range(10_000):
    al.save(sys.argv[1], {"held": jnp.full((500, 600), float(i))})
    print(i, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_a_process_that_is_killed_at_any_moment_leaves_a_whole_file(tmp_path, suffix):
    file = tmp_path / f"model.{suffix}"
    for trial in range(20):
        command = [sys.executable, "-c", AGAIN, str(file)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            for _ in range(2):
                process.stdout.readline()
            time.sleep(0.002 * trial)
            process.kill()
        held = read(file, suffix)["held"].read()
        assert (held == held[0, 0]).all()


# --- what was written by earlier versions

RECORDED = Path(__file__).parent / "recorded" / "files-1"


def counting():
    block = al.residual(al.dense(4, param_dtype=jnp.bfloat16))
    return al.serial(blocks=al.repeat(block, 2), norm=al.batch_norm(), head=al.dense(2))


def counted():
    """Trees whose numbers are their places."""

    def one(spec):
        return jnp.arange(spec.size).reshape(spec.shape).astype(spec.dtype)

    return jax.tree.map(one, jax.eval_shape(counting().init, KEY, SPEC))


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_files_of_the_first_version_load(suffix):
    loaded = al.load(RECORDED / f"weights.{suffix}", counting(), SPEC)
    assert_same(tuple(loaded), counted())


def test_models_of_the_first_version_load():
    model, params, state = al.load_model(RECORDED / "whole")
    assert model == counting()
    assert_same((params, state), counted())
