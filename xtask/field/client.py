"""A client of real servers: python3 client.py WHAT PORT COUNT.

Does what it is told, prints one line of JSON when that is done (the descriptors that it keeps; for each connection its
port, bytes sent and bytes received), and keeps everything open until its standard input ends.
"""

import concurrent.futures
import http.client
import json
import socket
import sys

HOST = "127.0.0.1"
REQUEST = b"GET / HTTP/1.1\r\nHost: field\r\n%s\r\n"


def connect(port):
    return socket.create_connection((HOST, port))


def read_until_end(connection):
    received = 0
    while data := connection.recv(65536):
        received += len(data)
    return received


def get(connection, more=b""):
    """One request and its whole answer, on a connection that stays."""
    request = REQUEST % more
    connection.sendall(request)
    response = http.client.HTTPResponse(connection)
    response.begin()
    response.read()
    return len(request)


def forget_to_close(port):
    """Asks, waits for the server to end the idle connection, reads that end, and keeps the connection."""
    pool = []
    connection = http.client.HTTPConnection(HOST, port)
    connection.request("GET", "/")
    connection.getresponse().read()
    pool.append(connection.sock)
    assert connection.sock.recv(1) == b""
    return pool


def never_read(port):
    connection = connect(port)
    connection.sendall(REQUEST % b"Connection: close\r\n")
    return [connection]


def pool_of_redis(port):
    connection = connect(port)
    connection.sendall(b"PING\r\n")
    assert connection.recv(100) == b"+PONG\r\n"
    return [connection]


def half_a_request(port):
    connection = connect(port)
    connection.sendall(b"GET / HTTP/1.1\r\n")
    return [connection]


def idle(port):
    return [connect(port)]


def give_up(port):
    connect(port).close()


def server_closes(port):
    """A request on a connection of its own, which the server ends."""
    with connect(port) as connection:
        request = REQUEST % b"Connection: close\r\n"
        connection.sendall(request)
        local = connection.getsockname()[1]
        return local, len(request), read_until_end(connection)


def client_closes(port):
    """A request on a connection of its own, which the client ends."""
    with connect(port) as connection:
        return connection.getsockname()[1], get(connection), 0


def one_request(port):
    requests(port, 1)


def keep_alive(port):
    requests(port, 100)


def requests(port, count):
    """On one connection."""
    connection = http.client.HTTPConnection(HOST, port)
    for _ in range(count):
        connection.request("GET", "/")
        connection.getresponse().read()
    connection.close()


def main():
    what, port, count = globals()[sys.argv[1]], int(sys.argv[2]), int(sys.argv[3])
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        results = [result for result in pool.map(what, [port] * count) if result]
    kept = [connection for result in results if isinstance(result, list) for connection in result]
    told = [result for result in results if isinstance(result, tuple)]
    print(json.dumps({"fds": [connection.fileno() for connection in kept], "connections": told}), flush=True)
    sys.stdin.read()


main()
