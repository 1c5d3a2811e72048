"""How every test runs: on CPU, as strict as JAX can be about dtypes and ranks.

Doctests run as a user's session would: under JAX's default flags. XLA compiles in less
than half of its usual time, to slower code; with `XLA_FLAGS=` it makes its usual code.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from hypothesis import HealthCheck, settings

quick = [  # XLA reads them when it compiles for the first time, and so do subprocesses
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
]
if jax.__version_info__ < (0, 11):  # later ones do not know it, and would stop
    quick.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(quick))

slow_is_fine = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile(
    "ci",
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=slow_is_fine,
)
settings.register_profile(
    "nightly", max_examples=1000, deadline=None, suppress_health_check=slow_is_fine
)
settings.load_profile("ci")


def pytest_addoption(parser):
    parser.addoption(
        "--record", action="store_true", help="write what other libraries computed"
    )


def pytest_sessionfinish(session):
    if session.config.getoption("--record"):
        from parity import record

        record()


@pytest.fixture(autouse=True)
def strict(request):
    """Strict dtype promotion, and no broadcasting between ranks that nobody asked for."""
    if isinstance(request.node, pytest.DoctestItem):
        yield
        return
    with (
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        yield


@pytest.fixture
def leaks_unchecked():
    """JAX takes a trace that another thread is still working on for a leaked one."""
    before = jax.config.jax_check_tracer_leaks
    jax.config.update("jax_check_tracer_leaks", False)
    yield
    jax.config.update("jax_check_tracer_leaks", before)
