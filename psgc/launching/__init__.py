"""`psgc launch` and `psgc submit`: from a YAML file to running ranks, by mpirun and by SLURM."""
