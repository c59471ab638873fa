import copy

import pytest
import torch

from mvquant.backends.llmcompressor import AwqBackend, SmoothQuantBackend
from mvquant.backends.llmcompressor.package import package, weight_arguments
from mvquant.backends.nearest import rounded
from mvquant.method_settings import Awq, SmoothQuant
from mvquant.quant import round_to_nearest
from mvquant.scheme import WeightScheme
from tests.backends.llmcompressor.layer_driver import calibration, eager_model, planned, quantized
from tests.backends.llmcompressor.package_run import config_groups, oneshot, saved_integers
from tests.backends.llmcompressor.scaling import FLOAT

AWQ, SMOOTHQUANT = Awq(grid_points=6), SmoothQuant()


def scaling_recipe(method):
    if method is AWQ:
        return package("modifiers.transform.awq").AWQModifier(n_grid=6, offload_device=None)
    return package("modifiers.transform.smoothquant").SmoothQuantModifier(smoothing_strength=0.5)


@pytest.mark.parametrize(
    ("backend", "method", "scheme"),
    [(AwqBackend(AWQ), AWQ, "w4a16-g32"), (SmoothQuantBackend(SMOOTHQUANT), SMOOTHQUANT, "w8a8")],
)
def test_bfloat16_weights_are_scaled_as_in_the_package_but_rounded_once(backend, method, scheme, tmp_path):
    """The package's quotients have the weights' dtype: it rounds them to bfloat16 first, and then to integers."""
    model, batches = eager_model("llama", torch.bfloat16), calibration()
    chosen = WeightScheme.model_validate(scheme)
    rounding = package("modifiers.quantization").QuantizationModifier(
        config_groups=config_groups(chosen), ignore=["lm_head"]
    )
    oneshot(model, tmp_path, batches, [scaling_recipe(method), rounding])
    plan = planned(model, scheme, method)
    floats = plan.model_copy(
        update={"modules": tuple(each.model_copy(update={"protected_scheme": FLOAT}) for each in plan.modules)}
    )
    results = quantized(copy.deepcopy(model), floats, backend, batches, seen_as_left=True)
    theirs = saved_integers(tmp_path, plan)
    lost_by_us, lost_by_them = 0.0, 0.0
    for name, module in results.modules.items():
        assert torch.equal(_by_the_package(module.kept, chosen), theirs[name]), name
        assert int((module.base.integers.int() - theirs[name].int()).abs().max()) <= 1
        lost_by_us += _lost(module.base.integers, module, chosen)
        lost_by_them += _lost(theirs[name], module, chosen)
    assert lost_by_us < lost_by_them


def _by_the_package(weight, scheme):
    from compressed_tensors.quantization import quantize

    arguments = weight_arguments(scheme)
    observer = package("observers").Observer.load_from_registry("memoryless_minmax", base_name="weight", args=arguments)
    found = observer(weight).get_qparams()
    return quantize(weight, found["scale"], found["zero_point"], arguments, dtype=torch.int8)


def _lost(integers, module, scheme):
    columns = module.kept.shape[1] // scheme.groups(module.kept.shape[1])
    values = integers.double() * module.base.grid.scale.double().repeat_interleave(columns, dim=1)
    return float((values - module.kept.double()).square().sum())


def test_protected_rows_in_either_form(generated_plan):
    plan, weight = generated_plan
    made = rounded(plan.model_copy(update={"protected_scheme": WeightScheme(bits=8, group_size=32)}), weight)
    assert torch.equal(made.kept.integers, round_to_nearest(weight, WeightScheme(bits=8, group_size=32)).integers)
    floats = rounded(plan.model_copy(update={"protected_scheme": FLOAT}), weight)
    assert torch.equal(floats.kept, weight)
    assert floats.kept.data_ptr() != weight.data_ptr()
    assert rounded(plan, weight).kept is None


@pytest.fixture
def generated_plan():
    model = eager_model("llama")
    plan = planned(model, "w4a16-g32", AWQ).modules[0]
    return plan, model.get_submodule(plan.name).weight.detach()
