"""`psgc launch` and `psgc submit`: from a YAML file or a script to running ranks, by mpirun and by a scheduler."""
