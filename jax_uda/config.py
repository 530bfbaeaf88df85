"""Config files: Python with `get_config() -> ConfigDict`, and fields set on the command line."""

import ast
import contextlib
import difflib
import inspect
import math
import os
import runpy
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from configs import default
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
  path = f"{name}.py" if colon else file
  advice = f"those that come with jax_uda are {', '.join(known_configs())}"
  with user_file("--config", path, advice, colon and f":{reading}") as names:
    if "get_config" not in names:
      raise UserError("it has no get_config(); choose another file, or write one as configs/demo.py has it")
    if colon and not inspect.signature(names["get_config"]).parameters:
      raise UserError(f"it takes nothing after a colon; leave :{reading} out")
    config = ml_collections.ConfigDict(names["get_config"](*([reading] if colon else [])))
    if "data_dir" not in config:
      raise UserError("its get_config() gives no config; let it return what a function of configs/default.py made")
  set_fields(config, overrides)
  if not config.data_dir:
    config.data_dir = os.environ.get("JAX_UDA_DATA", "data")
  return config


@contextlib.contextmanager
def user_file(flag: str, file: str, advice: str, words: str = "") -> Iterator[dict[str, Any]]:
  """Runs a Python file that a flag names, for a block that uses what it defines.

  Args:
    flag: with its dashes.
    file: its path; a path such as configs/demo.py that does not exist here is looked for beside the installed package.
    advice: what to do where there is none.
    words: what stood behind the path.

  Yields:
    What the file defines, by name.

  Raises:
    UserError: no such file, or it breaks, at the top or as the block calls it; also one of the block, with the file's name.
  """
  path = Path(file)
  if not path.is_file() and path.parts[:1] == ("configs",):
    path = Path(__file__).parent.parent / path
  if not path.is_file():
    raise UserError(f"{flag}: there is no file {file}; {advice}")
  try:
    yield runpy.run_path(str(path))
  except UserError as error:
    raise UserError(f"{flag}: {file}{words}: {error}") from error
  except Exception as error:  # whatever a user's file may raise
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    where = f" ({path}:{lines[-1]})" if lines else ""  # a syntax error says itself where it is
    raise UserError(f"{flag}: {file}{words}: {type(error).__name__}: {error}{where}") from error


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


def default_fields(method: str) -> dict[str, Any]:
  """The fields of a method as they are by default; those of all methods, where `configs/default.py` has none for it."""
  return getattr(default, method, default.general)().to_dict()


def changed_fields(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
  """The fields in which two configs differ, {"part.field": (old, new)}; "absent" where one of them lacks it."""
  found = {}
  for name in sorted({*old, *new}):
    before, after = old.get(name, "absent"), new.get(name, "absent")
    if isinstance(before, Mapping) and isinstance(after, Mapping):
      found.update(changed_fields(before, after, f"{prefix}{name}."))
    elif before != after:
      found[f"{prefix}{name}"] = before, after
  return found


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """The fields in which two configs differ, as `field: old -> new`."""
  return [f"{name}: {before} -> {after}" for name, (before, after) in changed_fields(old, new).items()]


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
  name: bounds
  for bounds, names in {
    (1, math.inf): "batch eval_batch log_every checkpoint_every crop size canvas head_channels num_stages branches "
    "pool_stride",
    (0, math.inf): "seed steps epochs num height width pictures threads max_bad_images keep_gib spill_gib rate power "
    "weight weight_decay bias_multiplier eta head_dilation brightness contrast saturation blur_sigma statistics_steps "
    "patches hard_least classes prior_kernel clip epoch_steps class_weight",
    (1e-9, math.inf): "rate_divisor multiplier head_multiplier decoder_multiplier prior_sigma gamma_epochs drop_epochs",
    (1e-3, math.inf): "scale",
    (0, 1): "portion portion_step portion_max source_share source_share_step source_share_max momentum blur jitter "
    "probability rare relative_size gamma gamma_end",
    (0, 0.99): "vote_dropout",
    (1e-9, 1): "target_share hard_below",
    (0, 0.5): "hue",
  }.items()
  for name in names.split()
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
