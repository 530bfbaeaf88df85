"""The configs that come with jax_uda: what each word after the colon sets, and what configs/README.md says of them."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from configs import default
from jax_uda import check
from jax_uda.config import differences, known_configs, load_config
from jax_uda.errors import UserError

README = (Path(__file__).parent.parent / "configs/README.md").read_text()

WORDS = {
  "st_gta": ("code", "vgg16"),
  "cbst_gta": ("code", "vgg16"),
  "cbst_synthia": ("code", "vgg16"),
  "cbst_nthu": ("code",),
  "cbst_bddv": ("code",),
  "mlsl_gta": ("code", "sisc"),
  "mlsl_synthia": ("code", "sisc"),
}
PAPERS = ("self_training", "mlsl", "curriculum", "adversarial")  # the methods of which README.md there tells
CURRICULA = ("curriculum_gta", "curriculum_gta_bdd", "curriculum_cityscapes_bdd")
ADVERSARIAL = ("adversarial_gta", "adversarial_synthia")


def commands() -> list[list[str]]:
  """Every config in the README with the flags that stand with it."""
  return [shlex.split(span) for span in re.findall(r"`(configs/[^`]+)`", README)]


def rows() -> list[tuple[str, str]]:
  """The README's rows of the papers' tables: (path of the config, reported scores)."""
  return re.findall(r"^\| `(configs/\w+\.py)[^|]*\|[^|]*\| ([\d., /]+) \|[^|]*\|$", README, re.MULTILINE)


def changed(before, after) -> dict:
  """{field: new value} of what differs between two configs."""
  lines = differences(before.to_dict(), after.to_dict())
  fields = [line.partition(":")[0] for line in lines]
  return {field: at(after, field) for field in fields}


def at(config, field: str):
  for name in field.split("."):
    config = config[name]
  return config


RELEASED = {  # methods.md, section 1, is where each of these is said
  "augmentation.crop": (504, 504),
  "optimizer.bias_multiplier": 2.0,
  "optimizer.bias_decay": False,
  "loss_at": "stride",
  "rounds.batch_norm": "frozen",
  "mining.classes": 3,
  "mining.on": "both",
  "labels.rank": "code",
  "labels.inclusive": True,
  "labels.pool_stride": 4,
  "labels.flip": True,
  "labels.upsampling": "cubic",
  "eval_flip": True,
}


def test_all_that_the_released_code_of_cbst_has_otherwise():
  paper, code = default.self_training(), default.self_training()
  default.released_self_training(code)
  assert changed(paper, code) == {**RELEASED, "rounds.num": 6, "labels.portion": 0.15, "labels.scales": "0.9033"}
  # Where the paper says nothing the defaults are the code's already.
  assert code.optimizer.momentum == 0.9 and code.optimizer.weight_decay == 5e-4
  assert code.rounds.rate_divisor == pytest.approx(1.41421356) and not code.rounds.paired
  assert (code.rounds.source_share, code.rounds.source_share_step, code.rounds.source_share_max) == (0.03, 0.0025, 0.06)
  assert code.rounds.source_draw == "cumulative"
  assert code.mining.probability == 0.8 and code.mining.rare == 0.001
  assert code.rounds.hard_below == 1.0  # MLSL's
  assert round(2048 * float(code.labels.scales)) == 1850


def test_all_that_the_released_code_of_mlsl_has_otherwise():
  paper, code = default.mlsl(), default.mlsl()
  default.released_mlsl(code)
  released = {
    **RELEASED,
    "labels.portion": 0.15,
    "labels.prior": True,
    "sisc.patches": 25,
    "sisc.flip": True,
    "sisc.whole_image": True,
    "weak_labels.eta": 0.0225,
    "weak_labels.strict": False,
    "weak_labels.source": "eta",
    "weak_labels.activation": "code",
  }
  assert changed(paper, code) == {**released, "weak_labels.weight": 0.04}
  assert code.rounds.num == 6 and code.labels.scales == "1" and code.weak_labels.scope == "crop"
  alone = default.mlsl()
  alone.weak_labels.weight = 0.0
  default.released_mlsl(alone)
  assert changed(paper, alone) == {**released, "weak_labels.weight": 0.0, "rounds.hard_below": 0.6}
  assert alone.rounds.hard_least == 256


def test_a_preset_undoes_what_else_a_config_has_chosen():
  """The values that the defaults have already are set all the same."""
  config, fresh = load_config("configs/demo.py"), default.mlsl()
  default.released_mlsl(config)
  default.released_mlsl(fresh)
  for field in ("rounds.paired", "rounds.source_share", "rounds.source_share_max", "mining.probability", "loss_at"):
    assert at(config, field) == at(fresh, field)


@pytest.mark.parametrize(("name", "portion", "source_share", "scales", "prior"), [
  ("st_gta", 0.15, 0.03, "0.9033", False), ("cbst_gta", 0.15, 0.03, "0.9033", False),
  ("cbst_synthia", 0.20, 0.02, "0.9033", False), ("cbst_nthu", 0.20, 0.03, "0.9033", False),
  ("cbst_bddv", 0.15, 0.03, "1.4453", False), ("mlsl_gta", 0.15, 0.03, "1", True),
  ("mlsl_synthia", 0.20, 0.02, "1", False),
])  # fmt: skip
def test_code_by_source(name, portion, source_share, scales, prior):
  config = load_config(f"configs/{name}.py:code")
  labels = config.labels
  assert (labels.portion, config.rounds.source_share, labels.scales, labels.prior) == (portion, source_share, scales, prior)
  assert config.rounds.num == 6 and config.mining.probability == 0.8 and config.mining.on == "both"
  assert {field: at(config, field) for field in RELEASED} == RELEASED
  # The data, and what only the paper gives, stay.
  paper = load_config(f"configs/{name}.py")
  for field in ("source", "target", "test", "canvas", "protocols", "source_training", "network"):
    assert config[field] == paper[field]
  assert (config.rounds.rate, config.rounds.batch) == (paper.rounds.rate, paper.rounds.batch)


def test_the_papers_settings():
  for name in WORDS:
    config = load_config(f"configs/{name}.py")
    assert config == load_config(f"configs/{name}.py:paper")
    assert config.network.backbone == "resnet38" and config.augmentation.crop == (500, 500)
    assert config.rounds.epochs == 2 and config.rounds.rate == 1e-4 and config.rounds.batch_norm == "frozen"
    assert (config.labels.portion, config.labels.portion_step, config.labels.portion_max) == (0.20, 0.05, 0.50)
    assert config.labels.rank == "paper" and not config.labels.prior and not config.labels.flip
    assert config.rounds.num == (6 if config.method == "mlsl" else 3)
    assert config.labels.threshold == ("global" if name == "st_gta" else "class_balanced")
    assert config.source_training.epochs == (50 if "synthia" in name else 30)
    assert config.mining.classes == 5 and config.mining.on == "target"
    assert config.mining.probability == (0 if name in ("st_gta", "cbst_synthia", "mlsl_synthia") else 0.8)
  for name in ("mlsl_gta", "mlsl_synthia"):
    both, alone = load_config(f"configs/{name}.py"), load_config(f"configs/{name}.py:sisc")
    assert (both.sisc.patches, both.sisc.size, both.weak_labels.eta) == (50, (512, 512), 0.05)
    assert (both.weak_labels.weight, both.rounds.batch) == (0.025, 1)
    assert changed(both, alone) == {"weak_labels.weight": 0.0, "rounds.batch": 2}


def test_the_papers_curriculum():
  for name in CURRICULA:
    config = load_config(f"configs/{name}.py")
    settings = config.curriculum
    assert (settings.epochs, settings.epoch_steps, settings.batch, settings.rate, settings.power) == (20, 0, 12, 1e-3, 0.9)
    assert (settings.gamma, settings.gamma_end, settings.gamma_epochs, settings.drop_epochs) == (0.9, 0.1, 10, 10)
    assert settings.weighted == "wall,fence,pole,traffic light,traffic sign,rider" and settings.class_weight == 2
    assert settings.easy_mining and settings.hard_mining and not settings.statistics_steps
    assert config.optimizer.to_dict() == {"momentum": 0.9, "weight_decay": 1e-4, "decoder_multiplier": 10.0, "clip": 0.0}
    assert config.diversity.to_dict() == {"weight": 0.01, "of": "decoder"}
    assert config.augmentation.crop == (600, 600) and config.augmentation.scale == (0.5, 1.5) and config.augmentation.flip
    network = config.network
    assert (network.backbone, network.num_stages, network.branches, network.batch_norm) == ("resnet18", 4, 2, "per_device")
    assert config.source.height == (0 if name == "curriculum_gta" else 720)
    assert network.decoder_norm and not settings.vote_dropout and not settings.jitter
    assert not settings.even_mining


def test_the_papers_multi_adversarial_proxies():
  for name, height in (("adversarial_gta", 720), ("adversarial_synthia", 760)):
    config = load_config(f"configs/{name}.py")
    source, adversarial, retraining = config.source_training, config.adversarial, config.retraining
    assert (source.steps, source.batch, source.rate, source.power) == (80_000, 4, 4e-3, 0.9)
    assert config.optimizer.to_dict() == {"momentum": 0.9, "weight_decay": 5e-4, "decoder_multiplier": 1.0, "clip": 0.0}
    assert (adversarial.steps, adversarial.batch) == (10_000, 4)
    assert adversarial.rate == adversarial.discriminator_rate == 1e-4
    assert (adversarial.discriminators, adversarial.loss) == (2, "non_saturating")
    assert (adversarial.segmentation_weight, adversarial.weight_1, adversarial.weight_2) == (1.0, 1e-3, 2e-4)
    assert (adversarial.beta1, adversarial.beta2) == (0.9, 0.99)
    assert (retraining.steps, retraining.batch, retraining.rate, retraining.power) == (60_000, 16, 1e-2, 0.9)
    assert (retraining.crop, retraining.scale, retraining.fresh) == ((640, 640), (0.7, 1.3), True)
    assert (config.labels.p1, config.labels.p2, config.labels.scale) == (0.6, 0.8, 0.5)
    # Images of the source, which fill the canvas's height, are seen at this height; the crop fits in.
    assert config.augmentation.crop == (height, 1280) and len(set(config.augmentation.scale)) == 1
    assert config.augmentation.scale[0] * config.canvas[0] == pytest.approx(height)
    assert [n * adversarial.target_scale % 8 for n in config.canvas] == [0, 0]
    assert adversarial.target_crop == (512, 1024) and adversarial.target_scale == 0.5
    assert not config.statistics_steps and not retraining.jitter


def test_what_sources_and_protocols_the_rows_have():
  for name in ("cbst_synthia", "mlsl_synthia", "adversarial_synthia"):
    config = load_config(f"configs/{name}.py")
    assert config.source.kind == "synthia" and config.protocols == "synthia16,synthia13"
  for name in ("st_gta", "cbst_gta", "mlsl_gta", "cbst_bddv"):
    assert load_config(f"configs/{name}.py").source.kind == "gta5"
  for name in ("st_gta", "cbst_gta", "mlsl_gta", "cbst_synthia", "mlsl_synthia"):
    config = load_config(f"configs/{name}.py")
    for spec, split in ((config.target, "train"), (config.test, "val")):
      assert spec.to_dict() == default.dataset("cityscapes", dir="Cityscapes", split=split).to_dict()
  # Equal source stages, so that one may start from the other's.
  st, cbst = load_config("configs/st_gta.py"), load_config("configs/cbst_gta.py")
  assert changed(cbst, st) == {"labels.threshold": "global", "mining.probability": 0.0}


@pytest.mark.parametrize("name", ["st_gta", "cbst_gta", "cbst_synthia"])
def test_vgg16_as_a_word_and_by_field(name):
  word = load_config(f"configs/{name}.py:vgg16")
  fields = ("network.backbone=fcn8s_vgg16", "rounds.rate=1e-6", "rounds.batch=1")
  crops = ("augmentation.scale=(1,1)", "augmentation.flip=False")
  assert word == load_config(f"configs/{name}.py", [*fields, *crops])
  # In both readings, in either order.
  code = load_config(f"configs/{name}.py:code,vgg16")
  assert code == load_config(f"configs/{name}.py:vgg16,code") == load_config(f"configs/{name}.py:code", [*fields, *crops])


def test_fields_come_after_the_words():
  config = load_config("configs/mlsl_gta.py:code,sisc", ["sisc.patches=0", "labels.prior=False", "labels.portion=0.1"])
  assert (config.sisc.patches, config.labels.prior, config.labels.portion) == (0, False, 0.1)
  assert config.rounds.hard_below == 0.6 and config.rounds.batch == 2


@pytest.mark.parametrize("name", WORDS)
def test_words_that_a_config_does_not_know(name):
  for reading in ("cod", "code,vgg19", ""):
    wrong = reading.rpartition(",")[2]
    offered = ", ".join(("paper", *WORDS[name]))
    with pytest.raises(UserError, match=rf"configs/{name}\.py.*no reading '{wrong}'; .* stand {offered}$"):
      load_config(f"configs/{name}.py:{reading}")


def test_every_config_is_in_the_readme_and_every_command_there_loads():
  papers = {file for file in known_configs() if load_config(file).method in PAPERS}
  assert {command[0].partition(":")[0] for command in commands()} == papers
  for file, *flags in commands():
    assert all(flag.startswith("--config.") for flag in flags)
    load_config(file, [flag.removeprefix("--config.") for flag in flags])
  for name, known in WORDS.items():
    assert set(known) - {"code"} <= set(re.findall(rf"^\| `(\w+)` \|.*`{name}`", README, re.MULTILINE))


def test_scores_in_the_readme_are_those_in_the_docstrings():
  found = rows()
  assert {path for path, _ in found} == {f"configs/{name}.py" for name in (*WORDS, *CURRICULA, *ADVERSARIAL)}
  for path, scores in found:
    said = importlib.import_module(path.removesuffix(".py").replace("/", ".")).__doc__
    for score in re.findall(r"[\d.]+", scores):
      assert score in said, (path, score)
    assert "measured this config yet" in " ".join(said.split())


CHECKED = [*known_configs(), "configs/cbst_gta.py:code", "configs/cbst_gta.py:vgg16", "configs/mlsl_gta.py:code,sisc"]


@pytest.mark.parametrize("file", CHECKED)
def test_check_passes(file, tmp_path):
  """Every shape fits: in one round, and with a small network where another test checks the large one."""
  config = load_config(file)
  if "rounds" in config:
    config.rounds.num = 1
  if config.network.backbone.startswith("resnet") and config.method != "curriculum":
    small = {"backbone": "resnet10", "num_stages": 3, "units": 1}
    config.network.update({name: value for name, value in small.items() if name in config.network})
  if config.source.kind == "folder":
    for part in ("images", "labels"):
      (tmp_path / part).mkdir()
      (tmp_path / part / "a.png").write_bytes(b"never read")
    (tmp_path / "classes.csv").write_text("name,id,red,green,blue\ncat,0,1,2,3\ndog,1,4,5,6\n")
    config.source.dir = config.target.dir = str(tmp_path)
  said = check.describe(config)
  assert "every shape fits" in said
  if Path(file).stem in CURRICULA:
    assert "segmenter: 11,741,798 parameters" in said  # test_curriculum derives it
  if config.network.backbone == "fcn8s_vgg16":
    assert "segmenter: 134,353,017 parameters" in said  # test_models derives it from the layer list
