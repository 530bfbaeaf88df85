"""Self-training: ST, CBST and their spatial priors (Zou et al., ECCV 2018).

Stages: `source`, then `round_1` … `round_R`, each of which labels the target with the network it finds and trains on source
and pseudo-labelled target together: shuffled into one list as the code does, or (`config.rounds.paired`, our choice)
half a batch of each, normalised apart. Where `config.rounds.statistics_steps` asks for it, a stage `statistics` before the
rounds, and the last steps of each round, make BatchNorm's running statistics those of the unlabelled target's whole images
(AdaBN; Li et al. 2016), weights untouched: what training leaves there are statistics of augmented crops.

`config.labels.threshold` tells ST (`global`, algorithm 1) from CBST (`class_balanced`, algorithm 2); `config.labels.prior`
adds the spatial prior (-SP, eq. 9). `config.mode` trains the same steps on source labels alone (`source_only`) or with the
target's true labels (`oracle`).
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from jax_uda import inference, losses, mining, optimizers, priors, pseudo_labels, steps
from jax_uda.data.label_spaces import IGNORE
from jax_uda.errors import UserError
from jax_uda.models.segmenter import STRIDE, FusionSegmenter, Segmenter
from jax_uda.state import DEVICE_AXIS, Fold, Labelling, Stage, State, Stream, TrainStep

PRIOR_CELL = 8  # pixels of the canvas a cell of the spatial prior's grid; its Gaussian is 70 wide


def segmenter(config: ConfigDict, batch_norm: str = "") -> Segmenter:
  """The segmentation network that the config describes; `batch_norm` other than empty replaces the network's."""
  network = {**config.network, **({"batch_norm": batch_norm} if batch_norm else {})}
  return Segmenter(num_classes=config.num_classes, **network)


def optimizer(config: ConfigDict) -> optax.GradientTransformation:
  """The segmenter's optimizer, with a learning rate of 1."""
  settings = config.optimizer
  sgd = functools.partial(
    optimizers.sgd,
    settings.momentum,
    settings.weight_decay,
    bias_multiplier=settings.bias_multiplier,
    bias_decay=settings.bias_decay,
  )
  return optimizers.by_module({"backbone": sgd(), "head": sgd(multiplier=settings.head_multiplier)})


def init(config: ConfigDict, key: jax.Array) -> State:
  """The first state: a segmenter from `config.weights`, or at random."""
  network = steps.first_network(config, segmenter(config), optimizer(config), key)
  hyper = {"mined": jnp.zeros(config.num_classes, jnp.int32)} if mines(config) else {}
  return State(jnp.int32(0), {"segmenter": network}, hyper)


def predict(config: ConfigDict) -> Callable:
  """(state, images float32 [B, H, W, 3]) -> logits [B, h, w, C]."""
  return steps.predictor(segmenter(config))


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
      finish=functools.partial(
        priors.finish_spatial_prior,
        label_size=tuple(config.canvas),
        kernel=config.labels.prior_kernel,
        sigma=config.labels.prior_sigma,
      ),
    )
  }


def stages(config: ConfigDict, sizes: Mapping[str, int]) -> Sequence[Stage]:
  """`source` and the rounds; labels from single inference on whole images."""
  players = {"segmenter": optimizer(config)}
  first = source_step(config, players)
  loss = functools.partial(supervised_loss, **round_settings(config))
  labelling = round_labelling(config, sizes, **single_inference(config))
  return [
    steps.source_stage(config, sizes, players, first),
    *round_stages(config, sizes, players, round_step(config, players, loss), labelling),
  ]


# Training


def mined_centres(
  keys: jax.Array,
  batch: Mapping[str, jax.Array],
  domain: jax.Array,
  state: State,
  *,
  probability: float,
  domains: tuple[int, ...],
) -> jax.Array:
  """Centres of crops on rare classes, int32 [B, 2], in images of these domains; negative elsewhere."""
  keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 3)  # augmentation has 0 to 2
  found = jax.vmap(mining.centre, (0, 0, 0, None, None))(
    keys, batch["label"], batch["size"], state.hyper["mined"], probability
  )
  return jnp.where(jnp.isin(domain, jnp.array(domains))[:, None], found, -1)


def segmentation_loss(
  params: Mapping[str, Any],
  state: State,
  parts: Sequence[Mapping[str, jax.Array]],
  *,
  model: Segmenter | FusionSegmenter,
  at: str = "pixels",
  hard_below: float = 1.0,
  hard_least: int = 0,
) -> tuple[jax.Array, tuple[dict, dict], list[Any]]:
  """Cross-entropy (MLSL, eq. 3): the mean over the kept pixels of the global batch; over parts, the mean of those.

  Args:
    at: `pixels` or `stride`, see `config.loss_at`.
    hard_below, hard_least: which pixels count, see `losses.hard_pixels`; at 1, all labelled ones.

  Returns:
    This device's part of the loss; (batch statistics, metrics); what the model returns beside logits, for each part: the
    latent maps [B, h, w, F] of a `Segmenter`.
  """
  variables = state.networks["segmenter"].replace(params=params["segmenter"]).variables
  pairs, latents, batch_stats = [], [], variables["batch_stats"]
  kept = seen = jnp.int32(0)
  for part in parts:
    label = part["label"]
    (logits, latent), changed = model.apply(
      variables, part["image"], train=True, keys=part["keys"], mutable=["batch_stats"]
    )
    batch_stats = changed.get("batch_stats", batch_stats)  # frozen BatchNorm changes none
    if at == "stride":
      label = losses.labels_at_stride(label, STRIDE)
    else:
      logits = jax.vmap(lambda x, size=label.shape[1:]: inference.upsample(x, size))(logits)
    if hard_below < 1:
      label = losses.hard_pixels(logits, label, hard_below, hard_least)
    pairs.append(losses.cross_entropy(logits, label))
    latents.append(latent)
    target = (part["domain"] == steps.TARGET)[:, None, None]
    kept += jnp.sum(target & (part["label"] != IGNORE))
    seen += jnp.sum(target & part["valid"])
  loss = sum(losses.mean((total, jax.lax.psum(count, DEVICE_AXIS))) for total, count in pairs) / len(pairs)
  total, count = (sum(x) for x in zip(*pairs, strict=True))
  metrics = {"loss": (total, count), "target_kept": (kept, seen)}
  return loss, ({"segmenter": batch_stats}, metrics), latents


def supervised_loss(
  params: Mapping[str, Any], state: State, parts: Sequence[Mapping[str, jax.Array]], **settings: Any
) -> tuple[jax.Array, tuple[dict, dict]]:
  """`segmentation_loss` as `steps.train_step` wants it: loss float32 []; (batch statistics, metrics); no latent maps."""
  loss, auxiliary, _ = segmentation_loss(params, state, parts, **settings)
  return loss, auxiliary


# Stages


def source_step(config: ConfigDict, players: Mapping[str, optax.GradientTransformation]) -> TrainStep:
  """`steps.train_step` of the stage `source`."""
  loss = functools.partial(supervised_loss, model=segmenter(config), at=_loss_at(config))
  how = {"streams": {"train": steps.augmentation(config)}, "players": players, "loss": loss}
  return TrainStep(("train",), functools.partial(steps.train_step, **how))


def round_step(config: ConfigDict, players: Mapping[str, optax.GradientTransformation], loss: Callable) -> TrainStep:
  """`steps.train_step` of the rounds, on what `config.mode` trains on."""
  paired = config.rounds.paired and config.mode != "source_only"
  streams = dict.fromkeys(("source", "target") if paired else ("train",), steps.augmentation(config, config.rounds.jitter))
  how = {"streams": streams, "players": players, "loss": loss}
  if mines(config):
    settings = config.mining
    domains = {"target": (steps.TARGET,), "source": (steps.SOURCE,), "both": (steps.SOURCE, steps.TARGET)}[settings.on]
    how["mine"] = functools.partial(mined_centres, probability=settings.probability, domains=domains)
  return TrainStep(tuple(streams), functools.partial(steps.train_step, **how))


def mines(config: ConfigDict) -> bool:
  """Whether crops are centred on rare classes; raises `UserError` for a `config.mining.on` that is not offered."""
  if config.mining.on not in ("target", "source", "both"):
    raise UserError(f"config.mining.on is {config.mining.on!r}; choose target, source or both")
  return config.mode == "adapt" and config.mining.probability > 0 and config.mining.classes > 0


def _loss_at(config: ConfigDict) -> str:
  if config.loss_at not in ("pixels", "stride"):
    raise UserError(f"config.loss_at is {config.loss_at!r}; choose pixels or stride")
  return config.loss_at


def round_settings(config: ConfigDict) -> dict[str, Any]:
  """How `segmentation_loss` goes in the rounds."""
  rounds = config.rounds
  return {
    "model": segmenter(config, rounds.batch_norm),
    "at": _loss_at(config),
    "hard_below": rounds.hard_below,
    "hard_least": rounds.hard_least,
  }


def round_stages(
  config: ConfigDict,
  sizes: Mapping[str, int],
  players: Mapping[str, optax.GradientTransformation],
  step: TrainStep,
  labelling: Callable[[float], Labelling],
) -> list[Stage]:
  """The rounds: what `config.mode` trains on, with the portion and the learning rate of each round.

  Before them, where they want the target's batch statistics, the stage `statistics`; at their end, steps of that kind.

  Raises:
    UserError: `config.mode` or `config.rounds.source_draw` has a value that is not offered, or
      `config.rounds.statistics_steps` is set and the network's BatchNorm is frozen, or there is none.
  """
  steps.check_mode(config)
  settings = config.rounds
  target = {"adapt": ("target",), "oracle": ("target_truth",), "source_only": ()}[config.mode]
  statistics = None
  if settings.statistics_steps and target:
    model = segmenter(config, settings.batch_norm)
    statistics = steps.statistics_stage(model, settings.statistics_steps, settings.batch)
  result = [statistics] if statistics else []
  num_target = trained_on(config, sizes)
  if settings.source_draw not in ("cumulative", "random"):
    raise UserError(f"config.rounds.source_draw is {settings.source_draw!r}; choose cumulative or random")
  for r in range(settings.num):
    draw = r + 1 if settings.source_draw == "random" else 0
    subset = source_subset(sizes["source"], source_share(config, r), (config.seed, draw))
    there = num_target if config.mode == "adapt" else sizes["target"]  # whatever it trains on, the steps are the same
    mixed = (*subset, *range(sizes["source"], sizes["source"] + there))
    if "target" in step.streams:
      streams = {"source": Stream(("source",), settings.batch, subset), "target": Stream(target, settings.batch)}
    else:  # as many images a step where only source is trained on
      batch = settings.batch * (2 if settings.paired else 1)
      streams = {"train": Stream(("source", *target), batch, mixed if target else None)}
    epoch = num_target if settings.paired else len(subset) + num_target
    num_steps = settings.steps or steps.steps_of(settings.epochs, epoch, settings.batch)
    hyper = optimizers.schedule(settings.rate / settings.rate_divisor**r, num_steps, settings.power)
    stage = Stage(
      name=f"round_{r + 1}",
      num_steps=num_steps,
      streams=streams,
      steps={"train": step},
      begin=functools.partial(steps.begin, players=players, hyper=hyper, num_steps=num_steps),
      pick=lambda step: "train",
      labelling=labelling(portion(config, r)) if config.mode == "adapt" else None,
    )
    result.append(steps.followed_by(stage, statistics) if statistics else stage)
  return result


def trained_on(config: ConfigDict, sizes: Mapping[str, int]) -> int:
  """How many of the target images a round trains on; at least one."""
  return max(1, round(config.rounds.target_share * sizes["target"]))


def portion(config: ConfigDict, r: int) -> float:
  """The portion p_r of the target that round r = 0, 1, … labels: min(p_0 + r·Δp, p_max)."""
  labels = config.labels
  # Rounded: 0.2 + 2 · 0.05 must rank as 0.3 does.
  return round(min(labels.portion + r * labels.portion_step, labels.portion_max), 9)


def source_share(config: ConfigDict, r: int) -> float:
  """The share of the source images that round r = 0, 1, … draws from (released code)."""
  settings = config.rounds
  return min(settings.source_share + r * settings.source_share_step, settings.source_share_max)


def source_subset(num: int, share: float, seed: int | Sequence[int]) -> tuple[int, ...]:
  """A share of the source images, at least one; with the same seed a larger share holds a smaller one."""
  return tuple(np.random.default_rng(seed).permutation(num)[: max(1, round(share * num))].tolist())


# Labelling


def round_labelling(config: ConfigDict, sizes: Mapping[str, int], **how: Any) -> Callable[[float], Labelling]:
  """Portion -> a round's labelling; `how` says how scores are got.

  All rounds share their functions, so that only the first of them compiles.

  Raises:
    UserError: `config.labels.threshold`, `rank` or `upsampling`, or `config.mining.on`, has a value that is not offered.
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
  if labels.upsampling not in inference.KERNELS:
    raise UserError(f"config.labels.upsampling is {labels.upsampling!r}; choose one of {', '.join(inference.KERNELS)}")
  num_target = trained_on(config, sizes)
  mined = {"hyper": lambda found: {"mined": found["pools"]["mined"]}, "lines": mined_lines} if mines(config) else {}
  init = functools.partial(pseudo_labels.init_histogram, config.num_classes)
  update = functools.partial(pool_confidences, stride=labels.pool_stride)

  def at(portion: float) -> Labelling:
    def finish(histogram):
      thresholds = rules[labels.threshold](histogram, portion, labels.rank)
      shares = pool_shares(histogram)
      return {
        "thresholds": np.nextafter(thresholds, -np.inf) if labels.inclusive else thresholds,
        "shares": shares,
        "mined": mining.tiers(shares, config.mining.classes, config.mining.rare),
      }

    pools = Fold(init=init, update=update, merge=pseudo_labels.merge_histograms, finish=finish)
    return Labelling(
      folds={"pools": pools},
      select=select,
      numbers=lambda found: {"portion": portion, **jax.tree.map(np.asarray, found["pools"])},
      batch=labels.batch,
      num=num_target,
      ease=ease if num_target < sizes["target"] else None,
      **mined,
      **how,
    )

  return at


def pool_confidences(
  histogram: Any, found: dict, scores: jax.Array, valid: jax.Array, extras: dict, *, stride: int = 1
) -> Any:
  """One image's confidences, of every `stride`-th row and column, into the pools of the classes that it is predicted as.

  Args:
    scores: [H, W, C].
    valid: bool [H, W], where they count.
  """
  del found, extras
  return pseudo_labels.update_histogram(histogram, scores[::stride, ::stride], valid[::stride, ::stride])


def pool_shares(histogram: pseudo_labels.Histogram) -> np.ndarray:
  """Share of the pixels in all pools that are predicted as each class, float32 [C]."""
  pixels = np.asarray(histogram.counts).sum(1, dtype=np.int64)
  return (pixels / max(pixels.sum(), 1)).astype(np.float32)


def mined_lines(found: dict, classes: Sequence[str]) -> list[str]:
  """Which classes crops are centred on, and the share of the target's pixels that is predicted as each."""
  shares, tiers = found["pools"]["shares"], found["pools"]["mined"]
  order = [c for c in np.argsort(shares, kind="stable") if tiers[c]]
  names = [f"{classes[c]} {shares[c]:.2%}{' (rare)' if tiers[c] == mining.RARE else ''}" for c in order]
  return [f"crops are centred on {', '.join(names)}"]


def ease(found: dict, scores: jax.Array, valid: jax.Array, extras: dict) -> jax.Array:
  """How easy an image is, float32 []: the mean, over the classes predicted in it, of their pixels' mean confidence."""
  del found, extras
  predicted, confidence = jnp.where(valid, scores.argmax(-1), scores.shape[-1]), scores.max(-1)
  # By row first: float32 sums of millions of confidences one by one would be off by more than images differ.
  rows, none = jnp.arange(len(scores))[:, None], jnp.zeros((len(scores), scores.shape[-1]))
  pixels = none.at[rows, predicted].add(1, mode="drop").sum(0)
  means = none.at[rows, predicted].add(confidence, mode="drop").sum(0) / jnp.maximum(pixels, 1)
  return means.sum() / jnp.maximum((pixels > 0).sum(), 1)


def select(found: dict, scores: jax.Array, valid: jax.Array, extras: dict) -> jax.Array:
  """Pseudo-labels uint8 [H, W] of scores [H, W, C] (CBST, eqs. 5 and 8)."""
  del extras
  return jnp.where(valid, pseudo_labels.select(scores, found["pools"]["thresholds"]), IGNORE).astype(jnp.uint8)


def single_inference(config: ConfigDict) -> dict[str, Callable]:
  """How whole images are labelled: views, forward and assemble of a `Labelling`."""
  scales = inference.parse_scales(config.labels.scales, "config.labels.scales")
  return {
    "views": whole_image,
    "forward": functools.partial(inference.look, predict(config), scales=scales, flip=config.labels.flip),
    "assemble": functools.partial(
      assemble_whole_image, scales=scales, kernel=config.labels.upsampling, use_prior=config.labels.prior
    ),
  }


def whole_image(key: jax.Array, size: jax.Array) -> jax.Array:
  """The view of a whole image is its size, int32 [2]."""
  del key
  return size


def assemble_whole_image(
  hyper: Mapping[str, jax.Array],
  outputs: Sequence[Mapping[str, jax.Array]],
  boxes: jax.Array,
  size: jax.Array,
  canvas: tuple[int, int],
  *,
  use_prior: bool,
  scales: tuple[float, ...] = (1.0,),
  kernel: str = "linear",
) -> tuple[jax.Array, jax.Array, dict]:
  """Upsampled softmax of one image, times the prior where it is used.

  Args:
    outputs: what `inference.look` gives of the image at these scales, [h, w, C] each.
    size: [2], the part of the canvas that is image.

  Returns:
    Scores [H, W, C]; what is image, bool [H, W]; no extras.
  """
  del boxes
  scores = inference.mean_of_looks(outputs, size, canvas, scales, kernel)
  if use_prior:
    scores = priors.apply_prior(scores, hyper["prior"], size)
  return scores, inference.content_mask(size, canvas), {}
