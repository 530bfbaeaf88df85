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
  bias_multiplier: float = 1.0,
  bias_decay: bool = True,
  clip: float = 0.0,
) -> optax.GradientTransformation:
  """SGD with momentum, L2 decay and a learning rate of 1, which `update` scales.

  Args:
    multiplier: of the learning rate.
    bias_multiplier: one more, of the biases of convolutions and dense layers; BatchNorm's are none of them.
    bias_decay: whether weight decay reaches those biases.
    clip: norm that the gradients are scaled down to, where it is larger; 0 leaves them.
  """

  def scale(updates, params=None):
    del params
    biases = _biases(updates)
    return jax.tree.map(lambda bias, x: multiplier * (bias_multiplier if bias else 1.0) * x, biases, updates)

  def decays(params):
    return jax.tree.map(lambda bias: not bias, _biases(params))

  decay = optax.add_decayed_weights(weight_decay, mask=None if bias_decay else decays)
  clipped = [optax.clip_by_global_norm(clip)] if clip else []
  return optax.chain(*clipped, decay, optax.trace(momentum), optax.stateless(scale))


def adam(beta1: float, beta2: float, multiplier: float = 1.0) -> optax.GradientTransformation:
  """Adam with a learning rate of `multiplier`, which `update` scales."""
  return optax.chain(optax.scale_by_adam(beta1, beta2), optax.scale(multiplier))


def by_module(optimizers: Mapping[str, optax.GradientTransformation]) -> optax.GradientTransformation:
  """An optimizer for each part of a network: the submodules whose names begin so (`{"backbone": …, "decoder": …}`)."""

  def parts(params):
    return {name: max((part for part in optimizers if name.startswith(part)), key=len) for name in params}

  return optax.partition(optimizers, parts)


def _biases(params: Mapping[str, Any]) -> dict[str, Any]:
  """Which leaves are the bias of a convolution or dense layer: what is called `bias` beside a `kernel`."""

  def is_bias(name, leaf):  # mapped, since the parts of another optimizer are empty trees here
    return jax.tree.map(lambda _: name == "bias" and "kernel" in params, leaf)

  return {name: _biases(leaf) if isinstance(leaf, Mapping) else is_bias(name, leaf) for name, leaf in params.items()}


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
  """One step of learning rate `rate`, [], against the gradients, shaped as the weights and already summed over devices."""
  updates, opt_state = optimizer.update(gradients, network.opt_state, network.params)
  params = jax.tree.map(lambda p, u: p - rate * u, network.params, updates)
  return Network(params=params, batch_stats=batch_stats, opt_state=opt_state)


def schedule(rate: float, num_steps: int, power: float, start: int = 0, every: int = 1) -> dict[str, np.float32]:
  """The part of `State.hyper` that `learning_rate` reads: rate · (1 - passed / num_steps)^power; power 0 is constant.

  Args:
    num_steps: of the whole decay.
    start: steps of it that earlier stages have done.
    every: it falls after every so many steps, an epoch, and `passed` is a multiple of it.
  """
  floats, integers = {"rate": rate, "num_steps": num_steps, "power": power}, {"start": start, "every": every}
  # Of NumPy: a donated state must not take these with it.
  return {name: np.float32(x) for name, x in floats.items()} | {name: np.int32(x) for name, x in integers.items()}


def learning_rate(hyper: Mapping[str, jax.Array], step: jax.Array) -> jax.Array:
  """The learning rate, float32 [], at a step of the stage; see `schedule`."""
  return hyper["rate"] * (1.0 - epoch(hyper, step) * hyper["every"] / hyper["num_steps"]) ** hyper["power"]


def epoch(hyper: Mapping[str, jax.Array], step: jax.Array) -> jax.Array:
  """How often the learning rate has fallen, int32 []: the epoch, from 0, where it falls once each."""
  return (hyper["start"] + step) // hyper["every"]
