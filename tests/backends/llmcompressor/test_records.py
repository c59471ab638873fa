import pytest
import torch

from mvquant.backends.llmcompressor.linears import taken_apart
from mvquant.backends.llmcompressor.records import FEW_TOKENS, record
from mvquant.method_settings import Gptq
from tests.backends.llmcompressor.layer_driver import calibrated_layer, calibration, eager_model, planned

EXPERTS = "model.layers.0.mlp.experts"


@pytest.mark.parametrize(
    ("routed", "note"),
    [
        ([FEW_TOKENS, 999, 999, 999], None),
        ([999, FEW_TOKENS - 1, 999, 0], "the router sent fewer than 128 tokens to experts 1 (127), 3 (0); "),
        ([0] * 12, f"experts {', '.join(f'{expert} (0)' for expert in range(12))}; "),
    ],
)
def test_experts_with_few_tokens_are_named_with_how_many(routed, note):
    model = eager_model("qwen3_moe")
    layer = calibrated_layer(model, planned(model, "w4a16-g32", Gptq()), 0, calibration(1))
    plan = next(each for each in layer.modules if each.kind == "experts")
    with taken_apart(layer) as linears:
        linears.routed = {EXPERTS: torch.tensor(routed)}
        made = record(plan, linears, 1.5, notes=("first",))
    assert made.tokens == min(routed)
    assert made.note is not None
    assert made.note.startswith("first")
    assert (note in made.note) if note else made.note == "first"
