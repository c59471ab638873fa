"""Every line of the families' table, against what transformers' attention is really given."""

import copy

import pytest
import torch
from transformers import AttentionInterface, BloomConfig, Gemma3Config, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mvquant.arch import FAMILIES, Family, model_view
from mvquant.errors import UnsupportedModelError
from mvquant.heads import HeadRows, pair_dims
from tests.tiny_models import FAMILY_NAMES, ROPE_FAMILY_NAMES, tiny_config, tiny_model, tiny_tokens


class Capture:
    """Stands in for attention: keeps the queries, keys and values of each layer, after RoPE."""

    def __init__(self) -> None:
        self.states: list[dict[str, torch.Tensor]] = []

    def __call__(self, module, query, key, value, attention_mask, **kwargs):
        self.states.append({"q": query[0], "k": key[0], "v": value[0]})
        return query.transpose(1, 2), None


@pytest.fixture(params=FAMILY_NAMES)
def family(request):
    return request.param


def post_rope_states(model: PreTrainedModel) -> list[dict[str, torch.Tensor]]:
    """For each layer, q, k and v as [head, seq, head_dim]."""
    capture = Capture()
    AttentionInterface.register("mvquant-test", capture)
    model.set_attn_implementation("mvquant-test")
    with torch.no_grad():
        model(tiny_tokens(sequences=1, length=6))
    return capture.states


def states_without(model: PreTrainedModel, rows: HeadRows, indices: tuple[int, ...]) -> list[dict[str, torch.Tensor]]:
    """The states when these rows of a projection, weight and bias, are 0."""
    module = model.get_submodule(rows.module)
    saved = copy.deepcopy(module.state_dict())
    with torch.no_grad():
        weight = module.weight.T if isinstance(module, Conv1D) else module.weight
        weight[list(indices)] = 0
        if module.bias is not None:
            module.bias[list(indices)] = 0
    states = post_rope_states(model)
    module.load_state_dict(saved)
    return states


def vanished(states: torch.Tensor) -> set[tuple[int, int]]:
    """The (head, dim) of [head, seq, head_dim] that are 0 at all positions."""
    return {(head, dim) for head, dim in (states == 0).all(dim=1).nonzero().tolist()}


@pytest.mark.parametrize("role", ["q", "k", "v"])
def test_a_row_feeds_one_dim_of_one_head(family, role):
    model = tiny_model(family)
    attention = model_view(model.config).attentions[-1]
    rows: HeadRows = getattr(attention, role)
    for head in (0, rows.heads - 1):
        for dim in (0, rows.head_dim // 2 + 1, rows.head_dim - 1):
            states = states_without(model, rows, (rows.row(head, dim),))[attention.layer][role]
            # at position 0 RoPE does not turn, so that the dim stands alone
            assert vanished(states[:, :1]) == {(head, dim)}


@pytest.mark.parametrize("family", ROPE_FAMILY_NAMES)
@pytest.mark.parametrize("role", ["q", "k"])
def test_the_rows_of_a_pair_feed_what_rope_mixes(family, role):
    model = tiny_model(family)
    attention = model_view(model.config).attentions[-1]
    rows: HeadRows = getattr(attention, role)
    for head, pair in ((0, 0), (rows.heads - 1, 1), (rows.heads - 1, rows.pairs - 1)):
        first, second = pair_dims(pair, rows.rotary_dim, rows.layout)
        both = states_without(model, rows, rows.pair_rows(pair, head))[attention.layer][role]
        one = states_without(model, rows, (rows.row(head, second),))[attention.layer][role]

        assert vanished(both) == {(head, first), (head, second)}
        assert vanished(one) == set()


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "phi3_partial", "gpt_neox", "mixtral", "cohere"])
def test_other_rows_do_not_feel_a_zeroed_pair(family):
    """True of families without a norm on queries; with one, a row changes its head (or all of them)."""
    model = tiny_model(family)
    rows = model_view(model.config).attentions[0].q
    before = post_rope_states(model)[0]
    after = states_without(model, rows, rows.pair_rows(1, 1))[0]

    changed = {tuple(place) for place in (before["q"] != after["q"]).any(dim=1).nonzero().tolist()}
    assert changed == {(1, dim) for dim in pair_dims(1, rows.rotary_dim, rows.layout)}
    assert torch.equal(before["k"], after["k"])
    assert torch.equal(before["v"], after["v"])


def test_parameters_are_those_of_the_state_dict(family):
    model = tiny_model(family)
    view = model_view(model.config)
    state = model.state_dict()

    assert {**view.parameters, **{name: view.parameters[owner] for name, owner in view.tied.items()}} == {
        name: tuple(tensor.shape) for name, tensor in state.items()
    }
    assert not view.tied.keys() & view.parameters.keys()
    assert all(state[name].data_ptr() == state[owner].data_ptr() for name, owner in view.tied.items())


def test_weights_are_all_matrices_of_the_decoder_layers_but_routers(family):
    model = tiny_model(family)
    view = model_view(model.config)
    matrices = {
        name: tuple(parameter.shape)
        for name, parameter in model.named_parameters()
        if parameter.ndim >= 2
        and name.startswith(FAMILIES[view.family].layers)
        and not name.endswith("mlp.gate.weight")
    }

    stored = {w.parameter: w.shape[::-1] if w.transposed else w.shape for w in view.weights}
    assert stored == matrices
    assert {w.parameter for w in view.weights} <= view.parameters.keys()
    for weight in view.weights:
        assert weight.name.startswith(f"{FAMILIES[view.family].layers}.{weight.layer}.")
        assert weight.bias == (weight.kind == "linear" and f"{weight.name}.bias" in view.parameters)


def test_experts_are_stored_as_rows_of_output_features():
    view = model_view(tiny_config("qwen3_moe"))
    experts = {weight.name: weight.shape for weight in view.weights if weight.kind == "experts" and weight.layer == 0}

    assert experts == {
        "model.layers.0.mlp.experts.gate_up_proj": (4, 64, 64),
        "model.layers.0.mlp.experts.down_proj": (4, 64, 32),
    }


def test_a_dense_layer_among_experts_is_seen():
    view = model_view(tiny_config("qwen3_moe", mlp_only_layers=[0]))

    assert {weight.kind for weight in view.weights if weight.layer == 0} == {"linear"}
    assert {weight.kind for weight in view.weights if weight.layer == 1} == {"linear", "experts"}


def test_only_models_with_rope_have_it(family):
    view = model_view(tiny_config(family))

    assert view.has_rope == (family in ROPE_FAMILY_NAMES)
    assert all(attention.v.rotary_dim == 0 for attention in view.attentions)


def test_every_family_of_the_table_has_a_tiny_model():
    assert {tiny_config(name).model_type for name in FAMILY_NAMES} == set(FAMILIES)


def test_layers_of_gemma_3_know_their_type():
    view = model_view(tiny_config("gemma3_text"))

    assert [attention.layer_type for attention in view.attentions] == view.config.layer_types


def test_making_a_view_leaves_the_config_alone(family):
    config = tiny_config(family)
    before = copy.deepcopy(config.to_dict())

    model_view(config)

    assert config.to_dict() == before


def test_an_unknown_family_is_named_with_the_known_ones():
    with pytest.raises(UnsupportedModelError, match=r"'bloom' is not supported \(supported: cohere, .*qwen3_moe\)"):
        model_view(BloomConfig())


def test_a_multimodal_wrapper_is_told_from_its_language_model():
    with pytest.raises(UnsupportedModelError, match=r"'gemma3' is not supported .* wraps a 'gemma3_text' model"):
        model_view(Gemma3Config())


@pytest.mark.parametrize("family", ROPE_FAMILY_NAMES)
def test_an_odd_head_dim_is_refused(family):
    config = tiny_config(family)
    config.head_dim = 15

    with pytest.raises(UnsupportedModelError, match="head_dim 15 is odd"):
        model_view(config)


def test_an_odd_head_dim_without_rope_is_no_matter():
    view = model_view(tiny_config("opt", hidden_size=60, word_embed_proj_dim=60, num_attention_heads=4))

    assert view.attentions[0].q.head_dim == 15


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_partial_rotary_factor_that_the_model_ignores_is_refused(family):
    config = tiny_config(family)
    config.rope_parameters.get("full_attention", config.rope_parameters)["partial_rotary_factor"] = 0.5

    with pytest.raises(UnsupportedModelError, match="partial_rotary_factor set, which its code does not read"):
        model_view(config)


def test_heads_that_do_not_fill_the_projection_are_refused():
    config = tiny_config("gpt_neox")
    config.num_key_value_heads = 1  # as if a variant had grouped queries

    with pytest.raises(UnsupportedModelError, match="query_key_value has 192 rows where 128 were expected"):
        model_view(config)


def test_unforeseen_experts_are_refused(monkeypatch):
    monkeypatch.setitem(FAMILIES, "mixtral", Family())

    with pytest.raises(UnsupportedModelError, match=r"experts\.gate_up_proj of shape .* is not foreseen"):
        model_view(tiny_config("mixtral"))
