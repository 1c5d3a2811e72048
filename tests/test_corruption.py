"""Files that are not what was written: an error that names what it is, and nothing loaded.

Also files that somebody wrote to do harm: they run nothing, and end.
"""

import contextlib
import io
import json
import os
import random
import shutil
import struct
import sys
import threading
import zipfile
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import axonlike as al
from axonlike.io import safetensors
from axonlike.io.weights import read

KEY = jax.random.key(0)
SPEC = al.spec("b 4")
MODEL = al.serial(a=al.dense(4), norm=al.batch_norm(), b=al.dense(4))
FORMATS = ["safetensors", "npz", "orbax"]


@pytest.fixture(scope="module")
def trees():
    params, state = MODEL.init(KEY, SPEC)
    return jax.tree.map(
        lambda x: x + jnp.arange(x.size).reshape(x.shape), params
    ), state


# --- changes of what is in a file, made by reading it and writing it by hand


def contents(file, suffix):
    """The raw arrays of a file, and its note."""
    if suffix == "safetensors":
        data = file.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        note = header.pop("__metadata__")["axonlike"]
        arrays = {}
        for name, entry in header.items():
            begin, end = (8 + length + n for n in entry["data_offsets"])
            arrays[name] = np.frombuffer(data[begin:end], DTYPES[entry["dtype"]])
            arrays[name] = arrays[name].reshape(entry["shape"])
        return arrays, note
    if suffix == "npz":
        arrays = dict(np.load(file))
    else:
        import orbax.checkpoint as ocp

        with ocp.PyTreeCheckpointer() as reader:
            arrays = dict(al.paths(reader.restore(file)))
    return arrays, np.asarray(arrays.pop("__axonlike__")).tobytes().decode()


DTYPES = {"F32": np.float32, "F64": np.float64, "I32": np.int32, "F16": np.float16}


def put(file, suffix, arrays, note):
    """A file of these arrays with this note, true or not."""
    shutil.rmtree(file) if file.is_dir() else file.unlink()
    ours = np.frombuffer(note.encode(), np.uint8)
    if suffix == "npz":
        np.savez(file, **arrays, __axonlike__=ours)
    elif suffix == "orbax":
        import orbax.checkpoint as ocp

        tree = {"__axonlike__": ours}
        for path, array in arrays.items():
            *steps, last = path.split("/")
            here = tree
            for step in steps:
                here = here.setdefault(step, {})
            here[last] = array
        with ocp.PyTreeCheckpointer() as writer:
            writer.save(file, tree)
    else:
        codes = {np.dtype(v).name: k for k, v in DTYPES.items()}
        header, at = {"__metadata__": {"axonlike": note}}, 0
        for name, array in arrays.items():
            header[name] = {
                "dtype": codes[array.dtype.name],
                "shape": array.shape,
                "data_offsets": [at, at + array.nbytes],
            }
            at += array.nbytes
        write_header(file, header, b"".join(a.tobytes() for a in arrays.values()))


def write_header(file, header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + body)


def noted(note, **names):
    """The note about arrays that have other names: `{now: before}`."""
    table = json.loads(note)
    for now, before in names.items():
        table["checksums"][now] = table["checksums"].pop(before)
    return json.dumps(table)


def missing(arrays, note):
    table = json.loads(note)
    del arrays["a/kernel"], table["checksums"]["a/kernel"]
    return "missing: a/kernel", json.dumps(table)


def lost(arrays, note):
    del arrays["a/kernel"]
    return "'a/kernel' is not what was written", note


def extra(arrays, note):
    arrays["a/more"] = np.ones(3, np.float32)
    table = json.loads(note)
    table["checksums"]["a/more"] = f"{zlib.crc32(arrays['a/more'].tobytes()):08x}"
    return "not in the model: a/more", json.dumps(table)


def foreign(arrays, note):
    arrays["a/more"] = np.ones(3, np.float32)
    return "'a/more' is not what was written", note


def renamed(arrays, note):
    arrays["a/kernal"] = arrays.pop("a/kernel")
    return "'a/kernel' in the model|a/kernel float32.*'a/kernal'", noted(
        note, **{"a/kernal": "a/kernel"}
    )


def swapped(arrays, note):
    arrays["a/kernel"], arrays["b/kernel"] = arrays["b/kernel"], arrays["a/kernel"]
    return "'a/kernel' has other bytes(.|\n)*'b/kernel' has other bytes", note


def reshaped(arrays, note):
    arrays["a/kernel"] = arrays["a/kernel"].reshape(2, 8)
    return (
        r"shape: a/kernel: expected float32\[4, 4\], the file has float32\[2, 8\]",
        note,
    )


def retyped(arrays, note):
    arrays["a/kernel"] = arrays["a/kernel"].view(np.int32)
    return "dtype: a/kernel: expected float32.*the file has int32", note


def widened(arrays, note):
    arrays["a/kernel"] = arrays["a/kernel"].astype(np.float64)
    return "dtype: a/kernel: expected float32.*the file has float64", note


def flipped(arrays, note):
    data = bytearray(np.ascontiguousarray(arrays["a/kernel"]).tobytes())
    data[5] ^= 1
    arrays["a/kernel"] = np.frombuffer(bytes(data), np.float32).reshape(4, 4)
    return "'a/kernel' has other bytes", note


def shortened(arrays, note):
    arrays["norm/mean"] = arrays["norm/mean"][:3]
    return r"shape: norm/mean: expected float32\[4\], the file has float32\[3\]", note


def noteless(arrays, note):
    return "what axonlike noted in it is not readable", note[:-20]


def newer(arrays, note):
    return "written in version 2", note.replace('"version": 1', '"version": 2')


KINDS = [
    missing, lost, extra, foreign, renamed, swapped, reshaped, retyped, widened, flipped,
    shortened, noteless, newer,
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("suffix", FORMATS)
def test_what_differs_is_named_and_nothing_is_loaded(tmp_path, trees, suffix, kind):
    file = tmp_path / f"model.{suffix}"
    al.save(file, *trees)
    arrays, note = contents(file, suffix)
    put(file, suffix, arrays, note)
    al.load(file, MODEL, SPEC)  # as it is, it loads
    message, note = kind(arrays, note)
    put(file, suffix, arrays, note)
    with pytest.raises(ValueError, match=message) as caught:
        al.load(file, MODEL, SPEC)
    assert file.name in str(caught.value)
    assert not any(
        f"{x:.3f}" in str(caught.value) for x in np.ravel(trees[0]["a"]["kernel"])
    )


def cut(data):
    return data[: len(data) // 2]


def tail(data):
    return data[:-3]


def nothing(data):
    return b""


def longer(data):
    return data + b"0" * 7


def text(data):
    return b"this is no such file\n" * 50


@pytest.mark.parametrize("how", [cut, tail, nothing, longer, text])
@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_what_is_cut_or_something_else_is_named(tmp_path, trees, suffix, how):
    file = tmp_path / f"model.{suffix}"
    al.save(file, *trees)
    file.write_bytes(how(file.read_bytes()))
    if (suffix, how) == ("npz", longer):  # what follows a zip's end is no part of it
        al.load(file, MODEL, SPEC)
        return
    with pytest.raises(ValueError, match=rf"load: .*model.{suffix}.* is damaged"):
        al.load(file, MODEL, SPEC)


# Orbax reads all arrays at once, and tells of the first that fails.
orbax_reads_on = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@orbax_reads_on
@pytest.mark.parametrize("how", [cut, nothing, text])
def test_an_orbax_folder_with_a_broken_file_is_named(tmp_path, trees, how):
    file = tmp_path / "model.orbax"
    al.save(file, *trees)
    for part in (file / "_METADATA", file / "manifest.ocdbt", *(file / "d").iterdir()):
        before = part.read_bytes()
        part.write_bytes(how(before))
        with pytest.raises(ValueError, match=r"model.orbax: .* is damaged"):
            al.load(file, MODEL, SPEC)
        part.write_bytes(before)
    al.load(file, MODEL, SPEC)


# --- headers and archives made to do harm


def entry(dtype="F32", shape=(2,), ends=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(ends)}


@pytest.mark.parametrize(
    ("header", "body", "message"),
    [
        ({"a": entry(), "b": entry()}, 8, "'b' does not begin where"),
        ({"a": entry(ends=(8, 16))}, 16, "'a' does not begin where"),
        ({"a": entry()}, 4, "it ends before 'a' does"),
        ({"a": entry(shape=[2**40, 2**40])}, 8, "'a' has more or fewer bytes"),
        ({"a": entry(shape=[1] * 99, ends=(0, 4))}, 4, "'a' has no shape and place"),
        ({"a": entry(shape=[-2], ends=(0, -8))}, 8, "'a' has no shape and place"),
        ({"a": entry(shape=[True], ends=(0, 4))}, 4, "'a' has no shape and place"),
        ({"a": entry(shape=[2.0])}, 8, "'a' has no shape and place"),
        ({"a": entry(dtype="F31")}, 8, "'a' has an unknown dtype, 'F31'"),
        ({"a": entry(dtype=["F32"])}, 8, "'a' has an unknown dtype"),
        ({"a": 5}, 0, "'a' has an unknown dtype"),
        ({"__metadata__": {"x": 1}}, 0, "its metadata is not text"),
        ({"__metadata__": []}, 0, "its metadata is not text"),
        ([], 0, "its header is no table"),
        (b"[" * 100_000, 0, "its header is not readable"),
        (b'{"a":' * 100_000, 0, "its header is not readable"),
        (b'{"a": ' + b"9" * 5000 + b"}", 0, "its header is not readable"),
        (b'{"a": {}, "a": {}}', 0, "its header is not readable"),
        (b"\xff\xfe{}", 0, "its header is not readable"),
        (b"{} {}", 0, "its header is not readable"),
    ],
)
def test_headers_that_cannot_be(tmp_path, header, body, message):
    file = tmp_path / "model.safetensors"
    write_header(file, header, b"\0" * body)
    with pytest.raises(ValueError, match=message):
        safetensors.read(file)


def test_a_header_longer_than_the_file_reserves_nothing(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(ValueError, match="it has 10 bytes, too few for its header"):
        safetensors.read(file)


def test_bytes_that_are_no_bool_are_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    write_header(file, {"a": entry("BOOL", [2], [0, 2])}, b"\1\2")
    with pytest.raises(ValueError, match="'a' has bytes that are no bool"):
        read(file, "safetensors")["a"].read()


@pytest.mark.parametrize(
    "name",
    ["../other.safetensors", "/etc/passwd", "a/b.safetensors", "..", "c:x.safetensors",
     "\\\\host\\x.safetensors", ".hidden.safetensors", "x\n.safetensors", "model.json"],
)  # fmt: skip
def test_an_index_does_not_lead_out_of_its_folder(tmp_path, name):
    index = tmp_path / "in" / "model.safetensors.index.json"
    index.parent.mkdir()
    write_header(tmp_path / "other.safetensors", {"a": entry()}, b"\0" * 8)
    index.write_text(json.dumps({"weight_map": {"a": name}}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"'a' is said to be in .* no plain name"):
        al.load(index, MODEL, SPEC)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "none.safetensors"}}, "'none.safetensors' is not beside"),
        ({"weight_map": {"b": "m.safetensors"}}, "differ about 'a'"),
        ({"weight_map": {"a": 5}}, "it has no 'weight_map'"),
        ({"weight_map": "a"}, "it has no 'weight_map'"),
        ([], "it has no 'weight_map'"),
    ],
)
def test_indices_that_cannot_be(tmp_path, index, message):
    write_header(tmp_path / "m.safetensors", {"a": entry()}, b"\0" * 8)
    file = tmp_path / "x.safetensors.index.json"
    file.write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        al.load(file, MODEL, SPEC)


def test_a_pickle_in_an_archive_is_not_opened(tmp_path):
    file = tmp_path / "model.npz"
    bomb = np.array([Bomb()], dtype=object)
    np.savez(file, a=bomb)
    with pytest.raises(ValueError, match="not in the model: a object"):
        al.load(file, MODEL, SPEC)
    with pytest.raises(ValueError, match="'a' cannot be read"):
        read(file, "npz")["a"].read()


class Bomb:
    """What runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch exploded",)


def test_an_archive_that_unpacks_without_end_is_not_unpacked(tmp_path):
    file = tmp_path / "model.npz"
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": "<f4", "fortran_order": False, "shape": (2,)}
    )
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", head.getvalue() + b"\0" * 50_000_000)
    with pytest.raises(ValueError, match="'a' has more or fewer bytes than its shape"):
        read(file, "npz")["a"].read()


@pytest.mark.parametrize(
    "header",
    ["(((\n", "'''", "{1: 2, 'a': 3}", "{[]: 1}", "-" * 9000 + "1",
     "{'descr': (), 'fortran_order': False, 'shape': (2,)}"],
    ids=lambda header: header[:9],
)  # fmt: skip
def test_headers_of_arrays_that_cannot_be(tmp_path, header):
    file = tmp_path / "model.npz"
    text = header.encode()
    start = b"\x93NUMPY\1\0" + struct.pack("<H", len(text))
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", start + text)
    with pytest.raises(ValueError, match="it is no npz file that can be read"):
        al.load(file, MODEL, SPEC)


def test_an_archive_with_one_name_twice_is_refused(tmp_path):
    file = tmp_path / "model.npz"
    data = io.BytesIO()
    np.save(data, np.ones(2, np.float32))
    with zipfile.ZipFile(file, "w") as out:
        out.writestr("a.npy", data.getvalue())
        with pytest.warns(UserWarning, match="Duplicate"):
            out.writestr("a.npy", data.getvalue())
    with pytest.raises(ValueError, match="'a' is in it twice"):
        al.load(file, MODEL, SPEC)


# --- bytes changed at random


def mutated(rng, data):
    """Some bytes changed, taken out, put in or doubled."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        at, count = rng.randrange(len(data)), rng.choice([1, 1, 4, 40])
        what = rng.randrange(5)
        if what == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            data[at : at + count] = rng.randbytes(count)
        elif what == 2:
            del data[at : at + count]
        elif what == 3:
            data[at:at] = data[at : at + count]
        else:
            data[at:at] = rng.choice(
                [b"[", b'{"a":', b"9" * 30, b"-1", b"\0\0\0\0", b"\xff"]
            )
        data = data or bytearray(b"x")
    return bytes(data)


FORBIDDEN = (
    "exec", "import", "pickle.find_class", "os.system", "os.exec", "os.fork",
    "os.posix_spawn", "os.remove", "os.rename", "subprocess.Popen", "socket.connect",
    "ctypes.dlopen",
)  # fmt: skip
seen = []
watching = threading.Event()


def watch(event, args):
    if event in FORBIDDEN and watching.is_set():
        seen.append((event, str(args)[:200]))


@contextlib.contextmanager
def nothing_runs():
    """Makes sure that nothing was run, imported, renamed or removed meanwhile."""
    if not hasattr(sys, "watched"):
        sys.addaudithook(watch)  # it stays for as long as the process does
        sys.watched = True
    seen.clear()
    watching.set()
    try:
        yield
    finally:
        watching.clear()
    assert seen == []


def fuzz(folder, trees, count):
    """Loads `count` changed files; how many of them loaded."""
    rng, loaded = random.Random(0), 0
    originals = {}
    for suffix in ("safetensors", "npz"):
        file = folder / f"model.{suffix}"
        al.save(file, *trees)
        originals[suffix] = file.read_bytes()
    model = folder / "whole"
    al.save_model(model, MODEL, *trees)
    originals["json"] = (model / "model.json").read_bytes()
    al.load_model(model)
    "".encode("cp437")  # which is imported where names in a zip are no UTF-8
    wanted = jax.tree.leaves(tuple(trees))
    for _ in range(count):
        suffix = rng.choice(list(originals))
        file = model / "model.json" if suffix == "json" else folder / f"x.{suffix}"
        file.write_bytes(mutated(rng, originals[suffix]))
        with nothing_runs():
            got, error = attempt(file)
        assert error is None or folder.name in error
        if error is None:  # what changed is not what counts, such as blanks
            loaded += 1
            assert_equal(got, wanted)
    return loaded


def attempt(file):
    """What loads, and the error that is raised instead; errors of other kinds go up."""
    try:
        if file.name == "model.json":
            return al.load_model(file.parent)[1:], None
        return tuple(al.load(file, MODEL, SPEC)), None
    except ValueError as error:
        return None, str(error)


def assert_equal(got, wanted):
    for a, b in zip(jax.tree.leaves(got), wanted, strict=True):
        np.testing.assert_array_equal(a, b)


def test_changed_bytes_are_noticed(tmp_path, trees):
    assert fuzz(tmp_path, trees, 300) < 60


@pytest.mark.slow
def test_ten_thousand_changed_files_are_noticed(tmp_path, trees):
    assert fuzz(tmp_path, trees, 10_000) < 2000


@pytest.mark.slow
@orbax_reads_on
def test_changed_orbax_folders_are_noticed(tmp_path, trees):
    rng, file = random.Random(0), tmp_path / "model.orbax"
    al.save(file, *trees)
    parts = [part for part in file.rglob("*") if part.is_file()]
    for _ in range(200):
        part = rng.choice(parts)
        before = part.read_bytes()
        part.write_bytes(mutated(rng, before or b"x"))
        got, error = attempt(file)
        assert error is None or "model.orbax" in error
        if error is None:
            assert_equal(got, jax.tree.leaves(tuple(trees)))
        part.write_bytes(before)
