"""What is deployed is held against the code: image, manifests and compose file name nothing that does not exist.

The check of Pod Security is written from the standard "Restricted" of Kubernetes, and tried on manifests that break it.
"""

import asyncio
import copy
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from ruamel.yaml import YAML

from sidecar import __version__
from sidecar.ca.trust import Trust
from sidecar.cli.main import app
from sidecar.clock import SystemClock
from sidecar.run.exec.variables import Files, proxy_url, variables
from sidecar.settings import HostPort, Settings, default_paths, load, secret_references
from tests.canary import canary
from tests.rig import configuration, raw, sidecar, status_of, token_server

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BASE = DEPLOY / "kubernetes/base"
OVERLAYS = [BASE, *sorted((DEPLOY / "kubernetes/overlays").iterdir())]
COMPOSE_FILE = DEPLOY / "compose.yaml"
OPERATIONS = (ROOT / "docs/operations.md").read_text(encoding="utf-8")

OURS = f"auth-sidecar:{__version__}"
VOLUME_KINDS = frozenset(
    "configMap csi downwardAPI emptyDir ephemeral persistentVolumeClaim projected secret".split()  # noqa: SIM905
)
PUBLISHED = ("bundle.pem", "roots.pem", "truststore.p12")
FILES_OF_EXEC = {"SYSTEM_WGETRC", "PHP_INI_SCAN_DIR"}
"""Variables that name files which `exec` makes for one command."""

Object = dict[str, Any]


def read(path: Path) -> Object:
    """Return the one document of a YAML file."""
    loaded = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    assert isinstance(loaded, dict), path
    return loaded


COMPOSE = read(COMPOSE_FILE)
SERVICES: dict[str, Object] = COMPOSE["services"]


# Kustomize, as far as the manifests use it.


def merged(old: Any, new: Any) -> Any:
    """Return *old* with the strategic merge patch *new*: mappings by key, lists of named things by name."""
    if isinstance(old, dict) and isinstance(new, dict):
        return old | {key: merged(old[key], value) if key in old else value for key, value in new.items()}
    named = isinstance(old, list) and isinstance(new, list) and all("name" in item for item in [*old, *new])
    if not named:
        return new
    patches = {item["name"]: item for item in new}
    kept = [merged(item, patches.pop(item["name"], {})) for item in old]
    return [*kept, *patches.values()]


def generated(generator: Object, folder: Path) -> Object:
    """Return the ConfigMap of a `configMapGenerator`."""
    assert generator.keys() <= {"name", "files", "envs"}
    data = {}
    for entry in generator.get("files", []):
        key, _, name = entry.rpartition("=")
        data[key or name] = (folder / name).read_text(encoding="utf-8")
    for name in generator.get("envs", []):
        data |= environment_of(folder / name)
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": generator["name"]}, "data": data}


def environment_of(path: Path) -> dict[str, str]:
    """Return the variables of a file of NAME=value lines."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def patched(objects: list[Object], entry: Object, folder: Path) -> list[Object]:
    """Return *objects* after one entry of `patches`; one without a target must meet an object."""
    patch = read(folder / entry["path"])
    target = entry.get("target", {"kind": patch["kind"], "name": patch["metadata"]["name"]})
    assert target.keys() <= {"kind", "name"}

    def meant(each: Object) -> bool:
        kind = re.fullmatch(target["kind"], each["kind"])
        return bool(kind) and target.get("name", each["metadata"]["name"]) == each["metadata"]["name"]

    assert "target" in entry or any(map(meant, objects)), f"{entry['path']} patches nothing"
    if patch.get("$patch") == "delete":
        return [each for each in objects if not meant(each)]
    inner = {key: value for key, value in patch.items() if key not in ("apiVersion", "kind", "metadata")}
    return [merged(each, inner) if meant(each) else each for each in objects]


def rendered(folder: Path) -> list[Object]:
    """Return the objects that `kubectl kustomize` would make of *folder*."""
    plan = read(folder / "kustomization.yaml")
    known = {"apiVersion", "kind", "resources", "configMapGenerator", "generatorOptions", "patches"}
    assert plan.keys() <= known, plan.keys() - known
    objects: list[Object] = []
    for name in plan.get("resources", []):
        path = folder / name
        objects += rendered(path.resolve()) if path.is_dir() else [read(path)]
    objects += [generated(each, folder) for each in plan.get("configMapGenerator", [])]
    for entry in plan.get("patches", []):
        objects = patched(objects, entry, folder)
    names = [(each["kind"], each["metadata"]["name"]) for each in objects]
    assert len(names) == len(set(names)), names
    return objects


def named(objects: list[Object], kind: str, name: str) -> Object:
    """Return one object; it must be there."""
    found = [each for each in objects if each["kind"] == kind and each["metadata"]["name"] == name]
    assert found, f"no {kind} {name}"
    return found[0]


def workloads(objects: list[Object]) -> list[Object]:
    """Return the objects that make pods."""
    return [each for each in objects if "template" in each.get("spec", {})]


def pod_of(workload: Object) -> Object:
    """Return the specification of a workload's pods."""
    spec: Object = workload["spec"]["template"]["spec"]
    return spec


def containers_of(pod: Object) -> list[Object]:
    """Return all containers of a pod, in the order in which they start."""
    return [*pod.get("initContainers", []), *pod["containers"], *pod.get("ephemeralContainers", [])]


def container(pod: Object, name: str) -> Object:
    """Return the container of that name."""
    return next(each for each in containers_of(pod) if each["name"] == name)


PODS = [
    pytest.param(folder, pod_of(workload), id=f"{folder.name}-{workload['kind']}")
    for folder in OVERLAYS
    for workload in workloads(rendered(folder))
]


# Pod Security.


def restricted(pod: Object) -> list[str]:
    """Return what the standard "Restricted" (which contains "Baseline") forbids in *pod*."""
    context = pod.get("securityContext", {})
    found = [key for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key)]
    found += [f"volume {each['name']}" for each in pod.get("volumes", []) if not each.keys() - {"name"} <= VOLUME_KINDS]
    found += [f"sysctl {each['name']}" for each in context.get("sysctls", [])]
    found += [f"pod: {what}" for what in _identity(context)]
    for each in containers_of(pod):
        found += [f"{each['name']}: {what}" for what in _container(each, context)]
    return found


def _container(each: Object, pod: Object) -> Iterator[str]:
    own = each.get("securityContext", {})
    yield from _identity(own)
    if own.get("privileged"):
        yield "privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation"
    if not own.get("runAsNonRoot", pod.get("runAsNonRoot")):
        yield "runAsNonRoot"
    if "ALL" not in own.get("capabilities", {}).get("drop", []):
        yield "capabilities.drop"
    if set(own.get("capabilities", {}).get("add", [])) - {"NET_BIND_SERVICE"}:
        yield "capabilities.add"
    if own.get("seccompProfile", pod.get("seccompProfile", {})).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "seccompProfile"
    if own.get("procMount", "Default") != "Default":
        yield "procMount"
    if any("hostPort" in port for port in each.get("ports", [])):
        yield "hostPort"
    probes = [value for key, value in each.items() if key.endswith("Probe")] + list(each.get("lifecycle", {}).values())
    if any("host" in probe.get(way, {}) for probe in probes for way in ("httpGet", "tcpSocket")):
        yield "host of a probe"


def _identity(context: Object) -> Iterator[str]:
    """Yield what is wrong in either kind of `securityContext`."""
    if context.get("runAsUser") == 0:
        yield "runAsUser"
    if context.get("windowsOptions", {}).get("hostProcess"):
        yield "hostProcess"
    if context.get("seLinuxOptions"):
        yield "seLinuxOptions"
    if context.get("appArmorProfile", {}).get("type") == "Unconfined":
        yield "appArmorProfile"
    if context.get("seccompProfile", {}).get("type") == "Unconfined":
        yield "seccompProfile"


def hardened(pod: Object) -> list[str]:
    """Return what is missing in *pod* of our own rules, beyond the standard."""
    found = [] if pod.get("automountServiceAccountToken") is False else ["automountServiceAccountToken"]
    for each in containers_of(pod):
        context, resources = each.get("securityContext", {}), each.get("resources", {})
        user = context.get("runAsUser", 0)
        wanted = {
            "readOnlyRootFilesystem": context.get("readOnlyRootFilesystem") is True,
            "runAsUser": user > 0 and context.get("runAsGroup") == user,
            "requests": {"cpu", "memory"} <= resources.get("requests", {}).keys(),
            "limits": "memory" in resources.get("limits", {}),
        }
        found += [f"{each['name']}: {key}" for key, held in wanted.items() if not held]
    return found


@pytest.mark.parametrize(("folder", "pod"), PODS)
def test_pods_are_restricted(folder: Path, pod: Object) -> None:
    """A namespace that enforces the standard "Restricted" takes every pod; roots are read-only, resources are named."""
    assert restricted(pod) + hardened(pod) == []


def _into_container(**keys: Any) -> Callable[[Object], None]:
    return lambda pod: pod["initContainers"][0].update(keys)


def _into_context(**keys: Any) -> Callable[[Object], None]:
    return lambda pod: pod["initContainers"][0]["securityContext"].update(keys)


BREACHES: list[tuple[str, Callable[[Object], object]]] = [
    ("hostNetwork", lambda pod: pod.update(hostNetwork=True)),
    ("hostPID", lambda pod: pod.update(hostPID=True)),
    ("hostIPC", lambda pod: pod.update(hostIPC=True)),
    ("volume host", lambda pod: pod["volumes"].append({"name": "host", "hostPath": {"path": "/"}})),
    ("sysctl", lambda pod: pod["securityContext"].update(sysctls=[{"name": "kernel.msgmax", "value": "1"}])),
    ("auth-sidecar: runAsNonRoot", lambda pod: pod["securityContext"].pop("runAsNonRoot")),
    ("sync: runAsNonRoot", lambda pod: pod["containers"][0]["securityContext"].update(runAsNonRoot=False)),
    ("auth-sidecar: seccompProfile", lambda pod: pod["securityContext"].pop("seccompProfile")),
    ("pod: seccompProfile", lambda pod: pod["securityContext"].update(seccompProfile={"type": "Unconfined"})),
    ("pod: runAsUser", lambda pod: pod["securityContext"].update(runAsUser=0)),
    ("auth-sidecar: runAsUser", _into_context(runAsUser=0)),
    ("auth-sidecar: privileged", _into_context(privileged=True)),
    ("allowPrivilegeEscalation", lambda pod: pod["containers"][0]["securityContext"].pop("allowPrivilegeEscalation")),
    ("capabilities.drop", _into_context(capabilities={"drop": ["NET_RAW"]})),
    ("capabilities.add", _into_context(capabilities={"drop": ["ALL"], "add": ["SYS_PTRACE"]})),
    ("procMount", _into_context(procMount="Unmasked")),
    ("seLinuxOptions", _into_context(seLinuxOptions={"user": "root"})),
    ("appArmorProfile", _into_context(appArmorProfile={"type": "Unconfined"})),
    ("hostProcess", _into_context(windowsOptions={"hostProcess": True})),
    ("hostPort", _into_container(ports=[{"containerPort": 8081, "hostPort": 8081}])),
    ("host of a probe", _into_container(livenessProbe={"httpGet": {"host": "10.0.0.1", "path": "/", "port": 1}})),
    ("readOnlyRootFilesystem", _into_context(readOnlyRootFilesystem=False)),
    ("auth-sidecar: limits", _into_container(resources={"requests": {"cpu": 1, "memory": 1}})),
    ("auth-sidecar: requests", _into_container(resources={"limits": {"memory": 1}})),
    ("auth-sidecar: runAsUser", lambda pod: pod["initContainers"][0]["securityContext"].pop("runAsGroup")),
    ("automountServiceAccountToken", lambda pod: pod.pop("automountServiceAccountToken")),
]


@pytest.mark.parametrize(("expected", "change"), BREACHES)
def test_a_breach_of_pod_security_is_found(expected: str, change: Callable[[Object], object]) -> None:
    """Each rule is broken once in a good pod, and found."""
    pod = copy.deepcopy(pod_of(named(rendered(BASE), "Deployment", "sync")))
    change(pod)
    assert [what for what in restricted(pod) + hardened(pod) if expected in what] != []


# The sidecar in the pod.


@pytest.mark.parametrize(("folder", "pod"), PODS)
def test_sidecar_is_native_and_first(folder: Path, pod: Object) -> None:
    """It starts before everything else, which waits for its first token; the CA is handed on before the script."""
    first, second = pod["initContainers"]
    assert (first["name"], first["restartPolicy"]) == ("auth-sidecar", "Always")
    assert (first["startupProbe"]["httpGet"]["path"], second["name"]) == ("/readyz", "publish-ca")
    assert "restartPolicy" not in second


@pytest.mark.parametrize(("folder", "pod"), PODS)
def test_a_credential_that_is_refused_is_not_hammered_by_restarts(folder: Path, pod: Object) -> None:
    """Only a process that does not answer is restarted soon: each start tries the credential anew."""
    ours = container(pod, "auth-sidecar")
    assert ours["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert ours["startupProbe"]["failureThreshold"] * ours["startupProbe"]["periodSeconds"] >= 1800


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda folder: folder.name)
def test_a_job_is_not_kept_open_and_a_deployment_goes_on(folder: Path) -> None:
    """Each folder makes one workload: a Job that restarts no container, or a Deployment that selects its pods."""
    (workload,) = workloads(rendered(folder))
    labels = workload["spec"]["template"]["metadata"]["labels"]
    if workload["kind"] == "Job":
        assert pod_of(workload)["restartPolicy"] == "Never"
    else:
        assert workload["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_pods_of_job_and_deployment_are_the_same() -> None:
    """What is mended in one is mended in the other."""
    deployment = named(rendered(BASE), "Deployment", "sync")["spec"]["template"]
    job = copy.deepcopy(named(rendered(DEPLOY / "kubernetes/overlays/job"), "Job", "sync")["spec"]["template"])
    del job["spec"]["restartPolicy"]
    assert job == deployment


@pytest.mark.parametrize(("folder", "pod"), PODS)
def test_what_a_pod_names_exists(folder: Path, pod: Object) -> None:
    """ConfigMaps, volumes, ports and the service account are there; the one Secret is not, as it is the user's."""
    objects = rendered(folder)
    named(objects, "ServiceAccount", pod["serviceAccountName"])
    volumes = {each["name"]: each for each in pod["volumes"]}
    mounted = {mount["name"] for each in containers_of(pod) for mount in each["volumeMounts"]}
    assert mounted == volumes.keys()
    for volume in volumes.values():
        if "configMap" in volume:
            named(objects, "ConfigMap", volume["configMap"]["name"])
    for each in containers_of(pod):
        for source in each.get("envFrom", []):
            named(objects, "ConfigMap", source["configMapRef"]["name"])
        ports = {port["name"] for port in each.get("ports", [])}
        assert {each[key]["httpGet"]["port"] for key in each if key.endswith("Probe")} <= ports
        # A file that is mounted by itself does not change when the Secret or the ConfigMap does.
        assert not any("subPath" in mount for mount in each["volumeMounts"])
    assert not any(each["kind"] == "Secret" for each in objects)


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda folder: folder.name)
def test_network_policies_let_in_the_admin_port_and_nothing_else(folder: Path) -> None:
    """Each policy selects the pods; in comes what asks for metrics, from a named place; out goes what is named."""
    objects = rendered(folder)
    (workload,) = workloads(objects)
    labels = workload["spec"]["template"]["metadata"]["labels"]
    policies = [each["spec"] for each in objects if each["kind"] == "NetworkPolicy"]
    assert all(policy["podSelector"]["matchLabels"].items() <= labels.items() for policy in policies)
    assert {kind for policy in policies for kind in policy["policyTypes"]} == {"Ingress", "Egress"}
    rules = [rule for policy in policies for rule in policy.get("ingress", [])]
    assert [rule["ports"] for rule in rules] == [[{"protocol": "TCP", "port": "admin"}]]
    for rule in [*rules, *(rule for policy in policies for rule in policy.get("egress", []))]:
        assert rule["ports"]
        assert all(rule.get("from", rule.get("to")))


def test_the_store_can_be_reached() -> None:
    """The overlay with Redis lets the pods out to the port that it configures."""
    objects = rendered(DEPLOY / "kubernetes/overlays/redis")
    port = int(settings_of(objects).store.url.rsplit(":", 1)[1].split("/")[0])
    policy = named(objects, "NetworkPolicy", "sync-redis")
    assert policy["spec"]["egress"][0]["ports"] == [{"protocol": "TCP", "port": port}]


# The configuration.


def environ_of(pod: Object) -> dict[str, str]:
    """Return the environment that the sidecar's container gets from the manifest."""
    return {each["name"]: each["value"] for each in container(pod, "auth-sidecar").get("env", [])}


def loaded(text: str, environ: dict[str, str], folder: Path) -> Settings:
    """Return the settings of a configuration as the sidecar in a container reads it."""
    file = folder / "config.yaml"
    file.write_text(text, encoding="utf-8")
    return load(file, environ=environ)


def settings_of(objects: list[Object]) -> Settings:
    """Return what the sidecar of the only workload is configured to do."""
    (workload,) = workloads(objects)
    data = named(objects, "ConfigMap", "auth-sidecar")["data"]["config.yaml"]
    base = YAML(typ="safe", pure=True).load(data)
    return load(base=base, environ={"AUTH_SIDECAR_CONFIG": "/nowhere/at/all", **environ_of(pod_of(workload))})


@pytest.mark.parametrize(("folder", "pod"), PODS)
def test_configuration_of_a_pod_is_accepted_and_fits_it(folder: Path, pod: Object, tmp_path: Path) -> None:
    """File and environment load; ports, places and times in the pod are those of the settings."""
    objects = rendered(folder)
    (file,) = named(objects, "ConfigMap", "auth-sidecar")["data"].items()
    ours = container(pod, "auth-sidecar")
    mounts = {each["mountPath"]: each for each in ours["volumeMounts"]}
    settings = loaded(file[1], environ_of(pod), tmp_path)

    assert str(default_paths({})[-1]) == f"{next(path for path in mounts if path.startswith('/etc'))}/{file[0]}"
    assert [mounts[path].get("readOnly", False) for path in mounts] == [True, True, False]
    assert str(settings.state_dir) == next(path for path, mount in mounts.items() if not mount.get("readOnly"))
    assert isinstance(settings.listen.admin, HostPort)
    assert [port["containerPort"] for port in ours["ports"]] == [settings.listen.admin.port]
    # The kubelet comes to the pod's address; the script alone comes to the others.
    assert settings.listen.admin.host == "0.0.0.0"
    assert isinstance(settings.listen.proxy, HostPort)
    assert settings.listen.proxy.host == "127.0.0.1"
    assert pod["terminationGracePeriodSeconds"] > settings.grace + 15


@pytest.mark.parametrize(("folder", "pod"), PODS)
def test_secrets_are_files_of_the_secret(folder: Path, pod: Object) -> None:
    """Each secret is a file in the mounted Secret; the page tells how to make it, with every key of every folder."""
    place = next(mount for mount in container(pod, "auth-sidecar")["volumeMounts"] if mount["name"] == "credentials")
    volume = next(each for each in pod["volumes"] if each["name"] == "credentials")
    references = [reference for _, reference in secret_references(settings_of(rendered(folder)))]
    files = [reference.file for reference in references]
    assert all(file and str(file.parent) == place["mountPath"] for file in files)
    command = next(
        line for line in OPERATIONS.splitlines() if f"create secret generic {volume['secret']['secretName']}" in line
    )
    assert {file.name for file in files if file} <= set(re.findall(r"--from-file=([\w-]+)", command))


async def test_probed_and_scraped_paths_exist(tmp_path: Path) -> None:
    """Each path that a probe or an annotation names is answered by the admin port."""
    template = named(rendered(BASE), "Deployment", "sync")["spec"]["template"]
    ours = container(template["spec"], "auth-sidecar")
    paths = {ours[key]["httpGet"]["path"] for key in ours if key.endswith("Probe")}
    notes = template["metadata"]["annotations"]
    assert int(notes["prometheus.io/port"]) == ours["ports"][0]["containerPort"]
    upstream = "http://127.0.0.1:9"
    async with sidecar(configuration(upstream, f"{upstream}/token", tmp_path)) as rig:
        for path in sorted(paths | {notes["prometheus.io/path"]}):
            head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            assert status_of(await raw(rig.port("admin"), head.encode())) in (200, 503), path
    assert paths == {"/livez", "/readyz"}


# What the script gets.


def test_the_script_gets_the_variables_that_exec_would_set() -> None:
    """The file of variables is what `exec` sets, for the configured ports and the files that are handed on."""
    settings = settings_of(rendered(BASE))
    shown = environment_of(BASE / "script.env")
    place = next(
        each["mountPath"] for each in container(PODS[0].values[1], "sync")["volumeMounts"] if each["name"] == "ca"
    )
    files = Files(bundle=Path(place, PUBLISHED[0]), truststore=Path(place, PUBLISHED[2]), wgetrc=Path(), php=Path())
    reverse = {
        name: proxy_url(*each.listen) for name, each in settings.upstreams.items() if isinstance(each.listen, HostPort)
    }
    targets = [(each.origin.host, each.origin.port) for each in settings.upstreams.values()]
    assert isinstance(settings.listen.proxy, HostPort)
    environ = {"NO_PROXY": "localhost,127.0.0.1"}
    found = variables(proxy_url(*settings.listen.proxy), files, environ, targets, reverse)
    assert shown == {name: value for name, value in found.items() if name not in FILES_OF_EXEC}
    assert DEPLOY / SERVICES["script"]["env_file"] == BASE / "script.env"


COPIES = [
    *(pytest.param(container(pod.values[1], "publish-ca")["command"], id=str(pod.id)) for pod in PODS),
    pytest.param([*SERVICES["publish-ca"]["entrypoint"], *SERVICES["publish-ca"]["command"]], id="compose"),
]


@pytest.mark.parametrize("command", COPIES)
def test_the_ca_is_handed_on_without_its_key(command: list[str], tmp_path: Path) -> None:
    """The command, run on a real CA, leaves the files that clients read, readable by all, twice too; and no key."""
    (tmp_path / "state").mkdir()
    trust = Trust(tmp_path / "state/ca", frozenset({"plm.example.com"}), SystemClock(), lambda _: None)
    trust.prepare()
    (tmp_path / "out").mkdir()
    here = [
        part.replace("/var/lib/auth-sidecar", f"{tmp_path}/state").replace("/run/auth-sidecar", f"{tmp_path}/out")
        for part in command
    ]
    for _ in range(2):
        subprocess.run(here, check=True, timeout=20)
    made = {path.name: path for path in (tmp_path / "out").iterdir()}
    assert sorted(made) == sorted(PUBLISHED)
    assert {path.stat().st_mode & 0o777 for path in made.values()} == {0o444}
    assert made["bundle.pem"].read_bytes() == trust.bundle.read_bytes()
    assert any(b"PRIVATE KEY" in path.read_bytes() for path in (tmp_path / "state/ca").iterdir())
    assert not any(b"PRIVATE KEY" in path.read_bytes() for path in made.values())


@pytest.mark.parametrize(("folder", "pod"), PODS)
def test_the_script_reaches_neither_tokens_nor_keys(folder: Path, pod: Object) -> None:
    """It has another user than the sidecar, none of its volumes but the public part of the CA, and that read-only."""
    script, ours = container(pod, "sync"), container(pod, "auth-sidecar")
    common = {each["name"] for each in script["volumeMounts"]} & {
        each["name"] for each in [*ours["volumeMounts"], *container(pod, "publish-ca")["volumeMounts"]]
    }
    assert common == {"ca"}
    assert next(each for each in script["volumeMounts"] if each["name"] == "ca")["readOnly"] is True
    assert "ca" not in {each["name"] for each in ours["volumeMounts"]}
    assert script["securityContext"]["runAsUser"] != ours["securityContext"]["runAsUser"]
    assert not pod.get("shareProcessNamespace")


# The compose file.


def mounts_of(service: Object) -> dict[str, tuple[str, bool]]:
    """Return source and whether it is read-only, by target, of a service's volumes."""
    parts = [entry.split(":") for entry in service.get("volumes", [])]
    return {part[1]: (part[0], part[2:] == ["ro"]) for part in parts}


def loose(service: Object) -> list[str]:
    """Return what a service of the compose file lacks of the rules that the pods keep."""
    wanted = {
        "user": re.fullmatch(r"[1-9]\d*:[1-9]\d*", service.get("user", "")) is not None,
        "read_only": service.get("read_only") is True,
        "cap_drop": service.get("cap_drop") == ["ALL"],
        "security_opt": "no-new-privileges:true" in service.get("security_opt", []),
        "mem_limit": "mem_limit" in service,
        "ports": "ports" not in service,
        "privileged": not service.get("privileged") and "cap_add" not in service,
    }
    return [key for key, held in wanted.items() if not held]


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_hardened(name: str) -> None:
    """No service has rights, a writable root or a port of the host."""
    assert loose(SERVICES[name]) == []


@pytest.mark.parametrize(
    "change",
    [
        {"user": "0:0"},
        {"read_only": False},
        {"cap_drop": []},
        {"security_opt": []},
        {"mem_limit": None},
        {"ports": ["8080:8080"]},
        {"privileged": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_loose_service_is_found(change: Object) -> None:
    """Each rule is broken once in a good service, and found."""
    service = {key: value for key, value in (SERVICES["auth-sidecar"] | change).items() if value is not None}
    assert loose(service) == [next(iter(change))]


def test_configuration_of_the_compose_file_is_accepted_and_fits_it(tmp_path: Path) -> None:
    """File and environment load; places, times, ports and the address of the Redis are those of the settings."""
    service = SERVICES["auth-sidecar"]
    mounts = mounts_of(service)
    file, _ = mounts[str(default_paths({})[-1])]
    settings = loaded((DEPLOY / file).read_text(encoding="utf-8"), service["environment"], tmp_path)
    assert mounts[str(settings.state_dir)] == ("state", False)
    assert [read_only for _, read_only in mounts.values()] == [True, True, False]
    references = [reference.file for _, reference in secret_references(settings)]
    assert all(reference and str(reference.parent) in mounts for reference in references)
    assert {path.name for path in references if path} <= set(re.findall(r"deploy/secrets/([\w-]+)", OPERATIONS))
    assert settings.store.url.split("/")[2].split(":")[0] in SERVICES
    assert int(service["stop_grace_period"].removesuffix("s")) > settings.grace + 10
    assert isinstance(settings.listen.admin, HostPort)
    assert f'"127.0.0.1", {settings.listen.admin.port}' in service["healthcheck"]["test"][-1]


async def test_the_health_check_tells_ready_from_not_ready(tmp_path: Path) -> None:
    """The compose file's check, run against a real admin port: 1 without a token, 0 with one."""
    program = SERVICES["auth-sidecar"]["healthcheck"]["test"]
    assert program[:3] == ["CMD", "python", "-c"]
    codes = []
    async with token_server() as issuer:
        for status in (503, 200):
            issuer.status = status
            async with sidecar(configuration("http://127.0.0.1:9", issuer.url, tmp_path / str(status))) as rig:
                code = program[3].replace("8081", str(rig.port("admin")))
                async with asyncio.timeout(20):
                    while status == 200 and rig.app.brokers["plm"].status().generation == 0:
                        await asyncio.sleep(0.02)
                    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
                    codes.append(await process.wait())
    assert codes == [1, 0]


def test_the_script_of_the_compose_file_is_beside_the_sidecar_and_apart() -> None:
    """It shares the network, starts when there are a token and the CA, and mounts nothing else of the sidecar."""
    script = SERVICES["script"]
    assert script["network_mode"] == "service:auth-sidecar"
    assert {name: entry["condition"] for name, entry in script["depends_on"].items()} == {
        "auth-sidecar": "service_healthy",
        "publish-ca": "service_completed_successfully",
    }
    assert mounts_of(script) == {"/run/auth-sidecar": ("ca", True)}
    assert mounts_of(SERVICES["publish-ca"]) == {
        "/var/lib/auth-sidecar": ("state", True),
        "/run/auth-sidecar": ("ca", False),
    }
    assert script["user"] != SERVICES["auth-sidecar"]["user"]


def test_what_the_compose_file_names_exists() -> None:
    """Volumes, networks, and the services that others wait for, with a check where health is waited for."""
    for service in SERVICES.values():
        named_volumes = {source for source, _ in mounts_of(service).values() if not source.startswith(".")}
        assert named_volumes <= COMPOSE["volumes"].keys()
        assert set(service.get("networks", [])) <= COMPOSE["networks"].keys()
        for name, entry in service.get("depends_on", {}).items():
            assert entry["condition"] != "service_healthy" or "healthcheck" in SERVICES[name]
    assert COMPOSE["networks"]["store"] == {"internal": True}
    assert SERVICES["redis"]["networks"] == ["store"]


# What holds for all of them.


def commands() -> Iterator[list[str]]:
    """Yield what every container of our image is told to do, by its own entry point."""
    for pod in PODS:
        for each in containers_of(pod.values[1]):
            if each["image"] == OURS and "command" not in each:
                yield each["args"]
    yield from (each["command"] for each in SERVICES.values() if each["image"] == OURS and "entrypoint" not in each)


def accepts(arguments: list[str]) -> bool:
    """Tell whether the command line of auth-sidecar knows these words and options; nothing is run."""
    group: Any = typer.main.get_command(app)
    with group.make_context("auth-sidecar", list(arguments)) as context:
        command = group.get_command(context, arguments[0])
        if command is None:
            return False
        try:
            command.make_context(arguments[0], list(arguments[1:]), parent=context)
        except typer.TyperException:
            return False
    return True


def test_commands_exist() -> None:
    """The command line takes what containers are told to run."""
    found = list(commands())
    assert len(found) == len(PODS) + 1
    assert all(map(accepts, found)), found


@pytest.mark.parametrize("arguments", [["serve"], ["run", "--config-file", "x"], ["run", "extra"]])
def test_a_command_that_does_not_exist_is_found(arguments: list[str]) -> None:
    """A wrong word, a wrong option and a word too many are all refused."""
    assert not accepts(arguments)


IMAGE = re.compile(r"(?:[a-z0-9_-]+/)?[a-z0-9_-]+:(?=[\w.-]*\d)(?!latest)[\w][\w.-]*")


def test_images_have_a_version_and_no_registry() -> None:
    """Where an image comes from is the cluster's business; which one it is, is not."""
    images = {each["image"] for pod in PODS for each in containers_of(pod.values[1])}
    images |= {each["image"] for each in SERVICES.values()}
    assert [image for image in images if not IMAGE.fullmatch(image)] == []
    assert {image for image in images if image.startswith("auth-sidecar:")} == {OURS}


@pytest.mark.parametrize(
    "image", ["redis", "redis:latest", "registry.example/redis:7", "localhost:5000/redis:7", "a/b/c:1"]
)
def test_a_loose_image_is_found(image: str) -> None:
    """A missing version, a moving one, and the name of a registry are refused."""
    assert not IMAGE.fullmatch(image)


YAML_FILES = sorted([*DEPLOY.rglob("*.yaml")])
LITERAL = re.compile(r"(?i)(secret|password|token|_key|api_?key|credential)\w*$")
REFERENCE = re.compile(r"\[?\{file: /[\w/-]+\}\]?|https://[\w./]+")


def literals(value: Any, key: str = "") -> Iterator[str]:
    """Yield the keys that speak of a secret and hold a text, other than the place of one."""
    if isinstance(value, dict):
        if "name" in value and "value" in value:
            yield from literals(value["value"], str(value["name"]))
        for name, item in value.items():
            yield from literals(item, str(name))
    elif isinstance(value, list):
        for item in value:
            yield from literals(item, key)
    elif isinstance(value, str) and LITERAL.search(key) and not REFERENCE.fullmatch(value):
        yield key


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.relative_to(DEPLOY).as_posix())
def test_files_parse_and_hold_no_secret(path: Path) -> None:
    """Each file is one YAML document; what speaks of a secret says only where it lies."""
    found = [key for key in literals(read(path)) if key not in ("secretName", "automountServiceAccountToken")]
    assert found == []
    assert all(reference.value is None for _, reference in secret_references(settings_of(rendered(BASE))))


def test_a_secret_in_a_manifest_is_found() -> None:
    """A plain value is found under a key and as an environment variable; the place of a file is not."""
    secret = canary("manifest")
    assert list(literals({"a": [{"client_secret": secret}]})) == ["client_secret"]
    assert list(literals({"env": [{"name": "PLM_PASSWORD", "value": secret}]})) == ["PLM_PASSWORD"]
    assert list(literals({"env": [{"name": "A__STORE__PASSWORD", "value": "{file: /run/x}"}]})) == []


def test_every_file_of_a_folder_is_used() -> None:
    """A manifest that no kustomization names would never be applied."""
    for folder in OVERLAYS:
        plan = read(folder / "kustomization.yaml")
        used = {*plan.get("resources", []), *(entry["path"] for entry in plan.get("patches", []))}
        for generator in plan.get("configMapGenerator", []):
            used |= {entry.rpartition("=")[2] for entry in [*generator.get("files", []), *generator.get("envs", [])]}
        assert {path.name for path in folder.iterdir()} - {"kustomization.yaml"} == {
            name for name in used if "/" not in name
        }


def test_a_patch_of_nothing_is_found(tmp_path: Path) -> None:
    """A patch whose object was renamed fails, instead of doing nothing."""
    (tmp_path / "patch.yaml").write_text("kind: Deployment\nmetadata: {name: other}\n")
    with pytest.raises(AssertionError, match="patches nothing"):
        patched(rendered(BASE), {"path": "patch.yaml"}, tmp_path)


def test_patches_take_effect() -> None:
    """The overlay with Redis keeps all of the base's containers, and adds to one."""
    base, shared = (pod_of(workloads(rendered(folder))[0]) for folder in (BASE, DEPLOY / "kubernetes/overlays/redis"))
    assert [each["name"] for each in containers_of(shared)] == [each["name"] for each in containers_of(base)]
    assert environ_of(base) == {}
    settings = settings_of(rendered(DEPLOY / "kubernetes/overlays/redis"))
    assert settings.store.shared
    assert settings.store.password is not None
    assert named(rendered(DEPLOY / "kubernetes/overlays/redis"), "Deployment", "sync")["spec"]["replicas"] > 1
