from __future__ import annotations

import math
import re
import time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_atlas.errors import Exit, InputRefused
from moe_atlas.probes.reading.strict_yaml import MAX_BYTES, MAX_DEPTH, Mapping, Node, Scalar, parse


def plain(node: Node) -> object:
    if isinstance(node, Scalar):
        return node.value
    if isinstance(node, Mapping):
        return {key: plain(value) for key, value in node.entries.items()}
    return [plain(item) for item in node.items]


def value(text: str) -> object:
    return plain(parse(f"k: {text}\n".encode(), "f.yaml"))["k"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        (".5", 0.5),
        ("5.", 5.0),
        ("-0.25", -0.25),
        ("+3", 3),
        ("-7", -7),
        ("9223372036854775807", 2**63 - 1),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("Off", "Off"),
        ("y", "y"),
        ("8-20", "8-20"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("0x10", "0x10"),
        ("2026-01-01", "2026-01-01"),
        ("<<", "<<"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("'.nan'", ".nan"),
        ("|-\n  1", "1"),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, expected: object) -> None:
    found = value(text)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "duplicate key 'a', first on line 1"),
        ("a: {x: 1,\n  x: 2}\n", 2, "duplicate key 'x'"),
        ("a: 1\n'a': 3\n", 2, "duplicate key"),
        ("a: &x 1\n", 1, "anchor &x"),
        ("a: &x {b: 1}\n", 1, "anchor &x"),
        ("a: 1\n&k b: 2\n", 2, "anchor &k"),
        ("a: 1\nb: *x\n", 2, "alias *x"),
        ("a: 1\n*x : 2\n", 2, "alias *x"),
        ("a: !!python/object/apply:os.system ['true']\n", 1, "tag"),
        ("a: !!str 1\n", 1, "tag"),
        ("a:\n  - !x [1]\n", 2, "tag '!x'"),
        ("!!map {a: 1}\n", 1, "tag"),
        ("!t a: 1\n", 1, "tag"),
        ("%YAML 1.1\n---\na: 1\n", 1, "directive"),
        ("%TAG ! x:\n---\na: 1\n", 1, "directive"),
        ("a: 1\n---\nb: 2\n", 2, "second document"),
        ("a: .inf\n", 1, "not a finite number"),
        ("a: -.INF\n", 1, "not a finite number"),
        ("a: 1\nb: .NaN\n", 2, "not a finite number"),
        ("a: 1e999\n", 1, "not a finite number"),
        ("a: 010\n", 1, "octal"),
        ("a: 9223372036854775808\n", 1, "64-bit"),
        ("a: -9223372036854775809\n", 1, "64-bit"),
        ("a: " + "9" * 5000 + "\n", 1, "64-bit"),
        ("? [1, 2]\n: 3\n", 1, "a key must be plain text"),
        ("? {a: 1}\n: 3\n", 1, "a key must be plain text"),
        ("a: [1, 2\nb: 3\n", 2, "not valid YAML"),
        ("a: 1\n\tb: 2\n", 2, "not valid YAML"),
        ("a: 1\nb: \x07\n", 2, "unprintable"),
        ("", 1, "is empty"),
        ("# only a comment\n", 1, "is empty"),
    ],
)
def test_refuses_what_could_mean_two_things(text: str, line: int, part: str) -> None:
    with pytest.raises(InputRefused) as caught:
        parse(text.encode(), "f.yaml")
    assert caught.value.code == "E_PROBE_YAML"
    assert caught.value.where == f"f.yaml:{line}"
    assert part in caught.value.problem
    assert caught.value.exit_code == Exit.REFUSED


def test_refuses_bytes_that_are_not_utf8_with_their_line() -> None:
    with pytest.raises(InputRefused) as caught:
        parse(b"a: 1\nb: \xff\n", "f.yaml")
    assert caught.value.where == "f.yaml:2"


def test_a_byte_order_mark_is_no_part_of_the_first_key() -> None:
    assert plain(parse(b"\xef\xbb\xbfa: 1\n", "f")) == {"a": 1}


def test_an_alias_bomb_costs_nothing() -> None:
    bomb = "a: &a [x, x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *{chr(97 + n)}]\n" for n in range(20)
    )
    start = time.perf_counter()
    with pytest.raises(InputRefused, match="anchor"):
        parse(bomb.encode(), "f")
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("text", ["[" * 50_000, "a: " + "{a: " * 20_000, "- " * 50_000])
def test_deep_nesting_is_refused_early(text: str) -> None:
    start = time.perf_counter()
    with pytest.raises(InputRefused) as caught:
        parse(text.encode(), "f")
    assert caught.value.code == "E_PROBE_YAML"
    assert time.perf_counter() - start < 2


def test_nesting_up_to_the_limit_is_read() -> None:
    text = "[" * MAX_DEPTH + "1" + "]" * MAX_DEPTH
    node: object = plain(parse(text.encode(), "f"))
    for _ in range(MAX_DEPTH):
        assert isinstance(node, list)
        node = node[0]
    assert node == 1
    with pytest.raises(InputRefused, match="nested"):
        parse(f"[{text}]".encode(), "f")


def test_a_file_over_the_limit_is_refused() -> None:
    with pytest.raises(InputRefused, match="longer"):
        parse(b"#" * (MAX_BYTES + 1), "f")


def test_every_node_knows_its_line() -> None:
    node = parse(b"a: 1\nb:\n  c: [1,\n    2]\n", "f")
    assert isinstance(node, Mapping)
    inner = node.entries["b"]
    assert isinstance(inner, Mapping)
    assert (node.key_lines, inner.key_lines["c"]) == ({"a": 1, "b": 2}, 3)
    items = inner.entries["c"].items  # type: ignore[union-attr]
    assert [item.line for item in items] == [3, 4]


# PyYAML leaves 1e5 and 08 unquoted because YAML 1.1 reads them as text, so such text is not its to dump.
_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=12).filter(
    lambda text: not re.fullmatch("[-+.0-9eE]+", text)
)
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXT
)
_TREES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(_TREES)
def test_what_pyyaml_dumps_is_read_back(tree: object) -> None:
    class Flat(yaml.SafeDumper):
        def ignore_aliases(self, data: object) -> bool:
            return True

    text = yaml.dump(tree, Dumper=Flat, allow_unicode=True)
    found, refused = read_or_refusal(text.encode())
    if refused is None:
        assert _equal(found, tree)
    else:
        assert any(word in refused.problem for word in ("nested", "tag"))


def read_or_refusal(data: bytes) -> tuple[object, InputRefused | None]:
    try:
        return plain(parse(data, "f")), None
    except InputRefused as refused:
        return None, refused


def _equal(found: object, tree: object) -> bool:
    if isinstance(found, float) and isinstance(tree, int | float):
        return math.isclose(found, tree, rel_tol=1e-15)
    if isinstance(tree, dict) and isinstance(found, dict):
        return found.keys() == tree.keys() and all(_equal(found[key], tree[key]) for key in tree)
    if isinstance(tree, list) and isinstance(found, list):
        return len(tree) == len(found) and all(map(_equal, found, tree))
    return found == tree and type(found) is type(tree)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80) | st.text("ab:{}[]-&*!#%|>'\"\n ,?~019.eE", max_size=60).map(str.encode))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    _, refused = read_or_refusal(data)
    if refused is not None:
        assert refused.code == "E_PROBE_YAML"
        assert refused.where.startswith("f:")
