import pytest

from mvquant.cli import main
from mvquant.errors import EvaluationError
from mvquant.report import comparison_markdown, write_report
from mvquant.report.html import html_report
from mvquant.report.html.material import load_material
from tests.report.comparisons import flip, results, variant
from tests.report.html.examples import plan


def save(folder, found=None, flips=(), plans=()):
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text((found or results()).model_dump_json(), encoding="utf-8")
    (folder / "flips.jsonl").write_text("".join(f"{item.model_dump_json()}\n" for item in flips), encoding="utf-8")
    for name in plans:
        (folder / name).parent.mkdir(exist_ok=True)
        plan().save(folder / name)
    return folder


def test_everything_is_written_beside_the_results(tmp_path):
    folder = save(tmp_path / "out", flips=(flip(),))
    paths = write_report(folder)
    assert [str(path.relative_to(folder)) for path in paths] == [
        "report.html", "table.md", "cards/w3.md", "cards/random-w3.md"
    ]  # fmt: skip
    assert paths[0].read_text(encoding="utf-8") == html_report(load_material(folder))
    assert paths[1].read_text(encoding="utf-8") == comparison_markdown(results())


def test_writing_again_gives_the_same_bytes(tmp_path):
    folder = save(tmp_path / "out", flips=(flip(),))
    first = [path.read_bytes() for path in write_report(folder)]
    assert [path.read_bytes() for path in write_report(folder)] == first


def test_plans_are_found_by_the_name_in_the_results(tmp_path):
    found = results(variant("w3", plan_file="plans/w3.json"))
    material = load_material(save(tmp_path / "out", found, plans=("plans/w3.json",)))
    assert material.plans == {"w3": plan()}


def test_a_plan_outside_the_folder_is_refused(tmp_path):
    found = results(variant("w3", plan_file="../w3.json"))
    with pytest.raises(EvaluationError, match="outside the folder"):
        load_material(save(tmp_path / "out", found))


def test_variants_without_answers_get_no_card(tmp_path):
    found = results(variant("w2"), variant("w3"))
    failed = found.variants[1].model_copy(update={"tasks": {}})
    found = found.model_copy(update={"variants": (found.variants[0], failed, found.variants[2])})
    assert [path.name for path in write_report(save(tmp_path / "out", found))][2:] == ["w3.md"]


def test_the_command_rebuilds_several_folders(tmp_path, monkeypatch, capsys):
    folders = [save(tmp_path / name) for name in ("one", "two")]
    monkeypatch.setattr("sys.argv", ["mvquant", "report", *map(str, folders)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    assert all((folder / "report.html").is_file() for folder in folders)
    assert capsys.readouterr().out.split()[0] == str(folders[0] / "report.html")


def test_a_folder_without_results_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["mvquant", "report", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    assert "holds no comparison" in " ".join(capsys.readouterr().err.split())
