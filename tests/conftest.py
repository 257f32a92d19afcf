"""What every test may ask for."""

import os
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"  # read when kernels are defined: before the imports below

import pytest
from jaxtyping import install_import_hook

import tests.shapes  # noqa: F401  (the hook finds it by name)

SRC = Path(__file__).parent.parent / "src" / "saccade"
ROOMS = sorted(path.stem for path in SRC.iterdir() if path.suffix in ("", ".py"))
# not the kernels: Triton reads their source, in which the hook's decorators have no meaning
install_import_hook(
    [f"saccade.{room}" for room in ROOMS if room != "kernels"], "tests.shapes.check"
)


def folder_of(variable: str) -> Path:
    """A folder that an environment variable names; CI must have it, elsewhere it is optional."""
    path = Path(os.environ.get(variable, ""))
    if os.environ.get(variable) and path.is_dir():
        return path
    missing = f"${variable} names no folder ({os.environ.get(variable)!r})"
    if os.environ.get("CI") == "true":
        pytest.fail(f"{missing}, and with CI=true that is a failure")
    pytest.skip(f"{missing}; set it to run this test")


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of golden files."""
    return folder_of("SACCADE_GOLDEN")
