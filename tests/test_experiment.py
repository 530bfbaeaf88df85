"""Configs against working directories and data sets."""

import pytest

from jax_uda import experiment
from jax_uda.errors import UserError


def test_differences_name_every_field_that_changed():
  old = {"a": 1, "b": {"c": [1, 2], "d": "x"}, "gone": 0}
  new = {"a": 1, "b": {"c": [1, 3], "d": "x"}, "new": True}
  assert experiment.differences(old, new) == ["b.c: [1, 2] -> [1, 3]", "gone: 0 -> absent", "new: absent -> True"]
  assert experiment.differences(old, old) == []


def test_a_method_is_found_by_its_file_name():
  assert experiment.find_method("mlsl").__name__ == "jax_uda.methods.mlsl"
  with pytest.raises(UserError, match="no method 'os'"):
    experiment.find_method("os")


def test_data_sets_of_other_classes_are_refused(mlsl_config, tmp_path):
  config = mlsl_config.copy_and_resolve_references()
  (tmp_path / "images").mkdir()
  (tmp_path / "images/a.png").write_bytes(b"never read")
  (tmp_path / "labels").mkdir()
  (tmp_path / "labels/a.png").write_bytes(b"never read")
  (tmp_path / "classes.csv").write_text("name,id,red,green,blue\ncat,0,1,2,3\n")
  config.test.update({"kind": "folder", "dir": str(tmp_path)})
  with pytest.raises(UserError, match=r"config\.test: its classes are cat; the source's are road"):
    experiment.open_experiment(config)
  config.test.kind = ""
  config.source.update({"kind": "folder", "dir": str(tmp_path)})
  with pytest.raises(UserError, match=r"config\.target"):
    experiment.open_experiment(config)


def test_two_folders_with_the_same_classes_fit(mlsl_config, tmp_path):
  config = mlsl_config.copy_and_resolve_references()
  for name in ("renders", "photos"):
    for part in ("images", "labels"):
      (tmp_path / name / part).mkdir(parents=True)
      (tmp_path / name / part / "a.png").write_bytes(b"never read")
    (tmp_path / name / "classes.csv").write_text("name,id,red,green,blue\ncat,0,1,2,3\ndog,1,4,5,6\n")
  config.source.update({"kind": "folder", "dir": str(tmp_path / "renders")})
  config.target.update({"kind": "folder", "dir": str(tmp_path / "photos")})
  config.test.kind = ""
  found = experiment.open_experiment(config)
  assert found.space.classes == ("cat", "dog") and found.config.num_classes == 2
  for role in ("target", "test"):
    config[role].update({"kind": "folder", "dir": str(tmp_path / "none")})
    with pytest.raises(UserError, match=rf"^config\.{role}: no data: .*none"):
      experiment.open_experiment(config)
    config[role].dir = str(tmp_path / "photos")
  config.target.update({"kind": "street_world", "domain": "photo", "split": "train", "num": 0})
  with pytest.raises(UserError):
    experiment.open_experiment(config)
