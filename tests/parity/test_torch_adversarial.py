"""The networks of the multi-adversarial proxies against the same layers written in PyTorch, on equal weights."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import traverse_util
from torch import nn
from torch.nn import functional as F

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


class TorchASPP(nn.ModuleDict):
  def __init__(self, features, classes):
    super().__init__({f"rate{r}_logits": nn.Conv2d(features, classes, 3, padding=r, dilation=r) for r in (1, 2, 4, 8)})

  def forward(self, x):
    return sum(layer(x) for layer in self.values())


@pytest.mark.parametrize("size", [(5, 7), (24, 31)])
def test_aspp(size):
  theirs, x = randomise(TorchASPP(6, 4)), images(*size, channels=6)
  ours = ASPP(4)
  assert_equal_to_rounding(jax.jit(ours.apply)(carried_over(ours, theirs, x), x), theirs(nchw(x)))


class TorchFusion(nn.Module):
  def __init__(self, features, channels, units, dilation):
    super().__init__()
    self.units = units
    self.reduce = nn.Conv2d(features[-1], channels, 1)
    for level, inputs in enumerate(features[:-1]):
      setattr(self, f"level{level}_reduce", nn.Conv2d(inputs, channels, 1))
      for unit in range(units):
        for i in (1, 2):
          layer = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)
          setattr(self, f"level{level}_unit{unit}_conv{i}", layer)

  def forward(self, maps):
    x, fused = self.reduce(maps[-1]), []
    for level in reversed(range(len(maps) - 1)):
      for unit in range(self.units):
        first, second = (getattr(self, f"level{level}_unit{unit}_conv{i}") for i in (1, 2))
        x = x + second(F.relu(first(F.relu(x))))
      height, width = maps[level].shape[2:]
      up = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)[..., :height, :width]
      x = up + getattr(self, f"level{level}_reduce")(maps[level])
      fused.insert(0, x)
    return fused


@pytest.mark.parametrize(("sizes", "units"), [([(8, 12), (4, 6), (2, 3), (1, 2)], 2), ([(9, 13), (5, 7), (3, 4)], 1)])
def test_fusion_decoder(sizes, units):
  features = (3, 4, 6, 8)[: len(sizes)]
  maps = [images(*size, channels=n) for size, n in zip(sizes, features, strict=True)]
  theirs = randomise(TorchFusion(features, 5, units, 2))
  ours = FusionDecoder(5, units, 2)
  fused = jax.jit(ours.apply)(carried_over(ours, theirs, maps), maps)
  for mine, other in zip(fused, theirs([nchw(x) for x in maps]), strict=True):
    assert_equal_to_rounding(mine, other)


class TorchDiscriminator(nn.Module):
  def __init__(self, features, poolings, channels):
    super().__init__()
    self.poolings = poolings
    for i in range(poolings + 1):
      outputs = channels * 2**i
      setattr(self, f"conv{i + 1}", nn.Conv2d(features, outputs, 3, padding=1))
      features = outputs
    self.verdict = nn.Conv2d(features, 1, 1)

  def forward(self, x):
    for i in range(self.poolings + 1):
      x = F.leaky_relu(getattr(self, f"conv{i + 1}")(x), 0.2)
      if i < self.poolings:
        x = F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
    return self.verdict(x)


@pytest.mark.parametrize(("poolings", "size"), [(2, (8, 12)), (2, (9, 5)), (3, (16, 24)), (3, (17, 31))])
def test_discriminators(poolings, size):
  theirs, x = randomise(TorchDiscriminator(6, poolings, 4)), images(*size, channels=6)
  ours = PatchDiscriminator(poolings, 4)
  assert_equal_to_rounding(jax.jit(ours.apply)(carried_over(ours, theirs, x), x)[..., None], theirs(nchw(x)))


class TorchBottleneck(nn.Module):
  def __init__(self, inputs, channels, stride, dilation, project):
    super().__init__()
    self.conv1, self.bn1 = nn.Conv2d(inputs, channels, 1, bias=False), nn.BatchNorm2d(channels)
    self.conv2 = nn.Conv2d(channels, channels, 3, stride, dilation, dilation, bias=False)
    self.bn2 = nn.BatchNorm2d(channels)
    self.conv3, self.bn3 = nn.Conv2d(channels, 4 * channels, 1, bias=False), nn.BatchNorm2d(4 * channels)
    if project:
      self.downsample_0 = nn.Conv2d(inputs, 4 * channels, 1, stride, bias=False)
      self.downsample_1 = nn.BatchNorm2d(4 * channels)
    self.project = project

  def forward(self, x):
    y = F.relu(self.bn1(self.conv1(x)))
    y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
    return F.relu(y + (self.downsample_1(self.downsample_0(x)) if self.project else x))


class TorchResNet101(nn.Module):
  def __init__(self, width, dilated):
    super().__init__()
    inputs = round(64 * width)
    self.conv1, self.bn1 = nn.Conv2d(3, inputs, 7, 2, 3, bias=False), nn.BatchNorm2d(inputs)
    dilation, self.stages = 1, []
    for stage, (number, channels) in enumerate(zip((3, 4, 23, 3), (64, 128, 256, 512), strict=True), start=1):
      stride, first, channels = (1 if stage == 1 else 2), dilation, round(channels * width)
      if dilated and stage > 2:
        stride, dilation = 1, 2 * dilation
      names = []
      for i in range(number):
        block = TorchBottleneck(inputs, channels, 1 if i else stride, dilation if i else first, i == 0)
        names.append(f"layer{stage}_{i}")
        setattr(self, names[-1], block)
        inputs = 4 * channels
      self.stages.append(names)

  def forward(self, x):
    x, maps = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1), []
    for names in self.stages:
      for name in names:
        x = getattr(self, name)(x)
      maps.append(x)
    return maps


@pytest.mark.parametrize("dilated", [False, True])
def test_resnet101_from_a_file(dilated, tmp_path):
  theirs = randomise(TorchResNet101(1 / 16, dilated))
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
