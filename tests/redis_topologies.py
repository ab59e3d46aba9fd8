"""Real clusters and sentinels as child processes on free ports, hurried: a failover takes some two seconds."""

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from redis import Redis
from redis.exceptions import RedisError

from scripts.embedded import Valkey, free_port, scratch_folder
from scripts.server import HOST
from scripts.unprivileged import identity

NODE_TIMEOUT: Final = 1000  # milliseconds until the nodes of a cluster agree that one of them has failed, about
DOWN_AFTER: Final = 1000  # milliseconds until a sentinel says that the primary is away
PATIENCE: Final = 40.0  # seconds
SERVICE: Final = "limits"  # what the sentinels call the primary

Client = Any  # redis-py's types leave open whether one has to await.


class Node(Valkey):
    """A server with options of its own. It keeps nothing but its place among the others, and is stopped by a kill."""

    shutdown_signals = (signal.SIGKILL,)

    def __init__(self, data: Path, password: str = "", **options: object) -> None:
        super().__init__(data, port=free_port(), durable=False)
        self.password = password
        self.options: dict[str, object] = {"repl-diskless-sync-delay": 0, "repl-ping-replica-period": 1}
        self.options |= {name.replace("_", "-"): value for name, value in options.items()}
        self.address = f"{HOST}:{self.port}"
        if password:
            self.options |= {"requirepass": password, "masterauth": password}
        self.client: Client = Redis(
            host=HOST, port=self.port, password=password or None, decode_responses=True, socket_timeout=5
        )

    def stop(self) -> None:
        self.client.close()
        super().stop()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """It hangs meanwhile."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def cluster(self, *words: object) -> Any:
        """The reply to a command about its cluster."""
        return self.client.execute_command("CLUSTER", *words)

    @property
    def role(self) -> str:
        """`master` or `slave`."""
        return str(self.client.execute_command("ROLE")[0])

    def _answers(self) -> bool:
        """Whether it does so, and not somebody else who was faster at its port."""
        return _holds(lambda: self.process and self.client.info("server")["process_id"] == self.process.pid)

    def _command(self) -> list[str]:
        words = [word for name, value in self.options.items() for word in (f"--{name}", str(value))]
        return [*super()._command(), *words]


class SentinelNode(Node):
    """One of those who watch a primary."""

    def _prepare(self) -> None:
        file = self.folder / "sentinel.conf"  # It insists on one, and writes to it.
        if not file.exists():
            secrets = f"requirepass {self.password}\nsentinel sentinel-pass {self.password}\n"
            file.write_text(secrets if self.password else "")
            if identity():
                os.chown(file, identity()["user"], identity()["group"])

    def _command(self) -> list[str]:
        program = super()._command()[0]
        return [program, "sentinel.conf", "--sentinel", "--bind", HOST, "--port", str(self.port)]


NodeT = TypeVar("NodeT", bound=Node)


def patiently(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Returns once it is so. A server that cannot be asked yet is asked again."""
    assert _comes_to_hold(condition, seconds), "it did not come to that"


def _comes_to_hold(condition: Callable[[], object], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not _holds(condition):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _holds(condition: Callable[[], object]) -> bool:
    try:
        return bool(condition())
    except (RedisError, OSError, ValueError):  # It is away, or what it says is not whole yet.
        return False


def _spawned(stack: ExitStack, node: NodeT) -> NodeT:
    """Spawns it at once: nobody else is to take its port."""
    stack.callback(node.stop)
    node.spawn()
    return node


# ---- A cluster ----


class RedisCluster:
    """Nodes; when it was formed, the first three were its primaries, each with a replica."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes

    def url(self, login: str = "", nodes: Iterable[Node] | None = None) -> str:
        """Where it is, by all its nodes or some."""
        return f"redis+cluster://{login}{','.join(node.address for node in nodes or self.nodes)}"

    @property
    def alive(self) -> list[Node]:
        return [node for node in self.nodes if node.process is not None]

    @property
    def primaries(self) -> list[Node]:
        """Who holds slots now, in the slots' order, as the first living node sees it."""
        ports = [primary[1] for _, _, primary, *_ in sorted(self.alive[0].cluster("SLOTS"))]
        return [self._node(port) for port in dict.fromkeys(ports)]

    def holder_of(self, key: str) -> Node:
        """The primary that has a key, as the first living node sees it."""
        slot = self.slot_of(key)
        (port,) = [port for first, last, (_, port, *_), *_ in self.alive[0].cluster("SLOTS") if first <= slot <= last]
        return self._node(port)

    def slot_of(self, key: str) -> int:
        return int(self.alive[0].cluster("KEYSLOT", key))

    def replica_of(self, primary: Node) -> Node:
        """One of its replicas."""
        (name,) = [line.split()[0] for line in primary.cluster("NODES").splitlines() if "myself" in line]
        lines = [line.split() for line in primary.cluster("NODES").splitlines()]
        return next(self._node(int(line[1].split("@")[0].split(":")[1])) for line in lines if line[3] == name)

    def is_whole(self) -> bool:
        """Whether all living nodes agree that every slot is held by a living one, and all are in touch and in step."""
        ports = {node.port for node in self.alive}
        views = set()
        for node in self.alive:
            info = _pairs(node.cluster("INFO"))
            ranges = [(first, last, primary[1]) for first, last, primary, *_ in node.cluster("SLOTS")]
            lines = [line.split() for line in node.cluster("NODES").splitlines()]
            # Whoever does not know the newest epoch could claim a slot with an older one, and they would never agree.
            epochs = [(line[0], line[6]) for line in lines if "master" in line[2]]
            views.add((tuple(sorted(ranges)), tuple(sorted(epochs))))
            if info["cluster_state"] != "ok" or int(info["cluster_slots_ok"]) != 16384:
                return False
            if not {port for _, _, port in ranges} <= ports or not _is_in_step(node):
                return False
            others = [line for line in lines if "myself" not in line[2]]
            if [line[7] for line in others if "fail" not in line[2]] != ["connected"] * (len(self.alive) - 1):
                return False
        return len(views) == 1

    def mend(self) -> None:
        """Starts whoever is not alive; returns when the cluster is whole, and empty."""
        for node in self.nodes:
            if node.process is None:
                node.spawn()
        for node in self.nodes:
            node.wait()
        patiently(self.is_whole)
        for node in self.primaries:
            node.client.flushall()

    def _node(self, port: int) -> Node:
        return next(node for node in self.nodes if node.port == port)


@contextmanager
def redis_cluster(**options: object) -> Iterator[RedisCluster]:
    """Three primaries, each with a replica.

    Args:
        options: of all nodes, beside those that are said here.
    """
    with scratch_folder() as folder, ExitStack() as stack:
        options = {
            "cluster_enabled": "yes",
            "cluster_node_timeout": NODE_TIMEOUT,
            "cluster_require_full_coverage": "no",  # The others go on.
            "cluster_allow_replica_migration": "no",
            "cluster_replica_validity_factor": 0,
        } | options
        nodes = [
            _spawned(stack, Node(folder / f"node{number}", "", cluster_port=free_port(), **options))
            for number in range(6)
        ]
        for node in nodes:
            node.wait()
        cluster = RedisCluster(nodes)
        _form(cluster.nodes)
        patiently(cluster.is_whole)
        yield cluster


def _form(nodes: list[Node]) -> None:
    edges = (0, 5461, 10923, 16384)
    for number, node in enumerate(nodes):
        node.cluster("SET-CONFIG-EPOCH", number + 1)
        for other in nodes[:number]:
            node.cluster("MEET", HOST, other.port, other.options["cluster-port"])
    for number, primary in enumerate(nodes[:3]):
        primary.cluster("ADDSLOTSRANGE", edges[number], edges[number + 1] - 1)
    patiently(lambda: all(_pairs(node.cluster("INFO"))["cluster_known_nodes"] == str(len(nodes)) for node in nodes))
    for primary, replica in zip(nodes[:3], nodes[3:], strict=True):
        name = primary.cluster("MYID")
        patiently(lambda name=name, replica=replica: name in replica.cluster("NODES"))  # type: ignore[misc]
        replica.cluster("REPLICATE", name)


def _pairs(text: str) -> dict[str, str]:
    return dict(line.split(":", 1) for line in text.split("\r\n") if ":" in line)


def _is_in_step(node: Node) -> bool:
    """Whether a replica has all its primary has, or a primary its replica."""
    found = node.client.info("replication")
    if found["role"] == "slave":
        return str(found["master_link_status"]) == "up"
    return bool(found["connected_slaves"]) and found["slave0"]["state"] == "online"


# ---- Sentinels ----


class Watched:
    """A primary and a replica, and the three sentinels who watch them."""

    def __init__(self, servers: list[Node], sentinels: list[SentinelNode]) -> None:
        self.servers = servers
        self.sentinels = sentinels

    def url(self, service: str = SERVICE) -> str:
        """Where it is, by all its sentinels."""
        password, theirs = self.servers[0].password, self.sentinels[0].password
        login, query = f":{password}@" if password else "", f"?sentinel_password={theirs}" if theirs else ""
        hosts = ",".join(sentinel.address for sentinel in self.sentinels)
        return f"redis+sentinel://{login}{hosts}/{service}/0{query}"

    @property
    def primary(self) -> Node:
        """As the first living sentinel sees it."""
        return self._primary_for(next(sentinel for sentinel in self.sentinels if sentinel.process is not None))

    @property
    def replica(self) -> Node:
        """The other one."""
        primary = self.primary
        return next(server for server in self.servers if server is not primary)

    def hand_over(self) -> None:
        """Has a sentinel make the replica the primary; returns when it is. Sentinels on a busy machine may give up."""
        old, new = self.primary, self.replica
        for _ in range(10):
            if _holds(lambda: new.role == "slave"):
                patiently(self.is_whole)
                with suppress(RedisError):  # NOGOODSLAVE, when it has not heard from the replica for a second.
                    self.sentinels[2].client.execute_command("SENTINEL", "FAILOVER", SERVICE)
            if _comes_to_hold(lambda: new.role == "master" and old.role == "slave", 4):
                return
        raise AssertionError("the sentinels do not hand over")

    def is_whole(self) -> bool:
        """Whether all sentinels agree, know each other, and the replica follows the primary."""
        primaries = {self._primary_for(sentinel) for sentinel in self.sentinels}
        if len(primaries) != 1:
            return False
        (primary,) = primaries
        return (
            primary.role == "master"
            and all(_is_in_step(server) for server in self.servers)
            and all(self._is_at_ease(sentinel) for sentinel in self.sentinels)
        )

    def mend(self) -> None:
        """Starts whoever is not alive; returns when all is well, and the servers are empty."""
        dead = [node for node in (*self.servers, *self.sentinels) if node.process is None]
        for node in dead:
            node.start()
            if isinstance(node, SentinelNode):
                _hurry(node)
        patiently(self.is_whole)
        self.primary.client.flushall()

    def _primary_for(self, sentinel: Node) -> Node:
        _, port = sentinel.client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return next(server for server in self.servers if server.port == int(port))

    def _is_at_ease(self, sentinel: Node) -> bool:
        state = _state(sentinel.client.execute_command("SENTINEL", "MASTER", SERVICE))
        replicas = [
            _state(found)["flags"] for found in sentinel.client.execute_command("SENTINEL", "REPLICAS", SERVICE)
        ]
        others = int(state["num-other-sentinels"])
        return state["flags"] == "master" and replicas == ["slave"] and others == len(self.sentinels) - 1


def _state(reply: Any) -> dict[str, str]:
    return dict(zip(reply[::2], reply[1::2], strict=True))


@contextmanager
def watched_by_sentinels(password: str = "", sentinel_password: str = "") -> Iterator[Watched]:
    """A primary, a replica and three sentinels, two of whom have to agree.

    Args:
        password: of the servers.
        sentinel_password: of the sentinels.
    """
    with scratch_folder() as folder, ExitStack() as stack:
        primary = _spawned(stack, Node(folder / "one", password))
        replica = _spawned(stack, Node(folder / "two", password, replicaof=f"{HOST} {primary.port}"))
        sentinels = [
            _spawned(stack, SentinelNode(folder / f"sentinel{number}", sentinel_password)) for number in range(3)
        ]
        for node in (primary, replica, *sentinels):
            node.wait()
        watched = Watched([primary, replica], sentinels)
        for sentinel in sentinels:
            _watch(sentinel, primary)
        patiently(watched.is_whole)
        yield watched


def _watch(sentinel: SentinelNode, primary: Node) -> None:
    ask = sentinel.client.execute_command
    _hurry(sentinel)
    ask("SENTINEL", "MONITOR", SERVICE, HOST, primary.port, 2)
    options: dict[str, object] = {"down-after-milliseconds": DOWN_AFTER, "failover-timeout": 1500}
    if primary.password:
        options["auth-pass"] = primary.password
    for name, value in options.items():
        ask("SENTINEL", "SET", SERVICE, name, value)


def _hurry(sentinel: SentinelNode) -> None:
    """Has it ask far more often than it does by default: it notices by that who follows whom."""
    periods = {"INFO-PERIOD": 300, "PUBLISH-PERIOD": 150, "ASK-PERIOD": 200}  # milliseconds
    words = [word for pair in periods.items() for word in pair]
    sentinel.client.execute_command("SENTINEL", "DEBUG", *words)
