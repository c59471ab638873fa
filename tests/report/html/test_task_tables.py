from mvquant.report.html.material import Material
from mvquant.report.html.tables import contrast_table, text_table, variant_table
from mvquant.report.html.task_tables import figure_table, task_matrix
from tests.report.comparisons import contrast, partly, results, task_score, variant

MATERIAL = Material(results())


def test_the_matrix_marks_what_is_significant_and_leads_to_the_flips():
    matrix = task_matrix(MATERIAL)
    assert [column.name for column in matrix.columns] == ["model", "find", "choose", "know"]
    assert matrix.grouped == [("", 1), ("reading", 2), ("recall", 1)]
    _, find, choose, know = matrix.rows[1]
    assert (find.text, find.note, find.mark, find.flips) == ("62.0", "\N{MINUS SIGN}30 +2", "worse", ("w3", "set_find"))
    assert (choose.mark, choose.note) == ("", "\N{MINUS SIGN}1 +3")
    assert know.flips is None
    assert [cell.text for cell in matrix.footer] == ["chance", "0.0", "50.0", "25.0"]


def test_a_significant_gain_is_marked_as_better():
    gained = variant("w3", tasks={"set_find": task_score(1, 9, p_holm=0.01)})
    assert task_matrix(Material(results(gained))).rows[1][1].mark == "better"


def test_a_task_without_answers_is_a_dash():
    partial = variant("w3", tasks={"set_find": task_score()})
    assert task_matrix(Material(results(partial))).rows[1][2].text == "\N{EN DASH}"


def test_every_figure_has_a_row():
    rows = figure_table(MATERIAL).rows
    assert len(rows) == 9
    w3_find = [cell.text for cell in rows[3]]
    assert w3_find[:2] == ["w3", "find"]
    assert w3_find[5:] == ["30", "2", "28.0", "<0.001", "<0.001", "7.7"]


def test_the_noise_floor_is_in_the_sizes_but_not_in_the_matrix():
    material = Material(results(variant("again", role="again"), variant("w3")))
    assert len(variant_table(material).rows) == 3
    assert [row[0].text for row in task_matrix(material).rows] == ["full precision", "w3"]


def test_a_mean_over_some_tasks_says_of_how_many():
    rows = variant_table(Material(results(partly(variant("w3", 0.1), "set_find")))).rows
    parts = [[cell.note.partition("; ")[2] for cell in row[3:8]] for row in rows]
    assert parts == [[""] * 5, ["1 of 2 tasks", "1 of 2 tasks", "", "", "some tasks"]]


def test_running_text_is_left_out_where_none_was_read():
    table = text_table(MATERIAL)
    assert [row[0].text for row in table.rows] == ["full precision", "w3"]
    assert [cell.text for cell in table.rows[1]][1:] == ["0.0759", "0.5", "91.2", "1.051", "0.432", "63.5"]
    bare = results().model_copy(
        update={"variants": tuple(each.model_copy(update={"text": None}) for each in results().variants)}
    )
    assert text_table(Material(bare)) is None


def test_contrasts_are_marked_only_where_significant():
    assert contrast_table(results(variant("w3"))) is None
    pair = (contrast("w3", "a"), contrast("w3", "b", -0.3, 0.2))
    controls = [variant(name, role="control", control_of=("w3",)) for name in ("a", "b")]
    table = contrast_table(results(variant("w3"), *controls, contrasts=pair))
    assert [[row[place].mark for place in (4, 5)] for row in table.rows] == [["", ""], ["worse", "better"]]
    assert [column.name for column in table.columns][-2:] == ["p, reading", "p, recall"]
    assert [cell.text for cell in table.rows[1][-2:]] == ["<0.001", "<0.001"]
    assert [cell.text for cell in table.rows[0][-2:]] == ["1.000", "1.000"]
    assert table.rows[0][2].text == "1,536"
