"""What is optional is told by name when it is missing."""

import sys
import tomllib
from pathlib import Path

import pytest

from axonlike.extras import EXTRAS, optional

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"


def test_every_extra_named_in_an_error_is_in_pyproject():
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    assert set(EXTRAS.values()) <= set(project["optional-dependencies"])


def test_a_missing_library_says_which_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delitem(sys.modules, "onnx.helper", raising=False)
    message = (
        "export_onnx: onnx is not installed. "
        "Install it with: pip install 'axonlike[onnx]'."
    )
    with pytest.raises(ImportError) as caught:
        optional("onnx.helper", "export_onnx")
    assert str(caught.value) == message


def test_a_library_that_is_there_is_imported():
    assert optional("rich.table", "summary").Table


def test_what_a_library_itself_misses_is_not_taken_for_the_library(
    tmp_path, monkeypatch
):
    (tmp_path / "halfway.py").write_text("import no_such_library", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        optional("halfway", "summary")
