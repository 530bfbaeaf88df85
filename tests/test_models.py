from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from jax_uda.errors import UserError
from jax_uda.models import layers
from jax_uda.models.decoders import FCN8s, Head, ImageClassifier, PyramidPooling, adaptive_average_pool, doubled
from jax_uda.models.resnet import ResNet
from jax_uda.models.segmenter import (
  STRIDE,
  BranchedSegmenter,
  FusionSegmenter,
  Segmenter,
  votes,
)
from jax_uda.models.vgg import VGG16
from jax_uda.state import DEVICE_AXIS

# One of each kind; resnet50 and resnet101 are many of the same block, which the fused networks have here.
BACKBONES = ("resnet18", "resnet38", "fcn8s_vgg16")
FUSED_BACKBONES = ("resnet18", "resnet101", "vgg16")
WITH_BATCH_NORM = ("resnet18", "resnet38")
WITH_DROPOUT = ("resnet38", "fcn8s_vgg16")

small_segmenter = partial(Segmenter, 5, width=0.0625, head_channels=8, head_dilation=2)
small_branched = partial(BranchedSegmenter, 5, width=0.0625, num_stages=3)


def images(batch=2, height=32, width=32, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=(batch, height, width, 3)), jnp.float32)


def example_keys(batch):
  return jax.vmap(partial(jax.random.fold_in, jax.random.key(7)))(jnp.arange(batch))


def shapes(module, *shape):
  return jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(shape))


def random_variables(module, x, seed=1):
  """Variables in which no bias, scale or statistic is at its bland initial value; compiles nothing, unlike `init`."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    if path[-1].key == "kernel":
      value = rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape)
    elif path[-1].key in ("scale", "var"):
      value = rng.uniform(0.5, 1.5, leaf.shape)
    else:
      value = rng.normal(0, 0.3, leaf.shape)
    return jnp.asarray(value, jnp.float32)

  return jax.tree_util.tree_map_with_path(draw, shapes(module, *x.shape))


def apply(module, variables, x, **arguments):
  return jax.jit(partial(module.apply, **arguments))(variables, x)


def count(variables):
  return sum(x.size for x in jax.tree.leaves(variables["params"]))


def assert_trees_close(a, b, **tolerance):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(partial(np.testing.assert_allclose, **tolerance), a, b)


# --- sizes


@pytest.mark.parametrize(("depth", "parameters"), [(18, 11_689_512), (50, 25_557_032), (101, 44_549_160)])
def test_resnets_have_torchvisions_number_of_parameters(depth, parameters):
  assert count(shapes(ResNet(depth, num_classes=1000), 1, 64, 64, 3)) == parameters


def test_resnet38_segmenter_has_the_parameters_of_the_published_layer_list():
  # (convolutions as (kernel, in, out), each after a BatchNorm; shortcut as (in, out))
  blocks = [
    *[([(3, 64, 128), (3, 128, 128)], (64, 128))] + 2 * [([(3, 128, 128)] * 2, None)],
    *[([(3, 128, 256), (3, 256, 256)], (128, 256))] + 2 * [([(3, 256, 256)] * 2, None)],
    *[([(3, 256, 512), (3, 512, 512)], (256, 512))] + 5 * [([(3, 512, 512)] * 2, None)],
    *[([(3, 512, 512), (3, 512, 1024)], (512, 1024))] + 2 * [([(3, 1024, 512), (3, 512, 1024)], None)],
    ([(1, 1024, 512), (3, 512, 1024), (1, 1024, 2048)], (1024, 2048)),
    ([(1, 2048, 1024), (3, 1024, 2048), (1, 2048, 4096)], (2048, 4096)),
  ]
  trunk = 9 * 3 * 64 + 2 * 4096  # conv1a, bn7
  for convolutions, shortcut in blocks:
    trunk += sum(k * k * i * o + 2 * i for k, i, o in convolutions)
    trunk += shortcut[0] * shortcut[1] if shortcut else 0
  head = 9 * 4096 * 512 + 512 + 9 * 512 * 19 + 19
  assert trunk + head == 124_033_363
  variables = shapes(Segmenter(19, "resnet38"), 1, 64, 64, 3)
  assert count(variables) == trunk + head
  assert count({"params": variables["params"]["head"]}) == head
  # 38 layers: the shortcuts do not count, the head's last layer does.
  paths = [path for path in traverse_util.flatten_dict(variables["params"]["backbone"]) if path[-1] == "kernel"]
  assert sum("branch1" not in path[-2] for path in paths) == 37


def test_fcn8s_vgg16_has_the_parameters_of_the_published_layer_list():
  outputs = [64, 64, 128, 128, *3 * [256], *6 * [512]]
  convolutions = sum(9 * i * o + o for i, o in zip([3, *outputs], outputs, strict=False))
  assert convolutions == 14_714_688
  trunk = convolutions + (49 * 512 * 4096 + 4096) + (4096 * 4096 + 4096)
  head = sum(19 * features + 19 for features in (4096, 512, 256))
  assert trunk + head == 134_353_017
  params = shapes(Segmenter(19, "fcn8s_vgg16"), 1, 64, 64, 3)["params"]
  assert (count({"params": params["backbone"]}), count({"params": params["head"]})) == (trunk, head)
  places = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # of the convolutions in torchvision's vgg16().features
  assert set(params["backbone"]) == {*(f"features_{i}" for i in places), "fc6", "fc7"}
  assert [params["backbone"][f"features_{i}"]["bias"].size for i in places] == outputs


@pytest.mark.parametrize("backbone", FUSED_BACKBONES)
def test_fusion_segmenter_has_the_parameters_of_the_published_backbones(backbone):
  params = shapes(FusionSegmenter(19, backbone), 1, 64, 96, 3)["params"]
  published = {"resnet18": 11_689_512 - 513_000, "resnet101": 44_549_160 - 2_049_000, "vgg16": 14_714_688}  # without fc
  assert count({"params": params["backbone"]}) == published[backbone]
  features = {"resnet18": (64, 128, 256, 512), "resnet101": (256, 512, 1024, 2048), "vgg16": (128, 256, 512, 512)}[backbone]
  reductions = sum(n * 128 + 128 for n in features)
  units = 3 * 2 * 2 * (9 * 128 * 128 + 128)  # levels, units, convolutions
  assert count({"params": params["decoder"]}) == reductions + units
  assert count({"params": params["head"]}) == 4 * (9 * 128 * 19 + 19)


@pytest.mark.parametrize("backbone", FUSED_BACKBONES)
@pytest.mark.parametrize("size", [(64, 96), (65, 97), (33, 40), (1, 7)])
def test_fused_maps_are_at_strides_4_and_8(backbone, size):
  model = FusionSegmenter(5, backbone, width=0.0625, channels=4, units=1)
  logits, features = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, *size, 3)))[0]
  quarter, eighth = (tuple(-(-n // stride) for n in size) for stride in (4, 8))
  assert logits.shape == (2, *quarter, 5) and logits.dtype == jnp.float32
  assert [x.shape for x in features] == [(2, *quarter, 4), (2, *eighth, 4)]


def test_image_classifier_has_the_layers_of_the_paper():
  params = shapes(ImageClassifier(19), 1, 8, 8, 4096)["params"]
  kernels = {name: leaves["kernel"].shape for name, leaves in params.items()}
  expected = {"conv1": (1, 1, 4096, 2048), "conv2": (3, 3, 2048, 2048), "fc1": (2048, 512), "fc2": (512, 19)}
  assert kernels == expected
  assert all(leaves["bias"].shape == kernels[name][-1:] for name, leaves in params.items())


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("size", [(64, 64), (65, 97), (33, 40), (41, 47), (1, 7), (500, 500)])
def test_stride_8_rounds_up(backbone, size):
  model = Segmenter(19, backbone, width=0.5, head_channels=16)
  x = jnp.zeros((2, *size, 3))
  logits, latent = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), x))[0]
  low = tuple(-(-n // STRIDE) for n in size)
  stride, features = {"resnet18": (8, 256), "resnet38": (8, 2048), "fcn8s_vgg16": (32, 2048)}[backbone]
  assert logits.shape == (2, *low, 19)
  assert latent.shape == (2, *(-(-n // stride) for n in size), features)
  assert logits.dtype == latent.dtype == jnp.float32


@pytest.mark.parametrize("backbone", WITH_BATCH_NORM)
@pytest.mark.parametrize(("branches", "size"), [(1, (65, 97)), (2, (1, 7)), (3, (41, 47)), (2, (600, 600))])
def test_every_branch_gives_logits_at_stride_8(backbone, branches, size):
  model = BranchedSegmenter(19, backbone, width=0.5, branches=branches)
  x = jnp.zeros((2, *size, 3))
  (logits, latent), variables = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), x))
  low = tuple(-(-n // STRIDE) for n in size)
  assert logits.shape == (branches, 2, *low, 19)
  assert latent.shape == (2, *low, {"resnet18": 256, "resnet38": 2048}[backbone])
  assert logits.dtype == latent.dtype == jnp.float32
  parts = {"backbone", *(f"decoder_{branch}" for branch in range(branches))}
  assert set(variables["params"]) == set(variables["batch_stats"]) == parts


def test_branched_segmenter_has_the_layers_of_the_paper():
  variables = shapes(BranchedSegmenter(19), 1, 64, 64, 3)
  assert count({"params": variables["params"]["backbone"]}) == 11_689_512 - (512 * 1000 + 1000)
  for decoder in ("decoder_0", "decoder_1"):
    layer = variables["params"][decoder]
    kernels = {name: leaves["kernel"].shape for name, leaves in layer.items() if "kernel" in leaves}
    assert kernels == {**{f"pool{n}_conv": (1, 1, 512, 128) for n in (6, 3, 2, 1)}, "logits": (1, 1, 1024, 19)}
    assert [name for name, leaves in layer.items() if "bias" in leaves and "kernel" in leaves] == ["logits"]
    assert set(variables["batch_stats"][decoder]) == {f"pool{n}_bn" for n in (6, 3, 2, 1)}


@pytest.mark.parametrize(("num_stages", "output_stride", "stride"), [(4, 32, 32), (3, 32, 16), (4, 8, 8), (3, 8, 8)])
def test_resnet18_strides_and_stages(num_stages, output_stride, stride):
  for depth, wider in ((18, 1), (101, 4)):
    model = ResNet(depth, num_stages, output_stride)
    maps, variables = jax.eval_shape(lambda m=model: m.init_with_output(jax.random.key(0), jnp.zeros((1, 65, 97, 3))))
    assert maps[-1].shape == (1, -(-65 // stride), -(-97 // stride), wider * 128 * 2 ** (num_stages - 2))
    assert maps[0].shape == (1, 17, 25, wider * 64) and len(maps) == num_stages
  assert any(name.startswith("layer4") for name in variables["params"]) == (num_stages == 4)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_width_scales_every_layer(backbone):
  whole, half = (shapes(Segmenter(19, backbone, width=w), 1, 32, 32, 3)["params"]["backbone"] for w in (1.0, 0.5))
  whole, half = traverse_util.flatten_dict(whole), traverse_util.flatten_dict(half)
  assert whole.keys() == half.keys()
  assert all(half[path].shape[-1] * 2 == leaf.shape[-1] for path, leaf in whole.items())
  assert layers.scaled(64, 0.001) == 1


def test_parameters_fall_into_backbone_and_head():
  for backbone in BACKBONES:
    variables = shapes(small_segmenter(backbone), 1, 32, 32, 3)
    assert set(variables["params"]) == {"backbone", "head"}
    assert set(variables.get("batch_stats", ())) == ({"backbone"} if backbone in WITH_BATCH_NORM else set())


# --- what the numbers are


def test_dilated_resnet18_agrees_with_the_strided_one_where_both_look():
  x = images(2, 65, 97)
  strided, dilated = (ResNet(width=0.125, output_stride=s) for s in (32, 8))
  variables = random_variables(strided, x)
  every_fourth = apply(dilated, variables, x)[-1][:, ::4, ::4]
  np.testing.assert_allclose(every_fourth, apply(strided, variables, x)[-1], rtol=1e-4, atol=1e-4)


def test_convolution_pads_like_torch():
  ones = jnp.ones((1, 7, 7, 1))
  for kernel, dilation in ((1, 1), (3, 1), (3, 12), (7, 1), (1, 4)):
    conv = layers.conv(1, kernel, stride=2, dilation=dilation, kernel_init=nn.initializers.ones)
    y, _ = conv.init_with_output(jax.random.key(0), ones)
    taps = dilation * (np.arange(kernel) - kernel // 2)
    rows = np.array([np.sum((taps + 2 * i >= 0) & (taps + 2 * i < 7)) for i in range(4)])
    np.testing.assert_array_equal(y[0, :, :, 0], np.outer(rows, rows))


def test_doubling_is_exact_on_a_ramp():
  def ramp(height, width, cell):
    return 3 * (np.arange(height)[:, None] + 0.5) * cell - (np.arange(width) + 0.5) * cell

  fine = doubled(jnp.asarray(ramp(6, 7, cell=2), jnp.float32)[None, ..., None], (11, 14))
  assert fine.shape == (1, 11, 14, 1)
  # Before the first centre and after the last one nothing is known; row 11, of those after the last, is cut off.
  np.testing.assert_allclose(fine[0, 1:, 1:-1, 0], ramp(11, 14, cell=1)[1:, 1:-1], rtol=1e-6)
  np.testing.assert_allclose(doubled(jnp.full((1, 6, 7, 1), 2.5), (11, 14)), 2.5, rtol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (3, 2), (5, 7), (6, 6), (13, 9), (75, 31)])
def test_adaptive_average_pool_equals_a_loop_over_cells(size):
  maps, sizes = images(2, *size), (1, 2, 3, 4, 6)
  height, width = size
  for bins, pooled in zip(sizes, jax.jit(lambda x: [adaptive_average_pool(x, n) for n in sizes])(maps), strict=True):
    assert (pooled.shape, pooled.dtype) == ((2, bins, bins, 3), jnp.float32)
    for i, j in np.ndindex(bins, bins):
      rows = slice(i * height // bins, -(-(i + 1) * height // bins))
      columns = slice(j * width // bins, -(-(j + 1) * width // bins))
      expected = np.asarray(maps, np.float64)[:, rows, columns].mean((1, 2))
      np.testing.assert_allclose(pooled[:, i, j], expected, rtol=1e-5, atol=1e-6)


def test_adaptive_average_pool_by_hand():
  ramp = jnp.arange(5.0)[None, :, None, None] + 10 * jnp.arange(2.0)[None, None, :, None]
  # Of five rows three cells take 0-1, 1-3 and 3-4; of two columns 0, both and 1.
  expected = np.array([0.5, 2, 3.5])[:, None] + np.array([0, 5, 10])
  np.testing.assert_allclose(adaptive_average_pool(ramp, 3)[0, ..., 0], expected, rtol=1e-6)


def test_bfloat16_maps_are_averaged_in_float32():
  maps = jnp.full((1, 300, 300, 1), 1.0078125, jnp.bfloat16)
  pooled = adaptive_average_pool(maps, 1)
  assert pooled.dtype == jnp.float32
  np.testing.assert_allclose(pooled, 1.0078125, rtol=1e-5)


@pytest.mark.parametrize("norm", [True, False])
def test_pyramid_pooling_is_what_its_layers_say(norm):
  latent = jnp.broadcast_to(images(2, 1, 1), (2, 5, 7, 3))  # constant maps: pooling and upsampling change nothing
  model = PyramidPooling(4, bins=(3, 1), norm=norm)
  variables = random_variables(model, latent)
  params, x = variables["params"], latent[:, :1, :1]
  maps = [x]
  for bins in (3, 1):
    conv = params[f"pool{bins}_conv"]
    y = x @ conv["kernel"][0, 0]
    if norm:
      affine, statistics = params[f"pool{bins}_bn"], variables["batch_stats"][f"pool{bins}_bn"]
      y = (y - statistics["mean"]) / np.sqrt(statistics["var"] + 1e-5) * affine["scale"] + affine["bias"]
    else:
      y += conv["bias"]
    maps.append(np.maximum(0, y))
  assert maps[1].shape[-1] == maps[2].shape[-1] == 1  # 3 // 2
  expected = np.concatenate(maps, -1) @ params["logits"]["kernel"][0, 0] + params["logits"]["bias"]
  np.testing.assert_allclose(apply(model, variables, latent), np.broadcast_to(expected, (2, 5, 7, 4)), rtol=1e-4, atol=1e-5)


def test_gradients_and_statistics_reach_every_branch():
  x = images(3, 33, 41)
  model = small_branched(branches=3)
  variables = random_variables(model, x)

  @jax.jit
  @partial(jax.grad, has_aux=True)
  def gradients(params):
    (logits, _), changed = model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
    return jnp.mean(logits**2), changed["batch_stats"]

  found, statistics = gradients(variables["params"])
  assert all(np.any(leaf) for leaf in jax.tree.leaves(found))
  old = jax.tree.leaves(variables["batch_stats"])
  assert all(np.any(new != leaf) for new, leaf in zip(jax.tree.leaves(statistics), old, strict=True))


def test_branches_share_the_latent_map_and_nothing_else():
  x = images(2, 33, 41)
  model = small_branched(branches=3)
  variables = jax.jit(model.init)(jax.random.key(0), x)
  decoders = [variables["params"][f"decoder_{branch}"] for branch in range(3)]
  for a, b in ((0, 1), (0, 2), (1, 2)):
    layers_of_both = zip(decoders[a].items(), decoders[b].values(), strict=True)
    assert all(np.all(mine["kernel"] != its["kernel"]) for (name, mine), its in layers_of_both if "kernel" in mine)
  logits, latent = apply(model, variables, x)
  assert len({np.asarray(branch).tobytes() for branch in logits}) == 3
  decode = jax.jit(PyramidPooling(5).apply)
  for branch, decoder in enumerate(decoders):
    own = {"params": decoder, "batch_stats": variables["batch_stats"][f"decoder_{branch}"]}
    np.testing.assert_allclose(decode(own, latent), logits[branch], rtol=1e-4, atol=1e-6)


def test_branches_vote_with_dropout_and_return_logits_without():
  x, keys = images(2, 33, 41), jax.random.split(jax.random.key(0), 2)
  model = small_branched(branches=2)
  variables = random_variables(model, x)

  def trained(rate):
    of_rate = model.clone(vote_dropout=rate)
    (logits, _), changed = of_rate.apply(variables, x, train=True, keys=keys, mutable=["batch_stats", "votes"])
    return logits, votes(logits, changed)

  (plain, same), (without, cast) = jax.jit(lambda: (trained(0.0), trained(0.5)))()
  np.testing.assert_array_equal(plain, same)
  np.testing.assert_allclose(without, plain, rtol=1e-5, atol=1e-6)
  assert cast.shape == plain.shape and not any(np.allclose(a, b, rtol=1e-2) for a, b in zip(cast, plain, strict=True))


@pytest.mark.parametrize("size", [(7, 8), (1, 5)])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_convolution_of_one_position_is_a_matrix_product(size, stride):
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, *size, 5)), jnp.float32)
  layer = layers.conv(4, 1, stride=stride, bias=True)
  plain = layer.clone(conv_general_dilated=None)
  variables = layer.init(jax.random.key(0), x)
  assert "dot_general" in str(jax.make_jaxpr(layer.apply)(variables, x))

  def summed(layer):
    return jax.value_and_grad(lambda x: jnp.sum(jnp.sin(layer.apply(variables, x))))(x)

  found, expected = summed(layer), summed(plain)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)
  assert layer.apply(variables, x).shape == plain.apply(variables, x).shape


def test_branches_share_one_forward_of_the_backbone():
  x = images(1)

  def counted(branches):
    model = small_branched(branches=branches)
    program = str(jax.make_jaxpr(model.apply)(shapes(model, *x.shape), x))
    return np.array([program.count(name) for name in ("conv_general_dilated", "dot_general")])

  one, two, three = map(counted, (1, 2, 3))
  # A decoder is made of convolutions that see one position: matrix products.
  np.testing.assert_array_equal(two - one, three - two)
  assert (two - one)[0] == 0 and one[0] > 5 and (two - one)[1] >= 5


def test_fcn8s_adds_the_scores_of_three_strides():
  maps = [jnp.broadcast_to(images(2, 1, 1, seed), (2, *size, 3)) for seed, size in enumerate([(5, 6), (3, 3), (2, 2)])]
  model = FCN8s(4)
  variables = jax.tree.map(
    lambda leaf: jnp.asarray(np.random.default_rng(leaf.size).normal(size=leaf.shape), jnp.float32),
    jax.eval_shape(model.init, jax.random.key(0), *maps),
  )
  params = variables["params"]
  expected = sum(
    x[:, :1, :1] @ params[name]["kernel"][0, 0] + params[name]["bias"]
    for name, x in zip(("score_pool3", "score_pool4", "score_fc7"), maps, strict=True)
  )
  np.testing.assert_allclose(model.apply(variables, *maps), np.broadcast_to(expected, (2, 5, 6, 4)), rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_parameter_of_fcn8s_vgg16():
  x, keys = images(2, 41, 47), example_keys(2)
  model = small_segmenter("fcn8s_vgg16")
  variables = random_variables(model, x)

  @jax.jit
  @partial(jax.grad, has_aux=True)
  def gradients(params):
    variables = {"params": params, "batch_stats": {}}  # empty, and mutable all the same: as a train step has it
    (logits, _), changed = model.apply(variables, x, train=True, keys=keys, mutable=["batch_stats"])
    return jnp.mean(logits**2), changed

  found, changed = gradients(variables["params"])
  assert all(np.any(leaf) for leaf in jax.tree.leaves(found))
  assert not jax.tree.leaves(changed)


def test_initial_scale_is_he_fan_out_and_small_for_logits():
  kernel = layers.conv(128, 3).init(jax.random.key(0), jnp.zeros((1, 4, 4, 64)))["params"]["kernel"]
  assert np.std(kernel) == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)
  logits = Head(5, 64).init(jax.random.key(0), jnp.zeros((1, 4, 4, 8)))["params"]["logits"]
  assert np.std(logits["kernel"]) == pytest.approx(0.01, rel=0.05)
  assert not np.any(logits["bias"])
  scores = FCN8s(5).init(jax.random.key(0), *(jnp.zeros((1, n, n, 64)) for n in (4, 2, 1)))["params"]
  assert all(np.std(score["kernel"]) == pytest.approx(0.01, rel=0.2) for score in scores.values())


@pytest.mark.parametrize("backbone", BACKBONES)
def test_bfloat16_keeps_float32_parameters_and_logits(backbone):
  x = images()
  model, reference = (small_segmenter(backbone, dtype=dtype) for dtype in ("bfloat16", "float32"))
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes(model, *x.shape))} == {jnp.dtype(jnp.float32)}
  variables = random_variables(model, x)
  logits, latent = apply(model, variables, x)
  assert (logits.dtype, latent.dtype) == (jnp.float32, jnp.bfloat16)
  assert 0.1 < np.mean(latent == 0) < 0.9  # all trunks end in a ReLU
  expected = apply(reference, variables, x)[0]
  assert np.abs(logits - expected).max() < 0.1 * np.abs(expected).max()


def test_branches_in_bfloat16_keep_float32_parameters_and_logits():
  x = images(3, 33, 41)
  model = small_branched(dtype="bfloat16")
  (logits, latent), variables = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), x))
  assert (logits.dtype, latent.dtype) == (jnp.float32, jnp.bfloat16)
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_statistics_of_the_few_cells_are_exact_in_bfloat16():
  alike = jnp.asarray(5 + 0.01 * images(4, 1, 1), jnp.bfloat16)  # images whose means differ by a few steps of bfloat16
  latent = jnp.broadcast_to(alike, (4, 5, 7, 3))
  model, reference = (PyramidPooling(4, bins=(3, 1), dtype=dtype) for dtype in (jnp.bfloat16, jnp.float32))
  variables = random_variables(reference, latent)
  logits, expected = (apply(m, variables, latent, train=True, mutable=["batch_stats"]) for m in (model, reference))
  assert logits[0].dtype == jnp.float32
  np.testing.assert_allclose(logits[0], expected[0], atol=0.02 * np.abs(expected[0]).max())
  assert_trees_close(logits[1], expected[1], rtol=0)


@pytest.mark.parametrize("activation", ["paper", "code"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_image_classifier_is_what_its_layers_say(activation, dtype):
  latent = images(3, 5, 6)
  model = ImageClassifier(4, activation, width=1 / 64, dtype=dtype)
  variables = random_variables(model, latent)
  logits = apply(model, variables, latent)
  assert (logits.shape, logits.dtype) == ((3, 4), jnp.float32)
  params = jax.tree.map(np.asarray, variables["params"])
  relu = partial(np.maximum, 0)
  between = relu if activation == "paper" else lambda x: x
  x = relu(latent @ params["conv1"]["kernel"][0, 0] + params["conv1"]["bias"])
  x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  taps = [x[:, i : i + 5, j : j + 6] @ params["conv2"]["kernel"][i, j] for i in range(3) for j in range(3)]
  x = between(sum(taps) + params["conv2"]["bias"]).mean((1, 2))
  x = between(x @ params["fc1"]["kernel"] + params["fc1"]["bias"])
  expected = x @ params["fc2"]["kernel"] + params["fc2"]["bias"]
  np.testing.assert_allclose(logits, expected, **({"atol": 1e-5} if dtype == jnp.float32 else {"atol": 0.05}))


# --- BatchNorm


class ThreeLayers(nn.Module):
  """The smallest network in which what BatchNorm does reaches a later BatchNorm and an earlier gradient."""

  batch_norm: str

  @nn.compact
  def __call__(self, x, train=False):
    for i in range(3):
      x = layers.conv(4, 3, name=f"conv{i}")(x)
      x = nn.relu(layers.batch_norm(self.batch_norm, train=train, name=f"bn{i}")(x))
    return x


def gradients_and_statistics(mode, variables, x):
  def loss(params):
    y, updates = ThreeLayers(mode).apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
    return jnp.mean(y**2), updates["batch_stats"]

  return jax.grad(loss, has_aux=True)(variables["params"])


def over_devices(step, variables, x):
  """Runs `step(variables, x)` with one example of `x` on each device."""
  return jax.pmap(step, axis_name=DEVICE_AXIS, in_axes=(None, 0))(variables, x[:, None])


def test_synced_statistics_and_gradients_over_devices_are_those_of_one_device():
  x = images(4, 8, 9)
  variables = random_variables(ThreeLayers("synced"), x)

  def step(variables, x):
    gradients, statistics = gradients_and_statistics("synced", variables, x)
    return jax.lax.pmean(gradients, DEVICE_AXIS), statistics

  several = over_devices(step, variables, x)
  alone = jax.jit(partial(gradients_and_statistics, "per_device"))(variables, x)
  for device in range(4):
    on_device = jax.tree.map(lambda leaf: leaf[device], several)  # noqa: B023
    assert_trees_close(on_device, alone, rtol=1e-3, atol=1e-5)


def test_per_device_statistics_are_each_devices_own():
  x = images(4, 8, 9)
  variables = random_variables(ThreeLayers("per_device"), x)
  step = partial(gradients_and_statistics, "per_device")
  several = over_devices(step, variables, x)
  for device in range(4):
    alone = jax.jit(step)(variables, x[device : device + 1])
    assert_trees_close(jax.tree.map(lambda leaf: leaf[device], several), alone, rtol=1e-3, atol=1e-5)  # noqa: B023
  assert len(np.unique(several[1]["bn0"]["mean"][:, 0])) == 4


def test_frozen_statistics_stay_but_scale_and_bias_train():
  x = images(4, 8, 9)
  variables = random_variables(ThreeLayers("frozen"), x)
  gradients, statistics = gradients_and_statistics("frozen", variables, x)
  assert_trees_close(statistics, variables["batch_stats"], rtol=0)
  assert all(np.any(gradients[f"bn{i}"][leaf]) for i in range(3) for leaf in ("scale", "bias"))


def test_running_statistics_keep_nine_tenths():
  x = images()
  model = layers.batch_norm("per_device", train=True)
  variables = model.init(jax.random.key(0), x)
  _, updates = model.apply(variables, x, mutable=["batch_stats"])
  np.testing.assert_allclose(updates["batch_stats"]["mean"], 0.1 * x.mean((0, 1, 2)), rtol=1e-4, atol=1e-7)
  np.testing.assert_allclose(updates["batch_stats"]["var"], 0.9 + 0.1 * x.var((0, 1, 2)), rtol=1e-5)


@pytest.mark.parametrize("backbone", WITH_BATCH_NORM)
def test_the_mode_reaches_every_batch_norm(backbone):
  x = jnp.zeros((2, 32, 32, 3))

  def program(mode, train):
    model = small_segmenter(backbone, batch_norm=mode, dropout=False)
    call = partial(model.apply, train=train, mutable=["batch_stats"])
    return str(jax.make_jaxpr(call, axis_env=[(DEVICE_AXIS, 4)])(shapes(model, *x.shape), x))

  statistics = traverse_util.flatten_dict(shapes(small_segmenter(backbone), *x.shape)["batch_stats"])
  psums = {mode: program(mode, train=True).count("psum") for mode in layers.BATCH_NORM_MODES}
  assert psums == {"per_device": 0, "synced": len(statistics) // 2, "frozen": 0}
  assert program("frozen", train=True) == program("frozen", train=False) == program("synced", train=False)
  assert program("per_device", train=True) != program("frozen", train=True)


# --- dropout


def test_dropout_is_keyed_by_example_and_layer():
  x = jnp.ones((4, 30, 30, 3))
  keys = example_keys(4)
  dropped = layers.dropout(x, 0.3, keys, 1)
  one_by_one = jnp.concatenate([layers.dropout(x[i : i + 1], 0.3, keys[i : i + 1], 1) for i in range(4)])
  np.testing.assert_array_equal(dropped, one_by_one)
  np.testing.assert_allclose(np.unique(dropped), [0, 1 / 0.7], rtol=1e-6)
  assert np.mean(dropped == 0) == pytest.approx(0.3, abs=0.02)
  assert np.mean(dropped[0] == dropped[1]) < 0.7
  assert np.mean(dropped == layers.dropout(x, 0.3, keys, 2)) < 0.7
  assert layers.dropout(x.astype(jnp.bfloat16), 0.5, keys, 1).dtype == jnp.bfloat16


@pytest.mark.parametrize("backbone", WITH_DROPOUT)
def test_segmenter_drops_alike_however_the_batch_is_split(backbone):
  x, keys = images(4), example_keys(4)
  model = small_segmenter(backbone, batch_norm="frozen")
  variables = random_variables(model, x)
  step = jax.jit(lambda x, keys: model.apply(variables, x, train=True, keys=keys)[0])
  whole = step(x, keys)
  split = jnp.concatenate([step(x[i : i + 1], keys[i : i + 1]) for i in range(4)])
  np.testing.assert_allclose(whole, split, rtol=1e-4, atol=1e-5)
  assert not np.allclose(whole, step(x, keys[::-1]), atol=1e-2)


def test_vgg16_drops_half_after_fc6_and_after_fc7():
  x = images(2, 96, 96)
  model = VGG16(width=1 / 16)
  variables = random_variables(model, x)
  *_, whole = apply(model, variables, x)
  *pools, dropped = apply(model, variables, x, train=True, keys=example_keys(2))
  jax.tree.map(np.testing.assert_array_equal, pools, list(apply(model, variables, x)[:2]))
  assert np.mean(dropped == 0) == pytest.approx((1 + float(np.mean(whole == 0))) / 2, abs=0.05)
  in_both = (dropped > 0) & (whole > 0)
  assert np.median(np.abs(dropped / whole - 2)[in_both]) > 0.1  # what reaches fc7 was thinned, too


@pytest.mark.parametrize("backbone", WITH_DROPOUT)
def test_dropout_wants_keys_only_where_it_is_on(backbone):
  x = images(1)
  for fields, train in (({"dropout": False}, True), ({}, False)):
    model = small_segmenter(backbone, batch_norm="frozen", **fields)
    jax.eval_shape(partial(model.apply, train=train), shapes(model, *x.shape), x)
  with pytest.raises(ValueError, match="one PRNG key per example"):
    jax.eval_shape(partial(model.apply, train=True), shapes(model, *x.shape), x)


# --- what the user can mend


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"backbone": "vgg"}, "unknown backbone 'vgg'.*resnet10, resnet18, resnet50, resnet101, resnet38, fcn8s_vgg16"),
    ({"backbone": "resnet18", "batch_norm": "on"}, "batch_norm 'on'.*per_device, synced, frozen"),
    ({"backbone": "resnet18", "dtype": "float16"}, "dtype 'float16'.*float32, bfloat16"),
    ({"backbone": "resnet18", "num_stages": 5}, "num_stages of ResNet-18 is 5; choose 3 or 4"),
    ({"backbone": "resnet38", "num_stages": 3}, "num_stages is 3, but resnet38"),
    ({"backbone": "fcn8s_vgg16", "num_stages": 3}, "num_stages is 3, but fcn8s_vgg16"),
  ],
)
def test_unknown_fields_are_errors_in_one_line(fields, message):
  with pytest.raises(UserError, match=message) as error:
    shapes(Segmenter(5, **fields), 1, 32, 32, 3)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"branches": 0}, "config.network.branches is 0"),
    ({"backbone": "fcn8s_vgg16"}, "unknown backbone 'fcn8s_vgg16'.*resnet10, resnet18, resnet50, resnet101, resnet38(?!,)"),
    ({"backbone": "resnet38", "num_stages": 3}, "num_stages is 3, but resnet38"),
    ({"dtype": "float16"}, "dtype 'float16'.*float32, bfloat16"),
    ({"batch_norm": "on"}, "batch_norm 'on'.*per_device, synced, frozen"),
    ({"bins": ()}, r"bins of the pyramid pooling are \(\)"),
    ({"bins": (2, 0)}, r"bins of the pyramid pooling are \(2, 0\)"),
    ({"bins": (3, 1, 3)}, "each once"),
  ],
)
def test_unknown_fields_of_the_branched_segmenter_are_errors_in_one_line(fields, message):
  with pytest.raises(UserError, match=message) as error:
    shapes(BranchedSegmenter(5, **fields), 1, 32, 32, 3)
  assert "\n" not in str(error.value)


def test_unknown_output_stride_and_activation():
  with pytest.raises(UserError, match="output_stride of ResNet-18 is 16; choose 8 or 32"):
    shapes(ResNet(output_stride=16), 1, 32, 32, 3)
  with pytest.raises(UserError, match=r"activation 'gelu'.*paper, code"):
    shapes(ImageClassifier(5, "gelu"), 1, 4, 4, 8)


def test_decoders_miss_channels_of_their_own_in_their_votes_alone():
  latent, keys = images(3)[..., :1] * jnp.ones(8), jax.random.split(jax.random.key(0), 3)
  decoder = PyramidPooling(3, bins=(2, 1), vote_dropout=0.5)
  variables = decoder.init(jax.random.key(1), latent)
  plain, none = decoder.apply(variables, latent, mutable=["votes"])  # wants no keys
  assert not none

  def cast(branch, rows, norm=True):
    model = decoder if norm else decoder.clone(batch_norm="frozen")
    logits, changed = model.apply(variables, latent[rows], True, keys[rows], branch, mutable=["batch_stats", "votes"])
    return logits, changed["votes"]["cast"][0]

  every = slice(None)
  (_, first), (_, second) = cast(0, every), cast(1, every)
  np.testing.assert_array_equal(first, cast(0, every)[1])
  assert not np.allclose(first, second)
  (logits, whole), (_, alone) = cast(0, every, False), cast(0, slice(1, 2), False)
  np.testing.assert_array_equal(logits, plain)
  np.testing.assert_allclose(whole[1:2], alone, rtol=1e-5, atol=1e-6)  # an example's key alone decides


@pytest.mark.parametrize(
  ("size", "dilation", "kernel"), [((9, 11), 6, 3), ((5, 20), 4, 5), ((3, 4), 12, 3), ((30, 31), 2, 3)]
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_convolutions_that_look_far_spare_the_padding_and_nothing_else(size, dilation, kernel, dtype, monkeypatch):
  x = jax.random.normal(jax.random.key(0), (2, *size, 3))
  conv = layers.conv(4, kernel, dilation=dilation, dtype=dtype)
  variables = conv.init(jax.random.key(1), x)

  def outcome():  # traced anew each time
    def loss(variables, x):
      y = conv.apply(variables, x)
      return jnp.sum(y * jnp.sin(jnp.arange(y.size).reshape(y.shape))), y

    spares = "dot_general" in str(jax.make_jaxpr(loss)(variables, x))
    return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(variables, x), spares

  found, spares = outcome()
  monkeypatch.setattr(layers, "WORTH_SPARING", 0.0)
  expected, all_of_it = outcome()
  assert spares == (dilation > 2) and not all_of_it
  within = {"rtol": 1e-4, "atol": 1e-5} if dtype == jnp.float32 else {"rtol": 0.03, "atol": 0.1}

  def same(a, b):
    assert a.dtype == b.dtype
    np.testing.assert_allclose(a.astype(np.float32), b.astype(np.float32), **within)

  jax.tree.map(same, found, expected)


def test_convolutions_that_look_far_are_exported_for_all_platforms():
  conv, x = layers.conv(4, 3, dilation=12), jax.random.normal(jax.random.key(0), (1, 9, 15, 3))
  variables = conv.init(jax.random.key(1), x)
  file = jax.export.export(jax.jit(conv.apply), platforms=("cpu", "cuda", "tpu"))(variables, x).serialize()
  found = jax.export.deserialize(file).call(variables, x)
  np.testing.assert_allclose(found, conv.apply(variables, x), rtol=1e-5, atol=1e-6)
