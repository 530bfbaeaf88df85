"""A config with everything that it names: method, data sets, stages; and the working directory that it owns."""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

from jax_uda import files, inference, methods, parallel
from jax_uda.bad_images import BadImages, Tolerant
from jax_uda.config import differences
from jax_uda.data import label_spaces, sources
from jax_uda.data.label_spaces import IGNORE, LabelSpace, Protocol
from jax_uda.errors import UserError
from jax_uda.state import Stage

# What a finished first stage depends on: `start_from` wants these equal.
SOURCE_FIELDS = (
  "seed",
  "source",
  "canvas",
  "network",
  "augmentation",
  "optimizer",
  "loss_at",
  "source_training",
  "weights",
  "weights_partial",
  "diversity",
)


# What may be another when a run goes on: more bad images may be allowed where one has stopped it, and it may go further.
MAY_CHANGE = ("max_bad_images", "stop_after")


LOOKED_AT, SELDOM = 8, 0.5  # source images, before training starts; a share of labelled pixels that is worth a word


@dataclass(frozen=True)
class Experiment:
  """A resolved config.

  Attributes:
    config: with `num_classes` and `classes` filled in.
    space: what the network predicts: the source's label space. All labels are in it.
    protocols: how it is scored; the first gives a stage's own scores.
    datasets: sources by the names that streams use.
    predict: `method.predict(config)`, made once so that it compiles once.
    maps: `method.maps(config)`, likewise; None where the method has none.
  """

  config: ml_collections.ConfigDict
  method: ModuleType
  space: LabelSpace
  protocols: Sequence[Protocol]
  datasets: Mapping[str, Any]
  stages: Sequence[Stage]
  predict: Callable
  maps: Callable | None

  def stage_key(self, index: int, purpose: int) -> jax.Array:
    """The PRNG key [] for one purpose in one stage; everything random comes from these."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(self.config.seed), index), purpose)


def open_experiment(config: ml_collections.ConfigDict) -> Experiment:
  """Opens the data sets and plans the stages; reads no image.

  Raises:
    UserError: a data set is missing or does not fit the others, or a field has a value that is not offered.
  """
  source, target = open_dataset(config, "source"), open_dataset(config, "target")
  space = source.label_space
  if space is None:
    raise UserError(f"config.source.dir: {config.source.dir} has no labels; it needs `labels/` and `classes.csv`")
  truth = in_space(target, space, "target")
  kept = config.keep_gib * 2**30
  datasets = {
    "source": sources.Remembered(source, kept),
    "target": sources.Remembered(sources.unlabelled(target), kept),
    "target_truth": truth,
  }
  if sources.is_named(config.test):
    datasets["test"] = open_test(config, space)
  for name, dataset in datasets.items():
    if not len(dataset):
      raise UserError(f"config.{name.removesuffix('_truth')}: the data set has no images; choose a larger one")
  experiment = plan(config, space, datasets, {name: len(dataset) for name, dataset in datasets.items()})
  for stage in experiment.stages:
    for stream in stage.streams.values():
      parallel.check_batch(stream.batch, f"stage {stage.name}")
  return experiment


def tolerant(experiment: Experiment, workdir: epath.Path) -> Experiment:
  """The same, passing over as many unreadable images as `config.max_bad_images` allows; a test set is scored whole."""
  bad = BadImages(workdir / "bad_images.json", experiment.config.max_bad_images)
  datasets = {
    name: dataset if name == "test" else Tolerant(dataset, bad) for name, dataset in experiment.datasets.items()
  }
  return dataclasses.replace(experiment, datasets=datasets)


def look_at_labels(experiment: Experiment) -> None:
  """Reads a few source labels, and says it where much of them is none; colours that `classes.csv` lacks are ignored.

  Raises:
    UserError: none of them has a labelled pixel, or a label cannot be read.
  """
  source = experiment.datasets["source"]
  places = sources.spread(len(source), LOOKED_AT)
  share = float(np.mean([np.mean(source[i]["label"] != IGNORE) for i in places]))
  what = f"of the pixels of {len(places)} source images"
  if not share:
    raise UserError(f"config.source: none {what} has a label; let classes.csv list the ids or colours that labels/ has")
  if share < SELDOM:
    print(f"source: only {share:.0%} {what} have a label; see that its classes are those that you mean", flush=True)


def plan(
  config: ml_collections.ConfigDict, space: LabelSpace, datasets: Mapping[str, Any], sizes: Mapping[str, int]
) -> Experiment:
  """An experiment from its config and the sizes of its data sets, which may be known without having them."""
  inference.parse_scales(config.eval_scales, "config.eval_scales")  # found now, if wrong, and not at the first score
  experiment = _experiment(config, space, datasets, sizes)
  last_stage(experiment)
  return experiment


def last_stage(experiment: Experiment) -> int:
  """The index of the stage after which a run ends; raises `UserError` if `config.stop_after` names none."""
  names, wanted = [stage.name for stage in experiment.stages], experiment.config.stop_after
  if wanted and wanted not in names:
    raise UserError(f"config.stop_after: there is no stage {wanted!r}; choose from {', '.join(names)}")
  return names.index(wanted) if wanted else len(names) - 1


def refuse_stop_after(config: ml_collections.ConfigDict, runs: str) -> None:
  """Raises `UserError` where `runs` that are compared with each other would not go to their ends."""
  if config.stop_after:
    raise UserError(f"config.stop_after: {runs} go to their ends; leave it out")


def reopen(config: ml_collections.ConfigDict, space: LabelSpace, scored: bool = True) -> Experiment:
  """What is needed of a run that is there to predict, none of its stages; with its test set where it is to be `scored`.

  Raises:
    UserError: there is no test set, or it does not fit the label space.
  """
  if scored and not sources.is_named(config.test):
    raise UserError("config.test names no data set, there is nothing to score; set --config.test.kind and what it needs")
  config = config.copy_and_resolve_references()
  config.weights = ""  # the checkpoint has them
  return _experiment(config, space, {"test": open_test(config, space)} if scored else {})


def _experiment(
  config: ml_collections.ConfigDict,
  space: LabelSpace,
  datasets: Mapping[str, Any],
  sizes: Mapping[str, int] | None = None,
) -> Experiment:
  """An experiment; without `sizes` it has no stages."""
  method = find_method(config.method)
  config = config.copy_and_resolve_references()
  config.num_classes, config.classes = len(space.classes), space.classes
  stages = () if sizes is None else method.stages(config, sizes)
  maps = method.maps(config) if hasattr(method, "maps") else None
  protocols = scoring_protocols(config, space)
  return Experiment(config, method, space, protocols, datasets, stages, method.predict(config), maps)


def open_test(config: ml_collections.ConfigDict, space: LabelSpace) -> Any:
  """The test set, its labels in the network's label space and at their own resolution."""
  return in_space(open_dataset(config, "test", scored=True), space, "test")


def open_dataset(config: ml_collections.ConfigDict, role: str, scored: bool | None = None) -> Any:
  """`sources.open_source` of the config's `source`, `target` or `test`; a UserError says which one it is about."""
  try:
    return sources.open_source(config[role], config.data_dir, scored)
  except UserError as error:
    raise UserError(f"config.{role}: {error}") from error


def in_space(dataset: Any, space: LabelSpace, name: str) -> Any:
  """A data set with its labels, if it has any, in a label space: classes of equal names, the others ignored.

  Raises:
    UserError: no class is in both.
  """
  theirs = dataset.label_space
  if theirs is None or theirs.classes == space.classes:
    return dataset
  lost = [one for one in theirs.classes if one not in space.classes]
  if len(lost) == len(theirs.classes):
    raise UserError(
      f"config.{name}: its classes are {', '.join(theirs.classes)}; the source's are "
      f"{', '.join(space.classes)}; choose data sets that share classes"
    )
  if lost:
    print(f"{name}: {', '.join(lost)}: not among the source's classes, ignored", flush=True)
  return sources.Mapped(dataset, space, label_spaces.mapping(theirs, space))


def scoring_protocols(config: ml_collections.ConfigDict, space: LabelSpace) -> list[Protocol]:
  """The protocols that `config.protocols` names, or the label space's own; raises `UserError` for one that does not fit."""
  return [label_spaces.protocol(name.strip(), space) for name in config.protocols.split(",")]


def find_method(name: str) -> ModuleType:
  """The module of a method.

  Raises:
    UserError: there is none of that name.
  """
  known = method_names()
  if name not in known:
    raise UserError(f"config.method: there is no method {name!r}; choose one of {', '.join(known)}")
  return importlib.import_module(f"jax_uda.methods.{name}")


def method_names() -> list[str]:
  """Every method there is."""
  return sorted(module.name for module in pkgutil.iter_modules(methods.__path__))


def refuse_other_run(config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
  """Sees to it that a working directory is free or holds a run of this very config.

  Raises:
    UserError: it does not.
  """
  try:
    if workdir.exists() and not workdir.is_dir():
      raise UserError(f"--workdir: {workdir} is a file; name a folder")
    workdir.mkdir(parents=True, exist_ok=True)
    claimed = (workdir / "config.json").exists()
  except OSError as error:
    raise UserError(f"--workdir: {workdir}: {error.strerror or error}; name a folder that can be written") from error
  old, new = (
    {name: value for name, value in fields.items() if name not in MAY_CHANGE}
    for fields in (files.read_json(workdir / "config.json") if claimed else {}, files.plain(config.to_dict()))
  )
  if claimed and (changes := differences(old, new)):
    raise UserError(
      f"--workdir: {workdir} holds a run of another config ({'; '.join(changes)}); name a new folder, or undo that"
    )


def source_settings(config: Mapping[str, Any]) -> dict[str, Any]:
  """The part of a config that the first stage depends on."""
  return {name: config[name] for name in SOURCE_FIELDS if name in config}
