"""The train steps against the same in PyTorch: checked to be the same, then timed in turns, each side in its process."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util
from ml_collections import ConfigDict

from jax_uda import check, files, parallel
from jax_uda.benchmark.parts import Racer, Record, Work, figures, passes, say, works
from jax_uda.errors import UserError
from jax_uda.state import DEVICE_AXIS
from jax_uda.steps import SOURCE, TARGET

TURNS = 5  # of the two sides
# By how much losses may differ; and the norm of all gradients, in which every layer has a part, and which batch statistics
# of few values make less sure, and losses after an update by these gradients.
TOLERANCE = {"float32": (2e-3, 3e-2), "bfloat16": (2e-2, 1e-1)}
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
AXES = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}  # ours in PyTorch's order, by the number of axes

# Fields that the PyTorch side knows one value of.
KNOWN = {
  "optimizer.clip": 0.0,
  "loss_at": "pixels",
  "rounds.hard_below": 1.0,
  "weak_labels.source": "present",
  "weak_labels.scope": "crop",
  "weak_labels.strict": True,
  "weak_labels.activation": "paper",
  "network.branches": 2,
  "diversity.of": "decoder",
  "curriculum.vote_dropout": 0.0,
  "curriculum.even_mining": False,
  "adversarial.loss": "non_saturating",
}


def race(config: ConfigDict, times: int, most: float) -> Iterator[Record]:
  """A record for each kind of train step that PyTorch has too, with what it took there, and the ratio of both medians.

  Raises:
    UserError: the config has what the PyTorch side does not know; the two sides differ; there are several devices.
  """
  if parallel.num_devices() > 1:
    raise UserError(f"--against torch compares on one device, here are {parallel.num_devices()}; hide the others")
  config, sizes = comparable(config)
  experiment = check.planned(config)[0]
  # The two sides drop other values, and are the same only without that.
  drops = config.network.backbone == "resnet38" and config.network.dropout
  undropped = works(check.planned(_without_dropout(config))[0], sizes) if drops else None
  for work in works(experiment, sizes):
    checked = next(undropped) if undropped else work
    assert checked.title == work.title
    if work.name == "statistics":
      continue
    say(f"{work.title}: compiling")
    ours = Racer(work)  # before the other side begins to work
    with tempfile.TemporaryDirectory() as folder:
      hand_over(Path(folder), experiment.config, work)
      with TorchRacer(folder) as theirs:
        same = same_work(checked, Racer(checked) if drops else ours, theirs)
        say(f"{work.title}: PyTorch compiles")
        peer = same | theirs.ask("choose")
        seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
        for turn in range(TURNS):
          say(f"{work.title}: turn {turn + 1} of {TURNS}")
          seconds["ours"] += passes(ours.step, -(-times // TURNS), 1)  # the first after a pause is not counted
          answer = theirs.ask(str(1 + -(-times // TURNS)))
          seconds["theirs"] += answer["seconds"][1:]
    record = ours.record(seconds["ours"], most)
    peer |= figures(seconds["theirs"], work.images) | {"bytes": answer.get("bytes")}
    yield {**record, "torch": peer, "ratio": peer["seconds"]["median"] / record["seconds"]["median"]}


def comparable(config: ConfigDict) -> tuple[ConfigDict, dict[str, tuple[int, int]]]:
  """A config without augmentation, where images are as large as their crops; and these sizes, by stream.

  Raises:
    UserError: a field has a value that the PyTorch side does not know.
  """
  config = config.copy_and_resolve_references()
  for name, value in KNOWN.items():
    part, _, field = name.rpartition(".")
    if (found := (config.get(part, {}) if part else config).get(field, value)) != value:
      raise UserError(f"config.{name} is {found!r}, which the PyTorch side does not know; set it to {value!r}")
  if config.network.backbone.endswith("vgg16"):
    raise UserError(f"config.network.backbone is {config.network.backbone}, which the PyTorch side lacks; choose a ResNet")
  crop = tuple(config.augmentation.crop)
  sizes = {"train": crop, "source": crop, "target": crop}
  config.augmentation.update({"scale": (1.0, 1.0), "flip": False, "blur": 0.0})
  config.augmentation.update(dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.0))
  for part in ("rounds", "curriculum", "retraining"):
    if part in config:
      config[part].jitter = 0.0
  if "mining" in config:
    config.mining.probability = 0.0
  if "sisc" in config:
    config.sisc.patches = 0  # a part of labelling, which wants room for them
  if config.method == "adversarial":
    sizes["target"] = tuple(config.adversarial.target_crop)
    config.adversarial.target_scale = 1.0
    config.retraining.steps = 0  # the same step as `source`, on another crop
  config.canvas = tuple(max(pair) for pair in zip(*sizes.values(), strict=True))
  config.weights = ""
  return config, sizes


def _without_dropout(config: ConfigDict) -> ConfigDict:
  config = config.copy_and_resolve_references()
  config.network.dropout = False
  return config


def hand_over(folder: Path, config: ConfigDict, work: Work) -> None:
  """Writes what the PyTorch side reads: job.json; arrays.npz, which has weights under its names, a batch, statistics."""
  step = _torch_step(config, work)
  arrays = {}
  for player in _players(work):
    for (_, *modules, leaf), x in traverse_util.flatten_dict(work.state.networks[player].variables).items():
      arrays[f"weights/{'.'.join([player, *modules, LEAVES[leaf]])}"] = np.transpose(x, AXES[x.ndim])
  batches = [(stream, work.batches[stream]) for stream in work.kind.streams]
  for i, (stream, batch) in enumerate(batches):
    inside = (slice(None), *map(slice, work.sizes[stream]))
    arrays |= {f"{what}/{i}": batch[what][inside] for what in ("image", "label")}
  if step == "multi_level":
    arrays["hyper/class_sizes"] = work.state.hyper["class_sizes"]
    given = {"source": SOURCE, "target": TARGET}  # of streams that hold one domain
    domains = [np.full_like(batch["domain"], given[name]) if name in given else batch["domain"] for name, batch in batches]
    arrays["hyper/domain"] = np.concatenate(domains)
  if step.startswith("curriculum"):
    weighted = [name.strip() for name in config.curriculum.weighted.split(",")]
    weights = [config.curriculum.class_weight if name in weighted else 1 for name in config.classes]
    arrays["hyper/class_weights"] = np.float32(weights)
  np.savez(folder / "arrays.npz", **{name: np.ascontiguousarray(x) for name, x in arrays.items()})
  of_round = config.rounds.batch_norm if "rounds" in config and work.stage.name != "source" else ""
  job = {
    "config": config.to_dict(),
    "step": step,
    "streams": len(work.kind.streams),
    "batch_norm": of_round or config.network.batch_norm,
    "rate": work.state.hyper["rate"],
    "platform": jax.default_backend(),
  }
  files.write_json(folder / "job.json", job)


def _torch_step(config: ConfigDict, work: Work) -> str:
  """What the PyTorch side calls a step."""
  if work.stage.name == "source" or work.name == "train":
    return "multi_level" if "classifier" in _players(work) else "supervised"
  return "adversarial" if config.method == "adversarial" else f"curriculum_{work.name}"


def _players(work: Work) -> list[str]:
  """The networks that a step trains."""
  return ["segmenter"] if work.stage.name == "source" else list(work.state.networks)


def layer_flop(work: Work) -> int:
  """Operations of the convolutions and matrix products of a step's forward, layer by layer, two a multiplication."""
  total = 0

  def count(call, arguments, named, context):
    nonlocal total
    result = call(*arguments, **named)
    if isinstance(context.module, nn.Conv | nn.Dense) and context.method_name == "__call__":
      total += 2 * result.size * int(np.prod(context.module.variables["params"]["kernel"].shape[:-1]))
    return result

  with nn.intercept_methods(count):
    step = jax.vmap(work.kind.apply, (None, 0, None), None, axis_name=DEVICE_AXIS)
    jax.eval_shape(step, work.state, parallel.shard(work.batches), work.key)
  return total * parallel.num_devices()


def same_work(work: Work, ours: Racer, theirs: "TorchRacer") -> Record:
  """What both sides have in common: `parameters`, `layer_flop`; `metrics` [here, there] of a step and of the next one.

  Raises:
    UserError: they differ.
  """
  counts = {
    "parameters": sum(x.size for name in _players(work) for x in jax.tree.leaves(work.state.networks[name].params)),
    "layer_flop": layer_flop(work),
  }
  steps = []
  for updated in (False, True):
    there, here = theirs.ask("step"), ours.step()
    if any(there[name] != n for name, n in counts.items()):
      raise UserError(f"{work.title}: PyTorch does other work, {there}, here {counts}; please report this with the config")
    pairs = {name: [float(here[name][0] / here[name][1]), value] for name, value in there.pop("metrics").items()}
    steps.append(pairs)
    for name, pair in pairs.items():
      if updated and name == "gradient_norm":
        continue
      rtol = TOLERANCE[theirs.dtype][updated or name == "gradient_norm"]
      before = abs(steps[0][name][0]) if updated else 0  # from which large steps may have led near 0
      if not np.isclose(*pair, rtol, atol=1e-6 + rtol * before):
        raise UserError(f"{work.title}: PyTorch comes to another {name} ({steps}); please report this with the config")
  return {**there, "metrics": steps}


class TorchRacer:
  """The same step in PyTorch, in a process of its own."""

  def __init__(self, folder: str):
    command = [sys.executable, "-m", "jax_uda.benchmark.torch_side", folder]
    self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    self.dtype = files.read_json(Path(folder) / "job.json")["config"]["network"]["dtype"]

  def ask(self, what: str) -> dict[str, Any]:
    """What it answers to `step`, `choose` or a number of steps; raises `UserError` where it has ended instead."""
    try:
      self._process.stdin.write(f"{what}\n")
      self._process.stdin.flush()
      return json.loads(self._process.stdout.readline())
    except (BrokenPipeError, json.JSONDecodeError) as error:
      raise UserError("--against torch: the PyTorch side has ended, for what it says above; mend that") from error

  def __enter__(self) -> "TorchRacer":
    return self

  def __exit__(self, *_) -> None:
    self._process.kill()
    self._process.communicate()
