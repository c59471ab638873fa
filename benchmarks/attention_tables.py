"""Ratios and tables of `results/attention.json`."""

from typing import Any

import torch

BEFORE = ", before RoPE"
"""How the names of quantizers end that round K before RoPE."""

MIRRORED = ", mirrored"
"""How the names of tables end whose bits were chosen on the second half of the tokens and judged on the first."""

SINK_ROUNDED = ", mirrored, sink rounded"
"""The same, with the attention sink at the first token rounded like all others."""

UNIFORM_AIM, RULE_AIM = 0.5, 0.9
"""The most KL wanted, of that of the best uniform quantizer and of Block-GTQ's rule."""

_JUDGED = {"": "second half", MIRRORED: "first half", SINK_ROUNDED: "first half, sink rounded"}

_SHOWN = {
    "mvquant per channel, chunks of 32, 8-bit scales": "channel",
    f"mvquant per channel, chunks of 32, 8-bit scales{BEFORE}": "channel, before RoPE",
    f"mvquant static{BEFORE}": "static, before RoPE",
}
"""The formats whose aims are shown: the defaults of `key_plan` and of recipes, and the smallest."""


def aims(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compare each of our formats with the best uniform quantizer and with Block-GTQ's rule, budget by budget."""
    found: list[dict[str, Any]] = []
    for row in rows:
        if row["kind"] != "mvquant" or row["table"].partition(",")[0] not in ("bits", "bytes"):
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


def aims_markdown(results: dict[str, Any]) -> str:
    """Render what our formats reach of the aims: ratios of KL, bold where the aim is met.

    A line for each table and budget: against the best uniform quantizer, which is named, and against Block-GTQ's rule.
    """
    names = list(_SHOWN.values())
    head = ["equal", "judged on", "budget", "best uniform", *names, *(f"{name}, to the rule" for name in names)]
    lines = [f"| {' | '.join(head)} |", "| :-- | :-- | --: | :-- |" + " --: |" * 2 * len(names)]
    found = {(aim["table"], aim["budget"], aim["method"]): aim for aim in results["aims"]}
    for table, budget in dict.fromkeys((aim["table"], aim["budget"]) for aim in results["aims"]):
        shown = [found.get((table, budget, method)) for method in _SHOWN]
        best = next((aim["best_uniform"] for aim in shown if aim), None)
        kind = table.partition(",")[0]
        cells = [kind, _JUDGED[table.removeprefix(kind)], f"{budget:g}", best or "none fits"]
        cells += [_aim(aim and aim["to_best_uniform"], UNIFORM_AIM) for aim in shown]
        cells += [_aim(aim and aim["to_block_gtq"], RULE_AIM) for aim in shown]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _aim(ratio: dict[str, float] | None, aim: float) -> str:
    if ratio is None:
        return ""
    text = f"{ratio['ratio']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"
    return f"**{text}**" if ratio["ratio"] <= aim else text


def table_markdown(results: dict[str, Any], table: str) -> str:
    """Render one table of a result file: KL by method and budget."""
    rows = [row for row in results["rows"] if row["table"] == table]
    budgets = sorted({row["budget"] for row in rows})
    cells = {(row["method"], row["budget"]): f"{row['kl']:.4f}" for row in rows}
    lines = [f"| | {' | '.join(f'{budget:g} bits' for budget in budgets)} |", "| :-- |" + " --: |" * len(budgets)]
    methods = dict.fromkeys(row["method"] for row in rows)
    lines += [f"| {name} | {' | '.join(cells.get((name, budget), '') for budget in budgets)} |" for name in methods]
    return "\n".join(lines)
