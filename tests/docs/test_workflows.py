"""The workflows of GitHub and the sessions of nox name what exists, and ask for no more than they need."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from configparser import ConfigParser
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.builders.processes import ROOT

yaml = pytest.importorskip("yaml", reason="needs PyYAML, of the extra dev")
WORKFLOWS = {path.name: path for path in (ROOT / ".github/workflows").glob("*.yml")}
#: What each workflow may have, and no other may have.
WRITES = {
    ("docs.yml", "publish"): {"pages", "id-token"},
    ("release.yml", "publish"): {"id-token"},
}


def loaded(name: str) -> dict[str, Any]:
    made: dict[str, Any] = yaml.safe_load(WORKFLOWS[name].read_text("utf-8"))
    return made


def setup() -> ConfigParser:
    declared = ConfigParser()
    declared.read(ROOT / "setup.cfg", "utf-8")
    return declared


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job.get("steps", ())]


def sessions() -> set[str]:
    ended = subprocess.run(
        [sys.executable, "-m", "nox", "--list", "--json"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {each["session"] for each in json.loads(ended.stdout)}


def test_there_are_the_three() -> None:
    assert {"ci.yml", "docs.yml", "release.yml"} <= set(WORKFLOWS)


@pytest.mark.parametrize("name", WORKFLOWS)
class TestWorkflows:
    def test_only_the_jobs_that_publish_may_write(self, name: str) -> None:
        workflow = loaded(name)
        scopes = {"": workflow["permissions"]}
        scopes |= {job: declared.get("permissions", {}) for job, declared in workflow["jobs"].items()}
        for job, granted in scopes.items():
            writes = {scope for scope, access in granted.items() if access != "read"}
            assert writes == WRITES.get((name, job), set()), job

    def test_every_action_has_a_version(self, name: str) -> None:
        used = [step["uses"] for step in steps(loaded(name)) if "uses" in step]
        assert used
        for action in used:
            assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+|[0-9a-f]{40})", action)

    def test_every_file_and_workflow_that_is_run_exists(self, name: str) -> None:
        workflow = loaded(name)
        for job in workflow["jobs"].values():
            assert "uses" not in job or (ROOT / job["uses"]).is_file()
            needed = job.get("needs", [])
            assert set([needed] if isinstance(needed, str) else needed) <= set(workflow["jobs"])
        for step in steps(workflow):
            for path in re.findall(r"(?<![\w./])(?:\.?\w+/)+[\w.]+", step.get("run", "")):
                assert path == "build/docs" or (ROOT / path).exists()


class TestSessions:
    def test_every_session_that_a_workflow_or_a_document_runs_exists(self) -> None:
        pytest.importorskip("nox", reason="needs nox, of the extra dev")
        existing = sessions()
        matrix = loaded("ci.yml")["jobs"]["versions"]["strategy"]["matrix"]
        named = {f"tests-{python}({twisted})" for python, twisted in product(matrix["python"], matrix["twisted"])}
        assert named == {name for name in existing if name.startswith("tests-")}
        texts = [path.read_text("utf-8") for path in (*WORKFLOWS.values(), ROOT / "CONTRIBUTING.md")]
        shown = [given for text in texts for given in re.findall(r'nox -s ("[^"]+"|[\w ]+)', text)]
        names = {name for given in shown for name in ([given.strip('"')] if '"' in given else given.split())}
        assert len(names) >= 5
        assert {name for name in names if "$" not in name} <= existing

    def test_the_pythons_are_those_that_setup_cfg_declares(self) -> None:
        python = "Programming Language :: Python :: "
        versions = [
            line.removeprefix(python) for line in setup()["metadata"]["classifiers"].splitlines() if python in line
        ]
        matrix = loaded("ci.yml")["jobs"]["versions"]["strategy"]["matrix"]
        assert versions[1:] == matrix["python"]
        assert setup()["options"]["python_requires"] == f">={versions[1]}"


class TestRelease:
    RELEASE = property(lambda self: loaded("release.yml"))

    def test_is_of_a_tag_and_after_the_tests(self) -> None:
        # YAML 1.1 reads the key `on` as true.
        assert self.RELEASE[True] == {"push": {"tags": ["v*"]}}
        assert self.RELEASE["jobs"]["test"]["uses"] == "./.github/workflows/ci.yml"
        assert set(self.RELEASE["jobs"]["publish"]["needs"]) == {"test", "build", "wheels"}

    def test_is_built_once_and_uploaded_as_it_was_built_without_a_secret(self) -> None:
        publishing = self.RELEASE["jobs"]["publish"]
        assert publishing["environment"]["name"] == "pypi"
        assert all("run" not in step for step in publishing["steps"])
        [upload] = [step for step in publishing["steps"] if "pypi-publish" in step["uses"]]
        assert upload["with"] == {"attestations": True}
        assert sum("nox -s build" in step.get("run", "") for step in steps(self.RELEASE)) == 1
        assert "secrets." not in WORKFLOWS["release.yml"].read_text("utf-8")

    @pytest.mark.parametrize(("tag", "accepted"), [("v{}", True), ("{}", False), ("v9.9.9", False)])
    def test_the_tag_is_the_version_and_the_changelog_has_it(self, tag: str, accepted: bool, tmp_path: Path) -> None:
        import netsvc

        [script] = [step["run"] for step in steps(self.RELEASE) if "GITHUB_REF_NAME" in step.get("run", "")]
        version = netsvc.__version__
        (tmp_path / "CHANGELOG.md").write_text(f"## [{version}] - 2030-01-01\n")
        ended = subprocess.run(
            ["bash", "-ec", script.replace("python -c", f"{sys.executable} -c")],
            cwd=tmp_path,
            env={
                "GITHUB_REF_NAME": tag.format(version),
                "PATH": "/usr/bin:/bin",
                "PYTHONPATH": str(Path(netsvc.__file__).parents[1]),
            },
            capture_output=True,
            check=False,
        )
        assert (ended.returncode == 0) is accepted
