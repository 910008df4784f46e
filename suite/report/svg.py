"""matplotlib figures as inline SVG that follows the page's colours, light or dark."""

import html
import itertools
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Stand-ins that matplotlib draws with; the page's style sheet says what they are in light and dark.
PALETTE = tuple(f"#0000{i:02x}" for i in range(1, 8))
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
TEXT, GRID, MUTED = "#000100", "#000200", "#000300"
_VARIABLES = {TEXT: "currentColor", GRID: "var(--grid)", MUTED: "var(--muted)"} | {
    c: f"var(--c{i})" for i, c in enumerate(PALETTE)
}

WIDTH = 4.0  # inches: about a phone's screen, so that letters keep their size there

_STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GRID,
    "axes.labelcolor": TEXT,
    "axes.titlecolor": TEXT,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": TEXT,
    "text.parse_math": False,  # names come from data; a dollar sign in one is a dollar sign
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "svg.fonttype": "none",  # letters stay letters: small, selectable, in the page's font
}

_salt = itertools.count()


def color_of(index: int) -> str:
    return PALETTE[index % len(PALETTE)]


def dash_of(index: int) -> Any:
    """The palette's second round is dashed (and paler where there are no lines)."""
    return DASHES[index // len(PALETTE) % len(DASHES)]


def alpha_of(index: int) -> float:
    return (1.0, 0.6, 0.4, 0.25)[index // len(PALETTE) % len(DASHES)]


def swatch(index: int) -> Markup:
    """The legend's sample of a name's colour and dashes, in the weights of a line."""
    dash = dash_of(index)
    pattern = "" if dash == "-" else f' stroke-dasharray="{" ".join(str(3 * d) for d in dash[1])}"'
    color = _VARIABLES[color_of(index)]
    return Markup(
        f'<svg class="swatch" viewBox="0 0 28 8" aria-hidden="true"><path d="M0 4H28" style="stroke: {color}" '
        f'stroke-width="5" opacity="{alpha_of(index)}"{pattern}/></svg>'
    )


@contextmanager
def style() -> Iterator[None]:
    """Within it, figures have the report's style. Glyphs that the layout font lacks are the browser's matter."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*missing from.*")
        yield


def figure(height: float) -> Figure:
    drawn = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasSVG(drawn)
    return drawn


def inline(drawn: Figure, description: str) -> Markup:
    """The figure as an ``<svg>`` element: no prolog, no metadata, no addresses, colours as CSS variables."""
    out = StringIO()
    # A salt of its own: two figures on a page must not share the ids of their clip paths and markers.
    with matplotlib.rc_context({"svg.hashsalt": f"keelbench-{next(_salt)}"}):
        drawn.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    for needless in (r"<metadata>.*?</metadata>", r"<style .*?</style>", r"<!--.*?-->"):
        text = re.sub(rf"\s*{needless}", "", text, flags=re.DOTALL)
    text = re.sub(r'(<\w+) id="[\w.]+_\d+"', r"\1", text)  # patch_1 and the like, the same in every figure
    text = text.replace("xlink:href", "href")
    box = re.search(r'viewBox="([\d. ]+)"', text)
    assert box is not None
    opening = f'<svg viewBox="{box[1]}" role="img" aria-label="{html.escape(description)}">'
    text = opening + text[text.index(">") + 1 :]
    text = re.sub(r"(?<=(?:fill|roke): )#000[0-9a-f]{3}\b", lambda m: _VARIABLES.get(m[0], m[0]), text)
    return Markup(text)
