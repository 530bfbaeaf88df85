"""Multi-adversarial proxies: what each player pays and moves, how proxies are chosen, what the stages are."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_uda import experiment, inference, losses, optimizers, parallel, pseudo_labels, steps
from jax_uda import run as run_module
from jax_uda.data.label_spaces import CITYSCAPES19, IGNORE
from jax_uda.errors import UserError
from jax_uda.methods import adversarial
from jax_uda.models.discriminator import PatchDiscriminator
from jax_uda.state import DEVICE_AXIS
from tests.test_curriculum import changed
from tests.test_methods import SIZES, first_state, make_batch
from tests.tiny import tiny


@pytest.fixture(scope="module")
def config():
  return tiny("adversarial")


def planned(config):
  return experiment.plan(config, CITYSCAPES19, {}, SIZES)


# --- the game ---


def test_what_the_players_pay():
  """By hand, of an output of 0 (a probability of one half) and of log 3 (three quarters)."""
  half, most = jnp.float32(0), jnp.log(3.0)
  for name in ("non_saturating", "minimax"):
    game = losses.GAMES[name]
    np.testing.assert_allclose([game.probability(x) for x in (half, most)], [0.5, 0.75], rtol=1e-6)
    np.testing.assert_allclose([game.tell_source(x) for x in (half, most)], -np.log([0.5, 0.75]), rtol=1e-6)
    np.testing.assert_allclose([game.tell_target(x) for x in (half, most)], -np.log([0.5, 0.25]), rtol=1e-6)
    np.testing.assert_allclose(game.chance, game.tell_source(half), rtol=1e-6)
  np.testing.assert_allclose(losses.GAMES["non_saturating"].fool_target(most), -np.log(0.75), rtol=1e-6)
  assert losses.GAMES["non_saturating"].fool_source is None
  minimax = losses.GAMES["minimax"]
  np.testing.assert_allclose(minimax.fool_target(most), np.log(0.25), rtol=1e-6)  # eqs. 2 to 4, which F makes small
  np.testing.assert_allclose(minimax.fool_source(most), np.log(0.75), rtol=1e-6)
  squares = losses.GAMES["least_squares"]
  np.testing.assert_allclose([squares.tell_source(0.75), squares.tell_target(0.75)], [0.0625, 0.5625])
  assert squares.fool_target(0.75) == 0.0625 and squares.tell_source(0.5) == squares.chance
  said = [float(squares.probability(jnp.float32(x))) for x in (-0.3, -0.2, 0.5, 1.2, 1.3)]
  assert said == sorted(set(said)) and said[2] == 0.5 and said[0] > 0 and said[-1] < 1


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 8), (9, 17), (45, 33)])
def test_discriminators_halve_and_round_up(size):
  for poolings in (2, 3):
    out = jax.eval_shape(
      lambda x, n=poolings: PatchDiscriminator(n, 4).init_with_output(jax.random.key(0), x)[0], jnp.zeros((2, *size, 6))
    )
    assert out.shape == (2, *(-(-n // 2**poolings) for n in size)) and out.dtype == jnp.float32


@pytest.mark.parametrize("image", [(64, 96), (65, 97), (33, 130), (720, 1280)])
def test_both_depths_are_judged_at_a_thirty_second(config, image):
  model, judges = adversarial.segmenter(changed(config, num_classes=19)), adversarial.discriminators(config)

  def verdicts(key, images):
    _, features = model.init_with_output(key, images)[0]
    return [judge.init_with_output(key, x)[0] for judge, x in zip(judges.values(), features, strict=True)]

  out = jax.eval_shape(verdicts, jax.random.key(0), jnp.zeros((1, *image, 3)))
  assert [x.shape for x in out] == 2 * [(1, *(-(-n // 32) for n in image))]


class Small(nn.Module):
  """As `FusionSegmenter`, and quick to compile: F at stride 4 is made of the images and of F_l, at stride 8."""

  @nn.compact
  def __call__(self, images, train=False, keys=None, classify=True):
    mid = nn.Conv(4, (8, 8), 8, name="mid")(images)
    high = nn.Conv(4, (4, 4), 4, name="high")(images) + jnp.repeat(jnp.repeat(mid, 2, 1), 2, 2)
    return nn.Conv(3, (1, 1), name="head")(high) if classify else None, (high, mid)


JUDGES = {"discriminator_1": PatchDiscriminator(3, 4), "discriminator_2": PatchDiscriminator(2, 4)}


def scenes():
  """Two images of each domain, which differ in size; the right half of the target's second one is padding."""
  rng = np.random.default_rng(0)
  for domain, (height, width) in enumerate(((40, 48), (32, 64))):
    valid = np.ones((2, height, width), bool)
    valid[1, :, 32:] = domain == 0
    label = np.full((2, height, width), IGNORE) if domain else rng.integers(0, 3, (2, height, width))
    image = jnp.asarray(rng.normal(size=(2, height, width, 3)), jnp.float32)
    yield {"image": image, "label": label, "valid": valid, "keys": None, "domain": jnp.full(2, domain)}


@pytest.fixture(scope="module")
def played():
  """(state, parts) of a step of made-up networks."""
  model, plain = Small(), optimizers.sgd(0.0, 0.0)
  features = {"discriminator_1": (1, 8, 8, 4), "discriminator_2": (1, 4, 4, 4)}
  networks = {name: optimizers.make_network(JUDGES[name].init(jax.random.key(0), jnp.ones(features[name])), plain)
              for name in JUDGES}  # fmt: skip
  networks["segmenter"] = optimizers.make_network(model.init(jax.random.key(1), jnp.ones((1, 32, 32, 3))), plain)
  loud = jax.tree.map(lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), networks)
  return adversarial.State(jnp.int32(0), loud, {}), list(scenes())


@functools.cache
def payment(rules, devices):
  def value(params, state, parts, segmentation_weight, weights):
    how = {"model": Small(), "judges": JUDGES, "rules": losses.GAMES[rules]}
    loss, (_, metrics) = adversarial.adversarial_loss(
      params, state, parts, segmentation_weight=segmentation_weight, weights=weights, **how
    )
    return loss, metrics

  def run(_, state, *rest):
    params = {name: network.params for name, network in state.networks.items()}
    return jax.value_and_grad(value, has_aux=True)(params, state, *rest)

  return jax.jit(jax.vmap(run, (0, None, None, None, None), axis_name=DEVICE_AXIS, axis_size=devices))


def pay(played, segmentation_weight=1.0, weights=(1.0, 1.0), rules="non_saturating", devices=1):
  """(loss, metrics, gradient by player) of one step, on the first of so many devices that all see the same."""
  (loss, metrics), gradient = payment(rules, devices)(jnp.zeros(devices), *played, segmentation_weight, weights)
  first = functools.partial(jax.tree.map, lambda x: np.asarray(x[0]))
  return float(loss[0]), first(metrics), first(gradient)


def norms(gradient):
  return {name: float(optax.global_norm(tree)) for name, tree in gradient.items()}


def equal(a, b):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-7), a, b)


def equal_bits(a, b):
  return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


@pytest.mark.parametrize("rules", losses.GAMES)
def test_nobody_moves_another(played, rules):
  moved = functools.partial(pay, played, rules=rules)
  (_, _, alone), (_, _, idle), (_, _, both) = moved(1.0, (0.0, 0.0)), moved(0.0, (0.0, 0.0)), moved(1.0, (3.0, 0.5))
  (_, _, deep), (_, _, mid) = moved(0.0, (1.0, 0.0)), moved(0.0, (0.0, 1.0))
  assert norms(idle)["segmenter"] == 0  # what discriminators pay does not reach the features
  for name in JUDGES:  # nor does what the features pay, or the segmentation, reach them
    assert norms(idle)[name] > 0
    for other in (alone, both, deep, mid):
      equal(other[name], idle[name])
  # The features' part is lambda times theirs, of fixed discriminators.
  added = jax.tree.map(lambda s, a, b: s + 3.0 * a + 0.5 * b, *(x["segmenter"] for x in (alone, deep, mid)))
  equal(both["segmenter"], added)
  # The classifier is moved by the labels alone; what only F has, by discriminator 1, and not by 2; F_l by both.
  assert {name for name, norm in norms(deep["segmenter"]).items() if norm} == {"high", "mid"}
  assert {name for name, norm in norms(mid["segmenter"]).items() if norm} == {"mid"}
  assert {name for name, norm in norms(alone["segmenter"]).items() if norm} == {"high", "mid", "head"}


def test_features_that_fool_a_discriminator_are_what_the_segmenter_goes_for(played):
  """A step down the features' gradient makes discriminators take the target for the source, in every game."""
  state, parts = played
  for rules, game in losses.GAMES.items():
    _, _, gradient = pay(played, 0.0, (1.0, 1.0), rules)

    def verdicts(step, gradient=gradient, game=game):
      params = jax.tree.map(lambda p, g: p - step * g, state.networks["segmenter"].params, gradient["segmenter"])
      _, features = Small().apply({"params": params}, parts[1]["image"])
      inside, paid = np.asarray(adversarial.cells(parts[1]["valid"])), 0.0
      for (name, judge), x in zip(JUDGES.items(), features, strict=True):
        paid += float(game.fool_target(judge.apply({"params": state.networks[name].params}, x))[inside].mean())
      return paid

    assert verdicts(1e-3) < verdicts(0.0)


def test_losses_are_means_over_the_cells_that_see_the_image(played):
  state, parts = played
  once, metrics, _ = pay(played)
  thrice, _, _ = pay(played, devices=3)
  np.testing.assert_allclose(3 * thrice, once, rtol=1e-5)  # each device's part of the same mean
  assert adversarial.cells(parts[0]["valid"]).shape == (2, 2, 2) and adversarial.cells(parts[0]["valid"]).all()
  assert adversarial.cells(parts[1]["valid"]).tolist() == [[[True, True]], [[True, False]]]
  rules = losses.GAMES["non_saturating"]
  for place, (name, judge) in enumerate(JUDGES.items()):
    source, target = (
      np.asarray(judge.apply({"params": state.networks[name].params}, features[place]))
      for _, features in (Small().apply({"params": state.networks["segmenter"].params}, part["image"]) for part in parts)
    )
    target = np.append(target[0], target[1, :, :1])
    wanted = {
      "loss": (np.mean(rules.tell_source(source)) + np.mean(rules.tell_target(target))) / 2,
      "accuracy": (np.mean(source > 0) + np.mean(target <= 0)) / 2,
      "fooling_loss": np.mean(rules.fool_target(target)),
    }
    for what, value in wanted.items():
      total, count = metrics[f"{name}_{what}"]
      np.testing.assert_allclose(total / count, value, rtol=1e-4, atol=1e-6)


def test_one_discriminator_judges_the_features_alone(config):
  plan = planned(changed(config, adversarial__discriminators=1))
  state = jax.eval_shape(functools.partial(adversarial.init, plan.config), jax.random.key(0))
  assert set(state.networks) == {"segmenter", "discriminator_1"}
  keywords = adversarial.adversarial_rule(plan.config).keywords
  assert keywords["weights"] == (config.adversarial.weight_1,) and keywords["judges"]["discriminator_1"].poolings == 3


def test_each_optimizer_changes_its_own_network():
  """Of three players two move; of these, the second has nothing to pay."""
  rules = {"a": optimizers.sgd(0.0, 0.0), "b": optimizers.adam(0.9, 0.99, 0.5)}
  networks = {name: optimizers.make_network({"params": {"w": jnp.ones(3)}}, rules["b"]) for name in ("b", "c")}
  networks["a"] = optimizers.make_network({"params": {"w": jnp.ones(3)}}, rules["a"])
  state = adversarial.State(jnp.int32(0), networks, optimizers.schedule(0.1, 10, 0.0))

  def step(pays):
    def loss(params, state, parts):
      return (params[pays]["w"] * jnp.array([1.0, -2.0, 30.0])).sum(), ({name: {} for name in rules}, {})

    run = functools.partial(steps.train_step, streams={}, players=rules, loss=loss)
    after, _ = jax.vmap(run, (None, None, None), None, axis_name=DEVICE_AXIS, axis_size=1)(state, {}, jax.random.key(0))
    return {name: np.asarray(network.params["w"]) - 1 for name, network in after.networks.items()}

  moved = step("a")
  np.testing.assert_allclose(moved["a"], [-0.1, 0.2, -3.0], rtol=1e-5)
  assert not moved["b"].any() and not moved["c"].any()
  moved = step("b")  # Adam's first step is as long whatever the gradient
  np.testing.assert_allclose(moved["b"], [-0.05, 0.05, -0.05], rtol=1e-4)
  assert not moved["a"].any() and not moved["c"].any()


def test_all_three_learn(config):
  config = changed(config, adversarial__rate=0.01, adversarial__discriminator_rate=2e-3)
  plan = planned(config)
  (stage,) = (stage for stage in plan.stages if stage.name == "adversarial")
  state = parallel.replicate(first_state(plan, stage))
  before = jax.device_get(jax.tree.map(np.array, state.networks))
  batches = {name: make_batch(4, tuple(config.canvas), seed) for seed, name in enumerate(("source", "target"))}
  batches["target"]["image"] //= 4  # at dusk
  step, paid = parallel.train_step(stage.steps["adversarial"].apply), []
  for i in range(6):
    state, metrics = step(state, batches, jax.random.key(0))
    paid.append({name: float(total / count) for name, (total, count) in jax.device_get(metrics).items()})
    if i == 0:
      after = jax.device_get(state.networks)
  assert not equal_bits(before["segmenter"].params, after["segmenter"].params)
  for name in JUDGES:
    moved = np.concatenate([
      np.abs(a - b).ravel() for a, b in zip(*(jax.tree.leaves(x[name].params) for x in (before, after)), strict=True)
    ])
    assert np.isclose(np.quantile(moved, [0.5, 1]), 2e-3, rtol=0.01).all()  # their rate, and not the segmenter's
    assert paid[-1][f"{name}_loss"] < paid[0][f"{name}_loss"] - 0.01


# --- warnings ---


def records(losses_1, losses_2, every=100, stage=1):
  return [
    {"stage_index": stage, "step": every * (i + 1), "discriminator_1_loss": a, "discriminator_2_loss": b,
     "discriminator_1_fooling_loss": 0.0}
    for i, (a, b) in enumerate(zip(losses_1, losses_2, strict=True))
  ]  # fmt: skip


def test_a_discriminator_that_has_won_or_lost_is_warned_of():
  warn = functools.partial(adversarial.warnings, chance=float(np.log(2)))
  assert warn(records([0.04] * 4, [0.69] * 4)) == []  # not for long
  won, lost = warn(records([0.3] + [0.04] * 5, [0.3] + [0.69] * 5))
  assert won.startswith("discriminator 1 tells the domains apart") and lost.startswith("discriminator 2 is at chance")
  assert warn(records([0.04, 0.04, 0.06, 0.04, 0.04], [0.69, 0.5, 0.69, 0.69, 0.69])) == []
  earlier = records([0.3] * 9, [0.3] * 9, stage=0)
  assert warn(earlier + records([0.04] * 4, [0.3] * 4)) == []  # what counts is this stage's
  assert len(warn(earlier + records([0.04] * 5, [0.3] * 5))) == 1
  plain = {"stage_index": 1, "step": 540, "confidence": 0.9}
  assert warn([*records([0.3] + [0.04] * 4, [0.3] * 5), plain]) == []  # batch statistics at the end are no play
  assert warn([{"stage_index": 2, "step": 900, "loss": 1.0}]) == []


# --- adversarial confidence ---


def test_confidence_by_hand():
  """Discriminator 1 says 0.2 to 0.6, discriminator 2 says 0.5 to 0.9; the last pixel is padding."""
  outputs = jnp.array([[0.2, 0.5], [0.4, 0.9], [0.6, 0.6], [0.99, 0.01]], jnp.float32)
  mask = jnp.array([True, True, True, False])
  verdicts = pseudo_labels.update_verdicts(pseudo_labels.init_verdicts(2), outputs, mask)
  scale = pseudo_labels.scale_of(verdicts, "min_max")
  found = pseudo_labels.adversarial_confidence(outputs[:3], scale)
  np.testing.assert_allclose(found, [0, (0.5 + 1) / 2, (1 + 0.25) / 2], atol=1e-6)
  assert pseudo_labels.adversarial_confidence(outputs[3:], scale) == 0.5  # clipped
  ranks = pseudo_labels.scale_of(verdicts, "rank")  # a third each; a pixel is above half of itself
  found = pseudo_labels.adversarial_confidence(outputs[:3], ranks)
  np.testing.assert_allclose(found, [1 / 6, (3 / 6 + 5 / 6) / 2, (5 / 6 + 3 / 6) / 2], atol=1e-6)
  assert found.min() > 0
  equals = pseudo_labels.update_verdicts(pseudo_labels.init_verdicts(1), jnp.full((4, 1), 0.3), jnp.ones(4))
  found = pseudo_labels.adversarial_confidence(jnp.full((4, 1), 0.3), pseudo_labels.scale_of(equals, "min_max"))
  alike = pseudo_labels.update_focus(pseudo_labels.init_histogram(1), found, jnp.ones(4, bool))
  assert (found > pseudo_labels.focus_threshold(alike, 0.6)).all()  # all or none, and none would be no labels
  with pytest.raises(ValueError, match="one of min_max, rank"):
    pseudo_labels.scale_of(verdicts, "mean")


@given(st.integers(0, 2**31 - 1))
@settings(max_examples=10, deadline=None)
def test_verdicts_add_up(seed):
  rng = np.random.default_rng(seed)
  outputs, mask = rng.random((6, 4, 2)).astype(np.float32), rng.random((6, 4)) < 0.7
  whole = pseudo_labels.update_verdicts(pseudo_labels.init_verdicts(2), outputs, mask)
  parts = [
    pseudo_labels.update_verdicts(pseudo_labels.init_verdicts(2), outputs[i : i + 2], mask[i : i + 2]) for i in (0, 2, 4)
  ]
  merged = functools.reduce(pseudo_labels.merge_verdicts, parts)
  assert merged.counts.dtype == np.int64
  jax.tree.map(np.testing.assert_array_equal, merged, whole)


@given(st.integers(0, 2**31 - 1), st.floats(0.05, 0.95))
@settings(max_examples=20, deadline=None)
def test_focus_keeps_its_share(seed, portion):
  confidence = np.random.default_rng(seed).random((40, 50)).astype(np.float32) + 1e-6
  histogram = pseudo_labels.update_focus(pseudo_labels.init_histogram(1), confidence, np.ones(confidence.shape, bool))
  kept = (confidence > pseudo_labels.focus_threshold(histogram, portion)).mean()
  assert abs(kept - portion) < 0.005
  assert pseudo_labels.focus_threshold(histogram, 1.0) == -np.inf


# --- proxies ---


def scene(seed, shape=(40, 50), num_classes=4):
  """Spread-out scores of one image, and how likely two discriminators think its places the source's."""
  rng = np.random.default_rng(seed)
  scores = rng.dirichlet(np.ones(num_classes), shape).astype(np.float32)
  domains = rng.beta(2, 5, (*shape, 2)).astype(np.float32)  # of cells as small as pixels
  return scores, np.ones(shape, bool), {"domains": domains, "inside": np.ones(shape, bool), "cell": np.ones(2)}


def chosen(config, examples, p1, p2, **found):
  """(labels of each image, what was found) by the labelling of a config, on made-up scores."""
  config = changed(config, labels__p1=p1, labels__p2=p2, num_classes=4)
  rule = adversarial.labelling(config, SIZES)
  for name, fold in rule.folds.items():
    if name not in found:
      parts = [fold.update(fold.init(), found, *example) for example in examples]
      found[name] = fold.finish(functools.reduce(fold.merge, parts))
  return np.stack([rule.select(found, *example) for example in examples]), found


@pytest.mark.parametrize("confidence", pseudo_labels.SCALES)
def test_without_discriminators_proxies_are_class_balanced_selection(config, confidence):
  examples = [scene(seed) for seed in range(3)]
  labels, found = chosen(changed(config, labels__confidence=confidence), examples, p1=1.0, p2=0.4)
  scores = np.stack([example[0] for example in examples])
  histogram = pseudo_labels.update_histogram(pseudo_labels.init_histogram(4), scores)
  thresholds = pseudo_labels.class_balanced_thresholds(histogram, 0.4)
  np.testing.assert_array_equal(found["pools"]["thresholds"], thresholds)
  np.testing.assert_array_equal(labels, pseudo_labels.select(scores, thresholds))


@pytest.mark.parametrize("confidence", pseudo_labels.SCALES)
def test_the_selected_share_is_p1_times_p2(config, confidence):
  examples = [scene(seed) for seed in range(3)]
  for p1, p2 in ((0.6, 0.8), (0.5, 0.4), (0.9, 0.2)):
    labels, found = chosen(changed(config, labels__confidence=confidence), examples, p1, p2)
    assert abs((labels != IGNORE).mean() / (p1 * p2) - 1) < 0.05
    alone = np.stack([adversarial.select_alone(found, *example) for example in examples])
    assert abs((alone != IGNORE).mean() / (p1 * p2) - 1) < 0.05 and (alone != labels).any()


@given(st.integers(0, 2**31 - 1), st.floats(0.05, 0.9), st.floats(0.05, 1.0))
@settings(max_examples=10, deadline=None)
def test_raising_p1_removes_no_pixel(seed, p1, p2):
  config, examples = tiny("adversarial"), [scene(seed, (8, 10))]
  few, found = chosen(config, examples, p1, p2)
  more, _ = chosen(config, examples, p1 + 0.1, p2, pools=found["pools"])  # t2 held fixed
  assert np.array_equal(few[few != IGNORE], more[few != IGNORE])


def test_proxies_by_hand(config):
  """Eq. 5: class 1 is confident at pixels 0 to 2; there the discriminators are confident of 1 and 2 alone."""
  scores = jnp.array([[[0.1, 0.9], [0.2, 0.8], [0.3, 0.7], [0.6, 0.4], [0.9, 0.1]]])
  domains = jnp.array([[[0.1], [0.9], [0.8], [0.7], [0.2]]])
  extras = {"domains": domains, "inside": jnp.ones((1, 5), bool), "cell": jnp.ones(2)}
  found = {
    "scale": {"smallest": jnp.zeros(1), "largest": jnp.ones(1)},
    "focus": jnp.float32(0.5),
    "pools": {"thresholds": jnp.array([0.65, 0.75])},
  }
  valid = jnp.ones((1, 5), bool)
  # Pixel 2 is under its threshold, as is 3; pixel 4 is above, where the discriminators are not.
  assert adversarial.select(found, scores, valid, extras).tolist() == [[255, 1, 255, 255, 255]]
  pools = adversarial.pool_confidences(pseudo_labels.init_histogram(2), found, scores, valid, extras, focused=True)
  assert np.asarray(pools.counts).sum(1).tolist() == [1, 2]  # of 1, 2 and 3, as only these are looked at


@pytest.mark.parametrize(("scale", "canvas", "size"), [(1.0, (72, 136), (66, 104)), (0.5, (144, 272), (130, 272))])
def test_verdicts_lie_where_they_were_given(scale, canvas, size):
  """Cells are 32 pixels at scale 1 and 64 at a half; those that are mostly padding count for nothing."""
  verdicts = np.full((3, 5, 2), 9.0, np.float32)  # what is said of padding
  inside = np.zeros((3, 5), bool)
  inside[:2, : 3 if scale == 1 else 4] = True  # 66 of 96 rows and 104 of 160 columns; 65 and 136
  verdicts[inside] = -3
  verdicts[1, 2] = 2
  low = jnp.zeros((*(n // 4 for n in inference.scaled_canvas(canvas, scale)), 4), jnp.float16)
  scores, valid, extras = adversarial.assemble(
    {}, {"low": low, "verdicts": jnp.asarray(verdicts)}, None, jnp.array(size), canvas,
    rules=losses.GAMES["non_saturating"], scale=scale,
  )  # fmt: skip
  assert scores.shape == (*canvas, 4) and valid.sum() == np.prod(size)
  np.testing.assert_array_equal(extras["inside"], inside)
  stat = adversarial.add_verdicts(pseudo_labels.init_verdicts(2), {}, scores, valid, extras)
  found = {"scale": pseudo_labels.scale_of(stat, "min_max")}
  np.testing.assert_allclose(found["scale"]["largest"], jax.nn.sigmoid(2.0), rtol=1e-5)
  confidence = np.where(valid, adversarial.confidence(found, valid, extras), 0)
  cell = round(32 / scale)
  centre = [cell * 3 // 2, cell * 5 // 2]
  assert confidence[centre[0], centre[1]] > 0.95
  assert confidence[size[0] - 1, centre[1]] > 0.95  # below it only what is said of padding could lower it, or raise
  assert confidence[cell // 2, cell // 2] < 0.05 and confidence[centre[0], cell // 2] < 0.05
  np.testing.assert_allclose(confidence[centre[0], 2 * cell], 0.5, atol=0.05)  # half-way to its neighbour
  none = adversarial.add_verdicts(pseudo_labels.init_verdicts(2), {}, scores, jnp.zeros_like(valid), extras)
  assert np.asarray(none.counts).sum() == 0  # in place of an image that there is not


# --- stages ---


def test_stages_by_mode(config):
  def names(**fields):
    return [
      (stage.name, {name: stream.datasets for name, stream in stage.streams.items() if name != "whole"})
      for stage in planned(changed(config, **fields)).stages
    ]

  source, target = {"train": ("source",)}, {"source": ("source",), "target": ("target_images",)}
  assert names() == [("source", source), ("adversarial", target), ("retrain", {"target": ("target",)})]
  assert names(mode="source_only") == [("source", source), ("adversarial", source)]
  assert names(mode="oracle") == [("source", source), ("retrain", {"target": ("target_truth",)})]
  assert names(retraining__steps=0) == [("source", source), ("adversarial", target)]
  assert names(adversarial__steps=0, labels__p1=1.0) == [("source", source), ("retrain", {"target": ("target",)})]


def test_retraining_starts_afresh_or_goes_on(config):
  for fresh in (True, False):
    plan = planned(changed(config, retraining__fresh=fresh))
    first, stage = plan.stages[0], plan.stages[-1]
    state = first_state(plan, first)
    state = state.replace(networks=jax.tree.map(jnp.asarray, state.networks))
    begun = stage.begin(state, jax.random.key(3))
    assert equal_bits(*(s.networks["segmenter"].params for s in (state, begun))) != fresh
    assert begun.step == 0 and float(begun.hyper["rate"]) == np.float32(config.retraining.rate)
    judges = [s.networks["discriminator_1"].params for s in (state, begun)]
    jax.tree.map(np.testing.assert_array_equal, *judges)


@pytest.mark.parametrize(("field", "value", "said"), [
  ("mode", "adopt", "choose adapt"), ("adversarial__discriminators", 3, "choose 1 or 2"),
  ("adversarial__loss", "wasserstein", "non_saturating, minimax, least_squares"),
  ("labels__confidence", "mean", "min_max, rank"), ("labels__rank", "best", "paper, code"),
  ("labels__p1", 0.0, "above 0 and up to 1"), ("labels__p2", 1.5, "above 0 and up to 1"),
  ("adversarial__steps", 0, "no discriminator has learnt"), ("labels__scale", 0.0, "above 0"),
  ("adversarial__rate", 0.0, "above 0"), ("adversarial__target_scale", -1.0, "above 0"),
  ("network__backbone", "resnet38", "resnet10, resnet18, resnet50, resnet101, vgg16"),
])  # fmt: skip
def test_values_that_are_not_offered(config, field, value, said):
  with pytest.raises(UserError, match=said):
    plan = planned(changed(config, **{field: value}))
    jax.eval_shape(functools.partial(adversarial.init, plan.config), jax.random.key(0))


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
  """(config, workdir) of a run of one step a stage."""
  one = {f"{stage}__steps": 1 for stage in ("source_training", "adversarial", "retraining")}
  alike = {"retraining__jitter": 0.0, "retraining__scale": config.augmentation.scale}  # steps that compile but once
  config, workdir = changed(config, **one, **alike, statistics_steps=0), tmp_path_factory.mktemp("run")
  run_module.run(config, workdir)
  return config, workdir


def test_a_run_draws_how_it_chose(finished):
  config, workdir = finished
  folder = workdir / "pictures" / "labelling" / "retrain"
  drawn = {path.relative_to(folder).parent.as_posix() for path in folder.rglob("*.png")}
  assert drawn == {"maps/adversarial confidence", "labels/labels without the discriminators"}
  assert len(list(folder.rglob("*.png"))) == 2 * config.pictures
  record = json.loads((workdir / "pseudo_labels" / "retrain.json").read_text())
  results = json.loads((workdir / "results.json").read_text())["final"]["pseudo_labels"]
  alone = results["others"]["labels without the discriminators"]
  assert 0.4 < alone["selected"] < 0.6 and alone["accuracy"] != results["accuracy"]
  assert record["p1"] == 0.6 and len(record["thresholds"]) == 19 and 0 < record["t1"] < 1
  page = (workdir / "report.html").read_text()
  assert "How retrain chose its labels" in page and page.count("labels without the discriminators") > 2


def test_afresh_is_from_the_weights_that_the_run_began_with(finished, capsys):
  config, workdir = finished
  twelve = type(CITYSCAPES19)("twelve", CITYSCAPES19.classes[:12], CITYSCAPES19.colors[:12])
  plan = experiment.plan(changed(config, weights=str(workdir)), twelve, {}, SIZES)
  state = adversarial.init(plan.config, jax.random.key(1))
  assert "head.rate8_logits.kernel" in capsys.readouterr().out  # of other classes
  first = jax.device_get(state.networks["segmenter"].params)
  moved = jax.tree.map(lambda x: x + 1, state.networks["segmenter"])
  begun = plan.stages[-1].begin(state.replace(networks={**state.networks, "segmenter": moved}), jax.random.key(2))
  begun = begun.networks["segmenter"].params
  for part in ("backbone", "decoder"):
    assert equal_bits(begun[part], first[part])
  assert begun["head"]["rate1_logits"]["kernel"].shape[-1] == 12 and not equal_bits(begun["head"], first["head"])


def test_start_from_a_run_with_other_discriminators(finished, tmp_path):
  config, workdir = finished
  with pytest.raises(UserError, match=r"config\.start_from: .* holds a discriminator_1 of other layers"):
    run_module.run(changed(config, start_from=str(workdir), adversarial__channels=5), tmp_path)
