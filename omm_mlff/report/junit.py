"""Writes `junit.xml`: the findings as test cases, for a CI server.

A gate must look in the CI server as it acts by its exit code:

- A failed `reject` or `limit` criterion is a failure: the model is at fault.
- An undecided or unmeasured one is an error: the verdict is UNDECIDED and the job ends in 3, so a
  report of passes and skips would hide why. JUnit's `error` says just that: the test came to no
  result.
- `info` criteria always pass, and `not-applicable` is skipped with the reason.
- The exit code is the chosen policy's. What fails under another policy is skipped with its cause,
  so that it is seen and does not turn a passed job red.
"""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from omm_mlff.report.judged import Judged
from omm_mlff.report.wording import bound, exact_place, interval, number, place, reason
from omm_mlff.schema import Finding, Verdict

FILE_NAME = "junit.xml"

_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def as_xml(judged: Judged) -> ElementTree.Element:
    """One suite for each policy, one case for each finding."""
    root = ElementTree.Element("testsuites", name=_legal(f"omm-mlff {judged.model.name}"))
    for verdict in (judged.verdict, *judged.others):
        root.append(_suite(judged, verdict))
    for count in ("tests", "failures", "errors"):  # Jenkins' schema has no more here
        root.set(count, str(sum(int(suite.get(count, "0")) for suite in root)))
    return root


def write(judged: Judged, path: Path) -> None:
    """Writes the file."""
    tree = ElementTree.ElementTree(as_xml(judged))
    ElementTree.indent(tree)
    tree.write(path, encoding="utf-8", xml_declaration=True)


def _suite(judged: Judged, verdict: Verdict) -> ElementTree.Element:
    suite = ElementTree.Element("testsuite", name=_legal(verdict.policy))
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in (
        ("model", judged.model.name),
        ("profile", judged.profile),
        ("verdict", verdict.name),
        ("reason", reason(verdict)),
    ):
        ElementTree.SubElement(properties, "property", name=name, value=_legal(value))
    cases = [_case(f, counts=verdict is judged.verdict) for f in verdict.findings]
    suite.extend(cases)
    suite.set("tests", str(len(cases)))
    for count, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(count, str(sum(case.find(tag) is not None for case in cases)))
    return suite


def _case(finding: Finding, *, counts: bool) -> ElementTree.Element:
    where = finding.run or place(finding)
    element = f" {finding.where.element}" if finding.run and finding.where.element else ""
    case = ElementTree.Element(
        "testcase",
        classname=_legal(f"{finding.policy}.{finding.system or 'model'}"),
        name=_legal(f"{finding.criterion} [{where}{element}]" if where else finding.criterion),
    )
    details = _legal(_details(finding))
    cause = _legal(finding.cause)
    if finding.status == "not-applicable":
        ElementTree.SubElement(case, "skipped", message=cause)
    elif finding.status == "pass" or finding.severity == "info":
        ElementTree.SubElement(case, "system-out").text = details
    elif not counts:
        message = f"{finding.status} under policy {finding.policy}: {cause}"
        ElementTree.SubElement(case, "skipped", message=_legal(message)).text = details
    else:
        tag = "failure" if finding.status == "fail" else "error"
        ElementTree.SubElement(case, tag, message=cause, type=finding.severity).text = details
    return case


def _details(finding: Finding) -> str:
    lines = [
        f"{finding.measurement} = {number(finding.value)} {interval(finding)}".rstrip(),
        f"bound: {bound(finding) or 'none'} ({finding.severity}; {finding.source})",
    ]
    if exact_place(finding):
        lines.append(exact_place(finding))
    if finding.cause:
        lines.append(finding.cause)
    return "\n".join(lines)


def _legal(text: str) -> str:
    """Without the characters that XML 1.0 forbids."""
    return _FORBIDDEN.sub("?", text)
