"""Inside a made-up host (hosts.py): its first process, and the clients that have it run things.

    door.py serve FOLDER HOST         the first process of HOST, in namespaces of its own
    door.py ssh HOST COMMAND ...      mpirun's launch agent: a shell command, asked for over the hosts' network
    door.py run FOLDER HOST WORD ...  a program, in the caller's directory and environment (save TMPDIR);
                                      asked for at the socket FOLDER/HOST, which needs no network

Knows nothing but Python, since it is pid 1 of a host and runs beside mpirun. `ssh` does as ssh does: it ends with the
exit code of its command, with 255 when it cannot connect, and waits for ever once the connection has gone dead.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys

PORT = 22
PATIENCE = 5.0  # seconds to connect in
LIMIT = 1 << 17  # bytes of a request


def serve(folder: str, host: str) -> None:
    """Never returns. Reaps, as pid 1 has to, whatever outlives those who started it."""
    socket.sethostname(host)
    subprocess.run(["mount", "--bind", f"{folder}/hosts", "/etc/hosts"], check=True)  # seen by this host only
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], check=True)
    near = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    near.bind(f"{folder}/{host}")
    far = socket.create_server(("", PORT))
    near.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        for door in select.select([near, far], [], [])[0]:
            visitor, _ = door.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                near.close()
                far.close()
                (answer_near if door is near else answer_far)(visitor)
                os._exit(0)
            visitor.close()


def answer_near(visitor: socket.socket) -> None:
    """Run a program on the visitor's stdin, stdout and stderr, and tell its exit code."""
    request, (stdin, stdout, stderr), _, _ = socket.recv_fds(visitor, LIMIT, 3)
    words, environment, directory = json.loads(request)
    environment["TMPDIR"] = os.environ["TMPDIR"]  # where mpirun makes folders that are named by host and pid
    code = subprocess.call(words, env=environment, cwd=directory, stdin=stdin, stdout=stdout, stderr=stderr)
    visitor.sendall(str(code if code >= 0 else 128 - code).encode())


def answer_far(visitor: socket.socket) -> None:
    """Run a shell command whose output goes to the visitor, and after it a zero and the exit code."""
    command = visitor.makefile("r").readline()
    code = subprocess.call(["/bin/sh", "-c", command], stdin=subprocess.DEVNULL, stdout=visitor, stderr=visitor)
    visitor.sendall(b"\0%d\n" % code)


def run(folder: str, host: str, words: list[str]) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
        door.connect(f"{folder}/{host}")
        socket.send_fds(door, [json.dumps([words, dict(os.environ), os.getcwd()]).encode()], [0, 1, 2])
        return int(door.recv(16) or 255)  # the host is gone


def ssh(host: str, command: str) -> int:
    try:
        door = socket.create_connection((host, PORT), PATIENCE)
    except OSError as error:
        print(f"door: connect to host {host} port {PORT}: {error.strerror}", file=sys.stderr)
        return 255
    door.settimeout(None)
    door.sendall(command.encode() + b"\n")
    output, _, code = door.makefile("rb").read().partition(b"\0")
    sys.stderr.buffer.write(output)
    return int(code or 255)


if __name__ == "__main__":
    match sys.argv[1:]:
        case "serve", folder, host:
            serve(folder, host)
        case "ssh", host, *words:
            sys.exit(ssh(host, " ".join(words)))
        case "run", folder, host, *words:
            sys.exit(run(folder, host, words))
