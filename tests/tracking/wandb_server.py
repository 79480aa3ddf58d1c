"""A W&B server for the tests: openwandb on loopback, behind a recorder that sees what wandb sends.

openwandb's licence is non-commercial: it is a tool of the test machine, in an environment of its own. It adds up
history where W&B writes lines at their offset, knows no exit codes and does not tell a resuming run what it has;
the recorder does these three as W&B does. Nor does it know reports: the recorder takes and keeps them, and draws
nothing. What W&B's pages make of them is tried nowhere.
"""

import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import defaultdict
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from filelock import FileLock

KEY = "local" + "0" * 40
VERSION = "openwandb==0.5.25"


def install(cache: Path) -> Path:
    """The server's program, installed when it is first needed. Raises CalledProcessError."""
    program = cache / "bin" / "openwandb"
    with FileLock(f"{cache}.lock"):  # of test processes side by side
        if not program.exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", cache], check=True, capture_output=True)
            install = [cache / "bin" / "pip", "install", "--disable-pip-version-check", VERSION]
            subprocess.run(install, check=True, capture_output=True, timeout=300)
    return program


def install_reports(cache: Path) -> Path:
    """A folder with the library that reports need, as it is locked. Raises CalledProcessError."""
    lock = (Path(__file__).parents[2] / "requirements.lock").read_text(encoding="utf-8")
    version = re.findall(r"^wandb-workspaces==[\d.]+", lock, re.MULTILINE)[0]
    folder = cache / version
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            part = folder.with_suffix(".part")
            install = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps"]
            subprocess.run([*install, "--target", part, version], check=True, capture_output=True, timeout=300)
            part.rename(folder)
    return folder


def login(server: "Recorder") -> dict[str, str]:
    """The environment of a process that logs in to it."""
    return {"WANDB_BASE_URL": server.address, "WANDB_API_KEY": KEY, "WANDB__FILE_STREAM_TRANSMIT_INTERVAL": "0.2"}


def start(program: Path, folder: Path) -> tuple[subprocess.Popen, str]:
    """The server's process and address, when it answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [program, "serve", "--host", "127.0.0.1", "--port", str(port), "--data-dir", folder / "data"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"HOME": str(folder)})
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{address}/api/v1/viewer", timeout=5):
                break
        except urllib.error.HTTPError:
            break
        except OSError:
            time.sleep(0.1)
    else:
        process.kill()
        raise TimeoutError((folder / "log").read_text())
    # It would hash the key slowly at each request, seconds on a busy machine; the default key passes without its row.
    with closing(sqlite3.connect(next((folder / "data").rglob("*.db")))) as database, database:
        assert database.execute("DELETE FROM api_keys").rowcount == 1
    return process, address


class Recorder(ThreadingHTTPServer):
    """Passes on to `upstream`; `fault` for every further request: "500", "401", "hang", "slow" or "half"."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, upstream: str | None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.upstream, self.fault = upstream, ""
        self.history: dict[str, list[dict]] = defaultdict(list)
        self.exits: dict[str, list[int]] = defaultdict(list)
        self.opened: dict[str, list[dict]] = defaultdict(list)
        self.views: list[dict] = []  # reports, as they were saved
        self.bodies: list[bytes] = []
        Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *arguments: object) -> None:
        pass  # a client that was killed

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    def stream(self, run: str, message: dict) -> None:
        lines = message.get("files", {}).get("wandb-history.jsonl")
        if lines:
            rows = [json.loads(line) for line in lines["content"]]
            kept = self.history[run][: lines["offset"]]
            assert len(kept) == lines["offset"]
            self.history[run] = kept + rows
        if message.get("complete"):
            self.exits[run].append(message["exitcode"])

    def report(self, query: str, given: dict) -> dict | None:
        """The answer to what openwandb cannot, since it knows no reports; None to all else."""
        if "ProjectInternalId" in query:
            return {"project": {"id": "1", "internalId": "1"}}
        if "query GetProjects(" in query:
            names = dict.fromkeys(opened[-1]["project"] for opened in self.opened.values())
            about = {"__typename": "Project", "createdAt": "2026-01-01T00:00:00Z", "isBenchmark": False, "user": None}
            nodes = [about | {"id": name, "name": name, "entityName": given["entity"]} for name in names]
            page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
            return {"models": {"pageInfo": page, "edges": [{"node": node} for node in nodes]}}
        if "mutation upsertView" in query:
            self.views.append(given | {"spec": json.loads(given["spec"])})
            where = {"id": "1", "name": given["projectName"], "entityName": given["entityName"]}
            kept = {name: given[name] for name in ("name", "displayName", "description", "type", "spec")}
            return {"upsertView": {"view": kept | {"id": f"view{len(self.views)}", "project": where}, "inserted": True}}
        return None

    def resume_status(self, run: str, reply: dict) -> dict:
        bucket = reply["data"]["model"]["bucket"]
        if bucket:
            rows = self.history[run]
            bucket |= {"historyLineCount": len(rows), "eventsTail": "[]", "wandbConfig": '{"t": {"1": []}}'}
            bucket["historyTail"] = json.dumps([json.dumps(row) for row in rows[-1:]])
        return reply


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Recorder

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.bodies.append(body)
        fault = self.server.fault
        if fault in ("hang", "slow"):
            time.sleep(600 if fault == "hang" else 3)
        if fault in ("500", "401") or not self.server.upstream:
            status, reply = int(fault or 500), b""
        else:
            status, reply = self.pass_on(_named(body))
        if status == 200:
            reply = self.note(body, reply)
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply[: len(reply) // 2] if fault == "half" else reply)
        self.close_connection |= fault == "half"

    do_GET = do_POST = do_PUT = do_HEAD = answer

    def pass_on(self, body: bytes) -> tuple[int, bytes]:
        if self.path == "/graphql":
            asked = json.loads(body)
            own = self.server.report(asked["query"], asked.get("variables") or {})
            if own:
                return 200, json.dumps({"data": own}).encode()
        headers = {k: v for k, v in self.headers.items() if k.lower() in ("authorization", "content-type")}
        headers["x-forwarded-host"] = self.headers["host"]  # so that uploads come through here too
        request = urllib.request.Request(self.server.upstream + self.path, body or None, headers, method=self.command)
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return reply.status, reply.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def note(self, body: bytes, reply: bytes) -> bytes:
        if self.path.endswith("/file_stream"):
            self.server.stream(self.path.split("/")[-2], json.loads(body))
        elif self.path == "/graphql":
            query = json.loads(body)
            if query.get("operationName") == "RunResumeStatus":
                reply = json.dumps(self.server.resume_status(query["variables"]["name"], json.loads(reply))).encode()
            if query.get("operationName") == "UpsertBucket":
                self.server.opened[query["variables"]["name"]].append(query["variables"])
        return reply

    def log_message(self, *arguments: object) -> None:
        pass


def _named(body: bytes) -> bytes:
    """A request whose operation has no name, as wandb's API for reading sends it, as openwandb takes it."""
    return body.replace(b'"operationName":""', b'"operationName":null')
