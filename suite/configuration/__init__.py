"""Names, overrides and experiments: what is checked of a configuration before anything is composed."""
