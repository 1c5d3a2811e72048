"""The examples run, for a few steps."""

import importlib
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import axonlike as al

EXAMPLES = Path(__file__).parent.parent / "examples"


def compiled(ledger, name="_step"):
    """How often a function was compiled, the training step as a rule."""
    names = [e.function for e in ledger.events if e.stage == "compile"]
    return names.count(name)


@pytest.fixture
def digits(monkeypatch):
    for library in ("matplotlib", "rich", "sklearn"):
        pytest.importorskip(library)
    monkeypatch.syspath_prepend(EXAMPLES)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield importlib.import_module("digits")


def lines_to_run(said):
    """What the demo says below each "with ... alone (...):", as programs."""
    for part in said.split("):\n")[1:]:
        lines = itertools.takewhile(lambda line: line[:4].isspace(), part.splitlines())
        yield "\n".join(line[4:] for line in lines)


def run_alone(lines):
    """What they find, in a process that has nothing of this one."""
    code = (
        "import sys, numpy\n"
        "x = numpy.random.default_rng(0).random((3, 8, 8, 1), numpy.float32)\n"
        f"{lines}\nassert 'axonlike' not in sys.modules\nprint(logits.tolist())"
    )
    command = [sys.executable, "-I", "-c", code]
    return json.loads(subprocess.check_output(command, text=True))


def test_the_demo_trains_exports_and_draws(digits, tmp_path, capsys):
    from safetensors.numpy import load_file

    with al.ledger() as ledger:
        accuracy = digits.main(steps=3, output=tmp_path)
    assert compiled(ledger) == 1
    assert 0 <= accuracy <= 1
    said = capsys.readouterr().out
    assert f"held-out accuracy {accuracy:.2%}" in said
    assert load_file(tmp_path / "digits.safetensors")["logits/kernel"].shape == (
        256,
        10,
    )
    pytest.importorskip("onnxruntime")
    alone, onnx = (run_alone(lines) for lines in lines_to_run(said))
    assert np.shape(alone) == (3, 10)
    np.testing.assert_allclose(onnx, alone, rtol=1e-5, atol=1e-5)
    for picture in ("curves.png", "digits.png"):
        assert (tmp_path / picture).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_split_is_fixed_by_its_seed_and_parts_the_digits(digits):
    data, held = digits.split_digits(seed=0)
    again, _ = digits.split_digits(seed=0)
    other, _ = digits.split_digits(seed=1)
    assert (len(data[0]), len(held[0])) == (1437, 360)
    rows = {row.tobytes() for x, _ in (data, held) for row in x}
    assert len(rows) == 1797
    assert np.array_equal(data[0], again[0])
    assert not np.array_equal(data[0], other[0])


def test_shift_moves_by_at_most_one_pixel(digits):
    x = np.zeros((64, 8, 8, 1), np.float32)
    x[:, 4, 4] = 1
    layer, key = digits.shift(), jax.random.key(0)
    assert np.array_equal(layer.predict({}, {}, x), x)
    moved = np.asarray(layer.apply({}, {}, x, key=key, train=True)[0])
    places = np.argwhere(moved[..., 0] == 1)[:, 1:]
    assert len(places) == 64
    assert {tuple(place) for place in places} == {
        (i, j) for i in (3, 4, 5) for j in (3, 4, 5)
    }


@pytest.fixture
def patching(monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(EXAMPLES)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield importlib.import_module("activation_patching")


def test_patching_sweeps_estimates_and_draws(patching, tmp_path, capsys):
    found = patching.main(steps=3, output=tmp_path)
    said = capsys.readouterr().out
    assert "525 patches by 7 calls of one compiled function" in said
    assert found["exact"].shape == found["estimated"].shape == (7, 5, 15)
    np.testing.assert_allclose(found["exact"][0, 0, 1], 1, rtol=1e-3)
    for picture in ("patching.png", "attribution.png", "lens.png"):
        assert (tmp_path / picture).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.slow
def test_a_transformer_that_copies_is_seen_to_move_the_letter(patching, tmp_path):
    found = patching.main(output=tmp_path)
    assert found["accuracy"] > 0.99
    depth = found["lens"]
    assert depth[-1] == pytest.approx(found["accuracy"])  # the lens there is the output
    assert (
        np.polyfit(range(len(depth)), depth, 1)[0] > 0
    )  # better with depth, on average
    assert found["correlation"] > 0.5
    for source, grid in enumerate(found["exact"], 1):
        at = patching.LONGEST + source - 1
        assert grid[0, source] == pytest.approx(1, abs=0.01)  # all of it at the letter,
        assert grid[-1, at] == pytest.approx(
            1, abs=0.01
        )  # and where it is told at last
        assert abs(grid[-1, :at]).max() < 0.01


# --- recipes: a few steps here, all of them at night


@pytest.fixture
def recipe(monkeypatch):
    """Imports an example by name, as a user's session would run it."""
    monkeypatch.syspath_prepend(EXAMPLES)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield importlib.import_module


def learn_characters(characters, folder, steps):
    return characters.main(
        steps, size=40_000, width=16, depth=2, context=16, output=folder
    )


def test_characters_are_learned_and_counted(recipe, tmp_path, capsys):
    pytest.importorskip("orbax.checkpoint")
    characters = recipe("characters")
    with al.ledger() as ledger:
        learned, counted = learn_characters(characters, tmp_path, 10)
    assert compiled(ledger) == 1
    out = capsys.readouterr().out
    assert f"held-out loss of the model: {learned:.4f} nats" in out
    assert f"counting with three characters: {counted:.4f} nats" in out
    assert 1 < counted < 3
    assert counted < learned < np.log(100) + 1
    assert sorted(path.name for path in tmp_path.iterdir())[-1] == "step-00000010"


def test_counting_gives_probabilities(recipe):
    characters = recipe("characters")
    text = characters.Text("?ab", np.array([1, 2] * 50), np.array([1, 2] * 20))
    assert characters.ngram_loss(text, 1) < 0.05
    # of every context, all that may follow adds up to one
    held = np.array([1, 2, 1, 0, 1, 1, 1, 2])
    chances = [
        np.exp(-characters.ngram_loss(text._replace(held=np.array([1, 2, 1, c])), 3))
        for c in range(3)
    ]
    assert sum(chances) == pytest.approx(1)
    assert characters.ngram_loss(text._replace(held=held), 3) > 0.5


def test_one_layer_is_swapped(recipe):
    pytest.importorskip("sklearn")
    recurrent = recipe("recurrent")
    lstm, gru = (recurrent.network(kind) for kind in (al.lstm, al.gru))
    assert (lstm[0].kind, gru[0].kind) == ("lstm", "gru")
    assert lstm[1:] == gru[1:]


def test_recurrences_race(recipe, capsys, monkeypatch):
    pytest.importorskip("sklearn")
    recurrent = recipe("recurrent")
    monkeypatch.setattr(recurrent, "KINDS", {"gru": al.gru})
    with al.ledger() as ledger:
        accuracies = recurrent.main(epochs=2)
    assert compiled(ledger) == 1
    assert list(accuracies) == ["gru"]
    assert f"held-out accuracy {accuracies['gru']:.2%}" in capsys.readouterr().out


def test_an_autoencoder_draws(recipe, tmp_path):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    vae = recipe("vae")
    with al.ledger() as ledger:
        assert vae.main(epochs=2, output=tmp_path) < 64 * np.log(2)
    assert compiled(ledger) == 1
    assert (tmp_path / "vae.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.slow
def test_characters_in_full_are_better_than_counting(recipe, tmp_path):
    learned, counted = recipe("characters").main(output=tmp_path)
    assert learned < counted - 0.1


@pytest.mark.slow
def test_characters_go_on_after_they_were_killed(tmp_path):
    """Killed at a random moment, twice, it ends as it would have ended."""
    code = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1]); import characters\n"
        "learned, _ = characters.main(150, size=200_000, width=32, depth=2, context=32,"
        " output=pathlib.Path(sys.argv[2]))\n"
        "print('learned', learned.hex())"
    )

    def run(folder):
        command = [sys.executable, "-c", code, str(EXAMPLES), str(folder)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def learned(process):
        return process.communicate(timeout=600)[0].splitlines()[-1]

    whole = learned(run(tmp_path / "whole"))
    for _ in range(2):
        process, part = run(tmp_path / "parts"), tmp_path / "parts"
        known = set(part.glob("step-*"))
        while set(part.glob("step-*")) == known and process.poll() is None:
            time.sleep(0.05)
        process.kill()
        process.communicate()
    assert whole.startswith("learned 0x")
    assert learned(run(tmp_path / "parts")) == whole


@pytest.mark.slow
def test_recurrences_in_full_read_digits(recipe):
    pytest.importorskip("sklearn")
    assert min(recipe("recurrent").main().values()) > 0.95


@pytest.mark.slow
def test_an_autoencoder_in_full_knows_digits(recipe, tmp_path):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    assert recipe("vae").main(output=tmp_path) < 21
