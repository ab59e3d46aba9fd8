"""What may stand in a compose file: the app's variables, and the names of the Compose Specification.

A name of the specification that is not here is no mistake; a name that is not the specification's is one, and Compose
refuses it. https://github.com/compose-spec/compose-spec/blob/main/spec.md
"""

from typing import Any

from app.core.config import Settings
from app.core.settings.errors import variables_of

SETTINGS = variables_of(Settings)
VARIABLES = set(SETTINGS) | {"EMBEDDED_SERVICES", "WEB_CONCURRENCY", "ENV_FILE", "DATABASE_SETTINGS"}
SECRETS = {name for name, field in SETTINGS.items() if "SecretStr" in str(field.annotation)}
POSTGRES_OWN = {"POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB"}
POSTGRES_FILES = {f"{name}_FILE" for name in POSTGRES_OWN}  # the image reads the values from them

TOP = {"name", "services", "networks", "volumes", "configs", "secrets"}
SERVICE = {
    *{"build", "cap_add", "cap_drop", "command", "configs", "container_name", "cpus", "depends_on", "deploy", "dns"},
    *{"entrypoint", "env_file", "environment", "expose", "extra_hosts", "healthcheck", "hostname", "image", "init"},
    *{"labels", "logging", "mem_limit", "networks", "pids_limit", "platform", "ports", "privileged", "profiles"},
    *{"pull_policy", "read_only", "restart", "secrets", "security_opt", "shm_size", "stop_grace_period"},
    *{"stop_signal", "sysctls", "tmpfs", "ulimits", "user", "volumes", "working_dir"},
}
BELOW = {
    "build": {"args", "context", "dockerfile", "target"},
    "deploy": {"mode", "replicas", "resources", "restart_policy"},
    "healthcheck": {"disable", "interval", "retries", "start_interval", "start_period", "test", "timeout"},
    "logging": {"driver", "options"},
}
NETWORK = {"aliases", "ipv4_address", "ipv6_address", "priority"}
WAITS = {"condition", "required", "restart"}
PULL_POLICIES = {"always", "never", "missing", "build"}


def is_ours(service: dict[str, Any]) -> bool:
    """Whether a service runs the Dockerfile's image."""
    return str(service["image"]).startswith("slipway:")


def unknown_names(compose: dict[str, Any]) -> list[str]:
    """The names in a loaded compose file that Compose does not know, each with where it stands."""
    found = [name for name in compose if name not in TOP and not name.startswith("x-")]
    for service_name, service in compose["services"].items():
        found += _outside(service, SERVICE, service_name)
        for name, known in BELOW.items():
            found += _outside(service.get(name, {}), known, f"{service_name}.{name}")
        for name, known in (("networks", NETWORK), ("depends_on", WAITS)):
            each = service.get(name, {})
            for other, how in each.items() if isinstance(each, dict) else ():
                found += _outside(how or {}, known, f"{service_name}.{name}.{other}")
        resources = service.get("deploy", {}).get("resources", {})
        found += _outside(resources, {"limits", "reservations"}, f"{service_name}.deploy.resources")
        found += _outside(resources.get("limits", {}), {"cpus", "memory", "pids"}, f"{service_name}.limits")
        if service.get("pull_policy", "missing") not in PULL_POLICIES:
            found.append(f"{service_name}.pull_policy: {service['pull_policy']}")
    for name, network in (compose.get("networks") or {}).items():
        found += _outside(network or {}, {"driver", "external", "internal", "ipam", "name"}, f"networks.{name}")
    return found


def _outside(names: Any, known: set[str], where: str) -> list[str]:
    """None where there is a short form, which has no names."""
    return [f"{where}.{name}" for name in names if name not in known] if isinstance(names, dict) else []
