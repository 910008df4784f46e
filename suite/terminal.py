"""Text of strangers (names, labels, errors, log lines) on a terminal: shown, and never a command to the terminal."""

import unicodedata


def plain(text: object) -> str:
    """``text`` for rich: its markup escaped, and what would move the cursor, clear the screen, turn the direction of
    writing or be no character at all (Unicode's categories C) as ``�``, but line ends and tabs."""
    from rich.markup import escape

    kept = (c if c in "\n\t" or not unicodedata.category(c).startswith("C") else "�" for c in str(text))
    return escape("".join(kept))
