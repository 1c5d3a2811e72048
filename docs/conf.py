"""Settings of Sphinx. The reference is made from `axonlike.__all__` on every build.

Its pages are the groups there, under the comments that head them.
"""

import inspect
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import axonlike

HERE = Path(__file__).parent
project = "axonlike"
author = copyright = "The axonlike authors"
release = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"][
    "version"
]
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "axonlike"
napoleon_custom_sections = [("Shapes", "params_style")]
autodoc_typehints = "none"
default_role = "literal"


def documented(name: str) -> Any:
    """What has the docstring: of a layer without arguments, its function."""
    value = getattr(axonlike, name)
    return value.config["function"] if isinstance(value, axonlike.Layer) else value


def entry(name: str) -> str:
    value = getattr(axonlike, name)
    if inspect.ismodule(value):
        return f".. automodule:: {value.__name__}\n   :members:\n"
    if isinstance(value, axonlike.Layer):
        return f".. py:data:: axonlike.{name}\n\n   {documented(name).__doc__}\n"
    if inspect.isclass(value):
        return f".. autoclass:: axonlike.{name}\n   :members:\n"
    return f".. autofunction:: axonlike.{name}\n"


def row(name: str) -> str:
    """A name with a link, and the first line of what is said of it."""
    value = documented(name)
    role = "mod" if inspect.ismodule(value) else "obj"
    target = value.__name__ if inspect.ismodule(value) else f"axonlike.{name}"
    line = inspect.getdoc(value).splitlines()[0]
    return f"   * - :py:{role}:`{name} <{target}>`\n     - {line}"


def page(title: str, names: list[str]) -> str:
    """A table of a group's names, and below it each of them in full."""
    table = "\n".join(row(name) for name in names)
    parts = [f"{title}\n{'=' * len(title)}\n", TABLE, table, ""]
    return "\n".join([*parts, *map(entry, names)])


def groups() -> dict[str, list[str]]:
    """The names of `axonlike.__all__` by the comments in front of them."""
    source = Path(axonlike.__file__).read_text(encoding="utf-8")
    listed = source.split("__all__ = [")[1].split("]")[0]
    found: dict[str, list[str]] = {}
    for comment, name in re.findall(r"# (.+)|\"(\w+)\"", listed):
        if comment:
            found[comment[0].upper() + comment[1:]] = names = []
        else:
            names.append(name)
    return found


def setup(app: Any) -> None:
    """Leaves out what Python says of a named tuple's fields: Args says more."""
    app.connect("autodoc-skip-member", is_field)


def is_field(app: Any, what: str, name: str, member: Any, *_: Any) -> bool | None:
    found = (member.__doc__ or "").startswith("Alias for field number")
    return True if found else None


TABLE = ".. list-table::\n   :widths: 25 75\n"
REFERENCE = HERE / "reference"
shutil.rmtree(REFERENCE, ignore_errors=True)
REFERENCE.mkdir()
for number, (title, names) in enumerate(groups().items()):
    file = REFERENCE / f"{number:02}-{re.sub(r'[^a-z]+', '-', title.lower())}.rst"
    file.write_text(page(title, names), encoding="utf-8")
