"""What every test shares: shapes are checked, property tests are deterministic."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

# Workers that test side by side share the cores: with a thread for every core in each, they wait
# for one another, and a test of many small steps takes ten times as long and more.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    threads = max(1, (os.cpu_count() or 1) // int(workers))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))

# Before any test module imports hepar: every annotated shape in the package is checked.
install_import_hook("hepar", "typecheck.checked")

settings.register_profile(
    "quick",
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("full", parent=settings.get_profile("quick"), max_examples=300)
settings.load_profile("quick")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real CT for development; tests that need it are skipped where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real CT is not at {folder}")
    return folder
