"""What every overlay must be: valid for a current Kubernetes, locked down, and free of secrets."""

import base64
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.manifests.conftest import MANIFESTS, OVERLAYS, ROOT, SECRET, Overlay, render
from yolo_distill.components.shared.train_job.body import train_job
from yolo_distill.components.shared.train_job.settings import TrainJobSettings

# The version of the kind cluster, and the newest whose schemas are at hand.
VERSIONS = ("1.35", "1.37")


def test_there_are_overlays_for_a_laptop_and_for_gpus() -> None:
    assert OVERLAYS == ["gpu", "kind"]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid(overlay: Overlay, version: str) -> None:
    assert overlay.objects
    for item in overlay.objects:
        # Strict: a field that Kubernetes does not know is an error.
        assert kubernetes_validate.validate(item, version, strict=True) == version


def test_a_mistyped_field_would_be_found(overlay: Overlay) -> None:
    broken = overlay.named("Deployment", "mlflow") | {"specs": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSIONS[0], strict=True)


def test_secrets_must_be_filled_in_first(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"mlflow\.env"):
        shutil.copytree(MANIFESTS, tmp_path / "manifests", ignore=shutil.ignore_patterns("*.env"))
        render(tmp_path / "manifests" / "overlays" / "kind")


def test_secret_values_are_in_secrets_alone(overlay: Overlay) -> None:
    secrets = overlay.of("Secret")
    assert secrets
    for item in secrets:
        values = {base64.b64decode(value).decode() for value in item["data"].values()}
        assert values == {SECRET}, f"{item['metadata']['name']} has a value that the repository holds"
    assert SECRET not in yaml.safe_dump_all(item for item in overlay.objects if item["kind"] != "Secret")


def test_git_knows_no_secret() -> None:
    for example in MANIFESTS.rglob("*.env.example"):
        filled = example.with_suffix("")
        done = subprocess.run(["git", "check-ignore", "--quiet", str(filled)], cwd=ROOT)
        assert done.returncode == 0, f"git would take {filled}"
        assert all(line.startswith("#") or line.endswith("=") for line in example.read_text().splitlines())
    for file in MANIFESTS.rglob("*.yaml"):
        assert not [item for item in yaml.safe_load_all(file.read_text()) if item and item.get("kind") == "Secret"]


def test_images_are_pinned(overlay: Overlay) -> None:
    images = [container["image"] for _, pod in overlay.pods() for container in _containers(pod)]
    assert images
    for image in images:
        name, _, digest = image.partition("@")
        tag = name.rpartition("/")[2].partition(":")[2]
        assert digest.startswith("sha256:") or (tag and tag != "latest" and tag[0].isdigit()), image


def test_pods_are_restricted(overlay: Overlay) -> None:
    pods = list(overlay.pods())
    assert {name for name, _ in pods} == {"mlflow", "mlflow-postgres"}
    for name, pod in pods:
        assert breaches(pod) == [], name


def test_namespaces_that_we_own_enforce_it(overlay: Overlay) -> None:
    (namespace,) = overlay.of("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert {item["metadata"]["namespace"] for item in overlay.of("Deployment") + overlay.of("StatefulSet")} == {
        namespace["metadata"]["name"]
    }


@pytest.mark.parametrize(
    ("change", "breach"),
    [
        ({"hostNetwork": True}, "hostNetwork"),
        ({"securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}}, "runs as root"),
        ({"securityContext": {"runAsNonRoot": True, "runAsUser": 0}}, "runs as root"),
        ({"securityContext": {"runAsNonRoot": True, "runAsUser": 1}}, "seccomp"),
        ({"volumes": [{"name": "x", "hostPath": {"path": "/"}}]}, "volume x"),
    ],
)
def test_breaches_are_noticed(overlay: Overlay, change: dict[str, Any], breach: str) -> None:
    pod = overlay.named("Deployment", "mlflow")["spec"]["template"]["spec"]
    assert any(breach in found for found in breaches(pod | change))


@pytest.mark.parametrize(
    ("change", "breach"),
    [
        ({"privileged": True}, "privileged"),
        ({"allowPrivilegeEscalation": True}, "escalate"),
        ({"capabilities": {"drop": ["NET_RAW"]}}, "capabilities"),
        ({"capabilities": {"drop": ["ALL"], "add": ["SYS_ADMIN"]}}, "capabilities"),
        ({"readOnlyRootFilesystem": False}, "root file system"),
    ],
)
def test_breaches_of_containers_are_noticed(overlay: Overlay, change: dict[str, Any], breach: str) -> None:
    pod = overlay.named("Deployment", "mlflow")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    loose = container | {"securityContext": container["securityContext"] | change}
    assert any(breach in found for found in breaches(pod | {"containers": [loose]}))


def test_containers_say_what_they_need_and_how_they_are(overlay: Overlay) -> None:
    for name, pod in overlay.pods():
        for container in _containers(pod):
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), name
            assert "memory" in container["resources"]["limits"], name
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys(), name


def test_accounts_may_do_what_is_named_alone(overlay: Overlay) -> None:
    roles = overlay.of("Role") + overlay.of("ClusterRole")
    assert roles
    for role in roles:
        for rule in role["rules"]:
            for field in ("apiGroups", "resources", "verbs"):
                assert "*" not in rule[field], role["metadata"]["name"]
            assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"])
            if "secrets" in rule["resources"]:
                assert rule["verbs"] == ["get"]
                assert rule["resourceNames"], "every Secret of the namespace"
            assert not {"pods/exec", "pods/attach"} & set(rule["resources"])


def test_bindings_bind_our_account_where_it_lives(overlay: Overlay) -> None:
    (account,) = (item for item in overlay.of("ServiceAccount") if item["metadata"]["name"] == "yolo-distill")
    roles = {(item["kind"], item["metadata"]["name"]) for item in overlay.of("Role") + overlay.of("ClusterRole")}
    bindings = overlay.of("RoleBinding") + overlay.of("ClusterRoleBinding")
    assert {(item["roleRef"]["kind"], item["roleRef"]["name"]) for item in bindings} == roles
    for binding in bindings:
        assert binding["subjects"] == [
            {"kind": "ServiceAccount", "name": "yolo-distill", "namespace": account["metadata"]["namespace"]}
        ]


def test_other_accounts_have_no_token(overlay: Overlay) -> None:
    for account in overlay.of("ServiceAccount"):
        if account["metadata"]["name"] != "yolo-distill":
            assert account["automountServiceAccountToken"] is False


def test_what_is_not_allowed_is_denied(overlay: Overlay) -> None:
    denial = overlay.named("NetworkPolicy", "default-deny")
    assert denial["metadata"]["namespace"] == "yolo-distill"
    assert denial["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for policy in overlay.of("NetworkPolicy"):
        for direction in ("ingress", "egress"):
            for rule in policy["spec"].get(direction, []):
                assert rule.get("ports") or rule.get("to"), f"{policy['metadata']['name']} allows everything"
                assert "from" in rule or direction == "egress", f"{policy['metadata']['name']} lets everyone in"


def test_policies_and_services_select_pods_that_exist(overlay: Overlay) -> None:
    labels = [
        item["spec"]["template"]["metadata"]["labels"] for item in overlay.of("Deployment") + overlay.of("StatefulSet")
    ]
    selectors = [item["spec"]["selector"] for item in overlay.of("Service")] + [
        item["spec"]["podSelector"]["matchLabels"]
        for item in overlay.of("NetworkPolicy")
        if item["metadata"]["namespace"] == "yolo-distill" and item["spec"]["podSelector"]
    ]
    for selector in selectors:
        assert any(selector.items() <= label.items() for label in labels), selector


def test_a_training_step_may_do_what_it_asks_for_alone(filled_in: Path) -> None:
    objects = [item for item in yaml.safe_load_all(render(filled_in / "overlays" / "gpu")) if item]
    named = {(item["kind"], item["metadata"]["name"]): item for item in objects}
    may = {rule["resources"][0]: set(rule["verbs"]) for rule in named["Role", "yolo-distill-trainer"]["rules"]}
    assert may == {"trainjobs": {"create", "get", "delete"}, "pods": {"list"}, "pods/log": {"get"}}
    assert not [name for kind, name in named if kind == "ClusterRole"]
    # The label that the step gives to the nodes' pods.
    sent = train_job("t", {}, TrainJobSettings(image="i", nodes=2), ["module"])
    [patch] = sent["spec"]["runtimePatches"]
    [node] = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    labels = node["template"]["spec"]["template"]["metadata"]["labels"]
    policy = named["NetworkPolicy", "yolo-distill-training"]["spec"]
    assert policy["podSelector"]["matchLabels"] == labels
    [ingress] = policy["ingress"]
    assert ingress["from"] == [{"podSelector": {"matchLabels": labels}}]


def test_trainjobs_are_a_part_that_can_be_left_out(filled_in: Path) -> None:
    folder = filled_in / "overlays" / "without-trainer"
    folder.mkdir()
    (folder / "kustomization.yaml").write_text(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [../../base/runs]\n"
    )
    assert "trainer.kubeflow.org" not in render(folder)
    assert "trainjobs" in render(filled_in / "overlays" / "gpu")


def test_the_cluster_file_names_what_the_overlay_makes(overlay: Overlay) -> None:
    cluster = yaml.safe_load((MANIFESTS / "overlays" / overlay.name / "cluster.yaml").read_text())
    assert cluster["images"].keys() == {"cpu", "train"}
    for volume in cluster["defaults"]["volumes"]:
        claim = overlay.named("PersistentVolumeClaim", volume["claim"])
        assert claim["metadata"]["namespace"] == "kubeflow"
        assert cluster["cache_root"].startswith(f"{volume['mount']}/")
    own = {item["metadata"]["name"]: item["data"].keys() for item in overlay.of("Secret")}
    # Kubeflow's own, with these two keys.
    own["mlpipeline-minio-artifact"] = {"accesskey": "", "secretkey": ""}.keys()
    for secret in cluster["defaults"]["secrets"]:
        assert secret["env"].keys() <= own[secret["name"]]
        (role,) = (item for item in overlay.of("Role") if item["metadata"]["name"] == "yolo-distill")
        (rule,) = (rule for rule in role["rules"] if rule["resources"] == ["secrets"])
        assert secret["name"] in rule["resourceNames"]
    service = overlay.named("Service", "mlflow")
    address = f"http://mlflow.{service['metadata']['namespace']}:{service['spec']['ports'][0]['port']}"
    assert cluster["defaults"]["env"]["MLFLOW_TRACKING_URI"] == address


def test_mlflow_answers_to_the_name_that_the_tasks_use(overlay: Overlay) -> None:
    from mlflow.server.security_utils import is_allowed_host_header

    allowed = overlay.named("ConfigMap", "mlflow")["data"]["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    for host in ("mlflow.yolo-distill:5000", "mlflow.yolo-distill.svc.cluster.local:5000", "localhost:5000"):
        assert is_allowed_host_header(allowed, host)
    for host in ("evil.example.org", "mlflow.yolo-distill.evil.example.org", "mlflow.evil.example.org:5000"):
        assert not is_allowed_host_header(allowed, host)


def test_mlflow_finds_its_secret(overlay: Overlay) -> None:
    (secret,) = (item for item in overlay.of("Secret") if item["metadata"]["namespace"] == "yolo-distill")
    for _, pod in overlay.pods():
        for container in _containers(pod):
            for variable in container.get("env", []):
                reference = variable.get("valueFrom", {}).get("secretKeyRef")
                if reference:
                    assert reference["name"] == secret["metadata"]["name"]
                    assert reference["key"] in secret["data"]


def breaches(pod: dict[str, Any]) -> list[str]:
    """What the pod security standard "restricted" refuses, and a root file system that can be written to."""
    found = [f"{field} is set" for field in ("hostNetwork", "hostPID", "hostIPC") if pod.get(field)]
    kinds = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
    found += [f"volume {item['name']}" for item in pod.get("volumes", []) if not item.keys() - {"name"} <= kinds]
    shared = pod.get("securityContext", {})
    for container in _containers(pod):
        context = shared | container.get("securityContext", {})
        if not context.get("runAsNonRoot") or not context.get("runAsUser"):
            found.append("runs as root")
        if context.get("seccompProfile", {}).get("type") not in {"RuntimeDefault", "Localhost"}:
            found.append("no seccomp profile")
        if context.get("privileged"):
            found.append("privileged")
        if context.get("allowPrivilegeEscalation") is not False:
            found.append("may escalate")
        capabilities = context.get("capabilities", {})
        if capabilities.get("drop") != ["ALL"] or set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
            found.append("capabilities")
        if not context.get("readOnlyRootFilesystem"):
            found.append("root file system")
        if any("hostPort" in port for port in container.get("ports", [])):
            found.append("hostPort")
    return found


def _containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def test_runs_can_move_to_a_users_profile(filled_in: Path) -> None:
    kustomization = filled_in / "overlays" / "gpu" / "runs" / "kustomization.yaml"
    copy = kustomization.parent.parent / "profile"
    shutil.copytree(kustomization.parent, copy)
    moved = kustomization.read_text().replace("namespace: kubeflow", "namespace: alice")
    (copy / "kustomization.yaml").write_text(moved)
    objects = [item for item in yaml.safe_load_all(render(copy)) if item]
    assert {item["metadata"].get("namespace", "alice") for item in objects} == {"alice"}
    subjects = [subject["namespace"] for item in objects for subject in item.get("subjects", [])]
    assert subjects == ["alice"] * 2
