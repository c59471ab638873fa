"""What every test stands on: no network, no terminal, no threads to fight over."""

import os

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", MPLBACKEND="Agg", COLUMNS="80")

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture
def shared_data() -> Path:
    """Real tensors and test sets that the project does not ship."""
    if not SHARED.is_dir():
        pytest.skip("the shared data folder is not here")
    return SHARED
