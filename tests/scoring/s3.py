"""A real S3 API on loopback (moto), which can be stopped and started again with what it holds."""

from __future__ import annotations

import contextlib
import socket
import threading
import uuid
from dataclasses import dataclass, field
from typing import Any

import boto3
from botocore.config import Config
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import ThreadedWSGIServer

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


class _Handler(MotoRequestHandler):
    def log_request(self, *args: Any, **kwargs: Any) -> None:
        pass  # a line a request would bury the tests' own output


class _Server(ThreadedWSGIServer):
    """Knows its connections: clients keep theirs open, and a server that is gone must not answer on them."""

    def __init__(self, port: int) -> None:
        self.connections: set[socket.socket] = set()
        super().__init__("127.0.0.1", port, DomainDispatcherApplication(create_backend_app), _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self.connections.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # connections that we cut


class S3Server:
    """The server. What it holds belongs to this process, so it outlives `stop`."""

    def __init__(self) -> None:
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen, at the same port every time. Does nothing when it runs."""
        if self._server is None:
            self._server = _Server(self.port)
            self.port = self._server.server_port
            self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Refuse connections and cut those that stand. Does nothing when it is stopped."""
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        for connection in list(self._server.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._server = self._thread = None


@dataclass
class S3:
    """A bucket of one test. The environment names the endpoint and credentials, so child processes find it too.

    client: of boto3, for whatever else a test wants to do. url: `s3://<bucket>`.
    """

    server: S3Server
    bucket: str = field(default_factory=lambda: f"test-{uuid.uuid4().hex[:12]}")

    def __post_init__(self) -> None:
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=self.server.url,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
            config=Config(retries={"total_max_attempts": 1}),
        )
        self.client.create_bucket(Bucket=self.bucket)

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}"

    @property
    def endpoint_url(self) -> str:
        return self.server.url

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=key, Body=data)

    def get(self, key: str) -> bytes:
        data: bytes = self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return data

    def keys(self, prefix: str = "") -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=self.bucket, Key=key)

    def delete_bucket(self) -> None:
        """With everything in it: a thousand keys at a time, so that little is read meanwhile."""
        keys = [{"Key": key} for key in self.keys()]
        for start in range(0, len(keys), 1000):
            self.client.delete_objects(Bucket=self.bucket, Delete={"Objects": keys[start : start + 1000]})
        self.client.delete_bucket(Bucket=self.bucket)

    def stop(self) -> None:
        """The endpoint goes away; the bucket is there again after `start`."""
        self.server.stop()

    def start(self) -> None:
        self.server.start()
