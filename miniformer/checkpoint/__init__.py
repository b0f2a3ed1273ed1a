"""Saving and loading: files that are complete or absent, checked by digest, and that can run no code."""
