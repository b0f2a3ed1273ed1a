"""Compares the speed and memory of models: contestants built from specs, and processes that measure them in rounds."""
