"""Another judge on stored completions."""
