"""compose/docker-compose.yml as it is, on a real Docker engine: three containers, killed, cut off, promoted, removed.

Only the host's ports and the network of the build are the test's own: 5001 may be taken here, and its engine has no way
out of a container.
"""

import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.cluster import wait_until
from support.docker_engine import DockerEngine, import_base, open_engine
from support.project import ROOT

pytestmark = pytest.mark.timeout(300)

NAMES = ("web1", "web2", "web3")
NETWORK = "kvnode_default"
BASE = "python:3.11-slim-bookworm"


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody has now."""
    with ExitStack() as servers:
        return [servers.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(count)]


class Deployment:
    """What `docker-compose` runs, in the project's compose folder."""

    def __init__(self, engine: DockerEngine) -> None:
        self.engine = engine
        ports = free_ports(2 * len(NAMES))
        self.http = dict(zip(NAMES, ports, strict=False))
        self.peer = dict(zip(NAMES, ports[len(NAMES) :], strict=True))
        self.variables = {"KVNODE_BUILD_NETWORK": "host"}
        for name in NAMES:
            self.variables[f"KVNODE_{name.upper()}_HTTP_PORT"] = str(self.http[name])
            self.variables[f"KVNODE_{name.upper()}_PEER_PORT"] = str(self.peer[name])

    def try_compose(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.engine.run("docker-compose", *arguments, cwd=ROOT / "compose", timeout_s=250, **self.variables)

    def compose(self, *arguments: str) -> str:
        """Runs it where it must succeed; returns what it said."""
        done = self.try_compose(*arguments)
        assert done.returncode == 0, f"docker-compose {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout

    def ask(self, name: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{self.http[name]}{path}", data=data, timeout=15) as answer:
            return json.load(answer)

    def put(self, name: str, key: str, value: str) -> int:
        """Puts it as soon as the node takes it, as a replica does once it has reached its primary; returns the seq."""
        answers: list[Any] = []
        self.wait(lambda: answers.append(self.ask(name, "/put", {"key": key, "value": value})) or True, "a put")
        return int(answers[0]["seq"])

    def data(self, name: str, seq: int) -> Any:
        """All that a node has, as soon as it has this."""
        return self.ask(name, f"/readrange?min_seq={seq}&wait=10")["items"]

    def wait(self, is_true: Callable[[], object], what: str) -> None:
        """Waits for it; says what all nodes have logged when it does not happen."""
        try:
            wait_until(is_true, what, timeout_s=60)
        except AssertionError as error:
            logs = "".join(f"\n---- {name}\n{self.logs(name)[-3000:]}" for name in NAMES)
            raise AssertionError(f"{error}{logs}") from None

    def logs(self, name: str) -> str:
        return self.engine.docker("logs", name)

    def wait_ready(self) -> None:
        """Until each has its primary and all that this has, or is it."""
        for name in NAMES:
            self.wait(lambda name=name: self.ask(name, "/ready?max_lag=0"), f"{name} is ready")

    def wait_equal(self, seq: int) -> None:
        """Until all have the same data; those of the sequence number at least."""
        self.wait_ready()
        first, *others = (self.data(name, seq) for name in NAMES)
        assert first
        assert all(other == first for other in others)

    def roles(self) -> list[str]:
        """Of web1, web2 and web3; "superseded" is a primary that has heard of a later one."""
        said = [self.ask(name, "/status") for name in NAMES]
        return ["superseded" if "fenced" in status else status["role"] for status in said]

    def state(self, name: str, field: str) -> str:
        return self.engine.inspect(name, f"{{{{.State.{field}}}}}")

    def address(self, name: str) -> str:
        return self.engine.inspect(name, f'{{{{(index .NetworkSettings.Networks "{NETWORK}").IPAddress}}}}')


@pytest.fixture(scope="module")
def engine(pytestconfig: pytest.Config) -> Iterator[DockerEngine]:
    assert pytestconfig.cache is not None
    with open_engine() as engine:
        import_base(engine, BASE, Path(pytestconfig.cache.mkdir("docker")))
        yield engine


@pytest.fixture(scope="module")
def nodes(engine: DockerEngine) -> Iterator[Deployment]:
    """Three nodes that several tests use, as a build and a start take long; each test leaves all of them running."""
    nodes = Deployment(engine)
    nodes.compose("up", "--build", "-d")
    nodes.wait_ready()
    yield nodes
    nodes.compose("down", "--volumes")


def rendered(engine: DockerEngine, *options: str, **variables: str) -> dict[str, Any]:
    """The services as docker-compose understands the file, without what this test sets."""
    done = engine.run("docker-compose", *options, "config", cwd=ROOT / "compose", **variables)
    assert (done.returncode, done.stderr) == (0, "")
    services: dict[str, Any] = yaml.safe_load(done.stdout)["services"]
    return services


def test_ports_of_the_host_are_5001_to_5003_of_this_host_alone(engine: DockerEngine) -> None:
    services = rendered(engine)
    for number, name in enumerate(NAMES, start=1):
        rest, peer = f"127.0.0.1:{5000 + number}:5001/tcp", f"127.0.0.1:{7000 + number}:7001/tcp"
        assert services[name]["ports"] == [rest, peer]
    opened = rendered(engine, KVNODE_HOST_IP="0.0.0.0")
    assert opened["web2"]["ports"] == ["0.0.0.0:5002:5001/tcp", "127.0.0.1:7002:7001/tcp"]


def test_monitoring_is_there_when_it_is_asked_for(engine: DockerEngine) -> None:
    """Its images cannot be had here; what they are given can."""
    services = rendered(engine, "--profile=monitoring")
    assert set(services) == {*NAMES, "prometheus", "grafana"}
    for name in ("prometheus", "grafana"):
        assert services[name]["profiles"] == ["monitoring"]
        assert [port.rpartition(":")[0].rpartition(":")[0] for port in services[name]["ports"]] == ["127.0.0.1"]
        given = [volume.partition(":")[0] for volume in services[name]["volumes"]]
        assert [path for path in given if not Path(path).exists()] == []


def test_what_is_put_on_web1_is_read_on_web2_and_web3(nodes: Deployment) -> None:
    for name in NAMES:
        nodes.wait(lambda name=name: nodes.state(name, "Health.Status") == "healthy", f"{name} is healthy")
    assert nodes.roles() == ["primary", "replica", "replica"]
    seq = nodes.put("web1", "greeting", "hello")
    for name in ("web2", "web3"):
        assert nodes.ask(name, f"/read/greeting?min_seq={seq}&wait=10")["value"] == "hello"
    # And the other way round.
    seq = nodes.put("web3", "greeting", "hello again")
    assert nodes.ask("web1", f"/read/greeting?min_seq={seq}")["value"] == "hello again"


def test_docker_logs_shows_the_events(nodes: Deployment) -> None:
    for name, role in zip(NAMES, ("primary", "replica", "replica"), strict=True):
        (line,) = [line for line in nodes.logs(name).splitlines() if " event=listening " in line]
        assert line.endswith(f" http=0.0.0.0:5001 peer=0.0.0.0:7001 name={name} role={role}")
    assert " event=joined primary=web1:7001 " in nodes.logs("web2")


def test_peer_ports_are_published_for_debugging(nodes: Deployment) -> None:
    for name in NAMES:
        with socket.create_connection(("127.0.0.1", nodes.peer[name]), timeout=10):
            pass
        members = nodes.ask(name, "/status")["members"]
        assert {member["name"]: member["address"] for member in members} == {each: f"{each}:7001" for each in NAMES}


def test_image_runs_a_node_as_nobody_special_and_holds_nothing_to_build_with(nodes: Deployment) -> None:
    look = """
        id -u; id -g; pwd
        cd "$(dirname "$(grep --files-with-matches --extended-regexp '^PPid:\\s1$' /proc/[0-9]*/status)")"
        tr '\\0' ' ' <cmdline; echo
        touch /opt/kvnode/file 2>/dev/null && echo "the file system can be written"
        for program in cc gcc c++ make ld pip pip3 wheel; do command -v "$program"; done
        for module in pip setuptools wheel; do python -c "import $module" 2>/dev/null && echo "$module"; done
        grep -E '^(Uid|CapBnd|NoNewPrivs)' status
        true
    """
    said = nodes.engine.docker("exec", "web1", "sh", "-c", look).splitlines()
    command = "/opt/kvnode/bin/python /opt/kvnode/bin/kvnode start "
    ids = "Uid:\t10001\t10001\t10001\t10001"
    assert said == ["10001", "10001", "/data", command, ids, "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"]
    image = nodes.engine.inspect("web1", "{{.Image}}")
    left = "ls -A /src /root/.cache /tmp 2>/dev/null; true"
    assert nodes.engine.docker("run", "--rm", "--user=0", "--entrypoint=sh", image, "-c", left).split() == ["/tmp:"]


def test_commands_run_in_a_container_and_by_docker_run(nodes: Deployment) -> None:
    nodes.put("web1", "key", "value")
    status = json.loads(nodes.compose("exec", "-T", "web2", "kvnode", "status", "--json"))
    assert status["name"] == "web2"
    image = nodes.engine.inspect("web1", "{{.Image}}")
    get = ["kvnode", "get", "--url", "http://web1:5001", "key"]
    assert nodes.engine.docker("run", "--rm", f"--network={NETWORK}", image, *get) == "value\n"


def test_replica_that_is_killed_and_started_again_catches_up(nodes: Deployment) -> None:
    nodes.put("web1", "before", "web2 was killed")
    nodes.engine.docker("kill", "web2")
    assert nodes.state("web2", "ExitCode") == "137"
    seq = nodes.put("web1", "while", "web2 was away")
    nodes.engine.docker("start", "web2")
    nodes.wait_equal(seq)


def test_primary_that_is_killed_and_started_again_has_all_that_it_acknowledged(nodes: Deployment) -> None:
    seq = nodes.put("web1", "before", "web1 was killed")
    nodes.engine.docker("kill", "web1")
    # Replicas go on without it.
    assert nodes.ask("web2", "/ready")["status"] == "OK"
    nodes.engine.docker("start", "web1")
    nodes.wait_equal(seq)
    nodes.wait_equal(nodes.put("web2", "after", "web1 was killed"))


def test_node_that_dies_by_itself_is_started_by_docker(nodes: Deployment) -> None:
    nodes.engine.kill_behind_its_back("web3")
    nodes.wait(lambda: nodes.engine.inspect("web3", "{{.RestartCount}}") == "1", "web3 is started again")
    nodes.wait_equal(nodes.put("web1", "after", "web3 has died"))


def test_nodes_that_were_cut_off_are_found_under_their_new_addresses(nodes: Deployment) -> None:
    before = {name: nodes.address(name) for name in ("web1", "web3")}
    for name in before:
        nodes.engine.docker("network", "disconnect", NETWORK, name)
    # Each goes on by itself; a primary without replicas takes writes.
    nodes.compose("exec", "-T", "web1", "kvnode", "put", "cut", "off")
    for name in NAMES:
        nodes.compose("exec", "-T", name, "kvnode-healthcheck")
    # Docker gives the lowest address that is free, so now to the one that had a higher one.
    for name in sorted(before, key=before.__getitem__, reverse=True):
        nodes.engine.docker("network", "connect", NETWORK, name)
        assert nodes.address(name) != before[name]
    nodes.wait_equal(nodes.put("web1", "connected", "again"))
    assert nodes.ask("web3", "/read/cut")["value"] == "off"


def test_stop_is_clean_and_in_time(nodes: Deployment) -> None:
    seq = nodes.put("web1", "before", "the stop")
    began = time.monotonic()
    # Replicas first: what they look up is there until they stop.
    nodes.engine.docker("stop", "web3", "web2", "web1")
    # 10 s each, by the contract; Docker would kill after 15.
    assert time.monotonic() - began < 30
    assert [nodes.state(name, "ExitCode") for name in NAMES] == ["0", "0", "0"]
    assert " event=stopped " in nodes.logs("web1")
    nodes.engine.docker("start", *NAMES)
    nodes.wait_equal(seq)


def test_stop_of_a_node_that_only_starts_is_heard(nodes: Deployment) -> None:
    for pause_s in (0.0, 0.2, 0.4):
        nodes.engine.docker("stop", "web3")
        nodes.engine.docker("start", "web3")
        # Wherever the start is then: in the shell, in the imports, or done.
        time.sleep(pause_s)
        began = time.monotonic()
        nodes.engine.docker("stop", "--time=15", "web3")
        # Docker would kill it after 15 s.
        assert time.monotonic() - began < 10
        assert nodes.state("web3", "ExitCode") in {"0", "143"}
    nodes.engine.docker("start", "web3")
    nodes.wait_equal(nodes.put("web1", "after", "the stops"))


def test_promoted_node_stays_the_primary_and_the_others_can_join_it(nodes: Deployment) -> None:
    seq = nodes.put("web1", "before", "the promotion")
    nodes.wait_equal(seq)
    nodes.engine.docker("stop", "web1")
    nodes.compose("exec", "-T", "web2", "kvnode", "promote")
    nodes.engine.docker("start", "web1")
    nodes.wait(lambda: nodes.roles() == ["superseded", "primary", "replica"], "web1 hears of web2's promotion")

    # In new containers, which `docker-compose` starts all at once.
    nodes.compose("down")
    nodes.compose("up", "-d")
    nodes.wait(lambda: nodes.roles() == ["superseded", "primary", "replica"], "all are what they were")
    seq = nodes.put("web2", "after", "the promotion")
    # Nobody is started again and again.
    assert [nodes.engine.inspect(name, "{{.RestartCount}}") for name in NAMES] == ["0", "0", "0"]

    nodes.compose("stop", "web1", "web3")
    for name in ("web1", "web3"):
        nodes.compose("run", "--detach", "--name", "joining", name, "kvnode", "join", "web2:7001")
        nodes.wait(lambda: " event=listening " in nodes.logs("joining"), f"{name} follows web2")
        nodes.engine.docker("stop", "joining")
        assert nodes.state("joining", "ExitCode") == "0"
        nodes.engine.docker("rm", "joining")
    nodes.compose("up", "-d")
    nodes.wait_equal(seq)
    assert nodes.roles() == ["replica", "primary", "replica"]
    assert nodes.ask("web1", "/status")["primary"]["address"] == "web2:7001"


def test_down_keeps_the_volumes_unless_it_is_told_otherwise(nodes: Deployment) -> None:
    nodes.compose("down")
    assert sorted(nodes.engine.docker("volume", "ls", "--quiet").split()) == [f"kvnode_{name}" for name in NAMES]
    nodes.compose("down", "--volumes")
    assert nodes.engine.docker("volume", "ls", "--quiet").split() == []
    assert nodes.engine.docker("ps", "--all", "--quiet") == ""
