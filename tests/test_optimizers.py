"""Updates by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jax_uda import optimizers
from jax_uda.models.segmenter import Segmenter


class Layers(nn.Module):
  """Everything that has a bias."""

  @nn.compact
  def __call__(self, x):
    x = nn.BatchNorm(use_running_average=False, name="norm")(nn.Conv(3, (1, 1), name="conv")(x))
    return nn.Dense(2, name="head")(x)


VARIABLES = Layers().init(jax.random.key(0), jnp.ones((1, 2, 2, 3)))


def like(params, seed):
  """The same tree, filled at random."""
  leaves, treedef = jax.tree.flatten(params)
  rng = np.random.default_rng(seed)
  return treedef.unflatten([jnp.asarray(rng.normal(size=x.shape), jnp.float32) for x in leaves])


def test_momentum_decay_and_multipliers_by_hand():
  optimizer = optimizers.by_module({"backbone": optimizers.sgd(0.5, 0.1), "head": optimizers.sgd(0.5, 0.1, 10.0)})
  start = {"backbone": jnp.array([1.0]), "head": jnp.array([2.0])}
  gradients = {"backbone": jnp.array([0.3]), "head": jnp.array([0.4])}
  network = optimizers.make_network({"params": start}, optimizer)
  network = optimizers.update(network, gradients, {}, optimizer, jnp.float32(0.01))
  # v = g + 0.1 p; p -= 0.01 v, ten times that in the head
  np.testing.assert_allclose(network.params["backbone"], 1 - 0.01 * 0.4, rtol=1e-6)
  np.testing.assert_allclose(network.params["head"], 2 - 0.1 * 0.6, rtol=1e-6)
  network = optimizers.update(network, gradients, {}, optimizer, jnp.float32(0.01))
  velocity = 0.5 * 0.4 + 0.3 + 0.1 * 0.996
  np.testing.assert_allclose(network.params["backbone"], 0.996 - 0.01 * velocity, rtol=1e-6)


def test_biases_by_hand():
  of_biases = {"bias_multiplier": 2.0, "bias_decay": False}
  parts = {name: optimizers.sgd(0.5, 0.1, multiplier, **of_biases) for name, multiplier in (("head", 30.0), ("", 3.0))}
  optimizer = optimizers.by_module(parts)
  start, gradients = like(VARIABLES["params"], 0), like(VARIABLES["params"], 1)
  network = optimizers.make_network({"params": start}, optimizer)
  once = optimizers.update(network, gradients, {}, optimizer, jnp.float32(0.01))
  twice = optimizers.update(once, gradients, {}, optimizer, jnp.float32(0.01))
  for module, name, factor, decay in [
    ("conv", "kernel", 3, 0.1), ("conv", "bias", 6, 0), ("head", "kernel", 30, 0.1), ("head", "bias", 60, 0),
    ("norm", "scale", 3, 0.1), ("norm", "bias", 3, 0.1),
  ]:  # fmt: skip
    p, g = start[module][name], gradients[module][name]
    v = g + decay * p
    p = p - 0.01 * factor * v
    np.testing.assert_allclose(once.params[module][name], p, rtol=1e-5, atol=1e-6)
    p = p - 0.01 * factor * (0.5 * v + g + decay * p)
    np.testing.assert_allclose(twice.params[module][name], p, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("change", [{"bias_multiplier": 2.0}, {"bias_decay": False}])
def test_the_switches_touch_biases_alone(change):
  gradients, steps = like(VARIABLES["params"], 2), []
  for optimizer in (optimizers.sgd(0.9, 0.1), optimizers.sgd(0.9, 0.1, **change)):
    network = optimizers.make_network({"params": like(VARIABLES["params"], 3)}, optimizer)
    steps.append(optimizers.update(network, gradients, {}, optimizer, jnp.float32(0.1)).params)
  differs = jax.tree.map(lambda a, b: bool((a != b).any()), *steps)
  biases = {("conv", "bias"), ("head", "bias")}
  assert {(module, name) for module, leaves in differs.items() for name in leaves if leaves[name]} == biases


def test_without_the_switches_nothing_changes_by_a_bit():
  optimizer = optimizers.sgd(0.9, 5e-4, 0.7)
  start, network = like(VARIABLES["params"], 4), optimizers.make_network(VARIABLES, optimizer)
  network = network.replace(params=start)
  before = optax.chain(
    optax.add_decayed_weights(5e-4),
    optax.trace(0.9),
    optax.stateless(lambda tree, _: optax.tree.scale(0.7, tree)),
  )
  assert jax.tree.structure(optimizer.init(start)) == jax.tree.structure(before.init(start))
  step = jax.jit(lambda *x: optimizers.update(*x, optimizer, jnp.float32(0.01)))
  other_step = jax.jit(lambda *x: optimizers.update(*x, before, jnp.float32(0.01)))
  other = network.replace(opt_state=before.init(start))
  for seed in (5, 6, 7):
    network, other = (run(one, like(start, seed), {}) for run, one in ((step, network), (other_step, other)))
    jax.tree.map(np.testing.assert_array_equal, network.params, other.params)


def test_a_segmenters_biases_are_those_of_its_convolutions():
  model = Segmenter(num_classes=3, backbone="resnet18", width=0.125, head_channels=8, head_dilation=1)
  params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
  found = {path for path, bias in jax.tree.leaves_with_path(optimizers._biases(params)) if bias}
  names = {"/".join(key.key for key in path) for path in found}
  assert names == {"head/conv/bias", "head/logits/bias"}
  normalised = [path for path, _ in jax.tree.leaves_with_path(params) if path[-1].key == "bias" and path not in found]
  assert len(normalised) > 10


def test_restart_forgets_the_momentum_and_keeps_the_weights():
  optimizer = optimizers.sgd(0.9, 0.0)
  network = optimizers.make_network({"params": {"a": jnp.ones(2)}}, optimizer)
  moved = optimizers.update(network, {"a": jnp.ones(2)}, {}, optimizer, jnp.float32(0.1))
  again = optimizers.restart(moved, optimizer)
  np.testing.assert_array_equal(again.params["a"], moved.params["a"])
  once = optimizers.update(again, {"a": jnp.zeros(2)}, {}, optimizer, jnp.float32(0.1))
  np.testing.assert_array_equal(once.params["a"], moved.params["a"])


def test_polynomial_and_constant_rates():
  decaying, constant = optimizers.schedule(0.2, 100, 0.9), optimizers.schedule(0.2, 100, 0.0)
  for step, wanted in ((0, 0.2), (50, 0.2 * 0.5**0.9), (100, 0.0)):
    np.testing.assert_allclose(optimizers.learning_rate(decaying, jnp.int32(step)), wanted, rtol=1e-6)
    np.testing.assert_allclose(optimizers.learning_rate(constant, jnp.int32(step)), 0.2, rtol=1e-6)


def test_each_part_has_its_gradients_clipped_alone():
  backbone, decoder = (optimizers.sgd(0.0, 0.0, multiplier, clip=1.0) for multiplier in (1.0, 10.0))
  optimizer = optimizers.by_module({"backbone": backbone, "decoder": decoder})
  gradients = {"backbone": jnp.array([3.0, 4.0]), "decoder_0": jnp.array([0.3]), "decoder_1": jnp.array([0.4])}
  updates, _ = optimizer.update(gradients, optimizer.init(gradients), gradients)
  np.testing.assert_allclose(updates["backbone"], [0.6, 0.8], rtol=1e-6)
  np.testing.assert_allclose([updates["decoder_0"][0], updates["decoder_1"][0]], [3, 4], rtol=1e-6)  # a norm of 0.5


def test_the_rate_falls_once_an_epoch_over_several_stages():
  hyper = optimizers.schedule(rate=0.1, num_steps=20, power=0.9, start=10, every=5)
  rates = [float(optimizers.learning_rate(hyper, jnp.int32(step))) for step in (0, 4, 5, 9)]
  np.testing.assert_allclose(rates, [0.1 * (1 - part) ** 0.9 for part in (0.5, 0.5, 0.75, 0.75)], rtol=1e-5)
  assert [float(optimizers.epoch(hyper, jnp.int32(step))) for step in (0, 4, 5)] == [2, 2, 3]
