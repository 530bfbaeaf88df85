"""Shares p1 and p2 of Shen et al. (2019), table 4; with p1 = 1 the discriminators have no say. For `adversarial` configs.

  python -m jax_uda.ladder --config configs/adversarial_camvid.py --variants configs/ladders/proxies.py --seeds 0,1 \\
    --workdir runs/proxies_ladder --config.data_dir=DATA --config.weights=resnet18.safetensors
"""

BASELINE, CEILING = "p1 1, p2 0.48", "p1 0.6, p2 0.8"
PAIRS = (
  (0.5, 0.8), (0.6, 0.4), (0.6, 0.5), (0.6, 0.6), (0.6, 0.8), (0.8, 0.3), (0.8, 0.4), (0.8, 0.5),
  (1, 0.2), (1, 0.3), (1, 0.4), (1, 0.48),
)  # fmt: skip


def get_variants():
  """Name of the pair -> fields of the config."""
  return {f"p1 {p1:g}, p2 {p2:g}": {"labels.p1": float(p1), "labels.p2": float(p2)} for p1, p2 in PAIRS}
