"""What `python -m jax_uda.ladder` sets side by side; one file a ladder."""
