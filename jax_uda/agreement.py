"""Where the branches of an ensemble agree, what that keeps of the labels, and how alike the branches are.

Symbols: branch = a decoder; its prediction = the argmax of its logits; easy = a pixel of which all branches predict the
same. Axes: E = branches, B = batch, H, W = pixels, C = classes. Source: the strategic curriculum of proxy labels, sections
3.2 and 3.3.
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

# The ensemble.


def variation_ratio(predictions: Array) -> Array:
  """Share of the branches that do not vote with the mode, float32 [...], of `predictions` [E, ...], integers.

  0 where all agree, 1 - 1/E where no two do. Source: eqs. 1 to 3.
  """
  frequency = (predictions[:, None] == predictions).sum(1)  # a prediction's, itself among them
  return (len(predictions) - frequency.max(0)) / len(predictions)


def agreement(votes: Array, predicted: Array) -> Array:
  """Which pixels are easy, bool [...]: those of a variation ratio of 0, where all branches say what the ensemble says.

  Args:
    votes: logits [E, ..., C] by which the branches vote.
    predicted: integers [...], what the ensemble says; of the mean of just these logits, it is what all branches say.
  """
  classes = votes.argmax(-1)
  return (variation_ratio(classes) == 0) & (classes[0] == predicted)


def proxy_labels(logits: Array) -> Array:
  """The ensemble's prediction, int32 [...]: argmax of the mean of the `logits` [E, ..., C]. No gradient."""
  return jax.lax.stop_gradient(logits).astype(jnp.float32).mean(0).argmax(-1).astype(jnp.int32)


# Mining.


def keep_easy(labels: Array, agree: Array, ignore_label: int = 255) -> Array:
  """Target easy mining: the labels [B, H, W], `ignore_label` where `agree` (bool [B, H, W]) says that branches differ."""
  return jnp.where(agree, labels, ignore_label)


def stands_for(pixels: Array, kept: Array, most: float = 10.0) -> Array:
  """How many pixels of a class each kept one stands for, float32 [C]: `pixels` / `kept`, [C] integers, at most `most`.

  Weighed by it, a class has the share in the loss that it has in the prediction, however few of its pixels are easy.
  """
  return jnp.minimum(pixels / jnp.maximum(kept, 1), most)


def thin_easy(labels: Array, agree: Array, ratio: ArrayLike, keys: Array, ignore_label: int = 255) -> Array:
  """Source hard mining: the labels [B, H, W], a share of the easy pixels set to `ignore_label`.

  Args:
    labels: [B, H, W] integers.
    agree: bool [B, H, W], the easy pixels; what is not easy stays.
    ratio: probability in 0..1 to drop an easy pixel, each by itself: 0 drops none, 1 all. May be traced.
    keys: [B] PRNG keys; what is drawn for an example depends on its own key alone, so not on how the batch is split over
      devices.
    ignore_label: what dropped pixels get.
  """
  draws = jax.vmap(lambda key: jax.random.uniform(key, labels.shape[1:]))(keys)  # below 1
  return jnp.where(agree & (draws < ratio), ignore_label, labels)


# The similarity penalty. Its arguments are the decoders' parameters, alike in structure.


def similarity(decoders: Sequence[Any]) -> Array:
  """Cosine of the decoders' convolution weights, each decoder's as one vector: float32 [] in -1..1, with its sign.

  Biases and BatchNorm take no part. More than two decoders: the mean over pairs; one: 0. Source: eq. 4 and the text before.
  """
  return _mean_over_pairs(_cosine, [_convolution_weights(decoder) for decoder in decoders])


def last_layer_similarity(decoders: Sequence[Any]) -> Array:
  """Sum over all pairs of classes of |w1' w2|, w the last convolutions' (`logits`) weights [..., C]: float32 [], from 0.

  More than two decoders: the mean over their pairs; one: 0. Source: released code, in place of `similarity`.
  """
  kernels = [decoder["logits"]["kernel"] for decoder in decoders]
  return _mean_over_pairs(_product, [kernel.reshape(-1, kernel.shape[-1]) for kernel in kernels])


def _convolution_weights(decoder: Any) -> Array:
  leaves = jax.tree_util.tree_leaves_with_path(decoder)
  return jnp.concatenate([leaf.ravel() for path, leaf in leaves if path[-1].key == "kernel"])


def _mean_over_pairs(alike: Callable[[Array, Array], Array], weights: Sequence[Array]) -> Array:
  pairs = [alike(*pair) for pair in combinations(weights, 2)]
  return jnp.stack(pairs).mean() if pairs else jnp.float32(0)


def _cosine(a: Array, b: Array) -> Array:
  return (a * b).sum() / jnp.sqrt((a * a).sum() * (b * b).sum())


def _product(a: Array, b: Array) -> Array:
  return jnp.abs(jnp.matmul(a.T, b, precision=jax.lax.Precision.HIGHEST)).sum()
