"""Print one closing line over several junit files: N passed, N failed, N skipped."""

import sys
import xml.etree.ElementTree as ElementTree

total = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
for path in sys.argv[1:]:
    for suite in ElementTree.parse(path).getroot().iter("testsuite"):  # noqa: S314 (our own file)
        for name in total:
            total[name] += int(suite.get(name, 0))
failed = total["failures"] + total["errors"]
print(f"{total['tests'] - failed - total['skipped']} passed, {failed} failed, {total['skipped']} skipped")
