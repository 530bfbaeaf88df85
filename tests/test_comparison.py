"""The page that compares runs."""

import re

import numpy as np
import pytest

from jax_uda import comparison, files, report
from jax_uda.data.label_spaces import LabelSpace
from jax_uda.pictures import write_png
from jax_uda.results import stage_result
from tests.test_report import assert_stands_alone, figures
from tests.tiny import tiny

SPACE = LabelSpace("tiny", ("road", "sky & <air>", "car"), ((128, 64, 128), (70, 130, 180), (0, 0, 142)))


def make_run(folder, right, images=("a", "b"), stages=("source", "round_1"), **fields):
  config = files.plain(tiny("self_training").to_dict()) | fields
  files.write_json(folder / "config.json", config)
  files.write_classes(folder, SPACE)
  results = [
    stage_result(name, 4, 60.0, np.array([[right + i, 10, 0], [0, 20, 0], [0, 0, 0]]), SPACE.classes)
    for i, name in enumerate(stages)
  ]
  if results:
    files.write_json(folder / "results.json", {"stages": results, "final": results[-1]})
  for name in images:
    write_png(folder / f"pictures/image/{name}.png", np.zeros((4, 6, 3), np.uint8))
    for part in ("truth", *stages):
      write_png(folder / f"pictures/{part}/{name}.png", np.zeros((4, 6), np.uint8))
  return folder


@pytest.fixture
def several(tmp_path):
  return [
    make_run(tmp_path / "x/cbst", 10), make_run(tmp_path / "x/mlsl <b>", 30, seed=1, images=("b", "c")),
    make_run(tmp_path / "begun", 0, images=(), stages=()),
  ]  # fmt: skip


def test_runs_are_beside_each_other(several, tmp_path, capsys):
  assert report.main([str(run) for run in several]) == 0
  path = tmp_path / "comparison.html"
  once = path.read_bytes()
  assert report.main([str(run) for run in (*several, path)]) == 0 and path.read_bytes() == once  # as a pattern gives them
  assert capsys.readouterr().out.startswith(f"{path}\n")
  assert report.main([str(run) for run in several]) == 0
  assert capsys.readouterr().out == f"{path}\n"
  page = path.read_text()
  assert_stands_alone(page)
  assert [caption for caption, _, _ in figures(page)] == [
    "mIoU by stage, in %", "IoU by class after the last stage, in %", "image", "truth", "cbst", "mlsl &lt;b&gt;",
  ]  # fmt: skip
  assert re.findall(r"<h3>(.*?)</h3>", page) == ["b"]  # the only one that both have drawn
  rows = re.findall(r"<tr><td>([^<]*)</td>", page)
  assert rows[:3] == ["mlsl &lt;b&gt;", "cbst", "begun"]  # best first
  assert "not begun" in page and "different data" not in page
  differing = re.findall(f"<tr>{'<td>([^<]*)</td>' * 4}</tr>", page)
  assert differing == [("seed", "0", "1", "0")]


def test_it_says_where_scores_are_not_of_the_same_thing(tmp_path):
  runs = [make_run(tmp_path / name, 10) for name in "ab"]
  assert "The configs are the same" in comparison.write(runs, tmp_path / "page.html").read_text()
  config = files.read_json(runs[0] / "config.json")
  config["target"]["domain"] = "game"
  files.write_json(runs[0] / "config.json", config)
  page = comparison.write(runs, tmp_path / "page.html").read_text()
  assert "different data" in page and ("target.domain", "game", "photo") in re.findall(
    f"<tr>{'<td>([^<]*)</td>' * 3}</tr>", page
  )
  config["more"] = 1
  files.write_json(runs[0] / "config.json", config)
  assert "absent" in comparison.write(runs, tmp_path / "page.html").read_text()


@pytest.mark.parametrize(("paths", "names"), [
  (["runs/a", "runs/b/"], ["a", "b"]), (["x/seed_0/cbst", "x/seed_1/cbst"], ["seed_0/cbst", "seed_1/cbst"]),
  (["/a", "/a"], ["//a (1)", "//a (2)"]),
])  # fmt: skip
def test_names_tell_runs_apart(paths, names):
  assert comparison.short_names(paths) == names


def test_the_command_refuses_what_will_not_do(several, tmp_path, capsys):
  assert report.main([str(several[0]), str(tmp_path / "nowhere")]) == 2
  assert re.fullmatch(r"error: .*nowhere holds no run.*\n", capsys.readouterr().err)
  with pytest.raises(SystemExit) as end:
    report.main([str(several[0]), "--out", "page.html"])
  assert end.value.code == 2 and "--out" in capsys.readouterr().err
