"""A judge's question in the user's own wording: a text file with places in braces."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from eval.errors import DataError
from eval.records import content_id


def template(path: str | None, places: Sequence[str]) -> str | None:
    """The file's text; None where no file is named.

    Raises:
        DataError: it cannot be read, or lacks one of ``places``.
    """
    if path is None:
        return None
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(path, f"the judge's prompt cannot be read: {error}") from error
    missing = [f"{{{place}}}" for place in places if f"{{{place}}}" not in text]
    if missing:
        raise DataError(path, f"the judge's prompt has no place {' and no place '.join(missing)}")
    return text


def identity(path: str | None, places: Sequence[str]) -> str:
    """Hash of the file's text; "" where no file is named."""
    text = template(path, places)
    return "" if text is None else content_id(text)


def filled(text: str, parts: Mapping[str, str]) -> str:
    """All places at once, so that a part which itself contains a place in braces is left as it is."""
    return re.sub(r"\{(" + "|".join(map(re.escape, parts)) + r")\}", lambda place: parts[place.group(1)], text)
