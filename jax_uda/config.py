"""Config files: Python with `get_config() -> ConfigDict`, and fields set on the command line."""

import ast
import difflib
import importlib.util
import inspect
import math
import os
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from jax_uda.errors import UserError


def load_config(file: str, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
  """Reads a config file and sets fields in what it gives.

  Args:
    file: its path; a path such as configs/demo.py that does not exist here is looked for beside the installed package.
      What follows a colon, as in configs/cbst_gta.py:code, is handed to `get_config`.
    overrides: `field.subfield=value` each.

  Returns:
    The config, locked, with `data_dir` filled in.

  Raises:
    UserError: no such file, it breaks or does not know what follows the colon, or a field or value that does not fit.
  """
  name, colon, reading = file.partition(".py:")
  path = Path(f"{name}.py" if colon else file)
  installed = Path(__file__).parent.parent / path
  if not path.is_file():
    if not (installed.is_file() and path.parts[:1] == ("configs",)):
      raise UserError(f"--config: there is no file {path}; those that come with jax_uda are {', '.join(known_configs())}")
    path = installed
  spec = importlib.util.spec_from_file_location(path.stem, path)
  try:
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if colon and not inspect.signature(module.get_config).parameters:
      raise UserError(f"it takes nothing after a colon; leave :{reading} out")
    config = ml_collections.ConfigDict(module.get_config(*([reading] if colon else [])))
  except UserError as error:
    raise UserError(f"--config: {file}: {error}") from error
  except Exception as error:  # whatever a user's file may raise
    last = traceback.extract_tb(error.__traceback__)[-1]
    raise UserError(f"--config: {file}: {type(error).__name__}: {error} ({last.filename}:{last.lineno})") from error
  set_fields(config, overrides)
  if not config.data_dir:
    config.data_dir = os.environ.get("JAX_UDA_DATA", "data")
  return config


def stored_config(content: Mapping[str, Any], later: Mapping[str, Any]) -> ml_collections.ConfigDict:
  """A config out of config.json, where JSON made lists of its tuples; fields that it lacks are taken from `later`."""

  def tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
      return {name: tuples(item) for name, item in value.items()}
    return tuple(value) if isinstance(value, list) else value

  def completed(content: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    both = {name: completed(content[name], value) for name, value in later.items()
            if isinstance(value, Mapping) and isinstance(content.get(name), Mapping)}
    return {**later, **content, **both}

  return ml_collections.ConfigDict(completed(tuples(content), later))


def set_fields(config: ml_collections.ConfigDict, overrides: Sequence[str]) -> None:
  """Sets fields, `field.subfield=value` each, and locks the config; raises `UserError` for a field or value not offered."""
  config.lock()
  for override in overrides:
    _set(config, override)
  _check_values(config)


def known_configs() -> list[str]:
  """The configs that come with jax_uda, as paths for --config."""
  folder = Path(__file__).parent.parent / "configs"
  return sorted(f"configs/{path.name}" for path in folder.glob("*.py") if path.stem not in ("__init__", "default"))


def _set(config: ml_collections.ConfigDict, override: str) -> None:
  """Sets one field, its value read as the type that the field has."""
  field, equals, text = override.partition("=")
  if not equals:
    raise UserError(f"--config.{field}: write --config.{field}=VALUE, in one word")
  fields = dict(_fields(config))
  if field not in fields:
    near = difflib.get_close_matches(field, fields, n=1, cutoff=0.5)
    raise UserError(f"--config.{field}: there is no such field{f'; did you mean {near[0]}?' if near else ''}")
  old = fields[field]
  value = _parse(text, old)
  if value is None:
    raise UserError(f"--config.{field}: {text!r} will not do; it takes what looks like {old!r}")
  *parents, name = field.split(".")
  for parent in parents:
    config = config[parent]
  config[name] = value


# What the last part of a field's name says about its value: at least this, at most that.
BOUNDS = {
  **dict.fromkeys(("batch", "eval_batch", "log_every", "checkpoint_every"), (1, math.inf)),
  **dict.fromkeys(("crop", "size", "canvas"), (1, math.inf)),
  **dict.fromkeys(("seed", "steps", "epochs", "num", "pictures", "threads", "rate", "power", "keep_gib"), (0, math.inf)),
  **dict.fromkeys(("height", "width", "statistics_steps", "weight_decay", "weight", "eta", "head_dilation"), (0, math.inf)),
  **dict.fromkeys(("head_channels", "num_stages"), (1, math.inf)),
  **dict.fromkeys(("brightness", "contrast", "saturation", "blur_sigma", "max_bad_images"), (0, math.inf)),
  **dict.fromkeys(("hue",), (0, 0.5)),
  **dict.fromkeys(("scale",), (1e-3, math.inf)),
  **dict.fromkeys(("rate_divisor", "multiplier", "head_multiplier"), (1e-9, math.inf)),
  **dict.fromkeys(("portion", "portion_step", "portion_max", "momentum", "blur", "jitter"), (0, 1)),
  **dict.fromkeys(("source_share", "source_share_step", "source_share_max"), (0, 1)),
  **dict.fromkeys(("patches", "hard_least", "classes", "prior_kernel", "bias_multiplier", "spill_gib"), (0, math.inf)),
  **dict.fromkeys(("target_share", "hard_below"), (1e-9, 1)),
  **dict.fromkeys(("probability", "rare", "relative_size"), (0, 1)),
  **dict.fromkeys(("prior_sigma",), (1e-9, math.inf)),
  **dict.fromkeys(("pool_stride",), (1, math.inf)),
}


def _check_values(config: ml_collections.ConfigDict) -> None:
  """Refuses numbers that could only fail later."""
  for field, value in _fields(config):
    least, most = BOUNDS.get(field.rpartition(".")[2], (-math.inf, math.inf))
    for number in value if isinstance(value, tuple) else (value,):
      if isinstance(number, int | float) and not least <= number <= most:
        wanted = f"at least {least}" if most == math.inf else f"in {least}..{most}"
        raise UserError(f"config.{field} is {value}; it has to be {wanted}")


def _fields(config: ml_collections.ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
  for name, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      yield from _fields(value, f"{prefix}{name}.")
    else:
      yield f"{prefix}{name}", value


def _parse(text: str, like: Any) -> Any:
  """`text` as a value of the type of `like`; None if it is none."""
  if isinstance(like, str):
    return text
  if isinstance(like, bool):
    return {"true": True, "1": True, "false": False, "0": False}.get(text.lower())
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return None
  if isinstance(like, tuple):
    value = tuple(value) if isinstance(value, tuple | list) else (value,)
    fits = len(value) == len(like) and all(isinstance(v, int | float) for v in value)
    return tuple(type(old)(v) for old, v in zip(like, value, strict=True)) if fits else None
  if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
    return None
  if isinstance(like, int) and value != int(value):
    return None
  return type(like)(value)
