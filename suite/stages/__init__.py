"""One module a stage: each names its inputs, and computes or finds its output."""
