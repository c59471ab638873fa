"""Ratios and tables of `results/attention.json`."""

from typing import Any

import torch

BEFORE = ", before RoPE"
"""How the names of quantizers end that round K before RoPE."""


def aims(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compare each of our formats with the best uniform quantizer and with Block-GTQ's rule, budget by budget."""
    found: list[dict[str, Any]] = []
    for row in rows:
        if row["kind"] != "mvquant" or row["table"] not in ("bits", "bytes"):
            continue
        same = [each for each in rows if (each["table"], each["budget"]) == (row["table"], row["budget"])]
        uniform = sorted((each for each in same if each["kind"] == "uniform"), key=lambda each: each["kl"])
        best = uniform[0] if uniform else None
        after_rope = next((each for each in uniform if not each["method"].endswith(BEFORE)), None)
        rule = next((each for each in same if each["method"] == "Block-GTQ's rule"), None)
        found.append(
            {
                **{key: row[key] for key in ("table", "method", "budget")},
                "to_best_uniform": _ratio(row, best),
                "best_uniform": best and best["method"],
                "to_best_uniform_after_rope": _ratio(row, after_rope),
                "to_block_gtq": _ratio(row, rule),
            }
        )
    return found


def _ratio(ours_row: dict[str, Any], theirs: dict[str, Any] | None) -> dict[str, float] | None:
    """Ratio of mean KL, with a 95 % interval by resampling heads."""
    if theirs is None:
        return None
    pair = torch.tensor([ours_row["kl_by_head"], theirs["kl_by_head"]], dtype=torch.float64)
    drawn = torch.randint(pair.shape[1], (2000, pair.shape[1]), generator=torch.Generator().manual_seed(0))
    means = pair[:, drawn].mean(-1)
    low, high = (means[0] / means[1]).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return {"ratio": round(ours_row["kl"] / theirs["kl"], 3), "low": round(low, 3), "high": round(high, 3)}


def table_markdown(results: dict[str, Any], table: str) -> str:
    """Render one table of a result file: KL by method and budget."""
    rows = [row for row in results["rows"] if row["table"] == table]
    budgets = sorted({row["budget"] for row in rows})
    cells = {(row["method"], row["budget"]): f"{row['kl']:.4f}" for row in rows}
    lines = [f"| | {' | '.join(f'{budget:g} bits' for budget in budgets)} |", "| :-- |" + " --: |" * len(budgets)]
    methods = dict.fromkeys(row["method"] for row in rows)
    lines += [f"| {name} | {' | '.join(cells.get((name, budget), '') for budget in budgets)} |" for name in methods]
    return "\n".join(lines)
