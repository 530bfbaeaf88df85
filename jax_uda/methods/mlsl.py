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

from jax_uda import inference, losses, optimizers, priors, pseudo_labels, steps
from jax_uda.errors import UserError
from jax_uda.methods import self_training
from jax_uda.models import layers
from jax_uda.models.decoders import ImageClassifier
from jax_uda.models.segmenter import STRIDE
from jax_uda.state import DEVICE_AXIS, Fold, Stage, State

predict = self_training.predict


def image_classifier(config: ConfigDict) -> ImageClassifier:
  """The image classifier that the config describes."""
  settings = config.weak_labels
  dtype = layers.compute_dtype(config.network.dtype)
  return ImageClassifier(config.num_classes, activation=settings.activation, width=settings.width, dtype=dtype)


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
  players, alone = _players(config), {"segmenter": self_training.optimizer(config)}
  how = self_training.round_settings(config)
  loss = functools.partial(self_training.supervised_loss, **how)
  if config.weak_labels.weight:
    loss = functools.partial(
      multi_level_loss,
      **how,
      classifier=image_classifier(config),
      weight=config.weak_labels.weight,
      targets=weak_label_rule(config),
    )
  labelling = sisc(config) if config.sisc.patches else self_training.single_inference(config)
  return [
    steps.source_stage(config, sizes, alone, self_training.source_step(config, alone)),
    *self_training.round_stages(
      config,
      sizes,
      players,
      self_training.round_step(config, players, loss),
      self_training.round_labelling(config, sizes, **labelling),
    ),
  ]


def _players(config: ConfigDict) -> dict[str, Any]:
  players = {"segmenter": self_training.optimizer(config)}
  if config.weak_labels.weight:
    settings = config.optimizer
    players["classifier"] = optimizers.sgd(
      settings.momentum,
      settings.weight_decay,
      config.weak_labels.multiplier,
      bias_multiplier=settings.bias_multiplier,
      bias_decay=settings.bias_decay,
    )
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
  targets: Callable,
  **settings: Any,
) -> tuple[jax.Array, tuple[dict, dict]]:
  """Eq. 7: segmentation plus weight · binary cross-entropy of the image labels, on source and target.

  Args:
    targets: (part, class sizes [C]) -> image labels [B, C], see `image_labels`.
  """
  loss, (batch_stats, metrics), latents = self_training.segmentation_loss(params, state, parts, **settings)
  wanted = jnp.concatenate([targets(part, state.hyper["class_sizes"]) for part in parts])
  logits = classifier.apply({"params": params["classifier"]}, jnp.concatenate(latents))
  total, count = losses.binary_cross_entropy(logits, wanted)
  everywhere = jax.lax.psum(count, DEVICE_AXIS)
  metrics = {**metrics, "classifier_loss": (total, count)}
  return loss + weight * losses.mean((total, everywhere)), ({**batch_stats, "classifier": {}}, metrics)


def weak_label_rule(config: ConfigDict) -> Callable:
  """(part, class sizes [C]) -> image labels [B, C], as `config.weak_labels` has it.

  Raises:
    UserError: its `source` or its `scope` has a value that is not offered.
  """
  settings = config.weak_labels
  for name, offered in (("source", ("present", "eta")), ("scope", ("crop", "image"))):
    if settings[name] not in offered:
      raise UserError(f"config.weak_labels.{name} is {settings[name]!r}; choose {' or '.join(offered)}")
  return functools.partial(
    image_labels,
    eta=settings.eta,
    strict=settings.strict,
    source_by_eta=settings.source == "eta",
    prefix="whole_" if settings.scope == "image" else "",
  )


def image_labels(
  part: Mapping[str, jax.Array],
  class_sizes: jax.Array,
  *,
  eta: float,
  strict: bool = True,
  source_by_eta: bool = False,
  prefix: str = "",
) -> jax.Array:
  """Which classes each example shows, float32 [B, C]: any pixel of the truth on source, eq. 4's rule on target.

  Args:
    part: `label` [B, h, w], ground truth or pseudo-labels; `valid` [B, h, w], False beyond the image: all other pixels
      count in the share, ignored ones too; `domain` [B].
    class_sizes: [C], h_s of eq. 4.
    strict: share > eta · h_s; else >=.
    source_by_eta: eq. 4's rule on source too.
    prefix: of the names `label` and `valid`; empty for the crop, `whole_` for the image that it is of.
  """
  label, valid = part[f"{prefix}label"], part[f"{prefix}valid"]
  by_eta = priors.weak_labels(label, class_sizes, eta, strict, valid)
  if source_by_eta:
    return by_eta
  on_source = (part["domain"] == steps.SOURCE)[:, None]
  return jnp.where(on_source, priors.present(label, class_sizes.shape[0], valid), by_eta)


# SISC


def sisc(config: ConfigDict) -> dict[str, Callable]:
  """How images are labelled by their patches: views, forward and assemble of a `Labelling`.

  Raises:
    UserError: the patches do not fit the canvas, or cannot be mirrored cell by cell.
  """
  settings, canvas = config.sisc, tuple(config.canvas)
  patch = tuple(settings.size)
  if settings.relative_size:
    patch = (round(settings.relative_size * canvas[0]),) * 2
  if any(p > c for p, c in zip(patch, canvas, strict=True)):
    raise UserError(f"config.sisc: a patch of {patch} is larger than config.canvas {canvas}; make it smaller")
  if settings.flip and patch[1] % STRIDE:
    raise UserError(f"config.sisc.flip: patches {patch[1]} wide are no multiple of {STRIDE}; make them one")
  whole = self_training.single_inference(config) if settings.whole_image else {}
  scales = inference.parse_scales(config.labels.scales, "config.labels.scales")
  return {
    "views": functools.partial(sisc_views, num=settings.patches, patch=patch),
    "forward": functools.partial(
      sisc_forward,
      patches=functools.partial(
        patch_forward, predict=predict(config), patch=patch, batch=settings.batch, flip=settings.flip
      ),
      whole=whole.get("forward"),
    ),
    "assemble": functools.partial(
      assemble_patches,
      patch=patch,
      votes=settings.votes,
      use_prior=config.labels.prior,
      scales=scales,
      kernel=config.labels.upsampling,
    ),
  }


def sisc_views(key: jax.Array, size: jax.Array, *, num: int, patch: tuple[int, int]) -> dict[str, jax.Array]:
  """Where the K patches of an image begin, int32 [K, 2]; its size [2]."""
  return {"patches": pseudo_labels.random_boxes(key, num, patch, size), "size": size}


def sisc_forward(
  state: State, images: jax.Array, views: Mapping[str, jax.Array], *, patches: Callable, whole: Callable | None
) -> dict[str, Any]:
  """What the network says of each patch alone and, where it counts too, of the whole image.

  Args:
    images: float32 [B, H, W, 3], normalised canvases.
    views: of each image what `sisc_views` gives: `patches` [B, K, 2], `size` [B, 2].
    patches: (state, images, `patches` of the views) -> [B, K, h, w, C], see `patch_forward`.
    whole: (state, images, sizes [B, 2]) -> what `inference.look` gives; None: it does not count.
  """
  outputs = {"patches": patches(state, images, views["patches"])}
  return outputs if whole is None else {**outputs, "whole": whole(state, images, views["size"])}


def patch_forward(
  state: State,
  images: jax.Array,
  boxes: jax.Array,
  *,
  predict: Callable,
  patch: tuple[int, int],
  batch: int,
  flip: bool = False,
) -> jax.Array:
  """Segments each patch alone: float16 log-probabilities [B, K, h, w, C], `batch` patches at a time.

  With `flip` they are of the mean of its softmax and its mirror image's; cells of a mirrored patch lie on the patch's.
  """
  num_images, num_patches = boxes.shape[:2]

  def one(index):
    image, box = images[index // num_patches], boxes[index // num_patches, index % num_patches]
    crop = jax.lax.dynamic_slice(image, (box[0], box[1], 0), (*patch, 3))
    if not flip:
      return inference.log_probabilities(predict(state, crop[None])[0])
    straight, mirrored = jax.nn.log_softmax(predict(state, jnp.stack([crop, crop[:, ::-1]])))
    return inference.log_probabilities(jnp.logaddexp(straight, mirrored[:, ::-1]))

  outputs = jax.lax.map(one, jnp.arange(num_images * num_patches), batch_size=batch)
  return outputs.reshape(num_images, num_patches, *outputs.shape[1:])


def assemble_patches(
  hyper: Mapping[str, jax.Array],
  outputs: Mapping[str, Any],
  boxes: Mapping[str, jax.Array],
  size: jax.Array,
  canvas: tuple[int, int],
  *,
  patch: tuple[int, int],
  votes: bool,
  use_prior: bool,
  scales: tuple[float, ...] = (1.0,),
  kernel: str = "linear",
) -> tuple[jax.Array, jax.Array, dict]:
  """The mean softmax of the patches that see a pixel (section 3.2), or the relative frequency of their argmax.

  Args:
    outputs: `patches` [K, h, w, C] of one image; `whole`, where the whole image is one more vote.
    boxes: `patches` [K, 2].

  Returns:
    Scores [H, W, C]; where a patch saw the image, bool [H, W].
  """
  vote = pseudo_labels.votes if votes else lambda scores: scores

  def probabilities(output):
    return vote(inference.upsample(jnp.exp(output.astype(jnp.float32)), patch, kernel=kernel))

  whole = None
  if "whole" in outputs:
    whole = vote(inference.mean_of_looks(outputs["whole"], size, canvas, scales, kernel))
  scores, covered = inference.mean_of_patches(outputs["patches"], boxes["patches"], canvas, probabilities, whole)
  if use_prior:
    scores = priors.apply_prior(scores, hyper["prior"], size)
  return scores, covered & inference.content_mask(size, canvas), {}
