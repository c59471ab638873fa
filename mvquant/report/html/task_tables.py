"""Task by task: a matrix of accuracies with marks where a difference is significant, and every figure behind it."""

from mvquant.comparison import TaskScore, VariantResult
from mvquant.evaluation.compare import TaskDrop
from mvquant.evaluation.paired_tests import SIGNIFICANCE
from mvquant.report.comparison_table import p_value
from mvquant.report.html.marks import SIGNS
from mvquant.report.html.material import Material
from mvquant.report.html.tables import Cell, Column, Table
from mvquant.report.html.words import MINUS, NOTHING, limits, points


def task_matrix(material: Material) -> Table:
    """Accuracy of every model on every task, with the points lost beneath."""
    results = material.results
    columns = tuple(
        Column(
            material.task_labels[name],
            numeric=True,
            title=f"{name}: {info.items} items, chance {points(info.chance)} %, {info.answer_by}",
            group=SIGNS[info.knowledge],
        )
        for name, info in results.tasks.items()
    )
    shown = [each for each in results.variants if each.role != "again"]
    rows = tuple((Cell(each.name), *(_accuracy(each, name) for name in results.tasks)) for each in shown)
    chance = (Cell("chance"), *(Cell(points(info.chance)) for info in results.tasks.values()))
    kinds = tuple(each.role for each in shown)
    return Table("Accuracy by task, %", (Column("model"), *columns), rows, kinds, chance)


def significance(drop: TaskDrop | None) -> str:
    """Return `worse` or `better` where a task differs from full precision after Holm's adjustment, else nothing."""
    if drop is None or drop.p_holm >= SIGNIFICANCE:
        return ""
    return "worse" if drop.lost > drop.gained else "better"


def _accuracy(variant: VariantResult, task: str) -> Cell:
    score = variant.tasks.get(task)
    if score is None:
        return Cell(NOTHING)
    drop = score.versus_baseline
    flipped = drop is not None and drop.lost + drop.gained > 0
    return Cell(
        points(score.accuracy.value),
        score.accuracy.value,
        f"{MINUS}{drop.lost} +{drop.gained}" if drop is not None and flipped else "",
        significance(drop),
        (variant.name, task) if flipped else None,
    )


_FIGURES = (
    Column("model"),
    Column("task"),
    Column("items", numeric=True),
    Column("accuracy, %", numeric=True),
    Column("corrected, %", numeric=True, title="chance-corrected: 0 is guessing, 100 is perfect"),
    Column("broke", numeric=True, title="right in full precision only"),
    Column("fixed", numeric=True, title="right in the variant only"),
    Column("lost, points", numeric=True),
    Column("p", numeric=True, title="McNemar's exact test"),
    Column("p, Holm", numeric=True, title="adjusted for all tasks of the comparison"),
    Column(
        "detectable, before Holm's adjustment",
        numeric=True,
        title="smallest drop that a single test at 5 % of these items finds with 80 % probability, points",
    ),
)


def figure_table(material: Material) -> Table:
    """Every figure of every model and task, a row each."""
    pairs = [(each, task, each.tasks[task]) for each in material.results.variants for task in each.tasks]
    rows = tuple((Cell(each.name), Cell(material.task_labels[task]), *_figures(score)) for each, task, score in pairs)
    return Table("Every figure by model and task", _FIGURES, rows, tuple(each.role for each, _, _ in pairs))


def _figures(score: TaskScore) -> list[Cell]:
    cells = [
        Cell(str(score.n), score.n),
        Cell(points(score.accuracy.value), score.accuracy.value, limits(score.accuracy)),
        Cell(points(score.corrected.value), score.corrected.value, limits(score.corrected)),
    ]
    drop = score.versus_baseline
    if drop is None:
        return [*cells, *[Cell(NOTHING)] * 6]
    return [
        *cells,
        Cell(str(drop.lost), drop.lost),
        Cell(str(drop.gained), drop.gained),
        Cell(points(drop.drop.value), drop.drop.value, limits(drop.drop), significance(drop)),
        Cell(p_value(drop.p), drop.p),
        Cell(p_value(drop.p_holm), drop.p_holm),
        Cell(points(drop.minimum_detectable), drop.minimum_detectable),
    ]
