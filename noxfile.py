"""Sessions of nox for every Python and Twisted that is supported; `nox --list` names them."""

from configparser import ConfigParser

import nox

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "types", "tests", "docs", "build"]

#: The classifiers of setup.cfg.
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]


def oldest_twisted() -> str:
    """Return the requirement that installs the oldest Twisted that setup.cfg accepts."""
    declared = ConfigParser()
    declared.read("setup.cfg", "utf-8")
    [required] = [line for line in declared["options"]["install_requires"].splitlines() if line.startswith("twisted")]
    return required.replace(" >= ", "==")


@nox.session(python=PYTHONS)
@nox.parametrize("twisted", [nox.param("oldest", id="oldest"), nox.param("newest", id="newest")])
def tests(session: nox.Session, twisted: str) -> None:
    """Run the quick tests, or those that the arguments after `--` select."""
    session.install("-e", ".[test]", *([oldest_twisted()] if twisted == "oldest" else []))
    session.run("pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check the rules and the format of the code."""
    session.install("ruff >= 0.9")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types."""
    session.install("-e", ".[dev]")
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site; every warning is an error."""
    session.install("-e", ".[docs]")
    session.run("python", "-m", "sphinx", "-q", "-n", "-W", "--keep-going", "-b", "html", "docs", "build/docs")


@nox.session
def build(session: nox.Session) -> None:
    """Build the sdist and, from it, the wheel for every system, into dist/, and check both."""
    session.install("build >= 1.2", "twine >= 6.1")
    # Those with the C extension are built in images of their own: see release.yml.
    session.run("python", "-m", "build", env={"NETSVC_NATIVE": "0"})
    session.run("twine", "check", "--strict", "dist/*")
