"""The rungs of Chitta et al. (2018), table 1, from source only to an oracle; for configs of the method `curriculum`.

Equal steps for all, from one source stage a seed where the config has one; source only and the oracle are plain: no class
weighs more, nothing is mined. Two rungs are not the paper's. Where the config has `curriculum.statistics_steps`, all rungs
but source only have them, and one has nothing else: compare the others with it, too. Where it has `curriculum.even_mining`,
one rung adds that to easy mining, and the next one keeps it. Where the config has none of these, leave the rungs out by
`--only`.

  python -m jax_uda.ladder --config configs/curriculum_camvid.py --variants configs/ladders/curriculum.py --seeds 0,1 \\
    --workdir runs/curriculum_ladder --config.data_dir=DATA --config.weights=resnet18.safetensors
"""

BASELINE, CEILING = "source only", "oracle"


def get_variants():
  """Name of the rung -> fields of the config."""
  plain = {"curriculum.class_weight": 1.0, "curriculum.easy_mining": False, "curriculum.hard_mining": False}
  weighted = {name: value for name, value in plain.items() if name != "curriculum.class_weight"}
  return {
    "source only": {"mode": "source_only"},
    "+ target's statistics": {**plain, "curriculum.gamma": 1.0, "curriculum.gamma_end": 1.0},
    "self-training": plain,
    "+ weighted loss": weighted,
    "+ easy mining": {"curriculum.hard_mining": False, "curriculum.even_mining": False},
    "+ even mining": {"curriculum.hard_mining": False},
    "+ hard mining": {},
    "oracle": {"mode": "oracle"},
  }
