"""Updates by hand."""

import jax.numpy as jnp
import numpy as np

from jax_uda import optimizers


def test_momentum_decay_and_multipliers_by_hand():
  optimizer = optimizers.sgd(momentum=0.5, weight_decay=0.1, by_module={"head": 10.0})
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
