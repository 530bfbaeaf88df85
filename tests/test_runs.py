"""The list of runs."""

import json
import os
import re

import pytest

from jax_uda import files, runs
from jax_uda.results import stage_result
from tests.tiny import tiny


def make_run(folder, *, miou=None, done=False, log=(), **fields):
  """The files of a run that has got so far."""
  config = files.plain(tiny("curriculum").to_dict()) | fields
  files.write_json(folder / "config.json", config)
  records = files.MetricsLog(folder / "metrics.jsonl")
  for stage_index, step in log:
    records.append({"stage": ("source", "epoch_1")[stage_index], "stage_index": stage_index, "step": step})
  if miou is not None:
    stage = stage_result("source", 40, 90.0, None, ("road",)) | {"miou": miou, "pixel_accuracy": 0.75}
    files.write_json(folder / "results.json", {"stages": [stage], "final": stage if done else None})
  for place in folder.iterdir():
    os.utime(place, (1000, 1000))
  return folder


def test_a_run_at_every_point(tmp_path):
  begun = runs.read_run(make_run(tmp_path / "begun"))
  assert (begun.stage, begun.step, begun.done, begun.miou, begun.seconds) == ("", 0, False, None, 0)
  assert begun.data == "street_world game → street_world photo" and begun.method == "curriculum" and begun.changed == 1000
  going = runs.read_run(make_run(tmp_path / "going", miou=0.25, log=[(0, 40), (1, 20)], seed=3))
  assert (going.stage, going.step, going.done, going.miou, going.seed) == ("epoch_1", 20, False, 0.25, 3)
  over = runs.read_run(make_run(tmp_path / "over", miou=0.5, log=[(0, 40)], done=True))
  assert (over.stage, over.step, over.done) == ("source", 40, True)
  assert (over.miou, over.pixel_accuracy, over.seconds) == (0.5, 0.75, 90)


def test_data_sets_in_few_words():
  spec = {"kind": "", "dir": "", "list": "", "split": "", "domain": ""}
  names = {
    "camvid day.txt": {"kind": "camvid", "dir": "CamVid", "list": "day.txt"},
    "folder renders": {"kind": "folder", "dir": "renders"},
    "cityscapes val": {"kind": "cityscapes", "dir": "cityscapes", "split": "val"},
    "street_world photo test": {"kind": "street_world", "domain": "photo", "split": "test"},
    "": {},
  }
  assert [runs.dataset_name(spec | fields) for fields in names.values()] == list(names)


@pytest.fixture
def several(tmp_path):
  make_run(tmp_path / "a", miou=0.25, log=[(0, 40), (1, 20)])
  make_run(tmp_path / "ladder/seed_0/best", miou=0.5, done=True, mode="oracle")
  make_run(tmp_path / "new")
  make_run(tmp_path / "a/inside")  # a run's own folders are not searched
  (tmp_path / "broken").mkdir()
  (tmp_path / "broken/config.json").write_text("{")
  (tmp_path / "other").mkdir()
  (tmp_path / "other/config.json").write_text('{"method": "x", "source": "imagenet", "target": {}, "seed": 0}')
  make_run(tmp_path / "foreign").joinpath("results.json").write_text("[1]")
  return tmp_path


def test_the_command_lists_all_runs_and_names_what_is_none(several, capsys):
  assert runs.main([str(several)]) == 0
  out, err = capsys.readouterr()
  lines = [re.split(r"  +", line) for line in out.splitlines()]
  assert [line[0] for line in lines[2:]] == ["a", "ladder/seed_0/best", "new"]
  assert lines[2][1:4] == ["curriculum", "street_world game → street_world photo", "0"]
  assert lines[2][4:7] == ["epoch_1, step 20", "25.0", "75.0"]
  assert lines[3][1] == "curriculum, oracle" and lines[3][4:6] == ["finished", "50.0"]
  assert lines[4][4:6] == ["not begun", "–"]
  assert len({len(line) for line in out.splitlines()}) == 1 and lines[2][-1].endswith("days")
  assert len(err.splitlines()) == 3 and all(name in err for name in ("broken/config.json", "other holds", "foreign holds"))
  assert runs.main([str(several), "--sort", "miou"]) == 0
  assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]] == ["ladder/seed_0/best", "a", "new"]


def test_the_command_gives_json_and_refuses_what_holds_no_run(several, tmp_path, capsys):
  assert runs.main([str(several), "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert [run["miou"] for run in found] == [0.25, 0.5, None] and found[1]["workdir"].endswith("best")
  (tmp_path / "empty").mkdir()
  for folder, said in (("empty", "holds no run"), ("nowhere", "there is no folder")):
    assert runs.main([str(tmp_path / folder)]) == 2
    assert re.fullmatch(rf"error: .*{said}.*\n", capsys.readouterr().err)


def test_ages():
  ages = {0: "0 s", 59.9: "59 s", 60: "1 min", 7200: "2 h", 90000: "1 day", 2e5: "2 days"}
  assert {seconds: runs.age(seconds) for seconds in ages} == ages
