from hypothesis import settings

from miniformer.contracts import contract_suite

test_contracts = contract_suite(distribution="miniformer-moe", examples=settings.default.max_examples)
