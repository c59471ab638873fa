from mvquant.evaluation.missing import MissingTask, describe_missing

DOWNLOAD = "hf download openai/gsm8k --repo-type dataset --local-dir DATA/gsm8k"
MISSING = [
    MissingTask("sums", "gsm8k: not here", DOWNLOAD),
    MissingTask("more_sums", "gsm8k: not here", DOWNLOAD),
    MissingTask("needles", "needles: no words", "pip install words"),
    MissingTask("pins", "pins: no words", "pip install words"),
]


def test_every_task_is_named_and_every_way_is_told_once():
    said = describe_missing(MISSING)
    first, *rest = said.splitlines()
    assert first == "no data for sums, more_sums, needles, pins:"
    assert rest.count("  - gsm8k: not here") == rest.count(f"  {DOWNLOAD}") == 1
    assert "For needles, pins: pip install words." in rest
    assert "--data-dir or MVQUANT_DATA" in said


def test_a_folder_is_asked_for_only_where_there_is_something_to_put_there():
    assert "DATA" not in describe_missing(MISSING[2:])
