"""Deferred expressions and edits in files: the same again, and no code run."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import axonlike as al

BLOCK = al.residual(al.dense(8).named("mlp"))
MODEL = al.serial(inp=al.dense(8), blocks=al.repeat(BLOCK, 4), head=al.dense(2))
T, U = MODEL["inp"], MODEL["blocks/1:3/mlp"]


def double(value):
    return 2 * value


EXPRESSIONS = {
    "sum": 0.5 * T[:, 0].mean() - U.l2() ** 2 + abs(-T.l1()),
    "signs": (T < 1.0) & (U.max() <= T) | T.eq(0.0) | T.ne(np.float32(2)),
    "operators": (T @ MODEL["head"]) // 2 % 3 / T,
    "methods": T.astype(jnp.bfloat16).reshape((-1, 2)).sum(axis=-1, keepdims=True),
    "index": T[..., None, 1:3, -1],
    "late": MODEL["blocks", al.index("k"), "mlp"][:, al.arg("start") : al.arg("stop")],
    "arrays": T * jnp.arange(3.0) + np.ones((2, 2), np.int8) + jnp.bfloat16(2),
    "nowhere": T * float("nan") - float("inf"),
    "functions": al.defer(jax.nn.softmax)(T, axis=-1).map(jnp.where, 1.0, T),
    "runs": T - al.on("clean", T + al.on("other", U)),
    "fill": MODEL["blocks/*"].fill(0.0)[0],
    "tree": {"a": [T, (U, 1, None, True)], "$": T.sum()},
    "edits": [
        T.set(1.0), U.add(jnp.ones(8)), T[:, 2].scale(al.arg("w")), T.rotate(T @ T),
        T.project_out([1.0, 2.0]), T.map(jnp.tanh), U.set(al.on("clean", U)),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_what_is_read_is_what_was_written(name, tmp_path):
    tree = EXPRESSIONS[name]
    al.save_expressions(tmp_path / "file.json", tree)
    again = al.load_expressions(tmp_path / "file.json", MODEL)
    assert compared(again) == compared(tree)
    assert repr(again) == repr(tree)
    json.loads((tmp_path / "file.json").read_text(), parse_constant=pytest.fail)


def compared(tree):
    """What two equal trees share: edits are tuples, of which an array has no `==`."""
    edits = tree if isinstance(tree, list) else ()
    return al.compile(al.site("output") if edits else tree, edits, MODEL)


def test_a_loaded_experiment_gives_the_same_numbers(tmp_path):
    x = jnp.ones((3, 8))
    params, state = MODEL.init(jax.random.key(0), x)
    experiment = {
        "read": MODEL["output"].sum(),
        "edits": [U.scale(0.0), T.map(double), T.add(al.arg("v"))],
    }
    al.save_expressions(tmp_path / "file.json", experiment)
    again = al.load_expressions(tmp_path / "file.json", MODEL, functions=[double])
    before = al.compile(experiment["read"], experiment["edits"])
    after = al.compile(again["read"], again["edits"])
    assert before == after
    assert before(params, state, x, v=1.0) == after(params, state, x, v=1.0)


def test_a_function_without_a_name_is_refused_with_its_formula(tmp_path):
    anonymous = al.defer(lambda v: v)(T[:, 0]) + 1
    text = "save_expressions: <lambda>(inp[:, 0]): <lambda test_expressions.py:"
    with pytest.raises(ValueError, match=re.escape(text)):
        al.save_expressions(tmp_path / "file.json", anonymous)
    with pytest.raises(ValueError, match=r"<lambda .* has no import name"):
        al.load_expressions(tmp_path / "file.json", functions=[lambda v: v])
    with pytest.raises(ValueError, match=r"save_expressions: dense.* is a layer"):
        al.save_expressions(tmp_path / "file.json", [al.dense(2)])
    with pytest.raises(
        ValueError, match="save_expressions: object is nothing that JSON"
    ):
        al.save_expressions(tmp_path / "file.json", T + object())
    assert not (tmp_path / "file.json").exists()


def call(name, *args):
    return {"$": "call", "function": name, "args": list(args), "keywords": {}}


def site(*path):
    return {"$": "site", "path": list(path)}


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        (call("os.system", "true"), "'os.system' is not among those that a file may name"),
        (call("jax.numpy.load", "f"), "'jax.numpy.load' is not among"),
        (call("builtins.eval", "1"), "'builtins.eval' is not among"),
        (call("test_expressions.double", site("inp")), "If you trust it, pass functions="),
        (call("_operator.attrgetter", "x"), "is not among"),
        ({"$": "edit", "target": site("a"), "verb": "copy", "value": 1}, "no edit 'copy'"),
        ({"$": "edit", "target": site("a"), "verb": "__class__", "value": 1}, "no edit"),
        ({"$": "edit", "target": 3, "verb": "set", "value": 1}, "expected an expression"),
        (
            {"$": "edit", "target": call("_operator.add", site("a"), 1), "verb": "set",
             "value": 1},
            "only an activation, or a slice of one, can be edited",
        ),
        ({"$": "site", "path": []}, "tree: expected the steps of a path"),
        ({"$": "site", "path": [1.5]}, "expected the steps of a path"),
        ({"$": "arg", "name": "params"}, "has a parameter 'params' of its own"),
        ({**call("jax.numpy.sin"), "$": "map"}, "tree: expected an expression"),
        ({"$": "no"}, "'no' is nothing that is known"),
        ({"a": [{"$": "on", "run": "r"}]}, "tree/a/0"),
    ],
)  # fmt: skip
def test_a_file_reaches_no_code(tree, text, tmp_path):
    file = tmp_path / "file.json"
    content = {"format": "axonlike expressions", "version": 1, "tree": tree}
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"load_expressions: .*{re.escape(text)}"):
        al.load_expressions(file)


def test_other_files_are_told(tmp_path):
    file = tmp_path / "file.json"
    for text, said in [
        ("[]", "these are no expressions"),
        ("{", "Expecting property name"),
        ('{"format": "axonlike expressions", "version": 2}', "of another version"),
        ('{"format": "axonlike expressions", "version": 1}', "'tree' is missing"),
        ('{"format": "axonlike expressions", "version": 1, "tree": ' + "[" * 100_000,
         "nests too deep"),
    ]:  # fmt: skip
        file.write_text(text)
        with pytest.raises(ValueError, match=said):
            al.load_expressions(file)


def test_a_model_without_such_an_activation_is_told(tmp_path):
    al.save_expressions(tmp_path / "file.json", T + U)
    other = al.serial(input_layer=al.dense(8), blocks=al.repeat(BLOCK, 4))
    with pytest.raises(al.PathError, match="nothing is called 'inp'"):
        al.load_expressions(tmp_path / "file.json", other)
