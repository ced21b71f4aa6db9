"""The cluster files: valid by Ray's own schema, safe as they say, and `ray up` to `ray down` for real."""

import re
import shutil
import sys
import time
from pathlib import Path

import pytest
import yaml
from machines import Machines
from ray.autoscaler._private.util import prepare_config, validate_config
from sweeps import write_space

ROOT = Path(__file__).parents[2]
AWS, LOCAL = ROOT / "cluster.yaml", ROOT / "cluster-local.yaml"
IPS = ["10.77.0.1", "10.77.0.2", "10.77.0.3"]


def google() -> dict:
    """cluster.yaml with the commented block at its end in place of what it says it replaces."""
    text = AWS.read_text()
    block = text[text.index("# provider:") :]
    return {**yaml.safe_load(text), **yaml.safe_load(re.sub(r"(?m)^# ?", "", block))}


CLUSTERS = {"aws": yaml.safe_load(AWS.read_text()), "gcp": google(), "local": yaml.safe_load(LOCAL.read_text())}


@pytest.mark.parametrize("kind", CLUSTERS)
def test_a_cluster_file_is_one_by_rays_own_schema(kind):
    config = CLUSTERS[kind]
    assert config["provider"]["type"] == kind
    assert re.fullmatch(r"m2ray(-local)?", config["cluster_name"])
    validate_config(prepare_config(config))


@pytest.mark.parametrize("kind", ["aws", "gcp"])
def test_gpu_nodes_are_spot_and_come_from_none_while_the_head_stays(kind):
    types = CLUSTERS[kind]["available_node_types"]
    head, gpus = types[CLUSTERS[kind]["head_node_type"]], types["a100"]
    assert head["resources"] == {"CPU": 0}  # no trial runs there
    assert (head["min_workers"], head["max_workers"]) == (0, 0)
    assert gpus["resources"] == {"CPU": 96, "GPU": 8, "accelerator_type:A100": 1}
    assert gpus["min_workers"] == 0 < gpus["max_workers"] <= CLUSTERS[kind]["max_workers"]
    if kind == "aws":
        assert gpus["node_config"]["InstanceType"] == "p4d.24xlarge"
        assert gpus["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert "InstanceMarketOptions" not in head["node_config"]
        # With a group of the user's own Ray makes none: its own is open for SSH to everybody.
        assert all(kind["node_config"]["SecurityGroupIds"] for kind in types.values())
        assert "security_group" not in CLUSTERS[kind]["provider"]
        assert all(kind["node_config"]["ImageId"].startswith("ami-") for kind in types.values())
    else:
        assert gpus["node_config"]["machineType"] == "a2-highgpu-8g"
        assert {"preemptible": True} in gpus["node_config"]["scheduling"]
        assert "scheduling" not in head["node_config"]


@pytest.mark.parametrize("kind", CLUSTERS)
def test_every_node_has_the_package_and_the_token_and_the_dashboard_is_on_loopback(kind):
    config = CLUSTERS[kind]
    assert config["file_mounts"] == {"~/m2ray": ".", "~/.ray/auth_token": "~/.ray/auth_token"}
    assert any(re.search(r"pip install -e '?~/m2ray", line) for line in config["setup_commands"])
    starts = [config[key][-1] for key in ("head_start_ray_commands", "worker_start_ray_commands")]
    assert all("RAY_AUTH_MODE=token ray start " in line for line in starts)
    assert "--dashboard-host=127.0.0.1 " in starts[0]


def test_what_must_be_filled_in_is_marked():
    said = [line for file in (AWS, LOCAL) for line in file.read_text().splitlines() if "FILL IN" in line]
    for placeholder in ("ami-0123", "sg-0123", "fs-0123", "my-project", "FAMILY", "10.0.0.1", "10.0.0.2", "you"):
        assert any(placeholder in line for line in said), placeholder


# --- for real ------------------------------------------------------------------------------------------------


@pytest.fixture
def machines(tmp_path):
    try:
        made = Machines(tmp_path, IPS)
    except (OSError, AssertionError) as error:
        pytest.skip(f"no namespaces here: {error}")
    yield made
    made.close()


def filled_in(project: Path) -> None:
    """The project as a user has it, with cluster-local.yaml filled in for the machines.

    The packages are those of this environment, under the name of that which would be made: no downloads.
    """
    for name in ("m2ray", "pyproject.toml", "README.md"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, project / name)
    text = LOCAL.read_text()
    for what, by in (
        ("10.0.0.1", IPS[0]),
        ("10.0.0.2, 10.0.0.3", ", ".join(IPS[1:])),
        ("~/.ssh/id_ed25519", "~/key"),
    ):
        assert text.count(what) == 1
        text = text.replace(what, by)
    (install,) = re.findall(r"python3 -m venv .*", text)
    (project / "cluster-local.yaml").write_text(text.replace(install, f"ln -sfn {sys.prefix} ~/venv"))


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_cluster_comes_up_on_ones_own_machines_sweeps_and_goes_down(machines):
    project = machines.home / "m2ray"
    project.mkdir()
    filled_in(project)
    (machines.home / "key").touch()
    write_space(machines.shared, search={"trials": 0}, axes={}, judge={"select": 0, "confirm": 0})

    def ray(command: str) -> str:
        return machines.run(f"ray {command}", cwd=project)

    def on_head(command: str) -> str:
        return ray(f"exec cluster-local.yaml '{command}'")

    ray("get-auth-token --generate")
    ray("up cluster-local.yaml --yes --no-config-cache")
    token = (machines.home / ".ray" / "auth_token").read_text()
    assert token in on_head("cat ~/.ray/auth_token")
    until(lambda: re.search(r"(?m)^ 3 local\.cluster\.node$", on_head("ray status")), "the head and both workers")

    with pytest.raises(AssertionError, match="Authentication token is missing"):
        on_head("RAY_AUTH_MODE=disabled ray status")
    machines.run(f"timeout 5 bash -c 'echo > /dev/tcp/{IPS[0]}/6379'")  # for the nodes, with the token
    with pytest.raises(AssertionError, match="refused"):
        machines.run(f"timeout 5 bash -c 'echo > /dev/tcp/{IPS[0]}/8265'")  # the dashboard is not for the network

    local = "from m2ray.engine import cluster; cluster.start(None, False); import ray; print(len(ray.nodes()))"
    assert re.search(r"(?m)^1\r?$", on_head(f'cd ~/m2ray && python -c "{local}"'))  # without --address: its own

    sweep = "python -m m2ray.sweep /mnt/results/space.yaml --address auto --results /mnt/results"
    assert "everything is in /mnt/results/small" in on_head(f"cd ~/m2ray && {sweep}")
    job = f"ray job submit -- {sweep} --name job"
    assert "succeeded" in on_head(f"cd / && export RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265 && {job}")
    boards = [(machines.shared / name / "leaderboard.csv").read_bytes() for name in ("small", "job")]
    assert boards[0] == boards[1]
    assert token not in (machines.shared / "small" / "sweep.yaml").read_text()

    ray("down cluster-local.yaml --yes")
    # Ray stops itself on the head; the workers notice within a minute or so.
    until(lambda: not any("raylet/raylet" in machines.run(f"ssh you@{ip} 'ps -eo args'") for ip in IPS), "the end")


def until(happened, what: str) -> None:
    """Wait for something that the cluster brings about."""
    deadline = time.monotonic() + 900
    while not happened():
        assert time.monotonic() < deadline, what
        time.sleep(5)
