"""What a person should know of modules is said, with their names."""

from mvquant.backends.layer import ModuleRecord
from mvquant.layerwise import warn_of


def test_experts_that_saw_few_tokens_and_notes_are_named():
    records = [
        ModuleRecord(module="layers.0.up_proj", seconds=1.0, tokens=5000),
        ModuleRecord(module="layers.0.experts.gate_up_proj", seconds=1.0, tokens=7),
        ModuleRecord(module="layers.0.experts.down_proj", seconds=1.0, tokens=7, note="expert 3 saw 7 tokens"),
        ModuleRecord(module="layers.0.norm", seconds=1.0),
    ]
    said = warn_of(records)
    assert len(said) == 2
    assert said[0] == "layers.0.experts.gate_up_proj: saw 7 calibration tokens only, use more sequences"
    assert said[1] == "layers.0.experts.down_proj: expert 3 saw 7 tokens"
