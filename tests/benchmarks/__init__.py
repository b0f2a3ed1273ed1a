"""Miniformer beside its peers in one run, on the code that users run: `python -m tests.benchmarks` from a checkout.

`contestants.py` says who takes part, `contest.py` what is measured, `goals.py` what is wanted; `report.py` writes
docs/performance.md.
"""
