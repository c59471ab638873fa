"""Opening a model folder: config and safetensors, checked before anything is computed."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from mvquant.checkpoint.native import QUANT_METHOD
from mvquant.errors import CheckpointError, UnsupportedModelError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
DOWNLOADED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
DTYPES: dict[str, Literal["float32", "bfloat16", "float16"]] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Checkpoint:
    """A model folder whose files were found whole.

    Attributes:
        name: what the user called it.
        folder: where it lies.
        config: as transformers reads it.
        files: the file of every tensor on disk.
        dtype: that most bytes of the weights are stored in.
    """

    name: str
    folder: Path
    config: PreTrainedConfig
    files: dict[str, Path]
    dtype: Literal["float32", "bfloat16", "float16"]

    @property
    def raw_config(self) -> dict[str, Any]:
        """`config.json` as it stands, with what transformers does not know."""
        return json.loads((self.folder / CONFIG).read_text(encoding="utf-8"))

    @property
    def quantization(self) -> dict[str, Any]:
        """`quantization_config` as it stands in `config.json`; empty where there is none, or null in its place."""
        return self.raw_config.get("quantization_config") or {}

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Read tensors; each file is mapped only for the time of the call.

        Raises:
            CheckpointError: a tensor that cannot be read.
        """
        by_file: dict[Path, list[str]] = defaultdict(list)
        for name in names:
            by_file[self.files[name]].append(name)
        tensors: dict[str, Tensor] = {}
        for file, in_file in by_file.items():
            try:
                with safe_open(file, framework="pt") as handle:
                    tensors |= {name: handle.get_tensor(name).clone() for name in in_file}
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{file}: cannot read {in_file[0]} ({error})") from None
        return tensors


def open_checkpoint(model: str) -> Checkpoint:
    """Open a local folder, or download a model of the Hub and open that.

    Raises:
        CheckpointError: no such model, or a folder that is incomplete, corrupt, pickled or already quantized.
        UnsupportedModelError: a model type that transformers does not know.
    """
    folder = _find_folder(model)
    config = _read_config(folder)
    files = _find_tensors(folder)
    quantized: dict[str, Any] = getattr(config, "quantization_config", None) or {}
    packed = quantized.get("quant_method") == QUANT_METHOD
    return Checkpoint(model, folder, config, files, _main_dtype(files, packed=packed))


def _find_folder(model: str) -> Path:
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or not _HUB_ID.fullmatch(model):
        raise CheckpointError(f"{model}: no such model folder (nor the word `reference`, nor a Hub id `owner/name`)")
    try:
        return Path(huggingface_hub.snapshot_download(model, allow_patterns=DOWNLOADED))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{model}: neither a local folder nor to be had from the Hub ({first_line}); where there is a network, "
            f"`hf download {model} --local-dir DIR` brings it, and DIR can be given instead"
        ) from None


def _read_config(folder: Path) -> PreTrainedConfig:
    path = folder / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {CONFIG}: it is not a model folder")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not JSON ({error})") from None
    if not isinstance(raw, dict) or "model_type" not in raw:
        raise CheckpointError(f"{path} names no `model_type`: it is not the config of a transformers model")
    if not isinstance(raw.get("quantization_config") or {}, dict):
        raise CheckpointError(f"{path}: `quantization_config` is not an object that says how the model was quantized")
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, TypeError) as error:
        raise UnsupportedModelError(f"{path}: transformers cannot read it ({str(error).splitlines()[0]})") from None


def _find_tensors(folder: Path) -> dict[str, Path]:
    single, index = folder / WEIGHTS, folder / INDEX
    if single.is_file():
        return dict.fromkeys(_names(single), single)
    if index.is_file():
        return _indexed(folder, index)
    pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
    if pickled:
        raise CheckpointError(
            f"{folder} has pickled weights only ({pickled[0]}), which can run code when they are opened. If you trust "
            "them, convert them once: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
        )
    raise CheckpointError(f"{folder} has neither {WEIGHTS} nor {INDEX}: its weights are missing")


def _indexed(folder: Path, index: Path) -> dict[str, Path]:
    weight_map = _weight_map(index)
    if outside := [name for name in weight_map.values() if Path(name).name != name]:
        raise CheckpointError(f"{index} names a file outside the folder: {outside[0]}")
    present = {name: set(_names(folder / name)) for name in dict.fromkeys(weight_map.values())}
    if lost := [tensor for tensor, name in weight_map.items() if tensor not in present[name]]:
        raise CheckpointError(f"{index} promises {lost[0]} in {weight_map[lost[0]]}, which lacks it")
    return {tensor: folder / name for tensor, name in weight_map.items()}


def _weight_map(index: Path) -> dict[str, str]:
    """The file of every tensor, as an index says it."""
    try:
        weight_map: Any = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{index} is not an index of safetensors files ({error})") from None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(
            f"{index} is not an index of safetensors files (its weight_map does not name a file for every tensor)"
        )
    return weight_map


def _names(file: Path) -> list[str]:
    try:
        with safe_open(file, framework="pt") as handle:
            return list(handle.keys())
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing: the download or copy is incomplete") from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{file} is truncated or is not a safetensors file ({error}): download or copy it again"
        ) from None


def _main_dtype(files: dict[str, Path], *, packed: bool) -> Literal["float32", "bfloat16", "float16"]:
    """The dtype of most weights; in a checkpoint of packed integers, of what is not packed."""
    sizes: dict[str, int] = defaultdict(int)
    for file in dict.fromkeys(files.values()):
        with safe_open(file, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118 - a handle is not a mapping
                tensor = handle.get_slice(name)
                count = 1
                for size in tensor.get_shape():
                    count *= size
                if not packed or tensor.get_dtype() in DTYPES:
                    sizes[tensor.get_dtype()] += count
    main = max(sizes, key=lambda dtype: sizes[dtype], default="none")
    if main not in DTYPES:
        raise CheckpointError(
            f"{next(iter(files.values()), Path()).parent}: weights are stored as {main}, not as {', '.join(DTYPES)}: "
            "the model is quantized already, start from the original"
        )
    return DTYPES[main]
