"""What every network here is made of: convolution, batch normalisation, dropout, all channels last."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jax_uda.errors import UserError
from jax_uda.state import DEVICE_AXIS

MOMENTUM = 0.9  # of the running statistics: what a training step keeps of the old ones
BATCH_NORM_MODES = ("per_device", "synced", "frozen")
WORTH_SPARING = 0.75  # of a convolution's products: if no more than these see the map, the others are left out
COMPUTE_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # He et al. 2015, as torchvision has it
# A layer with few outputs gets tiny fan-out: He would start logits at tens of units, where softmax is saturated.
small_normal = nn.initializers.normal(0.01)


def compute_dtype(name: str) -> jnp.dtype:
  """Returns the type that layers compute in; parameters are float32 whatever it is.

  Raises:
    UserError: the name is neither float32 nor bfloat16.
  """
  if name not in COMPUTE_DTYPES:
    raise UserError(f"unknown dtype {name!r} of the network; choose one of {', '.join(COMPUTE_DTYPES)}")
  return jnp.dtype(COMPUTE_DTYPES[name])


def scaled(channels: int, width: float) -> int:
  """Returns the number of channels of a layer under the `width` multiplier, at least 1."""
  return max(1, round(channels * width))


def conv(
  features: int,
  kernel: int,
  *,
  stride: int = 1,
  dilation: int = 1,
  bias: bool = False,
  dtype: jnp.dtype = jnp.float32,
  kernel_init: nn.initializers.Initializer = he_normal,
  name: str | None = None,
) -> nn.Conv:
  """Makes a square convolution padded alike on all sides, as PyTorch and MXNet do; XLA's SAME is lopsided at stride 2.

  For odd kernels the output has ceil(input / stride) rows and columns.
  """
  pad = (dilation * (kernel - 1) + 1) // 2
  how = None  # `lax.conv_general_dilated`
  if kernel == 1:
    how = convolve_points
  elif stride == 1 and dilation > 1 and kernel % 2:
    how = convolve_far
  return nn.Conv(
    features,
    (kernel, kernel),
    strides=stride,
    kernel_dilation=dilation,
    padding=[(pad, pad)] * 2,
    use_bias=bias,
    dtype=dtype,
    kernel_init=kernel_init,
    conv_general_dilated=how,
    name=name,
  )


def convolve_points(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Any, **how) -> jax.Array:
  """`lax.conv_general_dilated` of a kernel that sees one position, as the matrix product that it is.

  On CPUs XLA's matrix products are ahead of its convolutions (README, “Speed”).

  Args:
    x: [B, H, W, F].
    kernel: [1, 1, F, G].
    padding: none.
    how: its other arguments.

  Returns:
    [B, ceil(H / stride), ceil(W / stride), G].
  """
  if not _sizes_known(x):
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **how)
  return jnp.matmul(x[:, :: strides[0], :: strides[1]], kernel[0, 0], precision=how.get("precision"))


def convolve_far(x: jax.Array, kernel: jax.Array, strides: Any, padding: Sequence[tuple[int, int]], **how) -> jax.Array:
  """`lax.conv_general_dilated` at stride 1, padded to the same size.

  On CPUs, where that spares a good part, as matrix products that leave out what each weight of the window sees of the
  padding.

  Args:
    x: [B, H, W, F].
    kernel: [k, k, F, G], k odd.
    padding: before and after each axis.
    how: its other arguments.
  """

  def whole(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **how)

  if not _sizes_known(x):
    return whole(x, kernel)
  sizes = x.shape[1:3]
  # By axis and weight: the first and last position of the result that sees the map there, and how far off it looks.
  offsets = [range(-before, after + 1, d) for (before, after), d in zip(padding, how["rhs_dilation"], strict=True)]
  views = [[(max(0, -off), min(n, n - off), off) for off in axis] for n, axis in zip(sizes, offsets, strict=True)]
  rows, columns = (
    sum(max(0, stop - start) for start, stop, _ in axis) / (n * len(axis)) for n, axis in zip(sizes, views, strict=True)
  )
  if rows * columns > WORTH_SPARING:
    return whole(x, kernel)
  return jax.lax.platform_dependent(x, kernel, cpu=functools.partial(_weight_by_weight, views=views), default=whole)


def _sizes_known(x: jax.Array) -> bool:
  """Whether height and width are numbers: in a network that is exported they may be symbols."""
  return all(isinstance(n, int) for n in x.shape[1:3])


def _weight_by_weight(x: jax.Array, kernel: jax.Array, *, views: Sequence[Sequence[tuple[int, int, int]]]) -> jax.Array:
  """A convolution as a sum of matrix products, one for each place in the window that sees anything of the map."""
  height, width = x.shape[1:3]
  total = None
  for i, (top, bottom, down) in enumerate(views[0]):
    for j, (left, right, across) in enumerate(views[1]):
      if top < bottom and left < right:
        part = x[:, top + down : bottom + down, left + across : right + across]
        part = jnp.matmul(part, kernel[i, j], preferred_element_type=jnp.float32)
        part = jnp.pad(part, ((0, 0), (top, height - bottom), (left, width - right), (0, 0)))
        total = part if total is None else total + part
  return total.astype(x.dtype)


def batch_norm(
  mode: str, *, train: bool, epsilon: float = 1e-5, dtype: jnp.dtype = jnp.float32, name: str | None = None
) -> nn.BatchNorm:
  """Makes a batch normalisation whose running statistics keep `MOMENTUM` of the old value at each training step.

  Args:
    mode: where training statistics come from: `per_device` the batch on this device; `synced` the batches of all
      devices, under a pmap over DEVICE_AXIS; `frozen` the running averages, which stay as they are. Scale and bias
      train in all three.
    train: whether to normalise by the batch's statistics and update the running ones.
    epsilon: added to the variance.
    dtype: of the output; statistics are float32.
    name: of the module.

  Raises:
    UserError: unknown mode.
  """
  if mode not in BATCH_NORM_MODES:
    raise UserError(f"unknown batch_norm {mode!r} of the network; choose one of {', '.join(BATCH_NORM_MODES)}")
  return nn.BatchNorm(
    use_running_average=not train or mode == "frozen",
    momentum=MOMENTUM,
    epsilon=epsilon,
    dtype=dtype,
    axis_name=DEVICE_AXIS if mode == "synced" else None,
    name=name,
  )


def dropout(x: jax.Array, rate: float, keys: jax.Array, layer: int, channels: bool = False) -> jax.Array:
  """Zeroes a share of each example's values, or of its channels, and scales up the rest, drawing by one key per example.

  Args:
    x: [B, ...].
    rate: share in 0..1 to drop.
    keys: [B] PRNG keys; an example's mask depends on its own key alone, so not on how the batch is split over devices.
    layer: tells the dropout layers of one network apart, which share the keys.
    channels: whether the last axis alone is drawn for.

  Returns:
    [B, ...], of the type of `x`.
  """

  shape = (1,) * (x.ndim - 2) + x.shape[-1:] if channels else x.shape[1:]

  def draw(key):
    return jax.random.bernoulli(jax.random.fold_in(key, layer), 1 - rate, shape)

  return jnp.where(jax.vmap(draw)(keys), x / (1 - rate), jnp.zeros_like(x))
