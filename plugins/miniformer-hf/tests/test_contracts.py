from hypothesis import settings

from miniformer.contracts import contract_suite

test_contracts = contract_suite(distribution="miniformer-hf", examples=settings.default.max_examples)
