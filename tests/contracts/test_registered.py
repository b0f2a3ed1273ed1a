"""All that is registered keeps its promises, with no exception by name: built-in components and those of installed plugins."""

from depth import is_thorough
from hypothesis import settings

from miniformer.contracts import contract_suite

test_contracts = contract_suite(examples=settings.default.max_examples)
for suite, _ in (parameter.values for parameter in test_contracts.pytestmark[0].args[1]):
    if getattr(suite.under_test.cls, "shorthand_for", None) and not is_thorough():
        suite.examples = 3  # what it stands for is checked on more
