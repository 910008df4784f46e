"""Filter quality before any training: known safety-degrading rows planted into benign data, and who finds them."""
