"""The manifests against Kubernetes' own schemas, and against each other. Needs no cluster."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).resolve().parent.parent
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
# Kinds that a cluster learns from others.
CUSTOM = {"PodMonitor"}
VERSIONS = ("1.31", "1.37")


def manifests():
    return {name: yaml.safe_load((FOLDER / name).read_text()) for name in KUSTOMIZATION["resources"]}


@pytest.mark.parametrize("version", VERSIONS)
def test_schemas(version):
    files = [FOLDER / name for name, manifest in manifests().items() if manifest["kind"] not in CUSTOM]
    program = Path(sys.executable).with_name("kubernetes-validate")
    subprocess.run([program, "--strict", "--kubernetes-version", version, *files], check=True)


def test_no_manifest_is_left_out():
    listed = {*KUSTOMIZATION["resources"], "kustomization.yaml", "prometheus-adapter.yaml"}
    assert listed == {path.name for path in FOLDER.glob("*.yaml")}


def test_they_mean_the_same_pods():
    of = {manifest["kind"]: manifest for manifest in manifests().values()}
    template = of["Deployment"]["spec"]["template"]
    labels = template["metadata"]["labels"]
    assert of["Service"]["spec"]["selector"] == labels
    for kind in ("Deployment", "PodDisruptionBudget", "PodMonitor"):
        assert of[kind]["spec"]["selector"]["matchLabels"] == labels
    assert of["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == of["Deployment"]["metadata"]["name"]
    (container,) = template["spec"]["containers"]
    (port,) = container["ports"]
    assert of["Service"]["spec"]["ports"][0]["targetPort"] == port["name"]
    assert of["PodMonitor"]["spec"]["podMetricsEndpoints"][0]["port"] == port["name"]
    assert f"EXPOSE {port['containerPort']}\n" in (FOLDER.parent / "Dockerfile").read_text()
    claims = {volume.get("persistentVolumeClaim", {}).get("claimName") for volume in template["spec"]["volumes"]}
    assert of["PersistentVolumeClaim"]["metadata"]["name"] in claims
