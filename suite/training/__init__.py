"""Fine-tuning: the loop, what it goes through, and its state on disk."""
