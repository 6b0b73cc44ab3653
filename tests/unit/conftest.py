from tests.unit.fake_mpirun import mpirun as mpirun
from tests.unit.scripted_run import make_run as make_run
