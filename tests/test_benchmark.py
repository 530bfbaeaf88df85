import json

import numpy as np
import pytest

from jax_uda import check
from jax_uda.benchmark import __main__ as command
from jax_uda.benchmark import parts, race, selection
from jax_uda.errors import UserError
from tests.tiny import tiny


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
  """All parts of self-training, with a step of its own for each of the three kinds of stage."""
  config = tiny("self_training")
  config.rounds.statistics_steps = 2
  return command.measure(config, command.PARTS, None, 2, str(tmp_path_factory.getbasetemp() / "profile"))


def of_part(report, part):
  return {record["title"]: record for record in report["records"] if record["part"] == part}


def test_every_kind_of_step_is_timed_once(measured):
  steps = of_part(measured, "train")
  assert list(steps) == ["source, train", "statistics, statistics", "round_1, train"]
  for record in steps.values():
    low, high = record["seconds"]["quartiles"]
    assert 0 < low <= record["seconds"]["median"] <= high
    assert record["images_per_second"] == pytest.approx(record["images"] / record["seconds"]["median"])
    assert record["flop"] > 0 and 0 < record["ceiling_share"] < 1 and record["bytes"] > 1000
    assert record["trace_seconds"] > 0 and record["compile_seconds"] > 0
  assert steps["source, train"]["flop"] > steps["statistics, statistics"]["flop"]  # which has no backward pass


def test_every_kind_of_step_is_traced(measured, tmp_path_factory):
  traces = (tmp_path_factory.getbasetemp() / "profile").glob("*/**/*.trace.json.gz")
  assert {path.relative_to(tmp_path_factory.getbasetemp()).parts[1] for path in traces} == {
    "source_train", "statistics_statistics", "round_1_train",
  }  # fmt: skip


def test_labels_scores_and_reading_are_timed(measured):
  assert list(of_part(measured, "labels")) == ["network", "fold pools", "selection"]
  assert of_part(measured, "scores")["whole images"]["images"] == parts.BATCHES * 4  # devices
  alone, fed = of_part(measured, "reading").values()
  assert alone["images_per_second"] > 0 and 0 <= fed["waiting"] < 1


def test_the_table_has_a_row_for_each(measured):
  lines = command.table([measured | {"command": "python -m jax_uda.benchmark --config x.py"}]).splitlines()
  rows = [line for line in lines if line.startswith("| 1 |")]
  assert len(rows) == len(measured["records"]) and len({line.count("|") for line in lines if "|" in line}) == 1
  assert "1. `python -m jax_uda.benchmark --config x.py`" in lines


def test_figures():
  found = parts.figures([4.0, 1.0, 2.0, 3.0, 100.0], images=6)
  assert found["seconds"] == {"median": 3.0, "quartiles": [2.0, 4.0]} and found["images_per_second"] == 2.0


def test_operations_are_counted_layer_by_layer():
  config, sizes = race.comparable(tiny("self_training"))
  config.network.update({"backbone": "resnet38", "width": 1 / 64, "num_stages": 4})
  work = next(parts.works(check.planned(config)[0], sizes))
  network = work.state.networks["segmenter"].params
  (height, width), batch = work.sizes["train"], len(work.batches["train"]["draw"])
  strides = {"conv1a": 1, "block2a": 2, "block2b1": 2, "block2b2": 2, "block3a": 4, "block3b1": 4, "block3b2": 4}

  def positions(stride):
    return batch * -(-height // stride) * -(-width // stride)

  def flop(part, stride):
    if "kernel" in part:
      return 2 * part["kernel"].size * positions(stride)
    return sum(flop(inner, stride) for inner in part.values() if isinstance(inner, dict))

  expected = sum(flop(part, strides.get(name, 8)) for name, part in network["backbone"].items()) + flop(network["head"], 8)
  assert race.layer_flop(work) == expected


def known(config):
  """With what the PyTorch side knows."""
  there = dict(config.iteritems(preserve_field_references=False))
  for name, value in race.KNOWN.items():
    part, _, field = name.rpartition(".")
    if field in (there.get(part, {}) if part else there):
      config.update_from_flattened_dict({name: value})
  return config


@pytest.mark.parametrize(
  ("method", "field", "value"),
  [
    ("self_training", "loss_at", "stride"),
    ("mlsl", "rounds.hard_below", 0.6),
    ("curriculum", "curriculum.vote_dropout", 0.5),
    ("adversarial", "adversarial.loss", "minimax"),
    ("self_training", "network.backbone", "fcn8s_vgg16"),
  ],
)
def test_what_pytorch_does_not_know_is_refused(method, field, value):
  config = known(tiny(method))
  config.update_from_flattened_dict({field: value})
  with pytest.raises(UserError, match=f"config.{field} is .?{value}"):
    race.comparable(config)


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    ([], "--config"),
    (["--config", "configs/demo.py", "--parts", "train,lunch"], "'lunch'"),
    (["--config", "configs/demo.py", "--steps", "0"], "--steps"),
    (["--config", "configs/demo.py", "--steps", "many"], "--steps"),
    (["--config", "configs/demo.py", "--profile", "x", "--against", "torch"], "--against"),
    (["--show", "nothing.json"], "nothing.json"),
  ],
)
def test_wrong_flags_are_one_line(flags, said, capsys):
  try:
    status = command.main(flags)
  except SystemExit as ended:
    status = ended.code
  error = capsys.readouterr().err
  assert status == 2 and said in error and error.count("\n") == 1


def test_shows_what_was_written(measured, tmp_path, capsys):
  from jax_uda import files

  for name in ("a", "b"):
    files.write_json(tmp_path / f"{name}.json", measured | {"command": f"python -m jax_uda.benchmark --config {name}.py"})
  assert command.main(["--show", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
  shown = capsys.readouterr().out
  assert "1. `python -m jax_uda.benchmark --config a.py`\n2. " in shown and shown.count("| train: source, train |") == 2


# Selection


@pytest.fixture
def small(monkeypatch):
  monkeypatch.setattr(selection, "SIZE", (40, 64))


def test_both_ways_of_selection_find_the_same(small):
  ours, published = (selection.measure(side, 5) for side in selection.SIDES)
  np.testing.assert_allclose(ours["thresholds"], published["thresholds"], rtol=2**-9)
  assert ours["selected"] == pytest.approx(published["selected"], rel=0.01)
  assert 0.15 < published["selected"] / (5 * 40 * 64) < 0.35  # p/t lets some more through than a portion of 0.2
  for found in (ours, published):
    assert all(seconds > 0 for seconds in found["seconds"].values()) and found["bytes"] >= 0


def test_the_published_way_is_what_the_exact_thresholds_are(small):
  from jax_uda import pseudo_labels

  maps = [selection.probabilities(seed) for seed in range(3)]
  method = selection.Published()
  for one in maps:
    method.add(method.prepared(one))
  exact = pseudo_labels.exact_class_balanced_thresholds(np.stack(maps), selection.PORTION)
  np.testing.assert_array_equal(method.thresholds(), exact)
  labels = method.select(method.prepared(maps[0]), exact)
  assert (labels == np.asarray(pseudo_labels.select(maps[0], exact))).mean() > 0.9999


def test_selection_in_processes_of_their_own(tmp_path, capfd):
  assert selection.main(["--images", "1", "--json", str(tmp_path / "selection.json")]) == 0
  assert "| 1 | " in capfd.readouterr().out
  (row,) = json.loads((tmp_path / "selection.json").read_text())["rows"]
  assert row["ratio"] > 0 and row["num"] == 1


@pytest.mark.parametrize("images", ["0", "ten", "1,,2"])
def test_wrong_numbers_of_images(images, capsys):
  with pytest.raises(SystemExit):
    selection.main(["--images", images])
  assert "--images" in capsys.readouterr().err
