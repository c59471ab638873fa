"""Install every extra for users alone, in a fresh environment, and do with it what it is for.

    python scripts/try_extras.py
    python scripts/try_extras.py --extra gptq --extra eval

Each takes a minute or two and up to 3 GB of disk, which is given back. Results are written after each one; those of
extras that are not asked for stay in the file as they were.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "extras.json"

QUANTIZE = "mvquant quantize reference --calibration reference -o out --scheme "
RECIPE = "mvquant quantize reference -o out --recipe recipe.yaml"
LOAD = "python load.py out"

USES: dict[str, tuple[str, ...]] = {
    "": (QUANTIZE + "mv-protect", "mvquant eval out --tasks passkey --limit 16"),
    "llmcompressor": (QUANTIZE + "mv-protect-gptq-w4a16", LOAD),
    "smoothquant": (QUANTIZE + "smoothquant-w8a8", LOAD),
    "gptq": (RECIPE, LOAD),
    "awq": (RECIPE, LOAD),
    "autoround": (RECIPE, LOAD),
    "autoawq": ("python -m pip install --quiet --no-deps autoawq==0.2.9 zstandard", RECIPE, LOAD),
    "auto-gptq": ("mvquant backends install auto-gptq", RECIPE, LOAD),
    "eval": ("mvquant eval reference --tasks passkey --engine dummy --limit 8",),
    "ray": ("mvquant compare --model reference --schemes w2a16 --engine ray --limit 8 -o comparison",),
    "all": ("mvquant backends", QUANTIZE + "mv-protect-awq-w4a16", LOAD),
}
"""By extra, `` for none: what a person who installed it would do first. `autoawq` has what autoawq needs, not autoawq
itself; `mvquant backends` prints the command that is first there. `auto-gptq` is no extra: it gets its own place."""

NO_EXTRAS = ("", "auto-gptq")

METHODS = {
    "gptq": "{scheme: w4a16, method: {name: gptq, backend: gptqmodel}}",
    "awq": "{scheme: w4a16-asym, method: {name: awq, backend: gptqmodel}}",
    "autoround": "{scheme: w4a16, method: {name: autoround, iterations: 10}}",
    "autoawq": "{scheme: w4a16-asym, method: {name: awq, backend: autoawq}}",
    "auto-gptq": "{scheme: w4a16, method: {name: gptq, backend: auto-gptq}}",
}
"""Weights of the recipe, where an extra brings a package that is no method's first choice, or takes long by default."""

LOADER = """
import sys, mvquant, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()
"""

NAMED = ("mvquant", "torch", "transformers", "compressed-tensors", "llmcompressor", "gptqmodel", "optimum")
MORE_NAMED = ("auto-round", "autoawq", "lm_eval", "ray")
VERSIONS = f"""
import importlib.metadata as found, json
names = {(*NAMED, *MORE_NAMED)!r}
here = {{each.metadata["Name"].lower().replace("_", "-"): each.version for each in found.distributions()}}
print(json.dumps({{name: here[key] for name in names if (key := name.lower().replace("_", "-")) in here}}))
"""


def main() -> None:
    """Try what is asked for; exit with 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extra", action="append", choices=USES, help="may be repeated; all by default")
    parser.add_argument("--output", "-o", type=Path, default=RESULTS)
    options = parser.parse_args()
    failed = False
    for extra in options.extra or USES:
        tried = try_extra(extra)
        _save(options.output, tried)
        failed |= tried["failed"] is not None
        sys.stdout.write(
            f"{extra or 'none':<14} {'failed' if tried['failed'] else 'works':<8} {tried['seconds']:.0f} s\n"
        )
        sys.stdout.flush()
    sys.exit(failed)


def try_extra(extra: str) -> dict[str, Any]:
    """Install mvquant with one extra and nothing else, and use it; see `USES` for those that are none."""
    asked = str(ROOT) if extra in NO_EXTRAS else f"{ROOT}[{extra}]"
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="extra-") as folder:
        place = Path(folder)
        venv.create(place / "env", with_pip=True)
        (place / "load.py").write_text(LOADER, encoding="utf-8")
        if extra in METHODS:
            calibration = "calibration: {source: reference}"
            (place / "recipe.yaml").write_text(
                f"summary: {extra}\nweights: {METHODS[extra]}\n{calibration}\n", encoding="utf-8"
            )
        pip = ["python", "-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt"), asked]
        failed = next(filter(None, (_failure(place, each) for each in (pip, *map(str.split, USES[extra])))), None)
        versions = json.loads(_run(place, ["python", "-c", VERSIONS]).stdout)
        size = sum(path.stat().st_size for path in (place / "env").rglob("*") if path.is_file())
    return {
        "extra": extra,
        "install": "pip install -c constraints.txt " + ("." if extra in NO_EXTRAS else f"'.[{extra}]'"),
        "used": list(USES[extra]),
        "weights": METHODS.get(extra),
        "failed": failed,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 1),
        "environment_gb": round(size / 1e9, 2),
        "versions": {"python": platform.python_version(), **versions},
    }


def _failure(place: Path, command: Sequence[str]) -> str | None:
    done = _run(place, command)
    if done.returncode == 0:
        return None
    shown = " ".join(command).replace(str(ROOT), ".")
    return f"{shown}: exit code {done.returncode}; {done.stderr.strip()[-400:]}"


def _run(place: Path, command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """Run a command as in an activated environment that knows nothing of this checkout."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment["PATH"] = f"{place / 'env' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment["MVQUANT_HOME"] = str(place / "home")
    return subprocess.run(
        list(command),
        cwd=place,
        env={**environment, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def _save(file: Path, tried: dict[str, Any]) -> None:
    earlier = json.loads(file.read_text(encoding="utf-8"))["extras"] if file.exists() else []
    by_name = {each["extra"]: each for each in [*earlier, tried]}
    extras = [by_name[extra] for extra in USES if extra in by_name]
    report = {"command": "python scripts/try_extras.py", "extras": extras}
    file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
