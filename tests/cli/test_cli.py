"""The command line as a person meets it: what it prints, what it writes, and its exit codes."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from mvquant.plan import load_plan
from tests.tiny_models import tiny_model, tiny_tokens


@pytest.fixture
def folder(tmp_path):
    tiny_model("llama", dtype=torch.bfloat16).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("summary: data-free\nweights: {scheme: w4a16-g32}\nprotect: {policy: slow-pairs, pairs: 0.25}\n")
    return path


def test_light_verbs_do_not_import_torch():
    script = "import sys, mvquant.cli; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_console_script_answers():
    run = subprocess.run([sys.executable, "-m", "mvquant", "--version"], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("mvquant 0.")


def test_recipes_can_be_listed_shown_and_checked(mvquant, tmp_path):
    code, out, _ = mvquant("recipes", "ls")
    assert code == 0
    assert "mv-protect-w3a16" in out
    assert max(map(len, out.splitlines())) <= 80
    code, out, _ = mvquant("recipes", "show", "w4a16")
    assert out.startswith("summary: ")
    (tmp_path / "copy.yaml").write_text(out)
    code, out, _ = mvquant("recipes", "validate", tmp_path / "copy.yaml", "w2a16")
    assert (code, out.count("valid")) == (0, 2)
    (tmp_path / "copy.yaml").write_text("summary: x\nweights: {scheme: w9}")
    code, _, err = mvquant("recipes", "validate", tmp_path / "copy.yaml")
    assert code == 2
    assert "unknown weight scheme 'w9'" in err


def test_schemes_are_listed_for_people_and_programs(mvquant):
    _, out, _ = mvquant("schemes")
    assert "mv-protect" in out
    _, out, _ = mvquant("schemes", "--json")
    assert "w2a16-row-asym" in json.loads(out)


def test_plan_prints_saves_and_touches_nothing(mvquant, folder, recipe, tmp_path):
    before = sorted(path.name for path in tmp_path.iterdir())
    code, out, _ = mvquant("plan", folder, "--recipe", recipe)
    assert code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert max(map(len, out.splitlines())) <= 80
    assert "self_attn.q_proj" in out
    assert "16 w8a16-g32" in out
    assert "bits per weight" in out
    code, _, _ = mvquant("plan", folder, "--recipe", recipe, "-o", tmp_path / "plan.json")
    saved = load_plan(tmp_path / "plan.json")
    code, out, _ = mvquant("plan", folder, "--recipe", recipe, "--json")
    assert json.loads(out) == saved.model_dump(mode="json", exclude_defaults=True)


def test_quantize_writes_a_checkpoint_that_transformers_loads(mvquant, folder, recipe, tmp_path):
    out = tmp_path / "out"
    code, printed, err = mvquant("quantize", folder, "--recipe", recipe, "-o", out)
    assert code == 0, err
    assert "bits per weight" in printed
    assert "wrote" in err
    assert AutoModelForCausalLM.from_pretrained(out)(tiny_tokens()).logits.isfinite().all()
    code, _, err = mvquant("quantize", folder, "--recipe", recipe, "-o", out)
    assert code == 2
    assert "--overwrite" in err
    assert mvquant("quantize", folder, "--recipe", recipe, "-o", out, "--overwrite")[0] == 0


def test_a_plan_edited_by_hand_is_obeyed(mvquant, folder, recipe, tmp_path):
    path = tmp_path / "plan.json"
    mvquant("plan", folder, "--recipe", recipe, "-o", path)
    plan = json.loads(path.read_text())
    name = "model.layers.1.self_attn.k_proj"
    module = next(module for module in plan["modules"] if module["name"] == name)
    module["protected"][0]["pairs"] = {"1": [0, 7]}
    path.write_text(json.dumps(plan))
    assert mvquant("quantize", folder, "--plan", path, "-o", tmp_path / "out")[0] == 0
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert tensors[f"{name}.protected_rows"].tolist() == [16, 23, 24, 31]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["plan", "MODEL", "--scheme", "w4a15"], 2, "did you mean 'w4a16'"),
        (["plan", "MODEL", "--recipe", "w4a15"], 2, "did you mean 'w4a16'"),
        (["plan", "MODEL"], 2, "give one of --scheme and --recipe"),
        (["plan", "MODEL", "--scheme", "w4a16", "--recipe", "w4a16"], 2, "give one of"),
        (["plan", "MODEL", "--scheme", "w4a16"], 1, "group_size 128 does not divide its 64 columns; use 64 or 32"),
        (["plan", "nowhere", "--scheme", "w4a16"], 1, "no such model folder"),
        (["quantize", "MODEL", "--plan", "none.json", "-o", "OUT"], 1, "cannot read the plan"),
        (["quantize", "MODEL", "--plan", "p.json", "--scheme", "w4a16", "-o", "OUT"], 2, "--plan decides"),
        (["eval", "MODEL", "--tasks", "contextal"], 2, "did you mean 'contextual'"),
        (["eval", "MODEL", "--tasks", "binding", "--device", "abacus"], 2, "device 'abacus' cannot be used"),
        (["eval", "MODEL", "--tasks", "binding", "--limit", "1"], 1, "tokenizer cannot be loaded"),
        (["analyze", "MODEL", "-c", "nowhere.txt", "-o", "OUT"], 1, "does not exist"),
        (["verdict", "none.json"], 1, "cannot read"),
        (["quantize", "MODEL"], 2, "--output"),
        (["frobnicate"], 2, "frobnicate"),
    ],
)
def test_bad_input_gets_a_clear_error_and_leaves_nothing(mvquant, folder, tmp_path, arguments, code, message):
    places = {"MODEL": folder, "OUT": tmp_path / "out"}
    found, _, err = mvquant(*(places.get(argument, argument) for argument in arguments))
    assert found == code, err
    assert message in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_model_without_rope_is_quantized_plainly_and_refused_by_mv_protect(mvquant, tmp_path):
    tiny_model("opt").save_pretrained(tmp_path / "opt")
    assert mvquant("quantize", tmp_path / "opt", "--scheme", "w4a16-g32", "-o", tmp_path / "out")[0] == 0
    recipe = tmp_path / "protect.yaml"
    recipe.write_text("summary: x\nweights: {scheme: w4a16-g32}\nprotect: {policy: slow-pairs, pairs: 0.1}\n")
    code, _, err = mvquant("plan", tmp_path / "opt", "--recipe", recipe)
    assert code == 1
    assert "opt has no RoPE" in err
    code, _, err = mvquant("plan", tmp_path / "opt", "--scheme", "mv-protect-w4a16-g32")
    assert code == 1
    assert "opt has no RoPE" in err


def test_a_quantized_model_is_not_quantized_again(mvquant, folder, recipe, tmp_path):
    mvquant("quantize", folder, "--recipe", recipe, "-o", tmp_path / "out")
    code, _, err = mvquant("plan", tmp_path / "out", "--recipe", recipe)
    assert code == 1
    assert "quantized already" in err


def test_an_interrupt_leaves_nothing_and_says_so(mvquant, folder, recipe, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("mvquant.checkpoint.write._quantize", interrupt)
    code, _, err = mvquant("quantize", folder, "--recipe", recipe, "-o", tmp_path / "out")
    assert code == 130
    assert "nothing was left behind" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml", "model"]
