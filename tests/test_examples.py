"""The examples run, for a few steps."""

import importlib
from pathlib import Path

import jax
import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def digits(monkeypatch):
    for library in ("matplotlib", "rich", "sklearn"):
        pytest.importorskip(library)
    monkeypatch.syspath_prepend(EXAMPLES)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield importlib.import_module("digits")


def test_the_demo_trains_exports_and_draws(digits, tmp_path, capsys):
    from safetensors.numpy import load_file

    accuracy = digits.main(steps=3, output=tmp_path)
    assert 0 <= accuracy <= 1
    assert f"held-out accuracy {accuracy:.2%}" in capsys.readouterr().out
    assert load_file(tmp_path / "digits.safetensors")["logits/kernel"].shape == (
        256,
        10,
    )
    for picture in ("curves.png", "digits.png"):
        assert (tmp_path / picture).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_split_is_fixed_by_its_seed_and_parts_the_digits(digits):
    data, held = digits.split_digits(seed=0)
    again, _ = digits.split_digits(seed=0)
    other, _ = digits.split_digits(seed=1)
    assert (len(data.x), len(held.x)) == (1437, 360)
    rows = {row.tobytes() for part in (data, held) for row in part.x}
    assert len(rows) == 1797
    assert np.array_equal(data.x, again.x)
    assert not np.array_equal(data.x, other.x)


def test_batches_go_through_the_data_before_they_repeat(digits):
    n = 5 * digits.BATCH
    data = digits.Data(np.arange(n), np.arange(n))
    seen = [set(batch.x) for batch in digits.batches(data, 10, seed=0)]
    assert set().union(*seen[:5]) == set().union(*seen[5:]) == set(range(n))


def test_shift_moves_by_at_most_one_pixel(digits):
    x = np.zeros((64, 8, 8, 1), np.float32)
    x[:, 4, 4] = 1
    moved = np.asarray(digits.shift(jax.random.key(0), x))
    places = np.argwhere(moved[..., 0] == 1)[:, 1:]
    assert len(places) == 64
    assert {tuple(place) for place in places} == {
        (i, j) for i in (3, 4, 5) for j in (3, 4, 5)
    }
