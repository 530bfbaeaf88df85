"""Networks for other programs: as files that run without this package, and as weights."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from jax import export as jax_export

from jax_uda import export, inference, trained
from jax_uda.data.label_spaces import CITYSCAPES19
from jax_uda.experiment import reopen
from jax_uda.models import weights
from tests.tiny import picture, tiny


@pytest.mark.parametrize("size", [None, (32, 64), (30, 44)])
def test_the_file_gives_the_labels_that_the_run_predicts(size, workdir, exported, tmp_path):
  path = exported
  if size:
    path = tmp_path / "model.stablehlo"
    assert export.main(["--workdir", str(workdir), "--out", str(path), "--size", f"{size[0]}x{size[1]}"]) == 0
  height, width = size or (32, 64)
  images = np.stack([picture(height, width, seed) for seed in range(3)])
  function = jax_export.deserialize(bytearray(path.read_bytes()))
  labels, low = function.call(images, np.int32(3 * [(height, width)]))
  assert labels.dtype == np.uint8 and labels.shape == images.shape[:3]
  assert low.dtype == np.float16 and low.shape == (3, -(-height // 8), -(-width // 8), 19)
  network = trained.load(workdir)
  at_once = dataclasses.replace(network, canvas=(height, width))
  np.testing.assert_array_equal(labels, [at_once.predict(image) for image in images])
  meaning = json.loads((path.parent / f"{path.name}.json").read_text())
  assert meaning["classes"] == list(CITYSCAPES19.classes) and meaning["colors"][0] == [128, 64, 128]
  assert meaning["canvas"] == [32, 64] and meaning["size"] == (list(size) if size else None)
  again = trained.load(path)
  assert (again.space.classes, again.space.colors) == (network.space.classes, network.space.colors)
  np.testing.assert_array_equal(again.predict(images[0]), (at_once if size else network).predict(images[0]))


def test_labels_are_those_of_the_image_without_its_padding():
  """Of a made-up network whose logits hang on the colour of each cell of 8 pixels."""

  def network(state, images):
    batch, height, width, _ = images.shape
    return images.reshape(batch, height // 8, 8, width // 8, 8, 3).mean((2, 4)) @ state

  state = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
  function = jax_export.deserialize(bytearray(export.exported(network, state, None)))
  for size, content in (((32, 64), (32, 64)), ((96, 32), (70, 19))):
    image = picture(*size)
    sizes = np.int32(4 * [content])  # one a device
    batch = {"image": np.stack(4 * [image]), "size": sizes}
    views = inference.make_views(inference.low_outputs(network), state, batch, flip=False)
    expected = inference.predicted_labels(jax.tree.map(lambda x: x[0], views), content)
    assert len(np.unique(expected)) > 3
    labels, low = function.call(image[None], sizes[:1])
    np.testing.assert_array_equal(labels[0, : content[0], : content[1]], expected)
    np.testing.assert_array_equal(low[0], views["low"][0])


@pytest.mark.parametrize("size", [None, (36, 60)])
def test_a_canvas_of_any_size(size, workdir, tmp_path):
  shutil.copytree(workdir, tmp_path / "run")
  config = json.loads((workdir / "config.json").read_text())
  (tmp_path / "run/config.json").write_text(json.dumps({**config, "canvas": [36, 60]}))
  export.export(tmp_path / "run", tmp_path / "model.stablehlo", size=size)
  run, file = trained.load(tmp_path / "run"), trained.load(tmp_path / "model.stablehlo")
  assert run.canvas == file.canvas == (36, 60)
  for image in (picture(36, 60), picture(70, 31)):
    np.testing.assert_array_equal(*(network.predict(image) for network in (file, run)))


def test_any_size_in_batches_of_any_size(exported):
  function = jax_export.deserialize(bytearray(exported.read_bytes()))
  assert function.platforms == ("cpu", "cuda", "tpu")
  for shape in ((1, 64, 32), (2, 97, 161), (1, 1, 7)):
    labels, _ = function.call(np.zeros((*shape, 3), np.uint8), np.int32(shape[0] * [shape[1:]]))
    assert labels.shape == shape


@pytest.mark.parametrize(
  ("method", "backbone"),
  [("self_training", "fcn8s_vgg16"), ("mlsl", "resnet38"), ("curriculum", "resnet50"), ("adversarial", "vgg16")],
)
def test_every_kind_of_network_goes_out_for_any_size(method, backbone):
  config = tiny(method)
  config.network.update({"backbone": backbone, "num_stages": 4})
  opened = reopen(config, CITYSCAPES19, scored=False)
  shapes = jax.eval_shape(lambda: opened.method.init(opened.config, jax.random.key(0)))
  state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  function = jax_export.deserialize(bytearray(export.exported(opened.predict, state, None)))
  for height, width in ((96, 160), (97, 35)):
    images, sizes = jax.ShapeDtypeStruct((2, height, width, 3), np.uint8), jax.ShapeDtypeStruct((2, 2), np.int32)
    labels, low = jax.eval_shape(function.call, images, sizes)
    logits = jax.eval_shape(opened.predict, state, jax.ShapeDtypeStruct(images.shape, np.float32))
    assert labels.shape == (2, height, width) and low.shape == logits.shape


def test_weights_go_out_by_torchvisions_names_and_come_back(workdir, tmp_path):
  assert export.main(["--workdir", str(workdir), "--out", str(tmp_path / "encoder.safetensors")]) == 0
  assert not (tmp_path / "encoder.safetensors.json").exists()
  arrays = safetensors.numpy.load_file(tmp_path / "encoder.safetensors")
  variables = jax.device_get(trained.load(workdir).state.networks["segmenter"].variables)
  with safetensors.safe_open(tmp_path / "encoder.safetensors", "np") as file:
    assert file.metadata()["network.backbone"] == "resnet10" and "0.485" in file.metadata()["images"]
  backbone = variables["params"]["backbone"]
  np.testing.assert_array_equal(arrays["conv1.weight"], backbone["conv1"]["kernel"].transpose(3, 2, 0, 1))
  zeros = jax.tree.map(np.zeros_like, variables)
  back, report = weights.load(str(tmp_path / "encoder.safetensors"), zeros)
  assert set(report.loaded) == set(arrays) and not report.unused
  for part in ("params", "batch_stats"):
    jax.tree.map(np.testing.assert_array_equal, back[part]["backbone"], variables[part]["backbone"])


def test_what_a_person_can_mend_is_one_line(workdir, tmp_path, capsys):
  for flags, said in (
    (["--workdir", str(tmp_path)], "holds no run"),
    (["--workdir", str(workdir), "--size", "64"], "--size: '64' will not do"),
    (["--workdir", str(workdir), "--stage", "end"], "no checkpoint of the end of 'end'"),
    (["--workdir", str(workdir), "--config.seed=1"], "--config.seed cannot be set here; leave it out"),
    (["--workdir", str(workdir), "--size", "64x64", "--out", str(tmp_path / "a.safetensors")], "--size: weights have none"),
    (["--workdir", str(workdir), "--out", str(tmp_path / "a.pth")], "a.pth will not do; name a file .stablehlo"),
  ):
    assert export.main(["--out", str(tmp_path / "model.stablehlo"), *flags]) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith("error: ") and said in line and "\n" not in line
  assert not list(tmp_path.iterdir())
