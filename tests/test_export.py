"""Networks as files that run without this package."""

import json
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest
from jax import export as jax_export

from jax_uda import export, inference, predict
from jax_uda.data.label_spaces import CITYSCAPES19
from tests.test_predict import picture, workdir

__all__ = ["workdir"]  # a fixture

ALONE = """
import sys
import numpy as np
from jax import export
function = export.deserialize(open(sys.argv[1], "rb").read())
np.save(sys.argv[3], function.call(np.load(sys.argv[2])))
assert not [name for name in sys.modules if name.startswith(("jax_uda", "flax"))]
"""


@pytest.mark.parametrize("size", [None, (32, 64)])
def test_the_file_gives_the_labels_that_predict_gives(workdir, tmp_path, size):
  images = np.stack([picture(32, 64, seed) for seed in range(3)])
  (tmp_path / "images").mkdir()
  for i, image in enumerate(images):
    cv2.imwrite(str(tmp_path / f"images/{i}.png"), image[..., ::-1])
  predict.predict(workdir, [str(tmp_path / "images")], tmp_path / "out")
  expected = [cv2.imread(str(tmp_path / f"out/labels/{i}.png"), -1) for i in range(3)]
  flags = ["--workdir", str(workdir), "--out", str(tmp_path / "model")]
  assert export.main([*flags, *(["--size", "32x64"] if size else [])]) == 0
  np.save(tmp_path / "images.npy", images)
  paths = [str(tmp_path / name) for name in ("model", "images.npy", "labels.npy")]
  subprocess.run([sys.executable, "-c", ALONE, *paths], check=True, cwd=tmp_path)
  found = np.load(tmp_path / "labels.npy")
  assert found.dtype == np.uint8
  np.testing.assert_array_equal(found, expected)
  meaning = json.loads((tmp_path / "model.json").read_text())
  assert meaning["classes"] == list(CITYSCAPES19.classes) and meaning["colors"][0] == [128, 64, 128]
  assert meaning["canvas"] == [32, 64] and meaning["size"] == (list(size) if size else None)


def test_labels_are_those_of_the_whole_image_at_its_own_size():
  """Of a made-up network whose logits hang on the colour of each cell of 8 pixels."""

  def network(state, images):
    batch, height, width, _ = images.shape
    return images.reshape(batch, height // 8, 8, width // 8, 8, 3).mean((2, 4)) @ state

  state = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
  function = jax_export.deserialize(bytearray(export.exported(network, state, None)))
  for size in ((32, 64), (96, 32)):
    image = picture(*size)
    batch = {"image": np.stack(4 * [image]), "size": np.int32(4 * [size])}  # one a device
    views = inference.make_views(network, state, batch, flip=False)
    expected = inference.predicted_labels(jax.tree.map(lambda x: x[0], views), size)
    assert len(np.unique(expected)) > 3
    np.testing.assert_array_equal(function.call(image[None])[0], expected)


def test_any_multiples_of_32_in_batches_of_any_size(workdir, tmp_path):
  export.export(workdir, tmp_path / "model")
  function = jax_export.deserialize((tmp_path / "model").read_bytes())
  assert function.platforms == ("cpu", "cuda", "tpu")
  for shape in ((1, 64, 32), (2, 96, 160)):
    assert function.call(np.zeros((*shape, 3), np.uint8)).shape == shape
  with pytest.raises(ValueError):
    function.call(np.zeros((1, 33, 64, 3), np.uint8))


def test_what_a_person_can_mend_is_one_line(workdir, tmp_path, capsys):
  for flags, said in (
    (["--workdir", str(tmp_path)], "holds no run"),
    (["--workdir", str(workdir), "--size", "30x64"], "--size: 30x64 will not do; give multiples of 32"),
    (["--workdir", str(workdir), "--size", "64"], "--size: '64' will not do"),
    (["--workdir", str(workdir), "--stage", "end"], "no checkpoint of the end of 'end'"),
  ):
    assert export.main([*flags, "--out", str(tmp_path / "model")]) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith("error: ") and said in line and "\n" not in line
  assert not (tmp_path / "model").exists()
