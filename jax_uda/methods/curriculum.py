"""Strategic curriculum of proxy labels (Chitta et al. 2018): one encoder, two decoders, labels made as it trains.

Each step is a batch of the source or one of the target, and the mixture drifts from the first to the second. A target batch
is labelled by the mean of the decoders' logits on that very batch, and where the decoders disagree it has no label (easy
mining). On a source batch pixels on which they agree are dropped at random, ever more of them (hard mining). The loss (eq.
4) is the sum of the decoders' cross-entropies, chosen classes weighing more, plus a penalty on their similarity.

Stages: `source` (our choice, where the network does not start from a labelled data set's weights: both decoders, plain),
then the epochs of the curriculum in parts: `epoch_1`, `epoch_2`, `epoch_4` … are the epochs up to that one, with one
optimizer that goes on from part to part; `config.curriculum.score_after` says where they end. With
`config.curriculum.statistics_steps` BatchNorm's running statistics are made those of whole target images (AdaBN; see
`steps.statistics_stage`) before the first of them and at the end of each.

Decoders on one encoder soon say the same of nearly all pixels, wrong ones among them. With `config.curriculum.vote_dropout`
each is asked without a share of its channels, others than the next one's, and easy is what both are sure of even so (our
choice). What they learn from, and the labels, are without. Even so far more is easy of some classes than of others, which
`config.curriculum.even_mining` makes up for (our choice).

The rungs of the paper's ladder are fields of `config.curriculum`: `class_weight` (1: self-training), `easy_mining`,
`hard_mining`; `config.mode` is adapt, source_only (gamma is 1) or oracle (gamma is 0, with true labels).
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from jax_uda import agreement, inference, losses, optimizers, priors, steps
from jax_uda.data.label_spaces import IGNORE
from jax_uda.errors import UserError
from jax_uda.models.segmenter import BranchedSegmenter, votes
from jax_uda.state import DEVICE_AXIS, Fold, Stage, State, Stream, TrainStep

SIMILARITIES = {"decoder": agreement.similarity, "classifier": agreement.last_layer_similarity}
COLLAPSED = 0.99  # agreement beyond which there is nothing left to filter
RECENT = 5  # log lines, for which that has to hold before it is worth a warning


def segmenter(config: ConfigDict) -> BranchedSegmenter:
  """The network that the config describes."""
  return BranchedSegmenter(num_classes=config.num_classes, vote_dropout=config.curriculum.vote_dropout, **config.network)


def optimizer(config: ConfigDict) -> optax.GradientTransformation:
  """SGD for the encoder and for each decoder, with a learning rate of 1 for the encoder."""
  settings = config.optimizer
  sgd = functools.partial(optimizers.sgd, settings.momentum, settings.weight_decay, clip=settings.clip)
  decoders = {f"decoder_{e}": sgd(multiplier=settings.decoder_multiplier) for e in range(config.network.branches)}
  return optimizers.by_module({"backbone": sgd(), **decoders})


def init(config: ConfigDict, key: jax.Array) -> State:
  """A segmenter from `config.weights`, or at random; its decoders differ from the start."""
  network = steps.first_network(config, segmenter(config), optimizer(config), key)
  return State(jnp.int32(0), {"segmenter": network}, optimizers.schedule(0.0, 1, 0.0))


def predict(config: ConfigDict) -> Callable:
  """(state, images float32 [B, H, W, 3]) -> logits [B, h, w, C], the mean of the decoders'."""
  model = segmenter(config)
  return lambda state, images: model.apply(state.networks["segmenter"].variables, images)[0].mean(0)


def label_statistics(config: ConfigDict) -> dict[str, Fold]:
  """None."""
  del config
  return {}


def stages(config: ConfigDict, sizes: Mapping[str, int]) -> Sequence[Stage]:
  """`source`, where it has steps; then the curriculum, part by part.

  Raises:
    UserError: a field has a value that is not offered, or there is nothing to train.
  """
  steps.check_mode(config)
  players, settings, plain = {"segmenter": optimizer(config)}, config.source_training, plain_loss(config)
  if config.network.branches == 1 and config.mode == "adapt" and not config.curriculum.vote_dropout:
    raise UserError("config.network.branches is 1, and agrees with itself; give 2 or more, or set curriculum.vote_dropout")
  result = []
  if settings.steps or settings.epochs:
    result.append(steps.source_stage(config, sizes, players, _train_step(config, players, "source", plain)))
  train_step = functools.partial(_train_step, config, players, jitter=config.curriculum.jitter, by_epoch=True)
  kinds = {}
  if config.mode == "adapt":
    kinds["source"] = train_step("source", source_loss(config))
    kinds["target"] = train_step("target", target_loss(config))
  else:
    domain = "source" if config.mode == "source_only" else "target"
    kinds[domain] = train_step(domain, plain)
  result += _parts(config, sizes, players, kinds)
  if not result:
    raise UserError("config.curriculum.epochs is 0 and there is no source_training; set one of them")
  return result


def maps(config: ConfigDict) -> Callable:
  """(state, normalised images) -> where decoders agree."""
  return functools.partial(agreement_map, model=segmenter(config))


def _parts(
  config: ConfigDict,
  sizes: Mapping[str, int],
  players: Mapping[str, optax.GradientTransformation],
  kinds: Mapping[str, TrainStep],
) -> list[Stage]:
  """The epochs, up to each after which the network is scored; with the target's batch statistics where they are wanted."""
  settings, statistics = config.curriculum, None
  if settings.epochs and settings.statistics_steps and config.mode != "source_only":
    statistics = steps.statistics_stage(segmenter(config), settings.statistics_steps, settings.batch)
  datasets = {"source": ("source",), "target": ("target_images" if config.mode == "adapt" else "target_truth",)}
  epoch_steps = settings.epoch_steps or steps.steps_of(1, sizes["source"], settings.batch)
  result, first = [statistics] if statistics else [], 0
  for last in scored_epochs(settings.score_after, settings.epochs):
    start, num_steps = first * epoch_steps, (last - first) * epoch_steps
    hyper = optimizers.schedule(settings.rate, settings.epochs * epoch_steps, settings.power, start, every=epoch_steps)
    stage = Stage(
      name=f"epoch_{last}",
      num_steps=num_steps,
      streams={name: Stream(datasets[name], settings.batch) for name in kinds},
      steps=dict(kinds),
      # The optimizer starts with the curriculum, and goes on with its parts.
      begin=functools.partial(steps.begin, players={} if first else players, hyper=hyper, num_steps=num_steps),
      pick=functools.partial(domain_of_step, config=config, epoch_steps=epoch_steps, start=start),
      # What these warn of are proxy labels.
      **({"warnings": functools.partial(warnings, classes=config.classes)} if config.mode == "adapt" else {}),
    )
    result.append(steps.followed_by(stage, statistics) if statistics else stage)
    first = last
  return result


# Schedules


def ramp(epoch: Any, first: float, last: float, epochs: float) -> Any:
  """A number that goes from `first` to `last` linearly over so many epochs, and then stays; epochs count from 0."""
  part = jnp.minimum(epoch / epochs, 1) if isinstance(epoch, jax.Array) else min(epoch / epochs, 1.0)
  return first + (last - first) * part


def domain_of_step(step: int, *, config: ConfigDict, epoch_steps: int, start: int) -> str:
  """Whether a step is one of the `source` or of the `target`: drawn, gamma being the share of the source in its epoch.

  Args:
    step: of its stage, from 0.
    epoch_steps: steps an epoch.
    start: steps of the curriculum before its stage.
  """
  settings = config.curriculum
  gamma = {"source_only": 1.0, "oracle": 0.0}.get(
    config.mode, ramp((start + step) // epoch_steps, settings.gamma, settings.gamma_end, settings.gamma_epochs)
  )
  return "source" if np.random.default_rng((config.seed, start + step)).random() < gamma else "target"


def scored_epochs(text: str, epochs: int) -> list[int]:
  """The epochs after which the network is scored, out of `1,2,4`; the last one is always among them.

  Raises:
    UserError: something else than whole numbers from 1 with commas between.
  """
  try:
    found = sorted({int(part) for part in text.split(",") if part.strip()})
  except ValueError:
    found = [0]
  if found and found[0] < 1:
    raise UserError(f"config.curriculum.score_after: {text!r} will not do; write epochs from 1, commas between, as 1,2,4")
  return [epoch for epoch in found if epoch < epochs] + [epochs] * (epochs > 0)


# Losses


def _train_step(
  config: ConfigDict,
  players: Mapping[str, optax.GradientTransformation],
  stream: str,
  loss: Callable,
  jitter: float = 0.0,
  by_epoch: bool = False,
) -> TrainStep:
  loss = functools.partial(loss, domain=stream, by_epoch=by_epoch)
  how = {"streams": {stream: steps.augmentation(config, jitter)}, "players": players, "loss": loss}
  return TrainStep((stream,), functools.partial(steps.train_step, **how))


def plain_loss(config: ConfigDict) -> Callable:
  """The loss on true labels, as `steps.train_step` wants it.

  Raises:
    UserError: `config.diversity.of` has a value that is not offered.
  """
  if config.diversity.of not in SIMILARITIES:
    raise UserError(f"config.diversity.of is {config.diversity.of!r}; choose one of {', '.join(SIMILARITIES)}")
  return functools.partial(
    branches_loss,
    model=segmenter(config),
    choose=true_labels,
    beta=config.diversity.weight,
    similarity=SIMILARITIES[config.diversity.of],
  )


def source_loss(config: ConfigDict) -> Callable:
  """The loss on a batch of the source, with what the config mines and weighs."""
  settings = config.curriculum
  thin = functools.partial(thinned_labels, epochs=settings.drop_epochs) if settings.hard_mining else true_labels
  return functools.partial(plain_loss(config), choose=thin, weights=class_weights(config))


def target_loss(config: ConfigDict) -> Callable:
  """The loss on a batch of the target, with what the config mines and weighs."""
  settings = config.curriculum
  choose = functools.partial(proxy_labels, easy=settings.easy_mining)
  how = {"choose": choose, "weights": class_weights(config), "even": settings.even_mining}
  return functools.partial(plain_loss(config), proxies=True, **how)


def class_weights(config: ConfigDict) -> tuple[float, ...] | None:
  """The weight of each class in the loss; None where all weigh 1.

  Raises:
    UserError: `config.curriculum.weighted` names a class that is none of the source's.
  """
  settings = config.curriculum
  names = [name.strip() for name in settings.weighted.split(",") if name.strip()]
  if unknown := [name for name in names if name not in config.classes]:
    raise UserError(f"config.curriculum.weighted: no class {unknown[0]!r}; choose from {', '.join(config.classes)}")
  if settings.class_weight == 1 or not names:
    return None
  return tuple(settings.class_weight if name in names else 1.0 for name in config.classes)


def branches_loss(
  params: Mapping[str, Any],
  state: State,
  parts: Sequence[Mapping[str, jax.Array]],
  *,
  model: BranchedSegmenter,
  choose: Callable,
  beta: float,
  similarity: Callable,
  domain: str,
  by_epoch: bool = False,
  weights: tuple[float, ...] | None = None,
  proxies: bool = False,
  even: bool = False,
) -> tuple[jax.Array, tuple[dict, dict]]:
  """Eq. 4: the branches' cross-entropies on the chosen pixels, each a mean, added up; plus beta · similarity.

  Predictions are the argmax of upsampled logits, which is what the loss sees (section 4.2). With `vote_dropout` the
  branches agree where each of them says with it what the ensemble says without.

  Args:
    choose: (part, the ensemble's prediction [B, H, W], agreement bool [B, H, W], state) -> labels [B, H, W]; what is left
      out is ignored.
    domain: what the metrics are called after.
    by_epoch: whether the epoch is among them, by which the report adds them up.
    weights: by class.
    proxies: whether the labels are the network's own, and the shares by class of those that are kept are logged.
    even: whether the kept pixels of a class weigh as much as all that is predicted so; the mean is then over what they
      stand for.
  """
  (part,) = parts
  variables = state.networks["segmenter"].replace(params=params["segmenter"]).variables
  mutable = ["batch_stats", "votes"]
  (low, _), changed = model.apply(variables, part["image"], train=True, keys=part["keys"], mutable=mutable)
  size = part["label"].shape[1:]
  logits, cast = _upsampled(low, size), _upsampled(jax.lax.stop_gradient(votes(low, changed)), size)
  predicted = agreement.proxy_labels(logits)
  agree = agreement.agreement(cast, predicted)
  labels, inside = choose(part, predicted, agree, state), part["valid"]

  def by_class(labels, valid=None):
    return priors.pixels_by_class(labels, logits.shape[-1], valid)[0].sum(0)

  counts = by_class(labels)
  weights = None if weights is None else jnp.array(weights)
  if even:
    stand_for = agreement.stands_for(*jax.lax.psum((by_class(predicted, inside), counts), DEVICE_AXIS))
    weights = stand_for if weights is None else weights * stand_for
  sums, (kept, *_) = zip(*(losses.cross_entropy(branch, labels, weights=weights) for branch in logits), strict=True)
  count = jnp.sum(stand_for * counts) if even else kept
  alike = similarity([params["segmenter"][f"decoder_{e}"] for e in range(len(logits))])
  part_of_one = 1 / jax.lax.psum(1.0, DEVICE_AXIS)  # this device's, of what is the same on all of them
  loss = losses.mean((sum(sums), jax.lax.psum(count, DEVICE_AXIS))) + part_of_one * beta * alike

  metrics = {
    "loss": (sum(sums), count),
    "similarity": (part_of_one * alike, part_of_one),
    f"{domain}_hard_share": (jnp.sum(~agree & inside), inside.sum()),
    f"{domain}_kept_share": (kept, inside.sum()),
  }
  if by_epoch:
    metrics["epoch"] = (part_of_one * optimizers.epoch(state.hyper, state.step), part_of_one)
  if proxies:
    metrics["proxy_labels"] = (counts, jnp.broadcast_to(kept, counts.shape))
  batch_stats = changed.get("batch_stats", variables["batch_stats"])  # frozen BatchNorm changes none
  return loss, ({"segmenter": batch_stats}, metrics)


def true_labels(part: Mapping[str, jax.Array], predicted: jax.Array, agree: jax.Array, state: State) -> jax.Array:
  """The labels, uint8 [B, H, W], as they are."""
  del predicted, agree, state
  return part["label"]


def thinned_labels(
  part: Mapping[str, jax.Array], predicted: jax.Array, agree: jax.Array, state: State, *, epochs: float
) -> jax.Array:
  """The labels uint8 [B, H, W] after source hard mining: where the branches agree, a share is left out that grows to 1."""
  del predicted
  ratio = ramp(optimizers.epoch(state.hyper, state.step), 0.0, 1.0, epochs)
  return agreement.thin_easy(part["label"], agree, ratio, part["keys"])


def proxy_labels(
  part: Mapping[str, jax.Array], predicted: jax.Array, agree: jax.Array, state: State, *, easy: bool
) -> jax.Array:
  """The ensemble's labels inside the image, int32 [B, H, W]; with `easy` (target easy mining) only where branches agree."""
  del state
  labels = jnp.where(part["valid"], predicted, IGNORE)
  return agreement.keep_easy(labels, agree) if easy else labels


# What people look at


def agreement_map(state: State, images: jax.Array, *, model: BranchedSegmenter) -> dict[str, jax.Array]:
  """Where the branches agree, 1, and where not, 0, float [B, H, W] (figure 4); always by the same draw of their votes."""
  keys = jnp.repeat(jax.random.split(jax.random.key(0), 1), len(images))
  (low, _), changed = model.apply(state.networks["segmenter"].variables, images, keys=keys, mutable=["votes"])
  logits, cast = _upsampled(low, images.shape[1:3]), _upsampled(votes(low, changed), images.shape[1:3])
  return {"agreement": agreement.agreement(cast, agreement.proxy_labels(logits)).astype(jnp.float32)}


def _upsampled(low: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Of [E, B, h, w, C], [E, B, H, W, C]."""
  return jax.vmap(jax.vmap(functools.partial(inference.upsample, size=size)))(low)


def warnings(records: Sequence[Mapping[str, Any]], *, classes: Sequence[str]) -> list[str]:
  """Signs, in the last log lines of a run, that the network only believes itself: lines of text."""
  recent = [record for record in records if "target_hard_share" in record][-RECENT:]
  if len(recent) < RECENT:
    return []
  if not any(record["target_kept_share"] for record in recent):
    return ["no pixel of the target is kept, so nothing is learnt from it; lower curriculum.vote_dropout"]
  found = []
  if np.mean([record["target_hard_share"] for record in recent]) < 1 - COLLAPSED:
    found.append(
      f"the branches agree on more than {COLLAPSED:.0%} of the target's pixels, so agreement tells nothing; raise "
      "curriculum.vote_dropout"
    )
  shares = np.sum([record["proxy_labels"] for record in recent if "proxy_labels" in record], axis=0)
  missing = [name for name, share in zip(classes, shares, strict=True) if not share]
  return [*found, *(f"no proxy label that is kept is {name}" for name in missing)]
