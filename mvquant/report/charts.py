"""What the pictures have in common: colours, page, files. No global matplotlib state is touched."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROLE_COLOURS = {"q": "#0072B2", "k": "#D55E00", "v": "#7F7F7F"}
"""Q, K and V, told apart by colour-blind eyes too (Okabe and Ito)."""


def page(width: float, height: float) -> Figure:
    """Return an empty white page of so many inches."""
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def write_figure(figure: Figure, path: Path) -> None:
    """Write a picture in the format of its suffix; the same picture gives the same bytes."""
    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    figure.savefig(path, dpi=150, metadata=metadata)


def tidy(axes: Axes) -> None:
    """Leave out what carries no information: the frame's top and right."""
    axes.spines[["top", "right"]].set_visible(False)


def shorten(name: str, most: int = 48) -> str:
    """Keep the end of a long model name or path.

    >>> shorten("/a/very/long/path/to/some/model", 12)
    '…/some/model'
    """
    return name if len(name) <= most else f"…{name[1 - most :]}"
