"""Every test runs on four CPU devices, so that what is wrong over devices fails here."""

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
