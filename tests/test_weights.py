import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

from jax_uda.errors import UserError
from jax_uda.models.segmenter import Segmenter
from jax_uda.models.weights import Report, load_torchvision, torchvision_names


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
  loaded, report = load_torchvision(save(file, arrays), variables)
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
  loaded, _ = load_torchvision(save(file, arrays), variables)
  assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {jnp.dtype(jnp.float32)}
  kernel = loaded["params"]["backbone"]["conv1"]["kernel"]
  np.testing.assert_array_equal(kernel, arrays["conv1.weight"].transpose(2, 3, 1, 0).astype(np.float32))


def test_layer4_may_be_left_over(arrays, file):
  _, report = load_torchvision(save(file, arrays), segmenter_variables(num_stages=3))
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
    load_torchvision(path, variables)
  assert_one_line(
    error, path,
    "2 missing from the file: bn1.running_mean, layer4.1.conv2.weight;",
    "2 of another shape: layer2.0.conv1.weight (file (8, 5, 3, 3), network (8, 4, 3, 3)), "
    "layer3.0.bn1.bias (file (16, 1), network (16,));",
    "1 unknown: layer1.2.conv1.weight;",
    "allow a partial import",
  )  # fmt: skip
  loaded, report = load_torchvision(path, variables, partial=True)
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


def test_a_long_list_of_names_is_cut_with_its_count(variables, arrays, file):
  only = {name: arrays[name] for name in ("conv1.weight", "bn1.bias")}
  with pytest.raises(UserError) as error:
    load_torchvision(save(file, only), variables)
  assert_one_line(error, "98 missing from the file: bn1.running_mean, ", " and 78 more;")
  assert len(str(error.value)) < 1000


@pytest.mark.parametrize("partial", [False, True])
def test_nothing_that_fits_is_always_an_error(partial, variables, arrays, file):
  foreign = {f"module.{name}": x for name, x in arrays.items()}
  with pytest.raises(UserError) as error:
    load_torchvision(save(file, foreign), variables, partial)
  assert_one_line(error, str(file), "nothing")
  with pytest.raises(UserError, match="nothing"):
    load_torchvision(save(file, arrays), segmenter_variables("resnet38"), partial)


@pytest.mark.parametrize("content", [b"", b"\x07", bytes(range(256)) * 40, b"\xff" * 64, b"{}", "cut", "header only"])
@pytest.mark.parametrize("partial", [False, True])
def test_bad_files_are_errors_in_one_line(content, partial, variables, arrays, file):
  if isinstance(content, str):
    whole = safetensors.numpy.save({name: np.ascontiguousarray(x) for name, x in arrays.items()})
    content = {"cut": whole[:-100], "header only": whole[:400]}[content]
  file.write_bytes(content)
  with pytest.raises(UserError) as error:
    load_torchvision(str(file), variables, partial)
  assert_one_line(error, str(file), "damaged")


def test_paths_that_are_no_files_are_errors_in_one_line(variables, tmp_path):
  (tmp_path / "folder.safetensors").mkdir()
  for name, part in (("absent.safetensors", "No such file"), ("folder.safetensors", "directory")):
    with pytest.raises(UserError) as error:
      load_torchvision(str(tmp_path / name), variables)
    assert_one_line(error, name, part, "cannot read")


@pytest.mark.parametrize("name", ["resnet18.pth", "resnet18", "resnet18.safetensors.gz"])
def test_other_formats_are_never_opened(name, variables, tmp_path):
  (tmp_path / name).write_bytes(b"\x80\x04.")
  with pytest.raises(UserError) as error:
    load_torchvision(str(tmp_path / name), variables)
  assert_one_line(error, name, "not a .safetensors file")


def test_number_types_that_numpy_lacks_are_an_error(variables, file):
  header = b'{"conv1.weight":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
  file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
  with pytest.raises(UserError) as error:
    load_torchvision(str(file), variables)
  assert_one_line(error, "BF16", "float32")
