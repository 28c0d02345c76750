"""Combines a server with the parts of a daemon: log, admin address, control socket, upgrades, pid and state files."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from netsvc.app.admin import Admin
from netsvc.app.code import LoadedCode
from netsvc.app.reload import ReadPlan, Reload
from netsvc.app.state import StateFile
from netsvc.base.errors import UserError
from netsvc.base.steps import Steps
from netsvc.base.text import escape
from netsvc.control.commands import commands_of
from netsvc.control.forward import forward
from netsvc.control.location import prepare_directories
from netsvc.control.server import Command, Control
from netsvc.listen.handoff import OfferedPort
from netsvc.listen.systemd import activated, unused
from netsvc.log.opening import OpenLog, open_log
from netsvc.log.queued import follow
from netsvc.plan.answer import Answer
from netsvc.plan.plan import Plan
from netsvc.server.instances import Load
from netsvc.server.interface import IServer
from netsvc.server.notify import Notifier
from netsvc.server.orphans import Orphans
from netsvc.server.pidfile import PidFile
from netsvc.server.process import reload_on_hangup, start_error
from netsvc.server.server import log_ready
from netsvc.upgrade.upgrader import Upgrader, reporting

if TYPE_CHECKING:
    from netsvc.upgrade.predecessor import Predecessor
    from netsvc.upgrade.program import Program

#: Seconds for a process to end after its drain, on a loaded machine.
STOP_GRACE = 10.0

_log = Logger(namespace="netsvc")


class Application(Service):
    """A server with its log, admin address, control socket, upgrader, notifier, pid file and state file.

    `read` reads the plan again. `options` are the twistd options, if twistd runs it. `program` is the program of this
    process, without which it cannot be upgraded. `predecessor` is the process that it replaces, if there is one.
    `detached` means that this process is a daemon.
    """

    def __init__(
        self,
        server: IServer,
        reactor: Any,
        read: ReadPlan,
        *,
        options: Mapping[str, Any] | None = None,
        notifier: Notifier | None = None,
        pid_file: PidFile | None = None,
        program: Program | None = None,
        predecessor: Predecessor | None = None,
        detached: bool = False,
    ) -> None:
        self.server = server
        self.notifier = notifier or Notifier()
        self.pid_file = pid_file
        self.log: OpenLog | None = None
        self.admin = Admin(reactor, self)
        self.state_file = StateFile(server)
        self.code = LoadedCode()
        self.reloader = Reload(
            reactor, read, self.reload, self.notifier, hints=self._code_hints, passed_on=self._pass_hangup
        )
        self.upgrader = Upgrader(
            reactor,
            server,
            self,
            program=program,
            predecessor=predecessor,
            detached=detached,
            notifier=self.notifier,
            pid_file=pid_file,
            took_over=self._became_ready,
        )
        self.control: Control | None = None
        self._control_directories: Sequence[str] = ()
        #: For each command that was passed on, what fires when it is answered.
        self._forwarded: set[Deferred[None]] = set()
        self._predecessor = predecessor
        self._options = options or {}
        self._reactor = reactor
        self._is_open = False
        server.became_ready = self._became_ready

        # Operations that its parts implement; see `netsvc.server.interface`.
        self.status = server.status
        self.departed = server.departed
        self.departed_metrics = server.departed_metrics
        self.not_ready = server.not_ready
        self.close_connection = server.close_connection
        self.drain = server.drain
        self.reread = self.reloader.answer
        self.processes = server.processes
        self.prepare = server.prepare

    def setServiceParent(self, parent: Any) -> None:
        """Join the Twisted application, and open the log."""
        with reporting(self._predecessor):
            super().setServiceParent(parent)
            self.log = open_log(parent, self._options, self.server.plan)

    def privilegedStartService(self) -> None:
        """Open every port, before twistd drops privileges. Raises `StartError`; nothing stays open then."""
        super().privilegedStartService()
        self._is_open = True
        with reporting(self._predecessor), ExitStack() as undo:
            self.upgrader.inherit()
            try:
                if self.pid_file is not None and self._predecessor is None:
                    undo.callback(self.pid_file.remove)
                    self.pid_file.write()
                self.admin.open(self.server.plan.admin, self._predecessor)
                undo.callback(self.admin.close)
                self.state_file.make_directory(self._options)
                # Before privileges are dropped: only root can create them in /run.
                self._control_directories = self._prepare_control()
            except UserError as error:
                raise start_error(error.errors) from None
            self.server.privilegedStartService()
            if self.log is not None:
                self.server.log_connections(self.log)
            undo.pop_all()

    def _prepare_control(self) -> Sequence[str]:
        plan, options = self.server.plan, self._options
        return prepare_directories(plan.config, plan.state, options.get("uid"), options.get("gid"))

    def startService(self) -> None:
        """Start the services, and accept signals and commands. Raises `StartError`."""
        if not self._is_open:
            # twist starts services without a privileged start.
            self.privilegedStartService()
        super().startService()
        follow(self._reactor)
        if os.getpid() == 1:
            # After an upgrade, the proxy process reaps them, and ends with the status of the process that serves.
            Orphans(self._reactor, lambda: self.upgrader.has_successor).start()
        self.upgrader.start()
        self.notifier.start(self._reactor, self.server.activity)
        with reporting(self._predecessor), ExitStack() as undo:
            undo.callback(self.admin.close)
            if self.pid_file is not None:
                undo.callback(self.pid_file.remove)
            self.server.startService()
            undo.pop_all()
        if self._predecessor is None:
            self.admin.announce()
        if sys.platform == "linux":
            commands = {
                name: command if name == "status" else partial(self._command, name, command)
                for name, command in commands_of(self, self.reread).items()
            }
            directories = self._control_directories
            self.control = Control(self._reactor, self.server.plan.config, commands, os.getpid(), directories)
            self.control.listen()
        if self.pid_file is not None:
            self._reactor.addSystemEventTrigger("after", "shutdown", self.pid_file.remove)

    def _command(self, name: str, command: Command, words: Sequence[str]) -> Deferred[Answer] | Answer:
        """Run a command, or pass it on to the process that has replaced this one, as signals are."""
        pid = self.upgrader.serving_pid()
        if not pid:
            return command(words)
        answered = forward(self._reactor, pid, self._control_directories, [name, *words])
        ended: Deferred[None] = Deferred()
        self._forwarded.add(ended)

        def end(answer: Answer) -> Answer:
            self._forwarded.discard(ended)
            ended.callback(None)
            return answer

        return answered.addCallback(end)

    def _pass_hangup(self) -> bool:
        """Pass a SIGHUP on to the process that has replaced this one, if there is one; return whether there is."""
        pid = self.upgrader.serving_pid()
        if pid:
            # It may have ended.
            with suppress(OSError):
                os.kill(pid, signal.SIGHUP)
        return bool(pid)

    def _became_ready(self) -> None:
        # Both first: the reader of the log line `ready` may read the file, or send a signal.
        self.state_file.write(first=True)
        reload_on_hangup(self._reactor, self.reloader.on_sighup)
        self.upgrader.accept_signal(self.upgrade)
        self._warn_of_unused()
        log_ready()
        self.notifier.ready()
        self.code.remember()

    def _code_hints(self) -> Sequence[str]:
        if self.server.processes() > 1:
            # The new workers have loaded it.
            return []
        return self.code.hints(self.upgrader.cure())

    def _warn_of_unused(self) -> None:
        """Log the sockets that systemd has passed and no address uses."""
        if not activated():
            return
        with suppress(UserError):
            # A port without a socket cannot be offered.
            ports = [*self.server.ports(), *self.admin.ports()]
            for name in unused(bound for port in ports for bound in port.sockets):
                _log.warn(
                    "systemd has passed the socket {name}, which no address uses: what connects to it is not answered; "
                    "use the address systemd:{name}, or disable its .socket unit",
                    name=escape(name),
                )

    def reload(self, plan: Plan, load: Load) -> Deferred[str]:
        """Change to another plan and its admin address, or neither. Fires with a summary, or fails with `UserError`."""
        steps = Steps()
        try:
            if refusal := self.upgrader.refusal():
                raise UserError([refusal])
            self.admin.change(plan.admin, steps)
        except UserError as error:
            return fail(error)
        reloading = self.server.reload(plan, load)
        return reloading.addCallbacks(partial(self._reloaded, steps), partial(self._not_reloaded, steps))

    def upgrade(self, _arguments: Sequence[str] = ()) -> Deferred[Answer]:
        """See `netsvc.server.interface.Operations`."""
        return self.reloader.between(self.upgrader.upgrade)

    def _reloaded(self, steps: Steps, summary: str) -> str:
        self.state_file.write()
        steps.commit()
        return summary

    def _not_reloaded(self, steps: Steps, failure: Failure) -> Failure:
        steps.undo()
        return failure

    def stopService(self) -> Deferred[None]:
        """Drain and stop the server; then close the admin address and the control socket, which report the drain."""
        super().stopService()
        self.upgrader.stop()
        self.reloader.closed = True
        self.notifier.stopping(self.server.plan.longest_drain + STOP_GRACE)
        stopping = maybeDeferred(self.server.stopService)
        self.state_file.write()
        if self.control is not None and self.upgrader.has_successor:
            # Commands that name the configuration file are for the successor; with its pid, they are for this process.
            self.control.give_up_config()
        return Deferred.fromCoroutine(self._stopped(stopping))

    async def _stopped(self, stopping: Deferred[None]) -> None:
        try:
            await stopping
        finally:
            self.state_file.write()
            await self.admin.close()
            self.notifier.close()
            # The successor answers when its own drain is over.
            for forwarded in list(self._forwarded):
                await forwarded
            if self.control is not None:
                await self.control.close()

    # Takeover by another process: the ports of the server, and the admin address.

    def ports(self) -> list[OfferedPort]:
        """See `netsvc.server.interface.Replaceable`."""
        return [*self.server.ports(), *self.admin.ports()]

    def pause(self, step: int, successors: int, ports: Sequence[OfferedPort]) -> None:
        """See `netsvc.server.interface.Replaceable`."""
        self.admin.pause()
        self.server.pause(step, successors, ports)

    def resume(self, ports: Sequence[OfferedPort]) -> None:
        """See `netsvc.server.interface.Replaceable`."""
        self.admin.resume()
        self.server.resume(ports)

    def serve(self, step: int, steps: int) -> None:
        """See `netsvc.server.interface.Replaceable`."""
        self.server.serve(step, steps)
        if step == steps - 1:
            self.admin.resume()
            self.admin.announce()
