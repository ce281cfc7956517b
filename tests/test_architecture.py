"""The house stands as it is drawn: what only one module may do, no other does."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pgtlsproxy"
MODULES = sorted(PACKAGE.rglob("*.py"))


def calls(path, name):
    """Whether a module calls something of this name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            target = node.func
            called = target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", "")
            if called == name:
                return True
    return False


def reads(path, owner, attribute):
    """Whether a module reads `<something>.owner.attribute` or `owner.attribute`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr == attribute:
            value = node.value
            if (value.attr if isinstance(value, ast.Attribute) else getattr(value, "id", "")) == owner:
                return True
    return False


@pytest.mark.parametrize(
    ("name", "only"),
    [
        ("Grant", ["policy/access.py"]),
        ("LoggedIn", ["proxy/login.py"]),
        ("Proof", ["proxy/login.py", "proxy/prove.py"]),
        ("Proved", ["proxy/prove.py"]),
        ("Accepted", ["proxy/accept.py"]),
        ("Negotiated", ["proxy/negotiate.py"]),
        ("BackendLeg", ["proxy/connect.py"]),
    ],
)
def test_only_these_modules_make_the_value_of_a_stage(name, only):
    assert [str(path.relative_to(PACKAGE)) for path in MODULES if calls(path, name)] == only


def test_whoever_dials_reads_the_backend_from_the_grant():
    """The way to several backends a listener stays open."""
    readers = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.glob("proxy/*.py")
        if reads(path, "listener", "backend")
    }
    assert readers <= {"proxy/policies.py", "proxy/units.py"}


def test_the_session_fits_a_page_and_one_function_tells_its_stages_in_order():
    source = (PACKAGE / "proxy/session.py").read_text()
    assert source.count("\n") < 200
    run = next(
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.AsyncFunctionDef) and node.name == "_run"
    )
    awaited = [
        getattr(node.value.func, "id", getattr(node.value.func, "attr", ""))
        for node in sorted(ast.walk(run), key=lambda node: getattr(node, "lineno", 0))
        if isinstance(node, ast.Await) and isinstance(node.value, ast.Call)
    ]
    stages = ["accept", "negotiate", "authorise", "_log_in", "_relay"]
    assert [name for name in awaited if name in stages] == stages


def test_threads_of_workers_are_had_from_limiters_of_their_own():
    """What hangs or takes long has few, and nobody waits for one behind something else."""
    without = [
        f"{path.name}:{node.lineno}"
        for path in PACKAGE.glob("proxy/*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "trio.to_thread.run_sync"
        and "limiter" not in {keyword.arg for keyword in node.keywords}
    ]
    assert [each for each in without if not each.startswith("status_page")] == []


def test_no_module_has_two_subjects():
    long = [f"{path.relative_to(PACKAGE)}" for path in MODULES if path.read_text().count("\n") > 400]
    assert long == []


def test_no_module_is_named_for_nothing():
    assert not {"utils.py", "common.py", "helpers.py", "types.py"} & {path.name for path in MODULES}


def test_private_names_of_pyopenssl_are_used_in_one_module():
    users = [
        str(path.relative_to(PACKAGE))
        for path in MODULES
        if "OpenSSL._util" in path.read_text() or '_context"' in path.read_text()
    ]
    assert users == ["tls/openssl.py"]
