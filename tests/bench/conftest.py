"""Tasks learn from a few packages of the standard library."""

import pytest


@pytest.fixture(autouse=True)
def _few_sources(few_sources):
    pass
