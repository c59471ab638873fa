"""`mvquant quantize` with every method: the checkpoint holds what the method made, and the log says how."""

import json
from dataclasses import dataclass
from importlib.metadata import version

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from mvquant import quantizing
from mvquant.checkpoint.native import guard_name
from mvquant.layerwise import LOG_FILE
from mvquant.methods import apply_plan
from mvquant.plan import load_plan
from mvquant.quant import quantize_weight
from mvquant.quantizing import REFERENCE, calibration_tokens, model_location, open_model
from mvquant.recipe import Calibration
from tests.fake_results import FakeResults

SEQUENCES, LENGTH = 2, 64
PROTECT = "\nprotect: {policy: slow-pairs, pairs: 0.125}"


@dataclass(frozen=True)
class Case:
    """What a recipe asks for, and what is to come of it."""

    recipe: str
    method: str
    backend: str
    packages: tuple[str, ...]
    scales: bool
    learns: bool = True


CASES = {
    "awq": Case(
        "weights: {scheme: w4a16, method: {name: awq, grid_points: 3}}" + PROTECT,
        *("awq", "llmcompressor", ("llmcompressor", "compressed-tensors")),
        scales=True,
    ),
    "smoothquant-w8a8": Case(
        "weights: {scheme: w8a8, method: smoothquant}",
        *("smoothquant", "llmcompressor", ("llmcompressor", "compressed-tensors")),
        scales=True,
    ),
    "w8a8-static": Case("weights: {scheme: w8a8-static}", "rtn", "mvquant", (), scales=False, learns=False),
    "autoround": Case(
        "weights: {scheme: w4a16, method: {name: autoround, iterations: 2}}" + PROTECT,
        *("autoround", "auto-round", ("auto-round",)),
        scales=False,
    ),
    "autoawq": Case(
        "weights: {scheme: w4a16-asym, method: {name: awq, backend: autoawq}}" + PROTECT,
        *("awq", "autoawq", ("autoawq",)),
        scales=True,
    ),
}


@pytest.fixture
def made(monkeypatch):
    """What methods hand to the writer, copied before it writes."""
    kept, write = [], quantizing.write_checkpoint

    def write_and_keep(checkpoint, view, plan, out, *, results, **options):
        states = {module.name: results.state(module.name) for module in plan.modules}
        kept.append(FakeResults(states, {name: results.parameter(name) for name in results.changed}))
        write(checkpoint, view, plan, out, results=results, **options)

    monkeypatch.setattr(quantizing, "write_checkpoint", write_and_keep)
    return kept


@pytest.mark.parametrize("name", CASES)
def test_the_checkpoint_is_what_the_method_made_and_the_log_says_how(mvquant, made, name, tmp_path):
    case, out = CASES[name], tmp_path / "out"
    recipe = tmp_path / "recipe.yaml"
    calibration = f"calibration: {{source: reference, sequences: {SEQUENCES}, length: {LENGTH}}}"
    recipe.write_text(f"summary: {name}\n{case.recipe}\n{calibration}\n")
    code, printed, err = mvquant("quantize", "reference", "--recipe", recipe, "-o", out)
    assert code == 0, err
    plan, (results,) = load_plan(out / "plan.json"), made
    assert f"{plan.bits_per_weight:.3f} bits per weight" in printed
    require_written(case, plan, results, out)
    require_logged(case, plan, out)
    require_logits(plan, results, out)


def require_written(case, plan, results, out):
    """The files hold what was made, every tensor of it, in the bytes that the plan has foreseen."""
    written = load_file(out / "model.safetensors")
    assert written.pop(guard_name(plan)).numel() == 0
    own = load_file(f"{model_location(REFERENCE)}/model.safetensors")
    taken, learnt = 0, []
    for module in plan.modules:
        state = results.state(module.name)
        stored = {tensor for tensor in written if tensor.startswith(f"{module.name}.")}
        assert stored == {f"{module.name}.{part}" for part in state}
        assert all(torch.equal(written[f"{module.name}.{part}"], tensor) for part, tensor in state.items())
        taken += sum(tensor.nbytes for tensor in state.values())
        learnt.append(not torch.equal(state["weight_packed"], nearest(module, own[f"{module.name}.weight"])))
    assert any("protected_packed" in state for state in results.states.values()) == (PROTECT in case.recipe)
    assert taken * 8 / plan.weights == plan.bits_per_weight
    assert any(learnt) == case.learns
    assert bool(results.changed) == case.scales
    plain = [name for name in own if name in written]
    assert len(plain) == len(own) - len(plan.modules)
    assert all(torch.equal(written[name], results.parameters.get(name, own[name])) for name in plain)


def nearest(module, weight):
    """The packed integers of a weight that is rounded to nearest as it is."""
    scheme = module.scheme.model_copy(update={"activations": None})
    return quantize_weight(weight, scheme, module.protected_scheme, module.protected_rows)["weight_packed"]


def require_logged(case, plan, out):
    """The log says what was done by what, and of every module how well, unless the method leaves it alone."""
    header, *lines = [json.loads(line) for line in (out / LOG_FILE).read_text().splitlines()]
    assert (header["method"], header["backend"], header["plan"]) == (case.method, case.backend, plan.hash)
    assert header["calibration"]["hash"] == plan.calibration.hash
    expected = {package: version(package) for package in ("mvquant", "torch", "transformers", *case.packages)}
    assert header["versions"].items() >= expected.items()
    assert load_plan(out / "plan.json").made_with.items() >= {p: version(p) for p in case.packages}.items()
    records = {line["module"]: line for line in lines}
    assert len(records) == len(lines)
    for module in plan.modules:
        record = records[module.name]
        left_alone = record.get("note", "").startswith("rounded to nearest: AWQ scales no input of it")
        assert left_alone == ("error" not in record)
        assert not (left_alone and not module.name.endswith("o_proj"))
        assert left_alone or record["error"] > 0
        assert record.get("tokens", SEQUENCES * LENGTH) == SEQUENCES * LENGTH
        assert record["seconds"] >= 0


def require_logits(plan, results, out):
    """transformers loads the checkpoint, and it answers as the model does into which the results are put."""
    unseen = Calibration(source=REFERENCE, sequences=4, length=LENGTH, seed=5)
    _, batches = calibration_tokens(REFERENCE, open_model(REFERENCE), unseen)
    tokens = torch.cat(batches)
    plain = AutoModelForCausalLM.from_pretrained(model_location(REFERENCE)).eval()
    loaded = AutoModelForCausalLM.from_pretrained(out).eval()
    with torch.no_grad():
        before = plain(tokens).logits
        after = loaded(tokens).logits
        assert after.isfinite().all()
        assert not torch.equal(after, before)
        assert torch.equal(after, apply_plan(plain, plan, results)(tokens).logits)
    lost = (after.float() - before.float()).norm() / before.float().norm()
    assert lost < 0.2, lost  # 0.02 to 0.15; scales that miss their norm or weight cost more than all of it
