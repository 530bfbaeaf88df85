import struct
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

from jax_uda.errors import UserError
from jax_uda.models import mxnet_params
from jax_uda.models.segmenter import FusionSegmenter, Segmenter
from jax_uda.models.weights import Report, load, torchvision_names


def segmenter_variables(backbone="resnet18", **fields):
  model = Segmenter(3, backbone, **{"width": 0.0625, "head_channels": 4, **fields})
  leaves = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  return jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.5, leaf.dtype), leaves)


@pytest.fixture(scope="module")
def variables():
  return segmenter_variables()


@pytest.fixture
def arrays(variables):
  """A file's content in torchvision's names and layout, for the `variables` network, from a table written by hand."""
  rng = np.random.default_rng(0)
  content = {"fc.weight": rng.normal(size=(10, 32)), "fc.bias": rng.normal(size=10)}

  def add(conv, norm, outputs, inputs, kernel):
    content[f"{conv}.weight"] = rng.normal(size=(outputs, inputs, kernel, kernel))
    for leaf in ("weight", "bias", "running_mean", "running_var"):
      content[f"{norm}.{leaf}"] = rng.uniform(size=outputs)
    content[f"{norm}.num_batches_tracked"] = np.array(3, np.int64)

  add("conv1", "bn1", 4, 3, 7)
  inputs = 4
  for stage, outputs in enumerate((4, 8, 16, 32), start=1):
    for block in (0, 1):
      name = f"layer{stage}.{block}"
      add(f"{name}.conv1", f"{name}.bn1", outputs, inputs, 3)
      add(f"{name}.conv2", f"{name}.bn2", outputs, outputs, 3)
      if inputs != outputs:
        add(f"{name}.downsample.0", f"{name}.downsample.1", outputs, inputs, 1)
      inputs = outputs
  return {name: x.astype(np.float32) if x.dtype == np.float64 else x for name, x in content.items()}


def save(path, arrays):
  safetensors.numpy.save_file({name: np.ascontiguousarray(x) for name, x in arrays.items()}, path)
  return str(path)


@pytest.fixture
def file(tmp_path):
  return tmp_path / "resnet18.safetensors"


def assert_one_line(error, *parts):
  message = str(error.value)
  assert "\n" not in message
  for part in parts:
    assert part in message


def test_names_cover_the_backbone_once(variables, arrays):
  names = torchvision_names(variables)
  assert names["params", "backbone", "layer2_0", "downsample_0", "kernel"] == "layer2.0.downsample.0.weight"
  assert names["batch_stats", "backbone", "layer2_0", "downsample_1", "var"] == "layer2.0.downsample.1.running_var"
  assert names["params", "backbone", "bn1", "scale"] == "bn1.weight"
  assert len(set(names.values())) == len(names) == 100
  wanted = {name for name in arrays if not name.startswith("fc.") and "num_batches" not in name}
  assert set(names.values()) == wanted


def test_every_array_arrives_in_its_place(variables, arrays, file):
  before = jax.tree.map(np.array, variables)
  loaded, report = load(save(file, arrays), variables)
  assert isinstance(report, Report)
  assert (len(report.loaded), report.missing, report.mismatched) == (100, (), ())
  assert set(report.unused) == {name for name in arrays if name.startswith("fc.") or "num_batches" in name}
  assert jax.tree.structure(loaded) == jax.tree.structure(variables)
  for path, name in torchvision_names(variables).items():
    leaf = traverse_util.flatten_dict(loaded)[path]
    expected = arrays[name].transpose(2, 3, 1, 0) if arrays[name].ndim == 4 else arrays[name]
    assert leaf.dtype == jnp.float32
    np.testing.assert_array_equal(leaf, expected)
  # The head and what was handed in are as they were.
  jax.tree.map(np.testing.assert_array_equal, loaded["params"]["head"], before["params"]["head"])
  jax.tree.map(np.testing.assert_array_equal, variables, before)


def test_half_precision_and_double_become_float32(variables, arrays, file):
  arrays["conv1.weight"] = arrays["conv1.weight"].astype(np.float16)
  arrays["bn1.bias"] = arrays["bn1.bias"].astype(np.float64)
  loaded, _ = load(save(file, arrays), variables)
  assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {jnp.dtype(jnp.float32)}
  kernel = loaded["params"]["backbone"]["conv1"]["kernel"]
  np.testing.assert_array_equal(kernel, arrays["conv1.weight"].transpose(2, 3, 1, 0).astype(np.float32))


def test_layer4_may_be_left_over(arrays, file):
  _, report = load(save(file, arrays), segmenter_variables(num_stages=3))
  assert report.missing == report.mismatched == ()
  assert "layer4.1.conv2.weight" in report.unused
  assert len(report.loaded) == 75


def test_what_does_not_fit_is_one_error(variables, arrays, file):
  del arrays["layer4.1.conv2.weight"], arrays["bn1.running_mean"]
  arrays["layer2.0.conv1.weight"] = np.zeros((8, 5, 3, 3), np.float32)
  arrays["layer3.0.bn1.bias"] = np.zeros((16, 1), np.float32)
  arrays["layer1.2.conv1.weight"] = np.zeros((4, 4, 3, 3), np.float32)  # a deeper network's
  path = save(file, arrays)
  with pytest.raises(UserError) as error:
    load(path, variables)
  assert_one_line(
    error, path,
    "2 missing there: bn1.running_mean, layer4.1.conv2.weight;",
    "2 of another shape: layer2.0.conv1.weight (there (8, 5, 3, 3), here (8, 4, 3, 3)), "
    "layer3.0.bn1.bias (there (16, 1), here (16,));",
    "1 unknown: layer1.2.conv1.weight;",
    "--config.weights_partial=True",
  )  # fmt: skip
  loaded, report = load(path, variables, partial=True)
  assert report.missing == ("bn1.running_mean", "layer4.1.conv2.weight")
  assert report.mismatched == (
    ("layer2.0.conv1.weight", (8, 5, 3, 3), (8, 4, 3, 3)),
    ("layer3.0.bn1.bias", (16, 1), (16,)),
  )
  assert "layer1.2.conv1.weight" in report.unused
  assert len(report.loaded) == 96
  old, new = (v["params"]["backbone"] for v in (variables, loaded))
  for block, conv in (("layer4_1", "conv2"), ("layer2_0", "conv1")):
    np.testing.assert_array_equal(new[block][conv]["kernel"], old[block][conv]["kernel"])
  np.testing.assert_array_equal(new["bn1"]["bias"], arrays["bn1.bias"])


def test_names_in_a_part_that_the_network_has_are_not_left_out(variables, arrays, file):
  arrays["layer4.1.conv2.weight_orig"] = arrays.pop("layer4.1.conv2.weight")
  with pytest.raises(UserError) as error:
    load(save(file, arrays), variables)
  assert_one_line(error, "1 missing there: layer4.1.conv2.weight; 1 unknown: layer4.1.conv2.weight_orig;")


def test_a_long_list_of_names_is_cut_with_its_count_and_printed_whole(variables, arrays, file, capsys):
  only = {name: arrays[name] for name in ("conv1.weight", "bn1.bias")}
  with pytest.raises(UserError) as error:
    load(save(file, only), variables)
  assert_one_line(error, "98 missing there: bn1.running_mean, ", " and 78 more;")
  assert len(str(error.value)) < 1000
  assert capsys.readouterr().out.count("missing there: ") == 98


@pytest.mark.parametrize("partial", [False, True])
def test_nothing_that_fits_is_always_an_error(partial, variables, arrays, file):
  foreign = {f"module.{name}": x for name, x in arrays.items()}
  with pytest.raises(UserError) as error:
    load(save(file, foreign), variables, partial)
  assert_one_line(error, str(file), "nothing")
  with pytest.raises(UserError, match="nothing"):
    load(save(file, arrays), segmenter_variables("resnet38"), partial)


@pytest.mark.parametrize("content", [b"", b"\x07", bytes(range(256)) * 40, b"\xff" * 64, b"{}", "cut", "header only"])
@pytest.mark.parametrize("partial", [False, True])
def test_bad_files_are_errors_in_one_line(content, partial, variables, arrays, file):
  if isinstance(content, str):
    whole = safetensors.numpy.save({name: np.ascontiguousarray(x) for name, x in arrays.items()})
    content = {"cut": whole[:-100], "header only": whole[:400]}[content]
  file.write_bytes(content)
  with pytest.raises(UserError) as error:
    load(str(file), variables, partial)
  assert_one_line(error, str(file), "damaged")


def test_paths_that_are_no_files_are_errors_in_one_line(variables, tmp_path):
  (tmp_path / "folder.safetensors").mkdir()
  for name, part in (("absent.safetensors", "No such file"), ("folder.safetensors", "directory")):
    with pytest.raises(UserError) as error:
      load(str(tmp_path / name), variables)
    assert_one_line(error, name, part, "cannot read")


@pytest.mark.parametrize("name", ["resnet18.pkl", "resnet18", "resnet18.safetensors.gz"])
def test_other_formats_are_never_opened(name, variables, tmp_path):
  (tmp_path / name).write_bytes(b"\x80\x04.")
  with pytest.raises(UserError) as error:
    load(str(tmp_path / name), variables)
  assert_one_line(error, name, "no file of .safetensors, .pth, .pt, .params")


def test_without_pytorch_its_files_are_an_error_that_says_what_to_do(variables, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "torch", None)
  (tmp_path / "resnet18.pth").write_bytes(b"\x80\x04.")
  with pytest.raises(UserError) as error:
    load(str(tmp_path / "resnet18.pth"), variables)
  assert_one_line(error, "resnet18.pth", "PyTorch", "not installed", "safetensors.torch.save_file")


def test_number_types_that_numpy_lacks_are_an_error(variables, file):
  header = b'{"conv1.weight":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
  file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
  with pytest.raises(UserError) as error:
    load(str(file), variables)
  assert_one_line(error, "BF16", "float32")


# --- VGG16


def of_vgg16(variables):
  """A file's content for its convolutions, in torchvision's names, and its classifier's, which is fully connected."""
  rng, arrays = np.random.default_rng(0), {}
  for name, leaves in variables["params"]["backbone"].items():
    if name.startswith("features"):
      arrays[f"{name.replace('_', '.')}.weight"] = rng.normal(size=leaves["kernel"].transpose(3, 2, 0, 1).shape)
      arrays[f"{name.replace('_', '.')}.bias"] = rng.normal(size=leaves["bias"].shape)
  for place, shape in ((0, (256, 49 * 32)), (3, (256, 256)), (6, (1000, 256))):
    arrays[f"classifier.{place}.weight"] = rng.normal(size=shape)
    arrays[f"classifier.{place}.bias"] = rng.normal(size=shape[0])
  return {name: x.astype(np.float32) for name, x in arrays.items()}


def test_vgg16s_fully_connected_layers_become_convolutions(file):
  variables = segmenter_variables("fcn8s_vgg16")
  arrays = of_vgg16(variables)
  loaded, report = load(save(file, arrays), variables)
  assert len(report.loaded) == 30 and not report.missing
  assert set(report.unused) == {"classifier.6.weight", "classifier.6.bias"}
  fc6 = loaded["params"]["backbone"]["fc6"]["kernel"]
  seen = np.random.default_rng(1).normal(size=(7, 7, 32)).astype(np.float32)  # PyTorch flattens channels first
  np.testing.assert_allclose(
    np.tensordot(seen, fc6, 3), arrays["classifier.0.weight"] @ seen.transpose(2, 0, 1).ravel(), rtol=1e-4, atol=1e-4
  )
  np.testing.assert_array_equal(loaded["params"]["backbone"]["fc7"]["kernel"][0, 0], arrays["classifier.3.weight"].T)
  arrays["classifier.0.weight"] = arrays["classifier.0.weight"].T
  with pytest.raises(UserError, match=r"1 of another shape: classifier\.0\.weight"):
    load(save(file, arrays), variables)
  arrays["classifier.0.weight"] = arrays["classifier.0.weight"].T
  del arrays["classifier.3.weight"]
  with pytest.raises(UserError, match=r"1 missing there: classifier\.3\.weight"):
    load(save(file, arrays), variables)


def test_bare_vgg16_takes_its_convolutions_and_leaves_the_classifier(file):
  model = FusionSegmenter(5, "vgg16", width=0.0625, channels=4, units=1)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
  _, report = load(save(file, of_vgg16(variables)), variables)
  assert len(report.loaded) == 26 and not report.missing


# --- MXNet


def of_mxnet(arrays, version=2, prefix=True):
  """What MXNet writes for these arrays, by the definition of its format."""
  shape_of = {0: "I", 1: "q", 2: "q", 3: "q"}[version]
  magic = {1: 0xF993FAC8, 2: 0xF993FAC9, 3: 0xF993FACA}
  out = [struct.pack("<QQQ", 0x112, 0, len(arrays))]
  for x in arrays.values():
    out += [struct.pack("<I", magic[version])] if version else []
    out += [struct.pack("<i", 0)] if version > 1 else []
    out += [struct.pack(f"<I{x.ndim}{shape_of}", x.ndim, *x.shape), struct.pack("<ii", 1, 0)]
    kind = ["float32", "float64", "float16", "uint8", "int32", "int8", "int64"].index(x.dtype.name)
    out += [struct.pack("<i", kind), x.astype(x.dtype.newbyteorder("<")).tobytes()]
  out.append(struct.pack("<Q", len(arrays)))
  for name in arrays:
    kind = ("aux:" if "moving" in name else "arg:") if prefix else ""
    out += [struct.pack("<Q", len(kind + name)), (kind + name).encode()]
  return b"".join(out)


def of_resnet38(num_classes=3, head=True):
  """The authors' names, from a list of the blocks written by hand, at a sixteenth of the width."""
  rng, content = np.random.default_rng(0), {}

  def conv(name, outputs, inputs, kernel):
    content[f"{name}_weight"] = rng.normal(size=(outputs, inputs, kernel, kernel))

  def norm(name, channels):
    for leaf in ("gamma", "beta", "moving_mean", "moving_var"):
      content[f"{name}_{leaf}"] = rng.uniform(size=channels)

  conv("conv1a", 4, 3, 3)
  inputs = 4
  levels = {
    2: (("a", "b1", "b2"), (8, 8), (3, 3)),
    3: (("a", "b1", "b2"), (16, 16), (3, 3)),
    4: (("a", "b1", "b2", "b3", "b4", "b5"), (32, 32), (3, 3)),
    5: (("a", "b1", "b2"), (32, 64), (3, 3)),
    6: (("a",), (32, 64, 128), (1, 3, 1)),
    7: (("a",), (64, 128, 256), (1, 3, 1)),
  }
  for level, (blocks, channels, kernels) in levels.items():
    for block in blocks:
      if block == "a":
        conv(f"res{level}a_branch1", channels[-1], inputs, 1)
      for branch, outputs, kernel in zip(("2a", "2b1", "2b2"), channels, kernels, strict=False):
        norm(f"bn{level}{block}_branch{branch}", inputs)
        conv(f"res{level}{block}_branch{branch}", outputs, inputs, kernel)
        inputs = outputs
  norm("bn7", 256)
  if head:
    conv("conv6a", 4, 256, 3)
    conv(f"linear{num_classes}", num_classes, 4, 3)
    content["conv6a_bias"], content[f"linear{num_classes}_bias"] = rng.normal(size=4), rng.normal(size=num_classes)
  else:
    content["linear1000_weight"], content["linear1000_bias"] = rng.normal(size=(1000, 256)), rng.normal(size=1000)
  return {name: x.astype(np.float32) for name, x in content.items()}


@pytest.fixture(scope="module")
def resnet38():
  return segmenter_variables("resnet38")


@pytest.mark.parametrize("version", [0, 1, 2, 3])
def test_mxnets_arrays_are_read_bit_for_bit(version):
  rng = np.random.default_rng(0)
  arrays = {f"a{i}": rng.normal(size=(2, 3, i + 1)).astype(kind) for i, kind in enumerate(("f4", "f8", "f2"))}
  arrays.update({f"i{i}": rng.integers(0, 99, 7).astype(kind) for i, kind in enumerate(("u1", "i4", "i1", "i8"))})
  arrays["one_moving_mean"] = np.arange(1, dtype=np.float32)
  found = mxnet_params.read(of_mxnet(arrays, version))
  assert list(found) == [f"{'aux' if 'moving' in name else 'arg'}:{name}" for name in arrays]
  for x, y in zip(found.values(), arrays.values(), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(x, y)


def test_mxnets_empty_and_scalar_arrays():
  header, names = struct.pack("<QQQ", 0x112, 0, 2), struct.pack("<QQsQs", 2, 1, b"a", 1, b"b")
  empty = struct.pack("<Iii", 0xF993FAC9, 0, 0)  # ends after its shape
  scalar = struct.pack("<Iiiiiif", 0xF993FACA, 0, 0, 1, 0, 0, 2.5)
  found = mxnet_params.read(header + empty + scalar + names)
  assert found["a"].size == 0 and found["b"].shape == () and found["b"] == 2.5


@pytest.mark.parametrize("prefix", [True, False])
def test_resnet38_of_the_authors_arrives_in_its_place(resnet38, tmp_path, prefix):
  arrays, path = of_resnet38(), tmp_path / "gta.params"
  path.write_bytes(of_mxnet(arrays, prefix=prefix))
  loaded, report = load(str(path), resnet38)
  assert set(report.loaded) == set(arrays) and report.missing == report.unused == report.mismatched == ()
  places = {
    ("params", "backbone", "conv1a", "kernel"): "conv1a_weight",
    ("params", "backbone", "block4b5", "res_branch2b1", "kernel"): "res4b5_branch2b1_weight",
    ("params", "backbone", "block6a", "res_branch1", "kernel"): "res6a_branch1_weight",
    ("params", "backbone", "block7a", "bn_branch2b2", "scale"): "bn7a_branch2b2_gamma",
    ("params", "backbone", "block2a", "bn_branch2a", "bias"): "bn2a_branch2a_beta",
    ("batch_stats", "backbone", "block3b2", "bn_branch2b1", "mean"): "bn3b2_branch2b1_moving_mean",
    ("batch_stats", "backbone", "bn7", "var"): "bn7_moving_var",
    ("params", "head", "conv", "bias"): "conv6a_bias",
    ("params", "head", "logits", "kernel"): "linear3_weight",
  }
  flat = traverse_util.flatten_dict(loaded)
  for place, name in places.items():
    expected = arrays[name].transpose(2, 3, 1, 0) if arrays[name].ndim == 4 else arrays[name]
    np.testing.assert_array_equal(flat[place], expected)


def test_heads_of_other_classes_stay_at_their_values(resnet38, tmp_path):
  for arrays, taken in ((of_resnet38(150), {"conv6a_weight", "conv6a_bias"}), (of_resnet38(head=False), set())):
    path = tmp_path / "other.params"
    path.write_bytes(of_mxnet(arrays))
    loaded, report = load(str(path), resnet38)
    heads = {name for name in report.loaded if name.startswith(("conv6a", "linear"))}
    assert heads == taken and not report.missing
    assert np.all(loaded["params"]["head"]["logits"]["kernel"] == 0.5)


def test_renamed_arrays_and_other_networks_are_one_report(resnet38, variables, tmp_path):
  arrays, path = of_resnet38(), tmp_path / "gta.params"
  arrays["bn5a_branch2a_g"] = arrays.pop("bn5a_branch2a_gamma")
  arrays["res6a_branch1_weight"] = arrays["res6a_branch1_weight"][:, :5]
  path.write_bytes(of_mxnet(arrays))
  with pytest.raises(UserError) as error:
    load(str(path), resnet38)
  assert_one_line(
    error, str(path), "1 missing there: bn5a_branch2a_gamma;", "1 unknown: bn5a_branch2a_g;",
    "1 of another shape: res6a_branch1_weight (there (128, 5, 1, 1), here (128, 64, 1, 1));",
  )  # fmt: skip
  with pytest.raises(UserError, match=r"nothing in the weights .* torchvision's names"):
    load(str(path), variables)


def test_damaged_mxnet_files_are_errors_in_one_line(resnet38, tmp_path):
  whole, path = of_mxnet(of_resnet38()), tmp_path / "gta.params"
  sparse = whole[:28] + struct.pack("<i", 1) + whole[32:]
  cuts = [whole[:n] for n in (0, 7, 20, 40, 500, len(whole) // 2, len(whole) - 1)]
  many = struct.pack("<QQQ", 0x112, 0, 2**40) + bytes(2**16)
  for content in (*cuts, many, b"\x80\x04." + whole, sparse, whole[:24] + struct.pack("<I", 77) + whole[28:]):
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
      load(str(path), resnet38)
    assert_one_line(error, str(path), "damaged or no MXNet file")
