"""`psgc train`: what every rank does with a run's settings, before, after and around server and workers."""
