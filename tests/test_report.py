"""What a run tells people: the log, results.json, the terminal, and the report."""

import base64
import html
import io
import json
import re
import time

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jax_uda import pictures, report
from jax_uda.data.label_spaces import CITYSCAPES19, LabelSpace, colorize
from jax_uda.errors import UserError

SPACE = LabelSpace("tiny", ("road", "sky & <air>", "car"), ((128, 64, 128), (70, 130, 180), (0, 0, 142)))


def record(stage_index, step, **values):
  return {"stage": ("source", "round_1")[stage_index], "stage_index": stage_index, "step": step, **values}


# --- metrics.jsonl ---


@pytest.fixture
def log(tmp_path):
  log = report.MetricsLog(tmp_path / "run" / "metrics.jsonl")
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
  missing = report.MetricsLog(tmp_path / "none.jsonl")
  missing.truncate(0, 0)
  assert missing.read() == [] and not missing.path.exists()


# --- JSON ---


def test_json_round_trip(tmp_path):
  path = tmp_path / "deep" / "file.json"
  value = {
    "nan": float("nan"), "inf": np.inf, "count": np.int64(3), "flag": np.bool_(True), "name": "größe", "none": None,
    "matrix": np.array([[1.5, np.nan], [0, 2]]), "device": jnp.arange(2), "half": jnp.bfloat16(0.5), "pair": (1, "a"),
    4: {},
  }  # fmt: skip
  report.write_json(path, value)
  assert report.read_json(path) == {
    "nan": None, "inf": None, "count": 3, "flag": True, "name": "größe", "none": None,
    "matrix": [[1.5, None], [0, 2]], "device": [0, 1], "half": 0.5, "pair": [1, "a"], "4": {},
  }  # fmt: skip
  assert "NaN" not in path.read_text()


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
  path = tmp_path / "file.json"
  report.write_json(path, [1])
  with pytest.raises(TypeError):
    report.write_json(path, object())
  assert report.read_json(path) == [1] and [file.name for file in tmp_path.iterdir()] == ["file.json"]


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe"])
def test_broken_json_names_the_file(tmp_path, content):
  (tmp_path / "broken.json").write_bytes(content)
  with pytest.raises(UserError, match=r"broken\.json") as error:
    report.read_json(tmp_path / "broken.json")
  assert "\n" not in str(error.value)
  with pytest.raises(UserError, match=r"missing\.json"):
    report.read_json(tmp_path / "missing.json")


def test_npz_round_trip(tmp_path):
  arrays = {"prior": np.eye(3, dtype=np.float32), "counts": np.arange(4)}
  report.write_npz(tmp_path / "found.npz", arrays)
  found = report.read_npz(tmp_path / "found.npz")
  assert found.keys() == arrays.keys()
  for name, array in arrays.items():
    np.testing.assert_array_equal(found[name], array, strict=True)


def test_classes_round_trip(tmp_path):
  report.write_classes(tmp_path, CITYSCAPES19)
  assert report.read_classes(tmp_path) == CITYSCAPES19
  assert report.read_json(tmp_path / "classes.json").keys() == {"name", "classes", "colors"}
  report.write_json(tmp_path / "classes.json", {"name": "x"})
  with pytest.raises(UserError, match=r"classes\.json"):
    report.read_classes(tmp_path)


# --- results ---

CONFUSION = np.array([[6, 2, 0], [0, 4, 0], [0, 0, 0]])  # no car, neither true nor predicted


def test_stage_result():
  result = report.stage_result("round_1", np.int64(50), 1.5, CONFUSION, SPACE.classes)
  assert json.loads(json.dumps(result, allow_nan=False)) == {
    "name": "round_1",
    "steps": 50,
    "seconds": 1.5,
    "miou": pytest.approx((6 / 8 + 4 / 6) / 2),
    "pixel_accuracy": pytest.approx(10 / 12),
    "iou": {"road": pytest.approx(6 / 8), "sky & <air>": pytest.approx(4 / 6), "car": None},
    "other_protocols": {},
    "pseudo_labels": None,
  }


def test_stage_result_of_pseudo_labels():
  # Ten of the selected pixels have a truth; of those labelled sky (column 1) 3 of 4 are right.
  truth = np.array([[6, 1, 0], [0, 3, 0], [0, 0, 0]])
  counts = report.PseudoLabelCounts(selected=np.array([8, 12, 0]), pixels=100, confusion=truth)
  found = {
    "selected": 0.2,
    "accuracy": 0.9,
    "by_class": {
      "road": {"selected": 0.4, "accuracy": 1.0},
      "sky & <air>": {"selected": 0.6, "accuracy": 0.75},
      "car": {"selected": 0.0, "accuracy": None},
    },
  }
  for others in ({}, {"labels by lot": counts}):
    result = report.stage_result("a", 1, 1.0, None, SPACE.classes, {"": counts, **others})
    assert result["pseudo_labels"] == {**found, "others": dict.fromkeys(others, found)}


def test_stage_result_without_any_labels():
  counts = report.PseudoLabelCounts(selected=np.zeros(3, np.int64), pixels=100)
  result = report.stage_result("a", 1, 1.0, None, SPACE.classes, {"": counts})
  assert result["miou"] is None and result["pixel_accuracy"] is None
  assert set(result["iou"]) == set(SPACE.classes) and set(result["iou"].values()) == {None}
  assert result["pseudo_labels"]["selected"] == 0 and result["pseudo_labels"]["accuracy"] is None
  assert result["pseudo_labels"]["by_class"]["road"] == {"selected": None, "accuracy": None}


# --- terminal ---


def test_iou_table():
  stages = [report.stage_result(name, 1, 1.0, CONFUSION, SPACE.classes) for name in ("source", "round_1")]
  assert report.iou_table(stages).splitlines() == [
    "IoU in %        source  round_1",
    "───────────────────────────────",
    "road              75.0     75.0",
    "sky & <air>       66.7     66.7",
    "car                  –        –",
    "───────────────────────────────",
    "mIoU              70.8     70.8",
    "pixel accuracy    83.3     83.3",
  ]


def test_iou_table_fits_the_terminal():
  classes = ("a class whose name goes on and on and on", *CITYSCAPES19.classes)
  names = ["source", *(f"round_{i}" for i in range(1, 20)), "a stage whose name goes on and on"]
  stages = [report.stage_result(name, 1, 1.0, np.eye(20, dtype=int), classes) for name in names]
  lines = report.iou_table(stages).splitlines()
  assert max(map(len, lines)) <= 100 and len(lines) == 20 + 5
  head = lines[0].split()
  assert head[3:5] == ["source", "…"] and "round_19" in head and "round_1" not in head
  assert len(report.iou_table([]).splitlines()) == 5


@pytest.fixture
def clock(monkeypatch):
  """A clock that stands still until it is set."""
  now = [100.0]
  monkeypatch.setattr(report.time, "monotonic", lambda: now[0])
  return now


def test_progress_without_a_terminal_prints_lines_now_and_then(capsys, clock):
  with report.Progress("round_1 · training", 100, unit="images") as bar:
    for _ in range(50):
      clock[0] += 1
      bar.update(2, loss=jnp.float32(0.25))
  out, err = capsys.readouterr()
  lines = err.splitlines()
  assert out == "" and len(lines) == 5 + 1
  assert lines[0] == "round_1 · training: 20/100 images (20%) · 2.0 images/s · 00:40 left · loss 0.25"
  assert lines[-1] == "round_1 · training: 100/100 images (100%) · 2.0 images/s · took 00:50 · loss 0.25"


def test_progress_leaves_earlier_work_out_of_the_rate(capsys, clock):
  with report.Progress("training", 1000, initial=900, every=5) as bar:
    clock[0] += 5
    bar.update(50)
  first, last = capsys.readouterr().err.splitlines()
  assert first == "training: 950/1000 steps (95%) · 10.0 steps/s · 00:05 left"
  assert last == "training: 950/1000 steps (95%) · 10.0 steps/s · took 00:05"


def test_progress_touches_values_only_when_it_shows_them(capsys, clock):
  class Untouchable:
    def __float__(self):
      raise AssertionError("this would wait for the device")

  with report.Progress("training", 2) as bar:
    bar.update(1, loss=Untouchable())
    bar.update(1, loss=0.5)
  assert "loss 0.5" in capsys.readouterr().err


def test_progress_says_how_far_it_came_when_it_fails(capsys):
  with pytest.raises(KeyError), report.Progress("training", 10) as bar:
    bar.update(3)
    raise KeyError
  assert "3/10 steps (30%)" in capsys.readouterr().err
  with report.Progress("nothing to do", 0):
    pass
  assert "0/0" in capsys.readouterr().err


def test_progress_on_a_terminal_is_a_bar(monkeypatch):
  class Terminal(io.StringIO):
    def isatty(self):
      return True

  terminal = Terminal()
  monkeypatch.setattr("sys.stderr", terminal)
  with report.Progress("round_1 · training", 100, unit="images", initial=40) as bar:
    for _ in range(3):
      time.sleep(0.1)
      bar.update(20, loss=0.125)
  text = terminal.getvalue()
  assert "40/100" in text and "100/100" in text and "%|" in text
  assert "loss 0.125" in text and "images/s" in text
  rate = float(re.findall(r"([\d.]+) images/s", text)[-1])
  assert 20 < rate < 350  # 200 for what was done here; with the 40 done earlier it would look faster


# --- report.html ---


def write_png(path, array):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(array).save(path)


@pytest.fixture
def workdir(tmp_path):
  """A small finished run of self-training over two rounds."""
  rng = np.random.default_rng(0)
  names = ["source", "round_1", "round_2"]
  report.write_classes(tmp_path, SPACE)
  config = {"method": "self_training", "weights": "https://example.org/w", "note": "<script>"}
  report.write_json(tmp_path / "config.json", config)
  counts = report.PseudoLabelCounts(np.array([60, 30, 0]), 200, CONFUSION)
  results = [
    report.stage_result(name, 40, 3700.0, CONFUSION + i * np.diag([5, 1, 0]), SPACE.classes, {"": counts} if i else None)
    for i, name in enumerate(names)
  ]
  results[-1]["other_protocols"] = {"two classes": {"miou": 0.625}}
  report.write_json(
    tmp_path / "results.json",
    {"method": "self_training", "protocol": "tiny", "seconds": 11100, "stages": results, "final": results[-1]},
  )
  log = report.MetricsLog(tmp_path / "metrics.jsonl")
  for i, name in enumerate(names):
    for step in range(1, 41):
      loss = None if step == 7 else 3 / step
      log.append({"stage": name, "stage_index": i, "step": step, "loss": loss, "adversarial_loss": 0.01 * step})
  for name in ("frame_1", "town/frame.2"):
    write_png(tmp_path / f"pictures/image/{name}.png", rng.integers(0, 256, (20, 40, 3), np.uint8))
    for folder in ("pictures/truth", *(f"pictures/{stage}" for stage in names), "pseudo_labels/round_2"):
      labels = rng.choice(np.array([0, 1, 2, 255], np.uint8), (20, 40))
      write_png(tmp_path / folder / f"{name}.png", labels)
  write_png(tmp_path / "pictures/extra/spatial_prior_of_road.png", rng.integers(0, 256, (8, 8, 3), np.uint8))
  return tmp_path


def figures(page):
  """[(caption, alt, decoded picture)] of a report."""
  found = re.findall(r'<figcaption>(.*?)</figcaption><img alt="(.*?)" src="data:image/png;base64,(.*?)">', page)
  assert len(found) == page.count("<img")
  opened = [Image.open(io.BytesIO(base64.b64decode(data, validate=True))) for _, _, data in found]
  for picture in opened:
    picture.load()
  return [(caption, alt, picture) for (caption, alt, _), picture in zip(found, opened, strict=True)]


def assert_stands_alone(page):
  assert not re.search(r'<(script|link|iframe|object)\b|@import|url\(|(src|href) *=(?!"data:)', page)


def test_report_is_one_file_with_everything_in_it(workdir):
  path = report.write_report(workdir)
  assert path.name == "report.html" and not list(workdir.glob(".*"))
  page = path.read_text(encoding="utf-8")
  assert_stands_alone(page)
  assert 'name="viewport"' in page and "max-width: 100%" in page
  found = figures(page)
  assert all(alt for _, alt, _ in found)
  row = [
    "image",
    "truth",
    "prediction after source",
    "pseudo-labels of round_2",
    "prediction after round_2",
  ]
  assert [caption for caption, _, _ in found] == [
    "Scores by stage",
    "IoU by class",
    "Pseudo-labels: share of each class among the selected pixels, in %",
    "Pseudo-labels: share that is right, in %",
    "Training loss",
    *row,
    *row,
    "spatial prior of road",
  ]
  legend = re.search(r'<ul class="legend">(.*?)</ul>', page)[1]
  for name, color in zip(SPACE.classes, SPACE.colors, strict=True):
    assert f"#{bytes(color).hex()}" in legend and html.escape(name) in legend
  assert "&lt;script&gt;" in page and "3 h 5 min" in page and "62.5" in page


def test_report_draws_labels_in_their_colours(workdir):
  found = figures(report.write_report(workdir).read_text(encoding="utf-8"))
  drawn = next(picture for caption, _, picture in found if caption == "truth")
  labels = np.asarray(Image.open(workdir / "pictures/truth/frame_1.png"))
  np.testing.assert_array_equal(np.asarray(drawn), colorize(labels, SPACE))


def test_report_shrinks_large_pictures_and_mixes_no_train_ids(workdir):
  labels = np.zeros((600, 1300), np.uint8)
  labels[:, 650:] = 2
  write_png(workdir / "pictures/truth/frame_1.png", labels)
  found = figures(report.write_report(workdir).read_text(encoding="utf-8"))
  drawn = next(picture for caption, _, picture in found if caption == "truth")
  assert drawn.width == report.PICTURE_WIDTH
  assert {color for _, color in drawn.getcolors()} == {SPACE.colors[0], SPACE.colors[2]}


def test_report_shows_other_drawings_as_they_are_under_their_titles(workdir):
  drawn = np.random.default_rng(1).integers(0, 256, (30, 900, 3), np.uint8)
  pictures.write_png(workdir / "pictures/extra/prior_<road>.png", drawn[..., ::-1])
  page = report.write_report(workdir).read_text(encoding="utf-8")
  found = {caption: (alt, picture) for caption, alt, picture in figures(page)}
  alt, picture = found["prior &lt;road&gt;"]
  assert alt == "prior &lt;road&gt;"
  np.testing.assert_array_equal(np.asarray(picture), drawn)
  assert found["spatial prior of road"][0] == "spatial prior of road"


def hottest(picture):
  """Where a drawing is brightest, [n, 2], its white ground left out."""
  bright = (picture.min(-1) < 80) & (picture[..., 0] > 230)  # the yellow end of viridis
  return np.argwhere(bright)


def test_heat_maps_have_a_place_and_a_scale_for_each_class():
  values = np.zeros((8, 16, 6))
  values[2, 4, 0], values[5, 12, 1], values[5, 12, 5] = 1e-6, 1e3, 1
  values[0, 0, 0] = 0.5e-6
  names = ["road", "a class whose name goes on and on and on", "c", "d", "e", "f"]
  drawn = pictures.heat_maps(values, names)
  assert drawn.dtype == np.uint8 and drawn.ndim == 3 and drawn.shape[1:] == (930, 3)
  height = drawn.shape[0]
  columns = hottest(drawn)[:, 1] * 4 // 930
  assert set(columns) == {0, 1}
  first = hottest(drawn[: height // 2, :232])
  np.testing.assert_allclose(first.mean(0)[1] / 232, 4.5 / 16, atol=0.05)
  last = hottest(drawn[height // 2 :, 232:465])
  np.testing.assert_allclose(last.mean(0)[1] / 232, 12.5 / 16, atol=0.05)
  assert len(hottest(drawn[height // 2 :, :232])) == 0  # a class that is nowhere is dark
  dark = (drawn == [68, 1, 84]).all(-1)
  assert [dark[: height // 2, 232 * i : 232 * (i + 1)].mean() > 0.5 for i in range(4)] == [True] * 4
  assert (drawn[height // 2 :, 470:] == 255).all()  # there are six
  assert (drawn[:15] < 128).any()  # names
  np.testing.assert_array_equal(drawn, pictures.heat_maps(1e5 * values, names))


def test_heat_maps_get_lighter_as_values_rise_and_go_into_the_report(workdir):
  ramp = np.linspace(0, 1, 64)[None, :, None] * np.ones((32, 1, 1))
  drawn = pictures.heat_maps(jnp.asarray(ramp), ["ramp"])
  middle = drawn[drawn.shape[0] // 2, 20:-20] @ [0.2989, 0.587, 0.114]
  assert (np.diff(middle) > -1).all() and middle[-1] - middle[0] > 150
  with pytest.raises(ValueError):
    pictures.heat_maps(ramp, ["one", "too many"])
  pictures.write_png(workdir / "pictures/extra/spatial_prior.png", drawn[..., ::-1])
  captions = {caption: picture for caption, _, picture in figures(report.write_report(workdir).read_text("utf-8"))}
  np.testing.assert_array_equal(np.asarray(captions["spatial prior"]), drawn)


def test_report_is_the_same_each_time(workdir):
  assert report.write_report(workdir).read_bytes() == report.write_report(workdir).read_bytes()


@pytest.mark.parametrize(
  ("missing", "gone", "left"),
  [
    (["config.json"], {"<details>"}, 16),
    (["metrics.jsonl"], {"Training loss"}, 15),
    (["results.json"], {"Scores by stage", "Pseudo-labels", "prediction after", "<table>"}, 6),
    (["pictures/truth/frame_1.png", "pictures/truth/town/frame.2.png"], {">truth<"}, 14),
    (["pictures/image/frame_1.png", "pictures/image/town/frame.2.png"], {"Pictures", "legend\""}, 6),
    (["pseudo_labels/round_2/frame_1.png"], set(), 15),
    (["pictures/extra/spatial_prior_of_road.png"], {"spatial prior", "More drawings"}, 15),
  ],
)
def test_report_leaves_out_what_is_missing(workdir, missing, gone, left):
  for name in missing:
    (workdir / name).unlink()
  page = report.write_report(workdir).read_text(encoding="utf-8")
  assert_stands_alone(page)
  assert not [words for words in gone if words in page]
  assert len(figures(page)) == left


def test_report_of_one_stage_without_scores_or_pseudo_labels(workdir):
  stage = report.stage_result("source", 40, 9.0, None, SPACE.classes)
  report.write_json(workdir / "results.json", {"method": "source_only", "seconds": 9, "stages": [stage]})
  captions = [caption for caption, _, _ in figures(report.write_report(workdir).read_text(encoding="utf-8"))]
  assert captions[:4] == ["Training loss", "image", "truth", "prediction after source"]
  scored = report.stage_result("source", 40, 9.0, CONFUSION, SPACE.classes)
  report.write_json(workdir / "results.json", {"method": "source_only", "seconds": 9, "stages": [scored]})
  page = report.write_report(workdir).read_text(encoding="utf-8")
  captions = [caption for caption, _, _ in figures(page)]
  assert captions[:2] == ["IoU by class", "Training loss"] and "gain" not in page


def test_report_takes_pseudo_labels_without_classes_or_truth(workdir):
  results = report.read_json(workdir / "results.json")
  for stage in results["stages"][1:]:
    stage["pseudo_labels"] = {"selected": 0.25, "accuracy": None}
  report.write_json(workdir / "results.json", results)
  captions = [caption for caption, _, _ in figures(report.write_report(workdir).read_text(encoding="utf-8"))]
  assert sum(caption.startswith("Pseudo-labels") for caption in captions) == 1


def test_report_with_only_classes(tmp_path):
  report.write_classes(tmp_path, SPACE)
  assert figures(report.write_report(tmp_path).read_text(encoding="utf-8")) == []


def test_command_line(workdir, tmp_path, capsys):
  assert report.main([str(workdir)]) == 0
  assert capsys.readouterr().out.strip() == str(workdir / "report.html")
  (workdir / "pictures/source/frame_1.png").write_bytes(b"no picture")
  assert report.main([str(workdir)]) == 2
  assert re.fullmatch(r"error: .*frame_1\.png.*\n", capsys.readouterr().err)
  assert report.main([str(tmp_path / "nowhere")]) == 2
  assert re.fullmatch(r"error: .*classes\.json.*\n", capsys.readouterr().err)
