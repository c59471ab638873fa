import pytest
from safetensors.torch import load_file, save_file

from mvquant.comparison.fingerprint import Fingerprint, folder_hash, package_versions
from tests.comparison.examples import save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("hash") / "model")


def test_the_hash_is_of_what_decides_an_answer(folder, tmp_path):
    before = folder_hash(folder)
    assert folder_hash(save_model(tmp_path / "same")) == before
    (folder / "README.md").write_text("words")
    assert folder_hash(folder) == before
    assert folder_hash(save_model(tmp_path / "other", seed=1)) != before


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_one_changed_value_is_another_model(folder, tmp_path, name):
    copy = save_model(tmp_path / "copy")
    if name.endswith(".json"):
        (copy / name).write_text((copy / name).read_text() + " ")
    else:
        tensors = load_file(copy / name)
        tensors["model.norm.weight"][0] += 1
        save_file(tensors, copy / name)
    assert folder_hash(copy) != folder_hash(folder)


def test_differences_name_every_part_that_changed():
    made = Fingerprint(model="m", plan="p", data="d", settings={"limit": 1}, versions={"torch": "2.13"})
    assert made.differences(made) == []
    for name in ("model", "plan", "data"):
        assert made.differences(made.model_copy(update={name: "x"})) == [name]
    newer = made.model_copy(update={"versions": {"torch": "2.14", "lm_eval": "0.4"}})
    assert made.differences(newer) == ["torch (2.13, now 2.14)", "lm_eval (None, now 0.4)"]


def test_versions_of_what_is_not_installed_are_said():
    assert package_versions("no-such-package")["no-such-package"] == "not installed"
