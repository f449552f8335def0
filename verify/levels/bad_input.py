"""L8: bad input raises the named error, before anything runs."""

from __future__ import annotations

from verify import specs
from verify.report import Report
from verify.specification import BadInput


def fault(row: BadInput) -> str:
    """What is wrong with the error that the call raises; "" when it is as named."""
    try:
        row.call()
    except Exception as error:
        if type(error) is not row.error:
            return f"raised {type(error).__name__}, expected {row.error.__name__}: {error}"
        missing = [text for text in row.says if text not in str(error)]
        return f"the message lacks {missing}: {error}" if missing else ""
    return "raised nothing"


def table() -> list[tuple[str, BadInput]]:
    """(family, row) for every spec."""
    rows = [(spec.layer.__name__, row) for spec in specs.layers() for row in spec.errors]
    return rows + [(spec.loss.__name__, row) for spec in specs.losses() for row in spec.errors]


def run(report: Report) -> None:
    """Make every call of the table."""
    level = report.level("L8 bad input", "the named error, before anything runs")
    rows = table()
    with report.working("bad input", len(rows)) as advance:
        for family, row in rows:
            wrong = fault(row)
            level.judged(not wrong, failure=f"{row.name}: {wrong}", family=family)
            advance(row.name[:60])
