// Node.js as server and as client: node node.js WHAT PORT COUNT.
//
// Prints one line of JSON when it has done what it was told, and goes on until its standard input ends.

const http = require('node:http');
const net = require('node:net');

const [what, port, count] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4])];
const host = '127.0.0.1';
const kept = [];
const done = () => console.log(JSON.stringify({ fds: kept.map((socket) => socket._handle.fd), connections: [] }));

const tasks = {
  // Reads to the end of its clients, and does not end its own half.
  half_open_server() {
    const server = net.createServer({ allowHalfOpen: true }, (socket) => {
      kept.push(socket);
      socket.resume();
    });
    server.listen(port, host, done);
  },
  // The same as a client: the server ends the idle connection, this side stays.
  half_open_client() {
    let ended = 0;
    for (let n = 0; n < count; n++) {
      const socket = net.connect({ port, host, allowHalfOpen: true });
      kept.push(socket);
      socket.write('GET / HTTP/1.1\r\nHost: field\r\n\r\n');
      socket.resume();
      socket.on('end', () => ++ended === count && done());
    }
  },
  // Healthy: a few connections, kept alive, for all requests.
  keep_alive() {
    const agent = new http.Agent({ keepAlive: true, maxSockets: 4 });
    let left = count;
    for (let n = 0; n < count; n++) {
      http.get({ port, host, agent }, (response) => {
        response.resume();
        response.on('end', () => --left === 0 && done());
      });
    }
  },
};

tasks[what]();
process.stdin.resume();
process.stdin.on('end', () => process.exit());
