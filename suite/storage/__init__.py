"""What is kept on disk: stages found again, unfinished work, whole files or none, tables."""
