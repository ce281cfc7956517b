"""config/kubernetes is valid by Kubernetes' own schemas, fits together, and its configuration is taken by `check`."""

import itertools
import json
import os
import tempfile
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from fixtures.certs import common_names

FOLDER = Path(__file__).parents[2] / "config" / "kubernetes"
NAMES = ("central", "sidecar")
VERSIONS = ("1.29", kubernetes_validate.latest_version())
"""The oldest with sidecars as they are written here, and the newest whose schemas are there."""

BACKSTOP = 5
"""Seconds beyond drain_delay and drain_timeout that docs/operations.md says the end may take."""

TEXT = {"type": "string", "minLength": 1}
TIME = {"type": "string", "pattern": "^([0-9]+h)?([0-9]+m)?([0-9]+s)?$"}
CERTIFICATE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "cert-manager.io/v1"},
        "kind": {"const": "Certificate"},
        "metadata": {"type": "object", "required": ["name", "namespace"]},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["secretName", "issuerRef"],
            "properties": {
                "secretName": TEXT,
                "commonName": {"type": "string", "maxLength": 64},
                "dnsNames": {"type": "array", "items": TEXT},
                "usages": {
                    "type": "array",
                    "items": {"enum": ["digital signature", "server auth", "client auth"]},
                },
                "privateKey": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "algorithm": {"enum": ["RSA", "ECDSA", "Ed25519"]},
                        "size": {"enum": [256, 384, 521, 2048, 4096, 8192]},
                        "rotationPolicy": {"enum": ["Never", "Always"]},
                        "encoding": {"enum": ["PKCS1", "PKCS8"]},
                    },
                },
                "duration": TIME,
                "renewBefore": TIME,
                "issuerRef": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["name"],
                    "properties": {
                        "name": TEXT,
                        "kind": {"enum": ["Issuer", "ClusterIssuer"]},
                        "group": TEXT,
                    },
                },
            },
        },
    },
}
"""Of cert-manager's Certificate (cert-manager.io/docs/reference/api-docs), what is used here."""


class Manifests:
    def __init__(self, name):
        self.objects = list(yaml.safe_load_all((FOLDER / f"{name}.yaml").read_text()))
        self.pod = self.only("Deployment")["spec"]["template"]
        containers = (*self.pod["spec"].get("initContainers", ()), *self.pod["spec"]["containers"])
        self.containers = {each["name"]: each for each in containers}
        self.proxy = self.containers["pgtlsproxy"]
        self.files = self.only("ConfigMap")["data"]
        self.settings = yaml.safe_load(self.files["pgtlsproxy.yaml"])

    def of(self, kind):
        return [each for each in self.objects if each["kind"] == kind]

    def only(self, kind):
        (found,) = self.of(kind)
        return found

    @property
    def ports(self):
        return {each["name"]: each["containerPort"] for each in self.proxy["ports"]}

    def mounts(self, root, certs):
        """Lay the proxy's volumes out under a folder, as a kubelet does."""
        contents = {each["name"]: self._content(each, certs) for each in self.pod["spec"]["volumes"]}
        for mount in self.proxy["volumeMounts"]:
            mount_volume(root / mount["mountPath"].lstrip("/"), *contents[mount["name"]], root)

    def _content(self, volume, certs):
        """The files of a volume, and their mode."""
        if "secret" in volume:
            (issued,) = [
                each
                for each in self.of("Certificate")
                if each["spec"]["secretName"] == volume["secret"]["secretName"]
            ]
            made = made_by_cert_manager(issued["spec"], certs)
            files = {
                "tls.crt": made.crt.read_bytes(),
                "tls.key": made.key.read_bytes(),
                "ca.crt": certs.ca.crt.read_bytes(),
            }
            return files, volume["secret"]["defaultMode"]
        if volume.get("configMap") == {"name": "pgtlsproxy"}:
            return {name: text.encode() for name, text in self.files.items()}, 0o644
        if volume.get("configMap") == {"name": "pgtlsproxy-trust"}:
            ca = certs.ca.crt.read_bytes()
            return {"server-ca.crt": ca, "clients-ca.crt": ca}, 0o644
        assert "emptyDir" in volume
        return {}, 0o644


def made_by_cert_manager(spec, certs):
    names = tuple(spec.get("dnsNames", ()))
    usage = "server" if "server auth" in spec["usages"] else "client"
    return certs.ca.issue(common_names(spec["commonName"]), names=names, usage=usage)


def mount_volume(folder, files, mode, root):
    """Each file is a link to `..data/NAME`, and that one to a folder named by the time."""
    data = folder / "..2026_12_01_12_00_00.1"
    data.mkdir(parents=True)
    (folder / "..data").symlink_to(data.name)
    for name, content in files.items():
        path = data / name
        path.write_bytes(
            content.replace(b"/etc/pgtlsproxy", f"{root}/etc/pgtlsproxy".encode()).replace(
                b"unix:/run", f"unix:{root}/run".encode()
            )
            if name == "pgtlsproxy.yaml"
            else content
        )
        # In a pod keys belong to root, and the group may read them.
        path.chmod(mode if os.geteuid() == 0 else mode & 0o700)
        (folder / name).symlink_to(f"..data/{name}")


@pytest.fixture
def root():
    """A folder whose name leaves room for that of a Unix socket, which has 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="pod-") as folder:
        yield Path(folder)


@pytest.fixture(params=NAMES)
def manifests(request):
    return Manifests(request.param)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid_by_kubernetes_own_schema(manifests, version):
    known = [each for each in manifests.objects if each["kind"] != "Certificate"]
    assert len(known) >= 4
    for each in known:
        kubernetes_validate.validate(each, version, strict=True)


def test_certificates_have_the_fields_of_cert_manager(manifests):
    for each in manifests.of("Certificate"):
        jsonschema.validate(each, CERTIFICATE)


def test_a_misspelt_key_would_be_noticed(manifests):
    manifests.proxy["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifests.only("Deployment"), VERSIONS[-1], strict=True)


def test_check_takes_the_configuration_as_it_is_mounted(manifests, certs, command_line, root):
    manifests.mounts(root, certs)
    command, *options = manifests.proxy["args"]
    assert (command, options[0]) == ("serve", "-c")
    checked = command_line("check", *options[:1], root / options[1].lstrip("/"), "--json")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    found = json.loads(checked.stdout)
    assert (found["mistakes"], found["warnings"]) == ([], []), found


def test_its_policy_lets_in_whom_it_is_for(command_line, certs, root):
    def explained(name, *question):
        pod = root / name
        if not pod.exists():
            Manifests(name).mounts(pod, certs)
        answer = command_line("explain", "-c", pod / "etc/pgtlsproxy/pgtlsproxy.yaml", "--json", *question)
        return json.loads(answer.stdout)["allowed"]

    uid = Manifests("sidecar").containers["shop"]["securityContext"]["runAsUser"]
    at_socket = ("--user", "shop", "--address", "local", "--os-user")
    assert explained("sidecar", *at_socket, f"uid:{uid}") is True
    assert explained("sidecar", *at_socket, "uid:65532") is False
    by_network = ("--address", "10.0.0.9", "--user")
    assert explained("central", *by_network, "app", "--cn", "app.workloads.internal") is True
    assert explained("central", *by_network, "app", "--cn", "other.workloads.internal") is False
    assert explained("central", *by_network, "postgres", "--cn", "postgres.workloads.internal") is False


def seconds(text):
    assert text.endswith("s")
    return int(text[:-1])


def test_a_pod_has_the_time_that_a_drain_takes(manifests):
    needed = (
        sum(seconds(manifests.settings.get(key, "0s")) for key in ("drain_delay", "drain_timeout")) + BACKSTOP
    )
    assert manifests.pod["spec"]["terminationGracePeriodSeconds"] > needed


def test_probes_ask_the_status_listener_at_the_pods_address(manifests):
    assert manifests.settings["status"]["listen"] == f"*:{manifests.ports['status']}"
    asked = {
        kind: manifests.proxy[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")
    }
    assert asked == {
        "startup": {"path": "/readyz", "port": "status"},
        "readiness": {"path": "/readyz", "port": "status"},
        "liveness": {"path": "/livez", "port": "status"},
    }


def test_nothing_runs_as_root_or_could_become_it(manifests):
    pod = manifests.pod["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in manifests.containers.values():
        own = container["securityContext"]
        assert {**pod["securityContext"], **own}["runAsUser"] > 0
        assert (own["allowPrivilegeEscalation"], own["readOnlyRootFilesystem"]) == (False, True)
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]


def test_the_sidecar_outlives_the_application():
    manifests = Manifests("sidecar")
    assert [each["name"] for each in manifests.pod["spec"]["initContainers"]] == ["pgtlsproxy"]
    assert manifests.proxy["restartPolicy"] == "Always"
    environment = {each["name"]: each["value"] for each in manifests.containers["shop"]["env"]}
    listen = manifests.settings["listeners"]["app"]["listen"]
    assert listen == [f"unix:{environment['PGHOST']}:5432"]
    for container in manifests.containers.values():
        assert environment["PGHOST"] in {each["mountPath"] for each in container["volumeMounts"]}


def test_what_belongs_together_is_called_alike(manifests):
    labels = manifests.pod["metadata"]["labels"].items()
    selectors = [manifests.only("Deployment")["spec"]["selector"]["matchLabels"]]
    selectors += [each["spec"]["selector"] for each in manifests.of("Service")]
    selectors += [each["spec"]["selector"]["matchLabels"] for each in manifests.of("PodDisruptionBudget")]
    selectors += [each["spec"]["podSelector"]["matchLabels"] for each in manifests.of("NetworkPolicy")]
    assert all(labels >= selector.items() for selector in selectors)
    namespaces = {each["metadata"].get("namespace", each["metadata"]["name"]) for each in manifests.objects}
    assert len(namespaces) == 1
    volumes = {each["name"] for each in manifests.pod["spec"]["volumes"]}
    mounted = {
        each["name"] for each in itertools.chain(*(c["volumeMounts"] for c in manifests.containers.values()))
    }
    assert volumes == mounted
    secrets = {each["secret"]["secretName"] for each in manifests.pod["spec"]["volumes"] if "secret" in each}
    assert secrets == {each["spec"]["secretName"] for each in manifests.of("Certificate")}


def test_the_service_and_its_policy_lead_to_the_listener():
    manifests = Manifests("central")
    assert manifests.settings["listeners"]["central"]["listen"] == [f"*:{manifests.ports['postgresql']}"]
    (port,) = manifests.only("Service")["spec"]["ports"]
    assert port["targetPort"] == "postgresql"
    policy = manifests.only("NetworkPolicy")["spec"]
    assert [rule["ports"] for rule in policy["ingress"]] == [[{"port": "postgresql"}], [{"port": "status"}]]
    server = manifests.only("Service")["metadata"]
    (shown,) = [each["spec"] for each in manifests.of("Certificate") if "dnsNames" in each["spec"]]
    assert f"{server['name']}.{server['namespace']}.svc" in shown["dnsNames"]
