"""`mvquant verdict`: compare saved results with those of the unquantized model."""

from pathlib import Path
from typing import Annotated

import typer

from mvquant.cli.heavy import evaluation, report
from mvquant.cli.terminal import out


def verdict(
    files: Annotated[list[Path], typer.Argument(help="Result files; the first result is the baseline.")],
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown tables.")] = False,
    chart: Annotated[Path | None, typer.Option(help="Draw the drops as a picture.")] = None,
) -> None:
    """Say what each quantized model lost of reading and of recall, against the first result."""
    loaded = [result for file in files for result in evaluation.load_results(file)]
    if chart:
        report.verdict_chart(loaded, chart)
    if markdown:
        out.file.write(report.markdown_table(loaded))
    else:
        out.print(report.verdict_table(loaded))
