"""Methods as data: defaults, bounds, and what is written of them."""

import pytest
from pydantic import TypeAdapter, ValidationError

from mvquant.method_settings import METHOD_SETTINGS, AutoRound, Awq, Gptq, Method, Rtn, SmoothQuant

METHOD = TypeAdapter(Method)


@pytest.mark.parametrize("name", METHOD_SETTINGS)
def test_a_name_alone_stands_for_the_defaults(name):
    made = METHOD.validate_python(name)
    assert made == METHOD_SETTINGS[name]() == METHOD.validate_python({"name": name})
    assert made.name == name


def test_llmcompressor_is_the_backend_of_what_it_can_do():
    backends = {name: settings().backend for name, settings in METHOD_SETTINGS.items()}
    assert backends == {
        "rtn": "mvquant",
        "gptq": "llmcompressor",
        "awq": "llmcompressor",
        "smoothquant": "llmcompressor",
        "autoround": "auto-round",
    }


@pytest.mark.parametrize(
    "settings",
    [
        Rtn(),
        Gptq(damping=0.05, activation_order=False),
        Gptq(backend="gptqmodel"),
        Awq(duo_scaling=False),
        SmoothQuant(alpha=0.9),
        AutoRound(iterations=7),
    ],
    ids=repr,
)
@pytest.mark.parametrize("defaults", [True, False], ids=["without defaults", "whole"])
def test_settings_that_are_written_read_back_equal_whatever_is_left_out(settings, defaults):
    written = settings.model_dump(mode="json", exclude_defaults=defaults)
    assert written["name"] == settings.name
    assert METHOD.validate_python(written) == settings
    assert METHOD.validate_json(settings.model_dump_json(exclude_defaults=defaults)) == settings


def test_all_settings_are_written_for_hashes_and_logs():
    assert Gptq().model_dump(exclude={"name", "backend"}).keys() >= {"damping", "block_size", "activation_order"}
    assert set(Gptq().model_dump()) == set(Gptq.model_fields)


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        (Gptq, {"damping": 0.0}),
        (Gptq, {"damping": 1.0}),
        (Gptq, {"block_size": 0}),
        (Gptq, {"backend": "autoawq"}),
        (Awq, {"grid_points": 0}),
        (SmoothQuant, {"alpha": -0.1}),
        (AutoRound, {"iterations": 0}),
        (Rtn, {"damping": 0.1}),
        (Rtn, {"name": "gptq"}),
    ],
)
def test_values_out_of_bounds_and_unknown_ones_are_refused(settings, wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        settings(**wrong)


def test_settings_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Gptq().damping = 0.5
