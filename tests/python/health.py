"""An application that a kubelet probes: HTTP on the first port, grpc.health.v1 on the second. Each request's first line goes
to the file of the third argument; a PUT to /state sets how it is."""
import concurrent.futures
import http.server
import socket
import sys

import grpc

state = {"http": 200, "grpc": 1}
log = open(sys.argv[3], "a", buffering=1)


class App(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        log.write(self.requestline + "\n")
        status, location = state["http"], None
        if self.path == "/moved":
            status, location = 302, f"http://{self.headers['host']}/ready"
        elif self.path == "/away":
            status, location = 302, "http://192.0.2.1/"
        self.send_response(status)
        if location:
            self.send_header("location", location)
        body = b"what nobody may read"
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self):
        length = int(self.headers["content-length"])
        name, value = self.rfile.read(length).decode().split("=")
        state[name] = int(value)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *words):
        pass


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6


def check(request, context):
    service = request[2:].decode()
    log.write(f"Check {service}\n")
    if service not in ("", "shop.Cart"):
        context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
    return bytes([8, state["grpc"]])


server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
handlers = {"Check": grpc.unary_unary_rpc_method_handler(check)}
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("grpc.health.v1.Health", handlers),))
server.add_insecure_port(f"[::]:{sys.argv[2]}")
server.start()
Server(("::", int(sys.argv[1])), App).serve_forever()
