"""Comparisons without any model: figures that are easy to recognize, and strings that try to break out."""

from mvquant.comparison import (
    Answer,
    ComparisonResults,
    Contrast,
    Failure,
    FlippedItem,
    GroupScore,
    TaskInfo,
    TaskScore,
    TextScore,
    VariantResult,
    comparison_recipe,
)
from mvquant.evaluation.compare import TaskDrop
from mvquant.evaluation.statistics import Estimate
from mvquant.evaluation.text_quality import TextQuality

HOSTILE = "</script><img src=x onerror=alert(1)>\"'`&<!--|*_ \u202e"
TASKS = {"set_find": ("contextual", 0.0), "set_choose": ("contextual", 0.5), "set_know": ("parametric", 0.25)}


def around(value, half=0.04):
    return Estimate(value=value, low=value - half, high=value + half)


def task_score(lost=0, gained=0, *, n=100, right=90, p_holm=1.0, compared=True):
    """A score whose items changed as said; `right` counts the baseline's."""
    correct = right - lost + gained if compared else right
    drop = TaskDrop(
        n=n,
        lost=lost,
        gained=gained,
        drop=around((lost - gained) / n),
        corrected=around((lost - gained) / n),
        p=p_holm / 3,
        p_holm=p_holm,
        minimum_detectable=0.077,
    )
    return TaskScore(
        n=n,
        correct=correct,
        accuracy=around(correct / n),
        corrected=around(correct / n),
        too_long=0,
        cut_off=0,
        mean_tokens=2.0,
        versus_baseline=drop if compared else None,
    )


def variant(name, reading=0.0, recall=0.0, *, role="variant", half=0.04, bits=4.125, tasks=None, **changes):
    """A model that lost so much of reading and of recall, as fractions."""
    base = role == "baseline"
    groups = {
        kind: GroupScore(
            tasks=tuple(task for task, (knowledge, _) in TASKS.items() if knowledge == kind),
            accuracy=around(0.9 - lost),
            corrected=around(0.9 - lost),
            drop=None if base else around(lost, half),
        )
        for kind, lost in (("contextual", reading), ("parametric", recall))
    }
    fields = {
        "name": name,
        "role": role,
        "summary": f"summary of {name}",
        "model_hash": "a" * 64,
        "bytes": 2_344_960,
        "bits_per_weight": bits,
        "tasks": tasks or {task: task_score(compared=not base) for task in TASKS},
        "groups": groups,
        "contextual_minus_parametric": None if base else around(reading - recall, half),
    }
    return VariantResult(**{**fields, **changes})


def partly(found, *missing):
    """The same model without answers to these tasks; of the others nothing changes."""
    groups = {
        kind: group.model_copy(update={"tasks": tuple(task for task in group.tasks if task not in missing)})
        for kind, group in found.groups.items()
    }
    tasks = {task: score for task, score in found.tasks.items() if task not in missing}
    return found.model_copy(update={"groups": groups, "tasks": tasks})


def text_score(kl):
    quality = TextQuality(texts=4, distinct_2=0.4321, mean_tokens=63.5, ended=0, limit=64)
    if kl is None:
        return TextScore(sequences=4, tokens=400, perplexity=4.0, continuations=quality)
    return TextScore(
        sequences=4,
        tokens=400,
        perplexity=4.2,
        perplexity_ratio=around(1.0512),
        kl=around(kl, 0.001),
        kl_tail=0.5,
        top_1=around(0.9123),
        continuations=quality,
    )


def results(*variants, contrasts=(), **changes):
    """A comparison of these variants with full precision; without any, of one that loses reading and its control."""
    shown = variants or (
        variant(
            "w3",
            reading=0.123,
            recall=0.01,
            bits=3.125,
            text=text_score(0.0759),
            tasks={
                "set_find": task_score(30, 2, p_holm=0.0001),
                "set_choose": task_score(1, 3),
                "set_know": task_score(),
            },
        ),
        variant("random-w3", reading=0.11, role="control", control_of=("w3",), bits=3.2),
    )
    fields = {
        "model": "tiny",
        "family": "llama",
        "dtype": "bfloat16",
        "device": "cpu",
        "command": "mvquant compare --model tiny --schemes w3 -o out",
        "settings": comparison_recipe({"model": "tiny", "variants": [{"name": "w3", "scheme": "w3a16"}]}, "test"),
        "versions": {"python": "3.11.7", "mvquant": "0.1.0"},
        "tasks": {
            task: TaskInfo(
                knowledge=knowledge,
                version=1,
                chance=chance,
                answer_by="generation",
                items=100,
                data_hash=f"{index}" * 64,
            )
            for index, (task, (knowledge, chance)) in enumerate(TASKS.items())
        },
        "variants": (variant("full precision", role="baseline", bits=16.0, text=text_score(None)), *shown),
        "contrasts": contrasts or ((contrast("w3", "random-w3"),) if not variants else ()),
    }
    return ComparisonResults(**{**fields, **changes})


def contrast(name, control, reading=-0.0131, recall=0.0, *, better=3, worse=4, p_holm=1.0, extra_bytes=1536):
    """What a variant kept more than a control of reading and of recall, as fractions."""
    gains = {"contextual": around(reading), "parametric": around(recall)}
    return Contrast(
        variant=name,
        control=control,
        gains=gains,
        better=better,
        worse=worse,
        p=p_holm,
        p_holm=p_holm,
        extra_bytes=extra_bytes,
    )


def flip(number=0, *, task="set_find", prompt="Where is Tom?", names=("full precision", "w3", "random-w3"), **changes):
    """The first of `names` is right, the others are wrong."""
    answers = {
        name: Answer(prediction="attic" if place == 0 else "barn", correct=place == 0)
        for place, name in enumerate(names)
    }
    fields = {"task": task, "id": f"item-{number}", "prompt": prompt, "answer": "attic", "answers": answers}
    return FlippedItem(**{**fields, **changes})


def hostile_results():
    """A comparison in which every string that a person or a model can choose tries to become markup."""
    name = f"w3 {HOSTILE}"
    bad = variant(name, 0.2, text=text_score(0.1), summary=HOSTILE, failures=(Failure(part=HOSTILE, message=HOSTILE),))
    settings = comparison_recipe(
        {"model": HOSTILE, "summary": HOSTILE, "variants": [{"name": name, "scheme": "w3a16"}]}, "test"
    )
    return results(
        bad,
        variant(f"control {HOSTILE}", role="control", control_of=(name,)),
        contrasts=(contrast(name, f"control {HOSTILE}"),),
        model=HOSTILE,
        family=HOSTILE,
        device=HOSTILE,
        command=f"mvquant compare {HOSTILE}",
        settings=settings,
        versions={HOSTILE: HOSTILE},
    )


def hostile_flip():
    names = ("full precision", f"w3 {HOSTILE}")
    answers = {
        name: Answer(prediction=HOSTILE, correct=place == 0, text=f"long {HOSTILE}") for place, name in enumerate(names)
    }
    return flip(prompt=HOSTILE, id=HOSTILE, answer=HOSTILE, choices=(HOSTILE, "no"), answers=answers)
