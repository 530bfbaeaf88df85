"""What every method has to keep, and what each one computes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import default
from jax_uda import check, experiment, inference, labelling, parallel, pseudo_labels, steps
from jax_uda.data.label_spaces import CITYSCAPES19, IGNORE
from jax_uda.errors import UserError
from jax_uda.methods import mlsl, self_training
from jax_uda.state import DEVICE_AXIS, State

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
  params = networks["segmenter"].params
  if "decoder_1" in params:  # branches that agree on some pixels
    params["decoder_1"] = jax.tree.map(lambda a, b: a + 0.3 * b, params["decoder_0"], params["decoder_1"])
  found = {name: fold.finish(fold.init()) for name, fold in planned.method.label_statistics(planned.config).items()}
  hyper = {name: jnp.full(np.shape(value), 0.01) for name, value in found.items()}
  state = shapes.replace(step=jnp.int32(0), networks=networks, hyper={**shapes.hyper, **hyper})
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
  """(stage, step) of each step function once, in the last stage that has it: the first one's does less."""
  return list({name: (stage, step) for stage in planned.stages for name, step in stage.steps.items()}.values())


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


@pytest.fixture(scope="module")
def compared() -> set:
  """What `test_four_devices…` has compared: methods share steps and losses, each of which compiles for long."""
  return set()


def test_four_devices_and_one_give_the_same_step(tiny_config, compared):
  tiny_config.network.batch_norm = "synced"
  if tiny_config.method == "self_training":
    tiny_config.rounds.jitter = 0.4
  plan = planned(tiny_config)
  for stage, step in all_steps(plan):
    loss = step.apply.keywords.get("loss")
    choose = loss and loss.keywords.get("choose")
    this = (step.apply.func, loss and loss.func, getattr(choose, "func", choose))
    if this in compared:
      continue
    compared.add(this)
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
      # The largest entry sets what rounding of sums in another order may amount to; of weights, that of their gradient.
      entries = {part: [np.abs(x).max() for x in jax.tree.leaves(tree)] for part, tree in vars(network).items()}
      largest = {part: max(found, default=0) for part, found in entries.items()}
      for part, of in (("params", "opt_state"), ("opt_state", "opt_state"), ("batch_stats", "batch_stats")):
        same = functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance * largest[of])
        jax.tree.map(lambda a, b, same=same: same(b, a), getattr(network, part), getattr(four.networks[name], part))


def test_biases_of_every_player_have_a_rate_of_their_own(mlsl_config):
  config = mlsl_config.copy_and_resolve_references()
  config.optimizer.update({"bias_multiplier": 2.0, "weight_decay": 0.0})
  config.weak_labels.multiplier = 1.0
  config.optimizer.head_multiplier = 1.0
  for optimizer in mlsl._players(config).values():
    for part in ("backbone", "head"):
      params = {part: {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
      updates, _ = optimizer.update(params, optimizer.init(params), params)
      assert float(updates[part]["bias"][0]) == 2 * float(updates[part]["kernel"][0, 0])


def test_only_the_players_of_a_step_change(mlsl_config):
  plan = planned(mlsl_config)
  source, statistics, first_round = plan.stages
  for stage, kind, changes in (
    (source, "train", {"segmenter"}),
    (statistics, "statistics", set()),
    (first_round, "train", {"segmenter", "classifier"}),
    (first_round, "statistics", set()),
  ):
    step = stage.steps[kind]
    state = first_state(plan, stage)
    before = jax.device_get(state)
    batches = {name: make_batch(4, tuple(mlsl_config.canvas)) for name in step.streams}
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
  kinds = [[stage.pick(step) for step in range(stage.num_steps)] for stage in stages if stage.name != "statistics"]
  assert kinds == [["train"] * 3, ["train"] * 3 + ["statistics"] * (0 if mode == "source_only" else 2)]
  drawn = stages[-1].steps["train"].streams
  assert tuple(name for stream in drawn for name in stages[-1].streams[stream].datasets) == datasets
  assert stages[-1].streams.keys() - set(drawn) == ({"whole"} if mode != "source_only" else set())
  assert (stages[-1].labelling is not None) == (mode == "adapt")
  images = sum(stages[-1].streams[stream].batch for stream in drawn)
  assert images == 2 * config.rounds.batch  # source_only as well
  config.rounds.paired = False
  last = mlsl.stages(config, SIZES)[-1]
  assert last.streams["train"].datasets == datasets and last.streams["train"].batch == config.rounds.batch


@pytest.mark.parametrize(("field", "value"), [("rounds.batch_norm", "frozen"), ("network.backbone", "fcn8s_vgg16")])
def test_frozen_or_no_batch_norm_has_no_statistics_to_fit(mlsl_config, field, value):
  config = mlsl_config.copy_and_resolve_references()
  config.update_from_flattened_dict({field: value})
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
    part = {"label": label, "valid": valid, "domain": jnp.array([0, 1])}
    got = mlsl.image_labels(part, jnp.array([0.5, size, 0.1]), eta=0.05 + 1e-7)
    np.testing.assert_array_equal(got, [[1, 1, 0], [1, shown, 0]])
  # With a quarter of the crop beyond the image the same pixel is 1/15 of it.
  part = {"label": label, "valid": valid.at[:, 3].set(False), "domain": jnp.array([1, 1])}
  got = mlsl.image_labels(part, jnp.array([0.5, 1.0, 0.1]), eta=0.05 + 1e-7)
  np.testing.assert_array_equal(got, [[1, 1, 0]] * 2)


def test_patches_are_averaged_where_they_overlap():
  patch, canvas = (8, 8), (16, 24)
  rng = np.random.default_rng(0)
  volumes = rng.dirichlet(np.ones(3), (2, 1, 1)).astype(np.float32)  # constant patches: upsampling keeps them
  boxes, outputs = {"patches": jnp.array([[0, 0], [4, 4]])}, {"patches": jnp.log(volumes)}
  scores, valid, _ = mlsl.assemble_patches(
    {}, outputs, boxes, jnp.array([10, 24]), canvas, patch=patch, votes=False, use_prior=False
  )
  a, b = volumes[:, 0, 0]
  np.testing.assert_allclose(scores[0, 0], a, rtol=1e-5)
  np.testing.assert_allclose(scores[5, 5], (a + b) / 2, rtol=1e-5)
  np.testing.assert_allclose(scores[9, 9], b, rtol=1e-5)
  expected = np.zeros(canvas, bool)
  expected[:8, :8] = expected[4:10, 4:12] = True  # rows from 10 on are padding
  np.testing.assert_array_equal(valid, expected)
  voted, _, _ = mlsl.assemble_patches(
    {}, outputs, boxes, jnp.array([10, 24]), canvas, patch=patch, votes=True, use_prior=False
  )
  np.testing.assert_allclose(voted[5, 5], (np.eye(3)[a.argmax()] + np.eye(3)[b.argmax()]) / 2)
  # The whole image is one more vote, also where no patch lies.
  c = rng.dirichlet(np.ones(3)).astype(np.float32)
  outputs["whole"] = [{"low": jnp.broadcast_to(jnp.log(c), (2, 3, 3))}]
  scores, valid, _ = mlsl.assemble_patches(
    {}, outputs, boxes, jnp.array([10, 24]), canvas, patch=patch, votes=False, use_prior=False
  )
  np.testing.assert_allclose(scores[5, 5], (a + b + c) / 3, rtol=1e-5)
  np.testing.assert_allclose(scores[0, 20], c, rtol=1e-5)
  assert valid[:10].all() and not valid[10:].any()


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

  @jax.jit
  def largest(weight):
    loss = functools.partial(
      mlsl.multi_level_loss,
      model=self_training.segmenter(plan.config),
      classifier=mlsl.image_classifier(plan.config),
      weight=weight,
      targets=mlsl.weak_label_rule(plan.config),
    )
    gradient = jax.vmap(jax.grad(loss, has_aux=True), (None, None, 0), axis_name=DEVICE_AXIS)
    found, _ = gradient(params, state, parts)
    return jnp.stack([jnp.abs(x).max() for x in jax.tree.leaves(found["segmenter"]["backbone"])]).max()

  assert largest(0.0) == 0 < largest(0.025)


# Self-training


def test_a_whole_image_is_labelled_as_the_maths_says():
  """Kept outputs, replayed by fold and selection, give what the exact rule gives on the same upsampled softmax."""
  canvas, num = (32, 64), 5
  config = default.self_training()
  config.num_classes = 4
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(num, 4, 8, 4)).astype(np.float32) * 3

  labelling = self_training.round_labelling(
    config,
    {"target": num},
    views=self_training.whole_image,
    forward=None,  # its outputs are given
    assemble=functools.partial(self_training.assemble_whole_image, use_prior=False),
  )(0.3)
  low = np.asarray(inference.log_probabilities(jnp.asarray(logits)))
  watched: list[int] = []
  with inference.KeptOutputs(num, 1.0, "unused") as kept:
    sizes = np.tile(np.int32([30, 64]), (num, 1))
    kept.append({"outputs": [{"low": low}], "boxes": sizes, "size": sizes})
    found = {"pools": inference.fold(labelling, "pools", {}, {}, kept, canvas, watched.append)}
    got = [labels for labels, *_ in inference.select(labelling, {}, found, kept, canvas)]
  assert sum(watched) == num
  scores = np.stack([np.asarray(inference.upsample(jnp.exp(x.astype(np.float32)), canvas))[:30] for x in low])
  exact = pseudo_labels.exact_class_balanced_thresholds(jnp.asarray(scores), 0.3)
  thresholds, shares = found["pools"]["thresholds"], found["pools"]["shares"]
  np.testing.assert_allclose(thresholds, exact, rtol=2e-3)
  counts = np.bincount(scores.argmax(-1).reshape(-1), minlength=4)
  np.testing.assert_allclose(shares, counts / counts.sum(), rtol=1e-6)
  wanted = np.asarray(pseudo_labels.select(jnp.asarray(scores), thresholds))
  np.testing.assert_array_equal(np.stack(got), wanted)
  assert 0.15 < (wanted != IGNORE).mean() < 0.45


def test_looks_at_a_whole_image_are_averaged_at_its_own_size():
  """Scales and the mirror image: each comes back to the canvas, the mean is theirs, and a mirrored image mirrors it."""
  canvas, size = (32, 64), jnp.array([32, 60])
  image = jax.random.normal(jax.random.key(0), (*canvas, 3)) * inference.content_mask(size, canvas)[..., None]

  def predict(state, images):  # looks left, so that a mirror image is seen otherwise
    del state
    cells = images.reshape(len(images), images.shape[1] // 8, 8, -1, 8, 3).mean((2, 4))
    return cells + jnp.roll(cells, 1, 2)

  def scores(image, scales, flip):
    outputs = inference.look(predict, None, image[None], size[None], scales=scales, flip=flip)
    one = jax.tree.map(lambda x: x[0], outputs)
    found, valid, _ = self_training.assemble_whole_image(
      {}, one, size, size, canvas, use_prior=False, scales=scales
    )
    np.testing.assert_array_equal(valid, inference.content_mask(size, canvas))
    return np.asarray(found)[:, :60]

  plain, half = scores(image, (1.0,), False), scores(image, (0.5,), False)
  np.testing.assert_allclose(plain.sum(-1), 1, atol=2e-3)
  np.testing.assert_allclose(scores(image, (1.0, 0.5), False), (plain + half) / 2, atol=1e-6)
  flipped = inference.mirror(image, size[1])
  both, mirrored = scores(image, (1.0,), True), scores(flipped, (1.0,), False)
  np.testing.assert_allclose(both, (plain + mirrored[:, ::-1]) / 2, atol=1e-6)
  np.testing.assert_allclose(scores(flipped, (1.0,), True), both[:, ::-1], atol=1e-6)
  assert np.abs(both - plain).max() > 0.01 and np.abs(half - plain).max() > 0.01


def test_mirrored_patches_are_averaged_cell_by_cell():
  images = jax.random.normal(jax.random.key(0), (1, 16, 32, 3))

  def predict(state, crops):
    del state
    cells = crops.reshape(-1, 2, 8, 2, 8, 3).mean((2, 4))
    return cells + jnp.roll(cells, 1, 2)

  boxes = jnp.array([[[0, 3]]])
  got = mlsl.patch_forward(None, images, boxes, predict=predict, patch=(16, 16), batch=2, flip=True)[0, 0]
  crop = images[:, :, 3:19]
  straight, mirrored = (jax.nn.softmax(predict(None, look)[0]) for look in (crop, crop[:, :, ::-1]))
  np.testing.assert_allclose(np.exp(got.astype(np.float32)), (straight + mirrored[:, ::-1]) / 2, rtol=3e-3)


def test_ease_is_the_mean_over_classes_of_their_mean_confidence():
  scores = jnp.array([[[0.9, 0.1, 0], [0.7, 0.3, 0]], [[0.4, 0.6, 0], [0, 0.1, 0.9]]])
  valid = jnp.array([[True, True], [True, False]])
  found = self_training.ease({}, scores, valid, {})  # class 0: 0.8; class 1: 0.6; class 2 lies outside
  np.testing.assert_allclose(found, 0.7, rtol=1e-6)
  assert self_training.ease({}, scores, valid & False, {}) == 0
  # Also in a large image, where a sum of single float32 values would stray.
  large = jnp.full((1024, 2048, 2), 0.02).at[..., 1].set(0.98)
  np.testing.assert_allclose(self_training.ease({}, large, jnp.ones((1024, 2048), bool), {}), 0.98, rtol=1e-4)


def test_the_easiest_images_are_chosen():
  ease = [0.3, 0.9, 0.5, 0.9, 0.1]
  assert labelling.easiest([0, 1, 2, 4, 7], ease, 2) == [1, 4]
  assert labelling.easiest([0, 1, 2, 4, 7], ease, 1) == [1]
  assert labelling.easiest([0, 1, 2, 4, 7], ease, 5) == [0, 1, 2, 4, 7]
  assert labelling.easiest([0, 1, 2, 4, 7], ease, 7) == [0, 1, 1, 2, 4, 4, 7]  # two others could not be read


def test_epochs_count_the_images_that_are_trained_on(mlsl_config):
  config = mlsl_config.copy_and_resolve_references()
  config.rounds.update({"steps": 0, "epochs": 2, "batch": 4, "paired": False, "target_share": 0.5})
  config.rounds.update({"source_share": 0.1, "source_share_max": 0.1, "statistics_steps": 0})
  (_, one) = mlsl.stages(config, {"source": 20, "target": 10})
  assert one.num_steps == 4  # two epochs of 2 + 5 images
  assert one.streams["train"].subset[2:] == tuple(range(20, 25)) and one.labelling.num == 5
  config.mode = "oracle"  # has all images, and the same steps
  (_, one) = mlsl.stages(config, {"source": 20, "target": 10})
  assert len(one.streams["train"].subset) == 12 and one.num_steps == 4


def test_source_images_of_a_round_are_nested_or_drawn_anew(mlsl_config):
  config = mlsl_config.copy_and_resolve_references()
  config.rounds.update({"num": 3, "source_share": 0.2, "source_share_step": 0.1, "source_share_max": 0.5})
  subsets = [set(stage.streams["source"].subset) for stage in mlsl.stages(config, {"source": 50, "target": 5})[-3:]]
  assert [len(one) for one in subsets] == [10, 15, 20] and subsets[0] < subsets[1] < subsets[2]
  config.rounds.source_draw = "random"
  subsets = [set(stage.streams["source"].subset) for stage in mlsl.stages(config, {"source": 50, "target": 5})[-3:]]
  assert [len(one) for one in subsets] == [10, 15, 20] and not subsets[0] <= subsets[1]


def test_pools_of_every_fourth_pixel_and_thresholds_that_are_reached():
  """The released code's: a quarter of the rows and columns make the thresholds; a confidence at one is selected."""
  config = default.self_training()
  config.num_classes = 2
  config.labels.update({"pool_stride": 4, "inclusive": True, "rank": "code"})
  fold = self_training.round_labelling(config, SIZES, **self_training.single_inference(config))(0.5).folds["pools"]
  rng = np.random.default_rng(0)
  confidences = rng.uniform(0.5, 1, (16, 24)).astype(np.float32)
  scores = np.stack([confidences, 1 - confidences], -1)
  histogram = fold.update(fold.init(), {}, jnp.asarray(scores), jnp.ones((16, 24), bool), {})
  seen = np.sort(confidences[::4, ::4].reshape(-1))[::-1]
  assert int(histogram.counts.sum()) == seen.size == 24
  found = fold.finish(histogram)
  np.testing.assert_allclose(found["thresholds"][0], seen[11], rtol=1e-3)  # the twelfth of 24
  assert found["thresholds"].dtype == np.float32
  reached = np.array([found["thresholds"][0], 1]).astype(np.float32)
  config.labels.inclusive = False
  strict = self_training.round_labelling(config, SIZES, **self_training.single_inference(config))(0.5).folds["pools"]
  at_threshold = jnp.asarray([[[strict.finish(histogram)["thresholds"][0], 0]]])
  valid = jnp.ones((1, 1), bool)
  assert self_training.select({"pools": {"thresholds": reached}}, at_threshold, valid, {}) == 0
  assert self_training.select({"pools": strict.finish(histogram)}, at_threshold, valid, {}) == IGNORE


def test_crops_are_centred_on_mined_classes_of_the_domains_that_are_asked_for():
  label = np.zeros((2, 16, 16), np.uint8)
  label[:, 3, 12] = 2
  batch = {"label": jnp.asarray(label), "size": jnp.full((2, 2), 16)}
  state = State(jnp.int32(0), {}, {"mined": jnp.array([0, 0, 1])})
  keys = jax.random.split(jax.random.key(0), 2)
  domain = jnp.array([steps.SOURCE, steps.TARGET])
  for domains, wanted in (((1,), [[-1, -1], [3, 12]]), ((0,), [[3, 12], [-1, -1]]), ((0, 1), [[3, 12], [3, 12]])):
    got = self_training.mined_centres(keys, batch, domain, state, probability=1.0, domains=domains)
    np.testing.assert_array_equal(got, wanted)


def test_a_labelling_tells_what_is_mined():
  config = default.self_training()
  config.num_classes = 4
  config.mining.classes = 2
  made = self_training.round_labelling(config, SIZES, **self_training.single_inference(config))(0.2)
  histogram = pseudo_labels.init_histogram(4)
  histogram = histogram.replace(counts=histogram.counts.at[:, 7000].set(jnp.array([6000, 4, 3000, 996])))
  found = {"pools": made.folds["pools"].finish(histogram)}
  np.testing.assert_array_equal(made.hyper(found)["mined"], [0, 2, 0, 1])
  (line,) = made.lines(found, ("road", "sign", "sky", "car"))
  assert line == "crops are centred on sign 0.04% (rare), car 9.96%"
  config.mining.probability = 0.0
  assert self_training.round_labelling(config, SIZES, **self_training.single_inference(config))(0.2).hyper(found) == {}


def test_running_statistics_become_the_mean_over_the_whole_images(mlsl_config):
  """After n batches they are the mean of the batches' own, whatever was there before, and nothing else has changed."""
  plan = planned(mlsl_config)
  stage = plan.stages[1]
  assert stage.name == "statistics"
  canvas, step = tuple(mlsl_config.canvas), stage.steps["statistics"].apply
  model = self_training.segmenter(plan.config)
  state = first_state(plan, stage)
  network = state.networks["segmenter"]
  batches = [make_batch(2, canvas, seed) for seed in range(3)]
  run = jax.jit(jax.vmap(step, (None, 0, None), None, axis_name=DEVICE_AXIS))
  after = state
  for batch in batches:
    after, _ = run(after, {"whole": jax.tree.map(lambda x: x[None], batch)}, jax.random.key(0))

  def own(batch):  # BatchNorm keeps nine tenths of what it has, here nothing
    empty = jax.tree.map(jnp.zeros_like, network.batch_stats)
    images = inference.prepare(jnp.asarray(batch["image"]), jnp.asarray(batch["size"]))
    variables = {"params": network.params, "batch_stats": empty}
    keys = jax.random.split(jax.random.key(0), 2)
    changed = model.apply(variables, images, train=True, keys=keys, mutable=["batch_stats"])[1]
    return jax.tree.map(lambda x: x / 0.1, changed["batch_stats"])

  wanted = jax.tree.map(lambda *x: sum(x) / 3, *(own(batch) for batch in batches))
  close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
  jax.tree.map(close, after.networks["segmenter"].batch_stats, wanted)
  jax.tree.map(np.testing.assert_array_equal, after.networks["segmenter"].params, network.params)


@pytest.mark.parametrize(("field", "value", "said"), [
  ("loss_at", "stripe", "choose pixels or stride"),
  ("mining.on", "all", "choose target, source or both"),
  ("rounds.source_draw", "anew", "choose cumulative or random"),
  ("weak_labels.source", "all", "choose present or eta"),
  ("weak_labels.scope", "all", "choose crop or image"),
  ("weak_labels.activation", "all", "choose one of paper, code"),
  ("labels.scales", "1,x", "numbers above 0"),
  ("labels.upsampling", "bicubic", "choose one of linear, cubic"),
  ("sisc.relative_size", 3.0, "larger than config.canvas"),
])  # fmt: skip
def test_more_values_that_are_not_offered(mlsl_config, field, value, said):
  config = mlsl_config.copy_and_resolve_references()
  config.update_from_flattened_dict({field: value})
  with pytest.raises(UserError, match=said):
    check.check(planned(config))


SWITCHES = {
  "code's losses": {
    "loss_at": "stride", "rounds.hard_below": 0.6, "rounds.hard_least": 16, "mining.on": "both",
    "optimizer.bias_multiplier": 2.0, "optimizer.bias_decay": False, "weak_labels.scope": "image",
    "weak_labels.strict": False, "weak_labels.source": "eta", "weak_labels.activation": "code",
  },
  "single inference": {
    "sisc.patches": 0, "labels.scales": "0.5,1", "labels.flip": True, "labels.prior": True, "labels.threshold": "global",
    "labels.rank": "code", "rounds.target_share": 0.5, "labels.inclusive": True, "labels.pool_stride": 4,
    "labels.upsampling": "cubic",
  },
  "patches and whole image": {
    "sisc.flip": True, "sisc.whole_image": True, "labels.flip": True, "sisc.votes": True, "mining.probability": 0.0,
    "weak_labels.weight": 0.0,
  },
  "square patches, one list": {
    "sisc.relative_size": 0.5, "rounds.paired": False, "rounds.batch_norm": "frozen", "rounds.statistics_steps": 0,
  },
}  # fmt: skip


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_switch_fits(mlsl_config, switch):
  config = mlsl_config.copy_and_resolve_references()
  config.update_from_flattened_dict(SWITCHES[switch])
  check.check(planned(config))


def test_the_loss_at_the_stride_compares_cells(mlsl_config):
  """Labels that differ only beside the middle of the cells give the same loss."""
  plan = planned(mlsl_config)
  state = first_state(plan, plan.stages[0])
  params = {"segmenter": state.networks["segmenter"].params}
  label = np.arange(384).reshape(1, 16, 24) % 4
  other = label.copy()
  other[:, ::8] = IGNORE

  def loss(label, at):
    part = {"image": jax.random.normal(jax.random.key(0), (1, 16, 24, 3)), "label": jnp.asarray(label, jnp.uint8)}
    part |= {"valid": jnp.ones(label.shape, bool), "domain": jnp.zeros(1, jnp.int32), "keys": None}
    loss = functools.partial(self_training.supervised_loss, model=self_training.segmenter(plan.config), at=at)
    mapped = jax.vmap(lambda part: loss(params, state, [part])[0], axis_name=DEVICE_AXIS)
    return mapped(jax.tree.map(lambda x: x[None], part))[0]

  assert loss(label, "stride") == loss(other, "stride") and loss(label, "pixels") != loss(other, "pixels")
