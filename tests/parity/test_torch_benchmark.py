"""The PyTorch side of the benchmark does the work that ours does: equal weights, losses, gradients and updates."""

import contextlib
import json

import jax
import numpy as np
import pytest

from jax_uda import check, parallel
from jax_uda.benchmark import __main__ as command
from jax_uda.benchmark import race
from jax_uda.benchmark.parts import Racer, works
from jax_uda.errors import UserError
from tests.test_benchmark import known
from tests.tiny import tiny

FROZEN = {
  "rounds.batch_norm": "frozen",
  "rounds.statistics_steps": 0,
  "rounds.paired": False,
  "optimizer.bias_multiplier": 2.0,
}


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  monkeypatch.setattr(parallel, "num_devices", lambda: 1)
  monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])


def settings(method):
  """Wide enough for batch statistics that are no accident."""
  config = known(tiny(method))
  config.augmentation.crop = (64, 96)
  if method == "adversarial":
    config.adversarial.target_crop = (64, 64)
  if method == "curriculum":
    config.network.decoder_norm = False
  return config


@contextlib.contextmanager
def handed_over(method, title, folder, **fields):
  config, sizes = race.comparable(settings(method))
  config.update_from_flattened_dict(fields)
  experiment = check.planned(config)[0]
  (work,) = [work for work in works(experiment, sizes) if work.title == title]
  race.hand_over(folder, experiment.config, work)
  yield work


@pytest.mark.parametrize(
  ("method", "title", "fields"),
  [
    ("mlsl", "round_1, train", FROZEN),
    ("curriculum", "epoch_1, target", {"network.decoder_norm": True}),
    ("adversarial", "adversarial, adversarial", {}),
  ],
)
def test_both_sides_do_the_same(method, title, fields, tmp_path):
  with handed_over(method, title, tmp_path, **fields) as work, race.TorchRacer(str(tmp_path)) as theirs:
    ours = Racer(work)
    found = race.same_work(work, ours, theirs)
  (first, second), norms = found["metrics"], [metrics["gradient_norm"] for metrics in found["metrics"]]
  assert found["parameters"] > 1000 and found["layer_flop"] > 1e6
  assert first["loss"][0] != second["loss"][0] and norms[0] != norms[1]  # the update is felt


def test_other_weights_are_found_out(tmp_path):
  with handed_over("self_training", "source, train", tmp_path) as work:
    arrays = dict(np.load(tmp_path / "arrays.npz"))
    mixed_up = "weights/segmenter.backbone.layer2_0.conv1.weight"
    arrays[mixed_up] = arrays[mixed_up][:, ::-1]
    np.savez(tmp_path / "arrays.npz", **arrays)
    with race.TorchRacer(str(tmp_path)) as theirs, pytest.raises(UserError, match="comes to another"):
      race.same_work(work, Racer(work), theirs)


def test_a_side_that_ends_is_told(tmp_path, capfd):
  (tmp_path / "job.json").write_text(json.dumps({"config": {"network": {"dtype": "float32"}}}))
  with race.TorchRacer(str(tmp_path)) as theirs, pytest.raises(UserError, match="has ended"):
    theirs.ask("step")
  assert "arrays.npz" in capfd.readouterr().err


def test_a_race(monkeypatch):
  monkeypatch.setattr(race, "TURNS", 2)
  config = settings("self_training")
  config.rounds.num = 0
  (record,) = command.measure(config, command.PARTS, "torch", 2)["records"]
  theirs = record["torch"]
  assert theirs["way"] in ("eager", "torch.compile") and theirs["images"] == record["images"] and theirs["passes"] == 2
  ratio = theirs["seconds"]["median"] / record["seconds"]["median"]
  assert record["ratio"] == pytest.approx(ratio) and record["ratio"] > 0
