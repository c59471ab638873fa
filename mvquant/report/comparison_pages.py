"""Everything that people read of a comparison, made again from what it found."""

from pathlib import Path

from mvquant.comparison.results import TABLE_FILE
from mvquant.comparison.store import file_name
from mvquant.evaluation.whole_file import write_whole
from mvquant.report.comparison_table import comparison_markdown
from mvquant.report.html import html_report
from mvquant.report.html.material import load_material
from mvquant.report.model_card import model_card_section

REPORT_FILE = "report.html"
CARDS_FOLDER = "cards"


def write_report(folder: Path) -> list[Path]:
    """Write the page, the table, and a section for the model card of each variant, into a comparison's folder.

    `report.html`, `table.md`, and `cards/NAME.md` for every variant and control that has answers.

    Raises:
        EvaluationError: the folder holds no comparison, or a disk that is full.
        MvquantError: a plan, analysis or statistics that cannot be read.
    """
    material = load_material(folder)
    results = material.results
    cards = {
        folder / CARDS_FOLDER / f"{file_name(each.name)}.md": model_card_section(results, each.name)
        for each in material.compared
        if each.tasks
    }
    texts = {folder / REPORT_FILE: html_report(material), folder / TABLE_FILE: comparison_markdown(results), **cards}
    for path, text in texts.items():
        write_whole(path, text)
    return list(texts)
