"""Using a trained model: loading it from a run, and generating text."""
