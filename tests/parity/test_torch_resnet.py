"""The networks against the same layers written in PyTorch from their published layer lists, on equal weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from flax import traverse_util
from torch import nn
from torch.nn import functional as F

from jax_uda.models.decoders import Head, ImageClassifier
from jax_uda.models.resnet import ResNet
from jax_uda.models.segmenter import Segmenter
from jax_uda.models.weights import AXES, load, torchvision_arrays
from tests.test_weights import of_mxnet


@pytest.fixture(autouse=True)
def seed():
  torch.manual_seed(0)


def randomise(module):
  """Gives every parameter and statistic a value that a swapped or forgotten array would betray."""
  for name, value in [*module.named_parameters(), *module.named_buffers()]:
    if not value.is_floating_point():
      continue
    with torch.no_grad():
      if value.ndim > 1:
        value.normal_(0, (2 / value[0].numel()) ** 0.5)
      elif name.endswith(("running_var", "weight")):
        value.uniform_(0.5, 1.5)
      else:
        value.normal_(0, 0.3)
  return module.eval()


def nchw(x):
  return torch.from_numpy(np.asarray(x).transpose(0, 3, 1, 2).copy())


def images(height, width, batch=2, channels=3):
  return np.random.default_rng(0).normal(size=(batch, height, width, channels)).astype(np.float32)


def assert_equal_to_rounding(ours, theirs):
  theirs = theirs.detach().numpy()
  theirs = theirs.transpose(0, 2, 3, 1) if theirs.ndim == 4 else theirs
  assert ours.shape == theirs.shape
  np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())


def empty(model, x):
  leaves = jax.eval_shape(model.init, jax.random.key(0), x)
  return jax.tree.map(lambda leaf: jnp.full(leaf.shape, jnp.nan, leaf.dtype), leaves)


def carry_over(variables, state, name_of):
  """Fills `variables` from a torch `state` by `name_of(collection, modules, leaf)`; every array of both is used."""
  flat = traverse_util.flatten_dict(variables)
  names = {path: name_of(path[0], path[1:-1], path[-1]) for path in flat}
  assert sorted(names.values()) == sorted(name for name in state if "num_batches" not in name)
  for path, name in names.items():
    value = state[name].numpy()
    flat[path] = jnp.asarray(value.transpose(np.argsort(AXES[value.ndim])))
    assert flat[path].shape == traverse_util.flatten_dict(variables)[path].shape
  return traverse_util.unflatten_dict(flat)


def backbone_of(variables):
  return {collection: tree["backbone"] for collection, tree in variables.items()}


def assert_back(fresh, arrays, state, missing):
  """PyTorch takes arrays of ours over as they stand, and has what it once gave, bit for bit."""
  said = fresh.load_state_dict(arrays, strict=False)
  assert set(said.missing_keys) == missing and not said.unexpected_keys
  for name, x in fresh.state_dict().items():
    if name not in missing and "num_batches" not in name:
      np.testing.assert_array_equal(x.numpy(), state[name].numpy())


LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


# --- ResNet-18


class TorchBlock(nn.Module):
  def __init__(self, inputs, outputs, stride, dilations, project):
    super().__init__()
    first, second = dilations
    self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, first, first, bias=False)
    self.bn1 = nn.BatchNorm2d(outputs)
    self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, second, second, bias=False)
    self.bn2 = nn.BatchNorm2d(outputs)
    shortcut = [nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)] if project else []
    self.downsample = nn.Sequential(*shortcut)

  def forward(self, x):
    y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
    return F.relu(self.downsample(x) + y)


class TorchResNet18(nn.Module):
  def __init__(self, dilated):
    super().__init__()
    self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
    self.bn1 = nn.BatchNorm2d(64)
    self.layer1 = nn.Sequential(TorchBlock(64, 64, 1, (1, 1), False), TorchBlock(64, 64, 1, (1, 1), False))
    self.layer2 = nn.Sequential(TorchBlock(64, 128, 2, (1, 1), True), TorchBlock(128, 128, 1, (1, 1), False))
    stride, (a, b, c) = (1, (1, 2, 4)) if dilated else (2, (1, 1, 1))
    self.layer3 = nn.Sequential(TorchBlock(128, 256, stride, (a, b), True), TorchBlock(256, 256, 1, (b, b), False))
    self.layer4 = nn.Sequential(TorchBlock(256, 512, stride, (b, c), True), TorchBlock(512, 512, 1, (c, c), False))
    self.fc = nn.Linear(512, 10)

  def features(self, x):
    x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
    return self.layer4(self.layer3(self.layer2(self.layer1(x))))

  def forward(self, x):
    return self.fc(self.features(x).mean((2, 3)))


@pytest.mark.parametrize("size", [(65, 97), (64, 42)])
def test_resnet18_segmenters_logits(size, tmp_path):
  theirs, head = randomise(TorchResNet18(dilated=True)), randomise(torch_head(512, 24, 7, 12))
  safetensors.torch.save_file(theirs.state_dict(), tmp_path / "resnet18.safetensors")
  x = images(*size)
  ours = Segmenter(7, "resnet18", head_channels=24)
  variables, _ = load(str(tmp_path / "resnet18.safetensors"), empty(ours, x))
  state = {name: value.numpy() for name, value in head.state_dict().items()}
  variables["params"]["head"] = {
    layer: {"kernel": state[f"{i}.weight"].transpose(2, 3, 1, 0), "bias": state[f"{i}.bias"]}
    for layer, i in (("conv", 0), ("logits", 2))
  }
  assert_equal_to_rounding(jax.jit(ours.apply)(variables, x)[0], head(theirs.features(nchw(x))))


@pytest.mark.parametrize(("output_stride", "size"), [(32, (65, 97)), (32, (64, 50)), (8, (65, 97)), (8, (33, 42))])
def test_resnet18_from_a_file_computes_what_torch_does(output_stride, size, tmp_path):
  theirs = randomise(TorchResNet18(dilated=output_stride == 8))
  path = tmp_path / "resnet18.safetensors"
  safetensors.torch.save_file(theirs.state_dict(), path)
  x = images(*size)
  variables, report = load(str(path), empty(Segmenter(5, "resnet18"), x))
  assert len(report.loaded) == 100
  features = jax.jit(ResNet(output_stride=output_stride).apply)(backbone_of(variables), x)[-1]
  assert_equal_to_rounding(features, theirs.features(nchw(x)))
  safetensors.numpy.save_file(torchvision_arrays(variables), path)  # and back
  fresh, arrays = TorchResNet18(dilated=False), safetensors.torch.load_file(path)
  assert_back(fresh, arrays, theirs.state_dict(), missing={"fc.weight", "fc.bias"})


def test_resnet18_with_its_classifier():
  theirs = randomise(TorchResNet18(dilated=False))
  x = images(64, 64)
  ours = ResNet(num_classes=10)

  def name(collection, modules, leaf):
    return ".".join((*modules, "")).replace("_", ".") + LEAVES[leaf]

  variables = carry_over(empty(ours, x), theirs.state_dict(), name)
  assert_equal_to_rounding(jax.jit(ours.apply)(variables, x), theirs(nchw(x)))


# --- ResNet-38


class TorchUnit(nn.Module):
  """Pre-activation residual block; `convolutions` are (outputs, kernel, stride, dilation)."""

  def __init__(self, inputs, convolutions, project):
    super().__init__()
    self.norms, self.convolutions = nn.ModuleList(), nn.ModuleList()
    outputs, stride = convolutions[-1][0], convolutions[0][2]
    self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if project else None
    for outputs, kernel, stride, dilation in convolutions:
      pad = (dilation * (kernel - 1) + 1) // 2
      self.norms.append(nn.BatchNorm2d(inputs, eps=1.001e-5))
      self.convolutions.append(nn.Conv2d(inputs, outputs, kernel, stride, pad, dilation, bias=False))
      inputs = outputs

  def forward(self, x):
    y = F.relu(self.norms[0](x))
    shortcut = x if self.shortcut is None else self.shortcut(y)
    y = self.convolutions[0](y)
    for norm, convolution in zip(self.norms[1:], self.convolutions[1:], strict=True):
      y = convolution(F.relu(norm(y)))
    return shortcut + y


def torch_resnet38(w):
  """The trunk with channels divided by `w`, as {name of the block: module}."""
  blocks, inputs = {"conv1a": nn.Conv2d(3, 64 // w, 3, 1, 1, bias=False)}, 64 // w

  def add(name, *convolutions):
    nonlocal inputs
    convolutions = [(channels // w, *rest) for channels, *rest in convolutions]
    blocks[name] = TorchUnit(inputs, convolutions, project=name.endswith("a"))
    inputs = convolutions[-1][0]

  for level, channels, repeats in ((2, 128, 2), (3, 256, 2), (4, 512, 5)):
    add(f"{level}a", (channels, 3, 2, 1), (channels, 3, 1, 1))
    for i in range(repeats):
      add(f"{level}b{i + 1}", (channels, 3, 1, 1), (channels, 3, 1, 1))
  add("5a", (512, 3, 1, 1), (1024, 3, 1, 2))
  add("5b1", (512, 3, 1, 2), (1024, 3, 1, 2))
  add("5b2", (512, 3, 1, 2), (1024, 3, 1, 2))
  add("6a", (512, 1, 1, 2), (1024, 3, 1, 4), (2048, 1, 1, 4))
  add("7a", (1024, 1, 1, 4), (2048, 3, 1, 4), (4096, 1, 1, 4))
  blocks["bn7"] = nn.BatchNorm2d(inputs, eps=1.001e-5)
  blocks["relu7"] = nn.ReLU()
  return nn.ModuleDict(blocks)


def torch_head(inputs, channels, classes, dilation):
  hidden = nn.Conv2d(inputs, channels, 3, padding=dilation, dilation=dilation)
  return nn.Sequential(hidden, nn.ReLU(), nn.Conv2d(channels, classes, 3, padding=dilation, dilation=dilation))


def mxnet_name(name):
  """What the authors' files call an array of the modules above."""
  part, block, *rest, leaf = name.split(".")
  if part == "head":
    return f"{'conv6a' if block == '0' else 'linear7'}_{leaf}"
  leaf = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_var"}[leaf]
  if not rest:
    return "conv1a_weight" if block == "conv1a" else f"{block}_{leaf}"
  branch = "branch1" if rest == ["shortcut"] else f"branch{('2a', '2b1', '2b2')[int(rest[1])]}"
  return f"bn{block}_{branch}_{leaf}" if rest[0] == "norms" else f"res{block}_{branch}_weight"


@pytest.mark.parametrize("size", [(65, 97), (64, 42)])
def test_resnet38_segmenter_from_a_file_computes_what_torch_does(size, tmp_path):
  trunk = torch_resnet38(16)
  theirs = randomise(nn.ModuleDict({"trunk": trunk, "head": torch_head(256, 24, 7, 12)}))
  trunk["bn7"].running_var.fill_(1e-6)  # so that another epsilon would show
  x = images(*size)
  ours = Segmenter(7, "resnet38", width=1 / 16, head_channels=24)
  state = {name: value for name, value in theirs.state_dict().items() if "num_batches" not in name}
  path = tmp_path / "resnet38.params"
  path.write_bytes(of_mxnet({mxnet_name(name): value.numpy() for name, value in state.items()}))
  variables, report = load(str(path), empty(ours, x))
  assert len(report.loaded) == len(state)
  logits, latent = jax.jit(ours.apply)(variables, x)
  expected = nn.Sequential(*trunk.values())(nchw(x))
  assert_equal_to_rounding(latent, expected)
  assert_equal_to_rounding(logits, theirs["head"](expected))


# --- FCN-8s on VGG16


class TorchFCN8s(nn.Module):
  """Channels divided by `w`; pools round up, and scores are doubled by FCN's bilinear deconvolution."""

  def __init__(self, w, classes):
    super().__init__()
    layers, inputs = [], 3
    for outputs in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
      if outputs:
        layers += [nn.Conv2d(inputs, outputs // w, 3, padding=1), nn.ReLU()]
        inputs = outputs // w
      else:
        layers.append(nn.MaxPool2d(2, ceil_mode=True))
    self.features = nn.Sequential(*layers)
    self.fc6 = nn.Conv2d(inputs, 4096 // w, 7, padding=3)
    self.fc7 = nn.Conv2d(4096 // w, 4096 // w, 1)
    self.score_pool3 = nn.Conv2d(256 // w, classes, 1)
    self.score_pool4 = nn.Conv2d(512 // w, classes, 1)
    self.score_fc7 = nn.Conv2d(4096 // w, classes, 1)

  def forward(self, x):
    """Logits and fc7."""
    pool3 = self.features[:17](x)
    pool4 = self.features[17:24](pool3)
    fc7 = F.relu(self.fc7(F.relu(self.fc6(self.features[24:](pool4)))))
    scores = self.score_pool4(pool4)
    scores = scores + deconvolved(self.score_fc7(fc7), scores.shape)
    return self.score_pool3(pool3) + deconvolved(scores, (*scores.shape[:2], *pool3.shape[2:])), fc7


def deconvolved(x, shape):
  taps = torch.tensor([0.25, 0.75, 0.75, 0.25])
  kernel = torch.outer(taps, taps).expand(x.shape[1], 1, 4, 4)
  x = F.conv_transpose2d(F.pad(x, (1, 1, 1, 1), "replicate"), kernel, stride=2, padding=3, groups=x.shape[1])
  return x[..., : shape[2], : shape[3]]


@pytest.mark.parametrize("size", [(65, 97), (41, 47), (64, 96)])
def test_fcn8s_vgg16_from_a_file_computes_what_torch_does(size, tmp_path):
  theirs = randomise(TorchFCN8s(16, 7))
  x = images(*size)
  ours = Segmenter(7, "fcn8s_vgg16", width=1 / 16)

  def name(_, modules, leaf):
    return f"{modules[1].replace('features_', 'features.')}.{LEAVES[leaf]}"

  state = theirs.state_dict()
  file = {name: x for name, x in state.items() if name.startswith("features")}
  for place, layer in (("0", "fc6"), ("3", "fc7")):  # fully connected ones, in torchvision's VGG16
    file[f"classifier.{place}.weight"] = state[f"{layer}.weight"].flatten(1)
    file[f"classifier.{place}.bias"] = state[f"{layer}.bias"]
  torch.save(file, tmp_path / "vgg16.pth")
  variables = carry_over(empty(ours, x), state, name)
  variables["params"]["backbone"] = jax.tree.map(jnp.zeros_like, variables["params"]["backbone"])
  variables, report = load(str(tmp_path / "vgg16.pth"), variables)
  assert len(report.loaded) == 30
  arrays = torchvision_arrays(variables)  # and back
  assert set(arrays) == set(file)
  for key, x_there in file.items():
    np.testing.assert_array_equal(arrays[key], x_there.numpy())
  logits, latent = jax.jit(ours.apply)(variables, x)
  their_logits, fc7 = theirs(nchw(x))
  assert_equal_to_rounding(latent, fc7)
  assert_equal_to_rounding(logits, their_logits)


# --- decoders


@pytest.mark.parametrize("dilation", [1, 12])
def test_head(dilation):
  theirs = randomise(torch_head(20, 16, 5, dilation))
  x = images(9, 13, channels=20)
  ours = Head(5, 16, dilation)
  variables = carry_over(
    empty(ours, x), theirs.state_dict(), lambda _, modules, leaf: f"{2 * (modules[0] == 'logits')}.{LEAVES[leaf]}"
  )
  assert_equal_to_rounding(ours.apply(variables, x), theirs(nchw(x)))


@pytest.mark.parametrize("activation", ["paper", "code"])
def test_image_classifier(activation):
  between = nn.ReLU() if activation == "paper" else nn.Identity()
  layers = {"conv1": nn.Conv2d(20, 32, 1), "relu": nn.ReLU(), "conv2": nn.Conv2d(32, 32, 3, padding=1), "act1": between}
  layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "fc1": nn.Linear(32, 8), "act2": between}
  theirs = randomise(nn.ModuleDict({**layers, "fc2": nn.Linear(8, 5)}))
  x = images(9, 13, channels=20)
  ours = ImageClassifier(5, activation, width=1 / 64)
  variables = carry_over(empty(ours, x), theirs.state_dict(), lambda _, modules, leaf: f"{modules[0]}.{LEAVES[leaf]}")
  assert_equal_to_rounding(ours.apply(variables, x), nn.Sequential(*theirs.values())(nchw(x)))
