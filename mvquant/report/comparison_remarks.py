"""What a reader of a comparison has to know before trusting its figures."""

from collections.abc import Iterator, Sequence

from mvquant.comparison import ComparisonResults
from mvquant.comparison.results import different_texts
from mvquant.report.partial import partial_groups
from mvquant.report.verdict import NOTHING, percent


def remarks(results: ComparisonResults) -> Iterator[str]:
    """What failed, and what a reader has to know before trusting the figures."""
    for variant in results.variants:
        for failure in variant.failures:
            yield f"**{variant.name} failed** in {failure.part}: {failure.message.splitlines()[0]}"
    if results.settings.limit is not None:
        yield f"Only the first {results.settings.limit} items of each task were asked."
    if results.settings.chat_template:
        yield "Prompts were put into the chat template of the tokenizer."
    if results.without_data:
        yield f"Not asked, because their data is not there: {', '.join(results.without_data)}."
    if groups := different_texts({variant.name: variant.calibration_hash for variant in results.variants}):
        yield f"Calibrated on different text, so that not only their methods differ: {groups}."
    for variant, word, tasks in partial_groups(results):
        yield f"{variant.name}: {word} is the mean of {tasks} only; it is not comparable with that of the others."
    yield from _noise(results)
    yield from _about_answers(results)
    smallest = [
        score.versus_baseline.minimum_detectable
        for variant in results.variants
        if variant.role == "variant"
        for score in variant.tasks.values()
        if score.versus_baseline
    ]
    if smallest:
        low, high = percent(min(smallest)), percent(max(smallest))
        yield (
            "Smallest drop of one task that these items show with 80 % probability, before Holm's adjustment: "
            f"{low} to {high} points."
        )


def _about_answers(results: ComparisonResults) -> Iterator[str]:
    labels = short_labels(list(results.tasks))
    for name, score in results.variants[0].tasks.items():
        if score.too_long:
            yield f"{score.too_long} items of {labels[name]} are longer than the model reads: not counted."
    controls = 0
    for variant in results.variants:
        cut = {labels[name]: score for name, score in variant.tasks.items() if score.cut_off}
        if variant.role == "control":
            controls += sum(score.cut_off or 0 for score in cut.values())
        elif cut:
            counts = ", ".join(f"{score.cut_off} of {score.n} to {task}" for task, score in cut.items())
            yield f"{variant.name}: answers that never ended and were cut: {counts}."
    if controls:
        yield f"Controls: {controls} answers never ended and were cut."


def _noise(results: ComparisonResults) -> Iterator[str]:
    again = next((variant for variant in results.variants if variant.role == "again" and variant.tasks), None)
    if again is None:
        return
    drops = [score.versus_baseline for score in again.tasks.values() if score.versus_baseline]
    flips, items = sum(drop.lost + drop.gained for drop in drops), sum(drop.n for drop in drops)
    floor = "" if again.text is None or again.text.kl is None else f", KL {nats(again.text.kl.value)}"
    yield (
        f"Noise floor: full precision, asked again in other batches, answers {flips} of {items} items right where it "
        f"was wrong, or the other way round{floor}."
    )


def short_labels(tasks: Sequence[str]) -> dict[str, str]:
    """Names of tasks without a first word that all of them share.

    >>> short_labels(["reference_passkey", "reference_city_country"])
    {'reference_passkey': 'passkey', 'reference_city_country': 'city_country'}
    """
    first_words = {name.partition("_")[0] for name in tasks}
    shared = f"{first_words.pop()}_" if len(tasks) > 1 and len(first_words) == 1 else ""
    return {name: name.removeprefix(shared) for name in tasks}


def nats(value: float | None) -> str:
    """Write a divergence.

    >>> nats(0.01234), nats(0.81), nats(11.5972)
    ('0.012', '0.810', '11.60')
    """
    if value is None:
        return NOTHING
    return f"{value:.2g}" if value < 0.1 else f"{value:.3f}" if value < 10 else f"{value:.2f}"
