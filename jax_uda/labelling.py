"""Labelling the target: the network once per image, folds over its kept outputs, then labels as PNG files."""

import contextlib
import functools
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from jax_uda import files, inference, metrics, parallel, terminal
from jax_uda.data import pipeline, sources
from jax_uda.data.label_spaces import IGNORE
from jax_uda.experiment import Experiment
from jax_uda.pictures import heat_maps, write_maps, write_png
from jax_uda.results import PseudoLabelCounts
from jax_uda.state import State
from jax_uda.stopping import StopSignal


def label_target(
  experiment: Experiment, workdir: epath.Path, index: int, state: State, stop: StopSignal
) -> dict[str, np.ndarray]:
  """Writes a stage's pseudo-labels, and beside them a record of what they came to; processes share the images.

  Written are `pseudo_labels/<stage>/<image id>.png` (train ids at the size that the canvas gave the image, 255 = ignore)
  and `pseudo_labels/<stage>.json`.

  Returns:
    What the stage's steps want of it in `State.hyper`: arrays [...] by name, see `Labelling.hyper`.
  """
  config, stage, target = experiment.config, experiment.stages[index], experiment.datasets["target"]
  labelling, canvas, process = stage.labelling, tuple(config.canvas), parallel.process()
  num = parallel.share(len(target))
  folder, spill = workdir / "pseudo_labels" / stage.name, workdir / f"spill_{process['process_index']}"
  if parallel.is_first():
    for left in (folder, *workdir.glob("spill*")):
      if left.exists():
        left.rmtree()  # by processes that were killed on the way
  parallel.barrier()
  folder.mkdir(parents=True, exist_ok=True)

  def batches(source, **which):
    batch = labelling.batch * parallel.num_devices()
    return pipeline.eval_batches(source, batch, canvas, threads=config.threads, **which)

  @contextlib.contextmanager
  def progress(what):
    started = time.monotonic()
    with terminal.Progress(f"{stage.name} · {what}", num, "images") as bar:
      yield bar
    seconds[what] = time.monotonic() - started
    stop.check(agree=True)

  state = parallel.replicate(state)
  read: dict[int, str] = {}  # index -> id, of the images that could be read
  truths: Iterator[np.ndarray | None] = itertools.repeat(None)
  found: dict[str, Any] = {}
  counts, *compared = (_Counts(len(experiment.space.classes)) for _ in range(1 + len(labelling.others)))
  ease: dict[int, float] = {}  # by index
  seconds: dict[str, float] = {}
  with inference.KeptOutputs(num, config.labels.keep_gib, spill, config.labels.spill_gib) as kept:
    with progress("network") as bar:
      images = _noting(batches(target, **process), read)
      for done in inference.segment(labelling, state, experiment.stage_key(index, 1), images, kept):
        bar.update(done)
        stop.check()
    for name in labelling.folds:
      with progress(name) as bar:

        def watch(done, bar=bar):
          bar.update(done)
          stop.check()

        found[name] = inference.fold(labelling, name, state.hyper, found, kept, canvas, watch)
    truth = experiment.datasets["target_truth"]
    first = min(i for some in parallel.gather(list(read)[:1]) for i in some)
    if read and "label" in truth[first]:
      truths = _truths(batches(truth, indices=list(read)), len(read))
    with progress("labels") as bar:
      labelled = inference.select(labelling, state.hyper, found, kept, canvas)
      for (i, image_id), (labels, valid, easy, others) in zip(read.items(), labelled, strict=True):
        write_png(folder / f"{image_id}.png", labels)
        truth = next(truths)
        for count, choice in zip((counts, *compared), (labels, *others), strict=True):
          count.add(choice, valid, truth)
        ease[i] = easy
        bar.update(1)
        stop.check()
    if labelling.maps or labelling.others:
      wanted = sources.spread(len(target), config.pictures)
      places = {image_id: place for place, (i, image_id) in enumerate(read.items()) if i in wanted}
      drawn = inference.drawn(labelling, state.hyper, found, kept, canvas, places.values())
      write_maps(workdir, stage.name, dict(zip(places, drawn, strict=True)))
  shares = parallel.gather((ease, (counts, *compared)))
  counts, *compared = (functools.reduce(_Counts.merge, some) for some in zip(*(one for _, one in shares), strict=True))
  ease = dict(sorted(item for one, _ in shares for item in one.items()))
  trained_on = easiest(list(ease), list(ease.values()), labelling.num)
  others = {what: count.record() for what, count in zip(labelling.others, compared, strict=True)}
  record = {**counts.record(), **labelling.numbers(found), "others": others, "chosen": trained_on, "seconds": seconds}
  files.write_json(workdir / "pseudo_labels" / f"{stage.name}.json", record)
  print(f"{stage.name}: {counts.summary()}", flush=True)
  for what, count in zip(labelling.others, compared, strict=True):
    print(f"{stage.name}, {what}: {count.summary()}", flush=True)
  if labelling.ease is not None:
    print(f"{stage.name}: trains on the {labelling.num} easiest of {len(target)} images", flush=True)
  for line in labelling.lines(found, experiment.space.classes):
    print(f"{stage.name}: {line}", flush=True)
  parallel.barrier()  # what one has written, others will read
  return labelling.hyper(found)


def easiest(indices: Sequence[int], ease: Sequence[float], num: int) -> list[int]:
  """The `num` images of the greatest ease, in the order of their indices; among equals the first; repeated if too few."""
  order = np.argsort(-np.asarray(ease), kind="stable")
  return sorted(indices[place] for place in np.resize(order, num))


def chosen(workdir: epath.Path, stage: str) -> list[int]:
  """Indices of the target images that a stage trains on, from its record."""
  return files.read_json(workdir / "pseudo_labels" / f"{stage}.json")["chosen"]


def label_statistics(experiment: Experiment, workdir: epath.Path, stop: StopSignal) -> dict[str, np.ndarray]:
  """The method's statistics of the source labels, for `State.hyper`; made once a run, kept in label_statistics.npz.

  Returns:
    What `finish` of its folds gave, arrays of any shape by name.
  """
  folds = experiment.method.label_statistics(experiment.config)
  path = workdir / "label_statistics.npz"
  if not folds:
    return {}
  if parallel.gather(path.exists())[0]:
    return files.read_npz(path)
  source = experiment.datasets["source"]
  stats = {name: fold.init() for name, fold in folds.items()}
  canvas, threads = tuple(experiment.config.canvas), experiment.config.threads
  batches = pipeline.eval_batches(source, 1, canvas, threads=threads, **parallel.process())
  with terminal.Progress("source labels · statistics", parallel.share(len(source)), "images") as bar:
    for batch in batches:
      if not batch["valid"][0]:
        continue  # in place of an image that cannot be read
      label, size = batch["label"][0], batch["size"][0]
      stats = {name: fold.merge(stats[name], fold.update(fold.init(), label, size)) for name, fold in folds.items()}
      bar.update(1)
      stop.check()
  stop.check(agree=True)
  shares = parallel.gather(stats)
  stats = {name: functools.reduce(fold.merge, [share[name] for share in shares]) for name, fold in folds.items()}
  found = {name: np.asarray(fold.finish(stats[name]), np.float32) for name, fold in folds.items()}
  for name, value in found.items():
    if value.ndim == 3 and parallel.is_first():  # a map [h, w, C]
      drawn = heat_maps(value, experiment.space.classes)
      write_png(workdir / "pictures" / "extra" / f"{name}.png", drawn[..., ::-1])
  files.write_npz(path, found)
  return found


def pseudo_label_counts(workdir: epath.Path, stage: str) -> dict[str, PseudoLabelCounts]:
  """What a stage's labelling came to, from its record: "" names the labels, other names the others it compared."""
  record = files.read_json(workdir / "pseudo_labels" / f"{stage}.json")

  def counts(record):
    confusion = record["confusion"]
    return PseudoLabelCounts(
      np.array(record["selected"]), record["pixels"], None if confusion is None else np.array(confusion)
    )

  return {what: counts(one) for what, one in {"": record, **record.get("others", {})}.items()}


class _Counts:
  """Whole numbers over all labelled images."""

  def __init__(self, num_classes: int):
    self._num_classes = num_classes
    self._selected = np.zeros(num_classes, np.int64)
    self._pixels = self._uncovered = 0
    self._confusion: np.ndarray | None = None

  def add(self, labels: np.ndarray, valid: np.ndarray, truth: np.ndarray | None) -> None:
    self._selected += np.bincount(labels[labels != IGNORE], minlength=self._num_classes)
    self._pixels += labels.size
    self._uncovered += int((~valid).sum())
    if truth is not None:
      seen = np.where(labels == IGNORE, IGNORE, truth)
      confusion = np.asarray(metrics.confusion_matrix(seen, labels, self._num_classes), np.int64)
      self._confusion = confusion if self._confusion is None else self._confusion + confusion

  def merge(self, other: "_Counts") -> "_Counts":
    """Of both sets of images."""
    total = _Counts(self._num_classes)
    total._selected = self._selected + other._selected
    total._pixels, total._uncovered = self._pixels + other._pixels, self._uncovered + other._uncovered
    known = [one for one in (self._confusion, other._confusion) if one is not None]
    total._confusion = sum(known) if known else None
    return total

  def record(self) -> dict[str, Any]:
    return {
      "selected": self._selected,
      "pixels": self._pixels,
      "uncovered": self._uncovered,
      "confusion": self._confusion,
    }

  def summary(self) -> str:
    share, missed = self._selected.sum() / self._pixels, self._uncovered / self._pixels
    known = 0 if self._confusion is None else self._confusion.sum()
    right = f" ({np.trace(self._confusion) / known:.1%} of them right)" if known else ""
    return f"labelled {share:.1%} of the target's pixels{right}; no view covered {missed:.1%}"


def _noting(batches: Iterable[dict[str, Any]], read: dict[int, str]) -> Iterator[dict[str, Any]]:
  for batch in batches:
    read |= {int(batch["index"][i]): batch["id"][i] for i in np.flatnonzero(batch["valid"])}
    yield batch


def _truths(batches: Iterable[dict[str, Any]], num: int) -> Iterator[np.ndarray | None]:
  """`num` true labels at the size of the content, read for scoring only; None for images that have none."""
  examples = ((batch, i) for batch in batches for i in range(len(batch["valid"])))
  for batch, i in itertools.islice(examples, num):
    height, width = batch["size"][i]
    known = batch["valid"][i] and batch["full_label"][i] is not None
    yield batch["label"][i, :height, :width] if known else None

