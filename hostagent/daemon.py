"""The copy manager as a process: links, sockets and clock around `CopyManager`, one queue in the middle.

Whatever a thread hears is put into the queue; one thread takes it out and runs the copy manager. So the copy
manager needs no lock.
"""

from __future__ import annotations

import logging
import queue
import secrets
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from hostagent.agent_socket import AgentSocketServer
from hostagent.config import Config
from hostagent.copy_manager import CopyManager
from hostagent.flow import Done
from hostagent.line_stream import LineStream
from hostagent.requests import Requests
from hostagent.rpc import Caller, Params, Reply, serve
from hostagent.ssh_client import PeerLink
from hostagent.ssh_server import SshServer
from hostagent.store import Store
from hostagent.target_link import TargetLink
from target.control.supervision import Supervision
from target.errors import PeerError, ReplctlError

_TICK_SECONDS = 0.1

_log = logging.getLogger(__name__)


class Daemon:
    """Also the `Environment` of its copy manager. Raises ReplctlError when something does not fit."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.site = str(config.site.name)
        self.state_dir = str(config.site.state_dir)
        self.peer_wait_seconds = config.hostagent.peer_wait_seconds
        self.serve_without_peers = config.hostagent.no_peer_policy == "serve"
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._up: set[str] = set()
        self._callers: dict[str, Caller] = {}
        self._links: dict[str, PeerLink] = {}
        self._store = Store(config.hostagent.database)
        self._manager = CopyManager(self, self._store, tuple(str(name) for name in config.groups))
        self._requests = Requests(self._manager)
        table = config.hostagent
        self._ssh = SshServer(
            table.ssh_listen, table.host_key_file, table.authorized_keys_file, self._serve_peer
        )
        try:
            self._socket = AgentSocketServer(table.socket, self._handle, self._serve_peer)
        except ReplctlError:
            self._ssh.close()
            raise
        self._target = TargetLink(
            config.control_socket,
            lambda note, params: self._post(partial(self._target_note, note, params)),
            lambda: self._post(self._manager.on_target_up),
            lambda: self._post(self._manager.on_target_down),
        )
        for peer in config.peers:
            self._connect(str(peer.name))

    # -- threads come in here --

    def _post(self, call: Callable[[], None]) -> None:
        self._queue.put(call)

    def _serve_peer(self, stream: LineStream) -> None:
        serve(stream, self._handle)

    def _handle(self, peer: str, op: str, params: Params, reply: Reply) -> None:
        self._post(partial(self._request, peer, op, params, reply))

    def _connect(self, name: str) -> None:
        peer = self._config.peer(name)
        assert peer is not None

        def send(message: dict[str, Any]) -> bool:
            link = self._links.get(name)
            return link is not None and link.send(message)

        caller = self._callers[name] = Caller(send)

        def down(reason: str) -> None:
            caller.lost(f"the link to {name} is down: {reason}")
            self._post(partial(self._peer_down, name, reason))

        self._links[name] = PeerLink(
            peer.ssh,
            peer.host_key,
            self._config.hostagent.identity_file,
            caller.received,
            lambda: self._post(partial(self._peer_up, name)),
            down,
            peer_name=name,
        )

    # -- the one thread --

    def run(self, supervision: Supervision) -> None:
        """Until `stop`; says meanwhile that it lives."""
        next_tick = next_alive = time.monotonic()
        while True:
            if supervision.interval_seconds is not None and time.monotonic() >= next_alive:
                supervision.alive()
                next_alive = time.monotonic() + supervision.interval_seconds
            try:
                call = self._queue.get(timeout=max(0.0, next_tick - time.monotonic()))
            except queue.Empty:
                next_tick = time.monotonic() + _TICK_SECONDS
                call = self._manager.on_tick
            if call is None:
                return
            try:
                call()
            except Exception:
                _log.exception("the copy manager met something it does not know; it goes on")

    def stop(self) -> None:
        """End `run`; any thread."""
        self._queue.put(None)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()
        self._ssh.close()
        self._target.close()
        closers = [threading.Thread(target=link.close) for link in self._links.values()]
        for closer in closers:
            closer.start()
        for closer in closers:
            closer.join()
        self._store.close()

    def _request(self, peer: str, op: str, params: Params, reply: Reply) -> None:
        try:
            self._requests.handle(peer, op, params, reply)
        except ReplctlError as error:
            reply(error=error)
        except Exception as error:
            _log.exception("%s failed", op)
            reply(error=ReplctlError(f"{op} failed in the host agent: {error!r}; its log has the details"))

    def _target_note(self, note: str, params: dict[str, Any]) -> None:
        if note == "group":
            self._manager.on_group_state(params)

    def _peer_up(self, name: str) -> None:
        self._up.add(name)
        self._manager.on_peer_up(name)

    def _peer_down(self, name: str, reason: str) -> None:
        self._up.discard(name)
        self._manager.on_peer_down(name, reason)

    # -- Environment --

    def call(
        self, site: str | None, op: str, params: dict[str, Any], done: Done, timeout_seconds: float
    ) -> None:
        def answered(result: dict[str, Any] | None, error: ReplctlError | None) -> None:
            self._post(partial(done, result, error))

        if site is None:
            self._target.call(op, params, answered, timeout_seconds)
        elif site in self._callers:
            self._callers[site].call(op, params, answered, timeout_seconds)
        else:
            answered(None, PeerError(f"site {site!r} is not configured here"))

    def notify(self, site: str, note: str, params: dict[str, Any]) -> None:
        caller = self._callers.get(site)
        if caller is not None:
            caller.notify(note, params)

    def link_up(self, site: str) -> bool:
        return site in self._up

    def san_address(self, site: str) -> tuple[str, str] | None:
        peer = self._config.peer(site)
        return None if peer is None else (str(peer.san_portal), str(peer.san_target or ""))

    def peers(self) -> list[str]:
        return [str(peer.name) for peer in self._config.peers]

    def monotonic(self) -> float:
        return time.monotonic()

    def wall_ns(self) -> int:
        return time.time_ns()

    def random_reign(self) -> int:
        return secrets.randbits(63)
