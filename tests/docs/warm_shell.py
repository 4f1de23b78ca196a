"""A process that has loaded what `retnet-edge` loads, and forks a child for each command line.

Loading torch, ONNX and ExecuTorch takes longer than what the blocks of the documentation do with
them. `python warm_shell.py serve SOCKET` listens until its standard input ends;
`python -S warm_shell.py call SOCKET ARGUMENT…` runs one command line there, with the caller's
folder, environment and standard streams, and ends with its exit status.
"""

from __future__ import annotations

import array
import os
import select
import socket
import sys
import traceback

WARM = (
    "torch", "onnx", "onnxruntime", "onnxscript", "onnx_ir", "safetensors.torch", "tokenizers",
    "matplotlib.figure", "jinja2", "retnet_edge.cli.app", "retnet_edge.pipeline.verify",
    "retnet_edge.pipeline.build", "retnet_edge.export.export", "retnet_edge.quantize.quantize",
)  # fmt: skip


def pack(words: list[str]) -> bytes:
    return b"\0".join(os.fsencode(word) for word in words)


def call(path: str, arguments: list[str]) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.connect(path)
        environment = [f"{name}={value}" for name, value in os.environ.items()]
        words = [os.getcwd(), str(len(arguments)), *arguments, *environment]
        streams = array.array("i", [0, 1, 2])
        server.sendmsg([b"!"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
        server.sendall(pack(words))
        server.shutdown(socket.SHUT_WR)
        status = server.recv(8)
    return int(status) if status else 70  # it was killed


def serve(path: str) -> None:
    for name in WARM:
        __import__(name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen(8)
        print("ready", flush=True)
        children: set[int] = set()
        while 0 not in select.select([listener.fileno(), 0], [], [])[0]:
            caller, _ = listener.accept()
            child = os.fork()
            if child == 0:
                listener.close()
                answer(caller)
            caller.close()
            # waited for, so that their processor time counts as that of the tests
            children.add(child)
            children -= {one for one in children if os.waitpid(one, os.WNOHANG)[0]}
        for one in children:
            os.waitpid(one, 0)


def answer(caller: socket.socket) -> None:
    status = 70
    try:
        _, ancillary, _, _ = caller.recvmsg(1, socket.CMSG_SPACE(12))
        streams = array.array("i", ancillary[0][2])
        received = b"".join(iter(lambda: caller.recv(1 << 16), b""))
        folder, count, *words = (os.fsdecode(word) for word in received.split(b"\0"))
        arguments, environment = words[: int(count)], words[int(count) :]
        for stream, given in enumerate(streams):
            os.dup2(given, stream)
        # as a new process makes them: these here know of the server's own
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(dict(entry.split("=", 1) for entry in environment))
        from small_commands import run

        sys.argv = ["retnet-edge", *arguments]
        status = run(arguments)
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        caller.sendall(str(status).encode())
        os._exit(0)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        sys.exit(call(sys.argv[2], sys.argv[3:]))
