"""What every method has to keep, and what each one computes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jax_uda import check, experiment, inference, parallel, pseudo_labels
from jax_uda.data.label_spaces import CITYSCAPES19, IGNORE
from jax_uda.errors import UserError
from jax_uda.methods import mlsl, self_training
from jax_uda.state import DEVICE_AXIS

SIZES = {"source": 6, "target": 5, "test": 3}


def planned(config: ConfigDict) -> experiment.Experiment:
  return experiment.plan(config, CITYSCAPES19, {}, SIZES)


def first_state(planned: experiment.Experiment, stage):
  """A state at step 0 of a stage, filled at random: initialisers take long to compile."""
  shapes = jax.eval_shape(functools.partial(planned.method.init, planned.config), jax.random.key(0))
  rng = np.random.default_rng(0)

  def fill(path, x):
    name = path[-1].key
    if name in ("var", "scale"):
      return np.ones(x.shape, x.dtype)
    return (rng.normal(size=x.shape) / np.sqrt(max(np.prod(x.shape[:-1]), 1))).astype(x.dtype)

  networks = {
    name: network.replace(
      params=jax.tree_util.tree_map_with_path(fill, network.params),
      batch_stats=jax.tree_util.tree_map_with_path(fill, network.batch_stats),
    )
    for name, network in shapes.networks.items()
  }
  found = {name: fold.finish(fold.init()) for name, fold in planned.method.label_statistics(planned.config).items()}
  hyper = {name: jnp.full(np.shape(value), 0.01) for name, value in found.items()}
  state = shapes.replace(step=jnp.int32(0), networks=networks, hyper=hyper)
  state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x, state)
  return stage.begin(planned.stages[0].begin(state, jax.random.key(1)), jax.random.key(1))


def make_batch(size: int, canvas: tuple[int, int], seed: int = 0) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(seed)
  label = rng.integers(0, 19, (size, canvas[0] // 8, canvas[1] // 8)).astype(np.uint8)
  label[::3, :, : canvas[1] // 12] = IGNORE  # unevenly, so that counts differ by device
  return {
    "image": rng.integers(0, 256, (size, *canvas, 3)).astype(np.uint8),
    "label": label.repeat(8, 1).repeat(8, 2),
    "size": np.tile(np.int32(canvas), (size, 1)),
    "draw": np.arange(100, 100 + size, dtype=np.int32),
    "domain": (np.arange(size) % 2).astype(np.int32),
  }


def all_steps(planned):
  """(stage, step) of each kind of step once."""
  seen = {}
  for stage in planned.stages:
    for step in stage.steps.values():
      seen.setdefault(step.apply, (stage, step))
  return list(seen.values())


def test_every_shape_fits(tiny_config):
  state = check.check(planned(tiny_config))
  assert state.step.shape == ()


def test_nothing_is_left_unreduced_over_devices(tiny_config):
  # Under vmap with out_axes=None, unlike under pmap, an output that differs by device is an error.
  plan = planned(tiny_config)
  for stage, step in all_steps(plan):
    state = first_state(plan, stage)
    batch = parallel.shard(make_batch(4, tuple(tiny_config.canvas)))
    mapped = jax.vmap(step.apply, (None, 0, None), None, axis_name=DEVICE_AXIS)
    jax.eval_shape(mapped, state, {name: batch for name in step.streams}, jax.random.key(0))


def test_vmap_notices_a_forgotten_reduction():
  def forgets(state, batch):
    return state + batch.sum()

  mapped = jax.vmap(forgets, (None, 0), None, axis_name=DEVICE_AXIS)
  with pytest.raises(ValueError, match="out_axes"):
    jax.eval_shape(mapped, jnp.zeros(()), jnp.zeros((4, 2)))


def test_four_devices_and_one_give_the_same_step(tiny_config):
  tiny_config.network.batch_norm = "synced"
  plan = planned(tiny_config)
  for stage, step in all_steps(plan):
    state = first_state(plan, stage)
    batches = {name: make_batch(8, tuple(tiny_config.canvas)) for name in step.streams}
    key = jax.random.key(3)
    results = []
    for devices in (1, 4):
      mapped = jax.pmap(
        step.apply, DEVICE_AXIS, in_axes=(None, 0, None), out_axes=None, devices=jax.devices()[:devices]
      )
      sharded = jax.tree.map(lambda x, n=devices: x.reshape(n, -1, *x.shape[1:]), batches)
      results.append(jax.device_get(mapped(state, sharded, key)))
    (one, metrics_one), (four, metrics_four) = results
    tolerance = 1e-4
    for name, pair in metrics_one.items():
      np.testing.assert_allclose(metrics_four[name], pair, rtol=tolerance, err_msg=name)
    for name, network in one.networks.items():
      # The momentum is the gradient; its largest entry sets what rounding of sums in another order may amount to.
      scale = max((np.abs(x).max() for x in jax.tree.leaves(network.opt_state)), default=0)
      same = functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance * scale)
      jax.tree.map(lambda a, b, same=same: same(b, a), network, four.networks[name])


def test_only_the_players_of_a_step_change(mlsl_config):
  plan = planned(mlsl_config)
  source, statistics, first_round = plan.stages
  for stage, changes in ((source, {"segmenter"}), (statistics, set()), (first_round, {"segmenter", "classifier"})):
    state = first_state(plan, stage)
    before = jax.device_get(state)
    batches = {name: make_batch(4, tuple(mlsl_config.canvas)) for name in stage.streams}
    (step,) = stage.steps.values()
    after, _ = parallel.train_step(step.apply)(parallel.replicate(state), batches, jax.random.key(0))
    after = jax.device_get(after)
    moved = jax.tree.map(np.array_equal, after.networks["segmenter"].batch_stats, before.networks["segmenter"].batch_stats)
    assert not any(jax.tree.leaves(moved))
    for name, network in after.networks.items():
      same = jax.tree.map(np.array_equal, network.params, before.networks[name].params)
      assert all(jax.tree.leaves(same)) == (name not in changes)


def test_a_batch_without_any_label_changes_nothing_but_decay(mlsl_config):
  plan = planned(mlsl_config)
  stage = plan.stages[0]
  batch = make_batch(4, tuple(mlsl_config.canvas))
  batch["label"][:] = IGNORE
  state = first_state(plan, stage)
  before = jax.device_get(state)
  after, metrics = jax.device_get(
    parallel.train_step(stage.steps["train"].apply)(parallel.replicate(state), {"train": batch}, jax.random.key(0))
  )
  assert tuple(metrics["loss"]) == (0, 0)
  kept = 1 - plan.config.source_training.rate * plan.config.optimizer.weight_decay
  wanted = jax.tree.map(lambda x: kept * x, before.networks["segmenter"].params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), after.networks["segmenter"].params, wanted)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(after))


def test_source_and_target_count_alike_side_by_side_and_the_statistics_are_the_targets(mlsl_config):
  plan = planned(mlsl_config)
  stage = plan.stages[-1]
  state = first_state(plan, stage)
  step = parallel.train_step(stage.steps["train"].apply)

  def after(source_seed, target_seed):
    canvas = tuple(mlsl_config.canvas)
    batches = {"source": make_batch(4, canvas, source_seed), "target": make_batch(4, canvas, target_seed)}
    return jax.device_get(step(parallel.replicate(jax.device_get(state)), batches, jax.random.key(0))[0])

  one, other_source, other_target = (
    jax.tree.leaves(after(*seeds).networks["segmenter"].batch_stats) for seeds in ((0, 1), (2, 1), (0, 3))
  )
  assert all(np.array_equal(a, b) for a, b in zip(one, other_source, strict=True))
  assert not any(np.array_equal(a, b) for a, b in zip(one, other_target, strict=True))


# Schedules


def test_portions_and_rates_by_round(mlsl_config):
  config = mlsl_config.copy_and_resolve_references()
  config.rounds.num = 4
  config.labels.update({"portion": 0.2, "portion_step": 0.05, "portion_max": 0.3})
  config.rounds.update({"rate": 0.1, "rate_divisor": 2.0})
  assert [self_training.portion(config, r) for r in range(4)] == [0.2, 0.25, 0.3, 0.3]
  stages = mlsl.stages(config, SIZES)
  rates = [float(stage.begin(first_state(planned(config), stage), jax.random.key(0)).hyper["rate"]) for stage in stages[2:]]
  np.testing.assert_allclose(rates, [0.1, 0.05, 0.025, 0.0125], rtol=1e-6)


def test_larger_source_subsets_hold_smaller_ones():
  small, large = (self_training.source_subset(100, share, seed=1) for share in (0.1, 0.3))
  assert len(small) == 10 and len(large) == 30 and set(small) <= set(large) <= set(range(100))


@pytest.mark.parametrize(("mode", "datasets"), [
  ("adapt", ("source", "target")), ("oracle", ("source", "target_truth")), ("source_only", ("source",)),
])  # fmt: skip
def test_modes_train_equal_steps_on_what_they_say(mlsl_config, mode, datasets):
  config = mlsl_config.copy_and_resolve_references()
  config.mode = mode
  stages = mlsl.stages(config, SIZES)
  names = ["source", "round_1"] if mode == "source_only" else ["source", "statistics", "round_1"]
  assert [stage.name for stage in stages] == names
  assert [stage.num_steps for stage in stages if stage.name != "statistics"] == [3, 3]
  assert tuple(name for stream in stages[-1].streams.values() for name in stream.datasets) == datasets
  assert stages[-1].streams.keys() == set(stages[-1].steps["train"].streams)
  assert (stages[-1].labelling is not None) == (mode == "adapt")
  images = sum(stream.batch for stream in stages[-1].streams.values())
  assert images == 2 * config.rounds.batch  # source_only as well
  config.rounds.paired = False
  last = mlsl.stages(config, SIZES)[-1]
  assert last.streams["train"].datasets == datasets and last.streams["train"].batch == config.rounds.batch


def test_frozen_batch_norm_has_no_statistics_to_fit(mlsl_config):
  config = mlsl_config.copy_and_resolve_references()
  config.rounds.batch_norm = "frozen"
  with pytest.raises(UserError, match="statistics_steps"):
    mlsl.stages(config, SIZES)


@pytest.mark.parametrize(("field", "value"), [
  ("mode", "adopt"), ("labels.threshold", "classes"), ("labels.rank", "papers"), ("network.backbone", "resnet19"),
])  # fmt: skip
def test_values_that_are_not_offered(mlsl_config, field, value):
  config = mlsl_config.copy_and_resolve_references()
  config.update_from_flattened_dict({field: value})
  with pytest.raises(UserError, match=value):
    check.check(planned(config))


# MLSL


def test_weak_labels_of_source_and_target_crops():
  label = jnp.full((2, 4, 5), IGNORE, jnp.uint8).at[:, 0, 0].set(1).at[:, 1:3].set(0)
  valid = jnp.ones((2, 4, 5), bool)
  # Class 1 fills 1/20 of the crop: present on source; on target only above eta · h_s.
  for size, shown in ((0.8, 1), (1.0, 0)):
    got = mlsl.image_labels(label, valid, jnp.array([0, 1]), jnp.array([0.5, size, 0.1]), eta=0.05 + 1e-7)
    np.testing.assert_array_equal(got, [[1, 1, 0], [1, shown, 0]])
  # With a quarter of the crop beyond the image the same pixel is 1/15 of it.
  valid = valid.at[:, 3].set(False)
  got = mlsl.image_labels(label, valid, jnp.array([1, 1]), jnp.array([0.5, 1.0, 0.1]), eta=0.05 + 1e-7)
  np.testing.assert_array_equal(got, [[1, 1, 0]] * 2)


def test_patches_are_averaged_where_they_overlap():
  patch, canvas = (8, 8), (16, 24)
  rng = np.random.default_rng(0)
  volumes = rng.dirichlet(np.ones(3), (2, 1, 1)).astype(np.float32)  # constant patches: upsampling keeps them
  boxes = jnp.array([[0, 0], [4, 4]])
  scores, valid, _ = mlsl.assemble_patches(
    {}, jnp.log(volumes), boxes, jnp.array([10, 24]), canvas, patch=patch, votes=False, use_prior=False
  )
  a, b = volumes[:, 0, 0]
  np.testing.assert_allclose(scores[0, 0], a, rtol=1e-5)
  np.testing.assert_allclose(scores[5, 5], (a + b) / 2, rtol=1e-5)
  np.testing.assert_allclose(scores[9, 9], b, rtol=1e-5)
  expected = np.zeros(canvas, bool)
  expected[:8, :8] = expected[4:10, 4:12] = True  # rows from 10 on are padding
  np.testing.assert_array_equal(valid, expected)
  voted, _, _ = mlsl.assemble_patches(
    {}, jnp.log(volumes), boxes, jnp.array([10, 24]), canvas, patch=patch, votes=True, use_prior=False
  )
  np.testing.assert_allclose(voted[5, 5], (np.eye(3)[a.argmax()] + np.eye(3)[b.argmax()]) / 2)


def test_each_patch_is_segmented_alone():
  """A patch's output depends on what lies in it only, and comes back at its own place."""
  images = jax.random.normal(jax.random.key(0), (2, 32, 40, 3))
  boxes = jnp.array([[[0, 0], [8, 16]], [[3, 5], [16, 24]]])

  def predict(state, crops):  # the mean colour of each cell as logits
    del state
    return crops.reshape(-1, 2, 8, 2, 8, 3).mean((2, 4))

  outputs = mlsl.patch_forward(None, images, boxes, predict=predict, patch=(16, 16), batch=3)
  assert outputs.shape == (2, 2, 2, 2, 3) and outputs.dtype == jnp.float16
  for i in range(2):
    for k, (top, left) in enumerate(np.asarray(boxes[i])):
      logits = predict(None, images[i, top : top + 16, left : left + 16][None])[0]
      np.testing.assert_allclose(outputs[i, k], jax.nn.log_softmax(logits), atol=2e-3)


def test_image_labels_reach_the_segmenter(mlsl_config):
  """The classifier's loss has a gradient in the backbone, and weight 0 takes it away."""
  plan = planned(mlsl_config)
  state = first_state(plan, plan.stages[-1])
  batch = make_batch(2, tuple(mlsl_config.augmentation.crop))
  examples = {
    "image": jax.random.normal(jax.random.key(0), (2, *mlsl_config.augmentation.crop, 3)),
    "label": jnp.full(batch["label"].shape, IGNORE, jnp.uint8),  # no segmentation loss at all
    "valid": jnp.ones(batch["label"].shape, bool),
    "domain": jnp.array([0, 1]),
    "keys": jax.random.split(jax.random.key(1), 2),
  }
  params = {name: network.params for name, network in state.networks.items()}
  parts = [jax.tree.map(lambda x: x[None], examples)]

  def largest(weight):
    loss = functools.partial(
      mlsl.multi_level_loss,
      model=self_training.segmenter(plan.config),
      classifier=mlsl.image_classifier(plan.config),
      weight=weight,
      eta=0.05,
    )
    gradient = jax.vmap(jax.grad(loss, has_aux=True), (None, None, 0), axis_name=DEVICE_AXIS)
    found, _ = gradient(params, state, parts)
    return max(float(jnp.abs(x).max()) for x in jax.tree.leaves(found["segmenter"]["backbone"]))

  assert largest(0.0) == 0 < largest(0.025)


# Self-training


def test_a_whole_image_is_labelled_as_the_maths_says():
  """Kept outputs, replayed by fold and selection, give what the exact rule gives on the same upsampled softmax."""
  canvas, num = (32, 64), 5
  config = ConfigDict({"labels": {"threshold": "class_balanced", "rank": "paper", "batch": 1}, "num_classes": 4})
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(num, 4, 8, 4)).astype(np.float32) * 3

  labelling = self_training.round_labelling(
    config,
    views=self_training.no_views,
    forward=None,  # its outputs are given
    assemble=functools.partial(self_training.assemble_whole_image, use_prior=False),
  )(0.3)
  low = np.asarray(inference.log_probabilities(jnp.asarray(logits)))
  watched: list[int] = []
  with inference.KeptOutputs(num, 1.0, "unused") as kept:
    kept.append({"outputs": low, "boxes": (), "size": np.tile(np.int32([30, 64]), (num, 1))})
    found = {"thresholds": inference.fold(labelling, "thresholds", {}, {}, kept, canvas, watched.append)}
    got = [labels for labels, _ in inference.select(labelling, {}, found, kept, canvas)]
  assert sum(watched) == num
  scores = np.stack([np.asarray(inference.upsample(jnp.exp(x.astype(np.float32)), canvas))[:30] for x in low])
  exact = pseudo_labels.exact_class_balanced_thresholds(jnp.asarray(scores), 0.3)
  np.testing.assert_allclose(found["thresholds"], exact, rtol=2e-3)
  wanted = np.asarray(pseudo_labels.select(jnp.asarray(scores), found["thresholds"]))
  np.testing.assert_array_equal(np.stack(got), wanted)
  assert 0.15 < (wanted != IGNORE).mean() < 0.45
