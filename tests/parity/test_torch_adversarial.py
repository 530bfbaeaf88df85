"""The networks of the multi-adversarial proxies against the benchmark's in PyTorch, on equal weights."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import traverse_util
from torch import nn

from jax_uda.benchmark import torch_side
from jax_uda.models.decoders import ASPP, FusionDecoder
from jax_uda.models.discriminator import PatchDiscriminator
from jax_uda.models.resnet import ResNet
from jax_uda.models.segmenter import Segmenter
from jax_uda.models.weights import load, torchvision_arrays
from tests.parity.test_torch_resnet import assert_equal_to_rounding, backbone_of, empty, images, nchw, randomise


@pytest.fixture(autouse=True)
def seed():
  torch.manual_seed(0)


def carried_over(ours, theirs, *inputs):
  """Our variables, with the values of a PyTorch module whose names are ours with `.` for `/`."""
  values = theirs.state_dict()
  leaves = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
  flat = traverse_util.flatten_dict(jax.eval_shape(ours.init, jax.random.key(0), *inputs))
  taken = {path: values[".".join((*path[1:-1], leaves[path[-1]]))].numpy() for path in flat}
  left = set(values) - {".".join((*path[1:-1], leaves[path[-1]])) for path in flat}
  assert all(name.endswith("num_batches_tracked") for name in left)
  found = {path: jnp.asarray(x.transpose(2, 3, 1, 0) if x.ndim == 4 else x) for path, x in taken.items()}
  return traverse_util.unflatten_dict(found)


@pytest.mark.parametrize("size", [(5, 7), (24, 31)])
def test_aspp(size):
  theirs, x = randomise(torch_side.ASPP(6, 4)), images(*size, channels=6)
  ours = ASPP(4)
  assert_equal_to_rounding(jax.jit(ours.apply)(carried_over(ours, theirs, x), x), theirs(nchw(x)))


@pytest.mark.parametrize(("sizes", "units"), [([(8, 12), (4, 6), (2, 3), (1, 2)], 2), ([(9, 13), (5, 7), (3, 4)], 1)])
def test_fusion_decoder(sizes, units):
  features = (3, 4, 6, 8)[: len(sizes)]
  maps = [images(*size, channels=n) for size, n in zip(sizes, features, strict=True)]
  theirs = randomise(torch_side.FusionDecoder(features, 5, units, 2))
  ours = FusionDecoder(5, units, 2)
  fused = jax.jit(ours.apply)(carried_over(ours, theirs, maps), maps)
  for mine, other in zip(fused, theirs([nchw(x) for x in maps]), strict=True):
    assert_equal_to_rounding(mine, other)


@pytest.mark.parametrize(("poolings", "size"), [(2, (8, 12)), (2, (9, 5)), (3, (16, 24)), (3, (17, 31))])
def test_discriminators(poolings, size):
  theirs, x = randomise(torch_side.PatchDiscriminator(6, poolings, 4)), images(*size, channels=6)
  ours = PatchDiscriminator(poolings, 4)
  assert_equal_to_rounding(jax.jit(ours.apply)(carried_over(ours, theirs, x), x)[..., None], theirs(nchw(x)))


@pytest.mark.parametrize("dilated", [False, True])
def test_resnet101_from_a_file(dilated, tmp_path):
  theirs = randomise(torch_side.ResNet("resnet101", 4, 8 if dilated else 32, 1 / 16))
  for name, module in theirs.named_modules():
    if name.endswith("bn3"):  # else what 33 blocks add up to is beyond float32's reach
      nn.init.uniform_(module.weight, 0.1, 0.3)
  x = images(65, 97)
  ours = ResNet(101, output_stride=8 if dilated else 32, width=1 / 16)
  state = {re.sub(r"(layer\d|downsample)_", r"\1.", name): value for name, value in theirs.state_dict().items()}
  torch.save(state, tmp_path / "resnet101.pth")
  variables, report = load(str(tmp_path / "resnet101.pth"), empty(Segmenter(5, "resnet101", width=1 / 16), x))
  assert len(report.loaded) == len([name for name in state if "num_batches" not in name])
  arrays = torchvision_arrays(variables)  # and back
  assert set(arrays) == {name for name in state if "num_batches" not in name}
  for name, array in arrays.items():
    np.testing.assert_array_equal(array, state[name].numpy())
  maps = jax.jit(ours.apply)(backbone_of(variables), x)
  for mine, other in zip(maps, theirs(nchw(x)), strict=True):
    assert_equal_to_rounding(mine, other)
  assert np.isfinite(maps[-1]).all()
