"""What a model can still do: lm-eval's own tasks, prompts and metrics on a loaded model.

``tasks`` builds them (``local`` reads the published files where they lie on this machine), ``harness`` runs them.
"""
