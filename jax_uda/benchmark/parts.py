"""What is timed on this machine: train steps, labelling, scoring and reading, on made-up images by a network at random."""

import collections
import functools
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_uda import evaluate, inference, parallel, trained
from jax_uda.data import pipeline
from jax_uda.errors import UserError
from jax_uda.experiment import Experiment, open_dataset
from jax_uda.state import Stage, State, TrainStep

WARM_UP = 3  # passes that are not timed
TRACED = 3  # steps in a trace
BATCHES = 8  # that labelling, scoring and reading are timed on

Record = dict[str, Any]


def say(line: str) -> None:
  """Tells on stderr what is under way."""
  print(line, file=sys.stderr, flush=True)


# Figures


def passes(action: Callable[[], Any], times: int, warm_up: int = WARM_UP) -> list[float]:
  """Seconds of each of so many calls, after some that warm up; what they return is waited for."""
  seconds = []
  for _ in range(warm_up + times):
    started = time.perf_counter()
    jax.block_until_ready(action())
    seconds.append(time.perf_counter() - started)
  return seconds[warm_up:]


def figures(seconds: Sequence[float], images: int) -> Record:
  """Median and spread of what passes over so many images took."""
  low, median, high = np.percentile(seconds, (25, 50, 75)).tolist()
  spread = {"median": median, "quartiles": [low, high]}
  return {"images": images, "passes": len(seconds), "seconds": spread, "images_per_second": images / median}


def ceiling(dtype: str) -> float:
  """Floating-point operations a second in the best of some matrix products on this device, as JAX computes them."""
  best = 0.0
  for n in (1024, 2048) if jax.default_backend() == "cpu" else (4096, 8192, 16384):
    a, b = (jax.random.normal(jax.random.key(i), (n, n), dtype) for i in range(2))
    best = max(best, 2 * n**3 / min(passes(functools.partial(jax.jit(jnp.matmul), a, b), 10)))
  return best


# Train steps


@dataclass(frozen=True)
class Work:
  """A kind of train step with all that it takes to run it.

  Attributes:
    stage, name: the stage, and what the stage calls this kind of step.
    state: that the stage begins with.
    sizes: (height, width) of the images of each stream.
    batches: of the pipeline, by stream.
  """

  stage: Stage
  name: str
  kind: TrainStep
  state: State
  sizes: Mapping[str, tuple[int, int]]
  batches: Mapping[str, dict[str, np.ndarray]]
  key: jax.Array

  @property
  def title(self) -> str:
    """What people know it by."""
    return f"{self.stage.name}, {self.name}"

  @property
  def images(self) -> int:
    """Images a step."""
    return sum(len(batch["draw"]) for batch in self.batches.values())


def works(experiment: Experiment, sizes: Mapping[str, tuple[int, int]] | None = None) -> Iterator[Work]:
  """Each kind of train step once; `sizes` of images by stream, where they do not fill the canvas."""
  config, seen = experiment.config, set()
  state = first_state(experiment)
  for index, stage in enumerate(experiment.stages):
    state = stage.begin(state, experiment.stage_key(index, 0))
    for name, kind in stage.steps.items():
      streams = {stream: stage.streams[stream] for stream in kind.streams}
      if (this := (kind.apply, *(stream.batch for stream in streams.values()))) in seen:
        continue  # another round
      seen.add(this)
      canvas = tuple(config.canvas)
      shapes = {stream: (sizes or {}).get(stream, canvas) for stream in streams}
      batches = {
        name: made_up(stream.batch, canvas, shapes[name], config.num_classes, len(stream.datasets))
        for name, stream in streams.items()
      }
      yield Work(stage, name, kind, state, shapes, batches, experiment.stage_key(index, 2))


def first_state(experiment: Experiment) -> State:
  """A network at random, and source label statistics that mean nothing."""
  config = experiment.config
  state = experiment.method.init(config, jax.random.key(config.seed))
  folds = experiment.method.label_statistics(config)
  statistics = {name: np.full(np.shape(fold.finish(fold.init())), 0.1, np.float32) for name, fold in folds.items()}
  return state.replace(hyper={**state.hyper, **statistics})


def made_up(
  batch: int, canvas: tuple[int, int], size: tuple[int, int], num_classes: int, domains: int = 1
) -> dict[str, np.ndarray]:
  """A batch of the pipeline: squares of a class, of its colour and noise; a tenth of the pixels has no label.

  Returns:
    image uint8 [B, H, W, 3] and label uint8 [B, H, W] of the canvas; size int32 [B, 2]; draw and domain int32 [B].
  """
  rng = np.random.default_rng(0)
  coarse = rng.integers(0, num_classes, (batch, *(-(-n // 32) for n in canvas)), np.uint8)
  label = coarse.repeat(32, 1).repeat(32, 2)[:, : canvas[0], : canvas[1]]
  image = rng.integers(0, 200, (num_classes, 3), np.uint8)[label] + rng.integers(0, 55, (*label.shape, 1), np.uint8)
  return {
    "image": image,
    "label": np.where(rng.random(label.shape) < 0.1, 255, label).astype(np.uint8),
    "size": np.tile(np.int32(size), (batch, 1)),
    "draw": np.arange(batch, dtype=np.int32),
    "domain": (np.arange(batch) % domains).astype(np.int32),
  }


class Racer:
  """A train step, compiled, that can be timed."""

  def __init__(self, work: Work):
    started = time.perf_counter()
    state = parallel.replicate(jax.tree.map(jnp.array, work.state))  # a copy: a step eats its state
    lowered = parallel.lowered_train_step(work.kind.apply, state, work.batches, work.key)
    traced = time.perf_counter()
    self._step = lowered.compile()
    self._took = {"trace_seconds": traced - started, "compile_seconds": time.perf_counter() - traced}
    self._work, self._state = work, state

  def step(self) -> dict[str, tuple[jax.Array, jax.Array]]:
    """One step, from host arrays to a new state, which is waited for; gives its metrics, (sum, count) of [] or [C] each."""
    self._state, metrics = self._step(self._state, parallel.shard(self._work.batches), self._work.key)
    jax.block_until_ready(self._state)
    return metrics

  def record(self, seconds: Sequence[float], most: float) -> Record:
    """What is told of it.

    Args:
      seconds: of steps.
      most: operations a second that the device is capable of, see `ceiling`.
    """
    work, found, memory = self._work, figures(seconds, self._work.images), self._step.memory_analysis()
    flop = (self._step.cost_analysis() or {}).get("flops")  # on one device
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return {
      "part": "train",
      "title": work.title,
      "sizes": work.sizes,
      **found,
      **self._took,
      "flop": flop,
      "ceiling_share": flop / found["seconds"]["median"] / most if flop else None,
      "bytes": held - memory.alias_size_in_bytes,
    }


def time_steps(experiment: Experiment, times: int, most: float, profile: str | None = None) -> Iterator[Record]:
  """A record for each kind of train step, and a trace of it in the folder `profile`; `most` is the device's `ceiling`."""
  for work in works(experiment):
    say(f"{work.title}: compiling")
    racer = Racer(work)
    say(f"{work.title}: timing")
    seconds = passes(racer.step, times)
    if profile:
      with jax.profiler.trace(os.path.join(profile, work.title.replace(", ", "_"))):
        passes(racer.step, TRACED, 0)
    yield racer.record(seconds, most)


# Beside the train steps


def time_labelling(experiment: Experiment, times: int) -> Iterator[Record]:
  """A record for each part of the first labelling: the network, each fold, the selection; nothing for methods without."""
  labelled = [stage for stage in experiment.stages if stage.labelling is not None]
  if not labelled:
    return
  config, labelling = experiment.config, labelled[0].labelling
  canvas, state = tuple(config.canvas), parallel.replicate(first_state(experiment))
  batch = labelling.batch * parallel.num_devices()
  made = made_up(batch, canvas, canvas, config.num_classes)
  batches = [{**made, "index": np.arange(batch, dtype=np.int32), "valid": np.ones(batch, bool)}] * BATCHES
  found: dict[str, Any] = {}

  def record(name, action):
    say(f"labels, {name}: timing")
    took = figures(passes(action, times, 1), BATCHES * batch)
    return {"part": "labels", "title": name, "sizes": {"target": canvas}, **took}

  with tempfile.TemporaryDirectory() as folder:
    keep = functools.partial(
      inference.KeptOutputs, BATCHES * batch, config.labels.keep_gib, Path(folder) / "spill", config.labels.spill_gib
    )

    def network(kept):
      list(inference.segment(labelling, state, jax.random.key(0), batches, kept))

    def network_alone():
      with keep() as kept:
        network(kept)

    yield record("network", network_alone)
    with keep() as kept:
      network(kept)
      for name in labelling.folds:
        fold = functools.partial(
          inference.fold, labelling, name, state.hyper, dict(found), kept, canvas, lambda done: None
        )
        yield record(f"fold {name}", fold)
        found[name] = fold()
      selected = functools.partial(inference.select, labelling, state.hyper, found, kept, canvas)
      yield record("selection", lambda: collections.deque(selected(), 0))


def time_scoring(experiment: Experiment, times: int) -> Iterator[Record]:
  """A record for scoring images as large as the canvas, from the decoded image to the confusion matrix."""
  config, canvas = experiment.config, tuple(experiment.config.canvas)
  images = BATCHES * config.eval_batch * parallel.num_devices()
  made = made_up(1, canvas, canvas, config.num_classes)
  dataset = [{"id": str(i), "image": made["image"][0], "label": made["label"][0]} for i in range(images)]
  network = trained.of(experiment, parallel.replicate(first_state(experiment)))

  def score():
    for predicted in trained.predictions(network, dataset):
      evaluate.confusion(predicted, config.num_classes)

  say("scores: timing")
  yield {"part": "scores", "title": "whole images", "sizes": {"test": canvas}, **figures(passes(score, times, 1), images)}


def time_reading(experiment: Experiment, times: int) -> Iterator[Record]:
  """A record for reading, decoding and fitting source images alone, and one for the first stage's steps fed by it.

  The latter has `waiting`, the share of the time that goes by waiting for data. Nothing where the data are not there.
  """
  config, stage = experiment.config, experiment.stages[0]
  try:
    source = open_dataset(config, "source")
  except UserError as error:
    say(f"reading: left out; {error}")
    return
  kind, sizes = stage.steps[stage.pick(0)], {"source": tuple(config.canvas)}
  (stream,) = kind.streams
  batch = stage.streams[stream].batch
  batches = pipeline.train_stream([source], batch, tuple(config.canvas), seed=0, start=0, threads=config.threads)
  say("reading: timing")
  alone = passes(lambda: collections.deque(itertools.islice(batches, BATCHES), 0), times)
  yield {"part": "reading", "title": f"{config.threads} threads", "sizes": sizes, **figures(alone, BATCHES * batch)}

  step, key = parallel.train_step(kind.apply), experiment.stage_key(0, 2)
  state, waited, began = parallel.replicate(stage.begin(first_state(experiment), key)), 0.0, 0.0
  for i in range(WARM_UP + times):
    if i == WARM_UP:
      jax.block_until_ready(state)
      waited, began = 0.0, time.perf_counter()
    asked = time.perf_counter()
    drawn = next(batches)
    waited += time.perf_counter() - asked
    state, _ = step(state, {stream: drawn}, key)
  jax.block_until_ready(state)
  seconds = time.perf_counter() - began
  found = {**figures([seconds / times], batch), "passes": times, "waiting": waited / seconds}
  yield {"part": "reading", "title": f"{stage.name}, fed", "sizes": sizes, **found}
