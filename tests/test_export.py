"""What `export` writes runs in a process that has JAX and no axonlike."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from test_laws import ROWS

import axonlike as al
from axonlike.spec import as_spec
from axonlike.testing import _sized, _sizes, _values

KEY = jax.random.key(0)

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
            assert (y.shape, y.dtype) == (wanted.shape, wanted.dtype), case
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
    params, state = layer.init(KEY, specs)
    al.export(layer, params, state, spec, folder / f"{name}.stablehlo", check=False)
    for case, sizes in enumerate(sizes_of(specs, options)):
        x = _values(np.random.default_rng(case), _sized(specs, sizes))
        y = jax.jit(layer.predict)(params, state, x)
        arrays = {f"x{i}": leaf for i, leaf in enumerate(jax.tree.leaves(x))}
        arrays |= {f"y{i}": leaf for i, leaf in enumerate(jax.tree.leaves(y))}
        np.savez(folder / f"{name}.{case}.npz", **arrays)


def run_alone(folder):
    """What a process that cannot import axonlike finds."""
    command = [sys.executable, "-I", "-c", ALONE, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


SAMPLE = ("attention", "batch_norm", "conv", "embedding", "gru", "repeat", "wire")


def rows(names=None):
    chosen = [row for row in ROWS if names is None or row.id in names]
    return [(row.id, *row.values) for row in chosen]


def check_rows(folder, chosen):
    for name, layer, spec, options in chosen:
        write(folder, name, layer, spec, options)
    found = run_alone(folder)
    assert {case.rpartition(".")[0] for case in found} == {row[0] for row in chosen}
    assert {case: off for case, off in found.items() if not off <= 1e-6} == {}


def test_files_run_without_axonlike_for_any_size(tmp_path):
    check_rows(tmp_path, rows(SAMPLE))


@pytest.mark.slow
def test_every_layer_is_exported_and_runs_without_axonlike(tmp_path):
    check_rows(tmp_path, rows())
