from tests.unit.fake_mpirun import mpirun as mpirun
