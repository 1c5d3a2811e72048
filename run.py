"""Runs the demo or the tests from nothing: needs only Python 3.11 or later, and pip.

python3 run.py demo     trains on the handwritten digits, draws what came of it
python3 run.py tests    runs every test (what follows goes to pytest: -k dense)

The first run installs what pyproject.toml asks for into a virtual environment in this
folder (.venv, one for each Python version); the next ones find it there. What was
interrupted is begun again, and a changed pyproject.toml is installed again.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
PYPROJECT = ROOT / "pyproject.toml"
ENVIRONMENT = ROOT / ".venv" / "py{}.{}".format(*sys.version_info[:2])
BIN = ENVIRONMENT / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
TASKS = {  # what to run: dependency groups, extra, command
    "demo": ((), "[examples]", ("examples/digits.py",)),
    "tests": (
        ("test",),
        "[examples]",
        ("-m", "pytest", "--numprocesses=auto", "--dist=worksteal"),
    ),
}


def main() -> int:
    """Installs what the task needs, unless it is there, and runs it."""
    task, *rest = sys.argv[1:] or ["help"]
    if task not in TASKS:
        print(__doc__)
        return 0 if task in ("help", "-h", "--help") else 2
    groups, extra, command = TASKS[task]
    wanted = [requirement for group in groups for requirement in requirements(group)]
    prepare(["-e", f"{ROOT}{extra}", *wanted])
    return subprocess.run([PYTHON, *command, *rest], cwd=ROOT, check=False).returncode


def prepare(wanted: list[str]) -> None:
    """Makes sure that the environment holds these requirements."""
    sign = fingerprint(wanted)
    done = ENVIRONMENT / "axonlike-installed"  # one line for each finished installation
    finished = done.read_text().split() if done.is_file() else []
    if sign in finished and PYTHON.exists():
        return
    print(f"Installing into {ENVIRONMENT.relative_to(ROOT)} (once) ...", flush=True)
    done.unlink(missing_ok=True)  # what is interrupted from here on is begun again
    # pip works on the environment from outside: quicker, and needs no ensurepip.
    own_pip = importlib.util.find_spec("pip") is None
    if not finished or not PYTHON.exists():
        venv.create(ENVIRONMENT, clear=True, with_pip=own_pip, symlinks=os.name != "nt")
        finished = []
    pip = [PYTHON, "-m", "pip"] if own_pip else outside_pip()
    install = ["install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *install, *wanted], cwd=ROOT, check=True)
    done.write_text("\n".join([*finished, sign]))


def outside_pip() -> list[str]:
    """This Python's pip, working on the environment."""
    return [sys.executable, "-m", "pip", "--python", str(PYTHON)]


def fingerprint(wanted: list[str]) -> str:
    """Tells one installation from another: what is wanted, by whom, and where."""
    facts = [PYPROJECT.read_text(encoding="utf-8"), sys.version, *wanted]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def requirements(group: str) -> list[str]:
    """A dependency group of pyproject.toml (pip learned --group only in 25.1)."""
    import tomllib

    with PYPROJECT.open("rb") as file:
        items = tomllib.load(file)["dependency-groups"][group]
    plain = [item for item in items if isinstance(item, str)]
    below = [item["include-group"] for item in items if isinstance(item, dict)]
    return plain + [requirement for name in below for requirement in requirements(name)]


if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036 (the reader may have any Python)
        sys.exit(f"run.py: needs Python 3.11 or later, got {sys.version.split()[0]}.")
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except subprocess.CalledProcessError as error:
        sys.exit(f"run.py: could not install; pip said why ({error.returncode}).")
