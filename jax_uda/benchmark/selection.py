"""Class-balanced selection against the published way: thresholds and labels of the same probability maps.

the three commonest commands:
  python -m jax_uda.benchmark.selection
  python -m jax_uda.benchmark.selection --images 10,100,500
  python -m jax_uda.benchmark.selection --images 100 --json selection.json

The published way (CBST, algorithm 2) gathers the confidences of each class over all images, concatenates and sorts them,
and goes through the maps again to select; here in plain NumPy. Ours is `jax_uda.pseudo_labels`. Maps are made again from a
seed whenever they are asked for; making them, and bringing them to where a side wants them, is not timed. Each figure is
from a process of its own.
"""

import functools
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from jax_uda import commands
from jax_uda.errors import UserError

NUM_CLASSES, SIZE, STRIDE = 19, (512, 1024), 8
PORTION = 0.2
CHUNK = 8  # images whose counts stay on the device, as a batch's in labelling
SIDES = ("ours", "published")


def probabilities(seed: int) -> np.ndarray:
  """Softmax float32 [H, W, C] of an image: random logits at stride 8, upsampled; some images are surer than others."""
  rng = np.random.default_rng(seed)
  low = rng.normal(0, rng.uniform(1, 5), (*(n // STRIDE for n in SIZE), NUM_CLASSES)).astype(np.float32)
  odds = np.exp(cv2.resize(low, SIZE[::-1], interpolation=cv2.INTER_LINEAR))
  return odds / odds.sum(-1, keepdims=True)


class Published:
  """Per-class lists of confidences, concatenated and sorted."""

  def __init__(self):
    self._pools: list[list[np.ndarray]] = [[] for _ in range(NUM_CLASSES)]

  @staticmethod
  def prepared(maps: np.ndarray) -> np.ndarray:
    """An image's map [H, W, C] as [C, H, W]: classes first is faster in NumPy, and how the released code keeps them."""
    return np.ascontiguousarray(maps.transpose(2, 0, 1))

  def add(self, maps: np.ndarray) -> None:
    """One image's confidences, out of its map [C, H, W], into the pools of the classes that it is predicted as."""
    predicted, confidence = maps.argmax(0), maps.max(0)
    for c, pool in enumerate(self._pools):
      pool.append(confidence[predicted == c])

  def thresholds(self) -> np.ndarray:
    """[C], the confidence at rank `PORTION` of each pool."""
    found = np.full(NUM_CLASSES, np.inf, np.float32)
    for c, pool in enumerate(self._pools):
      values = np.concatenate(pool)
      values.sort()
      if rank := int(np.floor(PORTION * len(values) + 0.5)):
        found[c] = values[-rank]
    return found

  def select(self, maps: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Labels uint8 [H, W] of one image."""
    ratio = maps / thresholds[:, None, None]
    labels = ratio.argmax(0).astype(np.uint8)
    labels[ratio.max(0) <= 1] = 255
    return labels


class Ours:
  """Histograms."""

  def __init__(self):
    from jax_uda import pseudo_labels

    self._rules, self._total, self._added = pseudo_labels, None, 0
    self._part = pseudo_labels.init_histogram(NUM_CLASSES)

  @staticmethod
  def prepared(maps: np.ndarray) -> Any:
    """An image's map [H, W, C] on the device, where labelling computes it."""
    import jax

    return jax.block_until_ready(jax.device_put(maps))

  def add(self, maps: Any) -> None:
    """One image's confidences into the histogram on the device, which is merged on the host now and then."""
    import jax

    self._part, self._added = jax.block_until_ready(self._rules.update_histogram(self._part, maps)), self._added + 1
    if self._added == CHUNK:
      self._merge()

  def _merge(self) -> None:
    fresh = self._rules.init_histogram(NUM_CLASSES)
    self._total = self._rules.merge_histograms(fresh if self._total is None else self._total, self._part)
    self._part, self._added = fresh, 0

  def thresholds(self) -> np.ndarray:
    """[C], the confidence at rank `PORTION` of each pool."""
    self._merge()
    return np.asarray(self._rules.class_balanced_thresholds(self._total, PORTION))

  def select(self, maps: Any, thresholds: np.ndarray) -> np.ndarray:
    """Labels uint8 [H, W] of one image."""
    return np.asarray(self._rules.select(maps, thresholds))


def held(what: str) -> int:
  """Bytes that this process holds (`VmRSS`), or has held at most (`VmHWM`; getrusage would begin with the parent's)."""
  status = Path("/proc/self/status").read_text()
  return int(re.search(rf"^{what}:\s+(\d+) kB", status, re.MULTILINE)[1]) * 1024


def measure(side: str, num: int) -> dict[str, Any]:
  """Seconds of one side, and how far its memory rises above where a first image left it, made maps included."""
  make = {"ours": Ours, "published": Published}[side]
  warm = make()
  maps = warm.prepared(probabilities(0))
  for _ in range(CHUNK):
    warm.add(maps)
  warm.select(maps, warm.thresholds())
  del warm
  method, seconds, before = make(), dict.fromkeys(("gathering", "thresholds", "selecting"), 0.0), held("VmRSS")

  def timed(name, action):
    started = time.perf_counter()
    result = action()
    seconds[name] += time.perf_counter() - started
    return result

  for seed in range(num):
    maps = method.prepared(probabilities(seed))
    timed("gathering", functools.partial(method.add, maps))
  thresholds = timed("thresholds", method.thresholds)
  selected = 0
  for seed in range(num):
    maps = method.prepared(probabilities(seed))
    selected += int((timed("selecting", functools.partial(method.select, maps, thresholds)) < NUM_CLASSES).sum())
  return {
    "seconds": seconds,
    "bytes": held("VmHWM") - before,
    "thresholds": thresholds.tolist(),
    "selected": selected,
  }


def compare(num: int) -> dict[str, Any]:
  """Both sides, each in a process of its own.

  Raises:
    UserError: a side has failed, or their thresholds differ by more than a histogram's bin.
  """
  found = {}
  for side in SIDES:
    print(f"{num} images, {side}", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "jax_uda.benchmark.selection", "--side", side, "--images", str(num)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
      raise UserError(f"--images {num}: the side `{side}` has failed, for what it says above; take fewer images")
    found[side] = json.loads(done.stdout)
  ours, published = (np.array(found[side]["thresholds"]) for side in SIDES)
  if not np.allclose(ours, published, rtol=2**-9):
    raise UserError(f"--images {num}: the thresholds differ, {ours} and {published}; please report this")
  seconds = {side: sum(found[side]["seconds"].values()) for side in SIDES}
  return {"num": num, **found, "ratio": seconds["published"] / seconds["ours"]}


def table(reports: Sequence[dict[str, Any]]) -> str:
  """Markdown."""
  lines = ["| images | ours | published way | ratio | memory, ours | memory, published way |"]
  lines.append("| --- | --- | --- | --- | --- | --- |")
  for one in reports:
    seconds = [f"{sum(one[side]['seconds'].values()):.1f} s" for side in SIDES]
    memory = [f"{one[side]['bytes'] / 2**20:,.0f} MiB" for side in SIDES]
    lines.append(f"| {one['num']} | {seconds[0]} | {seconds[1]} | **{one['ratio']:.1f}** | {memory[0]} | {memory[1]} |")
  return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
  """Measures, prints the table, and returns the exit status."""
  parser = commands.parser("benchmark.selection", __doc__)
  parser.add_argument("--images", default="10,100", metavar="10,100,500", help="how many; a table row each")
  parser.add_argument("--json", metavar="FILE", help="write all figures here")
  parser.add_argument("--side", choices=SIDES, help="only this one, and print its figures as JSON")
  flags = parser.parse_args(argv)
  flags.workdir = None
  if not all(part.isdecimal() and int(part) for part in flags.images.split(",")):
    parser.error(f"--images: {flags.images!r} will not do; write whole numbers from 1, commas between")
  numbers = [int(part) for part in flags.images.split(",")]

  def action() -> None:
    if flags.side:
      print(json.dumps(measure(flags.side, numbers[0])))
      return
    from jax_uda import files, parallel

    rows = [compare(num) for num in numbers]
    if flags.json:
      files.write_json(flags.json, {"device": parallel.device_name(), "size": SIZE, "classes": NUM_CLASSES, "rows": rows})
    print(table(rows))

  return commands.exit_status(action, flags, goes_on=False)


if __name__ == "__main__":
  sys.exit(main())
