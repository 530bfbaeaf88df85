"""Losses as (sum, count): callers add both over devices and divide once, so that no mean of means is taken."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array


def cross_entropy(
  logits: Array, labels: Array, ignore_label: int = 255, weights: Array | None = None
) -> tuple[Array, Array]:
  """Softmax cross-entropy over the labelled pixels: (sum in nats, float32; pixels, int32).

  `logits` is [B, H, W, C] of any float type, `labels` [B, H, W] integers. Pixels of `ignore_label`, or of a label
  outside 0..C-1, add nothing to either and get a gradient of exactly 0. `weights` [C] multiply each pixel's loss by that
  of its label, and leave the number of pixels as it is. Source: MLSL, eqs. 1 and 2, there as sums; weights: the strategic
  curriculum, section 3.3.
  """
  logits = logits.astype(jnp.float32)
  own, kept = _own_class(labels, logits.shape[-1], ignore_label)
  # Masked sums fuse, forwards and backwards; a one-hot product or a gather would not.
  losses = jax.nn.logsumexp(logits, axis=-1) - jnp.where(own, logits, 0).sum(-1)
  if weights is not None:
    losses *= jnp.where(own, weights, 0).sum(-1)
  return jnp.where(kept, losses, 0).sum(), kept.sum(dtype=jnp.int32)


def hard_pixels(logits: Array, labels: Array, below: float, least: int, ignore_label: int = 255) -> Array:
  """Online hard example mining: the labels [B, H, W], all set to `ignore_label` but those of the hard pixels.

  Hard are pixels whose label has a probability of at most `below`; in each example at least `least` labelled pixels, those
  whose label has the smallest (all where fewer are labelled), and more where several equal the last of them. Pixels whose
  logits are NaN stay, so that the loss shows it. Each example by itself; no gradient. Source: released code of MLSL.

  Args:
    logits: [B, H, W, C] of any float type.
    labels: [B, H, W] integers; those outside 0..C-1 are ignored.
    below: in 0..1; 1 keeps all.
    least: pixels an example.
  """
  logits = jax.lax.stop_gradient(logits).astype(jnp.float32)
  own, kept = _own_class(labels, logits.shape[-1], ignore_label)
  # Odds against the label, log((1 - p) / p): where p nears 1, many p (and cross-entropies) are one number, these are not.
  odds = jax.nn.logsumexp(jnp.where(own, -jnp.inf, logits), axis=-1) - jnp.where(own, logits, 0).sum(-1)
  odds = jnp.where(kept, odds, -jnp.inf).reshape(len(labels), -1)
  hardest, _ = jax.lax.top_k(odds, min(least, odds.shape[1]))
  limit = jnp.minimum(-jax.scipy.special.logit(below), hardest.min(axis=1, keepdims=True, initial=jnp.inf))
  hard = ~(odds < limit)  # NaN is hard
  return jnp.where(hard.reshape(labels.shape) & kept, labels, ignore_label)


def labels_at_stride(labels: Array, stride: int, ignore_label: int = 255) -> Array:
  """The labels [B, H, W] in the middle of the cells of an output at `stride`: [B, ceil(H / stride), ceil(W / stride)].

  A last cell whose middle lies outside gets `ignore_label`. Source: released code of CBST (stride 8, offset 4).
  """
  missing = [(0, -length % stride) for length in labels.shape[1:]]
  whole = jnp.pad(labels, [(0, 0), *missing], constant_values=ignore_label)
  return whole[:, stride // 2 :: stride, stride // 2 :: stride]


def _own_class(labels: Array, num_classes: int, ignore_label: int) -> tuple[Array, Array]:
  """Which class is the label's, bool [..., C], and which pixels have a label, bool [...]."""
  labels = labels.astype(jnp.int32)
  kept = (labels != ignore_label) & (labels >= 0) & (labels < num_classes)
  return labels[..., None] == jnp.arange(num_classes), kept


def binary_cross_entropy(logits: Array, targets: Array) -> tuple[Array, Array]:
  """Sigmoid cross-entropy: (sum over images of the mean over classes, in nats, float32; images, int32).

  `logits` and `targets` (1 = present) are [B, C]. Source: MLSL, eq. 5.
  """
  logits, targets = logits.astype(jnp.float32), targets.astype(jnp.float32)
  losses = -targets * jax.nn.log_sigmoid(logits) - (1 - targets) * jax.nn.log_sigmoid(-logits)
  return losses.mean(-1).sum(), jnp.int32(logits.shape[0])


@dataclass(frozen=True)
class Game:
  """What discriminators and features play for: losses by cell, of a discriminator's outputs; 1 is the source.

  Attributes:
    tell_source, tell_target: what the discriminator pays on features of a domain.
    fool_source, fool_target: what the features pay; None: nothing.
    probability: how likely features are the source's, in 0..1.
    chance: what a discriminator pays that knows nothing.
  """

  tell_source: Callable
  tell_target: Callable
  fool_target: Callable
  fool_source: Callable | None
  probability: Callable
  chance: float


_BINARY = {
  "tell_source": lambda x: jax.nn.softplus(-x),
  "tell_target": jax.nn.softplus,
  "probability": jax.nn.sigmoid,
  "chance": math.log(2),
}
# minimax is eqs. 2 to 4 of the multi-adversarial proxies; their features learn little from a discriminator that wins. The
# non-saturating form is Goodfellow et al.'s (2014), least squares Mao et al.'s (2017).
GAMES = {
  "non_saturating": Game(**_BINARY, fool_target=lambda x: jax.nn.softplus(-x), fool_source=None),
  "minimax": Game(**_BINARY, fool_target=lambda x: -jax.nn.softplus(x), fool_source=lambda x: -jax.nn.softplus(-x)),
  "least_squares": Game(
    tell_source=lambda x: (x - 1) ** 2,
    tell_target=lambda x: x**2,
    fool_target=lambda x: (x - 1) ** 2,
    fool_source=None,
    probability=lambda x: jax.nn.sigmoid(4 * (x - 0.5)),  # as steep as x at one half; in 0..1, and without ties
    chance=0.25,
  ),
}


def mean(pair: tuple[Array, Array]) -> Array:
  """sum / max(count, 1) of a (sum, count) pair, float32 []: 0, not NaN, for a batch without a labelled pixel."""
  total, count = pair
  return total / jnp.maximum(count, 1)
