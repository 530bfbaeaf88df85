"""A run's network for other programs: the whole of it as StableHLO, or its backbone's weights.

    python -m jax_uda.export --workdir DIR --out model.stablehlo
"""

import sys
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import safetensors.numpy
from etils import epath
from jax import export as jax_export

from jax_uda import commands, evaluate, files, finished, inference
from jax_uda.data import transforms
from jax_uda.errors import UserError
from jax_uda.experiment import reopen
from jax_uda.models import weights
from jax_uda.models.segmenter import STRIDE
from jax_uda.state import State

PLATFORMS = ("cpu", "cuda", "tpu")
NETWORK, WEIGHTS = ".stablehlo", ".safetensors"
HELP = f"""\
Writes the network of a run for other programs, in the format that the name of --out tells.

the three commonest commands:
  python -m jax_uda.export --workdir runs/demo --out demo{NETWORK}
  python -m jax_uda.export --workdir runs/demo --out demo{NETWORK} --size 512x1024
  python -m jax_uda.export --workdir runs/mine --out encoder{WEIGHTS}

FILE{NETWORK}: the whole network, for CPU, GPU and TPU. jax.export.deserialize reads it without this package; with it,
python -m jax_uda.predict --model does. The function takes images uint8 [B, H, W, 3], RGB, and how much of each is image,
int32 [B, 2], what lies below and to the right of that being padding. It gives train ids uint8 [B, H, W], and
log-probabilities float16 [B, h, w, C], as small as the network has them. B is free; so are H and W, unless --size fixes
them. FILE{NETWORK}.json says which classes and colours the ids are, and the canvas, at whose size the network has learnt.

FILE{WEIGHTS}: the weights of the backbone (ResNet-18, -50, -101, VGG16) by torchvision's names, for PyTorch; its
metadata say what network it is.
"""


def segment(predict: Callable, state: State, images: jax.Array, sizes: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Train ids uint8 [B, H, W] and low-resolution log-probabilities float16 [B, h, w, C].

  Args:
    predict: a method's.
    images: uint8 [B, H, W, 3].
    sizes: int32 [B, 2], the pixels that are image and not padding.
  """
  # Known from a small image, as H and W may be symbols.
  small = jax.eval_shape(predict, state, jax.ShapeDtypeStruct((1, STRIDE, STRIDE, 3), jnp.float32))
  cell = (inference.stride((STRIDE, STRIDE), small.shape[1:3]),) * 2
  low = inference.low_outputs(predict)(state, images, sizes)
  scores = jax.vmap(lambda x: inference.upsample(jnp.exp(x.astype(jnp.float32)), images.shape[1:3], cell))(low)
  return inference.most_likely(scores), low


def exported(predict: Callable, state: State, size: tuple[int, int] | None) -> bytes:
  """`segment`, the state inside it, as a file's content; for images of one size, or of any."""
  height, width = size or ("h", "w")
  shape = jax_export.symbolic_shape(f"b, {height}, {width}, 3")
  images, sizes = jax.ShapeDtypeStruct(shape, jnp.uint8), jax.ShapeDtypeStruct((shape[0], 2), jnp.int32)
  function = jax.jit(lambda images, sizes: segment(predict, state, images, sizes))
  return bytes(jax_export.export(function, platforms=PLATFORMS)(images, sizes).serialize())


def export(
  workdir: epath.PathLike, out: epath.PathLike, stage: str = "", size: tuple[int, int] | None = None
) -> None:
  """Writes the network of a run as `out` and what its ids mean as `out`.json; or, as .safetensors, its backbone's weights.

  Args:
    workdir: the run's.
    out: the file, .stablehlo or .safetensors.
    stage: at whose end; empty: the last one finished.
    size: (H, W) of the images; None: any.

  Raises:
    UserError: there is no such run, stage or format, or its backbone has no names in torchvision.
  """
  workdir, out = epath.Path(workdir), epath.Path(out)
  if out.suffix not in (NETWORK, WEIGHTS) or out.is_dir():
    raise UserError(f"--out: {out} will not do; name a file {NETWORK} (the network) or {WEIGHTS} (its backbone's weights)")
  if size and out.suffix == WEIGHTS:
    raise UserError("--size: weights have none; leave it out")
  experiment = reopen(*finished.read_config(workdir), scored=False)
  name, place = finished.find_stage(workdir, stage)
  state = jax.device_get(finished.restore(workdir, experiment, place))
  if out.suffix == WEIGHTS:
    arrays = weights.torchvision_arrays(state.networks["segmenter"].variables)
    about = {f"network.{field}": str(value) for field, value in experiment.config.network.items()}
    images = f"RGB in 0..1, less {transforms.IMAGENET_MEAN}, divided by {transforms.IMAGENET_STD}"
    files.write_atomically(out, safetensors.numpy.save(arrays, {**about, "images": images}))
    return
  files.write_atomically(out, exported(experiment.predict, state, size))
  space = experiment.space
  meaning = {"name": space.name, "classes": space.classes, "colors": space.colors}
  meaning |= {"stage": name, "size": size, "canvas": tuple(experiment.config.canvas)}
  files.write_json(epath.Path(f"{out}.json"), meaning)


def main(argv: Sequence[str] | None = None) -> int:
  """Exports, and returns the exit status."""
  parser = commands.parser("export", HELP)
  parser.add_argument("--workdir", required=True, metavar="DIR", help="of the run")
  parser.add_argument("--out", required=True, metavar="FILE", help=f"what is written, {NETWORK} or {WEIGHTS}")
  parser.add_argument("--stage", default="", metavar="NAME", help=evaluate.STAGE_HELP)
  parser.add_argument("--size", metavar="HEIGHTxWIDTH", help="of the images; without it any")
  flags, overrides = commands.parse(parser, argv)

  def action() -> None:
    finished.check_settable(overrides, ())
    export(flags.workdir, flags.out, flags.stage, evaluate.parse_size(flags.size, "--size") if flags.size else None)
    meaning = f", and {flags.out}.json says what its ids mean" if flags.out.endswith(NETWORK) else ""
    print(f"{flags.out} is written{meaning}")

  return commands.exit_status(action, flags, goes_on=False)


if __name__ == "__main__":
  sys.exit(main())
