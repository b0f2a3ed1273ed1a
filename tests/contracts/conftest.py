import pytest


@pytest.fixture(autouse=True)
def _few_sources(request):
    """The kit needs some embedded records of a task, not all. (The shortest of a few all have one label in `multilabel`.)"""
    if "multilabel" not in request.node.name:
        request.getfixturevalue("few_sources")
