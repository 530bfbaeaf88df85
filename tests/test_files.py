"""Files of a work directory: JSON, arrays, classes and the metrics log."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jax_uda import files
from jax_uda.data.label_spaces import CITYSCAPES19
from jax_uda.errors import UserError


def record(stage_index, step, **values):
  return {"stage": ("source", "round_1")[stage_index], "stage_index": stage_index, "step": step, **values}


@pytest.fixture
def log(tmp_path):
  log = files.MetricsLog(tmp_path / "run" / "metrics.jsonl")
  for stage_index, step in ((0, 10), (0, 20), (1, 10), (1, 20)):
    log.append(record(stage_index, step, loss=step / 7))
  return log


def positions(log):
  return [(entry["stage_index"], entry["step"]) for entry in log.read()]


def test_log_is_one_json_object_a_line_and_in_the_file_at_once(log):
  log.append(record(1, 30, loss=float("nan"), accuracy=np.float32(0.5), shares=jnp.array([0.25, jnp.inf])))
  lines = log.path.read_text().split("\n")
  assert len(lines) == 6 and lines[-1] == ""
  assert json.loads(lines[0]) == record(0, 10, loss=10 / 7)
  assert json.loads(lines[4]) == record(1, 30, loss=None, accuracy=0.5, shares=[0.25, None])


@pytest.mark.parametrize(
  ("stage_index", "step", "left"),
  [(0, -1, 0), (0, 0, 0), (0, 10, 1), (0, 15, 1), (0, 20, 2), (0, 99, 2), (1, 0, 2), (1, 10, 3), (1, 20, 4), (7, 0, 4)],
)
def test_truncate_drops_what_comes_after_the_position(log, stage_index, step, left):
  before = log.path.read_text().splitlines()
  log.truncate(stage_index, step)
  assert log.path.read_text().splitlines() == before[:left]


@pytest.mark.parametrize("tear", [b'{"stage": "round_1", "stage_ind', b"{", b'{"stage": "\xc3', b"\x00\x00"])
def test_truncate_drops_a_torn_last_line_and_the_log_goes_on(log, tear):
  with log.path.open("ab") as file:
    file.write(tear)
  assert len(log.read()) == 4
  log.truncate(1, 10)
  log.append(record(1, 20, loss=1.0))
  assert positions(log) == [(0, 10), (0, 20), (1, 10), (1, 20)]
  assert log.read()[-1]["loss"] == 1.0


def test_truncate_keeps_a_whole_last_line_that_lacks_only_its_end(log):
  log.path.write_bytes(log.path.read_bytes()[:-1])
  log.truncate(1, 20)
  log.append(record(1, 30))
  assert positions(log) == [(0, 10), (0, 20), (1, 10), (1, 20), (1, 30)]


def test_truncate_leaves_no_record_twice_but_all_kinds_at_a_position(log):
  log.append(record(1, 20, loss=9.0))
  log.append(record(1, 20, miou=0.5))
  log.truncate(1, 20)
  at_20 = [entry for entry in log.read() if (entry["stage_index"], entry["step"]) == (1, 20)]
  assert at_20 == [record(1, 20, loss=9.0), record(1, 20, miou=0.5)]
  content = log.path.read_bytes()
  log.truncate(1, 20)
  assert log.path.read_bytes() == content


def test_resuming_twice_at_the_same_position_gives_the_log_of_one_run(log):
  whole = log.path.read_bytes()
  for _ in range(2):
    log.truncate(0, 20)
    for step in (10, 20):
      log.append(record(1, step, loss=step / 7))
  assert log.path.read_bytes() == whole


def test_a_broken_line_in_the_middle_is_named_and_no_log_is_an_empty_one(log, tmp_path):
  log.path.write_bytes(b"{torn\n" + log.path.read_bytes())
  with pytest.raises(UserError, match=r"metrics\.jsonl line 1"):
    log.truncate(1, 0)
  missing = files.MetricsLog(tmp_path / "none.jsonl")
  missing.truncate(0, 0)
  assert missing.read() == [] and not missing.path.exists()


def test_json_round_trip(tmp_path):
  path = tmp_path / "deep" / "file.json"
  value = {
    "nan": float("nan"), "inf": np.inf, "count": np.int64(3), "flag": np.bool_(True), "name": "größe", "none": None,
    "matrix": np.array([[1.5, np.nan], [0, 2]]), "device": jnp.arange(2), "half": jnp.bfloat16(0.5), "pair": (1, "a"),
    4: {},
  }  # fmt: skip
  files.write_json(path, value)
  assert files.read_json(path) == {
    "nan": None, "inf": None, "count": 3, "flag": True, "name": "größe", "none": None,
    "matrix": [[1.5, None], [0, 2]], "device": [0, 1], "half": 0.5, "pair": [1, "a"], "4": {},
  }  # fmt: skip
  assert "NaN" not in path.read_text()


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
  path = tmp_path / "file.json"
  files.write_json(path, [1])
  with pytest.raises(TypeError):
    files.write_json(path, object())
  assert files.read_json(path) == [1] and [file.name for file in tmp_path.iterdir()] == ["file.json"]


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe"])
def test_broken_json_names_the_file(tmp_path, content):
  (tmp_path / "broken.json").write_bytes(content)
  with pytest.raises(UserError, match=r"broken\.json") as error:
    files.read_json(tmp_path / "broken.json")
  assert "\n" not in str(error.value)
  with pytest.raises(UserError, match=r"missing\.json"):
    files.read_json(tmp_path / "missing.json")


def test_npz_round_trip(tmp_path):
  arrays = {"prior": np.eye(3, dtype=np.float32), "counts": np.arange(4)}
  files.write_npz(tmp_path / "found.npz", arrays)
  found = files.read_npz(tmp_path / "found.npz")
  assert found.keys() == arrays.keys()
  for name, array in arrays.items():
    np.testing.assert_array_equal(found[name], array, strict=True)


def test_classes_round_trip(tmp_path):
  files.write_classes(tmp_path, CITYSCAPES19)
  assert files.read_classes(tmp_path) == CITYSCAPES19
  assert files.read_json(tmp_path / "classes.json").keys() == {"name", "classes", "colors"}
  files.write_json(tmp_path / "classes.json", {"name": "x"})
  with pytest.raises(UserError, match=r"classes\.json"):
    files.read_classes(tmp_path)
