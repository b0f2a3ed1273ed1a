"""All that is registered keeps its promises, with no exception by name: built-in components and those of installed plugins."""

from hypothesis import settings

from miniformer.contracts import contract_suite

test_contracts = contract_suite(examples=settings.default.max_examples)
