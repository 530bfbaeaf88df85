"""The rungs of Shen et al. (2019), table 3, from source only to an oracle; for configs of the method `adversarial`.

All from one source stage a seed. What is retrained is retrained afresh, so give `retraining.steps` as many as `source` and
`adversarial` have together, and every network that is scored has had equal steps. One rung is not the paper's: its
discriminators move nothing, and what it gains it owes to the target's batch statistics; compare the others with it, too.
Another is from table 4: as many proxies, chosen without the discriminators. Table 3's last rung, several scales, needs no
training: `python -m jax_uda.evaluate --scales 0.5,0.75,1 --workdir DIR` scores a run so, here that of "proxies with two".
With adversarial_gta and _synthia, score the rungs that are not retrained at the size they have seen: `--scales 0.5`.

  python -m jax_uda.ladder --config configs/adversarial_camvid.py --variants configs/ladders/adversarial.py --seeds 0,1 \\
    --workdir runs/adversarial_ladder --config.data_dir=DATA --config.weights=resnet18.safetensors
"""

BASELINE, CEILING = "source only", "oracle"


def get_variants():
  """Name of the rung -> fields of the config."""
  one, without = {"adversarial.discriminators": 1}, {"retraining.steps": 0}
  return {
    "source only": {"mode": "source_only"},
    "+ target's statistics": {"adversarial.weight_1": 0.0, "adversarial.weight_2": 0.0, **without},
    "one discriminator": {**one, **without},
    "two discriminators": without,
    "proxies by class balance alone": {"labels.p1": 1.0, "labels.p2": 0.48},
    "proxies with one": one,
    "proxies with two": {},
    "oracle": {"mode": "oracle"},
  }
