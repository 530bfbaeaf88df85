"""`--check`: the plan of a config, every shape of it checked, with no data read and nothing computed."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jax_uda import inference, parallel
from jax_uda.data import sources
from jax_uda.data.label_spaces import LabelSpace
from jax_uda.errors import UserError
from jax_uda.experiment import Experiment, open_experiment, plan
from jax_uda.state import DEVICE_AXIS, Labelling, Stage, State


def describe(config: ConfigDict) -> str:
  """Shape-checks every stage of a config with `eval_shape` and tells what a run would do.

  Sizes are the published ones of the data sets; a data set of one's own is listed, but none of its images is read.

  Raises:
    UserError: something in the config does not fit.
  """
  experiment, sizes = planned(config)
  state = check(experiment)
  lines = [f"method     {config.method}, seed {config.seed}, on {jax.device_count()} {jax.default_backend()} device(s)"]
  for role in ("source", "target", "test"):
    spec = config[role]
    if sources.is_named(spec):
      lines.append(f"{role:<10} {_dataset(spec)}: {sizes[role]:,} images; {sources.how_to_get(spec.kind)}")
  lines.append(f"weights    {config.weights or 'none: the network starts at random'}")
  lines.append(f"classes    {len(experiment.space.classes)} ({experiment.space.name})")
  for name, network in state.networks.items():
    count = sum(x.size for x in jax.tree.leaves(network.params))
    lines.append(f"network    {name}: {count:,} parameters")
  for stage in experiment.stages:
    lines.append(_stage(stage, sizes["target"]))
  total = sum(stage.num_steps for stage in experiment.stages)
  for stage in experiment.stages:
    for stream in stage.streams.values():
      try:
        parallel.check_batch(stream.batch, f"stage {stage.name}")
      except UserError as error:
        lines.append(f"not here   {error}")
  return "\n".join([*lines, f"total      {total:,} steps; every shape fits"])


def planned(config: ConfigDict) -> tuple[Experiment, dict[str, int]]:
  """An experiment and its data sets' numbers of images, the published ones where the data are not needed for it."""
  roles = [role for role in ("source", "target", "test") if sources.is_named(config[role])]
  sizes = {role: sources.published_size(config[role]) for role in roles}
  space: LabelSpace | None = sources.published_space(config.source)
  for role in roles:
    if config[role].kind == "street_world":
      sources.open_source(config[role], config.data_dir)  # needs no data, and knows its names
  if space is not None and None not in sizes.values():
    return plan(config, space, {}, sizes), sizes
  experiment = open_experiment(config)
  return experiment, {role: len(experiment.datasets[role]) for role in roles}


def check(experiment: Experiment) -> State:
  """Traces all stages of an experiment with abstract values; returns the shapes of its last state.

  Raises:
    UserError: the network predicts more or fewer classes than the data have, a labelling gives labels of another shape than
      the canvas, or `config.weights` cannot be loaded.
  """
  config = experiment.config
  canvas = tuple(config.canvas)
  state = jax.eval_shape(functools.partial(experiment.method.init, config), jax.random.key(0))
  statistics = {
    name: jax.ShapeDtypeStruct(np.shape(fold.finish(fold.init())), jnp.float32)
    for name, fold in experiment.method.label_statistics(config).items()
  }
  state = state.replace(hyper={**state.hyper, **statistics})
  seen = set()  # rounds share their functions, and tracing large networks takes its time
  for stage in experiment.stages:
    if stage.labelling is not None and stage.labelling.forward not in seen:
      seen.add(stage.labelling.forward)
      _check_labelling(stage.labelling, state, canvas)
    state = jax.eval_shape(stage.begin, state, jax.random.key(0))
    for kind in stage.steps.values():
      streams = [stage.streams[name] for name in kind.streams]
      if (this := (kind.apply, *(stream.batch for stream in streams))) in seen:
        continue
      seen.add(this)
      batches = {name: _abstract_batch(stage.streams[name].batch, canvas) for name in kind.streams}
      # The batch of one device; the others' are alike.
      step = jax.vmap(kind.apply, (None, 0, None), None, axis_name=DEVICE_AXIS, axis_size=1)
      state, _ = jax.eval_shape(step, state, batches, jax.random.key(0))
  logits = jax.eval_shape(experiment.predict, state, jax.ShapeDtypeStruct((1, *canvas, 3), jnp.float32))
  if logits.shape[-1] != len(experiment.space.classes):
    raise UserError(f"the network predicts {logits.shape[-1]} classes, the data have {len(experiment.space.classes)}")
  return state


def _check_labelling(labelling: Labelling, state: State, canvas: tuple[int, int]) -> None:
  def label(state, image, size, found):
    box = labelling.views(jax.random.key(0), size)
    outputs = labelling.forward(state, inference.prepare(image[None], size[None]), jax.tree.map(lambda x: x[None], box))
    return labelling.assemble(state.hyper, jax.tree.map(lambda x: x[0], outputs), box, size, canvas)

  image, size = jax.ShapeDtypeStruct((*canvas, 3), jnp.uint8), jax.ShapeDtypeStruct((2,), jnp.int32)
  scores, valid, extras = jax.eval_shape(label, state, image, size, {})
  found: dict[str, Any] = {}
  for name, fold in labelling.folds.items():
    jax.eval_shape(lambda *x, f=fold: f.update(f.init(), *x), found, scores, valid, extras)
    found[name] = fold.finish(fold.init())
  for drawn in labelling.maps.values():
    jax.eval_shape(drawn, found, scores, valid, extras)
  for select in (labelling.select, *labelling.others.values()):
    labels = jax.eval_shape(select, found, scores, valid, extras)
    if labels.shape != canvas:
      raise UserError(f"the labelling gives {labels.shape}, the canvas is {canvas}")


def _abstract_batch(batch: int, canvas: tuple[int, int]) -> dict[str, jax.ShapeDtypeStruct]:
  """A batch of the pipeline, on one device."""
  number = jax.ShapeDtypeStruct((1, batch), jnp.int32)
  return {
    "image": jax.ShapeDtypeStruct((1, batch, *canvas, 3), jnp.uint8),
    "label": jax.ShapeDtypeStruct((1, batch, *canvas), jnp.uint8),
    "size": jax.ShapeDtypeStruct((1, batch, 2), jnp.int32),
    "draw": number,
    "domain": number,
  }


def _dataset(spec: ConfigDict) -> str:
  fields = ("dir", "domain", "split", "list", "only")
  return " ".join([spec.kind, *(f"{name}={spec[name]}" for name in fields if spec[name])])


def _stage(stage: Stage, num_target: int) -> str:
  streams = [f"{' + '.join(s.datasets)}, batch {s.batch}{_drawn(s.subset)}" for s in stage.streams.values()]
  labels = ""
  if stage.labelling is not None:
    labels = f"label {num_target:,} target images, then "
  # The steps of batch statistics at its end may see what training sees.
  return f"stage      {stage.name}: {labels}{stage.num_steps:,} steps of {'; '.join(dict.fromkeys(streams))}"


def _drawn(subset: Sequence[int] | None) -> str:
  return "" if subset is None else f" out of {len(subset):,} images"
