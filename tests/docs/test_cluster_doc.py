"""docs/cluster.md: its scripts are ones that their readers read; nothing here starts a cluster."""

import re
import subprocess
from pathlib import Path

import pytest
import ray
import yaml

PAGE = Path(__file__).parents[2] / "docs" / "cluster.md"
BLOCKS = re.findall(r"(?ms)^```(\w+)\n(.*?)^```$", PAGE.read_text())


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


@pytest.mark.parametrize("script", blocks("sh"))
def test_shell_is_shell(script):
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_batch_script_starts_a_ray_a_node_and_waits_for_the_sweep():
    (script,) = (text for text in blocks("sh") if "#SBATCH" in text)
    assert script.startswith("#!/bin/bash\n#SBATCH")
    assert len(re.findall(r"(?m)^srun .*ray start .*\$node &$", script)) == 2
    assert '"$address" --results' in script


def test_the_job_for_kubernetes_is_a_cluster_with_the_results_on_every_pod():
    (job,) = map(yaml.safe_load, blocks("yaml"))
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]["rayClusterSpec"]
    assert spec["rayVersion"] == ray.__version__
    assert spec["authOptions"] == {"mode": "token"}
    pods = [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]
    for pod in pods:
        (container,) = pod["spec"]["containers"]
        assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/mnt/results"]
        assert [volume["name"] for volume in pod["spec"]["volumes"]] == [container["volumeMounts"][0]["name"]]
    assert "--address auto --results /mnt/results" in job["spec"]["entrypoint"]


def test_images_have_the_version_of_ray_that_the_package_has():
    (image,) = blocks("dockerfile")
    assert f"rayproject/ray:{ray.__version__}-py312" in image
