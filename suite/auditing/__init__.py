"""The judges' own examination: agreement between them, accuracy against people's labels."""
