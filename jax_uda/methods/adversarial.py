"""Multi-adversarial proxies (Shen et al. 2019): discriminators align features, and help to choose the labels.

Stages: `source`, supervised training. `adversarial`: the segmenter learns on, and to give features of the target, at two
depths, that discriminators take for the source's. `retrain`: the target is labelled where both the discriminators and the
classifier are confident (eq. 5), and the segmenter is trained afresh on these proxies alone.

Each step of `adversarial` is one pure function. The segmenter passes the source, then the target; then each player is
updated by its own optimizer: the segmenter, discriminator 1 (of the features F), discriminator 2 (of its part F_l). What a
player may not move is held by `stop_gradient`: the segmenter's loss sees fixed discriminators, theirs see fixed features.
All gradients are of the outputs of that one forward, so nobody sees another's update before the next step.

The rungs of the paper's ladder are fields: `config.mode = source_only`, `config.adversarial.discriminators`,
`config.retraining.steps = 0`, `config.eval_scales`.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from jax_uda import inference, losses, optimizers, pseudo_labels, steps
from jax_uda.data.label_spaces import IGNORE
from jax_uda.errors import UserError
from jax_uda.methods import self_training
from jax_uda.models import layers
from jax_uda.models.discriminator import PatchDiscriminator
from jax_uda.models.segmenter import FusionSegmenter
from jax_uda.state import DEVICE_AXIS, Fold, Labelling, Stage, State, Stream, TrainStep

PATCH = 32  # pixels per position of a discriminator's output
POOLINGS = (3, 2)  # from the strides of F and F_l, 4 and 8
WON, AT_CHANCE = 0.05, 0.98  # a discriminator's loss, and its part of what knowing nothing costs
LONG = 500  # steps, for which that has to hold before it is worth a warning


def segmenter(config: ConfigDict) -> FusionSegmenter:
  """The network that the config describes."""
  return FusionSegmenter(num_classes=config.num_classes, **config.network)


def discriminators(config: ConfigDict) -> dict[str, PatchDiscriminator]:
  """By the names that they have as players, in order.

  Raises:
    UserError: there are not as many, or what they learn with will not do.
  """
  settings = config.adversarial
  if settings.discriminators not in (1, 2):
    raise UserError(f"config.adversarial.discriminators is {settings.discriminators}; choose 1 or 2")
  for name in ("rate", "discriminator_rate", "target_scale"):
    if not settings[name] > 0:
      raise UserError(f"config.adversarial.{name} is {settings[name]}; give a number above 0")
  dtype = layers.compute_dtype(config.network.dtype)
  poolings = POOLINGS[: settings.discriminators]
  return {f"discriminator_{i}": PatchDiscriminator(n, settings.channels, dtype) for i, n in enumerate(poolings, start=1)}


def optimizer(config: ConfigDict) -> optax.GradientTransformation:
  """The segmenter's optimizer, with a learning rate of 1."""
  settings = config.optimizer
  sgd = functools.partial(optimizers.sgd, settings.momentum, settings.weight_decay, clip=settings.clip)
  new = sgd(multiplier=settings.decoder_multiplier)
  return optimizers.by_module({"backbone": sgd(), "decoder": new, "head": new})


def _adam(config: ConfigDict) -> optax.GradientTransformation:
  settings = config.adversarial
  return optimizers.adam(settings.beta1, settings.beta2, settings.discriminator_rate / settings.rate)


def init(config: ConfigDict, key: jax.Array) -> State:
  """A segmenter from `config.weights`, or at random; and its discriminators."""
  model, judges = segmenter(config), discriminators(config)
  network = steps.first_network(config, model, optimizer(config), key)
  _, features = jax.eval_shape(model.init_with_output, key, jnp.zeros((1, *config.augmentation.crop, 3)))[0]
  networks = {"segmenter": network}
  for place, ((name, judge), seen) in enumerate(zip(judges.items(), features, strict=False), start=1):
    variables = jax.jit(judge.init)(jax.random.fold_in(key, place), jnp.zeros(seen.shape))
    networks[name] = optimizers.make_network(variables, _adam(config))
  return State(jnp.int32(0), networks, optimizers.schedule(0.0, 1, 0.0))


def predict(config: ConfigDict) -> Callable:
  """(state, images float32 [B, H, W, 3]) -> logits [B, h, w, C]."""
  return steps.predictor(segmenter(config))


def label_statistics(config: ConfigDict) -> dict[str, Fold]:
  """None."""
  del config
  return {}


def stages(config: ConfigDict, sizes: Mapping[str, int]) -> Sequence[Stage]:
  """`source`, `adversarial` and `retrain`; without the target where `config.mode` has none.

  Raises:
    UserError: a field has a value that is not offered.
  """
  steps.check_mode(config)
  players = {"segmenter": optimizer(config)}
  plain = _plain_step(config, players, "train")
  result = [steps.source_stage(config, sizes, players, plain)]
  if config.mode == "oracle":
    return [*result, *_retrain(config, sizes, players)]
  if config.adversarial.steps:
    result.append(_adversarial(config, players, plain))
  return [*result, *(_retrain(config, sizes, players) if config.mode == "adapt" else ())]


def _plain_step(
  config: ConfigDict, players: Mapping[str, optax.GradientTransformation], stream: str, jitter: float = 0.0, **fields: Any
) -> TrainStep:
  """A step on labels alone; `fields` are of the augmentation."""
  loss = functools.partial(self_training.supervised_loss, model=segmenter(config))
  how = {"streams": {stream: steps.augmentation(config, jitter, **fields)}, "players": players, "loss": loss}
  return TrainStep((stream,), functools.partial(steps.train_step, **how))


def _adversarial(config: ConfigDict, players: Mapping[str, optax.GradientTransformation], plain: TrainStep) -> Stage:
  """The stage `adversarial`; in mode source_only, as many plain steps on the source."""
  settings = config.adversarial
  streams, kinds = {"train": Stream(("source",), settings.batch)}, {"train": plain}
  if config.mode == "adapt":
    players = {**players, **dict.fromkeys(discriminators(config), _adam(config))}
    scale = settings.target_scale
    seen = {
      "source": steps.augmentation(config),
      "target": steps.augmentation(config, crop=settings.target_crop, scale=(scale, scale)),
    }
    how = {"streams": seen, "players": players, "loss": adversarial_rule(config)}
    kinds = {"adversarial": TrainStep(tuple(seen), functools.partial(steps.train_step, **how))}
    streams = {"source": Stream(("source",), settings.batch), "target": Stream(("target_images",), settings.batch)}
  hyper, (kind,) = optimizers.schedule(settings.rate, settings.steps, 0.0), kinds
  stage = Stage(
    name="adversarial",
    num_steps=settings.steps,
    streams=streams,
    steps=kinds,
    begin=functools.partial(steps.begin, players=players, hyper=hyper, num_steps=settings.steps),
    pick=lambda step: kind,
    warnings=functools.partial(warnings, chance=game(config).chance),
  )
  return _with_statistics(config, stage, settings.batch) if config.mode == "adapt" else stage


def _retrain(
  config: ConfigDict, sizes: Mapping[str, int], players: Mapping[str, optax.GradientTransformation]
) -> list[Stage]:
  """The stage `retrain`, on the target alone: its proxies, or the oracle's truth."""
  settings = config.retraining
  if not settings.steps:
    return []
  step = _plain_step(config, players, "target", settings.jitter, crop=settings.crop, scale=settings.scale)
  hyper = optimizers.schedule(settings.rate, settings.steps, settings.power)
  begin = functools.partial(steps.begin, players=players, hyper=hyper, num_steps=settings.steps)
  stage = Stage(
    name="retrain",
    num_steps=settings.steps,
    streams={"target": Stream(("target",) if config.mode == "adapt" else ("target_truth",), settings.batch)},
    steps={"train": step},
    begin=functools.partial(afresh, config=config, then=begin) if settings.fresh else begin,
    pick=lambda step: "train",
    labelling=labelling(config, sizes) if config.mode == "adapt" else None,
  )
  return [_with_statistics(config, stage, settings.batch)]


def _with_statistics(config: ConfigDict, stage: Stage, batch: int) -> Stage:
  if not config.statistics_steps:
    return stage
  return steps.followed_by(stage, steps.statistics_stage(segmenter(config), config.statistics_steps, batch))


def afresh(state: State, key: jax.Array, *, config: ConfigDict, then: Callable) -> State:
  """A stage's start with a segmenter as `init` makes it, by another draw."""
  network = steps.first_network(config, segmenter(config), optimizer(config), key)
  return then(state.replace(networks={**state.networks, "segmenter": network}), key)


# Adversarial training


def game(config: ConfigDict) -> losses.Game:
  """What is played; raises `UserError` for a `config.adversarial.loss` that is not offered."""
  if config.adversarial.loss not in losses.GAMES:
    raise UserError(f"config.adversarial.loss is {config.adversarial.loss!r}; choose one of {', '.join(losses.GAMES)}")
  return losses.GAMES[config.adversarial.loss]


def adversarial_rule(config: ConfigDict) -> Callable:
  """`adversarial_loss` as the config has it, as `steps.train_step` wants it."""
  settings = config.adversarial
  judges = discriminators(config)
  return functools.partial(
    adversarial_loss,
    model=segmenter(config),
    judges=judges,
    rules=game(config),
    segmentation_weight=settings.segmentation_weight,
    weights=(settings.weight_1, settings.weight_2)[: len(judges)],
  )


def adversarial_loss(
  params: Mapping[str, Any],
  state: State,
  parts: Sequence[Mapping[str, jax.Array]],
  *,
  model: FusionSegmenter,
  judges: Mapping[str, PatchDiscriminator],
  rules: losses.Game,
  segmentation_weight: float,
  weights: Sequence[float],
) -> tuple[jax.Array, tuple[dict, dict]]:
  """What all players pay, added up (eq. 4): nobody's part moves another, so each one's gradient is of its own alone.

  The segmenter pays lambda times what eqs. 2 and 3 say of its features; each discriminator half of what they say of it (the
  mean over both domains), without lambda, to which its Adam would be blind.

  Args:
    parts: of the source and of the target, which may differ in size; see `steps.examples`: image float32 [B, H, W, 3],
      label uint8 [B, H, W], valid bool [B, H, W].
    judges: discriminators by player; the first sees F, the second F_l.
    segmentation_weight, weights: lambda_seg, and lambda_i of each discriminator.

  Returns:
    This device's part of the loss, float32 []; (batch statistics by player, metrics).
  """
  source, target = parts
  loss, (_, metrics), (source_features,) = self_training.segmentation_loss(params, state, [source], model=model)
  variables = state.networks["segmenter"].replace(params=params["segmenter"]).variables
  (_, target_features), changed = model.apply(
    variables, target["image"], train=True, classify=False, mutable=["batch_stats"]
  )
  loss *= segmentation_weight
  inside = [cells(part["valid"]) for part in parts]

  def mean(values, counted):
    return losses.mean((jnp.sum(values * counted), jax.lax.psum(counted.sum(), DEVICE_AXIS)))

  part_of_one = 1 / jax.lax.psum(1.0, DEVICE_AXIS)  # this device's, of what is a mean over all of them
  batch_stats = {"segmenter": changed.get("batch_stats", variables["batch_stats"])}
  for (name, judge), weight, *features in zip(judges.items(), weights, source_features, target_features, strict=False):
    fixed, moving = jax.lax.stop_gradient((params[name], features))
    fooled = mean(rules.fool_target(judge.apply({"params": fixed}, features[1])), inside[1])
    if rules.fool_source is not None:
      fooled += mean(rules.fool_source(judge.apply({"params": fixed}, features[0])), inside[0])
    of_source, of_target = (judge.apply({"params": params[name]}, x) for x in moving)
    told = (mean(rules.tell_source(of_source), inside[0]) + mean(rules.tell_target(of_target), inside[1])) / 2
    right = [rules.probability(of_source) > 0.5, rules.probability(of_target) <= 0.5]
    loss += weight * fooled + told
    batch_stats[name] = {}
    metrics[f"{name}_loss"] = (told, part_of_one)
    metrics[f"{name}_accuracy"] = ((mean(right[0], inside[0]) + mean(right[1], inside[1])) / 2, part_of_one)
    metrics[f"{name}_fooling_loss"] = (fooled, part_of_one)
  return loss, (batch_stats, metrics)


def cells(valid: jax.Array) -> jax.Array:
  """Which positions of a discriminator's output see anything of the image: of `valid` [B, H, W], bool at stride 32."""
  whole = jnp.pad(valid, [(0, 0), *((0, -n % PATCH) for n in valid.shape[1:])])
  batch, height, width = whole.shape
  return whole.reshape(batch, height // PATCH, PATCH, width // PATCH, PATCH).any((2, 4))


def warnings(records: Sequence[Mapping[str, Any]], *, chance: float) -> list[str]:
  """What is worth telling of the log lines so far: a discriminator that has won or lost outright, and for long."""
  lines = []
  for i in range(1, 1 + len(POOLINGS)):
    name, stage = f"discriminator_{i}_loss", records[-1]["stage_index"]
    played = [record for record in records if record["stage_index"] == stage and name in record]
    if not played or played[-1]["step"] < LONG:
      continue
    paid = [record[name] for record in played if record["step"] > played[-1]["step"] - LONG]
    if max(paid) < WON:
      lines.append(
        f"discriminator {i} tells the domains apart for sure (its loss is under {WON} for {LONG} steps), and features "
        f"learn little from it; lower config.adversarial.discriminator_rate, or raise weight_{i}"
      )
    elif min(paid) > AT_CHANCE * chance:
      lines.append(
        f"discriminator {i} is at chance for {LONG} steps, and says nothing of what it sees; raise "
        f"config.adversarial.discriminator_rate, or lower weight_{i}"
      )
  return lines


# Proxies


def labelling(config: ConfigDict, sizes: Mapping[str, int]) -> Labelling:
  """How the target is labelled for `retrain` (section 2.3).

  Raises:
    UserError: a field has a value that is not offered.
  """
  labels = config.labels
  for name, offered in (("confidence", pseudo_labels.SCALES), ("rank", pseudo_labels.RANKS)):
    if labels[name] not in offered:
      raise UserError(f"config.labels.{name} is {labels[name]!r}; choose one of {', '.join(offered)}")
  for name in ("p1", "p2"):
    if not 0 < labels[name] <= 1:
      raise UserError(f"config.labels.{name} is {labels[name]}; give a share, above 0 and up to 1")
  if labels.p1 < 1 and not config.adversarial.steps:
    raise UserError(f"config.labels.p1 is {labels.p1}, but with adversarial.steps=0 no discriminator has learnt; set 1")
  if not labels.scale > 0:
    raise UserError(f"config.labels.scale is {labels.scale}; give a number above 0")
  judges = discriminators(config)
  folds = {
    "scale": Fold(
      init=functools.partial(pseudo_labels.init_verdicts, len(judges)),
      update=add_verdicts,
      merge=pseudo_labels.merge_verdicts,
      finish=functools.partial(pseudo_labels.scale_of, kind=labels.confidence),
    ),
    "focus": Fold(
      init=functools.partial(pseudo_labels.init_histogram, 1),
      update=add_confidences,
      merge=pseudo_labels.merge_histograms,
      finish=functools.partial(pseudo_labels.focus_threshold, portion=labels.p1, rank=labels.rank),
    ),
    "pools": _pools(config, labels.p2, focused=True),
    "pools_alone": _pools(config, labels.p1 * labels.p2, focused=False),
  }
  return Labelling(
    views=self_training.whole_image,
    forward=functools.partial(look, model=segmenter(config), judges=judges, scale=labels.scale),
    assemble=functools.partial(assemble, rules=game(config), scale=labels.scale),
    folds=folds,
    select=select,
    numbers=functools.partial(numbers, p1=labels.p1, p2=labels.p2),
    batch=labels.batch,
    num=sizes["target"],
    others={"labels without the discriminators": select_alone},
    maps={"adversarial confidence": confidence_map},
  )


def _pools(config: ConfigDict, portion: float, focused: bool) -> Fold:
  def finish(histogram):
    thresholds = pseudo_labels.class_balanced_thresholds(histogram, portion, config.labels.rank)
    return {"thresholds": np.asarray(thresholds), "shares": self_training.pool_shares(histogram)}

  return Fold(
    init=functools.partial(pseudo_labels.init_histogram, config.num_classes),
    update=functools.partial(pool_confidences, focused=focused),
    merge=pseudo_labels.merge_histograms,
    finish=finish,
  )


def look(
  state: State,
  images: jax.Array,
  sizes: jax.Array,
  *,
  model: FusionSegmenter,
  judges: Mapping[str, PatchDiscriminator],
  scale: float,
) -> dict[str, jax.Array]:
  """What the network says of whole images, scaled: log-probabilities `low` [B, h, w, C], `verdicts` [B, h', w', D]."""
  del sizes
  logits, features = model.apply(state.networks["segmenter"].variables, inference.scaled(images, scale))
  verdicts = [
    judge.apply({"params": state.networks[name].params}, x)
    for (name, judge), x in zip(judges.items(), features, strict=False)
  ]
  return {"low": inference.log_probabilities(logits), "verdicts": jnp.stack(verdicts, axis=-1)}


def assemble(
  hyper: Mapping[str, jax.Array],
  outputs: Mapping[str, jax.Array],
  boxes: jax.Array,
  size: jax.Array,
  canvas: tuple[int, int],
  *,
  rules: losses.Game,
  scale: float,
) -> tuple[jax.Array, jax.Array, dict]:
  """Of one image: P [H, W, C]; what is image, bool [H, W]; and in cells of a discriminator's output, how likely each is the
  source's, [h, w, D], which of them are image and not padding, bool [h, w], and how many pixels they are high and wide.
  """
  del hyper, boxes
  scores = inference.mean_of_looks([{"low": outputs["low"]}], size, canvas, (scale,))
  cell = [PATCH * n / m for n, m in zip(canvas, inference.scaled_canvas(canvas, scale), strict=True)]
  # A cell of which little is image tells of padding: those that are half as full as the fullest count.
  rows, columns = (
    jnp.clip(size[axis] - cell[axis] * jnp.arange(n), 0, cell[axis]) for axis, n in enumerate(outputs["verdicts"].shape[:2])
  )
  inside = (2 * rows >= rows.max())[:, None] & (2 * columns >= columns.max())
  extras = {"domains": rules.probability(outputs["verdicts"]), "inside": inside, "cell": jnp.array(cell)}
  return scores, inference.content_mask(size, canvas), extras


def confidence(found: Mapping[str, Any], valid: jax.Array, extras: Mapping[str, jax.Array]) -> jax.Array:
  """A [H, W], the adversarial confidence: of cells, then of the pixels between them."""
  inside = extras["inside"][..., None].astype(jnp.float32)
  low = pseudo_labels.adversarial_confidence(extras["domains"], found["scale"])[..., None]
  values, weights = (inference.upsample(x, valid.shape, extras["cell"])[..., 0] for x in (low * inside, inside))
  return values / jnp.where(weights > 0, weights, 1)


def focus(found: Mapping[str, Any], valid: jax.Array, extras: Mapping[str, jax.Array]) -> jax.Array:
  """Where A > t1, bool [H, W]."""
  return valid & (confidence(found, valid, extras) > found["focus"])


def add_verdicts(stat: Any, found: dict, scores: jax.Array, valid: jax.Array, extras: dict) -> Any:
  """One image's discriminator outputs, the extras' `domains` [h, w, D], into what their scale is found from."""
  del found, scores
  return pseudo_labels.update_verdicts(stat, extras["domains"], extras["inside"] & valid.any())


def add_confidences(stat: Any, found: dict, scores: jax.Array, valid: jax.Array, extras: dict) -> Any:
  """One image's A [H, W] into what t1 is found from."""
  del scores
  return pseudo_labels.update_focus(stat, confidence(found, valid, extras), valid)


def pool_confidences(stat: Any, found: dict, scores: jax.Array, valid: jax.Array, extras: dict, *, focused: bool) -> Any:
  """One image's confidences, of P [H, W, C], into the pools of their classes, where A > t1; or everywhere."""
  return pseudo_labels.update_histogram(stat, scores, focus(found, valid, extras) if focused else valid)


def select(found: dict, scores: jax.Array, valid: jax.Array, extras: dict) -> jax.Array:
  """Eq. 5: proxies uint8 [H, W] of P [H, W, C]."""
  return pseudo_labels.select(scores, found["pools"]["thresholds"], IGNORE, focus(found, valid, extras))


def select_alone(found: dict, scores: jax.Array, valid: jax.Array, extras: dict) -> jax.Array:
  """As many proxies, uint8 [H, W], chosen by class balance alone: as with p1 = 1 and p1 · p2 for p2 (figure 6)."""
  del extras
  return pseudo_labels.select(scores, found["pools_alone"]["thresholds"], IGNORE, valid)


def confidence_map(found: dict, scores: jax.Array, valid: jax.Array, extras: dict) -> jax.Array:
  """A, float32 [H, W], for figure 6."""
  del scores
  return confidence(found, valid, extras)


def numbers(found: Mapping[str, Any], *, p1: float, p2: float) -> dict[str, Any]:
  """What a person may want to read of it."""
  pools = found["pools"]
  return {"p1": p1, "p2": p2, "t1": float(found["focus"]), "thresholds": pools["thresholds"], "shares": pools["shares"]}
