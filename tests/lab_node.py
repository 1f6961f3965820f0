"""Stands for a node in tests of the lab: reads its configuration and answers /readyz and /v1/status.

Run as `lab_node.py MODE --config FILE --parent-pid PID`. Modes: `works`; `dies`: prints a complaint and ends with
status 3; `stubborn`: ignores SIGTERM; `silent`: runs, and answers nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from everwrite.server.config import NodeConfig, load
from everwrite.server.lab_process import end_with_parent


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("mode")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--parent-pid", type=int, required=True)
    arguments = parser.parse_args()
    end_with_parent(arguments.parent_pid)
    config = load(arguments.config, environment=os.environ).config
    print(f"{config.node} begins", flush=True)
    config.data.mkdir(exist_ok=True)
    if arguments.mode == "dies":
        print("first complaint\nsecond complaint", file=sys.stderr, flush=True)
        sys.exit(3)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, signal.SIG_IGN if arguments.mode == "stubborn" else lambda *_: stop.set())
    with ThreadingHTTPServer(("127.0.0.1", config.http_port), handler(config, stop)) as server:
        if arguments.mode != "silent":
            threading.Thread(target=server.serve_forever, daemon=True).start()
        stop.wait()
        (config.data / "drained").touch()
        if arguments.mode != "silent":
            server.shutdown()


def handler(config: NodeConfig, stop: threading.Event) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            peers = [
                {"region": peer.region, "node": peer.node, "sending": True, "lag_seconds": 0.25, "lag_changes": 3}
                for peer in config.peers
            ]
            documents = {
                "/readyz": {"ready": True, "reasons": []},
                "/v1/status": {"region": config.region, "node": config.node, "peers": peers},
            }
            if self.path == "/end":
                stop.set()
            body = json.dumps(documents.get(self.path, {})).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Not one line for each poll."""

    return Handler


if __name__ == "__main__":
    main()
