"""Losses as (sum, count): callers add both over devices and divide once, so that no mean of means is taken."""

import jax
import jax.numpy as jnp
from jax import Array


def cross_entropy(logits: Array, labels: Array, ignore_label: int = 255) -> tuple[Array, Array]:
  """Softmax cross-entropy over the labelled pixels: (sum in nats, float32; pixels, int32).

  `logits` is [B, H, W, C] of any float type, `labels` [B, H, W] integers. Pixels of `ignore_label`, or of a label
  outside 0..C-1, add nothing to either and get a gradient of exactly 0. Source: MLSL, eqs. 1 and 2, there as sums.
  """
  logits, labels = logits.astype(jnp.float32), labels.astype(jnp.int32)
  classes = jnp.arange(logits.shape[-1])
  kept = (labels != ignore_label) & (labels >= 0) & (labels < classes.size)
  # A masked sum fuses, forwards and backwards; a one-hot product or a gather would not.
  at_label = jnp.where(labels[..., None] == classes, logits, 0).sum(-1)
  losses = jax.nn.logsumexp(logits, axis=-1) - at_label
  return jnp.where(kept, losses, 0).sum(), kept.sum(dtype=jnp.int32)


def binary_cross_entropy(logits: Array, targets: Array) -> tuple[Array, Array]:
  """Sigmoid cross-entropy: (sum over images of the mean over classes, in nats, float32; images, int32).

  `logits` and `targets` (1 = present) are [B, C]. Source: MLSL, eq. 5.
  """
  logits, targets = logits.astype(jnp.float32), targets.astype(jnp.float32)
  losses = -targets * jax.nn.log_sigmoid(logits) - (1 - targets) * jax.nn.log_sigmoid(-logits)
  return losses.mean(-1).sum(), jnp.int32(logits.shape[0])


def mean(pair: tuple[Array, Array]) -> Array:
  """sum / max(count, 1) of a (sum, count) pair: 0, not NaN, for a batch without a labelled pixel."""
  total, count = pair
  return total / jnp.maximum(count, 1)
