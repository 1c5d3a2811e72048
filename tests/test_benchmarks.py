"""The benchmarks run, at toy size: what they say of speed here means nothing."""

import importlib
import json
from pathlib import Path

import jax
import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """Imports one, under JAX's default flags: the peers need them."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield importlib.import_module


def test_our_gpt2_is_the_one_by_hand(benchmark):
    gpu, models = benchmark("gpu"), benchmark("models")
    ours, by_hand = benchmark("models.ours"), benchmark("models.by_hand")
    data = models.batch("gpt2", models.TOY)
    mine, units = ours.trainee("gpt2", models.TOY, data[0])
    theirs = by_hand.trainee("gpt2", models.TOY, data[0], units)
    assert gpu.count(mine) == gpu.count(theirs)
    losses = [
        jax.jit(models.loss_of(one))(one.params, one.state, data)[0]
        for one in (mine, theirs)
    ]
    assert float(losses[0]) == pytest.approx(float(losses[1]), rel=1e-6)


def test_the_count_of_flops(benchmark):
    gpu, models = benchmark("gpu"), benchmark("models")
    sizes = models.Sizes(blocks=12, width=768, tokens=(1, 1024))
    # by hand, a token: 6 * 124e6 for the weights, and 12 * 12 * 768 * 1024 for attention
    assert gpu.flops(sizes, 124_000_000 + 1024 * 768) == 1024 * (744e6 + 113_246_208)
    assert gpu.peak_of("NVIDIA H100 PCIe", None) == 756
    assert gpu.peak_of("NVIDIA H100 PCIe", 800.0) == 800
    assert gpu.peak_of("cpu", None) is None


def test_a_peer_that_computes_something_else_is_refused(benchmark):
    layers, peers, rows = benchmark("layers"), benchmark("peers"), benchmark("rows")
    row = benchmark("gpu").small(rows.ROWS["dense"])
    mine = peers.ours(row)

    class Wrong:
        @staticmethod
        def contender(row, weights, x):
            return peers.Contender(
                weights,
                lambda params, x, key: mine.forward(params, 1.01 * x, key),
                peers.same,
            )

    with pytest.raises(ValueError, match=r"dense: wrong: .* expected our numbers"):
        layers.race(row, {"wrong": Wrong}, rounds=1)


def test_a_row_that_nobody_else_has(benchmark):
    layers, rows = benchmark("layers"), benchmark("rows")
    result = layers.race(benchmark("gpu").small(rows.ROWS["dense"]), {}, rounds=1)
    assert list(result["ms"]) == ["axonlike"]
    assert layers.table([result])[-1].startswith("| dense | ")


@pytest.mark.slow
def test_all_of_it_at_toy_size(benchmark, tmp_path):
    benchmark("gpu").main(["--toy", "--rounds", "1", "--out", str(tmp_path)])
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert [r["row"] for r in result["layers"]] == list(benchmark("rows").ROWS)
    assert set(result["gpt2"]["ms"]) >= {"axonlike", "by hand"}
    assert result["device"] in (tmp_path / "gpu.md").read_text()


def test_what_is_said_of_our_activations_is_so(benchmark):
    inside = benchmark("inside")
    said = {name: inside.outcome(run) for name, run in inside.ours().items()}
    assert said.pop("nothing").startswith(
        "``PathError``: activation: nothing is called"
    )
    assert all(text.startswith("right") for text in said.values()), said
    page = (BENCHMARKS.parents[1] / "docs" / "activations-compared.rst").read_text()
    words = " ".join(page.split())
    for task, text in said.items():
        title = inside.TASKS[task][0]
        assert f"**axonlike**: {text}" in words.split(title)[1]


def test_another_value_is_not_said_to_be_right(benchmark):
    inside = benchmark("inside")
    wrong = inside.outcome(lambda: inside.Task(jax.numpy.ones(2), [1.0, 2.0]))
    assert wrong == "no: an array of (2,)"


def test_the_loop_is_measured_against_a_bare_one(benchmark):
    loop = benchmark("loop")
    rows = loop.measure("thin", loop.thin(4, depth=2), rounds=1)
    assert [row[1] for row in rows] == [
        "bare loop, step by hand",
        "fit, step by hand",
        "bare loop, train_step",
        "fit, train_step",
    ]
    assert [row[3] for row in rows[::2]] == ["1.000", "1.000"]
    assert float(rows[1][3]) > 0
