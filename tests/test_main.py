"""The command line: what goes wrong is one line that says what, where and what to do, with exit status 2."""

import json

import pytest

from configs import default
from jax_uda import commands, cross_validate, evaluate, ladder, main
from jax_uda.config import BOUNDS, _fields, known_configs, load_config
from jax_uda.errors import UserError


def failure(capsys, *flags: str) -> str:
  """The one line that a user sees."""
  assert main.main(flags) == 2
  shown = capsys.readouterr().err.strip()
  assert shown.startswith("error: ") and "\n" not in shown
  return shown


def test_config_that_is_not_there(capsys, tmp_path):
  line = failure(capsys, "--config=configs/nothing.py", f"--workdir={tmp_path}")
  assert "configs/nothing.py" in line and "configs/mlsl_gta.py" in line


def test_misspelt_field_is_told_the_right_one(capsys, tmp_path):
  line = failure(capsys, "--config=configs/demo.py", "--config.sisc.patchs=3", f"--workdir={tmp_path}")
  assert "sisc.patchs" in line and "did you mean sisc.patches?" in line


@pytest.mark.parametrize(("flag", "said"), [
  ("--config.seed=-1", "seed is -1; it has to be at least 0"), ("--config.log_every=0", "log_every is 0"),
  ("--config.labels.portion_max=1.5", "it has to be in 0..1"), ("--config.sisc.batch=0", "at least 1"),
  ("--config.seed=1e400", "seed: '1e400'"), ("--config.canvas=(0,64)", "canvas is (0, 64)"),
  ("--config.seed=x", "seed: 'x'"), ("--config.rounds.num=1.5", "rounds.num: '1.5'"),
  ("--config.canvas=(1,2,3)", "canvas: '(1,2,3)'"), ("--config.weights_partial=maybe", "weights_partial: 'maybe'"),
  ("--config.seed", "write --config.seed=VALUE"), ("--config.sisc=3", "there is no such field"),
  ("--config.eval_scales=1,x", "config.eval_scales: '1,x' will not do"),
])  # fmt: skip
def test_values_that_do_not_fit(capsys, tmp_path, flag, said):
  assert said in failure(capsys, "--config=configs/demo.py", flag, f"--workdir={tmp_path}")


def test_unknown_method(capsys, tmp_path):
  line = failure(capsys, "--config=configs/demo.py", "--config.method=mslm", f"--workdir={tmp_path}")
  assert "'mslm'" in line and "mlsl" in line
  assert not (tmp_path / "config.json").exists()


def test_missing_data(capsys, tmp_path):
  line = failure(capsys, "--config=configs/mlsl_gta.py", f"--config.data_dir={tmp_path}", f"--workdir={tmp_path}/run")
  assert str(tmp_path / "GTA5") in line and "download" in line and line.startswith("error: config.source: ")


def test_a_file_in_place_of_the_data(capsys, tmp_path):
  (tmp_path / "GTA5").write_text("not a folder")
  line = failure(capsys, "--config=configs/mlsl_gta.py", f"--config.data_dir={tmp_path}", f"--workdir={tmp_path}/run")
  assert str(tmp_path / "GTA5") in line


def test_a_file_in_place_of_the_workdir(capsys, tmp_path):
  (tmp_path / "run").write_text("not a folder")
  assert "name a folder" in failure(capsys, "--config=configs/demo.py", f"--workdir={tmp_path}/run")


def test_weights_of_random_bytes(capsys, tmp_path):
  file = tmp_path / "weights.safetensors"
  file.write_bytes(bytes(range(256)) * 8)
  line = failure(capsys, "--config=tests/tiny_mlsl.py", f"--config.weights={file}", f"--workdir={tmp_path}/run")
  assert str(file) in line
  # The directory is not taken by a config that cannot run: mended, it may be used again.
  assert not (tmp_path / "run/config.json").exists()


def test_config_file_that_breaks(capsys, tmp_path):
  file = tmp_path / "broken.py"
  file.write_text("def get_config():\n  return 1 / 0\n")
  line = failure(capsys, f"--config={file}", f"--workdir={tmp_path}/run")
  assert "ZeroDivisionError" in line and "broken.py:2" in line


@pytest.mark.parametrize(("text", "said"), [
  ("def get_config():\n  return int('x')\n", "invalid literal for int() with base 10: 'x' ("),
  ("from ml_collections import ConfigDict\n\nConfigDict().lock().x = 3\n", "file.py:3)"),  # not where ml_collections raises
  ("def get_config(:\n", "SyntaxError: invalid syntax (file.py, line 1)"),
  ("x = 3\n", "file.py: it has no get_config(); choose another file"),
  ("def get_config():\n  pass\n", "file.py: its get_config() gives no config; let it return"),
])  # fmt: skip
def test_config_files_that_will_not_do(capsys, tmp_path, text, said):
  (tmp_path / "file.py").write_text(text)
  assert said in failure(capsys, f"--config={tmp_path}/file.py", f"--workdir={tmp_path}/run")


def test_the_config_of_all_defaults_is_not_to_be_run(capsys, tmp_path):
  line = failure(capsys, "--config=configs/default.py", f"--workdir={tmp_path}")
  assert "configs/default.py: it has no get_config(); choose another file" in line


def test_every_number_has_bounds_but_that_of_the_classes_which_is_filled_in():
  fields = [*_fields(default.mlsl()), *_fields(default.curriculum())]
  numbers = {field.rpartition(".")[2] for field, value in fields if not isinstance(value, str | bool)}
  assert numbers - BOUNDS.keys() == {"num_classes"} and BOUNDS.keys() <= numbers


def test_help_says_what_the_exit_statuses_are(capsys):
  for command in (main, evaluate, ladder, cross_validate):
    with pytest.raises(SystemExit) as end:
      command.main(["--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0 and shown.endswith(f"{commands.EXITS}\n")
    assert "0 done, 2 something that you can mend" in shown and "75 stopped by SIGTERM, 130 by Ctrl-C" in shown


def test_words_after_a_colon(capsys, tmp_path):
  file = tmp_path / "worded.py"
  file.write_text("from configs import demo\n\ndef get_config(word='x'):\n  config = demo.get_config()\n"
                  "  config.data_dir = word\n  return config\n")
  for words, handed in (("", "x"), (":y", "y"), (":a,b:c.py:d", "a,b:c.py:d")):
    assert load_config(f"{file}{words}").data_dir == handed
  line = failure(capsys, "--config=configs/demo.py:code", f"--workdir={tmp_path}/run")
  assert "configs/demo.py:code: it takes nothing after a colon; leave :code out" in line
  line = failure(capsys, "--config=configs/mlsl_gta.py:cod", f"--workdir={tmp_path}/run")
  assert "configs/mlsl_gta.py:cod: there is no reading 'cod'; after the colon may stand paper, code, sisc" in line
  assert "no file configs/nothing.py;" in failure(capsys, "--config=configs/nothing.py:code", f"--workdir={tmp_path}/run")


def test_batch_that_the_devices_cannot_share(capsys, tmp_path):
  line = failure(capsys, "--config=tests/tiny_mlsl.py", "--config.rounds.batch=6", f"--workdir={tmp_path}/run")
  assert "a batch of 6 does not divide over 4 devices" in line


def test_debug_shows_the_traceback(tmp_path):
  with pytest.raises(UserError):
    main.main(["--config=configs/nothing.py", f"--workdir={tmp_path}", "--debug"])


def test_unknown_flag_and_missing_workdir(capsys):
  for flags in (["--config=configs/demo.py", "--wrkdir=x"], ["--config=configs/demo.py"]):
    with pytest.raises(SystemExit) as error:
      main.main(flags)
    assert error.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_check_prints_the_papers_network_and_rounds(capsys):
  assert main.main(["--config=configs/mlsl_gta.py", "--check"]) == 0
  shown = capsys.readouterr().out
  for part in ("124,033,363", "24,966 images", "2,975 images", "round_6", "cityscapes19", "every shape fits"):
    assert part in shown
  assert "round_7" not in shown
  assert "a batch of 1 does not divide over 4 devices" in shown


def test_every_config_loads_and_says_how_it_is_run():
  for file in known_configs():
    config = load_config(file)
    assert config.method
    json.dumps(config.to_dict())
    with open(file) as text:
      assert file in text.read()


def test_fields_take_the_type_that_they_have():
  config = load_config(
    "configs/demo.py",
    ["seed=3", "rounds.rate=1", "augmentation.flip=false", "canvas=(64,128)", "target.dir=here", "optimizer.momentum=.5"],
  )
  assert config.seed == 3 and config.rounds.rate == 1.0 and config.augmentation.flip is False
  assert config.canvas == (64, 128) and config.target.dir == "here" and config.optimizer.momentum == 0.5
