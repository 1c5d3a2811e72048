"""Texts that stay as they are: `tests/golden/`, written anew by `pytest --record`."""

from pathlib import Path

HERE = Path(__file__).parent / "golden"


def check(file: str, text: str, *, record: bool) -> None:
    """Compares a text word for word with its file, or writes it there."""
    place = HERE / file
    text = text.rstrip("\n") + "\n"
    if record:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")
    assert place.read_text(encoding="utf-8") == text
