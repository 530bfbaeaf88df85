"""A run's network as one file that needs neither this package nor a config: StableHLO, by `jax.export`.

    python -m jax_uda.export --workdir DIR --out model.stablehlo
"""

import sys
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from etils import epath
from jax import export as jax_export

from jax_uda import commands, evaluate, finished, inference, report
from jax_uda.data.label_spaces import LabelSpace
from jax_uda.data.transforms import normalise
from jax_uda.errors import UserError
from jax_uda.experiment import reopen
from jax_uda.state import State

PLATFORMS = ("cpu", "cuda", "tpu")
MULTIPLE = 32  # pixels: no network here has a larger stride, so each of its maps of such an image is whole
HELP = """\
Writes the network of a run as one file that runs without this package: StableHLO, read by jax.export.deserialize, for CPU,
GPU and TPU. The function takes images uint8 [B, H, W, 3], RGB, and gives train ids uint8 [B, H, W]. B is free; so are H, W,
multiples of 32, unless --size fixes them. Beside it, FILE.json says which classes and colours the ids are, and at what size
the network has seen images.

  python -m jax_uda.export --workdir runs/demo --out demo.stablehlo
"""


def segment(predict: Callable, state: State, images: jax.Array) -> jax.Array:
  """Train ids uint8 [B, H, W] of images uint8 [B, H, W, 3], H and W multiples of `MULTIPLE` and free when traced."""
  small = jax.eval_shape(predict, state, jax.ShapeDtypeStruct((1, MULTIPLE, MULTIPLE, 3), jnp.float32))
  cell = (inference.stride((MULTIPLE, MULTIPLE), small.shape[1:3]),) * 2
  low = inference.log_probabilities(predict(state, normalise(images)))
  scores = jax.vmap(lambda x: inference.upsample(jnp.exp(x.astype(jnp.float32)), images.shape[1:3], cell))(low)
  return inference.most_likely(scores)


def exported(predict: Callable, state: State, size: tuple[int, int] | None) -> bytes:
  """`segment`, the state inside it, as a file's content; for images of one size, or of any."""
  height, width = size or (f"{MULTIPLE}*h", f"{MULTIPLE}*w")
  shape = jax_export.symbolic_shape(f"b, {height}, {width}, 3")
  function = jax.jit(lambda images: segment(predict, state, images))
  return bytes(jax_export.export(function, platforms=PLATFORMS)(jax.ShapeDtypeStruct(shape, jnp.uint8)).serialize())


def export(
  workdir: epath.PathLike, out: epath.PathLike, stage: str = "", size: tuple[int, int] | None = None
) -> None:
  """Writes the network of a run as `out`, and what its ids mean as `out`.json.

  Args:
    workdir: the run's.
    out: the file.
    stage: at whose end; empty: the last one finished.
    size: (H, W) of the images; None: any multiples of `MULTIPLE`.

  Raises:
    UserError: there is no such run or stage, or the size is no multiple of `MULTIPLE`.
  """
  if size and any(n % MULTIPLE for n in size):
    raise UserError(f"--size: {size[0]}x{size[1]} will not do; give multiples of {MULTIPLE}")
  workdir, out = epath.Path(workdir), epath.Path(out)
  experiment = reopen(*finished.read_config(workdir), scored=False)
  name, place = finished.find_stage(workdir, stage)
  state = jax.device_get(finished.restore(workdir, experiment, place))
  report.write_atomically(out, exported(experiment.predict, state, size))
  space: LabelSpace = experiment.space
  meaning = {"classes": space.classes, "colors": space.colors, "stage": name, "size": size}
  report.write_json(epath.Path(f"{out}.json"), meaning | {"canvas": tuple(experiment.config.canvas)})


def main(argv: Sequence[str] | None = None) -> int:
  """Exports, and returns the exit status."""
  parser = commands.parser("export", HELP)
  parser.add_argument("--workdir", required=True, metavar="DIR", help="of the run")
  parser.add_argument("--out", required=True, metavar="FILE", help="what is written")
  parser.add_argument("--stage", default="", metavar="NAME", help="at whose end; without it the last one")
  parser.add_argument("--size", metavar="HEIGHTxWIDTH", help="of the images; without it any multiples of 32")
  flags, _ = commands.parse(parser, argv)

  def action() -> None:
    size = evaluate.parse_size(flags.size, "--size") if flags.size else None
    export(flags.workdir, flags.out, flags.stage, size)
    print(f"{flags.out} holds the network, {flags.out}.json what its ids mean")

  return commands.exit_status(action, flags, goes_on=False)


if __name__ == "__main__":
  sys.exit(main())
