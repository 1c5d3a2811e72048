"""Settings of Sphinx. The reference is made from `axonlike.__all__` on every build."""

import inspect
import re
import sys
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
html_theme_options = {"description": "layers as pure functions, for JAX"}
napoleon_custom_sections = [("Shapes", "params_style")]
autodoc_typehints = "none"
default_role = "literal"


def entry(name: str) -> str:
    value = getattr(axonlike, name)
    if inspect.ismodule(value):
        return f".. automodule:: {value.__name__}\n   :members:\n"
    if isinstance(value, axonlike.Layer):
        text = value.config["function"].__doc__
        return f".. py:data:: axonlike.{name}\n\n   {text}\n"
    if inspect.isclass(value):
        return f".. autoclass:: axonlike.{name}\n   :members:\n"
    return f".. autofunction:: axonlike.{name}\n"


def home(name: str) -> Any:
    """The module that a name is defined in."""
    value = getattr(axonlike, name)
    value = value.config["function"] if isinstance(value, axonlike.Layer) else value
    return value if inspect.ismodule(value) else sys.modules[value.__module__]


def reference() -> str:
    """A section for each module, under the title that its docstring begins with."""
    sections: dict[str, list[str]] = {}
    for name in axonlike.__all__:
        title = re.split(r"[:.]", home(name).__doc__)[0]
        sections.setdefault(title, []).append(entry(name))
    parts = ["Reference\n=========\n"]
    for title, entries in sections.items():
        parts += [f"{title}\n{'-' * len(title)}\n", *entries]
    return "\n".join(parts)


(HERE / "reference.rst").write_text(reference(), encoding="utf-8")
