"""Fill the marked blocks of README.md from committed results: `python scripts/render_readme.py`.

A block stands between `<!-- begin NAME -->` and `<!-- end NAME -->`; a test fails while one is stale.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from mvquant.arch import FAMILIES
from mvquant.evaluation import EvalResult, load_results
from mvquant.report import markdown_table, verdict_chart
from mvquant.report.cache_chart import BitsPoint, CachePanel, cache_chart
from mvquant.report.verdict import Verdict, judge

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
CHART = ROOT / "docs" / "verdict.svg"
CACHE_CHART = ROOT / "docs" / "cache.svg"
SCALES = {"token": "per token", "channel": "per channel", "static": "in the plan"}
KEY_FORMATS = ("mvquant per channel, chunks of 32, 8-bit scales, before RoPE", "mvquant static, before RoPE")
JUDGED = {"bits": "33 to 65", "bits, mirrored": "0 to 32"}
READING = re.compile(r"(?P<what>q?k)(?P<bits>[\d.]+)-(?P<policy>.+)-(?P<scales>token|channel|static)")
POLICIES = {
    "none": "nobody",
    "random": "random pairs",
    "fast-pairs": "fast pairs",
    "slow-pairs": "slow pairs",
    "massive": "**massive** pairs",
    "sensitivity": "**sensitive** pairs",
}
COSTS = {
    "seconds": "time",
    "cpu_seconds": "CPU time",
    "peak_mib": "memory, largest process",
    "peak_anonymous_mib": "memory, all processes, files left out",
}
MAIN = re.compile(r"full precision|(mv-protect-)?w\da16")


def summary() -> str:
    """What plain rounding and mv-protect lose: the table by group, and what its columns mean."""
    blocks = markdown_table(_main_results()).strip().split("\n\n")
    return f"{blocks[0]}\n\n{blocks[-1]}"


def cache() -> str:
    """What rounding K, or Q and K, costs: bits with and without scales, passkeys, reading, recall."""
    results = load_results(RESULTS / "reading.jsonl")
    rows = [_cache_row(verdict) for verdict in judge(results)]
    return _table(
        ["rounded", "bits", "with scales", "who gets more", "passkey, %", "reading lost", "recall lost"], rows
    )


def _cache_row(verdict: Verdict) -> list[str]:
    passkey = _percent(verdict.result.tasks["reference_passkey"].accuracy.value)
    lost = [verdict.lost(group) for group in ("contextual", "parametric")]
    if verdict.comparison is None:
        return ["nothing", "16", "16.00", "", passkey, *lost]
    found = _reading(verdict.name)
    what = "Q and K" if found["what"] == "qk" else "K"
    counted = f"{verdict.result.subject.bits_per_cached_key:.2f}"
    scales = SCALES[found["scales"]]
    return [f"{what}, scales {scales}", found["bits"], counted, POLICIES[found["policy"]], passkey, *lost]


def _reading(name: str) -> re.Match[str]:
    found = READING.fullmatch(name)
    assert found, f"{name} is no variant of benchmarks/reading.py"
    return found


def draw_cache() -> None:
    """Reading and recall against bits: the picture beside the table."""
    full, *others = load_results(RESULTS / "reading.jsonl")

    def points(what: str, scales: str, policy: str, *, counted: bool) -> list[BitsPoint]:
        named = [(_reading(result.subject.model), result) for result in others]
        return [
            BitsPoint(result.subject.bits_per_cached_key if counted else float(found["bits"]), result)
            for found, result in named
            if (found["what"], found["scales"], found["policy"]) == (what, scales, policy)
        ]

    def panel(title: str, what: str, scales: str, axis: str, *, counted: bool) -> CachePanel:
        protected, alike = (points(what, scales, policy, counted=counted) for policy in ("sensitivity", "none"))
        return CachePanel(title, protected, alike, axis)

    label, everything = "average bits of a key, scales aside", "bits of a key, everything counted"
    panels = [
        panel("K, a scale per token", "k", "token", label, counted=False),
        panel("Q and K, a scale per token", "qk", "token", label, counted=False),
        panel("K, a scale per channel (default)", "k", "channel", everything, counted=True),
    ]
    cache_chart(panels, full, CACHE_CHART)


def kvcache() -> str:
    """Decoding with a packed cache, and what it holds, against bfloat16 and transformers' own."""
    report = _read(RESULTS / "kvcache.json")
    contexts = sorted({result["context"] for result in report["results"]})
    by_cache: dict[str, dict[int, dict[str, Any]]] = {}
    for result in report["results"]:
        by_cache.setdefault(result["cache"], {})[result["context"]] = result
    rows = [
        [
            name,
            *(f"{found[context]['speed_to_bfloat16']:.2f}" for context in contexts),
            f"{found[contexts[-1]]['bits_per_value']:.2f}",
            f"{found[contexts[-1]]['bytes_to_bfloat16']:.3f}",
        ]
        for name, found in by_cache.items()
    ]
    return (
        f"Decoding with one layer of Llama-3-8B's shape on {report['threads']} thread(s) of "
        f"{report['machine']['cpu']}, tokens/s relative to the bfloat16 cache by tokens cached, and what is held at "
        f"{contexts[-1]} (`OMP_NUM_THREADS={report['threads']} {report['command']}`; load average "
        f"{report['machine']['load_average']}, clock `{report['clock']}`):\n\n"
        + _table(["", *map(str, contexts), "bits per value", "bytes"], rows)
    )


def attention() -> str:
    """What the default key format and the smallest one reach on Llama-2-7B, at equal bits, in both directions."""
    found = {
        (aim["table"], aim["budget"], aim["method"]): aim
        for aim in _read(RESULTS / "attention.json")["aims"]
        if aim["table"] in JUDGED
    }
    rows: list[list[str]] = []
    for table, budget in dict.fromkeys((table, budget) for table, budget, _ in found):
        default, static = (found[table, budget, method] for method in KEY_FORMATS)
        ratios = [default["to_best_uniform"], default["to_block_gtq"], static["to_best_uniform"]]
        cells = [f"{each['ratio']:.2f} [{each['low']:.2f}, {each['high']:.2f}]" for each in ratios]
        rows.append([f"{budget:g}", JUDGED[table], *cells])
    header = ["bits", "tokens", "default / best uniform", "default / Block-GTQ's rule", "static / best uniform"]
    return _table(header, rows)


def methods() -> str:
    """Every method at 4 and 3 bits, plain and protected: KL to full precision, reading and recall lost."""
    results = _read(RESULTS / "compare_backends" / "results.json")
    rows: list[list[str]] = []
    for variant in results["variants"]:
        if variant["role"] != "variant":
            continue
        lost = [_estimate(variant["groups"][group]["drop"], 100) for group in ("contextual", "parametric")]
        rows.append([variant["name"], f"{variant['bits_per_weight']:.2f}", _kl(variant["text"]["kl"]), *lost])
    return (
        _table(["scheme", "bits/weight", "KL, nats", "reading lost", "recall lost"], rows)
        + f"\n\nMade by `{results['command']}`; `benchmarks/results/compare_backends/`."
    )


def _estimate(estimate: dict[str, float], scale: float) -> str:
    value, low, high = (scale * estimate[key] for key in ("value", "low", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _kl(estimate: dict[str, float]) -> str:
    return f"{estimate['value']:.4f} [{estimate['low']:.4f}, {estimate['high']:.4f}]"


def backends() -> str:
    """What the wrapped packages cost through mvquant, relative to calling them directly."""
    report = _read(RESULTS / "backends.json")
    calibration = report["calibration"]
    rows = [
        [pair["model"], pair["package"], *(f"{pair['ratios'][name]:.2f}" for name in COSTS)] for pair in report["pairs"]
    ]
    return (
        f"Quantizing through mvquant relative to calling the package directly, on {calibration['sequences']} sequences "
        f"of {calibration['length']} tokens, imports and writing included (`python -m benchmarks.backends`, "
        "`benchmarks/results/backends.json`); below 1, mvquant needs less:\n\n"
        + _table(["model", "package and method", *COSTS.values()], rows)
    )


def reference() -> str:
    """What the reference model reaches, as its training measured it."""
    record = _read(ROOT / "mvquant" / "reference" / "training.json")
    rows = [
        [task, _percent(figure["accuracy"]), _percent(figure["target"]), _percent(figure["bare_accuracy"])]
        for task, figure in record["figures"]["tasks"].items()
    ]
    training = record["training"]
    return (
        f"{record['parameters'] / 1e6:.1f} M parameters, trained from seed {record['seed']} on "
        f"{training['tokens'] / 1e6:.1f} M tokens in {training['seconds'] / 60:.0f} minutes on "
        f"{record['environment']['machine']}, shared with other work.\n\n"
        + _table(["task", "accuracy, %", "target, %", "without its context, %"], rows)
    )


def speed() -> str:
    """The mixed-row linear against bfloat16, and quantizing against llm-compressor."""
    linear, quantize = _read(RESULTS / "linear.json"), _read(RESULTS / "quantize.json")
    counts = sorted({result["rows"] for result in linear["results"]})
    by_variant: dict[str, dict[int, float]] = {}
    for result in linear["results"]:
        by_variant.setdefault(result["variant"], {})[result["rows"]] = result["speed_to_bfloat16"]
    rows = [[name, *(f"{speeds[count]:.2f}" for count in counts)] for name, speeds in by_variant.items()]
    ratios = quantize["ratios"]
    return (
        f"One linear of {linear['shape'][0]} x {linear['shape'][1]}, times faster than bfloat16 on {linear['threads']} "
        f"thread(s) of {linear['machine']['cpu']}, by rows of states "
        f"(`OMP_NUM_THREADS={linear['threads']} {linear['command']}`; load average "
        f"{linear['machine']['load_average']}, clock `{linear['clock']}`):\n\n"
        + _table(["", *map(str, counts)], rows)
        + f"\n\nQuantizing a random model of 1.1 B parameters without data, mvquant relative to llm-compressor "
        f"(`{quantize['command']}`):\n\n" + _ratio_table(ratios)
    )


def families() -> str:
    """The table of families."""
    protected = sorted(name for name, family in FAMILIES.items() if family.rope)
    plain = sorted(name for name, family in FAMILIES.items() if not family.rope)
    return (
        f"`config.model_type` of models that mv-protect knows: {', '.join(f'`{name}`' for name in protected)}. "
        f"Without RoPE, so for plain schemes only: {', '.join(f'`{name}`' for name in plain)}. Any other is refused "
        "with the list."
    )


BLOCKS: dict[str, Callable[[], str]] = {
    "summary": summary,
    "cache": cache,
    "reference": reference,
    "speed": speed,
    "methods": methods,
    "backends": backends,
    "kvcache": kvcache,
    "attention": attention,
    "families": families,
}


def rendered(text: str) -> str:
    """Return the README with every block filled anew."""
    for name, render in BLOCKS.items():
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        before, _, rest = text.partition(begin)
        text = before + begin + render().strip() + "\n" + end + rest.partition(end)[2]
    return text


def _main_results() -> list[EvalResult]:
    results = load_results(RESULTS / "verdict.jsonl")
    return [result for result in results if MAIN.fullmatch(result.subject.model)]


def _ratio_table(ratios: dict[str, Any]) -> str:
    columns = list(next(iter(ratios.values())))
    rows = [[name, *(f"{ratio[column]:.2f}" for column in columns)] for name, ratio in ratios.items()]
    return _table(["mvquant relative to", *(column.replace("_", " ") for column in columns)], rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    alignment = [":--", *("--:" for _ in header[1:])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, alignment, *rows))


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    README.write_text(rendered(README.read_text(encoding="utf-8")), encoding="utf-8")
    verdict_chart(_main_results(), CHART)
    draw_cache()
