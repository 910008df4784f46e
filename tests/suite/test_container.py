"""The Dockerfile runs what the README and the Makefile say, and nothing else; no image can be built in CI."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def instructions(name: str) -> list[str]:
    """All arguments of an instruction, continued lines joined."""
    joined = DOCKERFILE.replace("\\\n", " ")
    return re.findall(rf"^{name} (.*)$", joined, re.MULTILINE)


def test_its_commands_are_the_makefiles_targets():
    makefile = (ROOT / "Makefile").read_text()
    system, *made = instructions("RUN")
    assert system.startswith("apt-get update")
    packages = set(re.search(r"--no-install-recommends ([a-z ]+?) &&", system)[1].split())
    assert packages == {"make", "bubblewrap"}
    assert "apt-get install -y -qq --no-install-recommends bubblewrap" in makefile
    assert made == ["make setup-gpu", "make setup"]
    for command in made:
        assert re.search(rf"^{command.removeprefix('make ')}:", makefile, re.MULTILINE), command


def test_it_starts_the_readmes_demo_under_the_python_that_is_tested():
    readme = (ROOT / "README.md").read_text()
    assert instructions("CMD") == ['["python", "-m", "suite", "-m", "+experiment=demo"]'] * 2
    assert "python -m suite -m +experiment=demo" in readme
    assert "Python 3.11" in readme
    assert instructions("ARG") == ["PYTHON=3.11-slim-bookworm"]
    for variable in ("SUITE_CACHE", "SUITE_RUNS", "SUITE_DATA"):
        assert f"{variable}=" in DOCKERFILE
        assert f"oc.env:{variable}" in (ROOT / "conf" / "base.yaml").read_text()


def test_both_variants_rest_on_one_base_and_cpus_are_the_default():
    assert instructions("FROM") == ["python:${PYTHON} AS base", "base AS cuda", "base AS cpu"]
    default = DOCKERFILE.rsplit("FROM ", 1)[1]
    assert "download.pytorch.org/whl/cpu" in default


def test_nothing_of_this_machine_goes_into_it():
    kept_out = {line.removeprefix("**/").strip("/") for line in (ROOT / ".dockerignore").read_text().split()}
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().split()}
    assert ignored | {".git"} <= kept_out
