"""How fast it is; `python -m jax_uda.benchmark`."""
