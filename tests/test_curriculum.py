"""The strategic curriculum: its schedules, which pixels count, what its loss is, and what it warns of."""

import functools
import json

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_uda import experiment, optimizers, parallel
from jax_uda import run as run_module
from jax_uda.data.label_spaces import CITYSCAPES19, IGNORE
from jax_uda.errors import UserError
from jax_uda.methods import curriculum
from tests.test_methods import SIZES, first_state, make_batch
from tests.tiny import tiny

EPOCHS = (0, 5, 10, 20)


@pytest.fixture(scope="module")
def config():
  return tiny("curriculum")


@pytest.fixture(scope="module")
def plan(config):
  return experiment.plan(config, CITYSCAPES19, {}, SIZES)


def changed(config, **fields):
  copy = config.copy_and_resolve_references()
  copy.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
  return copy


def planned(config):
  return experiment.plan(config, CITYSCAPES19, {}, SIZES).stages


# --- schedules ---


def test_gamma_and_the_share_dropped_over_the_epochs():
  np.testing.assert_allclose([curriculum.ramp(e, 0.9, 0.1, 10) for e in EPOCHS], [0.9, 0.5, 0.1, 0.1])
  np.testing.assert_allclose([curriculum.ramp(e, 0.0, 1.0, 10) for e in EPOCHS], [0, 0.5, 1, 1])
  on_device = jax.jit(lambda epoch: curriculum.ramp(epoch, 0.0, 1.0, 10.0))
  np.testing.assert_allclose([on_device(jnp.float32(e)) for e in EPOCHS], [0, 0.5, 1, 1])


def test_the_learning_rate_over_the_epochs(config):
  stages = planned(changed(config, curriculum__epochs=20, curriculum__epoch_steps=3, curriculum__score_after="5,10"))
  rates = {}
  for stage in stages[2:]:  # after `source` and `statistics`
    hyper = stage.begin(first_state(experiment.plan(config, CITYSCAPES19, {}, SIZES), stage), jax.random.key(0)).hyper
    for step in range(int(hyper["train_steps"])):
      rates[int(hyper["start"]) + step] = float(optimizers.learning_rate(hyper, jnp.int32(step)))
  assert [stage.name for stage in stages] == ["source", "statistics", "epoch_5", "epoch_10", "epoch_20"]
  assert sorted(rates) == list(range(60))
  for epoch in (0, 5, 10, 19):
    wanted = config.curriculum.rate * (1 - epoch / 20) ** 0.9
    np.testing.assert_allclose([rates[3 * epoch], rates[3 * epoch + 2]], wanted, rtol=1e-5)
  assert optimizers.learning_rate(hyper, jnp.int32(30)) == 0  # the last stage's 30 steps end epoch 20


def test_steps_are_drawn_by_gamma_from_the_step_and_the_seed_alone(config):
  pick = functools.partial(curriculum.domain_of_step, epoch_steps=1000, start=0)
  share = {e: np.mean([pick(1000 * e + i, config=config) == "source" for i in range(1000)]) for e in EPOCHS}
  for epoch, gamma in zip(EPOCHS, (0.9, 0.5, 0.1, 0.1), strict=True):
    assert abs(share[epoch] - gamma) < 3 * np.sqrt(gamma * (1 - gamma) / 1000)
  kinds = [pick(i, config=config) for i in range(5000, 5100)]
  later = functools.partial(curriculum.domain_of_step, config=config, epoch_steps=1000, start=5000)
  assert [later(i) for i in range(100)] == kinds  # wherever its stage begins
  assert [pick(i, config=changed(config, seed=1)) for i in range(5000, 5100)] != kinds


@pytest.mark.parametrize(("mode", "kinds", "datasets"), [
  ("adapt", {"source", "target"}, {"source", "target_images"}), ("source_only", {"source"}, {"source"}),
  ("oracle", {"target"}, {"target_truth"}),
])  # fmt: skip
def test_modes_train_equal_steps_on_what_they_say(config, mode, kinds, datasets):
  config = changed(config, mode=mode, curriculum__epochs=20, curriculum__epoch_steps=5)
  last = planned(config)[-1]
  assert {last.pick(step) for step in range(50)} == kinds
  drawn = [last.streams[stream] for kind in kinds for stream in last.steps[kind].streams]
  assert {name for stream in drawn for name in stream.datasets} == datasets
  steps = [stage for stage in planned(config) if stage.name.startswith("epoch")]
  counts = [sum(stage.pick(step) != "statistics" for step in range(stage.num_steps)) for stage in steps]
  assert sum(counts) == 100 and [stage.name for stage in steps] == ["epoch_1", "epoch_2", "epoch_4", "epoch_10", "epoch_20"]


def test_the_optimizer_goes_on_from_part_to_part(plan):
  source, _, first, second = plan.stages
  state = first_state(plan, source)
  network = state.networks["segmenter"]
  moved = network.replace(opt_state=jax.tree.map(jnp.ones_like, network.opt_state))
  state = state.replace(networks={"segmenter": moved})
  for stage, kept in ((first, 0), (second, 1)):
    found = stage.begin(state, jax.random.key(0)).networks["segmenter"].opt_state
    assert all((leaf == kept).all() for leaf in jax.tree.leaves(found))


def test_without_source_training_the_curriculum_comes_first(config, tmp_path):
  config = changed(config, source_training__steps=0, source_training__epochs=0, curriculum__statistics_steps=0)
  with pytest.raises(UserError, match="set one of them"):
    planned(changed(config, curriculum__epochs=0))
  assert [stage.name for stage in planned(config)] == ["epoch_1", "epoch_2"]
  config.start_from = str(tmp_path)
  with pytest.raises(UserError, match="no stage `source`"):
    run_module.run(config, tmp_path / "run")


@pytest.mark.parametrize(("field", "value", "said"), [
  ("mode", "adopt", "choose adapt"), ("diversity__of", "head", "choose one of decoder, classifier"),
  ("curriculum__weighted", "pole,signs", "no class 'signs'"), ("curriculum__score_after", "1,x", "1,2,4"),
  ("curriculum__score_after", "0,3", "1,2,4"),
  ("network__branches", 0, "branches is 0"), ("network__branches", 1, "agrees with itself"),
])  # fmt: skip
def test_values_that_are_not_offered(config, field, value, said):
  with pytest.raises(UserError, match=said):
    found = experiment.plan(changed(config, curriculum__vote_dropout=0.0, **{field: value}), CITYSCAPES19, {}, SIZES)
    jax.eval_shape(functools.partial(curriculum.init, found.config), jax.random.key(0))


# --- the loss ---

# Two branches, one row of four pixels, three classes: they agree on pixels 0 and 3.
LOGITS = jnp.array([
  [[[[5.0, 0, 0], [0, 2, 0], [0, 0, 4], [0, 1, 0]]]],
  [[[[1.0, 0, 0], [3, 0, 0], [0, 1, 0], [0, 6, 0]]]],
])  # fmt: skip


class Fixed:
  """A model whose logits are its parameters, at the resolution of the labels; and its votes, if they are others."""

  def __init__(self, votes=None):
    self.changed = {} if votes is None else {"votes": {f"decoder_{e}": {"cast": (x,)} for e, x in enumerate(votes)}}

  def apply(self, variables, images, **_):
    return (variables["params"]["logits"], None), self.changed


def loss_of(monkeypatch, logits, labels, choose, epoch=0, devices=1, valid=(True,) * 4, **settings):
  """(loss, metrics, gradient) of `branches_loss` on the first of some devices that all have the same example."""
  monkeypatch.setattr(curriculum.inference, "upsample", lambda maps, size: maps)
  params = {"segmenter": {"logits": logits, "decoder_0": {}, "decoder_1": {}}}
  hyper = optimizers.schedule(0.1, 20, 0.9, start=epoch, every=1)
  network = optimizers.make_network({"params": params["segmenter"]}, optimizers.sgd(0.0, 0.0))
  state = curriculum.State(jnp.int32(0), {"segmenter": network}, hyper)
  part = {
    "image": jnp.zeros((1, 1, 4, 3)),
    "label": jnp.array(labels, jnp.uint8)[None, None],
    "valid": jnp.array(valid)[None, None],
    "keys": jax.random.split(jax.random.key(0), 1),
  }
  settings = {"model": Fixed(), "beta": 0.0, "similarity": lambda _: jnp.float32(0), "domain": "source", **settings}

  def value(params):
    loss, (_, metrics) = curriculum.branches_loss(params, state, [part], choose=choose, **settings)
    return loss, metrics

  mapped = jax.vmap(lambda _, p: jax.value_and_grad(value, has_aux=True)(p), (0, None), axis_name="devices")
  (loss, metrics), gradient = mapped(jnp.zeros(devices), params)
  first = functools.partial(jax.tree.map, lambda x: np.asarray(x[0]))
  return float(loss[0]), first(metrics), first(gradient)["segmenter"]["logits"]


def nats(logits, label):
  return float(jax.nn.logsumexp(jnp.array(logits, float)) - logits[label])


def test_true_labels_count_in_both_branches(monkeypatch):
  loss, metrics, _ = loss_of(monkeypatch, LOGITS, [0, 1, 255, 1], curriculum.true_labels)
  first = (nats([5, 0, 0], 0) + nats([0, 2, 0], 1) + nats([0, 1, 0], 1)) / 3
  second = (nats([1, 0, 0], 0) + nats([3, 0, 0], 1) + nats([0, 6, 0], 1)) / 3
  np.testing.assert_allclose(loss, first + second, rtol=1e-6)
  assert tuple(metrics["source_hard_share"]) == (2, 4) and tuple(metrics["source_kept_share"]) == (3, 4)


def test_chosen_classes_weigh_double(monkeypatch):
  plain, _, _ = loss_of(monkeypatch, LOGITS, [0, 255, 255, 1], curriculum.true_labels)
  weighted, _, _ = loss_of(monkeypatch, LOGITS, [0, 255, 255, 1], curriculum.true_labels, weights=(2.0, 1.0, 1.0))
  np.testing.assert_allclose(weighted - plain, (nats([5, 0, 0], 0) + nats([1, 0, 0], 0)) / 2, rtol=1e-5)


def test_the_target_is_labelled_by_the_mean_of_the_logits_where_the_branches_agree(monkeypatch):
  wanted = {False: [0, 0, 2, 1], True: [0, IGNORE, IGNORE, 1]}
  for easy, labels in wanted.items():
    choose = functools.partial(curriculum.proxy_labels, easy=easy)
    loss, metrics, gradient = loss_of(monkeypatch, LOGITS, [9, 9, 9, 9], choose, domain="target", proxies=True)
    by_hand, _, gradient_by_hand = loss_of(monkeypatch, LOGITS, labels, curriculum.true_labels)
    np.testing.assert_allclose(loss, by_hand, rtol=1e-6)
    np.testing.assert_allclose(gradient, gradient_by_hand, atol=1e-7)  # so none flows through the labels
    counts, totals = metrics["proxy_labels"]
    assert counts.tolist() == [labels.count(c) for c in range(3)] and set(totals.tolist()) == {4 - labels.count(IGNORE)}


def test_votes_choose_the_pixels_and_the_ensemble_their_labels(monkeypatch):
  """By their votes the branches agree on pixel 0, as the ensemble; not on 1 and 2; on 3, but the ensemble says 1."""
  votes = LOGITS.at[:, :, :, 3].set(jnp.array([9.0, 0, 0]))
  choose = functools.partial(curriculum.proxy_labels, easy=True)
  settings = {"domain": "target", "proxies": True, "model": Fixed(votes)}
  loss, metrics, gradient = loss_of(monkeypatch, LOGITS, [9, 9, 9, 9], choose, **settings)
  by_hand, _, gradient_by_hand = loss_of(monkeypatch, LOGITS, [0, IGNORE, IGNORE, IGNORE], curriculum.true_labels)
  np.testing.assert_allclose(loss, by_hand, rtol=1e-6)
  np.testing.assert_allclose(gradient, gradient_by_hand, atol=1e-7)
  assert tuple(metrics["target_hard_share"]) == (3, 4)


def test_nothing_beyond_the_image_gets_a_proxy_label(monkeypatch):
  choose = functools.partial(curriculum.proxy_labels, easy=False)
  _, metrics, gradient = loss_of(
    monkeypatch, LOGITS, [9] * 4, choose, valid=(True, True, True, False), domain="target", proxies=True
  )
  assert tuple(metrics["target_kept_share"]) == (3, 3) and not gradient[..., 3, :].any()


def test_source_pixels_are_thinned_where_the_branches_agree(monkeypatch):
  choose = functools.partial(curriculum.thinned_labels, epochs=10)
  labels = [0, 1, 2, 1]
  full = loss_of(monkeypatch, LOGITS, labels, curriculum.true_labels)
  for epoch, wanted in ((0, labels), (10, [255, 1, 2, 255]), (20, [255, 1, 2, 255])):
    loss, _, gradient = loss_of(monkeypatch, LOGITS, labels, choose, epoch=epoch)
    by_hand, _, gradient_by_hand = loss_of(monkeypatch, LOGITS, wanted, curriculum.true_labels)
    np.testing.assert_allclose(loss, by_hand, rtol=1e-6)
    np.testing.assert_allclose(gradient, gradient_by_hand, atol=1e-7)
  assert not gradient[:, 0, 0, [0, 3]].any() and full[2][:, 0, 0, [0, 3]].any()  # what is dropped changes nothing


@pytest.mark.parametrize("devices", [1, 4])
def test_kept_pixels_may_stand_for_their_class(monkeypatch, devices):
  """Labelled 0, 0, 2, 1, of which the first and the last are kept: one of two, none, and one of one."""
  easy = functools.partial(curriculum.proxy_labels, easy=True)
  settings = {"domain": "target", "proxies": True, "even": True, "devices": devices}
  loss, metrics, gradient = loss_of(monkeypatch, LOGITS, [9] * 4, easy, **settings)
  first, last = (sum(nats(branch[0, 0, at], label) for branch in LOGITS) for at, label in ((0, 0), (3, 1)))
  np.testing.assert_allclose(devices * loss, (2 * first + last) / 3, rtol=1e-6)
  np.testing.assert_allclose(metrics["loss"], [2 * first + last, 3], rtol=1e-6)
  assert not gradient[:, 0, 0, 1:3].any()
  weighted, *_ = loss_of(monkeypatch, LOGITS, [9] * 4, easy, weights=(1.0, 5.0, 1.0), **settings)
  np.testing.assert_allclose(devices * weighted, (2 * first + 5 * last) / 3, rtol=1e-6)


@pytest.mark.parametrize("devices", [1, 4])
def test_the_penalty_is_counted_once_whatever_the_number_of_devices(monkeypatch, devices):
  loss, metrics, _ = loss_of(
    monkeypatch, LOGITS, [255] * 4, curriculum.true_labels, beta=0.5, similarity=lambda _: jnp.float32(0.3), devices=devices
  )
  np.testing.assert_allclose([devices * loss, metrics["similarity"][0] / metrics["similarity"][1]], [0.15, 0.3], rtol=1e-6)


def test_every_rung_is_a_field(plan):
  def rung(**fields):
    config = changed(plan.config, **fields)
    source, target = curriculum.source_loss(config).keywords, curriculum.target_loss(config).keywords
    assert source["weights"] == target["weights"] == curriculum.class_weights(config)
    return source["choose"], target["choose"].keywords["easy"], source["weights"] is not None

  plain = {"curriculum__class_weight": 1.0, "curriculum__easy_mining": False, "curriculum__hard_mining": False}
  assert rung(**plain) == (curriculum.true_labels, False, False)
  assert rung(**{**plain, "curriculum__class_weight": 2.0}) == (curriculum.true_labels, False, True)
  assert rung(curriculum__hard_mining=False) == (curriculum.true_labels, True, True)
  thinned, easy, weighted = rung(curriculum__drop_epochs=7)
  assert (thinned.func, thinned.keywords["epochs"], easy, weighted) == (curriculum.thinned_labels, 7, True, True)
  for of in ("decoder", "classifier"):
    keywords = curriculum.plain_loss(changed(plan.config, diversity__of=of, diversity__weight=0.3)).keywords
    assert keywords["similarity"] is curriculum.SIMILARITIES[of] and keywords["beta"] == 0.3


def test_decoders_learn_faster_than_the_encoder(config):
  optimizer = curriculum.optimizer(changed(config, optimizer__weight_decay=0.0, optimizer__decoder_multiplier=7.0))
  params = {name: jnp.ones(2) for name in ("backbone", "decoder_0", "decoder_1")}
  updates, _ = optimizer.update(params, optimizer.init(params), params)
  assert {name: float(update[0]) for name, update in updates.items()} == {"backbone": 1, "decoder_0": 7, "decoder_1": 7}


def test_what_is_thinned_hangs_on_the_example_alone(plan):
  state = curriculum.State(jnp.int32(0), {}, optimizers.schedule(0.1, 20, 0.9, start=5))
  part = {"label": jnp.ones((4, 8, 8), jnp.uint8), "keys": jax.random.split(jax.random.key(0), 4)}
  given = {"predicted": None, "agree": jnp.ones((4, 8, 8), bool), "state": state}
  thin = functools.partial(curriculum.thinned_labels, **given, epochs=10)
  whole = np.asarray(thin(part))
  assert 0.3 < (whole == IGNORE).mean() < 0.7  # epoch 5 of 10
  turned = {name: value[::-1] for name, value in part.items()}
  np.testing.assert_array_equal(thin(turned), whole[::-1])


def test_class_weights_by_name(plan):
  config = changed(plan.config, curriculum__weighted="pole, rider", curriculum__class_weight=3.0)
  weights = dict(zip(CITYSCAPES19.classes, curriculum.class_weights(config), strict=True))
  assert {name for name, weight in weights.items() if weight == 3} == {"pole", "rider"}
  assert set(weights.values()) == {1.0, 3.0}
  assert curriculum.class_weights(changed(config, curriculum__class_weight=1.0)) is None


# --- the step ---


def test_parameters_of_the_papers_network_by_its_layers(config):
  settings = changed(config, network__backbone="resnet18", network__width=1.0, network__num_stages=4)
  found = experiment.plan(settings, CITYSCAPES19, {}, SIZES)
  params = jax.eval_shape(functools.partial(curriculum.init, found.config), jax.random.key(0)).networks["segmenter"].params
  stem, stages = 3 * 64 * 49 + 2 * 64, 0
  for before, channels in ((64, 64), (64, 128), (128, 256), (256, 512)):
    stages += 9 * channels * (before + 3 * channels) + 4 * 2 * channels  # four convolutions, each with its BatchNorm
    stages += (before * channels + 2 * channels) * (before != channels)  # beside the identity
  decoder = 4 * (512 * 128 + 2 * 128) + (512 + 4 * 128) * 19 + 19
  assert sum(x.size for x in jax.tree.leaves(params)) == stem + stages + 2 * decoder == 11_741_798


def test_a_target_step_reads_no_label(plan):
  stage = plan.stages[-1]
  step = parallel.train_step(stage.steps["target"].apply)
  batch = make_batch(4, tuple(plan.config.canvas))
  results = []
  for label in (batch["label"], np.full_like(batch["label"], 3)):
    state = parallel.replicate(first_state(plan, stage))
    results.append(jax.device_get(step(state, {"target": {**batch, "label": label}}, jax.random.key(0))))
  jax.tree.map(np.testing.assert_array_equal, *results)
  kept, inside = results[0][1]["target_kept_share"]
  assert 0 < kept < inside


def test_every_stage_has_the_same_numbers_so_that_any_checkpoint_fits(config):
  for fields in ({}, {"source_training__steps": 0, "source_training__epochs": 0}):
    plan = experiment.plan(changed(config, **fields), CITYSCAPES19, {}, SIZES)
    state, structures = jax.eval_shape(functools.partial(curriculum.init, plan.config), jax.random.key(0)), set()
    for stage in plan.stages:
      state = jax.eval_shape(stage.begin, state, jax.random.key(0))
      structures.add(str(jax.tree.map(lambda x: (x.shape, x.dtype), state)))
    assert len(structures) == 1


# --- what it tells ---


def record(hard=0.2, counts=(3.0, 1.0)):
  return {"target_hard_share": hard, "target_kept_share": 1 - hard, "proxy_labels": list(counts)}


def test_warnings():
  classes = ("road", "pole")
  quiet = [record()] * 5
  assert curriculum.warnings(quiet, classes=classes) == []
  assert curriculum.warnings([record(0.001, (1, 0))] * 4, classes=classes) == []  # too early to say
  (line,) = curriculum.warnings([*quiet, *[record(hard=0.001)] * 5], classes=classes)
  assert "agree on more than 99%" in line
  assert curriculum.warnings([*quiet, *[record(counts=(1, 0))] * 5], classes=classes) == [
    "no proxy label that is kept is pole"
  ]
  starved = {"target_hard_share": 1.0, "target_kept_share": 0.0}  # no pixel, so no shares by class
  (line,) = curriculum.warnings([*quiet, *[starved] * 5], classes=classes)
  assert "no pixel of the target is kept" in line
  assert curriculum.warnings([*[starved] * 4, record()], classes=classes) == []


@pytest.mark.parametrize("mode", ["oracle", "source_only"])
def test_true_labels_warn_of_nothing(config, mode):
  true = {"target_hard_share": 0.001, "target_kept_share": 1.0}  # and no shares of proxy labels
  for stage in planned(changed(config, mode=mode)):
    assert not stage.warnings([true] * 5)


def test_what_is_not_the_papers_reaches_where_it_belongs(config):
  config = changed(
    config, curriculum__vote_dropout=0.3, curriculum__jitter=0.25, augmentation__hue=0.0,
    curriculum__even_mining=True,
  )  # fmt: skip
  for stage in planned(config):
    for kind, step in stage.steps.items():
      if kind == "statistics":
        continue
      loss, colours = step.apply.keywords["loss"].keywords, step.apply.keywords["streams"][kind].keywords["settings"]
      later = stage.name != "source"
      assert loss["model"].vote_dropout == 0.3 and loss["by_epoch"] == later
      assert loss.get("even", False) == (kind == "target")
      assert colours.brightness == (0.25 if later else 0.0)


def test_agreement_maps_go_by_the_votes(monkeypatch):
  monkeypatch.setattr(curriculum.inference, "upsample", lambda maps, size: maps)
  network = optimizers.make_network({"params": {"logits": LOGITS}}, optimizers.sgd(0.0, 0.0))
  state = curriculum.State(jnp.int32(0), {"segmenter": network}, {})
  votes = LOGITS.at[:, :, :, 3].set(jnp.array([9.0, 0, 0]))
  for model, wanted in ((Fixed(), [1, 0, 0, 1]), (Fixed(votes), [1, 0, 0, 0])):
    found = curriculum.agreement_map(state, jnp.zeros((1, 1, 4, 3)), model=model)
    assert found["agreement"].tolist() == [[wanted]]


def test_a_run_draws_agreement_maps_and_keeps_warnings(config, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(curriculum, "RECENT", 1)
  alone = {"source_training__steps": 0, "source_training__epochs": 0}
  targets = {"curriculum__gamma": 0.0, "curriculum__gamma_end": 0.0, "curriculum__statistics_steps": 0}
  results = run_module.run(changed(config, **alone, **targets), tmp_path / "run")
  assert [stage["name"] for stage in results["stages"]] == ["epoch_1", "epoch_2"]
  lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
  told = [warning for line in lines for warning in line.get("warnings", ())]
  assert told and len(told) == len(set(told))
  assert "no proxy label that is kept is" in capsys.readouterr().out
  counts = next(line["proxy_labels"] for line in lines if "proxy_labels" in line)
  np.testing.assert_allclose(sum(counts), 1, rtol=1e-5)
  for stage in ("epoch_1", "epoch_2"):
    maps = list((tmp_path / "run/pictures/maps/agreement" / stage).glob("**/*.png"))
    assert len(maps) == config.pictures
    assert all(set(np.unique(cv2.imread(str(path), -1))) <= {0, 255} for path in maps)
  page = (tmp_path / "run/report.html").read_text()
  assert "agreement, from none" in page and "Warnings" in page and "Shares of pixels" in page
  assert "epoch_2, epoch 2" in page and "target hard share in %" in page and "agreement after epoch_2" in page


def test_the_network_of_another_run_with_other_classes(config, tmp_path, capsys):
  first = changed(config, mode="source_only", curriculum__epochs=0, curriculum__statistics_steps=0, test__kind="")
  run_module.run(first, tmp_path / "first")
  other = changed(config, weights=str(tmp_path / "first"), curriculum__weighted="")
  twelve = CITYSCAPES19.classes[:12]
  space = type(CITYSCAPES19)("twelve", twelve, CITYSCAPES19.colors[:12])
  plan = experiment.plan(other, space, {}, SIZES)
  state = curriculum.init(plan.config, jax.random.key(1))
  params = state.networks["segmenter"].params
  assert params["decoder_1"]["logits"]["kernel"].shape[-1] == 12
  said = capsys.readouterr().out
  assert "decoder_1.logits.kernel" in said.splitlines()[-1] and "pool1" not in said.splitlines()[-1]
  same = curriculum.init(experiment.plan(other, CITYSCAPES19, {}, SIZES).config, jax.random.key(2))
  same = same.networks["segmenter"].params
  for part in ("backbone", "decoder_0"):
    kept = jax.tree.map(np.array_equal, *({k: v for k, v in p[part].items() if k != "logits"} for p in (params, same)))
    assert all(jax.tree.leaves(kept))
  with pytest.raises(UserError, match="is another one"):
    curriculum.init(experiment.plan(changed(other, network__width=0.25), space, {}, SIZES).config, jax.random.key(0))
  with pytest.raises(UserError, match="holds no finished run"):
    curriculum.init(experiment.plan(changed(other, weights=str(tmp_path)), space, {}, SIZES).config, jax.random.key(0))
