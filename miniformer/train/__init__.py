"""Training runs on PyTorch Lightning: data module, Lightning module, run folder, signals."""
