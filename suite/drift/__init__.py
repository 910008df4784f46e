"""Representation drift: where fine-tuning moves the hidden states of harmful prompts (Li et al. 2025, Figure 17)."""
