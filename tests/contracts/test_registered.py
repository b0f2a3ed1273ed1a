"""Everything that is registered keeps its promises, with no exception by name: the built-in components and installed plugins."""

from miniformer.contracts import contract_suite

test_contracts = contract_suite()
