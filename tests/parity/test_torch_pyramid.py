"""Pyramid pooling against the same layers written in PyTorch, on equal weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from jax_uda.models.decoders import PyramidPooling, adaptive_average_pool

BINS = (6, 3, 2, 1)
SIZES = [(1, 1), (2, 5), (5, 4), (6, 6), (7, 12), (13, 9), (33, 17)]


def nchw(x):
  return torch.from_numpy(np.asarray(x).transpose(0, 3, 1, 2).copy())


def nhwc(x):
  return x.detach().numpy().transpose(0, 2, 3, 1)


def latent_map(height, width):
  return np.random.default_rng(height * width).normal(size=(4, height, width, 10)).astype(np.float32)


def assert_equal_to_rounding(ours, theirs):
  assert ours.shape == theirs.shape
  np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("size", [*SIZES, (75, 75), (64, 128)])
def test_adaptive_average_pool(size):
  x, sizes = latent_map(*size), (1, 2, 3, 4, 5, 6, 7)
  pooled = jax.jit(lambda x: [adaptive_average_pool(x, bins) for bins in sizes])(x)
  for bins, ours in zip(sizes, pooled, strict=True):
    assert_equal_to_rounding(ours, nhwc(nn.AdaptiveAvgPool2d(bins)(nchw(x))))


class TorchPyramid(nn.Module):
  def __init__(self, inputs, classes):
    super().__init__()
    channels = inputs // len(BINS)
    self.convolutions = nn.ModuleList(nn.Conv2d(inputs, channels, 1, bias=False) for _ in BINS)
    self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in BINS)
    self.logits = nn.Conv2d(inputs + len(BINS) * channels, classes, 1)

  def forward(self, x):
    maps = [x]
    for bins, convolution, norm in zip(BINS, self.convolutions, self.norms, strict=True):
      pooled = F.relu(norm(convolution(F.adaptive_avg_pool2d(x, bins))))
      maps.append(F.interpolate(pooled, x.shape[2:], mode="bilinear", align_corners=False))
    return self.logits(torch.cat(maps, 1))


def randomised(module):
  """With values that a swapped or forgotten array would betray."""
  torch.manual_seed(0)
  with torch.no_grad():
    for name, value in module.state_dict().items():
      if value.ndim > 1:
        value.normal_(0, (2 / value[0].numel()) ** 0.5)
      elif name.startswith("norms") and name.endswith(("weight", "running_var")):
        value.uniform_(0.5, 1.5)
      elif value.is_floating_point():
        value.normal_(0, 0.3)
  return module


def carried_over(state):
  """Our variables from those of a `TorchPyramid`."""

  def kernel(name):
    return jnp.asarray(state[name].numpy().transpose(2, 3, 1, 0))

  def vector(name):
    return jnp.asarray(state[name].numpy().copy())

  params, batch_stats = {"logits": {"kernel": kernel("logits.weight"), "bias": vector("logits.bias")}}, {}
  for i, bins in enumerate(BINS):
    norm = f"norms.{i}"
    params[f"pool{bins}_conv"] = {"kernel": kernel(f"convolutions.{i}.weight")}
    params[f"pool{bins}_bn"] = {"scale": vector(f"{norm}.weight"), "bias": vector(f"{norm}.bias")}
    batch_stats[f"pool{bins}_bn"] = {"mean": vector(f"{norm}.running_mean"), "var": vector(f"{norm}.running_var")}
  return {"params": params, "batch_stats": batch_stats}


@pytest.mark.parametrize("size", SIZES)
def test_pyramid_pooling_computes_what_torch_does(size):
  theirs, ours, x = randomised(TorchPyramid(10, 5)).eval(), PyramidPooling(5), latent_map(*size)
  variables = carried_over(theirs.state_dict())
  assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, jax.eval_shape(ours.init, jax.random.key(0), x))
  assert_equal_to_rounding(jax.jit(ours.apply)(variables, x), nhwc(theirs(nchw(x))))


@pytest.mark.parametrize("size", [(1, 1), (5, 4), (7, 12), (33, 17)])
def test_pyramid_pooling_trains_as_torch_does(size):
  theirs, ours, x = randomised(TorchPyramid(10, 5)).train(), PyramidPooling(5), latent_map(*size)
  variables = carried_over(theirs.state_dict())
  target = np.random.default_rng(1).normal(size=(*x.shape[:3], 5)).astype(np.float32)

  @jax.jit
  def step(params, x):
    def loss(params, x):
      logits, changed = ours.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
      return (logits * target).sum(), (logits, changed["batch_stats"])

    return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)

  (gradients, of_latent), (logits, statistics) = step(variables["params"], x)
  their_x = nchw(x).requires_grad_()
  their_logits = theirs(their_x)
  (their_logits * nchw(target)).sum().backward()
  assert_equal_to_rounding(logits, nhwc(their_logits))
  assert_equal_to_rounding(of_latent, nhwc(their_x.grad))
  their_gradients = carried_over({**theirs.state_dict(), **{name: p.grad for name, p in theirs.named_parameters()}})
  jax.tree.map(assert_equal_to_rounding, gradients, their_gradients["params"])
  for i, bins in enumerate(BINS):
    norm, found = theirs.norms[i], statistics[f"pool{bins}_bn"]
    assert_equal_to_rounding(found["mean"], norm.running_mean.numpy())
    # PyTorch's running variance takes up the unbiased one, Flax's the one that it normalises by.
    kept, cells = 0.9 * variables["batch_stats"][f"pool{bins}_bn"]["var"], 4 * bins**2
    assert_equal_to_rounding(found["var"], kept + (norm.running_var.numpy() - kept) * (cells - 1) / cells)
