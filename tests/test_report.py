"""The report."""

import base64
import html
import io
import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jax_uda import charts, files, page, pictures, report
from jax_uda.config import default_fields
from jax_uda.data.label_spaces import LabelSpace, colorize
from jax_uda.files import plain
from jax_uda.results import PseudoLabelCounts, stage_result

SPACE = LabelSpace("tiny", ("road", "sky & <air>", "car"), ((128, 64, 128), (70, 130, 180), (0, 0, 142)))
CONFUSION = np.array([[6, 2, 0], [0, 4, 0], [0, 0, 0]])  # no car, neither true nor predicted


def record(stage_index, step, **values):
  return {"stage": ("source", "round_1", "round_2")[stage_index], "stage_index": stage_index, "step": step, **values}


def write_png(path, array):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(array).save(path)


@pytest.fixture
def workdir(tmp_path):
  """A small finished run of self-training over two rounds."""
  rng = np.random.default_rng(0)
  names = ["source", "round_1", "round_2"]
  files.write_classes(tmp_path, SPACE)
  config = {"method": "self_training", "weights": "https://example.org/w", "note": "<script>"}
  files.write_json(tmp_path / "config.json", config)
  counts = PseudoLabelCounts(np.array([60, 30, 0]), 200, CONFUSION)
  results = [
    stage_result(name, 40, 3700.0, CONFUSION + i * np.diag([5, 1, 0]), SPACE.classes, {"": counts} if i else None)
    for i, name in enumerate(names)
  ]
  results[-1]["other_protocols"] = {"two classes": {"miou": 0.625}}
  files.write_json(
    tmp_path / "results.json",
    {"method": "self_training", "protocol": "tiny", "seconds": 11100, "stages": results, "final": results[-1]},
  )
  log = files.MetricsLog(tmp_path / "metrics.jsonl")
  for i, name in enumerate(names):
    for step in range(1, 41):
      loss = None if step == 7 else 3 / step
      log.append({"stage": name, "stage_index": i, "step": step, "loss": loss, "adversarial_loss": 0.01 * step})
  for name in ("frame_1", "town/frame.2"):
    write_png(tmp_path / f"pictures/image/{name}.png", rng.integers(0, 256, (20, 40, 3), np.uint8))
    for folder in ("pictures/truth", *(f"pictures/{stage}" for stage in names), "pseudo_labels/round_2"):
      labels = rng.choice(np.array([0, 1, 2, 255], np.uint8), (20, 40))
      write_png(tmp_path / folder / f"{name}.png", labels)
  files.write_json(tmp_path / "scores/round_2.json", {"classes": SPACE.classes, "confusion": CONFUSION})
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
  assert not re.search(r'<(script|iframe|object)\b|@import|url\(|(src|href) *=(?!"data:)', page)


def test_report_is_one_file_with_everything_in_it(workdir):
  path = report.write_report(workdir)
  assert path.name == "report.html" and not list(workdir.glob(".*"))
  page = path.read_text(encoding="utf-8")
  assert_stands_alone(page)
  assert 'name="viewport"' in page and "max-width: 100%" in page
  found = figures(page)
  assert all(alt for _, alt, _ in found)
  row = ["image", "truth", "prediction after source", "pseudo-labels of round_2", "prediction after round_2"]
  assert [caption for caption, _, _ in found] == [
    "Scores by stage",
    "IoU by class",
    "Pseudo-labels: share of each class among the selected pixels, in %",
    "Pseudo-labels: share that is right, in %",
    "Training loss",
    "Confusion after round_2: where the pixels of each class went, in %",
    *row,
    *row,
    "spatial prior of road",
  ]
  legend = re.search(r'<ul class="legend">(.*?)</ul>', page)[1]
  for name, color in zip(SPACE.classes, SPACE.colors, strict=True):
    assert f"#{bytes(color).hex()}" in legend and html.escape(name) in legend
  assert "&lt;script&gt;" in page and "3 h 5 min" in page and "62.5" in page


def test_report_says_what_ran_where_and_what_was_set(workdir):
  path = workdir / "config.json"
  config = plain(default_fields("self_training")) | {"seed": 7}
  for role, spec in (("source", {"kind": "folder", "dir": "renders"}), ("target", {"kind": "camvid", "list": "dusk.txt"})):
    config[role] = config[role] | spec
  files.write_json(path, config)
  results = files.read_json(workdir / "results.json")
  for stage in results["stages"]:
    stage["device"] = "8 × TPU v9"
  files.write_json(workdir / "results.json", results)
  with (workdir / "metrics.jsonl").open("a") as log:
    for seconds, rate in ((3.0, 10.0), (1.0, 50.0)):
      log.write(json.dumps(record(2, 40, seconds=seconds, images_per_second=rate)) + "\n")
  page = report.write_report(workdir).read_text(encoding="utf-8")
  facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page))
  assert facts["source"] == "folder renders" and facts["target"] == "camvid dusk.txt" and "test" not in facts
  assert facts["device"] == "8 × TPU v9" and facts["training"] == "20 images/s" and "mode" not in facts
  rows = re.findall(r'<td>(.*?)</td>' * 3, page)
  assert ("seed", "0", "7") in rows and ("source.dir", "&quot;&quot;", "renders") in rows
  assert not [row for row in rows if row[0] == "rounds.num"]
  assert re.search(r"<td>round_2</td><td>40</td><td>1 h 1 min 40 s</td><td>20 images/s</td>".replace(" 40 s", ""), page)


def test_rows_are_those_of_the_best_the_median_and_the_worst_change(workdir):
  names = [f"frame_{i}" for i in range(5)]
  assert report.chosen_rows(names, [None] * 5) == [(name, name) for name in names[:3]]
  chosen = report.chosen_rows(names, [0.1, -0.2, 0.3, None, 0.0])
  assert [name for name, _ in chosen] == ["frame_2", "frame_4", "frame_1"]
  assert [words.split(",")[0] for _, words in chosen] == [f"{which} change of 4" for which in ("best", "median", "worst")]
  assert "+30.0 points" in chosen[0][1] and "-20.0 points" in chosen[2][1]
  assert [words[:5] for _, words in report.chosen_rows(names[:2], [0.1, 0.2])] == ["best ", "worst"]
  assert report.chosen_rows(names[:1], [0.1])[0][1].startswith("best change of 1") and report.chosen_rows([], []) == []
  truth = np.zeros((20, 40), np.uint8)
  truth[:, 20:] = 1
  for i in range(4):  # of frame_3 the first prediction is right everywhere, the last one is half; frame_0 the other way
    for folder, wrong in (("pictures/truth", 0), ("pictures/source", 20 - 6 * i), ("pictures/round_2", 6 * i)):
      prediction = np.where(np.arange(40) < wrong, 2, truth).astype(np.uint8)
      write_png(workdir / folder / f"frame_{i}.png", prediction)
    write_png(workdir / f"pictures/image/frame_{i}.png", np.zeros((20, 40, 3), np.uint8))
  (workdir / "pictures/image/town/frame.2.png").unlink()
  page = report.write_report(workdir).read_text(encoding="utf-8")
  titles = re.findall(r"<h3>(.*?)</h3>", page)
  assert [title.rpartition(" ")[2] for title in titles] == ["frame_0", "frame_2", "frame_3", "frame_1"]
  assert "the other 1 images" in page and titles[0].startswith("best") and titles[2].startswith("worst")
  assert report.image_miou(workdir, "source", "frame_1", 3) == pytest.approx((6 / 20 + 1 + 0) / 3)
  assert report.image_miou(workdir, "source", "nowhere", 3) is None


def test_confusion_is_of_the_largest_classes(workdir):
  confusion = np.diag(np.arange(40)) + np.eye(40, k=1, dtype=int)
  chart = charts.of_confusion(confusion, [f"class {i}" for i in range(40)], "source")
  assert "of the 24 largest of 40 classes" in chart.title and "class 38 97.4" in chart.alt and "class 3 " not in chart.alt
  small = charts.of_confusion(CONFUSION, SPACE.classes, "source")
  assert small.alt.endswith("road 75.0; sky &amp; <air> 100.0".replace("&amp;", "&")) and "largest" not in small.title
  assert charts.of_confusion(np.zeros((3, 3), int), SPACE.classes, "source") is None


def test_report_draws_labels_in_their_colours(workdir):
  found = figures(report.write_report(workdir).read_text(encoding="utf-8"))
  drawn = next(picture for _, alt, picture in found if alt == "truth, frame_1")
  labels = np.asarray(Image.open(workdir / "pictures/truth/frame_1.png"))
  np.testing.assert_array_equal(np.asarray(drawn), colorize(labels, SPACE))


def test_report_shrinks_large_pictures_and_mixes_no_train_ids(workdir):
  labels = np.zeros((600, 1300), np.uint8)
  labels[:, 650:] = 2
  write_png(workdir / "pictures/truth/frame_1.png", labels)
  found = figures(report.write_report(workdir).read_text(encoding="utf-8"))
  drawn = next(picture for _, alt, picture in found if alt == "truth, frame_1")
  assert drawn.width == page.PICTURE_WIDTH
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
    (["config.json"], {"<details>", "otherwise than by default"}, 17),
    (["metrics.jsonl"], {"Training loss", "images/s"}, 16),
    (["results.json"], {"Scores by stage", "Pseudo-labels", "prediction after", "Confusion"}, 6),
    (["scores/round_2.json"], {"Confusion"}, 16),
    (["pictures/truth/frame_1.png", "pictures/truth/town/frame.2.png"], {">truth<", "points of mIoU"}, 15),
    (["pictures/image/frame_1.png", "pictures/image/town/frame.2.png"], {"Pictures", "legend\""}, 7),
    (["pseudo_labels/round_2/frame_1.png"], set(), 16),
    (["pictures/extra/spatial_prior_of_road.png"], {"spatial prior", "More drawings"}, 16),
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
  stage = stage_result("source", 40, 9.0, None, SPACE.classes)
  files.write_json(workdir / "results.json", {"method": "source_only", "seconds": 9, "stages": [stage]})
  captions = [caption for caption, _, _ in figures(report.write_report(workdir).read_text(encoding="utf-8"))]
  assert captions[:4] == ["Training loss", "image", "truth", "prediction after source"]
  scored = stage_result("source", 40, 9.0, CONFUSION, SPACE.classes)
  files.write_json(workdir / "results.json", {"method": "source_only", "seconds": 9, "stages": [scored]})
  page = report.write_report(workdir).read_text(encoding="utf-8")
  captions = [caption for caption, _, _ in figures(page)]
  assert captions[:2] == ["IoU by class", "Training loss"] and "gain" not in page
  with (workdir / "metrics.jsonl").open("a") as log:
    log.write(json.dumps(record(2, 41, gradient_norm=3.0, entropy_of_targets=0.5, by_class=[1, 2])) + "\n")
  captions = [caption for caption, _, _ in figures(report.write_report(workdir).read_text(encoding="utf-8"))]
  assert captions[2] == "Entropy of targets" and not [one for one in captions if "norm" in one or "by_" in one]


def test_report_takes_pseudo_labels_without_classes_or_truth(workdir):
  results = files.read_json(workdir / "results.json")
  for stage in results["stages"][1:]:
    stage["pseudo_labels"] = {"selected": 0.25, "accuracy": None}
  files.write_json(workdir / "results.json", results)
  captions = [caption for caption, _, _ in figures(report.write_report(workdir).read_text(encoding="utf-8"))]
  assert sum(caption.startswith("Pseudo-labels") for caption in captions) == 1


def test_report_with_only_classes(tmp_path):
  files.write_classes(tmp_path, SPACE)
  assert figures(report.write_report(tmp_path).read_text(encoding="utf-8")) == []


def test_command_line(workdir, tmp_path, capsys):
  assert report.main([str(workdir)]) == 0
  assert capsys.readouterr().out.strip() == str(workdir / "report.html")
  (workdir / "pictures/source/frame_1.png").write_bytes(b"no picture")
  assert report.main([str(workdir)]) == 2
  assert re.fullmatch(r"error: .*frame_1\.png.*\n", capsys.readouterr().err)
  assert report.main([str(tmp_path / "nowhere")]) == 2
  assert re.fullmatch(r"error: .*classes\.json.*\n", capsys.readouterr().err)
