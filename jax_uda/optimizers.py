"""Optimizers and learning rates as functions of what `State.hyper` holds."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax

from jax_uda.state import Network


def sgd(
  momentum: float,
  weight_decay: float,
  multiplier: float = 1.0,
  by_module: Mapping[str, float] | None = None,
  bias_multiplier: float = 1.0,
  bias_decay: bool = True,
) -> optax.GradientTransformation:
  """SGD with momentum, L2 decay and a learning rate of 1, which `update` scales.

  Args:
    multiplier: of the learning rate.
    by_module: more of them, of submodules by name (`{"head": 10.0}`).
    bias_multiplier: one more, of the biases of convolutions and dense layers; BatchNorm's are none of them.
    bias_decay: whether weight decay reaches those biases.
  """

  def scale(updates, params=None):
    del params
    factors = by_module or {}
    scaled = {name: optax.tree.scale(multiplier * factors.get(name, 1.0), tree) for name, tree in updates.items()}
    return jax.tree.map(lambda bias, update: bias_multiplier * update if bias else update, _biases(scaled), scaled)

  def decays(params):
    return jax.tree.map(lambda bias: not bias, _biases(params))

  decay = optax.add_decayed_weights(weight_decay, mask=None if bias_decay else decays)
  return optax.chain(decay, optax.trace(momentum), optax.stateless(scale))


def _biases(params: Mapping[str, Any]) -> dict[str, Any]:
  """Which leaves are the bias of a convolution or dense layer: what is called `bias` beside a `kernel`."""
  return {
    name: _biases(leaf) if isinstance(leaf, Mapping) else name == "bias" and "kernel" in params
    for name, leaf in params.items()
  }


def make_network(variables: Mapping[str, Any], optimizer: optax.GradientTransformation) -> Network:
  """A player with a fresh optimizer state, from a Flax module's variables."""
  params = variables["params"]
  return Network(params=params, batch_stats=variables.get("batch_stats", {}), opt_state=optimizer.init(params))


def restart(network: Network, optimizer: optax.GradientTransformation) -> Network:
  """The same weights with a fresh optimizer state."""
  return network.replace(opt_state=optimizer.init(network.params))


def update(
  network: Network, gradients: Any, batch_stats: Any, optimizer: optax.GradientTransformation, rate: jax.Array
) -> Network:
  """One step against the gradients, which are already summed over devices."""
  updates, opt_state = optimizer.update(gradients, network.opt_state, network.params)
  params = jax.tree.map(lambda p, u: p - rate * u, network.params, updates)
  return Network(params=params, batch_stats=batch_stats, opt_state=opt_state)


def schedule(rate: float, num_steps: int, power: float) -> dict[str, np.float32]:
  """The part of `State.hyper` that `learning_rate` reads: rate · (1 - step / num_steps)^power; power 0 is constant."""
  return {
    "rate": np.float32(rate),  # of NumPy: a donated state must not take these with it
    "num_steps": np.float32(num_steps),
    "power": np.float32(power),
  }


def learning_rate(hyper: Mapping[str, jax.Array], step: jax.Array) -> jax.Array:
  """The learning rate at a step of the stage; see `schedule`."""
  return hyper["rate"] * (1.0 - step / hyper["num_steps"]) ** hyper["power"]
