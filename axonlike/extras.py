"""Libraries that not everybody needs: imported where used, told by name when missing."""

from __future__ import annotations

import importlib
from types import ModuleType

# What to install for what: the extras of pyproject.toml, by the library's import name.
EXTRAS = {
    "cairosvg": "diagram",
    "flatbuffers": "export",
    "grain": "data",
    "matplotlib": "plot",
    "onnx": "onnx",
    "orbax": "checkpoint",
    "rich": "progress",
    "tensorboardX": "tensorboard",
}


def optional(module: str, what: str) -> ModuleType:
    """A module of a library that is an optional extra.

    Args:
        module: its import name, say `"onnx.helper"`.
        what: who needs it, for the error, say `"export_onnx"`.

    Raises:
        ImportError: it is not installed; the message says which extra to install.
    """
    library = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != library:
            raise
        raise ImportError(
            f"{what}: {library} is not installed. "
            f"Install it with: pip install 'axonlike[{EXTRAS[library]}]'."
        ) from error
