"""Weights from elsewhere, taken over by name and shape; nothing is ever unpickled.

A network has a table that says what each of its arrays is called over there: `{flax path: foreign name}`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath
from flax import traverse_util

from jax_uda.errors import UserError

Path = tuple[str, ...]
Variables = dict[str, Any]

TORCH_LEAVES = {
  ("params", "kernel"): "weight",
  ("params", "scale"): "weight",
  ("params", "bias"): "bias",
  ("batch_stats", "mean"): "running_mean",
  ("batch_stats", "var"): "running_var",
}
TORCH_AXES = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}  # where PyTorch's axes are in ours: OI from IO, OIHW from HWIO
CLASSIFIERS = re.compile(r"(rate\d+_)?logits|score_(fc7|pool4|pool3)")  # layers with an output for each class
LEFT_OUT = ("fc.", "layer4.")  # what a file may have and a network need not
MOST_NAMES = 20  # of one kind in an error line


@dataclass(frozen=True)
class Report:
  """What became of each name, all of them the file's way of naming.

  Attributes:
    loaded: in both, and taken over.
    missing: in the network but not in the file.
    unused: in the file but not in the network.
    mismatched: in both, with another shape: (name, shape in the file, shape in the network), in the file's layout.
  """

  loaded: tuple[str, ...]
  missing: tuple[str, ...]
  unused: tuple[str, ...]
  mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]


def torchvision_names(variables: Variables) -> dict[Path, str]:
  """Returns torchvision's name of every array of the `backbone` in a segmenter's variables.

  Modules already bear torchvision's names, with `_` for `.`: ("params", "backbone", "layer1_0", "conv1", "kernel") is
  layer1.0.conv1.weight.
  """
  return {
    path: ".".join((*path[2:-1], "")).replace("_", ".") + TORCH_LEAVES[path[0], path[-1]]
    for path in traverse_util.flatten_dict(variables)
    if path[1] == "backbone"
  }


def load_torchvision(path: str, variables: Variables, partial: bool = False) -> tuple[Variables, Report]:
  """Takes over the backbone of a segmenter, ResNet or VGG16, from a torchvision-layout .safetensors file.

  Args:
    path: of the file.
    variables: the segmenter's, with `params` and `batch_stats`; they are not changed.
    partial: goes on where names are missing, unknown or of another shape; what is not loaded keeps its value.

  Returns:
    New variables, and the report of what was loaded. The classifier (`fc`, `classifier`), a layer4 that the network leaves
    out, and `num_batches_tracked` are unused and no reason to stop.

  Raises:
    UserError: the file cannot be read, nothing in it fits, or some names do not fit and `partial` is not set.
  """
  arrays = _read_safetensors(path)
  new, report = _take_over(arrays, variables, torchvision_names(variables), TORCH_AXES)
  if not report.loaded:
    raise UserError(
      f"nothing in the weights {path} fits this network; expected torchvision's names of its backbone, "
      "and its width"
    )
  # Of VGG16's classifier, what FCN makes of it would be another thing to take over.
  left_out = LEFT_OUT if any(name.startswith("fc6.") for name in report.missing) else (*LEFT_OUT, "classifier.")
  unknown = [name for name in report.unused if not name.startswith(left_out) and not name.endswith(".num_batches_tracked")]
  if not partial and (report.missing or report.mismatched or unknown):
    other_shapes = [f"{name} (file {there}, network {here})" for name, there, here in report.mismatched]
    faults = {"missing from the file": report.missing, "of another shape": other_shapes, "unknown": unknown}
    table = "; ".join(f"{len(names)} {fault}: {listing(names)}" for fault, names in faults.items() if names)
    raise UserError(
      f"the weights {path} do not fit this network: {table}; mend the file, or allow a partial import, "
      "which keeps the initial values there"
    )
  return new, report


def take_network(
  path: str, found: Variables, variables: Variables, same_classes: bool, partial: bool = False
) -> tuple[Variables, Report]:
  """Takes over a network of ours; what was trained on other classes leaves the classifiers at their values.

  Args:
    path: where it is from, for messages.
    found: its `params` and `batch_stats`.
    variables: the network's own, which are not changed.
    same_classes: whether it was trained on the same classes, in the same order.
    partial: goes on whatever is missing, unknown or of another shape.

  Returns:
    New variables, and the report of what was taken over.

  Raises:
    UserError: something other than the classifiers does not fit and `partial` is not set, or nothing fits.
  """

  def names(variables: Variables) -> dict[Path, str]:
    flat = traverse_util.flatten_dict(variables)
    return {at: ".".join(at) for at in flat if same_classes or not CLASSIFIERS.fullmatch(at[-2])}

  flat = traverse_util.flatten_dict(found)
  arrays = {name: np.asarray(flat[at]) for at, name in names(found).items()}
  new, report = _take_over(arrays, variables, names(variables), {})
  others = [name for name, _, _ in report.mismatched]
  if not report.loaded or (not partial and (report.missing or report.unused or others)):
    raise UserError(
      f"the network in {path} is another one: {listing([*report.missing, *report.unused, *others])}; make config.network "
      "that of its config.json, or allow a partial import, which keeps the initial values there"
    )
  return new, report


def _take_over(
  arrays: Mapping[str, np.ndarray],
  variables: Variables,
  names: Mapping[Path, str],
  axes_by_rank: Mapping[int, tuple[int, ...]],
) -> tuple[Variables, Report]:
  flat = traverse_util.flatten_dict(variables)
  loaded, missing, mismatched = [], [], []
  for path, name in names.items():
    axes = axes_by_rank.get(flat[path].ndim) or tuple(range(flat[path].ndim))
    shape = tuple(flat[path].shape[axis] for axis in axes)
    if name not in arrays:
      missing.append(name)
    elif arrays[name].shape != shape:
      mismatched.append((name, arrays[name].shape, shape))
    else:
      loaded.append(name)
      flat[path] = jnp.asarray(arrays[name].transpose(np.argsort(axes)), flat[path].dtype)
  unused = set(arrays) - set(names.values())
  report = Report(tuple(sorted(loaded)), tuple(sorted(missing)), tuple(sorted(unused)), tuple(sorted(mismatched)))
  return traverse_util.unflatten_dict(flat), report


def listing(names: Iterable[str]) -> str:
  """Names in one line, with commas between; of many, how many more there are."""
  names = list(names)
  more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
  return ", ".join(names[:MOST_NAMES]) + more


def _read_safetensors(path: str) -> dict[str, np.ndarray]:
  file = epath.Path(path)
  if file.suffix != ".safetensors":
    raise UserError(
      f"the weights {path} are not a .safetensors file, nor the folder of a finished run; name one, or save them with "
      "safetensors.torch.save_file"
    )
  try:
    return safetensors.numpy.load(file.read_bytes())
  except OSError as error:
    raise UserError(f"cannot read the weights {path}: {error.strerror or error}; check the path") from error
  except safetensors.SafetensorError as error:
    raise UserError(f"the weights {path} are damaged or no .safetensors file ({error}); fetch them again") from error
  except KeyError as error:  # a number type that NumPy lacks
    raise UserError(f"the weights {path} hold numbers of type {error}; convert them to float32") from error
