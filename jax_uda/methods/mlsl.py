"""Multi-level self-supervised learning, MLSL (Iqbal and Ali, WACV 2020): self-training on two levels.

Pixels: SISC pseudo-labels. The network segments K random patches of a target image, each alone; their softmax volumes are
added at their places and divided by how often each pixel was seen, then go to class-balanced selection (section 3.2).

Images: pseudo weak-labels, PWL. Which classes does the crop show? A class counts as present where its share of the pixels
is more than eta times what it is in source images that have it (eq. 4); an image classifier on the latent map learns
that (eq. 5) beside the segmentation (eqs. 6 and 7). `config.weak_labels.weight = 0` leaves it out.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jax_uda import inference, losses, optimizers, priors, pseudo_labels
from jax_uda.errors import UserError
from jax_uda.methods import self_training
from jax_uda.models import layers
from jax_uda.models.decoders import ImageClassifier
from jax_uda.state import DEVICE_AXIS, Fold, Stage, State

predict = self_training.predict


def image_classifier(config: ConfigDict) -> ImageClassifier:
  """The image classifier that the config describes."""
  settings = config.weak_labels
  return ImageClassifier(config.num_classes, width=settings.width, dtype=layers.compute_dtype(config.network.dtype))


def init(config: ConfigDict, key: jax.Array) -> State:
  """A segmenter and, where weak labels are used, the image classifier on its latent map."""
  state = self_training.init(config, key)
  if not config.weak_labels.weight:
    return state
  latent = jax.eval_shape(
    self_training.segmenter(config).init_with_output, key, jnp.zeros((1, *config.augmentation.crop, 3))
  )[0][1]
  variables = jax.jit(image_classifier(config).init)(jax.random.fold_in(key, 1), jnp.zeros(latent.shape))
  classifier = optimizers.make_network(variables, _players(config)["classifier"])
  return state.replace(networks={**state.networks, "classifier": classifier})


def label_statistics(config: ConfigDict) -> dict[str, Fold]:
  """Class sizes for the weak labels, and the spatial prior where it is used."""
  result = self_training.label_statistics(config)
  if config.weak_labels.weight:
    result["class_sizes"] = Fold(
      init=functools.partial(priors.init_class_sizes, config.num_classes),
      update=add_class_sizes,
      merge=priors.merge,
      finish=priors.finish_class_sizes,
    )
  return result


def stages(config: ConfigDict, sizes: Mapping[str, int]) -> Sequence[Stage]:
  """`source` (the segmenter alone), then rounds on SISC labels and weak labels."""
  settings = config.sisc
  if any(p > c for p, c in zip(settings.size, config.canvas, strict=True)):
    raise UserError(f"config.sisc.size {tuple(settings.size)} is larger than config.canvas {tuple(config.canvas)}")
  players, alone = _players(config), {"segmenter": self_training.optimizer(config)}
  supervised = self_training.supervised_loss
  first = self_training.joint_step(config, alone, functools.partial(supervised, model=self_training.segmenter(config)))
  how = self_training.round_settings(config)
  loss = functools.partial(supervised, **how)
  if config.weak_labels.weight:
    loss = functools.partial(
      multi_level_loss,
      **how,
      classifier=image_classifier(config),
      weight=config.weak_labels.weight,
      eta=config.weak_labels.eta,
    )
  streams = self_training.round_streams(config)
  later = self_training.joint_step(config, players, loss, streams, config.rounds.jitter)
  patch = tuple(settings.size)
  labelling = self_training.round_labelling(
    config,
    views=functools.partial(patch_boxes, num=settings.patches, patch=patch),
    forward=functools.partial(patch_forward, predict=predict(config), patch=patch, batch=settings.batch),
    assemble=functools.partial(assemble_patches, patch=patch, votes=settings.votes, use_prior=config.labels.prior),
  )
  return [
    self_training.source_stage(config, sizes, alone, first),
    *self_training.statistics_stages(config),
    *self_training.round_stages(config, sizes, players, later, labelling),
  ]


def _players(config: ConfigDict) -> dict[str, Any]:
  players = {"segmenter": self_training.optimizer(config)}
  if config.weak_labels.weight:
    settings = config.optimizer
    players["classifier"] = optimizers.sgd(settings.momentum, settings.weight_decay, config.weak_labels.multiplier)
  return players


# Image level


def add_class_sizes(stat: priors.ClassSizes, label: jax.Array, size: jax.Array) -> priors.ClassSizes:
  """One source label [H, W], of which `size` [2] is image, into the sums of eq. 4."""
  return priors.update_class_sizes(stat, label, inference.content_mask(size, label.shape))


def multi_level_loss(
  params: Mapping[str, Any],
  state: State,
  parts: Sequence[Mapping[str, jax.Array]],
  *,
  classifier: ImageClassifier,
  weight: float,
  eta: float,
  **settings: Any,
) -> tuple[jax.Array, tuple[dict, dict]]:
  """Eq. 7: segmentation plus weight · binary cross-entropy of the image labels, on source and target."""
  loss, (batch_stats, metrics), latents = self_training.segmentation_loss(params, state, parts, **settings)
  label, valid, domain = (jnp.concatenate([part[name] for part in parts]) for name in ("label", "valid", "domain"))
  targets = image_labels(label, valid, domain, state.hyper["class_sizes"], eta)
  logits = classifier.apply({"params": params["classifier"]}, jnp.concatenate(latents))
  total, count = losses.binary_cross_entropy(logits, targets)
  everywhere = jax.lax.psum(count, DEVICE_AXIS)
  metrics = {**metrics, "classifier_loss": (total, count)}
  return loss + weight * losses.mean((total, everywhere)), ({**batch_stats, "classifier": {}}, metrics)


def image_labels(
  label: jax.Array, valid: jax.Array, domain: jax.Array, class_sizes: jax.Array, eta: float
) -> jax.Array:
  """Which classes each crop shows, float32 [B, C]: any pixel of the truth on source, eq. 4's rule on target.

  Args:
    label: [B, h, w], ground truth or pseudo-labels.
    valid: [B, h, w], False beyond the image; all other pixels count in the share, ignored ones too.
    domain: [B].
    class_sizes: [C], h_s of eq. 4.
  """
  on_source = priors.present(label, class_sizes.shape[0])
  on_target = priors.weak_labels(label, class_sizes, eta, valid=valid)
  return jnp.where((domain == self_training.SOURCE)[:, None], on_source, on_target)


# SISC


def patch_boxes(key: jax.Array, size: jax.Array, *, num: int, patch: tuple[int, int]) -> jax.Array:
  """Where the K patches of an image begin, int32 [K, 2]."""
  return pseudo_labels.random_boxes(key, num, patch, size)


def patch_forward(
  state: State, images: jax.Array, boxes: jax.Array, *, predict: Callable, patch: tuple[int, int], batch: int
) -> jax.Array:
  """Segments each patch alone: float16 log-probabilities [B, K, h, w, C], `batch` patches at a time."""
  num_images, num_patches = boxes.shape[:2]

  def one(index):
    image, box = images[index // num_patches], boxes[index // num_patches, index % num_patches]
    crop = jax.lax.dynamic_slice(image, (box[0], box[1], 0), (*patch, 3))
    return inference.log_probabilities(predict(state, crop[None])[0])

  outputs = jax.lax.map(one, jnp.arange(num_images * num_patches), batch_size=batch)
  return outputs.reshape(num_images, num_patches, *outputs.shape[1:])


def assemble_patches(
  hyper: Mapping[str, jax.Array],
  outputs: jax.Array,
  boxes: jax.Array,
  size: jax.Array,
  canvas: tuple[int, int],
  *,
  patch: tuple[int, int],
  votes: bool,
  use_prior: bool,
) -> tuple[jax.Array, jax.Array, dict]:
  """The mean softmax of the patches that see a pixel (section 3.2), or the relative frequency of their argmax.

  Args:
    outputs: [K, h, w, C] of one image.
    boxes: [K, 2].

  Returns:
    Scores [H, W, C]; where a patch saw the image, bool [H, W].
  """

  def probabilities(output):
    patch_scores = inference.upsample(jnp.exp(output.astype(jnp.float32)), patch)
    return pseudo_labels.votes(patch_scores) if votes else patch_scores

  scores, covered = inference.mean_of_patches(outputs, boxes, canvas, probabilities)
  if use_prior:
    scores = priors.apply_prior(scores, hyper["prior"], size)
  return scores, covered & inference.content_mask(size, canvas), {}
