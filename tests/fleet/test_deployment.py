"""The files and the command lines in the README of the fleet: each is taken from there, and checked by its program."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import pytest
import trustme
import yaml
from tornado.httpclient import AsyncHTTPClient, HTTPError, HTTPRequest
from tornado.web import Application
from tornado.websocket import WebSocketClientConnection, WebSocketClosedError, websocket_connect

from tests.conftest import Server, ask, closing, receive_data, until
from tests.fake_rbkit import FakeRbkit
from tests.fleet.conftest import Machine
from tests.patient import patient
from tornado_rbkit import Bridge, rbkit_routes
from tornado_rbkit.cli.fleet import URL_VARIABLE
from tornado_rbkit.cli.main import parse
from tornado_rbkit.fleet.hub import LEAST_VERSION, Hub
from tornado_rbkit.fleet.nats import NatsServers
from tornado_rbkit.fleet.server import NatsServer, find_program
from tornado_rbkit.fleet.subjects import permissions_of_bridge, permissions_of_host
from tornado_rbkit.profiler.folder import DIRECTORY_VARIABLE, prepare_folder

pytestmark = pytest.mark.usefixtures("patient_fleet")

ROOT: Final = Path(__file__).parents[2]
README: Final = (ROOT / "tornado_rbkit" / "fleet" / "README.md").read_text(encoding="utf-8")
TOKEN: Final = "a-token-of-many-characters"
INSTALLED: Final = "/opt/rbkit/bin/tornado-rbkit"
HUB: Final = "/var/lib/rbkit-hub"
DROP_IN: Final = "/etc/systemd/system/web.service.d/rbkit.conf"
COMMAND_LINES: Final = [
    line.strip()
    for line in re.sub(r"```.*?```", "", README, flags=re.DOTALL).splitlines()
    if line.startswith("    ") and "tornado-rbkit" in line and "──►" not in line
]


def snippets() -> Iterator[tuple[str, str]]:
    """Yield the files in the README: their names, which are in the paragraph before them, and their contents."""
    for paragraph, text in re.findall(r"(?<=\n\n)((?:[^\n]+\n)+)\n```[a-z]+\n(.*?)```\n", README, re.DOTALL):
        names = re.findall(r"`([\w/@.-]+\.(?:service|conf|cfg|yaml))`", paragraph)
        yield names[-1], text


FILES: Final = dict(snippets())
UNITS: Final = {name: text for name, text in FILES.items() if name.endswith(".service")}
NATS: Final = ("rbkit-users.conf", "cluster.conf", "centre.conf", "site.conf")


def needs(program: str) -> str:
    """Return the path of a program of the system; skip the test without it."""
    path = shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
    if path is None:
        pytest.skip(f"there is no {program}")
    return path


def check(*command: str | Path, **environment: str) -> None:
    """Run a program that checks a file."""
    finished = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr


def parsed(arguments: list[str]) -> Any:
    """Return the options of a command line, which is parsed as the program itself does."""
    options = parse(arguments)
    url = getattr(options, "nats", None)
    if url not in (None, "auto") and not url.startswith("$("):
        NatsServers(urls=tuple(url.split(",")), insecure=True)
    return options


def test_every_file_in_the_readme_is_checked_by_a_test() -> None:
    assert README.count("\n```\n") == len(FILES)
    others = {"/etc/haproxy/haproxy.cfg", "/etc/nginx/conf.d/rbkit.conf", "web.yaml", DROP_IN}
    assert FILES.keys() == UNITS.keys() | others | set(NATS)
    assert len(UNITS) == 3


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_every_command_line_is_one_that_the_program_takes(line: str) -> None:
    words = shlex.split(line, comments=True)
    program = next(number for number, word in enumerate(words) if Path(word).name == "tornado-rbkit")
    parsed(words[program + 1 :])


def test_systemd_accepts_the_units_and_the_program_their_command_lines(tmp_path: Path) -> None:
    systemd_analyze = needs("systemd-analyze")
    program = Path(sys.executable).with_name("tornado-rbkit")
    files = {**UNITS, DROP_IN: FILES[DROP_IN], "/etc/systemd/system/web.service": "[Service]\nExecStart=/bin/true\n"}
    for name, text in files.items():
        path = tmp_path / Path(name).relative_to("/etc/systemd/system")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text.replace(INSTALLED, str(program)))
    for text in UNITS.values():
        (line,) = re.findall(rf"^ExecStart={INSTALLED} (.*)", text, re.MULTILINE)
        parsed(shlex.split(line.replace("%i", "8765")))
    units = [path for path in tmp_path.iterdir() if path.is_file()]
    assert len(units) == 4
    check(systemd_analyze, "verify", "--man=no", "--recursive-errors=no", *units, SYSTEMD_UNIT_PATH=f"{tmp_path}:")


def test_the_agent_and_the_profiled_service_have_the_same_runtime_folder() -> None:
    agent = UNITS["/etc/systemd/system/rbkit-agent.service"]
    lines = FILES[DROP_IN].split("\n")
    assert set(lines) <= set(agent.split("\n"))
    assert f"Environment={DIRECTORY_VARIABLE}=/run/rbkit" in lines


class TestKubernetes:
    """The manifests, against what the commands take."""

    DOCUMENTS: Final[list[dict[str, Any]]] = list(yaml.safe_load_all(FILES["web.yaml"]))

    def containers(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yield each container with the specification of its pod."""
        for document in self.DOCUMENTS:
            if document["kind"] == "Deployment":
                pod = document["spec"]["template"]["spec"]
                yield from ((container, pod) for container in pod["containers"])

    def test_their_command_lines_are_those_that_the_program_takes(self) -> None:
        ours = [container for container, _ in self.containers() if container["command"][0] == "tornado-rbkit"]
        assert [container["name"] for container in ours] == ["rbkit-agent", "bridge"]
        for container in ours:
            command = [str(word) for word in container["command"]]
            options = parsed(command[1:])
            variables = {each["name"] for each in container["env"]}
            assert set(re.findall(r"\$\((\w+)\)", " ".join(command))) <= variables
            assert variables <= {DIRECTORY_VARIABLE, URL_VARIABLE, "RBKIT_TOKEN", "POD_NAME"}
            for port in container.get("ports", ()):
                assert port["containerPort"] == options.port
                assert container["readinessProbe"] == {"tcpSocket": {"port": port["name"]}}

    def test_what_they_mount_exists_and_the_runtime_folder_is_a_new_one_that_both_containers_share(
        self, tmp_path: Path
    ) -> None:
        folders = []
        for container, pod in self.containers():
            volumes = {volume["name"]: volume for volume in pod["volumes"]}
            mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
            for variable in container["env"]:
                if variable["name"] == DIRECTORY_VARIABLE:
                    parent, _, name = variable["value"].rpartition("/")
                    assert "emptyDir" in mounts[parent]
                    assert pod["shareProcessNamespace"] is True
                    assert pod["securityContext"]["runAsUser"] > 0
                    folders.append((parent, name))
        assert len(folders) == 2
        assert len(set(folders)) == 1
        tmp_path.chmod(0o777)  # as Kubernetes makes an emptyDir
        prepare_folder(tmp_path / folders[0][1])
        if os.name == "posix":
            assert (tmp_path / folders[0][1]).stat().st_mode & 0o777 == 0o700

    def test_the_ingress_leads_to_the_bridges(self) -> None:
        by_kind = {document["kind"]: document for document in self.DOCUMENTS}
        service, ingress, bridges = by_kind["Service"], by_kind["Ingress"], by_kind["Deployment"]
        template = bridges["spec"]["template"]
        assert (
            service["spec"]["selector"] == template["metadata"]["labels"] == bridges["spec"]["selector"]["matchLabels"]
        )
        (port,) = template["spec"]["containers"][0]["ports"]
        assert service["spec"]["ports"][0]["targetPort"] == port["name"]
        (path,) = ingress["spec"]["rules"][0]["http"]["paths"]
        target = {"name": service["metadata"]["name"], "port": {"name": service["spec"]["ports"][0]["name"]}}
        assert path["backend"] == {"service": target}
        assert path["path"] == "/rbkit"


@pytest.mark.parametrize("name", NATS)
def test_nats_server_accepts_its_files_beside_those_of_the_hub(
    name: str, tmp_path: Path, runtime_folder: Path
) -> None:
    hub = Hub(tmp_path / "hub")
    hub.configure("127.0.0.1:4222", ["nats-1.example"])
    hub.add("host", "web-1", tmp_path / "web-1.creds")
    hub.reload()
    (hub.folder / "centre.pem").write_bytes((hub.folder / "ca.pem").read_bytes())
    path = hub.folder / name
    path.write_text(FILES[name].replace(HUB, hub.folder.as_posix()))
    passwords = dict.fromkeys(re.findall(r"\$(RBKIT_\w+)", FILES[name]), "secret")
    check(find_program(LEAST_VERSION), "-t", "-c", path, **passwords)


def test_the_users_of_a_server_of_ones_own_have_the_permissions_of_the_hub() -> None:
    text = FILES["rbkit-users.conf"]
    of_pods, of_bridge = permissions_of_host("ANY"), permissions_of_bridge("bridge")
    given = [json.loads(each) for each in re.findall(r"(?:publish|subscribe): (\[.*\])", text)]
    assert given == [
        json.loads(json.dumps(of_pods["publish"]).replace("ANY", "*")),
        json.loads(json.dumps(of_pods["subscribe"]).replace("ANY", "*")),
        of_bridge["publish"],
        of_bridge["subscribe"],
    ]


async def test_the_users_of_a_server_of_ones_own_may_do_what_agents_and_bridges_do(
    tmp_path: Path, runtime_folder: Path, rbkit: FakeRbkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    for user in ("PODS", "BRIDGE"):
        monkeypatch.setenv(f"RBKIT_{user}_PASSWORD", f"secret-of-{user}")
    config = tmp_path / "nats.conf"
    config.write_text(f'listen: "127.0.0.1:-1"\nports_file_dir: "{tmp_path.as_posix()}"\n{FILES["rbkit-users.conf"]}')
    server = await NatsServer.start(find_program((2, 9, 0)), config, tmp_path)
    address = server.url.rpartition("/")[2]
    pods, bridges = (
        NatsServers(urls=(f"nats://{user.lower()}:secret-of-{user}@{address}",)) for user in ("PODS", "BRIDGE")
    )
    try:
        async with AsyncExitStack() as stack:
            await Machine(stack, lambda: pods).agent({"puma": Bridge(**rbkit.endpoints)}, "web-7d9f")
            machine = Machine(stack, lambda: bridges)
            served = await machine.served(await machine.bridge("bridge"), "web-7d9f~puma")
            client = await served.connected()
            assert await ask(client, "trigger_gc") == b"0ok"
            message = rbkit.publish_collection()
            assert await receive_data(client) == message
    finally:
        server.stop()


# The proxies, running


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Return a folder with ca.pem, and rbkit.pem and rbkit.key for 127.0.0.1."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    issued.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "rbkit.pem"))
    issued.private_key_pem.write_to_path(str(tmp_path / "rbkit.key"))
    return tmp_path


def haproxy_command(folder: Path, substitute: Callable[[str], str]) -> list[str]:
    """Write the configuration of HAProxy, and return the command that runs it."""
    path = folder / "haproxy.cfg"
    text = substitute(FILES["/etc/haproxy/haproxy.cfg"])
    # The bridges are in this process: late answers to the checks, unlike wrong ones, are the machine's.
    path.write_text(text.replace("defaults\n", "defaults\n    timeout check 1h\n"))
    return [needs("haproxy"), "-db", "-f", str(path)]


def nginx_command(folder: Path, substitute: Callable[[str], str]) -> list[str]:
    """Write the configuration of nginx, with what its packages have around it, and return the command that runs it."""
    temporary = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"{each}_temp_path {folder / each};\n" for each in temporary)
    text = substitute(FILES["/etc/nginx/conf.d/rbkit.conf"])
    path = folder / "nginx.conf"
    path.write_text(
        f"daemon off; master_process off; pid {folder / 'nginx.pid'}; error_log stderr;\n"
        f"events {{}}\nhttp {{ access_log off;\n{paths}{text}}}\n"
    )
    return [needs("nginx"), "-p", str(folder), "-e", "stderr", "-c", str(path)]


PROXIES: Final = {"haproxy": (haproxy_command, ["-c"]), "nginx": (nginx_command, ["-t"])}


class Proxied:
    """A proxy in front of two bridges, each with ten targets of one profiler."""

    def __init__(self, port: int, certificate: Path, bridges: list[dict[str, Bridge]], servers: list[Server]) -> None:
        self.bridges = bridges
        self.servers = servers
        self.connections: list[WebSocketClientConnection] = []
        self._url = f"127.0.0.1:{port}/rbkit"
        self._ca = str(certificate / "ca.pem")

    def request(self, url: str) -> HTTPRequest:
        return HTTPRequest(url, headers={"Authorization": f"Bearer {TOKEN}"}, ca_certs=self._ca, request_timeout=60)

    async def viewer(self, target: str) -> WebSocketClientConnection:
        """Connect as the page does: again until there is a bridge."""
        request = self.request(f"wss://{self._url}/{target}/ws")
        while True:  # the time-out of the test bounds it
            try:
                connection = await websocket_connect(request, subprotocols=["rbkit"])
            except (OSError, HTTPError, WebSocketClosedError):
                await asyncio.sleep(0.01)
            else:
                self.connections.append(connection)
                return connection

    async def status(self, target: str) -> bytes:
        answer = await AsyncHTTPClient().fetch(self.request(f"https://{self._url}/{target}/status"))
        return answer.body

    def viewers(self, target: str) -> list[int]:
        """Return the number of clients at each bridge."""
        return [len(bridges[target].stats()["clients"]) for bridges in self.bridges]


TARGETS: Final = [f"web-{number}~puma" for number in range(10)]


@pytest.fixture(params=PROXIES)
async def proxied(request: pytest.FixtureRequest, certificate: Path, rbkit: FakeRbkit) -> AsyncIterator[Proxied]:
    needs(request.param)
    command_for, check_option = PROXIES[request.param]
    bridges = [{target: patient(Bridge(**rbkit.endpoints, threaded=False)) for target in TARGETS} for _ in range(2)]
    servers = [
        Server.of(named[TARGETS[0]], Application(rbkit_routes(named, token=TOKEN, anywhere=False)))
        for named in bridges
    ]
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]

    def substitute(text: str) -> str:
        for number, server in enumerate(servers):
            text = text.replace(f"10.0.0.{number + 1}:8765", f"127.0.0.1:{server.port}")
        text = re.sub(r"(bind|listen) :?443", rf"\1 127.0.0.1:{port}", text)
        return re.sub(r"/etc/(haproxy|nginx)/", f"{certificate}/", text)

    command = command_for(certificate, substitute)
    log = certificate / "proxy.log"
    environment = {**os.environ, "RBKIT_TOKEN": TOKEN}
    check(*command, *check_option, RBKIT_TOKEN=TOKEN)
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=environment)
    proxied = Proxied(port, certificate, bridges, servers)
    try:
        yield proxied
        assert process.poll() is None, log.read_text()
    finally:
        process.kill()
        process.wait()
        for connection in proxied.connections:
            connection.close()
        for server, named in zip(servers, bridges, strict=True):
            await server.close()
            for bridge in named.values():
                await bridge.close()


async def test_viewers_of_a_target_reach_the_same_bridge_and_the_other_one_when_it_is_killed(
    proxied: Proxied, rbkit: FakeRbkit
) -> None:
    target = TARGETS[0]
    viewers = [await proxied.viewer(target) for _ in range(6)]
    assert sorted(proxied.viewers(target)) == [0, 6]
    home = proxied.viewers(target).index(6)
    for other in TARGETS[1:]:
        await proxied.viewer(other)
    used = {proxied.viewers(other).index(1) for other in TARGETS[1:]}
    assert used == {0, 1}, "the targets are spread"
    for each in TARGETS:
        assert b'"remote"' in await proxied.status(each), "the status is from the bridge that has the viewers"
    await proxied.servers[home].close()
    for viewer in viewers:
        await closing(viewer)
    viewers = [await proxied.viewer(target) for _ in viewers]
    assert proxied.viewers(target)[1 - home] == 6
    await until(lambda: proxied.bridges[1 - home][target].state.value == "connected", "the other bridge is connected")
    message = rbkit.publish_collection()
    for viewer in viewers:
        assert await receive_data(viewer) == message
