"""`mvquant report`: make the page of a comparison again."""

from pathlib import Path
from typing import Annotated

import typer

from mvquant.cli.heavy import report as reports
from mvquant.cli.terminal import out


def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Folders that `mvquant compare` has written.")
    ],
) -> None:
    """Write report.html, table.md and the model-card sections of finished comparisons again, without any model.

    mvquant report comparison
    """
    for folder in folders:
        for path in reports.write_report(folder):
            out.print(str(path), highlight=False, markup=False, soft_wrap=True)
