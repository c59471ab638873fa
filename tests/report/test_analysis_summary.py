"""The summary and the folder that `mvquant analyze` writes."""

from pathlib import Path

import pytest
import torch
from rich.console import Console

from mvquant.analysis import Analysis, analyze, load_analysis
from mvquant.arch import model_view
from mvquant.report.analysis_summary import format_analysis, verdict, write_analysis
from mvquant.stats import CalibrationStats, collect_stats, load_stats
from tests.tiny_models import tiny_model, tiny_tokens


def measured(family: str, ratio: float, **changes: object) -> tuple[Analysis, CalibrationStats]:
    model = tiny_model(family, **changes)
    view = model_view(model.config)
    if family == "llama":  # one slow pair of K in layer 1 stands out
        keys = view.attentions[1].k
        with torch.no_grad():
            model.get_submodule(keys.module).weight[list(keys.pair_rows(7, head=1))] *= 100.0
    stats = collect_stats(model, view, [tiny_tokens(2, 48)], source="random tokens")
    return analyze(view, stats, ratio, model=f"tiny {family}"), stats


def printed(analysis: Analysis) -> str:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(format_analysis(analysis))
    return capture.get()


def test_the_summary_reads_at_80_columns():
    text = printed(measured("llama", 2.5)[0])
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].strip() == "Massive values of tiny llama (llama)"
    assert "2 x 48 tokens of random tokens (seed 0" in " ".join(text.split())
    assert [line.split()[:4] for line in lines if line.strip().startswith(("0 ", "1 "))][:2] == [
        ["0", "0", "0", "0"],
        ["1", "0", "2", "0"],
    ]
    assert "7 (155)" in text
    assert "Massive values: none in Q, 2 in K of 1 layer, none in V. 100% of those" in " ".join(text.split())
    assert "sit in slow pairs. Slow pairs are 62% of all pairs; they hold" in " ".join(text.split())


def test_layers_without_any_are_folded():
    analysis, _ = measured("llama", 2.5, num_hidden_layers=9)
    rows = [line.split()[0] for line in printed(analysis).splitlines() if line.strip()[:1].isdigit()]
    assert rows[:3] == ["0", "1", "2-8"]


def test_the_verdict_says_when_there_is_nothing():
    analysis, _ = measured("llama", 100.0)
    assert verdict(analysis).startswith("No massive values in Q, K or V; the largest norm of Q and K is ")


def test_the_verdict_says_when_there_is_no_rope():
    assert verdict(measured("gpt2", 1.2)[0]).endswith("The model has no RoPE, so there are no pairs to protect.")
    assert max(map(len, printed(measured("gpt2", 1.2)[0]).splitlines())) <= 80


def test_the_folder_holds_everything(tmp_path: Path):
    analysis, stats = measured("llama", 2.5)
    write_analysis(analysis, stats, tmp_path)
    names = {"analysis.json", "stats.safetensors", "heatmaps.png", "counts.png", "wavelengths.png"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert load_analysis(tmp_path / "analysis.json") == analysis
    assert load_stats(tmp_path / "stats.safetensors").hash == stats.hash
    for path in tmp_path.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_models_without_rope_have_no_wavelengths_and_nothing_massive_is_fine(tmp_path: Path):
    analysis, stats = measured("opt", 100.0)
    write_analysis(analysis, stats, tmp_path)
    assert not (tmp_path / "wavelengths.png").exists()
    assert (tmp_path / "heatmaps.png").exists()


@pytest.mark.slow
def test_deep_models_have_a_page_per_layer(tmp_path: Path):
    analysis, stats = measured("llama", 2.5, num_hidden_layers=9)
    write_analysis(analysis, stats, tmp_path)
    assert len(list((tmp_path / "heatmaps").glob("layer-0?.png"))) == 9
