"""Single faults in our own source, each of which some test has to notice: `python -m tests.mutations`."""
