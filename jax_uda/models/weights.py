"""Weights from elsewhere, taken over by name and shape; nothing that could run code is ever unpickled.

A network has a table that says what each of its arrays is called over there: `{flax path: foreign name}`.
"""

import io
import pickle
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath
from flax import traverse_util

from jax_uda.errors import UserError
from jax_uda.models import mxnet_params

Path = tuple[str, ...]
Variables = dict[str, Any]

TORCH_LEAVES = {
  ("params", "kernel"): "weight",
  ("params", "scale"): "weight",
  ("params", "bias"): "bias",
  ("batch_stats", "mean"): "running_mean",
  ("batch_stats", "var"): "running_var",
}
TORCH_MODULES = {"fc6": "classifier.0", "fc7": "classifier.3"}  # VGG16's, which are called otherwise here
MXNET_LEAVES = {
  ("params", "kernel"): "weight",
  ("params", "scale"): "gamma",
  ("params", "bias"): "beta",
  ("batch_stats", "mean"): "moving_mean",
  ("batch_stats", "var"): "moving_var",
}
AXES = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}  # where PyTorch's and MXNet's axes are in ours: OI from IO, OIHW from HWIO
CLASSIFIERS = re.compile(r"(rate\d+_)?logits|score_(fc7|pool4|pool3)")  # layers with an output for each class
# What a file may have and a network need not: classifiers, and how many batches BatchNorm has seen; and parts of it, where
# the network has nothing of them.
LEFT_OUT = re.compile(r"(fc|classifier\.6)\..*|.*\.num_batches_tracked|(conv6a|linear\d+)_(weight|bias)")
PARTS_LEFT_OUT = ("layer4", "classifier")
NESTED = ("state_dict", "model", "network", "net")  # where training scripts put a network's tensors among other things
SAFE_TORCH = (2, 10)  # the weights-only loaders before it could be made to run code, or to corrupt memory
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
  """Returns torchvision's name of every array of the `backbone`, ResNet or VGG16, in a segmenter's variables.

  Modules already bear torchvision's names, with `_` for `.`: ("params", "backbone", "layer1_0", "conv1", "kernel") is
  layer1.0.conv1.weight.
  """

  def name(collection, _, *modules, leaf):
    return ".".join((*(TORCH_MODULES.get(x, x.replace("_", ".")) for x in modules), TORCH_LEAVES[collection, leaf]))

  flat = traverse_util.flatten_dict(variables)
  return {path: name(*path[:-1], leaf=path[-1]) for path in flat if path[1] == "backbone"}


def mxnet_names(variables: Variables) -> dict[Path, str]:
  """Returns the authors' name of every array of a segmenter's ResNet-38 and, if it has that, its `Head`.

  A block's number is in the names of its layers there: ("params", "backbone", "block2a", "bn_branch2a", "scale") is
  bn2a_branch2a_gamma. The head is conv6a and linear{C}.
  """
  names = {}
  for path, x in traverse_util.flatten_dict(variables).items():
    part, *modules, leaf = path[1:]
    if part == "backbone":
      *block, layer = modules
      kind, _, branch = layer.partition("_")
      layer = f"{kind}{block[0].removeprefix('block')}_{branch}" if block else layer
      names[path] = f"{layer}_{MXNET_LEAVES[path[0], leaf]}"
    elif part == "head":
      layer = "conv6a" if modules == ["conv"] else f"linear{x.shape[-1]}"
      names[path] = f"{layer}_{'bias' if leaf == 'bias' else 'weight'}"
  return names


def load(path: str, variables: Variables, partial: bool = False) -> tuple[Variables, Report]:
  """Takes over a segmenter's backbone from a file of .safetensors, of PyTorch (.pth) or of MXNet (.params).

  ResNet-18, -50, -101 and VGG16 go by torchvision's names, with them VGG16's first two fully connected layers; ResNet-38 by
  its authors', with them its head, if the file has one, and the classes' layer, if it has one of as many classes.

  Args:
    path: of the file.
    variables: the segmenter's, with `params` and `batch_stats`; they are not changed.
    partial: goes on where names are missing, unknown or of another shape; what is not loaded keeps its value.

  Returns:
    New variables, and the report of what was loaded. Unused and no reason to stop are classifiers, a layer4 that the
    network leaves out, and `num_batches_tracked`.

  Raises:
    UserError: the file cannot be read, nothing in it fits, or some names do not fit and `partial` is not set.
  """
  arrays = _read(path)
  ours = variables["params"]["backbone"]
  names = mxnet_names(variables) if "conv1a" in ours else torchvision_names(variables)
  layers = {at[:-1] for at, name in names.items() if at[1] == "head" and name in arrays}
  optional = {at for at in names if at[1] == "head" and at[:-1] not in layers}
  new, report = _take_over(arrays, variables, {at: name for at, name in names.items() if at not in optional}, AXES)
  if not report.loaded:
    whose = "its authors'" if "conv1a" in ours else "torchvision's"
    raise UserError(
      f"nothing in the weights {path} fits this network; expected {whose} names of its backbone, and its width"
    )
  parts = set(PARTS_LEFT_OUT) - {name.partition(".")[0] for name in names.values()}
  unknown = [one for one in report.unused if not LEFT_OUT.fullmatch(one) and one.partition(".")[0] not in parts]
  _settle(f"the weights {path} do not fit this network", report, unknown, partial, "mend the file")
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
  wrong = f"the network in {path} is another one"
  if not report.loaded:
    raise UserError(f"{wrong}, nothing of it fits; make config.network that of its config.json")
  _settle(wrong, report, report.unused, partial, "make config.network that of its config.json")
  return new, report


def _settle(wrong: str, report: Report, unknown: Sequence[str], partial: bool, advice: str) -> None:
  """Says what does not fit: line by line where that goes on or would be too long an error; `UserError` unless `partial`."""
  other_shapes = [f"{name} (there {there}, here {here})" for name, there, here in report.mismatched]
  faults = {"missing there": report.missing, "of another shape": other_shapes, "unknown": unknown}
  if partial or any(len(names) > MOST_NAMES for names in faults.values()):
    for fault, names in faults.items():
      print("".join(f"weights: {fault}: {name}\n" for name in names), end="")
  if not partial and any(faults.values()):
    table = "; ".join(f"{len(names)} {fault}: {listing(names)}" for fault, names in faults.items() if names)
    raise UserError(f"{wrong}: {table}; {advice}, or go on with what fits by --config.weights_partial=True")


def torchvision_arrays(variables: Variables) -> dict[str, np.ndarray]:
  """The backbone as torchvision's state dict has it: what `load` takes over, bit for bit.

  Args:
    variables: a segmenter's.

  Returns:
    Arrays by name, kernels [out, in, h, w], or [out, in] where they are fully connected there; without
    `num_batches_tracked`, which PyTorch does not miss, and without a classifier.

  Raises:
    UserError: the backbone is ResNet-38, which torchvision does not have.
  """
  if "conv1a" in variables["params"]["backbone"]:
    raise UserError("ResNet-38 is none of torchvision's networks, and has no names there; export the network as a whole")
  flat = traverse_util.flatten_dict(variables)
  arrays = {}
  for path, name in torchvision_names(variables).items():
    array = np.asarray(flat[path])
    array = array.transpose(AXES.get(array.ndim))
    fully_connected = path[2] in TORCH_MODULES and array.ndim == 4
    arrays[name] = np.ascontiguousarray(array.reshape(len(array), -1) if fully_connected else array)
  return arrays


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
      continue
    array = arrays[name]
    if array.ndim == 2 and len(shape) == 4 and array.shape == (shape[0], np.prod(shape[1:])):
      array = array.reshape(shape)  # a fully connected layer, which is a convolution here
    if array.shape != shape:
      mismatched.append((name, array.shape, shape))
    else:
      loaded.append(name)
      flat[path] = jnp.asarray(array.transpose(np.argsort(axes)), flat[path].dtype)
  unused = set(arrays) - set(names.values())
  report = Report(tuple(sorted(loaded)), tuple(sorted(missing)), tuple(sorted(unused)), tuple(sorted(mismatched)))
  return traverse_util.unflatten_dict(flat), report


def listing(names: Iterable[str]) -> str:
  """Names in one line, with commas between; of many, how many more there are."""
  names = list(names)
  more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
  return ", ".join(names[:MOST_NAMES]) + more


def _read(path: str) -> dict[str, np.ndarray]:
  """The arrays of a file by name."""
  file = epath.Path(path)
  if file.suffix not in READERS:
    raise UserError(
      f"the weights {path} are no file of {', '.join(READERS)}, nor the folder of a finished run; name one, or save "
      "them with safetensors.torch.save_file"
    )
  try:
    content = file.read_bytes()
  except OSError as error:
    raise UserError(f"cannot read the weights {path}: {error.strerror or error}; check the path") from error
  return READERS[file.suffix](path, content)


def _from_safetensors(path: str, content: bytes) -> dict[str, np.ndarray]:
  try:
    return safetensors.numpy.load(content)
  except safetensors.SafetensorError as error:
    raise UserError(f"the weights {path} are damaged or no .safetensors file ({error}); fetch them again") from error
  except KeyError as error:  # a number type that NumPy lacks
    raise UserError(f"the weights {path} hold numbers of type {error}; convert them to float32") from error


def _from_mxnet(path: str, content: bytes) -> dict[str, np.ndarray]:
  try:
    found = mxnet_params.read(content)
  except ValueError as error:
    raise UserError(f"the weights {path} are damaged or no MXNet file: {error}; fetch them again") from error
  arrays = {re.sub("^(arg|aux):", "", name): x for name, x in found.items()}
  if len(arrays) < len(found):
    raise UserError(f"the weights {path} hold a name both as arg: and as aux:; save them anew")
  return arrays


def _from_torch(path: str, content: bytes) -> dict[str, np.ndarray]:
  convert = "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'weights.safetensors')"
  try:
    import torch
  except ImportError:
    raise UserError(
      f"the weights {path} are PyTorch's, which is not installed here; where it is, turn them into a .safetensors file: "
      f"{convert}"
    ) from None
  if tuple(map(int, torch.__version__.split(".")[:2])) < SAFE_TORCH:
    wanted = ".".join(map(str, SAFE_TORCH))
    raise UserError(
      f"the weights {path} are not opened: this PyTorch, {torch.__version__}, does not guard against files that run code; "
      f"install {wanted} or newer, or turn them into a .safetensors file: {convert}"
    )
  try:
    found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
  except pickle.UnpicklingError as error:
    raise UserError(
      f"the weights {path} hold other things than tensors, or are damaged; they are not opened, as what is pickled may run "
      "code. Save the state_dict() alone"
    ) from error
  except Exception as error:  # of many kinds, for files that are none
    said = type(error).__name__
    raise UserError(
      f"the weights {path} are damaged or no file of torch.save ({said}); save the state_dict() anew"
    ) from error
  for _ in NESTED:
    inner = (found[key] for key in NESTED if isinstance(found, dict) and isinstance(found.get(key), dict))
    found = next(inner, found)
  try:
    plain = {str(name): x.detach() for name, x in found.items()}
    arrays = {name: (x.float() if x.is_floating_point() else x).numpy() for name, x in plain.items()}
  except (AttributeError, TypeError, RuntimeError) as error:  # no table, no tensors, or such as have no plain values
    raise UserError(f"the weights {path} hold no table of plain tensors by name; save the state_dict() alone") from error
  if not arrays:
    raise UserError(f"the weights {path} hold no tensor; save the state_dict() of the network")
  parallel = all(name.startswith("module.") for name in arrays)  # as DataParallel calls them
  return {name.removeprefix("module.") if parallel else name: x for name, x in arrays.items()}


READERS: dict[str, Callable[[str, bytes], dict[str, np.ndarray]]] = {
  ".safetensors": _from_safetensors,
  ".pth": _from_torch,
  ".pt": _from_torch,
  ".params": _from_mxnet,
}
