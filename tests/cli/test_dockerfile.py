"""The image holds a pgtlsproxy that runs: its steps are taken here, by a container engine where there is one.

Where there is none, the steps of the build stage are run in an empty folder: the wheel from what COPY brings,
the environment without pip, and in it what the image starts. The dependencies are those of this environment.
"""

import fnmatch
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

import pgtlsproxy
from fixtures.deployments import config, in_clear, passthrough
from fixtures.waiting import until
from pgtlsproxy.demo.output import FollowedOutput

ROOT = Path(__file__).parents[2]
TIMEOUT = 300


def instructions():
    """(word, text) of each line, those that go on joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    return [tuple(line.split(" ", 1)) for line in re.sub(r"\\\n\s*", "", text).splitlines() if line]


def stages():
    """The instructions behind each FROM, that one first."""
    found = []
    for word, text in instructions():
        if word == "FROM":
            found.append([])
        found[-1].append((word, text))
    return found


BUILD, FINAL = stages()


def last(word):
    """What an instruction of the final stage says; the last one counts."""
    return [text for each, text in FINAL if each == word][-1]


def ignored(path):
    """Whether .dockerignore keeps a file of this folder out: the last of its lines that fits counts."""
    is_out = False
    for line in (ROOT / ".dockerignore").read_text().split():
        pattern = line.removeprefix("!").removeprefix("**/")
        names = (
            [str(path), *map(str, path.parents), *path.parts]
            if line.startswith("**/")
            else [str(path), *map(str, path.parents)]
        )
        if any(fnmatch.fnmatchcase(name, pattern) for name in names if name != "."):
            is_out = not line.startswith("!")
    return is_out


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """The file system of what the build stage makes: /opt/pgtlsproxy."""
    root = tmp_path_factory.mktemp("image")
    folder = next(text for word, text in BUILD if word == "WORKDIR")
    (root / folder.lstrip("/")).mkdir()
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": str(root),
        # The dependencies are not fetched again, nor what builds the wheel.
        "PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "off", "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }  # fmt: skip
    for word, text in BUILD:
        if word == "COPY":
            copy(text.split(), root / folder.lstrip("/"))
        if word == "RUN":
            command = text.replace("/wheels", f"{root}/wheels").replace("/opt/", f"{root}/opt/")
            done = subprocess.run(
                ["sh", "-ec", command], cwd=root / folder.lstrip("/"), env=environment,
                capture_output=True, text=True, timeout=TIMEOUT, check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    place = sysconfig.get_path("purelib", vars={"base": f"{root}/opt/pgtlsproxy"}, scheme="venv")
    (Path(place) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return root


def copy(words, folder):
    """As COPY does: a folder's content, or files."""
    *sources, target = words
    for source in sources:
        for path in [ROOT / source, *(ROOT / source).rglob("*")]:
            if path.is_file() and not ignored(path.relative_to(ROOT)):
                place = (
                    folder
                    / target
                    / (path.relative_to(ROOT / source) if (ROOT / source).is_dir() else path.name)
                )
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, place)


def in_image(image, *command, **words):
    """Run what a container would, with nothing around it."""
    program = image / "opt/pgtlsproxy/bin" / command[0]
    return subprocess.run(
        [program, *map(str, command[1:])], cwd=image, env={"PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, timeout=TIMEOUT, check=False, **words,
    )  # fmt: skip


@pytest.fixture
def written(tmp_path, certs):
    class NoServer:
        port = 1

    settings = config({"clear": in_clear(listen=["127.0.0.1:0"])}, primary=passthrough(NoServer, certs))
    settings["backends"]["primary"]["sslrootcert"] = str(certs.ca.crt)
    (tmp_path / "pgtlsproxy.yaml").write_text(
        yaml.safe_dump(settings | {"status": {"listen": "127.0.0.1:0"}})
    )
    (tmp_path / "pg_hba.conf").write_text("host all all all scram-sha-256\n")
    return tmp_path / "pgtlsproxy.yaml"


def test_what_is_installed_is_the_package_whole_and_nothing_else(image):
    installed = image / "opt/pgtlsproxy"
    assert in_image(image, "pgtlsproxy", "--version").stdout.startswith(
        f"pgtlsproxy {pgtlsproxy.__version__}"
    )
    (package,) = installed.glob("lib/python3*/site-packages/pgtlsproxy")
    here = {each.relative_to(ROOT / "pgtlsproxy") for each in (ROOT / "pgtlsproxy").rglob("*.py")}
    assert {each.relative_to(package) for each in package.rglob("*.py")} == here
    assert (package / "py.typed").exists()
    assert not list(installed.glob("bin/pip*"))
    assert not list(image.glob("src/**/tests"))
    where = in_image(image, "python", "-c", "import pgtlsproxy; print(pgtlsproxy.__file__)").stdout
    assert where.strip() == str(package / "__init__.py")


def test_check_runs_in_it(image, written):
    checked = in_image(image, "pgtlsproxy", "check", "-c", written)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_what_it_starts_serves_and_its_health_check_says_so(image, written):
    (program,), (command, option, path) = json.loads(last("ENTRYPOINT")), json.loads(last("CMD"))
    assert (command, option, path) == ("serve", "-c", "/etc/pgtlsproxy/pgtlsproxy.yaml")
    health = json.loads(last("HEALTHCHECK").partition(" CMD ")[2])
    process = subprocess.Popen(
        [image / "opt/pgtlsproxy/bin" / program, command, option, written],
        cwd=image, env={"PATH": "/usr/bin:/bin"}, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    output = FollowedOutput(process.stderr)
    try:
        listening = json.loads(output.wait_for(lambda line: "status_listening" in line, timeout=60))
        at = ("--url", f"http://{listening['address']}")
        until(lambda: in_image(image, *health, *at).returncode == 0, timeout=60)
        until(
            lambda: in_image(image, "pgtlsproxy", "status", "--probe", "readyz", *at).returncode == 0,
            timeout=60,
        )
        process.send_signal(getattr(signal, last("STOPSIGNAL")))
        assert process.wait(60) == 0
        assert in_image(image, *health, *at).returncode == 1
    finally:
        process.kill()
        process.wait()
        output.wait_until_ended(20)


def test_it_is_small_and_nobody_s(tmp_path):
    """Two stages; what the second has is Python, the roots that it trusts, and a user without rights or shell."""
    assert FINAL[0][1].endswith("-slim")
    assert [text for word, text in FINAL if word == "COPY"] == [
        "--from=build /opt/pgtlsproxy /opt/pgtlsproxy"
    ]
    installed = re.findall(r"apt-get install -y --no-install-recommends ([\w .-]+?) *&&", last("RUN"))
    assert installed == ["ca-certificates"]
    assert "rm -rf /var/lib/apt/lists/*" in last("RUN")
    uid, gid = map(int, last("USER").split(":"))
    assert uid == gid == 65532
    assert f"useradd --uid {uid} --gid {gid} --no-create-home" in last("RUN")
    assert "--shell /usr/sbin/nologin" in last("RUN")
    assert dict(each.split("=", 1) for each in shlex.split(last("ENV")))["PATH"].startswith(
        "/opt/pgtlsproxy/bin:"
    )


def engine():
    """A container engine that answers; None where there is none."""
    for name in ("docker", "podman"):
        if (
            shutil.which(name)
            and subprocess.run([name, "info"], capture_output=True, check=False).returncode == 0
        ):
            return name
    return None


def test_an_engine_builds_it_where_there_is_one(written):
    """Else the tests above have taken its steps, but for apt-get's and the making of the user."""
    name = engine()
    if name is None:
        pytest.skip("no container engine answers here; its steps have been taken without one")
    tag = f"pgtlsproxy-test-{os.getpid()}"
    subprocess.run([name, "build", "--quiet", "--tag", tag, ROOT], check=True, timeout=900)
    try:
        run = [name, "run", "--rm", "--read-only", "--cap-drop=ALL", "--network=none"]
        shown = subprocess.run(
            [*run, tag, "--version"], capture_output=True, text=True, check=True, timeout=TIMEOUT
        )
        assert shown.stdout.startswith(f"pgtlsproxy {pgtlsproxy.__version__}")
        who = subprocess.run([*run, "--entrypoint=id", tag, "-u"], capture_output=True, text=True, check=True)
        assert who.stdout.strip() == "65532"
    finally:
        subprocess.run([name, "rmi", "--force", tag], capture_output=True, check=False)
