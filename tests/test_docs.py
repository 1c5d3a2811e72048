"""What is written about the package is true of it."""

import ast
import inspect
import re
from pathlib import Path

import jax
import pytest

import axonlike

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.rst")])
SOURCES = sorted(
    [*(ROOT / "axonlike").rglob("*.py"), *(ROOT / "examples").glob("*.py")]
)
NAME = re.compile(r"(?<![\w.])al\.([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)")
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("file", [*PAGES, *SOURCES], ids=lambda file: file.name)
def test_every_name_that_is_written_exists(file):
    text = file.read_text(encoding="utf-8")
    missing = [name for name in NAME.findall(text) if not is_public(name)]
    assert not missing


def test_a_name_that_does_not_exist_is_found():
    names = NAME.findall(
        "`al.dense`, al.Layer.init, al.dens and final.dense: al.spec.x"
    )
    assert [name for name in names if not is_public(name)] == ["dens", "spec.x"]


def test_the_readme_runs():
    with default_flags():
        namespace = run_blocks(README)
    assert isinstance(namespace["model"], axonlike.Layer)


def test_a_wrong_result_in_a_page_is_found():
    with pytest.raises(AssertionError, match="page says 3"):
        run_blocks("```python\nx = 1\nx + 1  # -> 3\n```")


def test_the_first_screen_gives_two_commands():
    commands = re.findall(r"^python3 .*", README, re.MULTILINE)
    assert commands == ["python3 run.py demo", "python3 run.py tests"]
    assert README.index(commands[1]) < README.index("\n## ")


def test_continuous_integration_runs_the_command_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert script.splitlines()[-1] == "python3 run.py tests"


def is_public(name: str) -> bool:
    """Whether `al.name` can be written: a name of `__all__`, or what that holds."""
    first, *rest = name.split(".")
    if first not in axonlike.__all__:
        return False
    value = getattr(axonlike, first)
    for step in rest:
        if not (inspect.ismodule(value) or inspect.isclass(value)):
            return False
        value = inspect.getattr_static(value, step, None)
        if value is None:
            return False
    return True


def run_blocks(text: str) -> dict:
    """Runs a page's blocks of Python in order; `x  # -> y` says how x prints."""
    namespace = {}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        ast.parse(block)
        exec(block, namespace)
        for code, said in re.findall(r"^(.+?)\s+# -> (.+)$", block, re.MULTILINE):
            found = str(eval(code, namespace))
            assert found == said, f"{code} is {found}, the page says {said}"
    return namespace


def default_flags():
    """JAX as a reader has it."""
    import contextlib

    stack = contextlib.ExitStack()
    stack.enter_context(jax.numpy_dtype_promotion("standard"))
    stack.enter_context(jax.numpy_rank_promotion("allow"))
    return stack


CALL = re.compile(r"``al\.(\w+)\(([^`]*)\)")


def test_every_option_that_is_written_exists():
    """``al.conv(mask=, padding=)`` names options of `al.conv`."""
    missing = []
    for page in PAGES:
        for name, inside in CALL.findall(page.read_text(encoding="utf-8")):
            known = parameters(name)
            for option in re.findall(r"(\w+)=(?=[,)]|$)", inside):
                missing += [f"{name}({option}=)"] if option not in known else []
    assert not missing


def parameters(name: str) -> set[str]:
    """The parameters of a public function."""
    found = getattr(axonlike, name)
    return set(inspect.signature(getattr(found, "__axonlike_body__", found)).parameters)


def test_no_layer_of_a_peer_is_put_off():
    page = (ROOT / "docs" / "coming-from.rst").read_text(encoding="utf-8")
    rows = [line.strip() for line in page.splitlines() if " | " in line]
    assert len(rows) > 150
    assert not [
        row for row in rows if re.search(r"not yet|todo|planned|later", row, re.I)
    ]
    assert not [row for row in rows if not row.split(" | ", 1)[1]]
