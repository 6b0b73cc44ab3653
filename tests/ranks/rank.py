"""What is started as `python ARGUMENTS`: `python rank.py SOCKET ARGUMENTS`. The work is done by a fork of `prepared`.

It imports next to nothing, passes signals on, and ends as the fork does. When it is killed the fork is.
"""

import ctypes
import json
import os
import signal
import socket
import sys

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # it dies with mpirun, as ranks do
connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
connection.connect(sys.argv[1])
request = json.dumps({"arguments": sys.argv[2:], "environment": dict(os.environ), "folder": os.getcwd()})
socket.send_fds(connection, [request.encode()], [0, 1, 2])
for number in PASSED_ON:
    signal.signal(number, lambda number, _: connection.send(str(int(number)).encode()))
status = int(connection.recv(100) or signal.SIGKILL)  # as of waitpid; nothing: the forking process has ended
if os.WIFSIGNALED(status):
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), os.WTERMSIG(status))
os._exit(os.waitstatus_to_exitcode(status))
