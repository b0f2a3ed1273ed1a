import pytest


@pytest.fixture(autouse=True)
def _few_sources(few_sources):
    """The kit's tests need some embedded records of a task, and not all."""
