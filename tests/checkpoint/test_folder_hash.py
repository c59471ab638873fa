"""A folder's hash is of what a model computes."""

import shutil

from mvquant.checkpoint.folder_hash import folder_hash
from tests.tiny_models import tiny_model


def test_weights_and_configs_count_and_the_place_does_not(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "notes.md").write_text("mine")
    assert folder_hash(tmp_path / "a") == folder_hash(tmp_path / "b")
    tiny_model("llama", seed=1).save_pretrained(tmp_path / "c")
    assert folder_hash(tmp_path / "a") != folder_hash(tmp_path / "c")
    config = tmp_path / "b" / "config.json"
    config.write_text(config.read_text().replace("10000", "20000"))
    assert folder_hash(tmp_path / "a") != folder_hash(tmp_path / "b")
