"""Connections of which everything is known, in the network namespace that this runs in.

Says a line when the servers listen and the idle connections are made, makes the others when it is told to, says another
line, and keeps what is open until its standard input ends.
"""

import collections
import ctypes
import errno
import fcntl
import os
import signal
import socket
import struct
import sys
import time

# What a CSV field, a JSON string and a terminal each have trouble with; a process's name has 15 bytes.
HOSTILE = 'e"v,i\'l\n\x1b[7m\t;'

LEAKS, SHOPPERS, SHOPPERS6, HOSTILES, SLOW, RESETS, IDLE, REFUSED = 30, 200, 60, 10, 2, 25, 5, 15
LEAKY_PORT, WEB_PORT, SLOW_PORT, RESET_PORT, IDLE_PORT, CLOSED_PORT = 9001, 9002, 9003, 9004, 9005, 9009
V4, V6 = "127.0.0.1", "::1"

PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
FIN_WAIT2, TIME_WAIT, CLOSE_WAIT, LISTEN = 5, 6, 8, 10


def loopback_up():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", IFF_UP))


def start(comm, job, *args):
    """Starts a process of that name; it says at the returned descriptor when it is ready, and ends with this one."""
    ready, to_say = os.pipe()
    if os.fork() == 0:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        prctl(PR_SET_NAME, comm.encode())
        try:
            job(lambda: os.write(to_say, b"."), *args)
        except BaseException as error:
            print(f"{comm!r}: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    os.close(to_say)
    return ready


def run(comm, job, *args):
    """The same, and waits until it is ready."""
    ready = start(comm, job, *args)
    if os.read(ready, 1) != b".":
        sys.exit(f"{comm!r} has failed")


def family(host):
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def serve(ready, host, port, handle, gate=None, backlog=128):
    listener = socket.create_server((host, port), family=family(host), backlog=backlog)
    ready()
    if gate is not None:
        os.read(gate, 1)
    kept = []
    while True:
        connection, _ = listener.accept()
        kept.append(handle(connection))


def read_and_close(connection):
    while connection.recv(4096):
        pass
    connection.close()


def read_and_keep(connection):
    while connection.recv(4096):
        pass
    return connection


def until_reset(connection):
    connection.sendall(connection.recv(4096))
    try:
        connection.recv(4096)
    except ConnectionResetError:
        pass
    connection.close()


def close_in_order(connection):
    """Both FINs are through before the close, so what stays is a TIME_WAIT."""
    connection.shutdown(socket.SHUT_WR)
    connection.recv(1)
    connection.close()


def visit(ready, host, port, count, end):
    for _ in range(count):
        connection = socket.create_connection((host, port))
        connection.sendall(b"hello")
        end(connection)
    ready()


def reset(connection):
    connection.recv(4096)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def be_refused(ready):
    for _ in range(REFUSED):
        with socket.socket() as connection:
            if connection.connect_ex((V4, CLOSED_PORT)) != errno.ECONNREFUSED:
                sys.exit("somebody listens")
    ready()


def stay_idle(ready, gate):
    connections = [socket.create_connection((V4, IDLE_PORT)) for _ in range(IDLE)]
    ready()
    os.read(gate, 1)
    for connection in connections:
        close_in_order(connection)
    ready()


def dial_a_full_queue(ready, gate):
    """The first connection fills the accept queue, and the second one's SYN comes again after a second."""
    first = socket.create_connection((V4, SLOW_PORT))
    second = socket.socket()
    second.setblocking(False)
    second.connect_ex((V4, SLOW_PORT))
    time.sleep(0.2)
    os.write(gate, b".")
    second.setblocking(True)
    second.settimeout(30)
    while second.connect_ex((V4, SLOW_PORT)) not in (0, errno.EISCONN):
        pass
    close_in_order(first)
    close_in_order(second)
    ready()


def main():
    loopback_up()
    slow_gate, open_slow_gate = os.pipe()
    idle_gate, open_idle_gate = os.pipe()
    run("leaky_srv", serve, V4, LEAKY_PORT, read_and_keep)
    run("web_srv", serve, V4, WEB_PORT, read_and_close)
    run("web_srv6", serve, V6, WEB_PORT, read_and_close)
    run("slow_srv", serve, V4, SLOW_PORT, read_and_close, slow_gate, 0)
    run("victim_srv", serve, V4, RESET_PORT, until_reset)
    run("idle_srv", serve, V4, IDLE_PORT, read_and_close)
    idle = start("idle_client", stay_idle, idle_gate)
    os.read(idle, 1)
    print("ready", flush=True)

    sys.stdin.readline()
    os.write(open_idle_gate, b".")
    run("visitor", visit, V4, LEAKY_PORT, LEAKS, socket.socket.close)
    run("shopper", visit, V4, WEB_PORT, SHOPPERS, close_in_order)
    run("shopper6", visit, V6, WEB_PORT, SHOPPERS6, close_in_order)
    run(HOSTILE, visit, V4, WEB_PORT, HOSTILES, close_in_order)
    run("resetter", visit, V4, RESET_PORT, RESETS, reset)
    run("refused_one", be_refused)
    run("slow_dialer", dial_a_full_queue, open_slow_gate)
    os.read(idle, 1)
    while unfinished() != {FIN_WAIT2: LEAKS, CLOSE_WAIT: LEAKS}:
        time.sleep(0.02)
    print("done", flush=True)
    sys.stdin.read()


def unfinished():
    """How many sockets are in which state, less those that listen or are in TIME_WAIT."""
    states = collections.Counter()
    for file in ["/proc/self/net/tcp", "/proc/self/net/tcp6"]:
        with open(file) as table:
            states.update(int(line.split()[3], 16) for line in list(table)[1:])
    return {state: count for state, count in states.items() if state not in (TIME_WAIT, LISTEN)}


if __name__ == "__main__":
    main()
