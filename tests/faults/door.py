"""Inside a made-up host (tests.faults.hosts): its first process, and the client that has it run things, as ssh would.

    door.py serve FOLDER HOST            the first process of HOST, in namespaces of its own
    door.py ssh FOLDER HOST COMMAND ...  a shell command on HOST, in the environment that its first process has
    door.py run FOLDER HOST WORD ...     a program on HOST, in the caller's directory and environment, save TMPDIR

The two meet at the socket FOLDER/HOST, which needs no network: links may be down. Knows nothing but Python, since it is
pid 1 of a host and the launch agent of an mpirun.
"""

import json
import os
import signal
import socket
import subprocess
import sys

LIMIT = 1 << 17  # bytes of a request


def serve(folder: str, host: str) -> None:
    """Never returns. Reaps, as pid 1 has to, whatever outlives those who started it."""
    socket.sethostname(host)
    subprocess.run(["mount", "--bind", f"{folder}/hosts", "/etc/hosts"], check=True)  # seen by this host only
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], check=True)
    door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    door.bind(f"{folder}/{host}")
    door.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        visitor, _ = door.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            door.close()
            answer(visitor)
            os._exit(0)
        visitor.close()


def answer(visitor: socket.socket) -> None:
    """Run what the visitor asks for on its stdin, stdout and stderr, and tell it the exit code."""
    request, streams, _, _ = socket.recv_fds(visitor, LIMIT, 3)
    words, environment, directory = json.loads(request)
    if environment is not None:
        environment["TMPDIR"] = os.environ["TMPDIR"]  # where mpirun makes folders that are named by host and pid
    process = subprocess.Popen(
        words, env=environment, cwd=directory, stdin=streams[0], stdout=streams[1], stderr=streams[2]
    )
    for stream in streams:
        os.close(stream)
    code = process.wait()
    visitor.send(str(code if code >= 0 else 128 - code).encode())


def ask(folder: str, host: str, words: list[str], environment: dict[str, str] | None, directory: str | None) -> int:
    """The exit code of `words` on the host; 255 when it is not there. When it goes away later, hangs, as ssh does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
        try:
            door.connect(f"{folder}/{host}")
        except OSError:
            print(f"door: connect to host {host}: No route to host", file=sys.stderr)
            return 255
        socket.send_fds(door, [json.dumps([words, environment, directory]).encode()], [0, 1, 2])
        if code := door.recv(16):
            return int(code)
    while True:
        signal.pause()


if __name__ == "__main__":
    mode, folder, host, *words = sys.argv[1:]
    if mode == "serve":
        serve(folder, host)
    elif mode == "ssh":
        sys.exit(ask(folder, host, ["/bin/sh", "-c", " ".join(words)], None, None))
    else:
        sys.exit(ask(folder, host, words, dict(os.environ), os.getcwd()))
