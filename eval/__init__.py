"""Prompts in, verdicts out: benchmarks, chat rendering, generation back ends, judges, rates.

The lowest of the three packages: it knows prompts, completions and verdicts, and nothing of training samples,
methods, Hydra, W&B or where files lie.
"""
