"""Machines for `ray up`, made of Linux namespaces: each has its own processes, network, home and Ray folder.

Run as `ssh` or `rsync`, this file replaces those commands: it sends them over the network between the machines to
a small server on the machine that they name. Run as `serve`, it is that server.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

PORT = 22
EXIT = re.compile(rb"\0exit (\d+)\0\Z")
MACHINE = """
mount --make-rprivate / && mount -t proc proc /proc && mount -t tmpfs none /mnt && mkdir /mnt/home /mnt/results
mount --bind "{shared}" /mnt/results && mkdir -p /tmp/ray && mount -t tmpfs none /tmp/ray
until ip link show v{number} >/dev/null 2>&1; do sleep 0.1; done
ip link set lo up && ip addr add {ip}/24 dev v{number} && ip link set v{number} up
ip route add default via 10.77.0.254  # Ray finds its own address through this route
cd /mnt/home && echo 'PATH={programs}:$PATH' > .bashrc  # a login shell sets its own PATH
"{python}" "{file}" serve &
while :; do wait; sleep 0.2; done
"""


class Machines:
    """Several machines and a host on one network, which reaches nothing else.

    Args:
        folder: Folder for the replaced commands and for what the machines write.
        ips: Address of each machine, in 10.77.0.0/24.

    Raises:
        OSError: Namespaces cannot be made here.
    """

    def __init__(self, folder: Path, ips: list[str]) -> None:
        self.shared, self.home, programs = folder / "shared", folder / "home", folder / "bin"
        for path in (self.shared, self.home, programs):
            path.mkdir()
        for name in ("ssh", "rsync"):
            (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
            (programs / name).chmod(0o755)
        self.env = {
            "HOME": str(self.home),
            "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "USER": "you",
            "TERM": "dumb",
        }
        self._host = self._unshare(["--user", "--map-root-user"], "sleep infinity")
        try:
            self._child = _child(self._host.pid)
            self.run("mkdir -p /tmp/ray && mount -t tmpfs none /tmp/ray && ip link add br0 type bridge")
            self.run("ip link set lo up && ip addr add 10.77.0.254/24 dev br0 && ip link set br0 up")
            for number, ip in enumerate(ips):
                names = {"shared": self.shared, "programs": programs, "python": sys.executable, "file": __file__}
                script = MACHINE.format(number=number, ip=ip, **names)
                out = f">{folder}/{ip}.log 2>&1 & echo $!"
                env = {**self.env, "HOME": "/mnt/home"}
                (folder / f"{ip}.sh").write_text(script)
                unshare = "unshare --pid --fork --kill-child --mount --net"
                pid = self.run(f'{unshare} bash "{folder}/{ip}.sh" {out}', env).strip()
                wires = f"ip link add w{number} type veth peer name v{number}"
                self.run(
                    f"{wires} && ip link set w{number} master br0 up && ip link set v{number} netns "
                    f"$(cat /proc/{pid}/task/{pid}/children)"
                )
            for ip in ips:
                self.run(f"until ssh you@{ip} true 2>/dev/null; do sleep 0.2; done")
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _unshare(options: list[str], command: str) -> subprocess.Popen:
        options = [*options, "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--net"]
        return subprocess.Popen(["unshare", *options, "sh", "-c", command], start_new_session=True)

    def enter(self, command: str) -> list[str]:
        """Return a command line that runs a shell command on the host."""
        namespaces = ["--user", "--preserve-credentials", "--mount", "--net", "--pid"]
        return ["nsenter", "--target", str(self._child), *namespaces, "bash", "-c", command]

    def run(self, command: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
        """Run a shell command on the host and return its output.

        Raises:
            AssertionError: It failed.
        """
        done = subprocess.run(
            self.enter(f'cd "{cwd or self.home}" || exit\n{command}'),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            env=env or self.env,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}"
        return done.stdout

    def close(self) -> None:
        """Kill the machines and all processes on them."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._host.pid, signal.SIGKILL)
        self._host.wait()


def _child(pid: int) -> int:
    """Return the only child of a process, once it has entered its namespaces."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            if children and Path(f"/proc/{children[0]}/comm").read_text().strip() in ("sh", "sleep"):
                return int(children[0])
        time.sleep(0.05)
    raise OSError("unshare: namespaces cannot be made here")


# --- the server of a machine --------------------------------------------------------------------------------


def serve() -> None:
    """Run the commands that arrive over the network; their input and output go through the connection."""
    server = socket.create_server(("", PORT))
    while True:
        threading.Thread(target=_answer, args=[server.accept()[0]], daemon=True).start()


def _answer(peer: socket.socket) -> None:
    with peer, peer.makefile("rb", buffering=0) as reader:
        command = json.loads(reader.readline())
        process = subprocess.Popen(
            ["bash", "-c", command], stdin=peer, stdout=peer, stderr=subprocess.STDOUT, cwd="/mnt/home"
        )
        peer.sendall(f"\0exit {process.wait()}\0".encode())
        peer.shutdown(
            socket.SHUT_RDWR
        )  # closing is not enough: a daemon that inherited the socket would keep it open


# --- ssh and rsync ------------------------------------------------------------------------------------------


def run_remote(host: str, command: str, input_: bytes = b"") -> int:
    """Run a shell command on a machine, print its output and return its exit code."""
    with socket.create_connection((host, PORT), timeout=30) as peer:
        peer.settimeout(None)
        peer.sendall(json.dumps(command).encode() + b"\n" + input_)
        peer.shutdown(socket.SHUT_WR)
        tail = b""
        while data := peer.recv(65536):
            tail += data
            keep = max(0, len(tail) - 16)
            sys.stdout.buffer.write(tail[:keep])
            sys.stdout.buffer.flush()
            tail = tail[keep:]
    end = EXIT.search(tail)
    sys.stdout.buffer.write(tail[: end.start()] if end else tail)
    sys.stdout.buffer.flush()
    return int(end[1]) if end else 255


def ssh(words: list[str]) -> int:
    """Run `ssh [-tt] [-o X] [-i X] user@host command...`."""
    while words[0].startswith("-"):
        words = words[2:] if words[0] in ("-o", "-i", "-L") else words[1:]
    return run_remote(words[0].partition("@")[2], " ".join(words[1:]))


def rsync(words: list[str]) -> int:
    """Run `rsync --rsh X -avz [--exclude X] source user@host:target` with tar, which knows most patterns."""
    excludes = [words[n + 1] for n, word in enumerate(words) if word == "--exclude"]
    source, (host, _, target) = words[-2], words[-1].partition("@")[2].partition(":")
    if not os.path.isdir(source):
        return run_remote(host, f"cat > {target}", Path(source).read_bytes())
    patterns = [f"--anchored --exclude=.{e}" if e[0] == "/" else f"--no-anchored --exclude={e}" for e in excludes]
    options = " ".join(patterns).replace("**/", "").split()
    packed = subprocess.run(["tar", "-C", source, *options, "-c", "."], check=True, capture_output=True).stdout
    return run_remote(host, f"mkdir -p {target} && tar -C {target} -x", packed)


if __name__ == "__main__":
    sys.exit({"serve": lambda _: serve(), "ssh": ssh, "rsync": rsync}[sys.argv[1]](sys.argv[2:]))
