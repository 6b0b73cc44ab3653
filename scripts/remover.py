"""Removes a folder that lies outside this process however the process ends, SIGKILL included."""

import subprocess


def start_remover(command: str, folder: str) -> "subprocess.Popen[bytes]":
    """A shell that waits until its standard input is closed, and then runs `command`, in which the folder is "$1".

    The death of this process closes the input too. The command is tried for 10 s, since processes that still use the
    folder may take a moment to end. `communicate` closes the input and waits.
    """
    script = f"cat; for try in $(seq 100); do {command} && exit; sleep 0.1; done"
    quiet = subprocess.DEVNULL
    words = ["sh", "-c", script, "sh", folder]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True)
