"""Where the data folders `recipes/` and `eval/` lie: beside the package in a checkout, inside it in a wheel."""

from pathlib import Path
from typing import Literal

PACKAGE = Path(__file__).parent


def resource_folder(name: Literal["recipes", "eval"]) -> Path:
    """Return the folder of shipped data called `name`.

    A checkout comes first: an editable install copies wheel data only once, so its copy goes stale.
    """
    checkout = PACKAGE.parent / name
    is_checkout = (PACKAGE.parent / "pyproject.toml").is_file() and checkout.is_dir()
    return checkout if is_checkout else PACKAGE / "_data" / name
