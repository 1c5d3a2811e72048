"""Everything that is run on this project: `nox -l` lists it, `nox -s lint` runs one.

None of it is needed to run a test: in an environment with the packages, `pytest` does.
"""

from pathlib import Path

import nox

nox.needs_version = ">=2025.5"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["lint", "tests", "docs"]
nox.options.error_on_missing_interpreters = False

PYPROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PYPROJECT)
PYTHON = PYTHONS[0]
PARALLEL = ("--numprocesses=auto", "--dist=worksteal")
BENCHMARKS = ("core", "layers", "loop", "end_to_end")


def install(session: nox.Session, *groups: str, extras: str = "") -> None:
    """Installs axonlike as it is in this tree, with dependency groups."""
    wanted = nox.project.dependency_groups(PYPROJECT, *groups)
    session.install("-e", f".{extras}", *wanted)


@nox.session(python=PYTHON)
def lint(session: nox.Session) -> None:
    """Format, lint and strict types."""
    install(session, "lint")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("pyright")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Every test and every documented example but the slow ones."""
    install(session, "test", extras="[examples]")
    session.run("pytest", *PARALLEL, *session.posargs)


@nox.session(python=PYTHON)
def docs(session: nox.Session) -> None:
    """The documentation, warnings and dangling references being errors."""
    install(session, "docs")
    session.run("sphinx-build", "-W", "-n", "-E", "docs", "docs/_build/html")


@nox.session(python=PYTHON, default=False)
def demo(session: nox.Session) -> None:
    """Train on the handwritten digits, and draw what came of it."""
    install(session, extras="[examples]")
    session.run("python", "examples/digits.py", *session.posargs)


@nox.session(python=PYTHON, default=False)
def bench(session: nox.Session) -> None:
    """Measure side by side with raw JAX and the peers: all, or one (layers --rounds 9)."""
    install(session, "bench")
    name, *options = session.posargs or ["all"]
    for each in BENCHMARKS if name == "all" else [name]:
        session.run("python", f"tests/benchmarks/{each}.py", *options)


@nox.session(python=PYTHON, default=False)
def rivals(session: nox.Session) -> None:
    """What peers do with tasks on activations; writes a page of the documentation."""
    install(session, "bench")
    session.install("penzai==0.2.5", "oryx==0.2.9", "tensorflow-probability==0.25.0")
    session.run("python", "tests/benchmarks/inside.py")


@nox.session(python=PYTHON, default=False)
def parity(session: nox.Session) -> None:
    """Every layer against PyTorch and Flax as they are installed, in full.

    With `--record` their answers are written anew, which CI compares with.
    """
    install(session, "test", "parity", "bench", extras="[examples]")
    tests = sorted(Path("tests").glob("test_*.py"))
    files = [file for file in tests if "parity" in file.read_text(encoding="utf-8")]
    session.run("pytest", "-m", "slow or not slow", *session.posargs, *map(str, files))


@nox.session(python=PYTHON, default=False)
def nightly(session: nox.Session) -> None:
    """All tests, with PyTorch and Flax to compare with, a thousand random models.

    With coverage, and as XLA compiles for users; then those of CI once more under JAX's
    leak checking, which takes three times as long.
    """
    install(session, "test", "parity", "bench", extras="[examples]")
    session.install("coverage")
    profile = ("--hypothesis-profile=nightly", "-m", "slow or not slow")
    usual = {"XLA_FLAGS": ""}  # tests/conftest.py says what the tests' own are
    session.run(
        "coverage", "run", "-m", "pytest", *profile, *session.posargs, env=usual
    )
    session.run("coverage", "report")
    session.run("pytest", *PARALLEL, env={"JAX_CHECK_TRACER_LEAKS": "1"})
