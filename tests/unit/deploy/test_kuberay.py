"""The Kubernetes manifests: every field is one we know, nothing runs with rights it does not need.

The model below is strict: a field it does not have is a fault. KubeRay's own schemas: test_kuberay_schemas.py.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "deploy" / "kuberay"
FILES = sorted(FOLDER.glob("*.yaml"))
GROWING = ("train.yaml", "tune.yaml", "serve.yaml")


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", alias_generator=to_camel, frozen=True)


class Metadata(Strict):
    name: str = Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    namespace: Literal["cxr-ray"] | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class Resources(Strict):
    requests: dict[str, str]
    limits: dict[str, str]


class SecretKeyRef(Strict):
    name: str
    key: str


class ValueFrom(Strict):
    secret_key_ref: SecretKeyRef


class Variable(Strict):
    name: str
    value: str | None = None
    value_from: ValueFrom | None = None


class AutoscalerSecurity(Strict):
    allow_privilege_escalation: Literal[False]
    capabilities: dict[Literal["drop"], list[Literal["ALL"]]]


class Security(AutoscalerSecurity):
    """Of a container of ours; what is not given here would be a right too many."""

    read_only_root_filesystem: Literal[True]


class SeccompProfile(Strict):
    type: Literal["RuntimeDefault"]


class PodSecurity(Strict):
    run_as_non_root: Literal[True]
    run_as_user: int = Field(gt=0)
    run_as_group: int = Field(gt=0)
    fs_group: int = Field(gt=0)
    seccomp_profile: SeccompProfile


class HttpGet(Strict):
    path: str = Field(pattern="^/")
    port: int


class TcpSocket(Strict):
    port: int


class Probe(Strict):
    http_get: HttpGet | None = None
    tcp_socket: TcpSocket | None = None
    initial_delay_seconds: int = 0
    period_seconds: int
    timeout_seconds: int = 1
    failure_threshold: int = 3


class ContainerPort(Strict):
    name: str = Field(max_length=15)
    container_port: int


class Mount(Strict):
    name: str
    mount_path: str
    read_only: bool = False


class Container(Strict):
    name: str
    image: str = Field(pattern=r":\d")
    command: list[str] = []
    ports: list[ContainerPort] = []
    env: list[Variable] = []
    resources: Resources
    security_context: Security
    readiness_probe: Probe | None = None
    liveness_probe: Probe | None = None
    volume_mounts: list[Mount]


class EmptyDir(Strict):
    medium: Literal["Memory"] | None = None
    size_limit: str | None = None


class Volume(Strict):
    name: str
    empty_dir: EmptyDir | None = None
    config_map: dict[Literal["name"], str] | None = None


class Toleration(Strict):
    key: str
    operator: Literal["Exists"]
    effect: Literal["NoSchedule"]


class Pod(Strict):
    service_account_name: Literal["cxr-ray"] | None = None
    automount_service_account_token: bool = True
    restart_policy: Literal["Never"] | None = None
    termination_grace_period_seconds: int = 30
    security_context: PodSecurity
    tolerations: list[Toleration] = []
    containers: list[Container] = Field(min_length=1, max_length=1)
    volumes: list[Volume] = []


class Template(Strict):
    metadata: dict[Literal["labels"], dict[str, str]] = {}
    spec: Pod


class HeadGroup(Strict):
    ray_start_params: dict[str, str]
    template: Template


class WorkerGroup(HeadGroup):
    group_name: str
    replicas: int
    min_replicas: int = Field(ge=0)
    max_replicas: int = Field(ge=1)


class AuthOptions(Strict):
    mode: Literal["token"]
    secret_name: str


class AutoscalerOptions(Strict):
    version: Literal["v2"]
    idle_timeout_seconds: int
    resources: Resources
    security_context: AutoscalerSecurity


class FaultTolerance(Strict):
    redis_address: str
    redis_password: dict[Literal["valueFrom"], ValueFrom]


class RayCluster(Strict):
    ray_version: str
    auth_options: AuthOptions
    enable_in_tree_autoscaling: Literal[True]
    autoscaler_options: AutoscalerOptions
    gcs_fault_tolerance_options: FaultTolerance
    head_group_spec: HeadGroup
    worker_group_specs: list[WorkerGroup]


class RayJobSpec(Strict):
    entrypoint: str = Field(pattern="^cxr-ray ")
    backoff_limit: int
    active_deadline_seconds: int
    shutdown_after_job_finishes: Literal[True]
    ttl_seconds_after_finished: int
    submitter_pod_template: Template
    ray_cluster_spec: RayCluster


class RayServiceSpec(Strict):
    serve_config_v2: str = Field(alias="serveConfigV2")
    ray_cluster_config: RayCluster


class Document(Strict):
    metadata: Metadata


class RayJob(Document):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    spec: RayJobSpec


class RayService(Document):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayService"]
    spec: RayServiceSpec


class Bare(Document):
    api_version: Literal["v1"]
    kind: Literal["Namespace", "ServiceAccount"]


class ServicePort(Strict):
    name: str
    port: int


class ServiceSpec(Strict):
    selector: dict[str, str]
    ports: list[ServicePort]


class Service(Document):
    api_version: Literal["v1"]
    kind: Literal["Service"]
    spec: ServiceSpec


class Selector(Strict):
    match_labels: dict[str, str] = {}


class ClaimSpec(Strict):
    access_modes: list[Literal["ReadWriteOnce"]]
    resources: dict[Literal["requests"], dict[str, str]]


class Claim(Strict):
    metadata: Metadata
    spec: ClaimSpec


class StatefulSetSpec(Strict):
    service_name: str
    replicas: int
    selector: Selector
    template: Template
    volume_claim_templates: list[Claim]


class StatefulSet(Document):
    api_version: Literal["apps/v1"]
    kind: Literal["StatefulSet"]
    spec: StatefulSetSpec


class Peer(Strict):
    pod_selector: Selector | None = None
    namespace_selector: Selector | None = None


class PolicyPort(Strict):
    port: int
    protocol: Literal["TCP", "UDP"] = "TCP"


class Ingress(Strict):
    from_: list[Peer] = Field(alias="from", min_length=1)
    ports: list[PolicyPort] = []


class Egress(Strict):
    to: list[Peer] = []
    ports: list[PolicyPort] = []


class NetworkPolicySpec(Strict):
    pod_selector: Selector
    policy_types: list[Literal["Ingress", "Egress"]]
    ingress: list[Ingress] = []
    egress: list[Egress] = []


class NetworkPolicy(Document):
    api_version: Literal["networking.k8s.io/v1"]
    kind: Literal["NetworkPolicy"]
    spec: NetworkPolicySpec


Manifest = RayJob | RayService | Bare | Service | StatefulSet | NetworkPolicy
MANIFEST: TypeAdapter[Manifest] = TypeAdapter(Annotated[Manifest, Field(discriminator="kind")])


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def cluster_of(name: str) -> RayCluster:
    (manifest,) = (MANIFEST.validate_python(document) for document in documents(name))
    assert isinstance(manifest, RayJob | RayService)
    return manifest.spec.ray_cluster_spec if isinstance(manifest, RayJob) else manifest.spec.ray_cluster_config


def test_every_file_is_looked_at() -> None:
    assert [file.name for file in FILES] == ["namespace.yaml", "network.yaml", "redis.yaml", "serve.yaml", "train.yaml", "tune.yaml"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_field_is_known(file: Path) -> None:
    for document in documents(file.name):
        MANIFEST.validate_python(document)


def test_a_field_that_is_unknown_is_a_fault() -> None:
    (document,) = documents("train.yaml")
    document["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["hostNetwork"] = True
    with pytest.raises(ValidationError, match="hostNetwork"):
        MANIFEST.validate_python(document)


@pytest.mark.parametrize("name", GROWING)
def test_a_cluster_fits_together(name: str) -> None:
    cluster = cluster_of(name)
    pinned = re.findall(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert [cluster.ray_version] == pinned
    images = set()
    for group in (cluster.head_group_spec, *cluster.worker_group_specs):
        pod = group.template.spec
        (container,) = pod.containers
        images.add(container.image)
        assert container.readiness_probe is not None
        assert container.liveness_probe is not None
        assert {mount.name for mount in container.volume_mounts} == {volume.name for volume in pod.volumes}
        writable = {mount.mount_path for mount in container.volume_mounts if not mount.read_only}
        assert writable == {"/tmp", "/dev/shm"}, "all that Ray writes to lies there: the root is read-only"
        assert {variable.name: variable.value for variable in container.env}["HOME"] == "/tmp"
    assert len(images) == 1
    assert cluster.head_group_spec.ray_start_params["num-cpus"] == "0"
    assert all(group.min_replicas <= group.replicas <= group.max_replicas for group in cluster.worker_group_specs)


@pytest.mark.parametrize("name", ["train.yaml", "tune.yaml"])
def test_jobs_may_ask_for_what_the_cluster_can_grow_to(name: str) -> None:
    cluster = cluster_of(name)
    total = {"CPU": 0, "GPU": 0}
    for group in cluster.worker_group_specs:
        limits = group.template.spec.containers[0].resources.limits
        total["CPU"] += int(limits["cpu"]) * group.max_replicas
        total["GPU"] += int(limits["nvidia.com/gpu"]) * group.max_replicas
    (limit,) = [variable.value for variable in cluster.head_group_spec.template.spec.containers[0].env if "LIMIT" in variable.name]
    assert limit == f"CPU={total['CPU']},GPU={total['GPU']}"


def test_the_two_jobs_differ_in_what_they_run_alone() -> None:
    """One cluster, written twice for want of a way to share it: a change to one must be made to the other."""
    (train,), (tune,) = documents("train.yaml"), documents("tune.yaml")
    for job in (train, tune):
        job["metadata"].pop("name")
        job["spec"].pop("entrypoint")
    head = tune["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    for listed in (head["volumes"], head["containers"][0]["volumeMounts"]):
        assert listed.pop()["name"] == "sweep"
    assert train == tune


def test_the_service_is_configured_as_ray_serve_and_the_application_know() -> None:
    from ray.serve.schema import ServeDeploySchema

    from cxr_ray.serving.app import ServeSettings

    (document,) = documents("serve.yaml")
    config = yaml.safe_load(document["spec"]["serveConfigV2"])
    ServeDeploySchema(**config)
    assert set(config) <= set(ServeDeploySchema.model_fields)
    (application,) = config["applications"]
    ServeSettings(**application["args"])
    beside = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text())
    (other,) = beside["applications"]
    own = {"keys", "audit"}  # here the key is a Secret in the environment, and the log goes to the pod's
    for settings in (application["args"], other["args"]):
        for name in own:
            settings.pop(name, None)
    assert application == other, "serve/config.yaml is the same service"


def test_nothing_speaks_unless_it_is_allowed() -> None:
    policies = [MANIFEST.validate_python(document) for document in documents("network.yaml")]
    first = policies[0]
    assert isinstance(first, NetworkPolicy)
    assert (first.spec.pod_selector.match_labels, first.spec.ingress, first.spec.egress) == ({}, [], [])
    assert first.spec.policy_types == ["Ingress", "Egress"]
