"""What is public is listed once, sorted, documented, and shown by example."""

import ast
import doctest
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import axonlike

SOURCE = Path(axonlike.__file__).read_text(encoding="utf-8")
TREE = ast.parse(SOURCE)
MODULES = [n for n in axonlike.__all__ if inspect.ismodule(getattr(axonlike, n))]
VALUES = ["identity"]  # a layer itself, not what makes one
NAMES = [name for name in axonlike.__all__ if name not in (*MODULES, *VALUES)]
MEMBERS = [
    f"{module}.{name}"
    for module in MODULES
    for name in getattr(axonlike, module).__all__
]
METHODS = [
    f"Layer.{name}"
    for name, value in vars(axonlike.Layer).items()
    if not name.startswith("_") and inspect.isfunction(value)
]
DOCUMENTED = [*NAMES, *MEMBERS, *METHODS]

# What is used by what makes it, or by its operator.
USED = {
    "Layer": "model",
    "Spec": "al.spec",
    "add": " + ",
    "concatenate": " | ",
    "initializers.Initializer": "al.initializers.",
    "multiply": " * ",
    "parallel": " @ ",
}

# These touch no arrays, so there are no shapes to tell.
WITHOUT_SHAPES = {"Layer", "PathError", "ShapeError", "Spec"}


def imported(body):
    return [
        alias.asname or alias.name
        for node in body
        if isinstance(node, ast.ImportFrom) and node.module.startswith("axonlike")
        for alias in node.names
    ]


def late():
    """The names under `if TYPE_CHECKING:`, which are imported on first use."""
    (block,) = [node for node in TREE.body if isinstance(node, ast.If)]
    return imported(block.body)


def test_all_is_what_is_imported():
    assert sorted(axonlike.__all__) == sorted([*imported(TREE.body), *late()])


def test_types_and_first_use_agree():
    table = axonlike._ON_FIRST_USE
    names = [n for m, found in table.items() for n in (found or (m.split(".")[-1],))]
    assert sorted(names) == sorted(late())
    for module, found in table.items():
        for name in found:
            assert getattr(axonlike, name).__module__.startswith(f"axonlike.{module}")


def test_what_nobody_asked_for_is_not_imported():
    code = "import axonlike, sys; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    names = [name for name in made.stdout.split() if name.startswith("axonlike.")]
    found = {name.removeprefix("axonlike.") for name in names}
    assert "combinators.basic" in found
    assert not found & axonlike._ON_FIRST_USE.keys()
    assert len(found) < 45  # of about 80, which took twice as long


def test_the_folder_of_the_layers_does_not_hide_the_function():
    assert axonlike.dense.__module__ == "axonlike.layers.linear"
    assert inspect.isfunction(axonlike.layers)


def test_an_unknown_name_is_told_as_python_does():
    with pytest.raises(AttributeError, match="'axonlike' has no attribute 'dens'"):
        axonlike.dens  # noqa: B018


def test_nothing_is_defined_in_the_root():
    kinds = {type(node) for node in TREE.body}
    functions = [n.name for n in TREE.body if isinstance(n, ast.FunctionDef)]
    assert kinds == {ast.Expr, ast.ImportFrom, ast.Assign, ast.If, ast.FunctionDef}
    assert functions == ["__getattr__", "__dir__"]  # what imports on first use
    assert SOURCE.count("__all__ =") == 1


def test_every_group_of_all_is_sorted():
    text = re.search(r"__all__ = \[(.*?)\]", SOURCE, re.DOTALL).group(1)
    groups = re.split(r"#.*", text)[1:]
    listed = [re.findall(r'"(\w+)"', group) for group in groups]
    assert [name for group in listed for name in group] == axonlike.__all__
    assert listed == [sorted(group) for group in listed]
    assert all(listed)


@pytest.mark.parametrize("name", VALUES)
def test_what_is_a_layer_itself_says_what_it_is(name):
    assert isinstance(found(name), axonlike.Layer)
    assert found(name).config["function"].__doc__


@pytest.mark.parametrize("name", MODULES)
def test_a_public_module_lists_what_is_public_in_it(name):
    module = getattr(axonlike, name)
    assert list(module.__all__) == sorted(module.__all__)
    assert all(hasattr(module, member) for member in module.__all__)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_first_line_says_what_it_is(name):
    first, *rest = inspect.cleandoc(found(name).__doc__).splitlines()
    assert first.endswith((".", ";"))
    assert len(first) <= 88
    assert not rest or rest[0] == ""


@pytest.mark.parametrize("name", DOCUMENTED)
def test_there_is_an_example_that_can_be_pasted(name):
    examples = doctest.DocTestParser().get_examples(found(name).__doc__)
    code = "".join(example.source for example in examples)
    assert re.search(r"^import .*\baxonlike as al$", code, re.MULTILINE)
    assert USED.get(name, found(name).__name__) in code


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_argument_is_described(name):
    text = section(found(name).__doc__, "Args")
    missing = [
        argument
        for argument in arguments(found(name))
        if not re.search(rf"^\**{argument}:|\b{argument}\b.*:", text, re.MULTILINE)
    ]
    assert not missing


@pytest.mark.parametrize("name", [*NAMES, *MEMBERS])
def test_shapes_are_told_where_there_are_arrays(name):
    assert bool(section(found(name).__doc__, "Shapes")) != (name in WITHOUT_SHAPES)


def found(name):
    value = axonlike
    for step in name.split("."):
        value = getattr(value, step)
    return value


def section(text, title):
    """The indented lines below a title such as `Args:`; "" if there are none."""
    hit = re.search(rf"^{title}:\n((?:[ ]+.*\n?|\n)+)", inspect.cleandoc(text), re.M)
    return hit.group(1) if hit else ""


def arguments(value):
    """What a caller may pass; `name`, which every layer takes, is described once."""
    if inspect.isclass(value) and not hasattr(value, "_fields"):
        return []
    names = list(inspect.signature(value).parameters)
    return [name for name in names if name not in ("name", "self")]
