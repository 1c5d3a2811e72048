"""What may import what."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "axonlike"

# A module imports from the lines above its own; in a folder also from its neighbours, a
# folder from what is in it, as long as there is no cycle. `axonlike/__init__.py` stands
# below the last line.
LINES = (
    ("errors", "extras", "types", "values"),
    ("initializers", "paths", "signature", "spec", "taps"),
    ("blame", "names"),
    ("spots",),
    ("selector",),
    ("frame", "text"),
    ("initialize",),
    ("leaf",),
    ("evaluation",),
    ("layer",),
    ("tree",),
    ("combinators",),
    ("layers",),
    ("sites",),
    ("deferred",),
    ("edits",),
    ("reading",),
    ("changes",),
    ("compiled", "params"),
    ("gradients", "stretch"),
    ("transfer",),
    ("surgery",),
    ("adapters", "policy"),
    ("inspect", "io"),
    ("io.onnx",),
    ("training",),
    ("models",),
    ("testing",),
)
RANKS = {place: rank for rank, line in enumerate(LINES) for place in line}


def test_every_module_has_a_rank():
    assert not [name for name in modules() if rank(name) is None]


def test_every_rank_is_of_a_module():
    names = modules()
    assert not [place for place in RANKS if not any(covers(place, n) for n in names)]


def test_imports_point_down():
    wrong = [
        f"{name} (rank {rank(name)}) imports {target} (rank {rank(target)})"
        for name, targets in modules().items()
        for target in targets
        if not may_import(name, target)
    ]
    assert not wrong


def test_no_cycle():
    order = list(TopologicalSorter(modules()).static_order())
    assert set(order) == set(modules())


def test_the_root_is_not_imported():
    root = [name for name, targets in modules().items() if "" in targets]
    assert not root


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import axonlike", {""}),
        ("import axonlike as al", {""}),
        ("from axonlike import spec", {"spec"}),
        ("from axonlike import dense", {""}),
        ("import axonlike.layers.linear", {"layers.linear"}),
        ("from axonlike.layers.linear import dense", {"layers.linear"}),
        ("from axonlike.layers import linear", {"layers.linear"}),
        ("def f():\n    from axonlike.paths import join", {"paths"}),
        ("from . import spec", {""}),
        ("import jax", set()),
    ],
)
def test_imports_are_read_from_every_spelling(source, found):
    known = {"spec", "paths", "layers", "layers.linear"}
    assert imports(ast.parse(source), known) == found


def modules() -> dict[str, set[str]]:
    """Every module, by its path from the package, with the modules that it imports."""
    files = {name_of(file): file for file in PACKAGE.rglob("*.py")}
    files.pop("")
    return {
        name: imports(ast.parse(file.read_text(encoding="utf-8")), files.keys())
        for name, file in files.items()
    }


def name_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, known) -> set[str]:
    """The package's modules that a module imports; "" is the package itself."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            found.add(("axonlike",))  # relative imports are not used
        elif isinstance(node, ast.ImportFrom):
            base = node.module.split(".")
            found |= {(*base, alias.name) for alias in node.names}
    inside = {".".join(parts[1:]) for parts in found if parts[0] == "axonlike"}
    return {nearest_module(name, known) for name in inside}


def nearest_module(name: str, known) -> str:
    """The module that a dotted name is in, or is."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name


def covers(place: str, name: str) -> bool:
    return name == place or name.startswith(f"{place}.")


def rank(name: str) -> int | None:
    """The line of a module: of the innermost folder that has one of its own."""
    return RANKS.get(max((p for p in RANKS if covers(p, name)), key=len, default=""))


def may_import(name: str, target: str) -> bool:
    folder = name.rpartition(".")[0]
    if covers(name, target) or (folder and covers(folder, target)):
        return True
    low, high = rank(target), rank(name)
    return low is not None and high is not None and low < high
