"""Ladders: the maths by hand, what runs share, going on, the files, and a tiny one in earnest."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jax_uda import files, ladder, run
from jax_uda.errors import UserError
from jax_uda.ladder import Variants
from jax_uda.stopping import Interrupted

CONFIG = "tests/tiny_mlsl.py"
FILE = """
def get_variants():
  return {
    "source only": {"mode": "source_only"},
    "CBST": {"config": "configs/demo.py", "labels.portion": 0.3},
    "MLSL": {"sisc.size": (16, 16)},
    "oracle": {"mode": "oracle"},
  }

BASELINE, CEILING = "source only", "oracle"
"""
NAMES = ["source only", "CBST", "MLSL", "oracle"]
MIOU = {"source-only": 0.30, "cbst": 0.38, "mlsl": 0.42, "oracle": 0.50}


def write_file(folder: Path, text: str = FILE) -> str:
  (folder / "variants.py").write_text(text)
  return str(folder / "variants.py")


@pytest.fixture
def flags(tmp_path) -> list[str]:
  """Of a ladder whose variants all share the source settings."""
  file = write_file(tmp_path, FILE.replace('"config": "configs/demo.py", ', ""))
  return [f"--config={CONFIG}", f"--variants={file}", f"--workdir={tmp_path}/ladder"]


@pytest.fixture
def runs(monkeypatch) -> list:
  """The runs that were asked for, as (seed, folder, config); each leaves what a run does."""
  asked = []

  def fake(config, workdir):
    name, miou = workdir.name, MIOU.get(workdir.name, 0.4) + 0.02 * config.seed
    asked.append((config.seed, name, config))
    files.write_json(workdir / "config.json", config.to_dict())
    (workdir / "checkpoints/3").mkdir(parents=True)
    stages = [
      {"name": stage, "steps": 3, "miou": value, "pixel_accuracy": 0.9, "iou": {"road": value, "car": None}}
      for stage, value in (("source", 0.25), ("round_1", miou))
    ]
    results = {"config": config.to_dict(), "protocol": "tiny2", "seconds": 60.0, "stages": stages, "final": stages[-1]}
    files.write_json(workdir / "results.json", results)

  monkeypatch.setattr(run, "run", fake)
  return asked


def files_in(folder: Path) -> list[Path]:
  return [path for path in folder.rglob("*") if path.is_file()]


def places(runs: list) -> list[tuple[int, str]]:
  return [(seed, name) for seed, name, _ in runs]


def failure(capsys, *flags: str) -> str:
  """The one line that a user sees."""
  assert ladder.main(flags) == 2
  shown = capsys.readouterr().err.strip()
  assert shown.startswith("error: ") and "\n" not in shown
  return shown


# --- the maths ---


def test_mean_deviation_and_gap_by_hand():
  scores = {"low": {0: 0.2, 1: 0.3}, "mid": {0: 0.3, 1: 0.6}, "high": {0: 0.4, 1: 0.7}}
  found = ladder.compare(scores, "low", "high")
  assert found["mid"]["mean"] == pytest.approx(0.45)
  assert found["mid"]["deviation"] == pytest.approx(np.std([0.3, 0.6], ddof=1)) == pytest.approx(0.3 / 2**0.5)
  assert found["mid"]["gap_closed"] == pytest.approx((0.45 - 0.25) / (0.55 - 0.25))
  assert found["mid"]["gap_closed_by_seed"] == pytest.approx({0: 0.1 / 0.2, 1: 0.3 / 0.4})
  assert found["low"]["gap_closed"] == 0 and found["high"]["gap_closed"] == 1


def test_the_gap_is_measured_by_the_seeds_that_all_three_have():
  scores = {"low": {0: 0.2, 1: 0.9}, "mid": {0: 0.3, 2: 0.8}, "high": {0: 0.4}, "none": {}}
  found = ladder.compare(scores, "low", "high")
  assert found["mid"]["mean"] == pytest.approx(0.55) and found["mid"]["gap_closed"] == pytest.approx(0.5)
  assert found["mid"]["gap_closed_by_seed"] == pytest.approx({0: 0.5})
  assert found["low"]["gap_closed"] == 0
  assert found["none"] == {"mean": None, "deviation": None, "gap_closed": None, "gap_closed_by_seed": {}}


def test_what_is_undefined_is_none():
  one = ladder.compare({"a": {0: 0.25}, "b": {0: 0.25}}, "a", "b")["a"]
  assert one["mean"] == 0.25 and one["deviation"] is None and one["gap_closed"] is None
  assert one["gap_closed_by_seed"] == {0: None}
  assert ladder.compare({"a": {0: 0.25}}, "a", None)["a"]["gap_closed"] is None


# --- variants ---


def test_a_variants_file(tmp_path):
  variants = ladder.load_variants(write_file(tmp_path))
  assert list(variants.fields) == NAMES and (variants.baseline, variants.ceiling) == ("source only", "oracle")
  file = write_file(tmp_path, 'def get_variants():\n  return {"a": {}}\n')
  assert ladder.load_variants(file) == Variants({"a": {}}, None, None)


def test_fields_of_the_command_line_come_before_the_variants_own():
  variants = Variants({"a": {"sisc.size": (16, 24), "augmentation.flip": False, "labels.portion": 1e-3}, "b": {}})
  a, b = (ladder.variant_config(CONFIG, ["labels.portion=0.4", "log_every=7"], variants, name, 5) for name in "ab")
  assert a.sisc.size == (16, 24) and a.augmentation.flip is False and a.labels.portion == 1e-3
  assert b.sisc.size == (24, 48) and b.augmentation.flip is True and b.labels.portion == 0.4
  assert a.log_every == b.log_every == 7 and a.seed == b.seed == 5
  other = ladder.variant_config(CONFIG, [], Variants({"c": {"config": "configs/cbst_camvid.py"}}), "c", 0)
  assert other.method == "self_training" and other.source.kind == "camvid"


@pytest.mark.parametrize(("name", "folder"), [
  ("source only", "source-only"), ("CBST-SP", "cbst-sp"), ("MLSL (λ = 0.025)", "mlsl-λ-0.025"), ("../x", "x"),
])  # fmt: skip
def test_folders_names(name, folder):
  assert ladder.slug(name) == ladder.slug(folder) == folder


# --- what is run ---


def test_every_run_of_a_seed_takes_over_the_first_ones_source_stage(runs, flags, tmp_path, capsys):
  assert ladder.main([*flags, "--seeds=0,1", "--config.log_every=7"]) == 0
  assert places(runs) == [(seed, name) for seed in (0, 1) for name in MIOU]
  for seed, name, config in runs:
    first = tmp_path / f"ladder/seed_{seed}/source-only"
    assert config.start_from == ("" if name == "source-only" else str(first)) and config.log_every == 7
  assert runs[0][2].mode == "source_only" and runs[2][2].sisc.size == (16, 16)
  shown = capsys.readouterr().out
  assert "seed 0 · source only (1 of 8)\n" in shown and "seed 1 · CBST (6 of 8) · about 03:00 left\n" in shown


def test_other_source_settings_are_trained_once(runs, flags, tmp_path):
  write_file(tmp_path, """
def get_variants():
  return {"a": {}, "b": {"optimizer.momentum": 0.5}, "c": {"optimizer.momentum": 0.5, "labels.portion": 0.3}, "d": {}}
""")
  assert ladder.main(flags) == 0
  root = tmp_path / "ladder/seed_0"
  assert [config.start_from for *_, config in runs] == ["", "", str(root / "b"), str(root / "a")]


def test_the_config_may_itself_start_from_another_run(runs, flags):
  assert ladder.main([*flags, "--config.start_from=elsewhere"]) == 0
  assert {config.start_from for *_, config in runs} == {"elsewhere"}


def test_a_source_stage_that_was_deleted_is_taken_from_the_next_that_has_it(runs, flags, tmp_path):
  assert ladder.main([*flags, "--only=source only,MLSL"]) == 0
  (tmp_path / "ladder/seed_0/source-only/checkpoints/3").rmdir()
  assert ladder.main([*flags, "--only=oracle"]) == 0
  assert runs[-1][2].start_from == str(tmp_path / "ladder/seed_0/mlsl")


def test_a_first_stage_that_is_not_the_source_stage_is_not_taken_over(runs, flags, tmp_path):
  assert ladder.main([*flags, "--only=source only"]) == 0
  first = tmp_path / "ladder/seed_0/source-only/results.json"
  first.write_text(first.read_text().replace('"name": "source"', '"name": "epoch_1"'))
  assert ladder.main([*flags, "--only=oracle"]) == 0
  assert runs[-1][2].start_from == ""


def test_finished_runs_are_not_run_again_wherever_they_have_been_moved(runs, flags, tmp_path, capsys):
  assert ladder.main([*flags, "--seeds=0"]) == 0
  shown, files = capsys.readouterr().out, {path.name: path.read_bytes() for path in (tmp_path / "ladder").glob("ladder.*")}
  assert sorted(files) == ["ladder.csv", "ladder.json", "ladder.md", "ladder.png"]
  (tmp_path / "ladder").rename(tmp_path / "moved")
  moved = [*flags[:-1], f"--workdir={tmp_path}/moved"]
  assert ladder.main(moved) == 0 and len(runs) == 4
  assert files == {path.name: path.read_bytes() for path in (tmp_path / "moved").glob("ladder.*")}
  again = capsys.readouterr().out
  assert again.count("| MLSL") == 1 and again.strip() == shown[shown.rindex("mIoU in %") :].strip()
  assert ladder.main([*moved, "--seeds=0,1"]) == 0 and len(runs) == 8
  assert runs[-1][2].start_from == str(tmp_path / "moved/seed_1/source-only")


def test_a_run_that_has_begun_keeps_its_source_stage(runs, flags, tmp_path):
  assert ladder.main([*flags, "--only=cbst,oracle"]) == 0
  (tmp_path / "ladder/seed_0/cbst/results.json").unlink()
  (tmp_path / "ladder/seed_0/cbst/checkpoints/3").rmdir()
  assert ladder.main(flags) == 0
  root = tmp_path / "ladder/seed_0"
  assert [(name, config.start_from) for _, name, config in runs] == [
    ("cbst", ""), ("oracle", str(root / "cbst")), ("source-only", str(root / "oracle")), ("cbst", ""),
    ("mlsl", str(root / "source-only")),
  ]  # fmt: skip


@pytest.mark.parametrize(("ending", "status"), [(UserError("the loss is nan"), 2), (Interrupted(), 75)])
def test_what_is_done_is_in_the_table_when_a_run_ends_early(runs, flags, tmp_path, capsys, monkeypatch, ending, status):
  whole = run.run

  def ends_early(config, workdir):
    if workdir.name == "mlsl":
      raise ending
    whole(config, workdir)

  monkeypatch.setattr(run, "run", ends_early)
  assert ladder.main([*flags, "--seeds=0,1"]) == status
  captured = capsys.readouterr()
  assert str(ending) in captured.err and captured.err.count("\n") == 1
  assert "seed 0 · MLSL (3 of 8) · about 06:00 left" in captured.out
  table = (tmp_path / "ladder/ladder.md").read_text().splitlines()[2:]
  cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
  assert cells[2:] == [
    ["source only", "30.0", "–", "30.0", "–", "90.0", "–"], ["CBST", "38.0", "–", "38.0", "–", "90.0", "–"],
    ["MLSL", *"––––––"], ["oracle", *"––––––"],
  ]  # fmt: skip
  monkeypatch.setattr(run, "run", whole)
  assert ladder.main([*flags, "--seeds=0,1"]) == 0
  assert places(runs) == [(seed, name) for seed in (0, 1) for name in MIOU]


def test_only_some_are_run_and_all_are_in_the_table(runs, flags, tmp_path, capsys):
  assert ladder.main([*flags, "--seeds=0,1", "--only=oracle"]) == 0
  assert ladder.main([*flags, "--seeds=0,1", "--only=mlsl,source only"]) == 0
  assert places(runs) == [(0, "oracle"), (1, "oracle"), (0, "source-only"), (0, "mlsl"), (1, "source-only"), (1, "mlsl")]
  assert [config.start_from for *_, config in runs[:2]] == ["", ""]
  assert {Path(config.start_from).name for *_, config in runs[2:]} == {"oracle", "source-only"}
  shown = capsys.readouterr().out
  assert "seed 0 · source only (1 of 4) · about 04:00 left" in shown
  last = json.loads((tmp_path / "ladder/ladder.json").read_text())
  assert list(last["variants"]) == NAMES and last["variants"]["CBST"]["seeds"] == {}


def test_the_table_alone(runs, flags, tmp_path, capsys):
  assert "holds no finished run" in failure(capsys, *flags, "--table")
  assert not (tmp_path / "ladder").exists()
  assert ladder.main([*flags, "--seeds=0,1"]) == 0
  for path in (tmp_path / "ladder").glob("ladder.*"):
    path.unlink()
  assert ladder.main([*flags, "--seeds=1,2", "--table"]) == 0 and len(runs) == 8
  assert json.loads((tmp_path / "ladder/ladder.json").read_text())["seeds"] == [1, 2]
  assert not (tmp_path / "ladder/seed_2").exists()


# --- the files ---


def test_the_files(runs, flags, tmp_path, capsys):
  assert ladder.main([*flags, "--seeds=0,1"]) == 0
  summary = json.loads((tmp_path / "ladder/ladder.json").read_text())
  assert summary["config"]["method"] == "mlsl" and summary["protocol"] == "tiny2" and summary["seeds"] == [0, 1]
  assert (summary["baseline"], summary["ceiling"]) == ("source only", "oracle")
  variant = summary["variants"]["MLSL"]
  assert variant["overrides"] == {"sisc.size": [16, 16]}
  assert variant["seeds"]["1"] == {
    "source": 0.25, "final": 0.44, "pixel_accuracy": 0.9, "iou": {"road": 0.44, "car": None}, "seconds": 60.0,
  }  # fmt: skip
  assert variant["mean"] == pytest.approx(0.43) and variant["deviation"] == pytest.approx(0.02 / 2**0.5)
  assert variant["gap_closed"] == pytest.approx(0.6)
  assert variant["gap_closed_by_seed"] == pytest.approx({"0": 0.6, "1": 0.6})

  text = (tmp_path / "ladder/ladder.md").read_text()
  words, _, *lines = text.splitlines()
  assert "tiny2" in words and "from source only to oracle" in words
  assert len({len(line) for line in lines}) == 1 and text in capsys.readouterr().out
  assert [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], lines[4])] == [
    ["variant", "seed 0", "seed 1", "mean", "deviation", "pixel accuracy", "gap closed in %"],
    ["MLSL", "42.0", "44.0", "43.0", "1.4", "90.0", "60.0 (60.0, 60.0)"],
  ]

  with open(tmp_path / "ladder/ladder.csv") as file:
    rows = list(csv.DictReader(file))
  assert [row["class"] for row in rows] == ["road", "car"] and len(rows[0]) == 9
  assert rows[0]["MLSL, seed 1"] == "0.44" and rows[1]["MLSL, seed 1"] == ""


def test_without_baseline_and_with_one_seed_the_table_is_short(runs, flags, tmp_path):
  write_file(tmp_path, 'def get_variants():\n  return {"a | b": {}}\nBASELINE = "a | b"\n')
  assert ladder.main(flags) == 0
  words, _, *lines = (tmp_path / "ladder/ladder.md").read_text().splitlines()
  assert "gap" not in words and lines[0] == "| variant | seed 0 | mean | deviation | pixel accuracy |"
  assert lines[1:] == [
    "| ------- | -----: | ---: | --------: | -------------: |",
    "| a \\| b  |   40.0 | 40.0 |         – |           90.0 |",
  ]


def test_the_figure_says_what_the_table_does(runs, flags, tmp_path):
  assert ladder.main([*flags, "--seeds=0,1", "--only=source only,CBST,oracle"]) == 0
  figure = ladder.draw(json.loads((tmp_path / "ladder/ladder.json").read_text()))
  (axes,) = figure.axes
  assert [label.get_text() for label in axes.get_yticklabels()] == NAMES
  assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first one on top
  assert [bar.get_width() for bar in axes.patches] == pytest.approx([31, 39, np.nan, 51], nan_ok=True)
  assert [text.get_text() for text in axes.texts] == ["31.0 ± 1.4", "39.0 ± 1.4", "–", "51.0 ± 1.4"]
  dots, baseline, ceiling = axes.lines
  np.testing.assert_allclose(dots.get_xydata(), [[30, 0], [32, 0], [38, 1], [40, 1], [50, 3], [52, 3]])
  assert [line.get_xdata()[0] for line in (baseline, ceiling)] == pytest.approx([31, 51])
  assert baseline.get_linestyle() != ceiling.get_linestyle()
  (legend,) = figure.legends
  assert [text.get_text() for text in legend.get_texts()] == ["a seed", "source only", "oracle", "mean"]
  picture = Image.open(io.BytesIO((tmp_path / "ladder/ladder.png").read_bytes()))
  assert picture.width == 930


def test_runs_without_a_score_have_a_table_too(runs, flags, tmp_path):
  assert ladder.main([*flags, "--only=MLSL"]) == 0
  path = tmp_path / "ladder/seed_0/mlsl/results.json"
  results = json.loads(path.read_text())
  results["final"]["miou"] = None
  files.write_json(path, results)
  assert ladder.main([*flags, "--table"]) == 0
  assert json.loads((tmp_path / "ladder/ladder.json").read_text())["variants"]["MLSL"]["mean"] is None


# --- what a user can mend ---


@pytest.mark.parametrize(("text", "said"), [
  ("x = 1", "needs get_variants()"), ("def get_variants():\n  return {}", "needs get_variants()"),
  ("def get_variants():\n  return {'a': 3}", "needs get_variants()"),
  ("def get_variants():\n  return 1 / 0", "ZeroDivisionError: division by zero"),
  ("def get_variants(:", "variants.py: SyntaxError"),
  ("def get_variants():\n  return {'A+': {}, 'a': {}}", "'A+' and 'a' would share the folder a"),
  ("def get_variants():\n  return {'+': {}}", "'+' makes no folder's name"),
  ("def get_variants():\n  return {'a': {}}\nBASELINE = 'b'", "BASELINE is 'b'; choose one of a"),
  ("def get_variants():\n  return {'a': {}}\nCEILING = 'b'", "CEILING is 'b'; choose one of a"),
  ("def get_variants():\n  return {'a': {}, 'b': {'sisc.patchs': 3}}", "variant 'b': --config.sisc.patchs: there is no"),
  ("def get_variants():\n  return {'a': {}, 'b': {'sisc.size': 3}}", "variant 'b': --config.sisc.size: '3' will not do"),
  ("def get_variants():\n  return {'a': {}, 'b': {'config': 'no.py'}}", "variant 'b': --config: there is no file no.py"),
  ("def get_variants():\n  return {'a': {}, 'b': {'seed': 3}}", "variant 'b': --config.seed: --seeds sets it"),
  ("def get_variants():\n  return {'a': {}, 'b': {'mode': 'none'}}", "variant 'b': config.mode is 'none'"),
  ("def get_variants():\n  return {'a': {}, 'b': {'method': 'none'}}", "variant 'b': config.method: there is no"),
])  # fmt: skip
def test_variants_that_will_not_do_are_refused_before_anything_is_run(runs, flags, tmp_path, capsys, text, said):
  write_file(tmp_path, text)
  assert said in failure(capsys, *flags)
  assert not runs and not (tmp_path / "ladder").exists()


@pytest.mark.parametrize(("flag", "said"), [
  ("--seeds=0,x", "--seeds: '0,x' will not do"), ("--seeds=-1", "--seeds: '-1'"), ("--seeds=1.5", "--seeds: '1.5'"),
  ("--seeds=", "--seeds: ''"), ("--only=MLSL,CBSD", "there is no variant 'CBSD'; choose from source only, CBST"),
  ("--variants=no.py", "--variants: there is no file no.py"), ("--config=no.py", "--config: there is no file no.py"),
  ("--config.seed=3", "--seeds sets it"), ("--config.sisc.patchs=3", "did you mean sisc.patches?"),
])  # fmt: skip
def test_flags_that_will_not_do(runs, flags, tmp_path, capsys, flag, said):
  assert said in failure(capsys, *flags, flag)
  assert not runs and not (tmp_path / "ladder").exists()


def test_a_changed_config_is_refused_before_anything_is_run(runs, flags, capsys):
  assert ladder.main([*flags, "--only=oracle"]) == 0
  for also in ([], ["--table"], ["--only=MLSL"]):
    line = failure(capsys, *flags, *also, "--config.labels.portion=0.4")
    assert "seed_0/oracle holds a run of another config (labels.portion: 0.2 -> 0.4)" in line
  assert len(runs) == 1


def test_help(capsys):
  with pytest.raises(SystemExit) as end:
    ladder.main(["--help"])
  shown = capsys.readouterr().out
  assert end.value.code == 0
  for part in ("get_variants", "BASELINE, CEILING", "--only NAME,NAME", "--table", "--seeds 0,1"):
    assert part in shown


# --- in earnest ---


def test_a_ladder_in_earnest(tmp_path, capsys):
  """The second time nothing is left to do, though it has been moved."""
  (tmp_path / "tiny.py").write_text(
    "from tests.tiny import tiny\n\ndef get_config():\n  config = tiny('self_training')\n"
    "  config.rounds.statistics_steps = 0\n  return config\n"
  )
  file = write_file(tmp_path, """
def get_variants():
  return {"source": {"rounds.num": 0}, "longer": {"mode": "source_only", "rounds.paired": False}}
""")
  flags = [f"--config={tmp_path}/tiny.py", f"--variants={file}", "--config.pictures=0"]
  assert ladder.main([*flags, f"--workdir={tmp_path}/ladder"]) == 0
  root = tmp_path / "ladder/seed_0"
  source, longer = (json.loads((root / name / "results.json").read_text()) for name in ("source", "longer"))
  assert source["config"]["start_from"] == "" and longer["config"]["start_from"] == str(root / "source")
  assert longer["stages"][0]["iou"] == source["final"]["iou"]
  assert {record["stage"] for record in files.MetricsLog(root / "longer/metrics.jsonl").read()} == {"round_1"}
  summary = json.loads((tmp_path / "ladder/ladder.json").read_text())
  for name, results in (("source", source), ("longer", longer)):
    entry = summary["variants"][name]["seeds"]["0"]
    assert entry["final"] == summary["variants"][name]["mean"] == results["final"]["miou"]
    assert entry["source"] == source["final"]["miou"] and len(entry["iou"]) == 19
  before = {path.relative_to(tmp_path / "ladder"): path.read_bytes() for path in files_in(tmp_path / "ladder")}
  (tmp_path / "ladder").rename(tmp_path / "moved")
  assert ladder.main([*flags, f"--workdir={tmp_path}/moved"]) == 0
  assert before == {path.relative_to(tmp_path / "moved"): path.read_bytes() for path in files_in(tmp_path / "moved")}
  assert capsys.readouterr().out.count("seed 0 · longer (2 of 2)") == 1
