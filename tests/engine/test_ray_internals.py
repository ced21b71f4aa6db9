"""Names of Ray's that nobody promises: each is still in the installed Ray."""

import inspect
from pathlib import Path

import pytest
import ray

from m2ray.engine import ray_internals

PACKAGE = Path(ray.__file__).parent
SOURCES = ("_common", "_private", "autoscaler", "train", "tune")


@pytest.fixture(scope="module")
def source() -> str:
    files = [file for folder in SOURCES for file in sorted((PACKAGE / folder).rglob("*.py"))]
    return "\n".join(file.read_text(errors="replace") for file in files)


@pytest.mark.parametrize(
    "name",
    [
        *ray_internals.ENVIRONMENT,
        ray_internals.AUTH_MODE,
        ray_internals.ADDRESS,
        ray_internals.DASHBOARD_ADDRESS,
        ray_internals.MAX_PENDING_TRIALS,
        ray_internals.CONNECT_ATTEMPTS.removeprefix("RAY_"),
        ray_internals.HEAD_NODE.removeprefix("node:"),
    ],
)
def test_the_name_is_in_rays_source(name, source):
    assert f'"{name}"' in source or f"'{name}'" in source or name in source


def test_the_setting_of_preloaded_modules_is_in_rays_core():
    field = ray_internals.PRELOAD_MODULES.removeprefix("RAY_").encode()
    assert field in (PACKAGE / "core/src/ray/raylet/raylet").read_bytes()


def test_accelerator_resources_have_the_prefix():
    from ray._common import utils

    assert utils.RESOURCE_CONSTRAINT_PREFIX == ray_internals.ACCELERATOR_PREFIX


def test_tune_still_keeps_a_trials_variables_where_they_are_cleared():
    from ray.tune.execution import class_cache

    source = inspect.getsource(class_cache)
    assert isinstance(class_cache.DEFAULT_ENV_VARS, dict)
    assert isinstance(class_cache.ENV_VARS_TO_PROPAGATE, set)
    assert "DEFAULT_ENV_VARS" in source.partition("def _to_cls_key")[2] or source.count("DEFAULT_ENV_VARS") > 1
