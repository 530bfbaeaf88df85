"""What methods train with: the update of some players, the stages `source` and `statistics`, the start of a stage."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from flax import linen as nn
from flax import traverse_util
from ml_collections import ConfigDict

from jax_uda import checkpoint, inference, optimizers
from jax_uda.data import transforms
from jax_uda.errors import UserError
from jax_uda.models import layers, weights
from jax_uda.models.segmenter import WITHOUT_BATCH_NORM
from jax_uda.state import DEVICE_AXIS, Network, Stage, State, Stream, TrainStep

SOURCE, TARGET = 0, 1  # places in a mixed stream's `datasets`, which batches carry as `domain`


def first_network(config: ConfigDict, model: nn.Module, optimizer: optax.GradientTransformation, key: jax.Array) -> Network:
  """A segmenter, which has a `backbone`, at random or from `config.weights`; raises `UserError` where these do not fit."""
  make = functools.partial(model.init, key, jnp.zeros((1, *config.augmentation.crop, 3)))
  known = jax.eval_shape(make)
  if config.weights:  # read first: what is wrong with the file should not wait for a compilation
    if epath.Path(config.weights).is_dir():
      classes, network = checkpoint.last_network(config.weights, "segmenter")
      known, found = weights.take_network(
        config.weights, network, known, classes == tuple(config.classes), partial=config.weights_partial
      )
    else:
      known, found = weights.load(config.weights, known, partial=config.weights_partial)
    flat = traverse_util.flatten_dict(known)
    initial = weights.listing(".".join(path[1:]) for path, x in flat.items() if isinstance(x, jax.ShapeDtypeStruct))
    print(f"weights: {len(found.loaded)} tensors from {config.weights}; left at random: {initial or 'none'}")
  variables = jax.tree.map(lambda x, y: y if isinstance(x, jax.ShapeDtypeStruct) else x, known, jax.jit(make)())
  return optimizers.make_network(variables, optimizer)


def predictor(model: nn.Module) -> Callable:
  """(state, images float32 [B, H, W, 3]) -> logits [B, h, w, C] of the network `segmenter`."""
  return lambda state, images: model.apply(state.networks["segmenter"].variables, images)[0]


def train_step(
  state: State,
  batches: Mapping[str, dict[str, jax.Array]],
  key: jax.Array,
  *,
  streams: Mapping[str, Callable],
  players: Mapping[str, optax.GradientTransformation],
  loss: Callable,
  mine: Callable | None = None,
) -> tuple[State, dict[str, tuple[jax.Array, jax.Array]]]:
  """One update of some players, on one stream or, jointly, on several (MLSL, eqs. 3 and 7).

  Args:
    batches: {stream: a batch of the pipeline}. In the stream `train` each example knows its domain; the streams `source`
      and `target` hold one each, and are normalised apart.
    key: the stage's.
    streams: in the order in which they pass the network, whose batch statistics are the last one's; and how each is
      augmented: (keys [B], image, label, size, centres [B, 2]) -> image [B, h, w, 3], label [B, h, w], valid [B, h, w].
    players: the optimizer of each network that learns.
    loss: (params by player, state, parts) -> this device's part of the global loss, (batch statistics by player,
      {metric: (sum, count)}), the metrics still to be summed over devices. Parts are examples, one dict a stream.
    mine: (keys [B], a batch, its domain [B], state) -> centres of the crops, see `mining.centre`; None: at random.
  """
  parts = [
    examples(state, batches[name], name, jax.random.fold_in(key, int(name == "target")), augment, mine)
    for name, augment in streams.items()
  ]
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


def examples(
  state: State, batch: Mapping[str, jax.Array], stream: str, key: jax.Array, augment: Callable, mine: Callable | None = None
) -> dict[str, jax.Array]:
  """A batch of the pipeline as training sees it: augmented, keyed per example, its domain known.

  Beside the crop's image, label and valid, `whole_label` [B, H, W] and `whole_valid` are those of all the image.
  """
  keys = jax.vmap(lambda draw: jax.random.split(jax.random.fold_in(key, draw)))(batch["draw"])
  domain = jnp.full_like(batch["domain"], TARGET) if stream == "target" else batch["domain"]
  centres = None if mine is None else mine(keys[:, 0], batch, domain, state)
  image, label, valid = augment(keys[:, 0], batch["image"], batch["label"], batch["size"], centres=centres)
  whole = {
    "whole_label": batch["label"],
    "whole_valid": jax.vmap(inference.content_mask, (0, None))(batch["size"], batch["label"].shape[1:]),
  }
  return {"image": image, "label": label, "valid": valid, "domain": domain, "keys": keys[:, 1], **whole}


def statistics_step(
  state: State, batches: Mapping[str, dict[str, jax.Array]], key: jax.Array, *, model: nn.Module
) -> tuple[State, dict[str, tuple[jax.Array, jax.Array]]]:
  """Makes the running batch statistics the mean of those of the stream `whole`, whose steps follow `hyper["train_steps"]`.

  The images are whole and as they are, as the network will see them when it labels and when it is scored. `model` has
  synced BatchNorm, so that the statistics are those of all devices' images.
  """
  del key
  network, batch = state.networks["segmenter"], batches["whole"]
  images = inference.prepare(batch["image"], batch["size"])
  (logits, _), changed = model.apply(network.variables, images, train=True, mutable=["batch_stats"])
  # BatchNorm goes a fixed part of the way towards the batch's statistics; a mean of n goes an n-th of it.
  part = 1 / ((1 - layers.MOMENTUM) * (state.step - state.hyper["train_steps"] + 1))
  batch_stats = jax.tree.map(lambda a, b: a + part * (b - a), network.batch_stats, changed["batch_stats"])
  confidence = jnp.max(jax.nn.softmax(logits), axis=-1)
  metrics = {"confidence": (confidence.sum(), jnp.int32(confidence.size))}
  networks = {**state.networks, "segmenter": network.replace(batch_stats=batch_stats)}
  return state.replace(step=state.step + 1, networks=networks), jax.lax.psum(metrics, DEVICE_AXIS)


def check_mode(config: ConfigDict) -> None:
  """Raises `UserError` for a `config.mode` that is not offered."""
  if config.mode not in ("adapt", "source_only", "oracle"):
    raise UserError(f"config.mode is {config.mode!r}; choose adapt, source_only or oracle")


def source_stage(
  config: ConfigDict, sizes: Mapping[str, int], players: Mapping[str, optax.GradientTransformation], step: TrainStep
) -> Stage:
  """The stage `source`, supervised training on the source, by a step with one stream."""
  settings, (stream,) = config.source_training, step.streams
  num_steps = settings.steps or steps_of(settings.epochs, sizes["source"], settings.batch)
  hyper = optimizers.schedule(settings.rate, num_steps, settings.power)
  return Stage(
    name="source",
    num_steps=num_steps,
    streams={stream: Stream(("source",), settings.batch)},
    steps={stream: step},
    begin=functools.partial(begin, players=players, hyper=hyper, num_steps=num_steps),
    pick=lambda step: stream,
  )


def statistics_stage(model: Any, num_steps: int, batch: int) -> Stage:
  """The stage `statistics`: batches of whole target images, whose mean statistics become BatchNorm's running ones.

  Raises:
    UserError: the model has no BatchNorm, or a frozen one.
  """
  if model.batch_norm == "frozen" or model.backbone in WITHOUT_BATCH_NORM:
    raise UserError("statistics_steps: frozen or no BatchNorm has no statistics to fit; set it to 0")
  # Without dropout, as the network will be used.
  step = functools.partial(statistics_step, model=model.clone(dropout=False, batch_norm="synced"))
  return Stage(
    name="statistics",
    num_steps=num_steps,
    streams={"whole": Stream(("target_images",), batch)},
    steps={"statistics": TrainStep(("whole",), step)},
    begin=functools.partial(begin, players={}, hyper={}, num_steps=0),
    pick=lambda step: "statistics",
  )


def followed_by(stage: Stage, statistics: Stage) -> Stage:
  """A stage with the steps of the stage `statistics` at its end."""
  return dataclasses.replace(
    stage,
    num_steps=stage.num_steps + statistics.num_steps,
    streams={**stage.streams, **statistics.streams},
    steps={**stage.steps, **statistics.steps},
    pick=lambda step: stage.pick(step) if step < stage.num_steps else "statistics",
  )


def begin(
  state: State,
  key: jax.Array,
  *,
  players: Mapping[str, optax.GradientTransformation],
  hyper: Mapping[str, jax.Array],
  num_steps: int,
) -> State:
  """Step 0 of a stage of so many train steps: the weights stay, the optimizers of these players start again.

  `hyper`, float32 or int32 [] by name, see `optimizers.schedule`, takes its place in `State.hyper`, and so does the number
  of train steps, float32 [].
  """
  del key
  fresh = {name: optimizers.restart(state.networks[name], player) for name, player in players.items()}
  hyper = {**state.hyper, **hyper, "train_steps": np.float32(num_steps)}
  return State(jnp.int32(0), {**state.networks, **fresh}, hyper)


def augmentation(config: ConfigDict, jitter: float = 0.0, **fields) -> Callable:
  """`config.augmentation` with other values of some fields, its colours widened to at least `jitter`."""
  least = {"brightness": jitter, "contrast": jitter, "saturation": jitter, "hue": jitter / 8}
  settings = {**config.augmentation, **fields}
  settings = {name: max(value, least[name]) if name in least else value for name, value in settings.items()}
  return functools.partial(transforms.augment_batch, settings=transforms.Augmentation(**settings))


def steps_of(epochs: float, num: int, batch: int) -> int:
  """How many steps go through `num` images so many times; at least one."""
  return max(1, -(-int(epochs * num) // batch))
