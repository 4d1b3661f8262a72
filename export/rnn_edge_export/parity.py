"""PyTorch against the shipped runtime. Every check is fatal at export: a wrong graph still writes plausible text."""

from collections.abc import Iterable
from dataclasses import dataclass

from rnn_edge.errors import ParityError
from rnn_edge.state import State
from rnn_edge.verification import difference

# fp32 against fp32 in another order of summation: measured differences are some 1e-6, and grow little with steps.
STATE_TOLERANCE = 5e-5
LOGITS_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Check:
    """One comparison: the largest ``difference`` and what is allowed."""

    name: str
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """NaN never passes."""
        return self.difference <= self.tolerance


def run_checks(found: Iterable[Check]) -> list[Check]:
    """Run all checks and give them in the order in which they are printed.

    Raises:
        ParityError: one fails; the message names it with its figures.
    """
    checks: dict[str, Check] = {}
    for check in found:
        # The same check at another batch size shares a line: the worse counts.
        known = checks.get(check.name)
        if known is None or not check.difference <= known.difference:
            checks[check.name] = check
        if not check.passed:
            raise ParityError(
                f"{check.name}: differs by {check.difference:.2e}, allowed are {check.tolerance:.0e}",
                "the graph does not compute what the model computes; nothing was written. Report this",
            )
    return list(checks.values())


def state_difference(actual: State, expected: State) -> float:
    """The largest ``difference`` of any state tensor."""
    return max(difference(actual.tensors[name], tensor) for name, tensor in expected.tensors.items())
