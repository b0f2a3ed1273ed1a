"""Runs the checks: cases that hypothesis draws, harnesses that run a component, reports, and the pytest suite."""
