"""The tap on attention: it sees what the layers see, before and after RoPE, and leaves no trace."""

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mvquant.arch import AttentionView, ModelView, model_view
from mvquant.attention_states import AttentionStates, attention_states, unrotate
from mvquant.errors import CalibrationError
from tests.tiny_models import FAMILY_NAMES, tiny_model, tiny_tokens


def model_and_view(family: str, **changes: object) -> tuple[PreTrainedModel, ModelView]:
    model = tiny_model(family, **changes)
    return model, model_view(model.config)


def kept_states(model: PreTrainedModel, view: ModelView, tokens: list[Tensor]) -> dict[tuple[int, str], list[Tensor]]:
    """What `collect_stats` does not do: keep the states of everything."""
    kept: dict[tuple[int, str], list[Tensor]] = {}

    def keep(attention: AttentionView, states: AttentionStates) -> None:
        for role, tensor in states._asdict().items():
            kept.setdefault((attention.layer, role), []).append(tensor.clone())

    with torch.no_grad(), attention_states(model, view, keep):
        for batch in tokens:
            model(input_ids=batch, use_cache=False)
    return kept


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_looking_does_not_change_logits(family: str, implementation: str):
    model, view = model_and_view(family)
    model.set_attn_implementation(implementation)
    tokens = tiny_tokens()
    with torch.no_grad():
        before = model(input_ids=tokens).logits
        seen: list[int] = []
        with attention_states(model, view, lambda attention, _: seen.append(attention.layer)):
            during = model(input_ids=tokens).logits
        after = model(input_ids=tokens).logits
    assert torch.equal(before, during)
    assert torch.equal(before, after)
    assert seen == list(range(len(view.attentions)))


def projected(model: PreTrainedModel, attention: AttentionView, tokens: Tensor) -> dict[str, Tensor]:
    """What the projections (and q/k norms) give, `[batch, head, seq, head_dim]`, placed by the view's rows."""
    module = model.get_submodule(attention.module)
    outputs: dict[str, Tensor] = {}
    names = {rows.module.removeprefix(f"{attention.module}.") for rows in (attention.q, attention.k, attention.v)}
    norms = {role: name for role, name in (("q", "q_norm"), ("k", "k_norm")) if hasattr(module, name)}
    hooks = [
        module.get_submodule(name).register_forward_hook(
            lambda _m, _i, output, name=name: outputs.update({name: output})
        )
        for name in (*names, *norms.values())
    ]
    with torch.no_grad():
        model(input_ids=tokens)
    for hook in hooks:
        hook.remove()
    result: dict[str, Tensor] = {}
    for rows in (attention.q, attention.k, attention.v):
        output = outputs[norms.get(rows.role, rows.module.removeprefix(f"{attention.module}."))]
        if output.dim() == 4:  # Qwen3 and Gemma 3 norm the heads one by one
            heads = output if output.shape[1] == rows.heads else output.transpose(1, 2)
        else:
            index = [[rows.row(head, dim) for dim in range(rows.head_dim)] for head in range(rows.heads)]
            heads = output[..., torch.tensor(index)].transpose(1, 2)
        result[rows.role] = heads
    return result


SCALED = {
    "yarn": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 32},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "rope_theta": 10000.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        *(pytest.param(family, {}, id=family) for family in FAMILY_NAMES),
        *(pytest.param("llama", {"rope_parameters": rope}, id=f"llama-{name}") for name, rope in SCALED.items()),
    ],
)
def test_states_before_rope_are_what_the_projections_gave(family: str, changes: dict[str, object]):
    model, view = model_and_view(family, **changes)
    tokens = tiny_tokens(2, 40)
    kept = kept_states(model, view, [tokens])
    for attention in view.attentions:
        expected = projected(model, attention, tokens)
        # OPT scales Q before it hands it to attention; no other family does.
        scale = attention.q.head_dim**-0.5 if family == "opt" else 1.0
        torch.testing.assert_close(kept[attention.layer, "q_pre"][0], expected["q"] * scale, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(kept[attention.layer, "k_pre"][0], expected["k"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(kept[attention.layer, "v"][0], expected["v"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", ["half-split", "interleaved"])
@pytest.mark.parametrize("per_pair", [True, False])
def test_unrotate_undoes_a_turn(layout: str, *, per_pair: bool):
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(2, 3, 5, 10, generator=generator)
    angles = torch.rand(1, 5, 4, generator=generator) * 6
    first, second = (slice(0, 4), slice(4, 8)) if layout == "half-split" else (slice(0, 8, 2), slice(1, 8, 2))
    scaling = 1.3
    after = before.clone()
    cos, sin = angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)
    after[..., first] = scaling * (before[..., first] * cos - before[..., second] * sin)
    after[..., second] = scaling * (before[..., second] * cos + before[..., first] * sin)
    if not per_pair:
        wide = torch.empty(1, 5, 8)
        wide[..., first], wide[..., second] = angles, angles
        angles = wide
    given = (scaling * angles.cos(), scaling * angles.sin())
    torch.testing.assert_close(unrotate(after, *given, 8, layout), before)


def test_taps_nest():
    model, view = model_and_view("llama")
    outer: list[int] = []
    inner: list[int] = []
    with torch.no_grad(), attention_states(model, view, lambda attention, _: outer.append(attention.layer)):
        with attention_states(model, view, lambda attention, _: inner.append(attention.layer)):
            model(input_ids=tiny_tokens())
        model(input_ids=tiny_tokens())
    assert (outer, inner) == ([0, 1, 0, 1], [0, 1])
    assert ALL_ATTENTION_FUNCTIONS._local_mapping == {}


def test_a_view_of_another_model_is_refused():
    model, _ = model_and_view("llama")
    with (
        pytest.raises(CalibrationError, match=r"no module 'gpt_neox\.layers\.0\.attention'"),
        attention_states(model, model_and_view("gpt_neox")[1], lambda *_: None),
    ):
        pass
