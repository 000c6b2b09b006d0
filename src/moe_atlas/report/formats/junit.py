"""JUnit XML: a suite per predicate, a case per gate; ``failure`` for a breach, ``error`` for what stayed open.

The report agrees with the verdict: a failure appears in a FAIL only, neither failure nor error in a PASS. A gate
that failed inside a predicate which its declared stage lets pass is ``skipped``, with the reason.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from moe_atlas.errors import AtlasError
from moe_atlas.report import words
from moe_atlas.report.head import because, conditions, losses, told
from moe_atlas.text import shown
from moe_atlas.views.judged import PredicateView
from moe_atlas.views.receipt import ReceiptView

ALLOWED = "allowed by the declared stage"


def render(receipt: ReceiptView, path: Path) -> str:
    """Return a receipt as JUnit XML, which does not name the receipt's path."""
    root = ET.Element("testsuites", name="atlas")
    verdict = [("verdict", words.verdict(receipt))] if receipt.qualified else []
    head = (*told(receipt), *because(receipt), *losses(receipt), *conditions(receipt))
    _noted(root, "head", [*verdict, *((said.title, said.text) for said in head)])
    if receipt.is_baseline:
        suite = ET.SubElement(root, "testsuite", name="baseline")
        _case(suite, "baseline", "recorded")
    for name, predicate in receipt.predicates.items():
        if not receipt.is_baseline:
            _suite(root, name, predicate)
    _noted(root, "warnings", [(warning.code, warning.message) for warning in receipt.warnings])
    return _finished(root)


def render_error(error: AtlasError) -> str:
    """Return an error as JUnit XML: one case, in error."""
    root = ET.Element("testsuites", name="atlas")
    suite = ET.SubElement(root, "testsuite", name="audit")
    case = _case(suite, "audit", "could not evaluate")
    ET.SubElement(case, "error", type=error.code, message=shown(str(error), 600))
    return _finished(root)


def _suite(root: ET.Element, name: str, predicate: PredicateView) -> None:
    suite = ET.SubElement(root, "testsuite", name=name)
    passed = predicate.passed
    for line in predicate.evidence:
        title = " ".join(part for part in (words.place(line), line.gate) if part)
        _judge(_case(suite, name, title), line.result, words.gate_sentence(line), passed)
    outcome = _case(suite, name, "outcome")
    reason = f": {predicate.reason}" if predicate.reason else ""
    _judge(outcome, words.PASSED[passed], f"{predicate.outcome}{reason}", passed)


def _noted(root: ET.Element, name: str, lines: Sequence[tuple[str, str]]) -> None:
    """One skipped case a line: a viewer shows its message, and the job's result stays the verdict's."""
    if not lines:
        return
    suite = ET.SubElement(root, "testsuite", name=name)
    for title, text in lines:
        ET.SubElement(_case(suite, name, title), "skipped", message=shown(text, 400))


def _case(suite: ET.Element, predicate: str, title: str) -> ET.Element:
    return ET.SubElement(suite, "testcase", classname=f"atlas.{predicate}", name=shown(title))


def _judge(case: ET.Element, result: str, message: str, passed: bool | None) -> None:
    text = shown(message, 400)
    if passed is True and result in ("fail", "undetermined"):
        ET.SubElement(case, "skipped", message=f"{ALLOWED}: {text}")
    elif result == "fail":
        ET.SubElement(case, "failure", type="breach", message=text)
    elif result == "undetermined":
        ET.SubElement(case, "error", type="undetermined", message=text)
    elif result != "pass":
        ET.SubElement(case, "skipped", message=text)


def _finished(root: ET.Element) -> str:
    """Counts on every suite and on the whole, then the text."""
    for element in (*root, root):
        element.set("tests", str(sum(1 for _ in element.iter("testcase"))))
        for plural, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            element.set(plural, str(sum(1 for _ in element.iter(tag))))
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"
