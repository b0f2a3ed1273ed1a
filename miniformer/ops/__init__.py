"""What computes the parts of a model fast: attention kernels, linear layers, the loss of a large vocabulary."""
