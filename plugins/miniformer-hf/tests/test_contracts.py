from miniformer.contracts import contract_suite

test_contracts = contract_suite(distribution="miniformer-hf")
