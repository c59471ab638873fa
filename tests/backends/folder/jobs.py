"""Jobs that say nothing that matters, for programs that are none."""

from pathlib import Path

from mvquant.backends.folder.job import Job
from mvquant.method_settings import Gptq
from mvquant.scheme import WeightScheme


def write_job(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    parts = {part: folder / part for part in ("source", "tokens", "out", "seen", "records")}
    job = Job(**parts, dtype="bfloat16", method=Gptq(), scheme=WeightScheme(bits=4), layers=("layers.0", "layers.1"))
    (folder / "job.json").write_text(job.model_dump_json())
    return folder / "job.json"
