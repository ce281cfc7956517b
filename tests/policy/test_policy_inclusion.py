import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgtlsproxy.errors import ConfigError, Mistake
from pgtlsproxy.policy import inclusion
from pgtlsproxy.policy.inclusion import NoSources, Unreadable, expand, follow, located, missing, parse_lines
from pgtlsproxy.policy.records import Line


class Texts:
    """Files and folders as a test writes them; every question is remembered."""

    def __init__(self, **contents: str) -> None:
        self.contents = {f"/etc/{name}": content.encode() for name, content in contents.items()}
        self.folders: dict[str, tuple[str, ...]] = {}
        self.asked: list[str] = []

    def file(self, path: str) -> bytes | Unreadable:
        self.asked.append(path)
        return self.contents.get(
            path, Unreadable(f'could not open file "{path}": it does not exist', is_missing=True)
        )

    def folder(self, path: str) -> tuple[str, ...] | Unreadable:
        return self.folders.get(path, Unreadable(f'could not open directory "{path}": it does not exist'))


def lines(text: str, sources: inclusion.Sources | None = None) -> list[str]:
    """What a file comes to: `file:line fields`, or the mistake."""
    found = expand("/etc/hba", text.encode(), sources or NoSources())
    return [shown(line).replace("/etc/", "") for line in found]


def shown(line: Line | Mistake) -> str:
    if isinstance(line, Mistake):
        return str(line)
    fields = (",".join('"' * token.quoted + token.text for token in field) for field in line.fields)
    return f"{line.ref}: {' '.join(fields)}"


def test_included_lines_stand_in_the_place_of_the_directive() -> None:
    texts = Texts(a="one\n\ntwo", b="three")
    assert lines("first\ninclude a\n'x'\ninclude_if_exists b\ninclude_if_exists c\nlast", texts) == [
        "hba:1: first", "a:1: one", "a:3: two", "hba:3: 'x'", "b:1: three", "hba:6: last",
    ]  # fmt: skip


def test_what_is_not_there_and_need_not_be_is_known_with_its_line() -> None:
    texts = Texts(a="x\ninclude_if_exists ../c")
    text = 'include_if_exists b\ninclude a\ninclude d\n"include_if_exists" a\n'
    assert [str(each).replace("/etc/", "") for each in missing("/etc/hba", text.encode(), texts)] == [
        'hba:1: skipping missing authentication file "b"',
        'a:2: skipping missing authentication file "/c"',
        'a:2: skipping missing authentication file "/c"',
    ]
    assert missing("/etc/hba", b"include_if_exists hba\n", Texts(hba="include_if_exists hba\n")) == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("include a", ["a:1: host x"]),
        ('"include" "a"', ["a:1: host x"]),
        ("include a b", ["hba:1: include a b"]),
        ("include", ["hba:1: include"]),
        ("INCLUDE a", ["hba:1: INCLUDE a"]),
        ("include a,b", ["a:1: host x"]),
        ("include @name", ["a:1: host x"]),
        ("@word a", ["a:1: host x"]),
        ("host @users all", ["hba:1: host bob,carol,dave all"]),
        ('host alice,@users,"x y" all', ['hba:1: host alice,bob,carol,dave,"x y all']),
        ('host @"users" all', ["hba:1: host bob,carol,dave all"]),
        ('host "@users" all', ['hba:1: host "@users all']),
        ("host a@users @ all", ["hba:1: host a@users @ all"]),
        ("host @nested all", ["hba:1: host host,x,bob,carol,dave,all all"]),
        ("host @quoted all", ['hba:1: host "all,a all']),
        ("host a,@empty b", ["hba:1: host a b"]),
        ("host all # @nothing", ["hba:1: host all"]),
        ("host \\\n@users", ["hba:1: host bob,carol,dave"]),
    ],
)
def test_a_line_includes_as_in_postgresql(text: str, expected: list[str]) -> None:
    texts = Texts(
        a="host x",
        name="a",
        word="include",
        users="bob, carol\n# nobody\ndave",
        nested="include a\n@users all",
        quoted='"all" a',
        empty="# nothing",
    )
    assert lines(text, texts) == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("include c", 'hba:1: could not open file "c": it does not exist'),
        ("host @c all", 'hba:1: could not open file "c": it does not exist'),
        ("host @bad all", 'hba:1: @bad: bad:2: could not open file "c": it does not exist'),
        ("host @nul all", "hba:1: @nul: nul:1: the line contains a NUL byte; is this a text file?"),
        ("include nul", "nul:1: the line contains a NUL byte; is this a text file?"),
        ("host @empty all", "hba:1: @empty holds no entries: the column would be empty"),
        ("include_dir none", 'hba:1: could not open directory "none": it does not exist'),
        ('include_dir " \t"', 'hba:1: empty configuration directory name: " \\x09"'),
    ],
)
def test_what_cannot_be_included_is_a_mistake_where_it_stands(text: str, problem: str) -> None:
    texts = Texts(bad="ok\n@c", nul="a\0b", empty="")
    assert lines(f"{text}\nlast", texts) == [problem, "hba:2: last"]


def test_a_folder_gives_its_conf_files_by_the_order_of_their_bytes() -> None:
    names = (
        "b.conf",
        "a.conf",
        "B.conf",
        "\u00e9.conf",
        ".hidden.conf",
        ".conf",
        "x.conf~",
        "conf",
        "a.CONF",
        "10.conf",
    )
    texts = Texts(**{f"d/{name}": name for name in names})
    texts.folders["/etc/d"] = names
    expected = ["10.conf", "B.conf", "a.conf", "b.conf", "\u00e9.conf"]
    assert lines("include_dir d", texts) == [f"d/{name}:1: {name}" for name in expected]
    texts.folders["/etc/d"] = ("a.conf", "gone.conf", "b.conf")
    assert lines("include_dir d/", texts) == [
        "d/a.conf:1: a.conf", "d/b.conf:1: b.conf", 'hba:1: could not open file "d/gone.conf": it does not exist',
    ]  # fmt: skip


def test_files_nest_ten_deep_and_no_deeper() -> None:
    deep = {f"f{n}": f"include f{n + 1}\nlevel {n}" for n in range(1, 12)}
    assert lines("include f1", Texts(**deep)) == [
        'f10:1: could not open file "f11": maximum nesting depth exceeded; files nest 10 deep, and none may '
        "include itself",
        *(f"f{n}:2: level {n}" for n in range(10, 0, -1)),
    ]
    assert lines("include f2", Texts(**{**deep, "f11": "x"}))[0] == "f11:1: x"
    nested_lists = {f"f{n}": f"@f{n + 1}" for n in range(1, 12)}
    assert "maximum nesting depth exceeded" in lines("host @f1", Texts(**nested_lists))[0]


@pytest.mark.parametrize("line", ["include hba", "include_if_exists hba", "@hba", "a @hba b"])
def test_a_file_that_includes_itself_is_a_mistake(line: str) -> None:
    (found,) = lines(line, Texts(hba=line))
    assert "maximum nesting depth exceeded" in found


def test_a_few_short_files_cannot_stand_for_billions_of_lines() -> None:
    texts = Texts(**{f"f{n}": f"include f{n + 1}\n" * 10 for n in range(9)}, f9="line")
    found = lines("include f0", texts)
    assert found[-1].endswith("more than 1000 files are included")
    assert len(found) < 1000
    assert len(texts.asked) == inclusion.MAX_INCLUSIONS


def test_what_is_included_is_bounded_in_octets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inclusion, "MAX_OCTETS", 1 << 20)
    texts = Texts(big="#" * 600_000)
    assert lines("include big\nlast", texts) == ["hba:2: last"]
    assert lines("include big\ninclude big\nlast", texts) == ["big: over 1 MB with all that is included"]


@pytest.mark.parametrize(
    ("path", "including", "expected"),
    [
        ("a", "/etc/hba", "/etc/a"),
        ("d/a", "/etc/hba", "/etc/d/a"),
        ("../a", "/etc/pg/hba", "/etc/a"),
        ("../../../a", "/etc/pg/hba", "/a"),
        ("./a//b/", "/etc/hba", "/etc/a/b"),
        ("/x/../a", "/etc/hba", "/x/../a"),
        ("a", "/hba", "/a"),
        ("a", "hba", "a"),
    ],
)
def test_a_relative_path_starts_in_the_folder_of_the_file_that_includes(
    path: str, including: str, expected: str
) -> None:
    assert located(path, including) == expected


def test_every_mistake_is_told_up_to_a_thousand() -> None:
    def parse(line: Line) -> None:
        raise inclusion.LineError(line.ref.text)

    with pytest.raises(ConfigError) as caught:
        list(parse_lines("hba", b"a\0\nb\nc", NoSources(), parse))
    assert [mistake.where for mistake in caught.value.mistakes] == ["hba:1", "hba:2", "hba:3"]
    with pytest.raises(ConfigError) as caught:
        list(parse_lines("hba", b"x\n" * 5000, NoSources(), parse))
    assert len(caught.value.mistakes) == 1001
    assert "the rest was not read" in caught.value.mistakes[-1].what


CONTENTS = st.text(alphabet='ab @",\n\\', max_size=30).map(lambda text: text.replace("b", "include a\n"))


PIECES = st.lists(
    st.sampled_from(
        ["include", "incl", "ude", "_dir", " ", ",", '"', "@", "a", "#", "\\\n", "\r\n", "\\\r\n", "\n"]
    )
)


@given(PIECES.map("".join))
@settings(max_examples=500)
def test_everything_that_is_needed_is_asked_for_beforehand(hba: str) -> None:
    expanded, followed = Texts(a="x"), Texts(a="x")
    list(expand("/etc/hba", hba.encode(), expanded))
    follow("/etc/hba", hba.encode(), followed)
    assert followed.asked == expanded.asked


@pytest.mark.parametrize(
    "text", ["include a", "x @a", "x,@a", "incl\\\nude a", "incl\\\r\nude a", "x \\\n@a", '"include" a']
)
def test_no_way_to_include_a_file_is_overlooked(text: str) -> None:
    texts = Texts(a="x")
    follow("/etc/hba", text.encode(), texts)
    assert texts.asked == ["/etc/a"]


def test_a_file_that_includes_nothing_is_not_gone_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inclusion, "expand", None)
    follow("/etc/ident", b'm "a@b" bob\nm c@d bob # all\n', Texts())


@given(CONTENTS, CONTENTS, CONTENTS)
@settings(max_examples=200, deadline=None)
def test_any_files_come_to_an_end(hba: str, a: str, aa: str) -> None:
    for line in expand("/etc/hba", hba.encode(), Texts(hba=hba, a=a, aa=aa)):
        assert isinstance(line, Mistake) or (line.fields and all(line.fields))
