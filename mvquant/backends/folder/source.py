"""The folder that a package gets to read: the model, folded if the plan folds, with a stand-in for its tokenizer.

Calibration is made of token ids, so that no package has to tokenize; but most insist on loading a tokenizer, not all
can load every model's, and some change what they load.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from mvquant.arch import ModelView, Source, checkpoint_sources
from mvquant.checkpoint.folder import CONFIG, INDEX, Checkpoint
from mvquant.checkpoint.shards import ShardWriter
from mvquant.folding import RowFactors
from mvquant.methods import plan_factors
from mvquant.plan import Plan

SHARD_BYTES = 2_000_000_000


class SourceWeights:
    """The parameters that a package starts from: those of a checkpoint, folded if the plan folds. Read one by one.

    Attributes:
        names: of all of them.
    """

    def __init__(self, checkpoint: Checkpoint, view: ModelView, plan: Plan) -> None:
        self._checkpoint = checkpoint
        self._sources: Mapping[str, Source] = checkpoint_sources(view, checkpoint.files)
        self.factors: Mapping[str, RowFactors] = plan_factors(plan, view)
        self.names = tuple(self._sources)

    def read(self, name: str) -> Tensor:
        """Read a parameter, as it lies on disk (`Conv1D` has `[columns, rows]`)."""
        source = self._sources[name]
        tensors = self._checkpoint.read(source.tensors)
        tensor = source.assemble([tensors[each] for each in source.tensors])
        return self.factors[name].folded(tensor) if name in self.factors else tensor


def write_source(checkpoint: Checkpoint, weights: SourceWeights, folder: Path) -> None:
    """Write what a package needs of a model; files of an unfolded model are linked, not copied."""
    folder.mkdir()
    if weights.factors:
        writer = ShardWriter(folder, SHARD_BYTES, {"format": "pt"})
        for name in weights.names:
            writer.add(name, weights.read(name))
        writer.close()
    else:
        _link_files(checkpoint, folder)
    config = {**checkpoint.raw_config, "dtype": checkpoint.dtype}
    config.pop("torch_dtype", None)
    config.pop("auto_map", None)
    (folder / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
    write_tokenizer(folder)


def _link_files(checkpoint: Checkpoint, folder: Path) -> None:
    files = [*dict.fromkeys(checkpoint.files.values()), checkpoint.folder / INDEX]
    for file in files:
        if file.is_file():
            (folder / file.name).symlink_to(file.resolve())


def write_tokenizer(folder: Path) -> None:
    """Write the smallest tokenizer that packages load."""
    words = WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2}, unk_token="<pad>")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=FastTokenizer(words), pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.save_pretrained(folder)
