"""`mvquant compare` as a person meets it."""

import json

import pytest

from mvquant.comparison import load_comparison, load_flips
from tests.comparison.examples import save_model

TASKS = "reference_city_country,reference_city_yes_no,reference_passkey"
COMMON = ["--tasks", TASKS, "--limit", "3", "--batch-size", "3", "--text", "none", "--no-noise-floor"]


@pytest.fixture
def model(tmp_path):
    return save_model(tmp_path / "model", max_position_embeddings=600)


def test_two_schemes_and_what_is_left_behind(mvquant, model, tmp_path):
    arguments = ["compare", "--model", model, "--schemes", "w2a16-row, w4a16-row", *COMMON, "-o", tmp_path / "out"]
    code, out, err = mvquant(*arguments)
    assert code == 0, err
    assert max(map(len, out.splitlines()[1:])) <= 80
    assert "reading lost" in out
    assert (tmp_path / "out" / "table.md").read_text() == out
    results = load_comparison(tmp_path / "out")
    assert [variant.name for variant in results.variants] == ["full precision", "w2a16-row", "w4a16-row"]
    assert results.command.startswith("mvquant compare --model")
    again = mvquant(*arguments, "--json")
    assert again[0] == 0
    content = json.loads(again[1])
    assert content["variants"] == results.model_dump(mode="json")["variants"]


def test_a_recipe_file_with_flags_that_change_it(mvquant, model, tmp_path):
    recipe = tmp_path / "two.yaml"
    recipe.write_text(f"summary: two\nmodel: {model}\nvariants: [w2a16-row]\nlimit: 100\n")
    code, out, err = mvquant("compare", recipe, *COMMON, "-o", tmp_path / "out")
    assert code == 0, err
    assert out.startswith("# two\n")
    assert "Only the first 3 items of each task were asked." in out


def test_a_variant_that_fails_is_told_and_the_exit_code_is_1(mvquant, model, tmp_path):
    arguments = ["--model", model, "--schemes", "w4a16,w4a16-row", *COMMON, "-o", tmp_path / "out"]
    code, out, err = mvquant("compare", *arguments)
    assert code == 1, err
    assert "**w4a16 failed** in planning: no plan:" in out
    assert "| w4a16-row " in out


def test_ctrl_c_keeps_what_was_answered(mvquant, model, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("mvquant.comparison.answers.apply_plan", interrupt)
    code, _, err = mvquant("compare", "--model", model, "--schemes", "w4a16-row", *COMMON, "-o", tmp_path / "out")
    assert code == 130
    assert "the same command goes on" in " ".join(err.split())
    assert len(list((tmp_path / "out").rglob("reference_*.json"))) == 3


def test_prompts_in_the_chat_template_are_other_questions(mvquant, model, tmp_path):
    arguments = ["compare", "--model", model, "--schemes", "w4a16-row", *COMMON, "-o", tmp_path / "out"]
    code, _, err = mvquant(*arguments, "--chat-template")
    assert code == 1
    assert "has no chat template" in " ".join(err.split())
    config = model / "tokenizer_config.json"
    template = "[{{ messages[0]['content'] }}]{% if add_generation_prompt %}>{% endif %}"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": template}))
    for flags in ([], ["--chat-template"]):
        code, out, err = mvquant(*arguments, *flags)
        assert code == 0, err
        assert ("chat template of the tokenizer" in " ".join(out.split())) == bool(flags)
    assert "done again" in err
    assert "chat_template (None, now yes)" in " ".join(err.split())
    results = load_comparison(tmp_path / "out")
    assert results.settings.chat_template
    assert all(item.prompt.startswith("[") and item.prompt.endswith("]>") for item in load_flips(tmp_path / "out"))


def test_help_names_every_file(mvquant):
    _, out, _ = mvquant("compare", "--help")
    words = " ".join(out.replace("│", " ").split())
    for name in ("report.html", "table.md", "cards/NAME.md", "results.json", "flips.jsonl", "plans/NAME.json"):
        assert name in words
    for name in ("analysis.json", "stats.safetensors", "pieces/", "checkpoints/NAME"):
        assert name in words


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["compare"], 2, "give a comparison recipe, or --model with --schemes"),
        (["compare", "--model", "MODEL"], 2, "give a comparison recipe, or --model with --schemes"),
        (["compare", "x.yaml", "--model", "MODEL"], 2, "leave --model and --schemes"),
        (["compare", "x.yaml"], 2, "there is no such file"),
        (["compare", "referense"], 2, "did you mean 'reference'"),
        (["compare", "--model", "MODEL", "--schemes", "w4a15"], 2, "did you mean 'w4a16'"),
        (["compare", "--model", "nowhere", "--schemes", "w4a16"], 1, "no such model folder"),
        (["compare", "--model", "MODEL", "--schemes", "w4a16", "--tasks", "contextal"], 2, "did you mean 'contextual'"),
        (["compare", "--model", "MODEL", "--schemes", "w4a16", *COMMON, "--engine", "rey"], 2, "did you mean 'ray'"),
        (
            ["compare", "--model", "MODEL", "--schemes", "w4a16", *COMMON[:-3], "--text", "nowhere.txt"],
            1,
            "--text none",
        ),
        (["compare", "--model", "MODEL", "--schemes", "w4a16-row", *COMMON, "--device", "abacus"], 1, "abacus"),
        (["compare", "--model", "MODEL", "--schemes", "w4a16,mv-protect-gptq-w3a15"], 2, "mv-protect-gptq-w3a15"),
    ],
)
def test_bad_input_gets_a_clear_error(mvquant, model, tmp_path, arguments, code, message):
    found, _, err = mvquant(
        *(model if argument == "MODEL" else argument for argument in arguments), "-o", tmp_path / "o"
    )
    assert found == code, err
    assert message in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err


def test_a_folder_with_something_else_is_not_touched(mvquant, model, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    code, _, err = mvquant("compare", "--model", model, "--schemes", "w4a16-row", *COMMON, "-o", tmp_path / "thesis")
    assert code == 2
    assert "holds something else" in err
