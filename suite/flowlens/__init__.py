"""FlowLens as a tool: the geometry of a model's residual stream over many prompts (arXiv 2603.13318)."""
