"""The documents of a look: where they stand, one a module, the same again, and what a folder gives."""

from __future__ import annotations

import ast

import pytest

from moe_atlas.errors import AtlasError
from moe_atlas.look.documents import MAX_DOMAINS, from_folder, from_library
from moe_atlas.look.standard_library import code, definitions, docstrings, library, prose


def long(text):
    return len(text) >= 500


@pytest.fixture(scope="module")
def chosen():
    return from_library(20, 0, long)


def test_every_text_of_the_library_stands_where_its_name_says(chosen):
    """By the `ast` module alone: walk to the named definition and read its lines, or its docstring."""
    for domain in chosen.domains:
        for document in domain.documents:
            file, _, inner = document.name.partition(":")
            source = (library() / file).read_text(encoding="utf-8", errors="replace")
            nodes = [ast.parse(source)]
            for name in filter(None, inner.split(".")):
                nodes = [n for node in nodes for n in ast.walk(node) if getattr(n, "name", None) == name]
            if domain.name == "prose":
                assert document.text in {ast.get_docstring(node) for node in nodes}
            else:
                lines = source.splitlines(keepends=True)
                assert document.text in {"".join(lines[n.lineno - 1 : n.end_lineno]) for n in nodes}


def test_a_module_gives_one_document_and_every_document_is_long_enough(chosen):
    documents = [document for domain in chosen.domains for document in domain.documents]
    assert [domain.name for domain in chosen.domains] == ["prose", "code"]
    assert len(documents) == 40
    assert len({document.name.split(":")[0] for document in documents}) == 40
    assert all(long(document.text) for document in documents)


def test_the_choice_is_a_function_of_the_seed(chosen):
    assert from_library(20, 0, long) == chosen
    assert from_library(20, 1, long).domains != chosen.domains
    fewer = from_library(5, 0, long).domains
    assert fewer[0].documents == chosen.domains[0].documents[:5]


def test_a_library_without_such_text_is_refused():
    with pytest.raises(AtlasError, match=r"E_PROBE_SOURCE .*--data FOLDER"):
        from_library(2, 0, lambda _: False)


SOURCE = '''"""Module."""
class A:
    """Class."""
    def f(self):
        """Method."""
        def inner():
            """Inner."""
        return inner
async def g():
    return 1
'''


def test_definitions_have_dotted_names_and_docstrings_go_outside_in():
    assert [name for name, _ in definitions(SOURCE)] == ["", "A", "g", "A.f", "A.f.inner"]
    assert docstrings(SOURCE) == "Module.\n\nClass.\n\nMethod.\n\nInner."
    assert [(d.name, d.text) for d in prose("m.py", SOURCE)][:2] == [
        ("m.py", "Module."),
        ("m.py:A", "Class."),
    ]
    assert [d.name for d in code("m.py", SOURCE)] == ["m.py:g", "m.py:A.f", "m.py:A.f.inner"]
    assert code("m.py", SOURCE)[0].text == "async def g():\n    return 1\n"
    assert definitions("def f(:") == []


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def by_name(chosen):
    return {domain.name: [document.name for document in domain.documents] for domain in chosen.domains}


def test_texts_without_subfolders_are_grouped_by_kind(tmp_path):
    words = {f"{n}.md": f"{n} " * 300 for n in range(3)} | {f"{n}.rs": f"fn {n} " * 200 for n in range(2)}
    chosen = from_folder(write(tmp_path, words | {".hidden.md": "x " * 400}), 10, 0, long)
    assert {name: sorted(found) for name, found in by_name(chosen).items()} == {
        "prose": ["0.md", "1.md", "2.md"],
        "code": ["0.rs", "1.rs"],
    }
    assert chosen.how == "texts and code are a domain each"


def test_copies_short_texts_and_other_encodings_are_no_documents(tmp_path):
    files = {"a.md": "same " * 200, "b.md": "same " * 200, "c.md": "short", "d.md": b"\xff\xfe" + b"x" * 900}
    assert by_name(from_folder(write(tmp_path, files), 10, 0, long)) in (
        {"prose": ["a.md"]},
        {"prose": ["b.md"]},
    )


def test_no_more_documents_than_asked_for(tmp_path):
    chosen = from_folder(write(tmp_path, {f"{n}.md": f"{n} " * 300 for n in range(9)}), 4, 0, long)
    assert [len(domain.documents) for domain in chosen.domains] == [4]


def test_too_many_domains_are_refused(tmp_path):
    files = {f"folder{n}/a.md": f"{n} " * 300 for n in range(MAX_DOMAINS + 1)}
    with pytest.raises(
        AtlasError, match=f"makes {MAX_DOMAINS + 1} domains, a look takes at most {MAX_DOMAINS}"
    ):
        from_folder(write(tmp_path, files), 4, 0, long)


def test_a_file_of_rows_keeps_its_ending_where_a_folder_has_its_name(tmp_path):
    rows = '{"text": "a"}\n{"text": "b"}\n'
    files = {"one/a.md": "1 " * 300, "two/a.md": "2 " * 300, "one.jsonl": rows, "three.jsonl": rows}
    chosen = from_folder(write(tmp_path, files), 1, 0, long)
    assert [domain.name for domain in chosen.domains] == ["one", "two", "one.jsonl", "three"]
    assert [domain.count for domain in chosen.domains[2:]] == [1, 1]
    assert [domain.count for domain in from_folder(tmp_path, 2, 0, long).domains[2:]] == [None, None]
