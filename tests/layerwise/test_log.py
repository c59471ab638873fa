"""What a person should know of modules is said, with their names."""

import json

from mvquant.backends.layer import ModuleRecord
from mvquant.layerwise import log_text, warn_of


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


def test_a_long_list_is_shortened_for_the_terminal_and_whole_in_the_log():
    experts = [f"{expert} (7)" for expert in range(60)]
    note = f"damping raised from 0.01 to 0.1; few tokens for experts {', '.join(experts)}; all saw all tokens"
    record = ModuleRecord(module="layers.0.experts", seconds=1.0, note=note)
    _, line = log_text({}, [record]).splitlines()
    assert json.loads(line)["note"] == note
    shown = f"few tokens for experts {', '.join(experts[:8])} and 52 more"
    assert warn_of([record]) == [f"layers.0.experts: damping raised from 0.01 to 0.1; {shown}; all saw all tokens"]


def test_a_list_that_is_short_enough_is_left_as_it_is():
    note = f"few tokens for experts {', '.join(map(str, range(8)))}"
    assert warn_of([ModuleRecord(module="experts", seconds=1.0, note=note)]) == [f"experts: {note}"]
