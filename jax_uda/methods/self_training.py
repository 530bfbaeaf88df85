"""Self-training: ST, CBST and their spatial priors (Zou et al., ECCV 2018).

Stages: `source`, then `round_1` … `round_R`, each of which labels the target with the network it finds and trains on source
and pseudo-labelled target together: shuffled into one list as the code does, or (`config.rounds.paired`, our choice)
half a batch of each, normalised apart. Where `config.rounds.statistics_steps` asks for it, a stage `statistics` before the
rounds fits BatchNorm's running statistics to the unlabelled target (AdaBN; Li et al. 2016), weights untouched.

`config.labels.threshold` tells ST (`global`, algorithm 1) from CBST (`class_balanced`, algorithm 2); `config.labels.prior`
adds the spatial prior (-SP, eq. 9). `config.mode` trains the same steps on source labels alone (`source_only`) or with the
target's true labels (`oracle`).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from jax_uda import inference, losses, optimizers, priors, pseudo_labels
from jax_uda.data import transforms
from jax_uda.data.label_spaces import IGNORE
from jax_uda.errors import UserError
from jax_uda.models import weights
from jax_uda.models.segmenter import Segmenter
from jax_uda.state import DEVICE_AXIS, Fold, Labelling, Stage, State, Stream, TrainStep

SOURCE, TARGET = 0, 1  # places in a mixed stream's `datasets`, which batches carry as `domain`
PRIOR_CELL = 8  # pixels of the canvas a cell of the spatial prior's grid; its Gaussian is 70 wide


def segmenter(config: ConfigDict, batch_norm: str = "") -> Segmenter:
  """The segmentation network that the config describes; `batch_norm` other than empty replaces the network's."""
  network = {**config.network, **({"batch_norm": batch_norm} if batch_norm else {})}
  return Segmenter(num_classes=config.num_classes, **network)


def optimizer(config: ConfigDict) -> optax.GradientTransformation:
  """The segmenter's optimizer, with a learning rate of 1."""
  settings = config.optimizer
  return optimizers.sgd(settings.momentum, settings.weight_decay, by_module={"head": settings.head_multiplier})


def init(config: ConfigDict, key: jax.Array) -> State:
  """The first state: a segmenter from `config.weights`, or at random."""
  make = functools.partial(segmenter(config).init, key, jnp.zeros((1, *config.augmentation.crop, 3)))
  known = jax.eval_shape(make)
  if config.weights:  # read first: what is wrong with the file should not wait for a compilation
    known, found = weights.load_torchvision(config.weights, known, partial=config.weights_partial)
    initial = (*found.missing, *(name for name, _, _ in found.mismatched))
    print(f"weights: {len(found.loaded)} tensors from {config.weights}; left at random: {', '.join(initial) or 'the head'}")
  variables = jax.tree.map(lambda x, y: y if isinstance(x, jax.ShapeDtypeStruct) else x, known, jax.jit(make)())
  return State(jnp.int32(0), {"segmenter": optimizers.make_network(variables, optimizer(config))}, {})


def predict(config: ConfigDict) -> Callable:
  """(state, images float32 [B, H, W, 3]) -> logits [B, h, w, C]."""
  model = segmenter(config)

  def logits(state: State, images: jax.Array) -> jax.Array:
    network = state.networks["segmenter"]
    return model.apply({"params": network.params, "batch_stats": network.batch_stats}, images)[0]

  return logits


def label_statistics(config: ConfigDict) -> dict[str, Fold]:
  """The spatial prior, where it is used."""
  if config.mode != "adapt" or not config.labels.prior:
    return {}
  grid = tuple(-(-n // PRIOR_CELL) for n in config.canvas)
  return {
    "prior": Fold(
      init=functools.partial(priors.init_spatial_prior, grid, config.num_classes),
      update=priors.update_spatial_prior,  # (stat, label, size)
      merge=priors.merge,
      finish=functools.partial(priors.finish_spatial_prior, label_size=tuple(config.canvas)),
    )
  }


def stages(config: ConfigDict, sizes: Mapping[str, int]) -> Sequence[Stage]:
  """`source` and the rounds; labels from single inference on whole images."""
  players = {"segmenter": optimizer(config)}
  first = joint_step(config, players, functools.partial(supervised_loss, model=segmenter(config)))
  loss = functools.partial(supervised_loss, **round_settings(config))
  later = joint_step(config, players, loss, round_streams(config), config.rounds.jitter)
  labelling = round_labelling(
    config,
    views=no_views,
    forward=functools.partial(whole_image_forward, predict=predict(config)),
    assemble=functools.partial(assemble_whole_image, use_prior=config.labels.prior),
  )
  return [
    source_stage(config, sizes, players, first),
    *statistics_stages(config),
    *round_stages(config, sizes, players, later, labelling),
  ]


# Training


def train_step(
  state: State,
  batches: Mapping[str, dict[str, jax.Array]],
  key: jax.Array,
  *,
  streams: tuple[str, ...],
  players: Mapping[str, optax.GradientTransformation],
  loss: Callable,
  augment: Callable,
) -> tuple[State, dict[str, tuple[jax.Array, jax.Array]]]:
  """One joint update of some players on source and target (paper 003, eqs. 3 and 7).

  Args:
    batches: {stream: a batch of the pipeline}. In the stream `train` each example knows its domain; the streams `source`
      and `target` hold one each, and are normalised apart.
    key: the stage's.
    streams: the order in which they pass the network; the batch statistics are the last one's.
    players: the optimizer of each network that learns.
    loss: (params by player, state, parts) -> this device's part of the global loss, (batch statistics by player,
      {metric: (sum, count)}), the metrics still to be summed over devices. Parts are examples, one dict a stream.
    augment: (keys [B], image, label, size) -> image [B, h, w, 3], label [B, h, w], valid [B, h, w].
  """
  parts = [examples(batches[name], name, jax.random.fold_in(key, i), augment) for i, name in enumerate(streams)]
  params = {name: state.networks[name].params for name in players}
  gradients, (batch_stats, metrics) = jax.grad(loss, has_aux=True)(params, state, parts)
  gradients, metrics = jax.lax.psum((gradients, metrics), DEVICE_AXIS)
  batch_stats = jax.lax.pmean(batch_stats, DEVICE_AXIS)
  # Logged, and what tells of weights about to be spoiled while the loss is still finite.
  metrics["gradient_norm"] = (optax.global_norm(gradients), jnp.float32(1))

  rate = optimizers.learning_rate(state.hyper, state.step)
  updated = {
    name: optimizers.update(state.networks[name], gradients[name], batch_stats[name], player, rate)
    for name, player in players.items()
  }
  return state.replace(step=state.step + 1, networks={**state.networks, **updated}), metrics


def examples(batch: Mapping[str, jax.Array], stream: str, key: jax.Array, augment: Callable) -> dict[str, jax.Array]:
  """A batch of the pipeline as training sees it: augmented, keyed per example, its domain known."""
  keys = jax.vmap(lambda draw: jax.random.split(jax.random.fold_in(key, draw)))(batch["draw"])
  image, label, valid = augment(keys[:, 0], batch["image"], batch["label"], batch["size"])
  domain = jnp.full_like(batch["domain"], TARGET) if stream == "target" else batch["domain"]
  return {"image": image, "label": label, "valid": valid, "domain": domain, "keys": keys[:, 1]}


def segmentation_loss(
  params: Mapping[str, Any],
  state: State,
  parts: Sequence[Mapping[str, jax.Array]],
  *,
  model: Segmenter,
  statistics_pace: float = 1.0,
) -> tuple[jax.Array, tuple[dict, dict], list[jax.Array]]:
  """Cross-entropy (paper 003, eq. 3): the mean over the kept pixels of the global batch; over parts, the mean of those.

  Args:
    statistics_pace: how far the running batch statistics go of the way that BatchNorm would take them in a step.

  Returns:
    This device's part of the loss; (batch statistics, metrics); the latent maps [B, h, w, F], one a part.
  """
  variables = {"params": params["segmenter"], "batch_stats": state.networks["segmenter"].batch_stats}
  pairs, latents, batch_stats = [], [], variables["batch_stats"]
  kept = seen = jnp.int32(0)
  for part in parts:
    label = part["label"]
    (logits, latent), changed = model.apply(
      variables, part["image"], train=True, keys=part["keys"], mutable=["batch_stats"]
    )
    if "batch_stats" in changed:  # frozen BatchNorm changes none
      ours = variables["batch_stats"]
      batch_stats = jax.tree.map(lambda a, b: a + statistics_pace * (b - a), ours, changed["batch_stats"])
    logits = jax.vmap(lambda x, size=label.shape[1:]: inference.upsample(x, size))(logits)
    pairs.append(losses.cross_entropy(logits, label))
    latents.append(latent)
    target = (part["domain"] == TARGET)[:, None, None]
    kept += jnp.sum(target & (label != IGNORE))
    seen += jnp.sum(target & part["valid"])
  loss = sum(losses.mean((total, jax.lax.psum(count, DEVICE_AXIS))) for total, count in pairs) / len(pairs)
  total, count = (sum(x) for x in zip(*pairs, strict=True))
  metrics = {"loss": (total, count), "target_kept": (kept, seen)}
  return loss, ({"segmenter": batch_stats}, metrics), latents


def supervised_loss(
  params: Mapping[str, Any], state: State, parts: Sequence[Mapping[str, jax.Array]], **settings: Any
) -> tuple[jax.Array, tuple[dict, dict]]:
  """`segmentation_loss` alone, as `train_step` wants it."""
  loss, auxiliary, _ = segmentation_loss(params, state, parts, **settings)
  return loss, auxiliary


def statistics_step(
  state: State, batches: Mapping[str, dict[str, jax.Array]], key: jax.Array, *, model: Segmenter, augment: Callable
) -> tuple[State, dict[str, tuple[jax.Array, jax.Array]]]:
  """Moves the running batch statistics, and nothing else, towards those of a batch of the stream `target`."""
  network = state.networks["segmenter"]
  seen = examples(batches["target"], "target", key, augment)
  variables = {"params": network.params, "batch_stats": network.batch_stats}
  (logits, _), changed = model.apply(variables, seen["image"], train=True, keys=seen["keys"], mutable=["batch_stats"])
  batch_stats = jax.lax.pmean(changed["batch_stats"], DEVICE_AXIS)
  confidence = jnp.max(jax.nn.softmax(logits), axis=-1)
  metrics = {"confidence": (confidence.sum(), jnp.int32(confidence.size))}
  networks = {**state.networks, "segmenter": network.replace(batch_stats=batch_stats)}
  return state.replace(step=state.step + 1, networks=networks), jax.lax.psum(metrics, DEVICE_AXIS)


# Stages


def joint_step(
  config: ConfigDict,
  players: Mapping[str, optax.GradientTransformation],
  loss: Callable,
  streams: tuple[str, ...] = ("train",),
  jitter: float = 0.0,
) -> TrainStep:
  """`train_step` for these players on these streams."""
  augment = _augment(config, jitter)
  return TrainStep(streams, functools.partial(train_step, streams=streams, players=players, loss=loss, augment=augment))


def _augment(config: ConfigDict, jitter: float = 0.0) -> Callable:
  """`config.augmentation`, its colours widened to at least `jitter`."""
  least = {"brightness": jitter, "contrast": jitter, "saturation": jitter, "hue": jitter / 8}
  settings = {name: max(value, least[name]) if name in least else value for name, value in config.augmentation.items()}
  return functools.partial(transforms.augment_batch, settings=transforms.Augmentation(**settings))


def round_settings(config: ConfigDict) -> dict[str, Any]:
  """How `segmentation_loss` differs in the rounds."""
  rounds = config.rounds
  return {"model": segmenter(config, rounds.batch_norm), "statistics_pace": rounds.statistics_pace}


def round_streams(config: ConfigDict) -> tuple[str, ...]:
  """The streams that a round's step draws from."""
  if config.rounds.paired and config.mode != "source_only":
    return ("source", "target")
  return ("train",)


def statistics_stages(config: ConfigDict) -> list[Stage]:
  """Running batch statistics of the unlabelled target, before it is labelled (Li et al., AdaBN): one stage, or none."""
  settings = config.rounds
  if not settings.statistics_steps or config.mode == "source_only":
    return []
  batch_norm = settings.batch_norm or config.network.batch_norm
  if batch_norm == "frozen":
    raise UserError("config.rounds.statistics_steps: frozen BatchNorm has no statistics to fit; set it to 0")
  step = functools.partial(statistics_step, model=segmenter(config, batch_norm), augment=_augment(config))
  return [
    Stage(
      name="statistics",
      num_steps=settings.statistics_steps,
      streams={"target": Stream(("target",), settings.batch)},
      steps={"statistics": TrainStep(("target",), step)},
      begin=lambda state, key: state.replace(step=jnp.int32(0)),
      pick=lambda step: "statistics",
    )
  ]


def source_stage(
  config: ConfigDict, sizes: Mapping[str, int], players: Mapping[str, optax.GradientTransformation], step: TrainStep
) -> Stage:
  """Supervised training on the source."""
  settings = config.source_training
  num_steps = settings.steps or _steps(settings.epochs, sizes["source"], settings.batch)
  hyper = optimizers.schedule(settings.rate, num_steps, settings.power)
  return Stage(
    name="source",
    num_steps=num_steps,
    streams={"train": Stream(("source",), settings.batch)},
    steps={"train": step},
    begin=functools.partial(begin, players=players, hyper=hyper),
    pick=lambda step: "train",
  )


def round_stages(
  config: ConfigDict,
  sizes: Mapping[str, int],
  players: Mapping[str, optax.GradientTransformation],
  step: TrainStep,
  labelling: Callable[[float], Labelling],
) -> list[Stage]:
  """The rounds: what `config.mode` trains on, with the portion and the learning rate of each round."""
  if config.mode not in ("adapt", "source_only", "oracle"):
    raise UserError(f"config.mode is {config.mode!r}; choose adapt, source_only or oracle")
  settings = config.rounds
  target = {"adapt": ("target",), "oracle": ("target_truth",), "source_only": ()}[config.mode]
  result = []
  for r in range(settings.num):
    subset = source_subset(sizes["source"], source_share(config, r), config.seed)
    mixed = (*subset, *range(sizes["source"], sizes["source"] + sizes["target"]))
    if "target" in step.streams:
      streams = {"source": Stream(("source",), settings.batch, subset), "target": Stream(target, settings.batch)}
    else:  # as many images a step where only source is trained on
      batch = settings.batch * (2 if settings.paired else 1)
      streams = {"train": Stream(("source", *target), batch, mixed if target else None)}
    epoch = sizes["target"] if settings.paired else len(mixed)
    num_steps = settings.steps or _steps(settings.epochs, epoch, settings.batch)
    hyper = optimizers.schedule(settings.rate / settings.rate_divisor**r, num_steps, settings.power)
    result.append(
      Stage(
        name=f"round_{r + 1}",
        num_steps=num_steps,
        streams=streams,
        steps={"train": step},
        begin=functools.partial(begin, players=players, hyper=hyper),
        pick=lambda step: "train",
        labelling=labelling(portion(config, r)) if config.mode == "adapt" else None,
      )
    )
  return result


def begin(
  state: State, key: jax.Array, *, players: Mapping[str, optax.GradientTransformation], hyper: Mapping[str, jax.Array]
) -> State:
  """Step 0 of a stage: the weights stay, the optimizers and the learning rate start again."""
  del key
  fresh = {name: optimizers.restart(state.networks[name], player) for name, player in players.items()}
  return State(jnp.int32(0), {**state.networks, **fresh}, {**state.hyper, **hyper})


def portion(config: ConfigDict, r: int) -> float:
  """The portion p_r of the target that round r = 0, 1, … labels: min(p_0 + r·Δp, p_max)."""
  labels = config.labels
  # Rounded: 0.2 + 2 · 0.05 must rank as 0.3 does.
  return round(min(labels.portion + r * labels.portion_step, labels.portion_max), 9)


def source_share(config: ConfigDict, r: int) -> float:
  """The share of the source images that round r = 0, 1, … draws from (released code)."""
  settings = config.rounds
  return min(settings.source_share + r * settings.source_share_step, settings.source_share_max)


def source_subset(num: int, share: float, seed: int) -> tuple[int, ...]:
  """A share of the source images, at least one; with the same seed a larger share holds a smaller one."""
  return tuple(np.random.default_rng(seed).permutation(num)[: max(1, round(share * num))].tolist())


def _steps(epochs: float, num: int, batch: int) -> int:
  return max(1, -(-int(epochs * num) // batch))


# Labelling


def round_labelling(config: ConfigDict, **how: Any) -> Callable[[float], Labelling]:
  """Portion -> a round's labelling; `how` says how scores are got.

  All rounds share their functions, so that only the first of them compiles.
  """
  labels = config.labels
  rules = {
    "class_balanced": pseudo_labels.class_balanced_thresholds,
    "global": pseudo_labels.global_threshold,
  }
  if labels.threshold not in rules:
    raise UserError(f"config.labels.threshold is {labels.threshold!r}; choose one of {', '.join(rules)}")
  if labels.rank not in pseudo_labels.RANKS:
    raise UserError(f"config.labels.rank is {labels.rank!r}; choose one of {', '.join(pseudo_labels.RANKS)}")
  pool = Fold(
    init=functools.partial(pseudo_labels.init_histogram, config.num_classes),
    update=pool_confidences,
    merge=pseudo_labels.merge_histograms,
    finish=functools.partial(rules[labels.threshold], rank=labels.rank),
  )

  def at(portion: float) -> Labelling:
    return Labelling(
      folds={"thresholds": dataclasses.replace(pool, finish=functools.partial(pool.finish, portion=portion))},
      select=select,
      numbers=lambda found: {"portion": portion, "thresholds": np.asarray(found["thresholds"])},
      batch=labels.batch,
      **how,
    )

  return at


def pool_confidences(histogram: Any, found: dict, scores: jax.Array, valid: jax.Array, extras: dict) -> Any:
  """One image's confidences into the pools of the classes that it is predicted as."""
  del found, extras
  return pseudo_labels.update_histogram(histogram, scores, valid)


def select(found: dict, scores: jax.Array, valid: jax.Array, extras: dict) -> jax.Array:
  """Eqs. 5 and 8 of paper 004."""
  del extras
  return jnp.where(valid, pseudo_labels.select(scores, found["thresholds"]), IGNORE).astype(jnp.uint8)


def no_views(key: jax.Array, size: jax.Array) -> tuple[()]:
  """The whole image needs no boxes."""
  del key, size
  return ()


def whole_image_forward(state: State, images: jax.Array, boxes: tuple[()], *, predict: Callable) -> jax.Array:
  """Single inference: float16 log-probabilities [B, h, w, C]."""
  del boxes
  return inference.log_probabilities(predict(state, images))


def assemble_whole_image(
  hyper: Mapping[str, jax.Array],
  outputs: jax.Array,
  boxes: tuple[()],
  size: jax.Array,
  canvas: tuple[int, int],
  *,
  use_prior: bool,
) -> tuple[jax.Array, jax.Array, dict]:
  """Upsampled softmax of one image, times the prior where it is used."""
  del boxes
  scores = inference.upsample(jnp.exp(outputs.astype(jnp.float32)), canvas)
  if use_prior:
    scores = priors.apply_prior(scores, hyper["prior"], size)
  return scores, inference.content_mask(size, canvas), {}

