"""Self-training, tiny and with synced BatchNorm, as a config file: for tests that start several processes."""

from tests.tiny import tiny


def get_config():
  config = tiny("self_training")
  config.network.batch_norm = "synced"
  config.rounds.update({"statistics_steps": 0, "target_share": 0.6})  # trains on three of five images
  return config
