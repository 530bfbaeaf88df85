"""The training steps of jax_uda as a competent PyTorch user would write them: what `--against torch` races.

A process of its own, which imports no JAX. Modules are called as in `jax_uda.models`, so that weights go over by name. It
has channels last, autocast where the network computes in bfloat16, fused optimizers, and both eager mode and torch.compile,
of which the faster one is timed. Augmentation is left out on both sides: PyTorch users have it in worker processes. With
bfloat16 all its layers compute in that, where ours keep those in float32 by whose outputs labels are ranked.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

IGNORE = 255
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
TRIALS, WARM_UP = 3, 2  # steps by which eager and compiled are compared, and those before


# Layers


def scaled(channels: int, width: float) -> int:
  """Channels of a layer under the `width` multiplier."""
  return max(1, round(channels * width))


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1, bias: bool = False) -> nn.Conv2d:
  """A square convolution, padded alike on all sides."""
  return nn.Conv2d(inputs, outputs, kernel, stride, dilation * (kernel // 2), dilation, bias=bias)


class BasicBlock(nn.Module):
  """Two 3×3 convolutions beside a shortcut."""

  expansion = 1

  def __init__(self, inputs: int, channels: int, stride: int, dilations: tuple[int, int], project: bool):
    super().__init__()
    self.conv1, self.bn1 = conv(inputs, channels, 3, stride, dilations[0]), nn.BatchNorm2d(channels)
    self.conv2, self.bn2 = conv(channels, channels, 3, 1, dilations[1]), nn.BatchNorm2d(channels)
    self.project = project
    if project:
      self.downsample_0, self.downsample_1 = conv(inputs, channels, 1, stride), nn.BatchNorm2d(channels)

  def forward(self, x: Tensor) -> Tensor:
    """[B, C, H, W] to [B, channels, H / stride, W / stride]."""
    y = self.bn2(self.conv2(F.relu_(self.bn1(self.conv1(x)))))
    y += self.downsample_1(self.downsample_0(x)) if self.project else x
    return F.relu_(y)


class Bottleneck(nn.Module):
  """1×1, 3×3 and 1×1 convolutions beside a shortcut."""

  expansion = 4

  def __init__(self, inputs: int, channels: int, stride: int, dilations: tuple[int, int], project: bool):
    super().__init__()
    self.conv1, self.bn1 = conv(inputs, channels, 1), nn.BatchNorm2d(channels)
    self.conv2, self.bn2 = conv(channels, channels, 3, stride, dilations[0]), nn.BatchNorm2d(channels)
    self.conv3, self.bn3 = conv(channels, 4 * channels, 1), nn.BatchNorm2d(4 * channels)
    self.project = project
    if project:
      self.downsample_0, self.downsample_1 = conv(inputs, 4 * channels, 1, stride), nn.BatchNorm2d(4 * channels)

  def forward(self, x: Tensor) -> Tensor:
    """[B, C, H, W] to [B, 4 · channels, H / stride, W / stride]."""
    y = self.bn3(self.conv3(F.relu_(self.bn2(self.conv2(F.relu_(self.bn1(self.conv1(x))))))))
    y += self.downsample_1(self.downsample_0(x)) if self.project else x
    return F.relu_(y)


RESNETS = {
  "resnet10": (BasicBlock, (1, 1, 1, 1)),
  "resnet18": (BasicBlock, (2, 2, 2, 2)),
  "resnet50": (Bottleneck, (3, 4, 6, 3)),
  "resnet101": (Bottleneck, (3, 4, 23, 3)),
}


class ResNet(nn.Module):
  """ResNet at output stride 32, or 8 by dilation in its last two stages; gives the maps of all stages."""

  def __init__(self, kind: str, num_stages: int, output_stride: int, width: float):
    super().__init__()
    block, numbers = RESNETS[kind]
    inputs = scaled(64, width)
    self.conv1, self.bn1 = conv(3, inputs, 7, 2), nn.BatchNorm2d(inputs)
    self.stages: list[list[str]] = []
    self.channels: list[int] = []  # of the maps
    dilation = 1
    for stage, number in enumerate(numbers[:num_stages], start=1):
      stride, first, channels = (1 if stage == 1 else 2), dilation, scaled(32 * 2**stage, width)
      if output_stride == 8 and stage > 2:
        stride, dilation = 1, 2 * dilation
      names = [f"layer{stage}_{i}" for i in range(number)]
      for i, name in enumerate(names):
        project = i == 0 and (stage > 1 or block is Bottleneck)
        dilations = (dilation if i else first, dilation)
        self.add_module(name, block(inputs, channels, 1 if i else stride, dilations, project))
        inputs = block.expansion * channels
      self.stages.append(names)
      self.channels.append(inputs)

  def forward(self, x: Tensor) -> list[Tensor]:
    """Normalised images [B, 3, H, W] to one map a stage, finest first."""
    x, maps = F.max_pool2d(F.relu_(self.bn1(self.conv1(x))), 3, 2, 1), []
    for names in self.stages:
      for name in names:
        x = getattr(self, name)(x)
      maps.append(x)
    return maps


class Level38(nn.Module):
  """A block of ResNet-38: BatchNorm, ReLU, convolution, over and over, beside a shortcut."""

  def __init__(
    self, inputs: int, widths: Sequence[int], kernels: Sequence[int], stride: int, dilations: tuple[int, int],
    dropout: float, first: bool,
  ):
    super().__init__()
    self.dropout, self.first, self.names, start = dropout, first, [], inputs
    for i, (channels, kernel) in enumerate(zip(widths, kernels, strict=True)):
      branch = f"branch2b{i}" if i else "branch2a"
      dilation = dilations[0 if first and i == 0 else 1]
      self.add_module(f"bn_{branch}", nn.BatchNorm2d(inputs, eps=1.001e-5))
      self.add_module(f"res_{branch}", conv(inputs, channels, kernel, 1 if i else stride, dilation))
      self.names.append(branch)
      inputs = channels
    if first:
      self.res_branch1 = conv(start, widths[-1], 1, stride)

  def forward(self, x: Tensor) -> Tensor:
    """[B, C, H, W] to [B, widths[-1], H / stride, W / stride]."""
    y = x
    for i, name in enumerate(self.names):
      y = F.relu_(getattr(self, f"bn_{name}")(y))
      if self.first and i == 0:
        x = self.res_branch1(y)
      if self.dropout and i == len(self.names) - 1:
        y = F.dropout(y, self.dropout)
      y = getattr(self, f"res_{name}")(y)
    y += x
    return y


class ResNet38(nn.Module):
  """Model A1 of "Wider or Deeper" (Wu et al. 2016), at stride 8."""

  def __init__(self, width: float, dropout: bool):
    super().__init__()
    levels = (  # number, blocks, channels, kernels, stride, dilations of the very first convolution and of the others
      (2, 3, (128, 128), (3, 3), 2, (1, 1), 0.0),
      (3, 3, (256, 256), (3, 3), 2, (1, 1), 0.0),
      (4, 6, (512, 512), (3, 3), 2, (1, 1), 0.0),
      (5, 3, (512, 1024), (3, 3), 1, (1, 2), 0.0),
      (6, 1, (512, 1024, 2048), (1, 3, 1), 1, (2, 4), 0.3),
      (7, 1, (1024, 2048, 4096), (1, 3, 1), 1, (4, 4), 0.5),
    )
    inputs = scaled(64, width)
    self.conv1a, self.names = conv(3, inputs, 3), []
    for number, blocks, channels, kernels, stride, dilations, rate in levels:
      widths = [scaled(n, width) for n in channels]
      for i in range(blocks):
        self.names.append(f"block{number}b{i}" if i else f"block{number}a")
        how = (kernels, 1 if i else stride, dilations, rate if dropout else 0.0, i == 0)
        self.add_module(self.names[-1], Level38(inputs, widths, *how))
        inputs = widths[-1]
    self.bn7, self.channels = nn.BatchNorm2d(inputs, eps=1.001e-5), [inputs]

  def forward(self, x: Tensor) -> list[Tensor]:
    """Normalised images [B, 3, H, W] to the latent map, alone in a list."""
    x = self.conv1a(x)
    for name in self.names:
      x = getattr(self, name)(x)
    return [F.relu_(self.bn7(x))]


class Head(nn.Module):
  """Two dilated 3×3 convolutions."""

  def __init__(self, inputs: int, classes: int, channels: int, dilation: int):
    super().__init__()
    self.conv = conv(inputs, channels, 3, dilation=dilation, bias=True)
    self.logits = conv(channels, classes, 3, dilation=dilation, bias=True)

  def forward(self, x: Tensor) -> Tensor:
    """The latent map to logits."""
    return self.logits(F.relu_(self.conv(x)))


class PyramidPooling(nn.Module):
  """Pyramid pooling module over a latent map."""

  def __init__(self, inputs: int, classes: int, norm: bool, bins: Sequence[int] = (6, 3, 2, 1)):
    super().__init__()
    self.bins, self.norm, channels = bins, norm, max(1, inputs // len(bins))
    for n in bins:
      self.add_module(f"pool{n}_conv", conv(inputs, channels, 1, bias=not norm))
      if norm:
        self.add_module(f"pool{n}_bn", nn.BatchNorm2d(channels))
    self.logits = conv(inputs + len(bins) * channels, classes, 1, bias=True)

  def forward(self, x: Tensor) -> Tensor:
    """The latent map to logits."""
    maps = [x]
    for n in self.bins:
      y = getattr(self, f"pool{n}_conv")(F.adaptive_avg_pool2d(x, n))
      y = F.relu_(getattr(self, f"pool{n}_bn")(y) if self.norm else y)
      maps.append(F.interpolate(y, x.shape[2:], mode="bilinear"))
    return self.logits(torch.cat(maps, 1))


class FusionDecoder(nn.Module):
  """Coarse maps go up, through residual units, and meet finer ones; gives the fused maps, finest first."""

  def __init__(self, inputs: Sequence[int], channels: int, units: int, dilation: int):
    super().__init__()
    self.units, self.reduce = units, conv(inputs[-1], channels, 1, bias=True)
    for level, features in enumerate(inputs[:-1]):
      self.add_module(f"level{level}_reduce", conv(features, channels, 1, bias=True))
      for unit in range(units):
        for i in (1, 2):
          self.add_module(f"level{level}_unit{unit}_conv{i}", conv(channels, channels, 3, 1, dilation, bias=True))

  def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
    """Maps, finest first, to fused maps of the sizes of all but the last."""
    x, fused = self.reduce(maps[-1]), []
    for level in reversed(range(len(maps) - 1)):
      for unit in range(self.units):
        first, second = (getattr(self, f"level{level}_unit{unit}_conv{i}") for i in (1, 2))
        x = x + second(F.relu_(first(F.relu(x))))
      height, width = maps[level].shape[2:]
      x = F.interpolate(x, scale_factor=2, mode="bilinear")[..., :height, :width]
      x = x + getattr(self, f"level{level}_reduce")(maps[level])
      fused.insert(0, x)
    return fused


class ASPP(nn.Module):
  """3×3 convolutions of several dilations, added up."""

  def __init__(self, inputs: int, classes: int, rates: Sequence[int] = (1, 2, 4, 8)):
    super().__init__()
    self.rates = rates
    for rate in rates:
      self.add_module(f"rate{rate}_logits", conv(inputs, classes, 3, dilation=rate, bias=True))

  def forward(self, x: Tensor) -> Tensor:
    """Features to logits."""
    return sum(getattr(self, f"rate{rate}_logits")(x) for rate in self.rates)


class PatchDiscriminator(nn.Module):
  """Judges patches of features."""

  def __init__(self, inputs: int, poolings: int, channels: int):
    super().__init__()
    self.poolings = poolings
    for i in range(poolings + 1):
      outputs = channels * 2 ** min(i, 3)
      self.add_module(f"conv{i + 1}", conv(inputs, outputs, 3, bias=True))
      inputs = outputs
    self.verdict = conv(inputs, 1, 1, bias=True)

  def forward(self, x: Tensor) -> Tensor:
    """Features to a map of verdicts."""
    for i in range(self.poolings + 1):
      x = F.leaky_relu_(getattr(self, f"conv{i + 1}")(x), 0.2)
      if i < self.poolings:
        x = F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
    return self.verdict(x)


class ImageClassifier(nn.Module):
  """Which classes are in the image."""

  def __init__(self, inputs: int, classes: int, width: float):
    super().__init__()
    channels, hidden = scaled(2048, width), scaled(512, width)
    self.conv1, self.conv2 = conv(inputs, channels, 1, bias=True), conv(channels, channels, 3, bias=True)
    self.fc1, self.fc2 = nn.Linear(channels, hidden), nn.Linear(hidden, classes)

  def forward(self, x: Tensor) -> Tensor:
    """The latent map to logits [B, classes]."""
    x = F.relu_(self.conv2(F.relu_(self.conv1(x)))).mean((2, 3))
    return self.fc2(F.relu_(self.fc1(x)))


# Networks


def _backbone(network: Mapping[str, Any], output_stride: int) -> nn.Module:
  if network["backbone"] == "resnet38":
    return ResNet38(network["width"], network["dropout"])
  return ResNet(network["backbone"], network["num_stages"], output_stride, network["width"])


class Segmenter(nn.Module):
  """A backbone and a head; gives logits and the latent map."""

  def __init__(self, network: Mapping[str, Any], classes: int):
    super().__init__()
    self.backbone = _backbone(network, 8)
    self.head = Head(self.backbone.channels[-1], classes, network["head_channels"], network["head_dilation"])

  def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
    """Images to logits and latent map, at stride 8."""
    latent = self.backbone(x)[-1]
    return self.head(latent), latent


class BranchedSegmenter(nn.Module):
  """A backbone under several decoders; gives the logits of each."""

  def __init__(self, network: Mapping[str, Any], classes: int):
    super().__init__()
    self.backbone, self.branches = _backbone(network, 8), network["branches"]
    for e in range(self.branches):
      self.add_module(f"decoder_{e}", PyramidPooling(self.backbone.channels[-1], classes, network["decoder_norm"]))

  def forward(self, x: Tensor) -> list[Tensor]:
    """Images to logits at stride 8, one map a branch."""
    latent = self.backbone(x)[-1]
    return [getattr(self, f"decoder_{e}")(latent) for e in range(self.branches)]


class FusionSegmenter(nn.Module):
  """A backbone under a fusing decoder and a classifier; gives logits and the features at strides 4 and 8."""

  def __init__(self, network: Mapping[str, Any], classes: int):
    super().__init__()
    self.backbone = _backbone(network, 32)
    how = (network["channels"], network["units"], network["dilation"])
    self.decoder, self.head = FusionDecoder(self.backbone.channels, *how), ASPP(network["channels"], classes)

  def features(self, x: Tensor) -> list[Tensor]:
    """Images to two maps of features."""
    return self.decoder(self.backbone(x))[:2]

  def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Images to logits at stride 4, and the features."""
    found = self.features(x)
    return self.head(found[0]), found


def build(config: Mapping[str, Any], step: str) -> nn.ModuleDict:
  """The players of a step, by the names that they have in `State.networks`."""
  network, classes = config["network"], config["num_classes"]
  if config["method"] == "curriculum":
    return nn.ModuleDict({"segmenter": BranchedSegmenter(network, classes)})
  if config["method"] != "adversarial":
    segmenter = Segmenter(network, classes)
    players = {"segmenter": segmenter}
    if step == "multi_level":
      players["classifier"] = ImageClassifier(segmenter.backbone.channels[-1], classes, config["weak_labels"]["width"])
    return nn.ModuleDict(players)
  players = {"segmenter": FusionSegmenter(network, classes)}
  if step == "adversarial":
    settings = config["adversarial"]
    for i, poolings in enumerate((3, 2)[: settings["discriminators"]], start=1):
      players[f"discriminator_{i}"] = PatchDiscriminator(network["channels"], poolings, settings["channels"])
  return nn.ModuleDict(players)


# Losses: (players, parts) -> (what is minimised, {metric}); parts are (images [B, 3, H, W], labels [B, H, W]) a stream


def upsample(logits: Tensor, size: Sequence[int], stride: int) -> Tensor:
  """Bilinear, each cell `stride` pixels, cut to `size`."""
  return F.interpolate(logits.float(), scale_factor=stride, mode="bilinear")[..., : size[0], : size[1]]


def cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
  """The sum over labelled pixels, by their number."""
  total = F.cross_entropy(logits, labels, weight, ignore_index=IGNORE, reduction="sum")
  return total / (labels != IGNORE).sum().clamp(min=1)


def supervised(players: nn.ModuleDict, parts: Sequence[tuple[Tensor, Tensor]], stride: int) -> tuple[Tensor, dict, list]:
  """Cross-entropy on each part, the mean of them; and what else the segmenter gives."""
  each, others = [], []
  for images, labels in parts:
    logits, other = players["segmenter"](images)
    each.append(cross_entropy(upsample(logits, labels.shape[1:], stride), labels))
    others.append(other)
  loss = sum(each) / len(each)
  return loss, {"loss": loss}, others


def shares(labels: Tensor, classes: int) -> Tensor:
  """Of the pixels, by class, [B, C]."""
  counts = torch.zeros(len(labels), IGNORE + 1, device=labels.device)
  counts.scatter_add_(1, labels.flatten(1), torch.ones_like(labels, dtype=torch.float32).flatten(1))
  return counts[:, :classes] / labels[0].numel()


def multi_level(
  players: nn.ModuleDict, parts: Any, class_sizes: Tensor, domain: Tensor, eta: float, weight: float
) -> tuple[Tensor, dict]:
  """MLSL: cross-entropy, and binary cross-entropy of the image labels; `domain` [B] of all parts, 0 is the source."""
  loss, metrics, latents = supervised(players, parts, 8)
  share = torch.cat([shares(labels, len(class_sizes)) for _, labels in parts])
  wanted = torch.where((domain == 0)[:, None], share > 0, share > eta * class_sizes).float()
  of_classifier = F.binary_cross_entropy_with_logits(players["classifier"](torch.cat(latents)).float(), wanted)
  return loss + weight * of_classifier, {**metrics, "classifier_loss": of_classifier}


def branches(
  players: nn.ModuleDict, parts: Any, proxies: bool, mine: bool, weight: Tensor | None, beta: float
) -> tuple[Tensor, dict]:
  """Curriculum: the branches' cross-entropies on source labels, or on the ensemble's own, mined by their agreement."""
  ((images, labels),) = parts
  segmenter = players["segmenter"]
  logits = [upsample(x, labels.shape[1:], 8) for x in segmenter(images)]
  with torch.no_grad():
    if proxies or mine:
      predicted = sum(logits).argmax(1)
      agree = torch.stack([x.argmax(1) == predicted for x in logits]).all(0)
    if proxies:
      labels = torch.where(agree, predicted, IGNORE) if mine else predicted
    elif mine:  # at the start, where no pixel is dropped yet
      labels = torch.where(agree & (torch.rand_like(labels, dtype=torch.float32) < 0), IGNORE, labels)
  loss = sum(cross_entropy(x, labels, weight) for x in logits)
  a, b = (
    torch.cat([p.flatten() for p in getattr(segmenter, f"decoder_{e}").parameters() if p.ndim == 4]) for e in range(2)
  )
  alike = (a * b).sum() / ((a * a).sum() * (b * b).sum()).sqrt()
  return loss + beta * alike, {"loss": loss, "similarity": alike}


def adversarial(
  players: nn.ModuleDict, parts: Any, segmentation_weight: float, weights: Sequence[float]
) -> tuple[Tensor, dict]:
  """Multi-adversarial proxies: cross-entropy on the source, and the non-saturating game over both domains' features."""
  source, (target_images, _) = parts
  loss, metrics, (of_source,) = supervised(players, [source], 4)
  of_target = players["segmenter"].features(target_images)
  loss = segmentation_weight * loss
  for i, (weight, *seen) in enumerate(zip(weights, of_source, of_target, strict=False), start=1):
    judge = players[f"discriminator_{i}"]
    fixed = {name: x.detach() for name, x in judge.named_parameters()}
    fooled = F.softplus(-functional_call(judge, fixed, seen[1]).float()).mean()
    verdicts = [judge(x.detach()).float() for x in seen]
    told = (F.softplus(-verdicts[0]).mean() + F.softplus(verdicts[1]).mean()) / 2
    loss = loss + weight * fooled + told
    metrics |= {f"discriminator_{i}_loss": told, f"discriminator_{i}_fooling_loss": fooled}
  return loss, metrics


def loss_of(config: Mapping[str, Any], step: str, players: nn.ModuleDict, hyper: Mapping[str, Tensor]) -> Callable:
  """Parts -> (what a step minimises, {metric})."""
  if step == "multi_level":
    settings = config["weak_labels"]
    known = (hyper["class_sizes"], hyper["domain"], settings["eta"], settings["weight"])
    return lambda parts: multi_level(players, parts, *known)
  if step in ("curriculum_source", "curriculum_target"):
    settings = config["curriculum"]
    proxies = step == "curriculum_target"
    mine = settings["easy_mining" if proxies else "hard_mining"]
    return lambda parts: branches(players, parts, proxies, mine, hyper.get("class_weights"), config["diversity"]["weight"])
  if config["method"] == "curriculum":
    return lambda parts: branches(players, parts, False, False, None, config["diversity"]["weight"])
  if step == "adversarial":
    settings = config["adversarial"]
    weights = [settings["weight_1"], settings["weight_2"]][: settings["discriminators"]]
    return lambda parts: adversarial(players, parts, settings["segmentation_weight"], weights)
  return lambda parts: supervised(players, parts, 4 if config["method"] == "adversarial" else 8)[:2]


def optimizers_of(config: Mapping[str, Any], step: str, players: nn.ModuleDict, rate: float) -> list[torch.optim.Optimizer]:
  """SGD for the segmenter (and MLSL's classifier), Adam for each discriminator."""
  settings = config["optimizer"]
  new = settings.get("head_multiplier", settings.get("decoder_multiplier"))  # of all that is not the backbone
  groups: dict[tuple[float, float], list[nn.Parameter]] = {}
  for name, module in players.named_modules():
    if name.startswith("discriminator"):
      continue
    multiplier = 1.0 if name.startswith("segmenter.backbone") else new
    if name.startswith("classifier"):
      multiplier = config["weak_labels"]["multiplier"]
    for kind, p in module.named_parameters(recurse=False):
      of_bias = kind == "bias" and not isinstance(module, nn.BatchNorm2d)
      faster = settings.get("bias_multiplier", 1.0) if of_bias else 1.0
      decay = 0.0 if of_bias and not settings.get("bias_decay", True) else settings["weight_decay"]
      groups.setdefault((rate * multiplier * faster, decay), []).append(p)
  sgd = [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]
  result: list[torch.optim.Optimizer] = [torch.optim.SGD(sgd, momentum=settings["momentum"], fused=True)]
  if step == "adversarial":
    how = config["adversarial"]
    for name in players:
      if name.startswith("discriminator"):
        betas = (how["beta1"], how["beta2"])
        result.append(torch.optim.Adam(players[name].parameters(), how["discriminator_rate"], betas, fused=True))
  return result


# The race


def flops_of(players: nn.ModuleDict, forward: Callable[[], Any]) -> int:
  """Floating-point operations of the convolutions and matrix products of one forward, two a multiplication."""
  total = 0

  def count(module, inputs, output):
    nonlocal total
    total += 2 * output.numel() * module.weight[0].numel()

  hooks = [m.register_forward_hook(count) for m in players.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
  with torch.no_grad():
    forward()
  for hook in hooks:
    hook.remove()
  return total


class Racer:
  """A step that can be timed."""

  def __init__(self, folder: Path):
    job = json.loads((folder / "job.json").read_text())
    arrays = np.load(folder / "arrays.npz")  # pickles are refused
    self.config, self.step = job["config"], job["step"]
    self.device = torch.device("cuda" if torch.cuda.is_available() and job["platform"] == "gpu" else "cpu")
    torch.set_float32_matmul_precision("high")  # as JAX has it on a GPU
    torch.backends.cudnn.benchmark = True
    self.autocast = self.config["network"]["dtype"] == "bfloat16"
    self.players = build(self.config, self.step)

    def of(kind):
      return {name.removeprefix(kind): torch.from_numpy(arrays[name]) for name in arrays if name.startswith(kind)}

    missing, unknown = self.players.load_state_dict(of("weights/"), strict=False)
    if unknown or any(not name.endswith("num_batches_tracked") for name in missing):
      raise ValueError(f"the two networks differ: {[*unknown, *missing]}")
    self.players.to(self.device, memory_format=torch.channels_last)
    if job["batch_norm"] == "frozen":
      for module in self.players.modules():
        if isinstance(module, nn.BatchNorm2d):
          module.eval()
    self.hyper = {name: x.to(self.device) for name, x in of("hyper/").items()}
    images, labels = (
      {place: x.pin_memory() if self.device.type == "cuda" else x for place, x in of(kind).items()}
      for kind in ("image/", "label/")
    )
    self.batch = [(images[str(i)], labels[str(i)]) for i in range(job["streams"])]
    self.mean, self.std = (
      torch.tensor(x, device=self.device).view(1, 3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD)
    )
    self.optimizers = optimizers_of(self.config, self.step, self.players, job["rate"])
    loss = loss_of(self.config, self.step, self.players, self.hyper)
    self.loss = lambda moved: loss([self.normalised(*stream) for stream in moved])

  def moved(self) -> list[list[Tensor]]:
    """A batch on the device: images uint8 [B, H, W, 3] and labels [B, H, W] of each stream."""
    return [[x.to(self.device, non_blocking=True) for x in stream] for stream in self.batch]

  def normalised(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Images float32 [B, 3, H, W], channels last, and labels int64."""
    return (images.permute(0, 3, 1, 2).float() - self.mean) / self.std, labels.long()

  def synchronize(self) -> None:
    """Waits for the device."""
    if self.device.type == "cuda":
      torch.cuda.synchronize()

  def train(self, loss: Callable) -> dict[str, Tensor]:
    """One step."""
    for optimizer in self.optimizers:
      optimizer.zero_grad(set_to_none=True)
    with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
      total, metrics = loss(self.moved())
    total.backward()
    for optimizer in self.optimizers:
      optimizer.step()
    return metrics

  def time(self, loss: Callable, steps: int) -> list[float]:
    """Seconds of each of so many steps."""
    seconds = []
    for _ in range(steps):
      self.synchronize()
      started = time.perf_counter()
      self.train(loss)
      self.synchronize()
      seconds.append(time.perf_counter() - started)
    return seconds

  def compared(self) -> dict[str, Any]:
    """What the two sides are compared by: counts, and a step's metrics and gradient norm."""
    dropping = {module: module.dropout for module in self.players.modules() if isinstance(module, Level38)}
    for module in dropping:
      module.dropout = 0.0  # the two sides would draw otherwise
    flops = flops_of(self.players, lambda: self.loss(self.moved()))
    metrics = {name: float(x.detach()) for name, x in self.train(self.loss).items()}
    for module, rate in dropping.items():
      module.dropout = rate
    gradients = [p.grad.float() for p in self.players.parameters() if p.grad is not None]
    metrics["gradient_norm"] = float(torch.sqrt(sum((x * x).sum() for x in gradients)))
    return {"parameters": sum(p.numel() for p in self.players.parameters()), "layer_flop": flops, "metrics": metrics}

  def choose(self) -> dict[str, Any]:
    """Takes eager mode or torch.compile, whichever is faster here; says which and what both took."""
    ways: dict[str, Callable] = {"eager": self.loss}
    found: dict[str, Any] = {"seconds": {}, "compile_seconds": {}, "not_compiled": {}}
    for mode in ("default", *(["reduce-overhead"] if self.device.type == "cuda" else [])):
      name = "torch.compile" if mode == "default" else f"torch.compile ({mode})"
      try:
        started = time.perf_counter()
        compiled = torch.compile(self.loss, mode=mode)
        self.time(compiled, 1)
        found["compile_seconds"][name] = time.perf_counter() - started
        ways[name] = compiled
      except Exception as error:  # of many kinds, where there is no compiler for it
        found["not_compiled"][name] = f"{type(error).__name__}: {error}"[:200]
    for name, way in ways.items():
      self.time(way, WARM_UP)
      found["seconds"][name] = float(np.median(self.time(way, TRIALS)))
    found["way"] = min(found["seconds"], key=found["seconds"].get)
    self.loss = ways[found["way"]]
    if self.device.type == "cuda":
      torch.cuda.reset_peak_memory_stats()
    return found


def main(folder: str) -> None:
  """Answers each line on stdin with a line of JSON on stdout: `step`, `choose`, or a number of steps to time."""
  answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
  racer = Racer(Path(folder))
  versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "threads": torch.get_num_threads()}
  for line in sys.stdin:
    match line.strip():
      case "step":
        answer: Any = {**racer.compared(), **versions}
      case "choose":
        answer = racer.choose()
      case steps:
        answer = {"seconds": racer.time(racer.loss, int(steps))}
        if racer.device.type == "cuda":
          answer["bytes"] = torch.cuda.max_memory_allocated()
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
  main(sys.argv[1])
