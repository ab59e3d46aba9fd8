"""The image, laid out once per test process; and a test's environment as that of one of its containers."""

from collections.abc import Iterator

import pytest

from scripts.unprivileged import scratch_folder
from tests.deploy.image import Image, image_in


@pytest.fixture(scope="session")
def laid_out() -> Iterator[Image]:
    """The image's files, in a folder that stands for its root."""
    with scratch_folder() as folder:
        yield image_in(folder)


@pytest.fixture
def image(laid_out: Image, monkeypatch: pytest.MonkeyPatch) -> Image:
    """The image; what a test starts has its environment, and stops without delay."""
    for name, value in laid_out.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SHUTDOWN_DELAY_SECONDS", "0")
    return laid_out
